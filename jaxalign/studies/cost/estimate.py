"""What a study will cost before it runs: operations, memory on each device, hours, and what would be downloaded.

Operations are exact for the architecture (`jaxalign.planning.flops`); tokens are counted where data and tokenizer
are at hand, and otherwise taken from what the study tells of published data, which is said. Memory is estimated from
shapes: `jaxalign.planning.memory` tells how well. Hours follow from an assumed utilisation and are as good as it
is.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxalign.config import RunConfig
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning import flops
from jaxalign.planning.architectures import cached_file, hub_architecture
from jaxalign.planning.changes import nearest_changes, shares_heads
from jaxalign.planning.memory import Parts, sizes, step_memory
from jaxalign.planning.references import computed, other_model
from jaxalign.planning.targets import GIB, TARGETS, Target
from jaxalign.planning.workload import FILL, Workload, batch_rows
from jaxalign.studies.cost.measures import measure_lines
from jaxalign.studies.cost.workload import architecture_of, workload_of
from jaxalign.studies.plan import PlannedStage
from jaxalign.studies.study import Study

WEIGHT_BYTES = 2
"""Of a weight in a repository, where its files are not here: nearly all are bfloat16 or float16."""
SMALL = 6.0
"""Seconds below which a stage is not worth estimates for large machines."""
WORTH = 1.5
"""A change of the mesh is mentioned if it makes a stage so many times as fast."""


@dataclass(frozen=True)
class StageCost:
    """What one planned stage needs.

    Attributes:
      stage: the stage.
      decoder: the model that is trained, or for a fill the one that is read.
      work: its examples.
      flops: operations of training or filling.
      evaluation: operations of held-out evaluation.
      steps: optimizer steps; 0 for a fill.
      live: the reference that each of its steps computes.
    """

    stage: PlannedStage
    decoder: DecoderConfig
    work: Workload
    flops: float
    evaluation: float
    steps: int
    live: DecoderConfig | None

    @property
    def tokens(self) -> float:
        """Unique tokens that go through the model in training or filling."""
        examples = self.steps * self.stage.config.train.batch_size or self.work.examples + self.work.held_out
        return examples * self.work.tokens


@dataclass(frozen=True)
class OnTarget:
    """A stage on some devices.

    Attributes:
      memory: of each device, bytes.
      rows: of a step.
      full: share of the rows' places that hold tokens.
      hours: at the assumed utilisation, slowed by places that hold none.
      fits: whether the memory is enough.
    """

    memory: Parts
    rows: int
    full: float
    hours: float
    fits: bool


def stage_cost(stage: PlannedStage, stages: Mapping[str, PlannedStage], study: Study) -> StageCost | None:
    """What a stage needs; None where its architecture or its data are not known."""
    config, known = stage.config, study.architectures
    decoder = architecture_of(stage, stages, known, "model.path")
    work = workload_of(stage, stages, study.datasets)
    other: DecoderConfig | None = decoder
    if other_model(config) is not None:
        other = architecture_of(stage, stages, known, "reference.source")
    if decoder is None or work is None or other is None:
        return None
    if stage.kind == "reference":
        return StageCost(stage, other, work, flops.filling(config, work, other), 0.0, 0, None)
    live = computed(config, decoder, other)
    train, evaluation = flops.training(config, work, decoder, live)
    return StageCost(stage, decoder, work, train, evaluation, flops.training_steps(config, work), live)


def on_target(cost: StageCost, target: Target, *, mfu: float, tensor: int | None = None) -> OnTarget:
    """A stage's memory and time on some devices.

    Args:
      cost: the stage.
      target: the devices.
      mfu: model FLOPs utilisation in rows that are full.
      tensor: devices along this axis of the mesh in place of what the configuration says.
    """
    config = cost.stage.config
    mesh = _mesh(config, target.devices, tensor)
    work = cost.work
    batch = config.train if cost.steps else dataclasses.replace(config.train, microbatches=1)
    if not cost.steps:
        batch = dataclasses.replace(batch, batch_size=max(config.evaluation.batch_size, mesh[0] * mesh[1]))
    config = dataclasses.replace(config, train=batch)
    multiple = mesh[0] * mesh[1] * batch.microbatches
    fixed = config.data.row_length is not None
    rows, row = batch_rows(batch.batch_size, work.tokens, work.row, multiple, fixed=fixed)
    full = min(1.0, batch.batch_size * work.tokens / (rows * row))
    memory = step_memory(
        config,
        cost.decoder,
        rows=rows,
        row=math.ceil(row),
        scored=row * work.scored / work.tokens,
        mesh=mesh,
        reference=cost.live,
        train=cost.steps > 0,
    )
    speed = target.devices * target.flops * mfu * min(1.0, full / FILL)
    hours = (cost.flops + cost.evaluation) / speed / 3600
    return OnTarget(memory, rows, full, hours, memory.total <= target.memory)


def cost_lines(
    stages: Sequence[PlannedStage] | Mapping[str, PlannedStage],
    study: Study,
    *,
    mfu: float = 0.4,
    targets: Sequence[Target] = TARGETS,
) -> list[str]:
    """The estimate as text: a table of the stages, totals, what does not fit, assumptions, downloads.

    Args:
      stages: all of a plan, in order. Those that are done cost nothing.
      study: for what it tells of models and data, and its measures.
      mfu: model FLOPs utilisation of training and scoring.
      targets: the machines.
    """
    by_key = stages if isinstance(stages, Mapping) else {stage.key: stage for stage in stages}
    left = [stage for stage in by_key.values() if not stage.done]
    costs = [(stage, stage_cost(stage, by_key, study)) for stage in left]
    known = [cost for _, cost in costs if cost is not None]
    placed = {id(cost): [on_target(cost, target, mfu=mfu) for target in targets] for cost in known}
    small = bool(known) and all(place.hours * 3600 < SMALL for each in placed.values() for place in each)
    if small:
        targets, placed = (), dict.fromkeys(placed, ())
    lines = [
        f"Estimated cost of {len(left)} stages ({len(by_key) - len(left)} done already), at {mfu:.0%} of the devices' "
        "bfloat16 peak in rows without padding:"
    ]
    lines += _table(known, placed, targets, by_key)
    lines += _unknown([stage for stage, cost in costs if cost is None])
    lines += _misfits(known, placed, targets, mfu)
    lines += _padding(known, placed, targets, mfu)
    hours = [sum(each[i].hours for each in placed.values()) for i in range(len(targets))]
    if known:
        shown = [f"{_hours(h)} on {target.name}" for h, target in zip(hours, targets, strict=True)]
        total = sum(cost.flops + cost.evaluation for cost in known)
        lines.append(f"All stages one after another: {', '.join([f'{total:.2e} FLOPs', *shown])}.")
    if small:
        lines.append(
            "All of it is seconds for an accelerator. On a small machine starting and compiling take the most."
        )
    lines += measure_lines(study, {cost.stage.key: cost for cost in known}, targets, mfu=mfu)
    notes = dict.fromkeys(cost.work.assumed for cost in known if cost.work.assumed)
    lines += [f"Tokens are assumed, not counted, of {note}" for note in notes]
    lines += _downloads(left, study)
    return lines


def _table(
    costs: Sequence[StageCost],
    placed: Mapping[int, Sequence[OnTarget]],
    targets: Sequence[Target],
    stages: Mapping[str, PlannedStage],
) -> Iterator[str]:
    """Stages with the same numbers are one line."""
    groups: dict[tuple[str, ...], int] = {}
    for cost in costs:
        cells = [cost.stage.name, _model(cost, stages), _count(sizes(cost.decoder).total), str(cost.work.examples)]
        cells += [_count(cost.tokens), str(cost.steps or "-"), f"{cost.flops + cost.evaluation:.1e}"]
        for place in placed[id(cost)]:
            cells += [f"{place.memory.total / GIB:.1f}{'' if place.fits else '!'}", _hours(place.hours)]
        groups[tuple(cells)] = groups.get(tuple(cells), 0) + 1
    if not groups:
        return
    header = ["stage", "model", "parameters", "examples", "tokens", "steps", "FLOPs"]
    header += [part for target in targets for part in (f"{target.name} GiB", "time")]
    table = [["", *header], *([f"{count} x", *cells] for cells, count in groups.items())]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        texts = [
            cell.ljust(width) if i in (1, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(texts).rstrip()
    if targets:
        yield "GiB and time are those of one stage; GiB of each device, ! = more than it has."


def _model(cost: StageCost, stages: Mapping[str, PlannedStage]) -> str:
    """Which model a stage works on, shortly."""
    stage = cost.stage
    option = "model.path"
    if stage.kind == "reference" and stage.config.reference.source not in ("auto", "policy", "prior"):
        option = "reference.source"
    if option in stage.inputs:
        return f"made by {stages[stage.inputs[option]].name}"
    section, _, name = option.partition(".")
    found = getattr(getattr(stage.config, section), name)
    return "random weights" if found is None else str(found)


def _unknown(stages: Sequence[PlannedStage]) -> Iterator[str]:
    """Stages of which too little is known."""
    names = Counter(
        f"{stage.name} of {stage.config.model.path or stage.config.model.config} on {' '.join(stage.config.data.train)}"
        for stage in stages
    )
    for name, count in names.items():
        yield f"Not estimated: {count} x {name}: neither files nor the study tell its architecture and its data."


def _misfits(
    costs: Sequence[StageCost], placed: Mapping[int, Sequence[OnTarget]], targets: Sequence[Target], mfu: float
) -> Iterator[str]:
    """For what does not fit, the fewest changes with which it does."""
    found: Counter[str] = Counter()
    for cost in costs:
        for target, place in zip(targets, placed[id(cost)], strict=True):
            if not place.fits:
                changes = nearest_changes(cost.stage.config, _fits(cost, target, mfu)) if cost.steps else None
                advice = f"it would with {', '.join(changes)}" if changes else _split_advice(cost, target, mfu)
                found[f"{cost.stage.name} does not fit {target.name}: {advice}."] += 1
    for text, count in found.items():
        yield f"{count} x {text}"


def _fits(cost: StageCost, target: Target, mfu: float) -> Callable[[RunConfig], bool]:
    def fits(config: RunConfig) -> bool:
        live = None if cost.live is None else computed(config, cost.decoder, cost.live)
        changed = dataclasses.replace(cost, stage=dataclasses.replace(cost.stage, config=config), live=live)
        return on_target(changed, target, mfu=mfu).fits

    return fits


def _split_advice(cost: StageCost, target: Target, mfu: float) -> str:
    for tensor in (2, 4, 8):
        if _divides(cost.decoder, target, tensor) and on_target(cost, target, mfu=mfu, tensor=tensor).fits:
            return f"it would with mesh.tensor={tensor}"
    return "it needs more devices"


def _padding(
    costs: Sequence[StageCost], placed: Mapping[int, Sequence[OnTarget]], targets: Sequence[Target], mfu: float
) -> Iterator[str]:
    """Where a small batch leaves devices without work, the mesh that gives them some."""
    found: Counter[str] = Counter()
    for cost in costs:
        for target, place in zip(targets, placed[id(cost)], strict=True):
            if place.full >= FILL / WORTH:
                continue
            if not cost.steps:
                padding = f"{1 - place.full:.0%} of its {place.rows} rows a batch is padding"
                found[f"{cost.stage.name} on {target.name}: {padding}; raise evaluation.batch_size."] += 1
                continue
            better = {
                tensor: on_target(cost, target, mfu=mfu, tensor=tensor)
                for tensor in (2, 4, 8)
                if _divides(cost.decoder, target, tensor)
            }
            text = (
                f"{cost.stage.name} on {target.name}: {1 - place.full:.0%} of its {place.rows} rows a step is padding"
            )
            good = {tensor: each for tensor, each in better.items() if each.hours * WORTH < place.hours and each.fits}
            if good:
                tensor = min(good, key=lambda tensor: good[tensor].hours)
                before, after = _hours(place.hours), _hours(good[tensor].hours)
                text += f"; mesh.tensor={tensor} would bring {before} to {after} at that utilisation"
            found[text + "."] += 1
    for text, count in found.items():
        yield f"{count} x {text}"


def _divides(decoder: DecoderConfig, target: Target, tensor: int) -> bool:
    return target.devices % tensor == 0 and shares_heads(decoder, tensor)


def _mesh(config: RunConfig, devices: int, tensor: int | None) -> tuple[int, int, int]:
    """The mesh of the configuration on these devices; where it does not fit them, all along fsdp."""
    if tensor is not None:
        return 1, devices // tensor, tensor
    sizes_ = [config.mesh.data, config.mesh.fsdp, config.mesh.tensor]
    known = 1
    for size in sizes_:
        known *= max(size, 1)
    if -1 in sizes_ and devices % known == 0:
        sizes_[sizes_.index(-1)] = devices // known
    if sizes_[0] * sizes_[1] * sizes_[2] != devices:
        return 1, devices, 1
    return sizes_[0], sizes_[1], sizes_[2]


def _downloads(stages: Sequence[PlannedStage], study: Study) -> Iterator[str]:
    """Repositories of models and data that are not on this machine."""
    models: dict[str, None] = {}
    data: dict[str, None] = {}
    for stage in stages:
        config = stage.config
        names = [("model.path", config.model.path), ("model.tokenizer", config.model.tokenizer)]
        names.append(("reference.source", other_model(config)))
        models |= {name: None for option, name in names if name is not None and option not in stage.inputs}
        data |= dict.fromkeys((*config.data.train, *config.data.eval))
    models |= {trial.model: None for trial in study.trials if isinstance(trial.model, str)}
    lines, total = [], 0.0
    for name in models:
        if Path(name).expanduser().exists() or cached_file(name, "config.json") is not None:
            continue
        decoder = hub_architecture(name, study.architectures)
        size = None if decoder is None else WEIGHT_BYTES * sizes(decoder).total
        total += size or 0
        lines.append(f"  model {name}: {'size unknown' if size is None else f'{size / 1e9:.1f} GB'}")
    for name in data:
        if name in study.datasets:
            size = study.datasets[name].size
            total += size
            lines.append(f"  data {name}: {size / 1e9:.2f} GB")
        elif not Path(name).expanduser().exists() and not any(c in name for c in "*?["):
            lines.append(f"  data {name}: size unknown")
    if lines:
        yield f"To be downloaded, unless it is cached already ({WEIGHT_BYTES} bytes a weight), {total / 1e9:.1f} GB:"
        yield from lines


def _count(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} d"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 0.1 else "< 0.1 min"
