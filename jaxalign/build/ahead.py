"""A run's real step, compiled for machines that are not here, and what the compiled program says of itself.

The step and its placement are those of training (`jaxalign.build.step_parts`), also the mesh; only the values are
missing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxalign.build.abstract import RowSizes, abstract_rows, device_bytes, placed, quantized
from jaxalign.build.data import column_names
from jaxalign.build.model import make_policy, make_trainable
from jaxalign.build.step_parts import step_parts
from jaxalign.config import RunConfig
from jaxalign.data.row_plans import RowShape
from jaxalign.errors import ConfigError
from jaxalign.methods import get_method
from jaxalign.models.adapters import without_adapter
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import Policy
from jaxalign.planning import hlo
from jaxalign.planning.targets import GIB, Target
from jaxalign.training import references
from jaxalign.training.mesh import MeshPlan, make_mesh
from jaxalign.training.reference_scorer import RowScorer
from jaxalign.training.references import Reference

_SETTINGS = {
    # libtpu would ask the metadata server of a TPU VM, and take a lock that two plans cannot share.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
"""A v4 chip's two cores are one device."""


@dataclass(frozen=True)
class Arguments:
    """Bytes that a program is given on one device, by kind; exact but for the padding of layouts."""

    parameters: float
    optimizer: float
    reference: float
    rows: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.parameters + self.optimizer + self.reference + self.rows


@dataclass(frozen=True)
class Compiled:
    """What the compiler says.

    Attributes:
      fits: whether it could place the program in the device's memory.
      total: bytes of a device that the program needs: arguments, temporaries, and results that replace no argument.
      arguments: of these, what it is given.
      temporary: of these, what it makes for itself.
      room: bytes of a device that programs get, where the compiler said so.
      sent: bytes that a device sends in one call, by mesh axes and kind of collective; empty if it does not fit,
        None if the compiled program could not be read.
      largest: the collectives that send most: kind, axes, bytes sent, how often, where from.
      warnings: lines in which the compiler says that it moves more than it should, or that its traffic is not known.
      seconds: that compiling took.
    """

    fits: bool
    total: float
    arguments: float = 0.0
    temporary: float = 0.0
    room: float | None = None
    sent: Mapping[str, Mapping[str, float]] | None = field(default_factory=dict)
    largest: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Program:
    """A jitted function and its abstract arguments, on a mesh."""

    function: Any
    values: tuple[Any, ...]
    plan: MeshPlan
    arguments: Arguments


def need_libtpu(target: Target) -> None:
    """Raises unless the compiler for TPUs is installed.

    Raises:
      ConfigError: it is not.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--target: {target.name} needs libtpu, the compiler for TPUs, which is not installed: "
            "pip install 'jaxalign[plan]'. What is printed is estimated from shapes, as --no-compile does it."
        )


def topology_devices(target: Target) -> list[Any]:
    """The devices of a TPU slice, to compile for.

    Raises:
      ConfigError: libtpu is missing or does not know the slice.
    """
    need_libtpu(target)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        with _diverted():
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=target.name, **_OPTIONS.get(target.chip, {})
            )
    except Exception as error:
        raise ConfigError(f"--target: libtpu has no slice {target.name!r}: {str(error).splitlines()[0]}") from error
    return list(found.devices)


def make_plan_mesh(config: RunConfig, devices: Sequence[Any]) -> MeshPlan:
    """The run's mesh on these devices."""
    return make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=devices)


def train_program(
    config: RunConfig, decoder: DecoderConfig, other: DecoderConfig | None, sizes: RowSizes, plan: MeshPlan, steps: int
) -> Program:
    """The train step of a run, without values.

    Args:
      config: the run, resolved.
      decoder: the policy's architecture.
      other: the reference's, where it is another model that each step computes.
      sizes: of a batch.
      plan: the mesh.
      steps: of the whole run, for the schedule.
    """
    method = get_method(config.method.name)
    policy = make_policy(config, decoder, plan, method)
    reference, held = _reference(config, policy, other, plan)
    parts = step_parts(config, method, policy, reference, plan, steps)
    state = placed(parts.shapes, parts.shardings)
    frozen = {"policy": placed(parts.untrained, parts.untrained_shardings), "reference": held}
    rows = abstract_rows(sizes, column_names(method, reference.columns), method, config, plan)
    function = jax.jit(parts.step, donate_argnums=0, out_shardings=(parts.shardings, plan.replicated))
    arguments = Arguments(
        parameters=device_bytes(state.trainable) + device_bytes(frozen["policy"]),
        optimizer=device_bytes(state.opt_state),
        reference=device_bytes(state.reference) + device_bytes(held),
        rows=device_bytes(rows),
    )
    return Program(function, (state, frozen, rows), plan, arguments)


def scoring_program(config: RunConfig, decoder: DecoderConfig, sizes: RowSizes, plan: MeshPlan) -> Program:
    """One call of the pass that fills the reference's cache (`jaxalign.training.reference_scorer`), without values."""
    policy = make_policy(config, decoder, plan)
    variables = _weights(config, policy, plan)
    rows = abstract_rows(sizes, (), None, config, plan)
    shape = RowShape(sizes.tokens, sizes.scored, sizes.examples, sizes.completions)
    function = RowScorer(policy, {}, shape, sizes.rows, plan).logps
    return Program(function, (variables, rows), plan, Arguments(0.0, 0.0, device_bytes(variables), device_bytes(rows)))


def compile_program(program: Program) -> Compiled:
    """Compiles, and reads memory and traffic off the result. What does not fit is a result too."""
    started = time.perf_counter()
    mesh = program.plan.mesh
    with _diverted() as said, jax.set_mesh(mesh):
        try:
            compiled = program.function.lower(*program.values).compile()
        except jax.errors.JaxRuntimeError as error:
            needed = _needed(str(error))
            if needed is None:
                raise
            total, room = needed
            return Compiled(False, total, room=room, seconds=time.perf_counter() - started)
        text, warnings = _text(compiled)
    memory = compiled.memory_analysis()
    found = [] if text is None else hlo.collectives(text, dict(mesh.shape))
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    largest = sorted(found, key=lambda each: -each.sent * each.times)[:8]
    return Compiled(
        True,
        memory.argument_size_in_bytes + memory.temp_size_in_bytes + made,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        None,
        None if text is None else hlo.sent_by_axis(found),
        [
            {
                "kind": c.kind,
                "axes": c.axes,
                "array": c.array,
                "times": c.times,
                "sent": c.sent * c.times,
                "of": c.where,
            }
            for c in largest
            if c.axes
        ],
        warnings + [line.strip()[:200] for line in said if "nvoluntary full remat" in line][:5],
        time.perf_counter() - started,
    )


def _text(compiled: Any) -> tuple[str | None, list[str]]:
    """A compiled program's text, and what to say where this jax cannot read it: libtpu may be newer than it."""
    try:
        return compiled.as_text() or "", []
    except jax.errors.JaxRuntimeError as error:
        why = str(error).splitlines()[0][:200]
        return None, [
            f"jax {jax.__version__} cannot read what this libtpu compiled, so its traffic is not known ({why})"
        ]


def _reference(config: RunConfig, policy: Policy, other: DecoderConfig | None, plan: MeshPlan) -> tuple[Reference, Any]:
    """The run's reference, and the weights it holds in ``frozen``; as `jaxalign.build.reference` makes it."""
    settings = config.reference
    if settings.source == "none":
        return references.none(), {}
    if settings.source == "columns":
        return references.given_sums(), {}
    if settings.mode == "moving":
        moving = references.moving(
            policy,
            rate=settings.update_rate,
            every=settings.update_every,
            dtype=settings.dtype,
            trainable=make_trainable(config),
        )
        return moving, {}
    plain = settings.quantization == "none"
    if settings.mode == "live" and settings.source == "policy" and policy.adapter is not None and plain:
        return references.shared(policy), {}
    if settings.mode == "live":
        theirs = policy if settings.source == "policy" or other is None else make_policy(config, other, plan)
        return references.frozen(theirs), _weights(config, theirs, plan)
    return references.cached_sums() if settings.source == "prior" else references.cached(), {}


def _weights(config: RunConfig, policy: Policy, plan: MeshPlan) -> Any:
    """A reference's weights without values, in int8 where the run says so."""
    shapes, axes = without_adapter(policy.abstract()), without_adapter(policy.axes())
    if config.reference.quantization == "int8":
        return quantized(shapes, axes, plan)
    return placed(shapes, plan.tree_shardings(axes, shapes))


def _needed(message: str) -> tuple[float, float | None] | None:
    """Bytes needed and bytes there are, of XLA's message that a program does not fit."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    sizes = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    found = [float(number) * sizes[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([KMGT]?)\)", message)]
    found += [float(number) * sizes[unit] for number, unit in re.findall(r"(\d+\.\d+)([KMGT]) of", message)]
    return (found[0], found[1] if len(found) > 1 else None) if found else None


@contextmanager
def _diverted() -> Iterator[list[str]]:
    """What C++ code writes to the standard error while inside, as lines, once outside."""
    said: list[str] = []
    try:
        descriptor = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        kept = os.dup(descriptor)
    except (OSError, ValueError):
        yield said
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield said
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)
            file.seek(0)
            said += file.read().decode(errors="replace").splitlines()
