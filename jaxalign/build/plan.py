"""What a run would need of a machine that is not here: memory, traffic and time of its step, and what makes it fit.

The step is the one that training runs, compiled ahead of time for the machine (TPUs), beside an estimate from shapes
(all machines). Reads no weights, and no data unless the run names some that are here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.build import ahead
from jaxalign.build.abstract import RowSizes
from jaxalign.build.ahead import Arguments, Compiled
from jaxalign.build.plan_load import Load, load_of
from jaxalign.build.plan_work import Work, models, named
from jaxalign.config import RunConfig, resolve
from jaxalign.errors import ConfigError
from jaxalign.planning import targets
from jaxalign.planning.changes import ADAPTERS, CHANGES, CHANGES_RESULTS, Change, candidates, mesh_changes
from jaxalign.planning.memory import Parts
from jaxalign.planning.roofline import Roofline, roofline, torus_dimensions
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
      instead: where the changes change results, the next ones that do without the worst of them, by estimate.
    """

    changes: tuple[str, ...]
    costs: tuple[str, ...]
    estimated: float
    compiled: float | None
    instead: tuple[str, ...] = ()


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
        del tree["load"]["largest"]
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
    decoder, other = models(config, run_pass)
    load = load_of(config, tokens=tokens, mean_tokens=mean_tokens, examples=examples, positions=decoder.max_positions)
    work = Work(config, target, run_pass, load, decoder, other)
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
    sent = compiled.sent if compiled is not None and compiled.fits else None
    sent = work.traffic() if sent is None else sent
    along = torus_dimensions(first.plan.mesh.devices, first.plan.mesh.axis_names) if first is not None else None
    times = roofline(
        target, operations=work.device_flops, moved=work.moved(), sent=sent, along=along if target.shape else None
    )
    return Plan(
        target=target,
        run_pass=run_pass,
        model=named(work.decoder),
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


def _advice(work: Work, devices: Sequence[Any] | None, over: float) -> Advice | None:
    """The changes of least harm with which the pass fits: by estimate, scaled by how far it was off, then compiled."""
    changes = list(mesh_changes(work.config, work.target.devices, work.decoder))
    if work.trains:
        changes = [*CHANGES, *changes, ADAPTERS]
    failed: list[float] = []
    for chosen, other, estimated in _fitting(work, changes, over):
        if estimated * max([over, *failed]) > work.target.memory:
            continue
        program = other.made(devices)
        compiled = None if program is None else ahead.compile_program(program)
        if compiled is None or compiled.fits:
            worst = max(chosen, key=lambda change: change.harm)
            rest = [change for change in changes if change is not worst]
            instead = next(_fitting(work, rest, over), None) if worst.harm >= CHANGES_RESULTS else None
            return Advice(
                tuple(change.name for change in chosen),
                tuple(change.cost for change in chosen),
                estimated,
                None if compiled is None else compiled.total,
                () if instead is None else tuple(change.name for change in instead[0]),
            )
        failed.append(compiled.total / estimated)
        if len(failed) == CONFIRMED:
            break
    return None


def _fitting(work: Work, changes: Sequence[Change], over: float) -> Iterator[tuple[tuple[Change, ...], Work, float]]:
    """Sets of changes with which the pass should fit, by an estimate that is too low by a factor, least harm first."""
    for chosen in candidates(work.config, changes):
        try:
            other = work.changed(chosen)
            estimated = other.estimate().total
        except ConfigError:
            continue  # a mesh that other sizes of the configuration contradict
        if estimated * over <= work.target.memory:
            yield chosen, other, estimated


def _larger(work: Work) -> str | None:
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
