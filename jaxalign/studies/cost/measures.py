"""What measuring the rows costs: rough token counts by kind of measure, each said with its assumption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.studies.cost import flops
from jaxalign.studies.cost.targets import Target
from jaxalign.studies.cost.workload import hub_architecture
from jaxalign.studies.study import Measure, Study

if TYPE_CHECKING:
    from jaxalign.studies.cost.estimate import StageCost


class Tokens(NamedTuple):
    """Tokens of one measurement of one model.

    Attributes:
      read: scored or read in parallel.
      written: generated one after another.
      assumed: why so many.
    """

    read: float
    written: float
    assumed: str


SUITES = {
    # Questions x (tokens of the shots + tokens of the choices): MMLU 14 042 x 650, HellaSwag 10 042 x 1 060,
    # ARC-Challenge 1 172 x 1 150, the others together about 4 million; GSM8K writes 1 319 x 150.
    "study1": Tokens(25e6, 0.3e6, "12 benchmarks at their shots, 25 M tokens read and 0.3 M written"),
}


def measure_tokens(measure: Measure) -> Tokens | None:
    """What a measure reads and writes; None where nothing is known of it."""
    settings, name = measure.settings, measure.name
    suite = SUITES.get(name) or SUITES.get(str(settings.get("suite") or settings.get("name")))
    if suite is not None:
        return suite
    if name == "held_out":
        return Tokens(0, 0, "measured while training")
    if name == "mt_bench":
        return Tokens(160 * 500, 160 * 400, "80 questions of two turns, 400 tokens an answer")
    if name == "alpaca_eval":
        return Tokens(805 * 60, 805 * 400, "805 questions, 400 tokens an answer")
    if name == "token_shift":
        return Tokens(2 * 2000 * 900, 0, "2000 pairs of 900 tokens under two models")
    count, longest = settings.get("count"), settings.get("max_new_tokens")
    if isinstance(count, int) and isinstance(longest, int):
        written = count * min(longest, 400)
        return Tokens(count * 200 + 2 * written, written, f"{count} prompts, up to 400 tokens an answer")
    return None


def measure_lines(
    study: Study, costs: Mapping[str, StageCost], targets: Sequence[Target], *, mfu: float, decoding: float
) -> Iterator[str]:
    """Operations and time of all measurements, and what is assumed of each measure."""
    models = _models(study, costs)
    if not models or not study.measures:
        return
    operations, hours, assumed = 0.0, [0.0] * len(targets), []
    for measure in study.measures:
        tokens = measure_tokens(measure)
        if tokens is None:
            assumed.append(f"{measure.name}: not estimated")
            continue
        assumed.append(f"{measure.name}: {tokens.assumed}")
        for decoder, count in models:
            read, written = (count * _forward(decoder, n) for n in (tokens.read, tokens.written))
            operations += read + written
            for i, target in enumerate(targets):
                hours[i] += (read / mfu + written / decoding) / (target.devices * target.flops) / 3600
    if operations:
        shown = [f"{h:.1f} h on {target.name}" for h, target in zip(hours, targets, strict=True)]
        yield (
            f"Measures of {sum(count for _, count in models)} rows: {', '.join([f'{operations:.2e} FLOPs', *shown])} "
            f"(generation at {decoding:.0%} of the peak; without loading models and judging)."
        )
    else:
        yield f"Measures of {sum(count for _, count in models)} rows:"
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
