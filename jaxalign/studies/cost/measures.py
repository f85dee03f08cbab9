"""What measuring the rows costs, from what each measure tells of its work, with its assumptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxalign.data.sources import expand
from jaxalign.errors import DataError
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning import flops
from jaxalign.planning.architectures import hub_architecture
from jaxalign.planning.memory import sizes
from jaxalign.planning.targets import Target
from jaxalign.studies.study import PublishedData, Study, Work

if TYPE_CHECKING:
    from jaxalign.studies.cost.estimate import StageCost

BYTES = 4
"""Bytes of a JSON file for each token, where nothing else is known of it."""
WEIGHT_BYTES = 2
"""Of a weight that is read to write a token."""


class Tokens(NamedTuple):
    """One measurement of one model.

    Attributes:
      read: tokens that are scored or read in parallel.
      written: tokens that are generated.
      steps: how often all weights are read, one time after another, to write them.
      assumed: why so many.
    """

    read: float
    written: float
    steps: float
    assumed: str


def measure_tokens(work: Work | None, known: Mapping[str, PublishedData]) -> Tokens | None:
    """What a measurement reads and writes; None where it is not known."""
    if work is None:
        return None
    rows, length = _rows(work, known) if work.data else (None, 0.0)
    items = work.items if rows is None else min(rows, work.items if work.items is not None else rows)
    if items is None or (work.passes and rows is None):
        return None
    assumed = f"{items} x {work.why}" if work.data else work.why
    if work.passes:
        assumed += f", about {length:.0f} tokens each"
    steps = -(-items // work.together) * work.written
    return Tokens(items * (work.read + work.passes * length), items * work.written, steps, assumed)


def _rows(work: Work, known: Mapping[str, PublishedData]) -> tuple[int | None, float]:
    """Rows of the data, and tokens of a row; None where they are neither known nor at hand."""
    count, tokens = 0, 0.0
    for name in work.data:
        if name in known:
            facts = known[name]
            rows = facts.examples.get(work.split)
            if rows is None:
                return None, 0.0
            count, tokens = count + rows, tokens + rows * (facts.prompt + 2 * facts.completion)
            continue
        try:
            files = [part for part in expand(name) if isinstance(part, Path) and part.suffix in (".jsonl", ".ndjson")]
            contents = [file.read_bytes() for file in files]
        except (DataError, OSError):
            return None, 0.0
        if not contents:
            return None, 0.0
        count += sum(bool(line.strip()) for content in contents for line in content.split(b"\n"))
        tokens += sum(map(len, contents)) / BYTES
    return count, tokens / max(count, 1)


def measure_lines(
    study: Study, costs: Mapping[str, StageCost], targets: Sequence[Target], *, mfu: float
) -> Iterator[str]:
    """Operations and time of all measurements, and what is assumed of each measure."""
    models = _models(study, costs)
    if not models or not study.measures:
        return
    operations, hours, bound, assumed = 0.0, [0.0] * len(targets), [0.0] * len(targets), []
    for measure in study.measures:
        tokens = measure_tokens(measure.work, study.datasets)
        if tokens is None:
            assumed.append(f"{measure.name}: not estimated")
            continue
        assumed.append(f"{measure.name}: {tokens.assumed}")
        for decoder, count in models:
            read, written = (count * _forward(decoder, n) for n in (tokens.read, tokens.written))
            operations += read + written
            weights = WEIGHT_BYTES * sizes(decoder).total
            for i, target in enumerate(targets):
                hours[i] += read / mfu / (target.devices * target.flops) / 3600
                # Every device multiplies with all the weights, so it reads them all for each token, wherever they are.
                bound[i] += count * tokens.steps * weights / target.bandwidth / 3600
    rows = sum(count for _, count in models)
    if operations:
        shown = [f"{h:.1f} h on {target.name}" for h, target in zip(hours, targets, strict=True)]
        yield (
            f"Measures of {rows} rows: {', '.join([f'{operations:.2e} FLOPs', *shown])} of reading "
            "(without loading models and judging)."
        )
        if any(bound):
            least = [f"{h:.1f} h on {target.name}" for h, target in zip(bound, targets, strict=True)]
            yield f"  and at least {', '.join(least)} of generating: each token of a batch reads all weights once."
    else:
        yield f"Measures of {rows} rows:"
    yield f"  {'; '.join(assumed)}."


def _forward(decoder: DecoderConfig, tokens: float) -> float:
    return flops.forward(decoder, tokens, 0.2 * tokens, 500 * tokens)  # a fifth is scored; contexts of some hundreds


def _models(study: Study, costs: Mapping[str, StageCost]) -> list[tuple[DecoderConfig, int]]:
    """Architectures of the rows' models, with how many rows have them. Stages that are done are not counted."""
    found: list[tuple[DecoderConfig, int]] = []
    by_row: dict[str, DecoderConfig] = {}
    for cost in costs.values():  # each stage stands after those that it needs: the last one of a row is the row's
        if cost.steps:
            by_row |= dict.fromkeys(cost.stage.rows, cost.decoder)
    decoders = list(by_row.values())
    for trial in study.trials:
        decoder = hub_architecture(trial.model, study.architectures) if isinstance(trial.model, str) else None
        decoders += [decoder] if decoder is not None else []
    for decoder in dict.fromkeys(decoders):
        found.append((decoder, decoders.count(decoder)))
    return found
