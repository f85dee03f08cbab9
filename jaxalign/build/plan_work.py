"""One pass of a run on a machine: its rows, memory, operations and traffic from shapes, and its program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.build import ahead
from jaxalign.build.abstract import RowSizes
from jaxalign.build.plan_load import Load, planned_architecture, planned_steps
from jaxalign.config import RunConfig, resolve
from jaxalign.errors import ConfigError
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning import executed, references
from jaxalign.planning.changes import Change, changed
from jaxalign.planning.memory import BYTES, Parts, sizes, step_memory
from jaxalign.planning.roofline import fsdp_bytes
from jaxalign.planning.targets import Target


def named(decoder: DecoderConfig) -> str:
    """A model for people."""
    total = sizes(decoder).total
    size = f"{total / 1e9:.2f} B" if total >= 1e8 else f"{total / 1e6:.2f} M"
    return f"{size} parameters ({decoder.family}, {decoder.layers} layers)"


def models(config: RunConfig, run_pass: str) -> tuple[DecoderConfig, DecoderConfig | None]:
    """What is computed: the trained model and a reference beside it, or the reference alone."""
    named = references.other_model(config)
    if run_pass == "reference":
        return planned_architecture(config, named), None
    own = planned_architecture(config)
    if named is None or config.reference.mode == "cached":
        return own, references.computed(config, own, None)
    return own, references.computed(config, own, planned_architecture(config, named))


@dataclass(frozen=True)
class Work:
    """One configuration of a pass on a machine.

    Attributes:
      config: the run, resolved.
      target: the machine.
      run_pass: ``train`` or ``reference``.
      load: what the run reads.
      decoder: what is trained, or scores.
      other: a reference that each step computes.
    """

    config: RunConfig
    target: Target
    run_pass: str
    load: Load
    decoder: DecoderConfig
    other: DecoderConfig | None

    @property
    def trains(self) -> bool:
        """Whether it is the train step."""
        return self.run_pass == "train"

    @property
    def mesh(self) -> dict[str, int]:
        """Devices along each axis.

        Raises:
          ConfigError: the configuration's sizes do not multiply to the machine's devices.
        """
        config = self.config.mesh
        found = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
        known = math.prod(size for size in found.values() if size != -1)
        rest = [axis for axis, size in found.items() if size == -1]
        if rest and self.target.devices % known == 0:
            found[rest[0]] = self.target.devices // known
        if math.prod(found.values()) != self.target.devices:
            shape = " x ".join(f"{axis} {size}" for axis, size in found.items())
            raise ConfigError(
                f"mesh: got {shape}, expected a product of {self.target.devices}, the devices of {self.target.name}; "
                "set one of them to -1 to take what is left."
            )
        return found

    def check(self) -> None:
        """Raises where the mesh does not fit the machine."""
        assert self.mesh  # says what is wrong with it

    @property
    def rows(self) -> RowSizes:
        """Of a step or call."""
        split = self.mesh["data"] * self.mesh["fsdp"]
        if self.trains:
            return self.load.sizes(self.config, self.decoder, split, parts=self.config.train.microbatches)
        return self.load.sizes(self.config, self.decoder, split, batch=self.batch)

    @property
    def batch(self) -> int:
        """Examples of a step or call."""
        if self.trains:
            return self.config.train.batch_size
        split = self.mesh["data"] * self.mesh["fsdp"]
        return max(self.config.evaluation.batch_size, split)

    def changed(self, changes: Sequence[Change]) -> Work:
        """The same with some changes of the configuration."""
        config = resolve(changed(self.config, changes))
        return dataclasses.replace(self, config=config, other=models(config, self.run_pass)[1])

    def estimate(self) -> Parts:
        """Bytes of a device, from shapes."""
        parts = self.config.train.microbatches if self.trains else 1  # the pass takes its rows at once
        config = dataclasses.replace(self.config, train=dataclasses.replace(self.config.train, microbatches=parts))
        mesh = self.mesh
        return step_memory(
            config,
            self.decoder,
            rows=self.rows.rows,
            row=self.rows.tokens,
            scored=self.rows.scored,
            mesh=(mesh["data"], mesh["fsdp"], mesh["tensor"]),
            reference=self.other,
            train=self.trains,
        )

    def made(self, devices: Sequence[Any] | None) -> ahead.Program | None:
        """The program, without values."""
        if devices is None:
            return None
        mesh = ahead.make_plan_mesh(self.config, devices)
        if self.trains:
            return ahead.train_program(
                self.config, self.decoder, self.other, self.rows, mesh, planned_steps(self.config, self.load) or 1000
            )
        return ahead.scoring_program(self.config, self.decoder, self.rows, mesh)

    @property
    def model_flops(self) -> float:
        """Operations that the model needs, on all devices."""
        return executed.needed(self.config, self.load.work, self.decoder, self.other, self.batch, train=self.trains)

    @property
    def device_flops(self) -> float:
        """Operations that a device does."""
        rows = self.rows
        shape = rows.rows, rows.tokens, rows.scored
        kind = self.target.kind
        return executed.done(self.config, self.decoder, self.other, *shape, self.trains, kind) / self.target.devices

    def moved(self) -> float:
        """Bytes that a device reads and writes, at least."""
        config, estimate, mesh = self.config, self.estimate(), self.mesh
        computed = BYTES[config.model.dtype]
        passes = self._passes() + (self.other is not None)
        weights = passes * 2 * sizes(self.decoder).total / mesh["tensor"] * computed
        parts = config.train.microbatches if self.trains else 1
        state = 2 * (estimate.weights + estimate.optimizer + estimate.sums) if self.trains else estimate.weights
        return state + parts * (weights + 2 * (estimate.kept + estimate.blocks + estimate.scoring))

    def _passes(self) -> int:
        if not self.trains:
            return 1
        return 3 if self.config.model.remat == "full" else 2

    def traffic(self) -> dict[str, dict[str, float]]:
        """Bytes that a device sends, from shapes."""
        mesh, config = self.mesh, self.config
        computed = BYTES[config.model.dtype]
        parts = config.train.microbatches if self.trains else 1
        own = sizes(self.decoder).total / mesh["tensor"]
        found: dict[str, dict[str, float]] = {}
        # What remat gathers again serves the backward pass; gradients travel in the arithmetic's precision.
        gathered = fsdp_bytes(own, passes=1 + self.trains, computed=computed, stored=0, shards=mesh["fsdp"])
        gathered += fsdp_bytes(own, passes=1, computed=computed, stored=0, shards=mesh["fsdp"]) * (
            self.other is not None
        )
        whole = config.adapter.kind == "none"
        if gathered:
            found["fsdp"] = {"all-gather": parts * gathered}
            if self.trains and whole:
                scattered = fsdp_bytes(own, passes=0, computed=0, stored=computed, shards=mesh["fsdp"])
                found["fsdp"]["reduce-scatter"] = parts * scattered
        if mesh["data"] > 1 and self.trains and whole:
            shard = own / mesh["fsdp"] * 4
            found["data"] = {"all-reduce": 2 * shard * (mesh["data"] - 1) / mesh["data"]}
        if mesh["tensor"] > 1:
            tokens = self.rows.rows / (mesh["data"] * mesh["fsdp"]) * self.rows.tokens
            each = 2 * tokens * self.decoder.width * computed * (mesh["tensor"] - 1) / mesh["tensor"]
            times = 2 * self.decoder.layers * (1 + self.trains * self._passes() + (self.other is not None))
            found["tensor"] = {"all-reduce": times * each}
        return found

    def calls(self) -> int | None:
        """Steps of the run, or calls of the pass; None where nobody says how many examples there are."""
        if self.trains:
            return planned_steps(self.config, self.load)
        count = self.load.work.examples
        return -(-(count + self.load.work.held_out) // self.batch) if count else None

    def settings(self) -> str:
        """What the plan depends on, for people."""
        config = self.config
        if not self.trains:
            int8 = ", those of the blocks int8" if config.reference.quantization == "int8" else ""
            return f"{config.model.param_dtype} weights{int8}, {config.model.dtype} arithmetic"
        trained = "all weights" if config.adapter.kind == "none" else f"adapters of rank {config.adapter.rank}"
        reference = "no reference" if config.reference.source == "none" else f"{config.reference.mode} reference"
        return (
            f"{config.method.name}, {trained}, {config.model.param_dtype} master and {config.optimizer.name}, "
            f"{config.model.dtype} arithmetic, {reference}, remat {config.model.remat}, "
            f"{config.train.microbatches} micro-batch{'es' if config.train.microbatches > 1 else ''}"
        )
