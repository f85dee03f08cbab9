"""A paper's numbers beside ours, both in the paper's unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxalign.studies.report.comparisons import Estimate, estimate
from jaxalign.studies.report.results import SEED, Results
from jaxalign.studies.report.wording import DASH, measured, metric_name, number, setting, unit_name

DEGENERATE = "degenerate"
PERCENT = "%"


class PublishedLine(NamedTuple):
    """A number of a paper as texts."""

    setting: str
    metric: str
    value: str
    here: str
    ours: str
    source: str


def published_lines(results: Results) -> Iterator[PublishedLine]:
    """The paper's numbers, each with our measurement of the same quantity where the study has one."""
    for each in results.study.get("published", ()):
        labels = {k: v for k, v in each["labels"].items() if k != SEED}
        same = each.get("ours")
        here, unit = DASH, each.get("unit")
        if same:
            known = results.metrics.get(same, {}).get("unit")
            unit = unit or (None if known is None else _guessed(each.get("value"), known))
            here = _here(results, labels, same)
        yield PublishedLine(
            setting(labels) or "all",
            str(each["metric"]),
            _published(each, unit),
            here,
            metric_name(same) if same else DASH,
            str(each["source"]),
        )


def _guessed(value: float | None, ours: str) -> str:
    """The paper's unit where it is not given: of a share, per cent if the number is more than one."""
    return PERCENT if ours == "share" and value is not None and abs(value) > 1 else ours


def _published(each: Mapping[str, Any], unit: str | None) -> str:
    value = each.get("value")
    if value is None:
        return DEGENERATE
    if unit in ("share", PERCENT):  # ours are printed in per cent
        digits = _digits(value) - (2 if unit == "share" else 0)
        return f"{100 * value if unit == 'share' else value:.{max(digits, 0)}f} %"
    return f"{value:g} {unit_name(unit or '')}".strip()


def _digits(value: float) -> int:
    """Digits after the point, as the paper printed them."""
    return len(f"{value:.10g}".partition(".")[2])


def _here(results: Results, labels: Mapping[str, Any], name: str) -> str:
    groups = [g for g in results.groups if labels.items() <= g.labels.items() and g.protocol == 0]
    found: list[Estimate] = [estimate(results, group, name) for group in groups]
    values = [each.value for each in found if each.value is not None]
    if len(found) == 1 and values:
        return measured(values[0], found[0].low, found[0].high, found[0].unit)
    if len(values) > 1:
        unit = next(each.unit for each in found if each.value is not None)
        reach = f"{number(min(values), unit)} to {number(max(values), unit)} {unit_name(unit)}".rstrip()
        return f"{reach} (of {len(values)} settings)"
    return DEGENERATE if any(each.degenerate for each in found) else DASH
