"""What a run would need of a machine that is not here: memory, traffic and time of its step, and what makes it fit.

The step is the one that training runs, compiled ahead of time for the machine (TPUs), beside an estimate from shapes
(all machines). Reads no weights, and no data unless the run names some that are here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.build import ahead
from jaxalign.build.ahead import Arguments, Compiled, RowSizes
from jaxalign.build.plan_load import Load, load_of, planned_architecture, planned_steps
from jaxalign.config import RunConfig, resolve
from jaxalign.errors import ConfigError
from jaxalign.methods import get_method
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning import executed, targets
from jaxalign.planning.changes import ADAPTERS, CHANGES, Change, candidates, changed, mesh_changes
from jaxalign.planning.memory import BYTES, Parts, sizes, step_memory
from jaxalign.planning.roofline import Roofline, fsdp_bytes, roofline, torus_dimensions
from jaxalign.planning.targets import Target

CONFIRMED = 3
"""Sets of changes that are compiled, at most, before a plan gives up."""
HOPELESS = 1.25
"""Times a device's memory: what is estimated to need more is not compiled."""
PASSES = ("train", "reference")


@dataclass(frozen=True)
class Advice:
    """What makes a run fit.

    Attributes:
      changes: options to set.
      costs: what each costs.
      estimated: bytes of a device with them, from shapes.
      compiled: bytes of a device, from the compiler; None = not compiled.
    """

    changes: tuple[str, ...]
    costs: tuple[str, ...]
    estimated: float
    compiled: float | None


@dataclass(frozen=True)
class Plan:
    """A pass of a run on a machine.

    Attributes:
      target: the machine.
      run_pass: ``train`` or ``reference``.
      model: parameters, and the architecture's name.
      mesh: devices along each axis.
      settings: what the plan depends on, for people.
      load: what the run reads.
      rows: of a step.
      estimate: bytes of a device from shapes.
      arguments: exact bytes of what the program is given; None where it was not traced.
      compiled: what the compiler said; None where none was asked.
      advice: what makes it fit; None where it fits or nothing does.
      larger: the next machine of the kind that it would fit; None where that was not asked.
      model_flops: operations of a step that the model needs, all devices.
      device_flops: operations that a device does in a step, recomputation and padding included.
      times: of a step, at least.
      steps: of the run, or calls of the pass; None where nobody says how many examples there are.
      mfu: assumed model FLOPs utilisation.
      price: of a device for an hour; None where it is not told.
    """

    target: Target
    run_pass: str
    model: str
    mesh: Mapping[str, int]
    settings: str
    load: Load
    rows: RowSizes
    estimate: Parts
    arguments: Arguments | None
    compiled: Compiled | None
    advice: Advice | None
    larger: str | None
    model_flops: float
    device_flops: float
    times: Roofline
    steps: int | None
    mfu: float
    price: float | None

    @property
    def total(self) -> float:
        """Bytes of a device: the compiler's number, or the estimate."""
        return self.compiled.total if self.compiled is not None else self.estimate.total

    @property
    def fits(self) -> bool:
        """Whether the device has them."""
        return self.compiled.fits if self.compiled is not None else self.estimate.total <= self.target.memory

    @property
    def step_seconds(self) -> float:
        """Of a step at the assumed utilisation, or at the roofline where that is slower."""
        return max(self.model_flops / (self.target.devices * self.target.flops * self.mfu), self.times.hidden)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        tree = dataclasses.asdict(self)
        tree["estimate"]["total"] = self.estimate.total
        tree["times"] |= {"hidden": self.times.hidden, "exposed": self.times.exposed, "bound": self.times.bound}
        run = None if self.steps is None else self.steps * self.step_seconds
        cost = None if run is None or self.price is None else run / 3600 * self.target.devices * self.price
        tree |= {"fits": self.fits, "total": self.total, "step_seconds": self.step_seconds}
        tree |= {"run_seconds": run, "cost": cost}
        return tree


def plan(
    config: RunConfig,
    target: Target,
    *,
    run_pass: str = "train",
    tokens: int | None = None,
    mean_tokens: float | None = None,
    examples: int | None = None,
    compiling: bool = True,
    searching: bool = True,
    mfu: float = 0.4,
    price: float | None = None,
) -> Plan:
    """Plans one pass of a run on a machine.

    Args:
      config: the run. Its data and weights need not be there.
      target: the machine.
      run_pass: ``train``, or ``reference`` for the pass that fills the reference's cache.
      tokens: of the longest example, its prompt once; None = from the data or the configuration.
      mean_tokens: of an example on average; None = from the data, or every example is the longest.
      examples: of the training data; None = from the data, or unknown.
      compiling: whether to compile for the machine, where it is a TPU.
      searching: whether to look for changes, where the run does not fit.
      mfu: assumed model FLOPs utilisation, for the time of the whole run.
      price: of a device for an hour.

    Raises:
      ConfigError: the configuration or the machine is wrong, or libtpu is missing.
    """
    config = resolve(config)
    problems = []
    if run_pass not in PASSES:
        problems.append(f"--pass: got {run_pass!r}, expected one of {', '.join(PASSES)}.")
    if run_pass == "reference" and (
        config.reference.source in ("none", "columns") or config.reference.mode == "moving"
    ):
        problems.append(f"--pass: got 'reference', but the run computes none (method {config.method.name}).")
    if not 0 < mfu <= 1:
        problems.append(f"--mfu: got {mfu}, expected a share above 0 and at most 1.")
    if problems:
        raise ConfigError(problems)
    load = load_of(config, tokens=tokens, mean_tokens=mean_tokens, examples=examples)
    work = _Work(config, target, run_pass, load, *_models(config, run_pass))
    work.check()
    compiling = compiling and target.kind == "tpu"
    devices = ahead.topology_devices(target) if compiling else None
    first = work.made(devices)
    compiled = None
    if first is not None and work.estimate().total <= HOPELESS * target.memory:
        compiled = ahead.compile_program(first)
    fits = compiled.fits if compiled is not None else work.estimate().total <= target.memory
    advice = larger = None
    if not fits and searching:
        over = compiled.total / work.estimate().total if compiled is not None else 1.0
        advice = _advice(work, devices, over)
        larger = _larger(work)
    sent = compiled.sent if compiled is not None and compiled.fits else work.traffic()
    along = torus_dimensions(first.plan.mesh.devices, first.plan.mesh.axis_names) if first is not None else None
    times = roofline(
        target, operations=work.device_flops, moved=work.moved(), sent=sent, along=along if target.shape else None
    )
    return Plan(
        target=target,
        run_pass=run_pass,
        model=_named(work.decoder),
        mesh=work.mesh,
        settings=work.settings(),
        load=load,
        rows=work.rows,
        estimate=work.estimate(),
        arguments=None if first is None else first.arguments,
        compiled=compiled,
        advice=advice,
        larger=larger,
        model_flops=work.model_flops,
        device_flops=work.device_flops,
        times=times,
        steps=work.calls(),
        mfu=mfu,
        price=price,
    )


def _named(decoder: DecoderConfig) -> str:
    return f"{sizes(decoder).total / 1e9:.2f} B parameters ({decoder.family}, {decoder.layers} layers)"


def _models(config: RunConfig, run_pass: str) -> tuple[DecoderConfig, DecoderConfig | None]:
    """What is computed: the trained model and a reference beside it, or the reference alone."""
    named = config.reference.source not in ("auto", "policy", "none", "prior", "columns")
    if run_pass == "reference":
        return planned_architecture(config, config.reference.source if named else None), None
    own = planned_architecture(config)
    needed = get_method(config.method.name).needs_reference and config.reference.source != "none"
    if not needed or config.reference.mode not in ("live", "moving"):
        return own, None
    return own, planned_architecture(config, config.reference.source) if named else own


@dataclass(frozen=True)
class _Work:
    """One configuration of a pass on a machine."""

    config: RunConfig
    target: Target
    run_pass: str
    load: Load
    decoder: DecoderConfig
    other: DecoderConfig | None

    @property
    def trains(self) -> bool:
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
        assert self.mesh  # says what is wrong with it

    @property
    def rows(self) -> RowSizes:
        split = self.mesh["data"] * self.mesh["fsdp"]
        if self.trains:
            return self.load.sizes(self.config, split, parts=self.config.train.microbatches)
        return self.load.sizes(self.config, split, batch=max(self.config.evaluation.batch_size, split))

    @property
    def batch(self) -> int:
        """Examples of a step or call."""
        if self.trains:
            return self.config.train.batch_size
        split = self.mesh["data"] * self.mesh["fsdp"]
        return max(self.config.evaluation.batch_size, split)

    def changed(self, changes: Sequence[Change]) -> _Work:
        config = resolve(changed(self.config, changes))
        return dataclasses.replace(self, config=config, other=_models(config, self.run_pass)[1])

    def estimate(self) -> Parts:
        parts = self.config.train.microbatches if self.trains else 1
        config = dataclasses.replace(self.config, train=dataclasses.replace(self.config.train, microbatches=parts))
        mesh = self.mesh
        return step_memory(
            config,
            self.decoder,
            rows=self.rows.rows,
            row=self.rows.tokens,
            scored=self.rows.scored,
            mesh=(mesh["data"], mesh["fsdp"], mesh["tensor"]),
            # Under adapters the frozen weights are the reference.
            reference=None if self.shares else self.other,
            train=self.trains,
        )

    @property
    def shares(self) -> bool:
        """Whether the reference is the frozen weights under the adapters."""
        config = self.config
        return config.adapter.kind != "none" and (config.reference.source, config.reference.mode) == ("policy", "live")

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
        return executed.needed(self.config, self.load.work, self.decoder, self.other, self.batch, train=self.trains)

    @property
    def device_flops(self) -> float:
        rows = self.rows
        total = executed.done(self.config, self.decoder, self.other, rows.rows, rows.tokens, rows.scored, self.trains)
        return total / self.target.devices

    def moved(self) -> float:
        """Bytes that a device reads and writes, at least."""
        config, estimate, mesh = self.config, self.estimate(), self.mesh
        computed = BYTES[config.model.dtype]
        passes = self._passes() + (self.other is not None)
        weights = passes * 2 * sizes(self.decoder).total / mesh["tensor"] * computed
        parts = config.train.microbatches if self.trains else 1
        state = 2 * (estimate.weights + estimate.optimizer + estimate.gradients) if self.trains else estimate.weights
        return state + parts * (weights + 2 * estimate.activations + 2 * estimate.scoring)

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
        gathered = fsdp_bytes(own, passes=self._passes(), computed=computed, stored=0, shards=mesh["fsdp"])
        gathered += fsdp_bytes(own, passes=1, computed=computed, stored=0, shards=mesh["fsdp"]) * (
            self.other is not None
        )
        whole = config.adapter.kind == "none"
        if gathered:
            found["fsdp"] = {"all-gather": parts * gathered}
            if self.trains and whole:
                scattered = fsdp_bytes(own, passes=0, computed=0, stored=4, shards=mesh["fsdp"])
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
        if self.trains:
            return planned_steps(self.config, self.load)
        count = self.load.work.examples
        return -(-(count + self.load.work.held_out) // self.batch) if count else None

    def settings(self) -> str:
        config = self.config
        if not self.trains:
            return f"{config.model.param_dtype} weights, {config.model.dtype} arithmetic"
        trained = "all weights" if config.adapter.kind == "none" else f"adapters of rank {config.adapter.rank}"
        reference = "no reference" if config.reference.source == "none" else f"{config.reference.mode} reference"
        return (
            f"{config.method.name}, {trained}, {config.model.param_dtype} master and {config.optimizer.name}, "
            f"{config.model.dtype} arithmetic, {reference}, remat {config.model.remat}, "
            f"{config.train.microbatches} micro-batch{'es' if config.train.microbatches > 1 else ''}"
        )


def _advice(work: _Work, devices: Sequence[Any] | None, over: float) -> Advice | None:
    """The changes of least harm with which the pass fits: by estimate, scaled by how far it was off, then compiled."""
    changes = list(mesh_changes(work.target.devices, work.decoder.heads, work.decoder.mlp_width))
    if work.trains:
        changes = [*CHANGES, *changes, ADAPTERS]
    tried, limit = 0, work.target.memory
    for chosen in candidates(work.config, changes):
        try:
            other = work.changed(chosen)
            estimated = other.estimate().total
        except ConfigError:
            continue  # adapters with another reference, say
        if estimated * over > limit:
            continue
        names, costs = tuple(change.name for change in chosen), tuple(change.cost for change in chosen)
        program = other.made(devices)
        if program is None:
            return Advice(names, costs, estimated, None)
        compiled = ahead.compile_program(program)
        if compiled.fits:
            return Advice(names, costs, estimated, compiled.total)
        tried += 1
        if tried == CONFIRMED:
            return None
        over = max(over, compiled.total / estimated)
    return None


def _larger(work: _Work) -> str | None:
    """The smallest slice of the same chip whose devices hold the pass as it is, by estimate."""
    if work.target.kind != "tpu":
        return None
    shape = list(work.target.shape)
    for _ in range(8):
        shape[shape.index(min(shape))] *= 2
        try:
            other = targets.target(f"{work.target.chip}:{'x'.join(map(str, sorted(shape)))}")
            found = dataclasses.replace(work, target=other)
            if found.estimate().total <= other.memory:
                return other.name
        except ConfigError:
            return None
    return None
