"""How numbers, settings and findings of a study read, and the paragraph that answers its question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxalign.studies.report.comparisons import (
    ITEMS,
    SEEDS,
    Difference,
    Estimate,
    best_of,
    by_setting,
    estimate,
    over_settings,
)
from jaxalign.studies.report.results import SEED, Group, Results, canonical, degenerate
from jaxalign.studies.study import Label

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
UNITS = {"share": "%", "nats/token": "nats per token"}
"""Units whose name is not what a reader sees."""


def unit_name(unit: str) -> str:
    """A unit as readers see it."""
    return UNITS.get(unit, unit)


def number(value: float, unit: str = "") -> str:
    """A number without its unit: ``62.5`` of a share of 0.625, ``4.31`` of anything else."""
    if unit == "share":
        return _minus(f"{100 * value:z.1f}")
    digits = 3 if unit == "nats/token" or 0 < abs(value) < 0.1 else 2 if abs(value) < 100 else 1
    return _minus(f"{value:z,.{digits}f}")


def measured(value: float, low: float | None, high: float | None, unit: str) -> str:
    """A number with unit and interval: ``62.5 % [58.1, 66.7]``."""
    reach = "" if low is None or high is None else f" [{number(low, unit)}, {number(high, unit)}]"
    return f"{number(value, unit)} {unit_name(unit)}".rstrip() + reach


def signed(value: float, unit: str) -> str:
    """A difference without its unit, with its sign: ``+3.2``."""
    text = number(value, unit)
    return text if text.startswith(MINUS) else f"+{text}"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


def difference(found: Difference, unit: str) -> str:
    """A difference with unit and interval: ``+3.2 points [+1.0, +5.4]``."""
    name = "points" if unit == "share" else unit_name(unit)
    reach = "" if found.paired is None else f" [{signed(found.paired.low, unit)}, {signed(found.paired.high, unit)}]"
    return f"{signed(found.value, unit)} {name}".rstrip() + reach


def pair(found: Difference) -> str:
    """What is subtracted from what: ``dpo − ipo``."""
    return f"{label_text(found.first)} {MINUS} {label_text(found.second)}"


def p_text(p: float | None) -> str:
    """A p-value; a dash where there is none."""
    return DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def label_text(value: Label | None) -> str:
    """A label's value; a dash where the row does not have it."""
    return DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def setting(labels: Mapping[str, Label], without: Sequence[str] = ()) -> str:
    """Labels in a line: ``method dpo, beta 0.1``."""
    return ", ".join(f"{name} {label_text(value)}" for name, value in labels.items() if name not in without)


def short_setting(labels: Mapping[str, Label]) -> str:
    """Labels in few words, for the title of a picture: ``dpo, sft, beta 0.1``."""
    numbers = (int, float)
    parts = (f"{name} {label_text(v)}" if isinstance(v, numbers) else label_text(v) for name, v in labels.items())
    return ", ".join(parts)


def metric_name(name: str) -> str:
    """``MEASURE/METRIC`` as readers see it."""
    measure, _, metric = name.partition("/")
    return f"{metric} ({measure})" if metric else measure


def count(amount: int, thing: str, many: str = "") -> str:
    """``1 row``, ``2 rows``."""
    return f"{amount} {thing if amount == 1 else many or thing + 's'}"


def answer(results: Results) -> list[str]:
    """The answer to the study's question in sentences, computed from the rows: no more than they carry."""
    sentences = []
    groups = [group for group in results.groups if group.protocol == 0]
    name = results.headline
    found = best_of(results, name, groups)
    if not results.done:
        sentences.append("No row was finished, so there is no answer.")
    elif found is None and not any(estimate(results, group, name).value is not None for group in groups):
        sentences.append(f"The headline, {metric_name(name)}, has no value in any row, so there is no answer.")
    elif found is None:
        sentences.append(f"The headline, {metric_name(name)}, is neither good nor bad in itself, so no row is best.")
    else:
        sentences += _best(results, groups, *found)
    if any(estimate(results, group, name).value is not None for group in groups):
        along = results.is_numeric(results.compare) and bool(by_setting(results, name, results.compare))
        sentences += along_number(results) if along else _compared(results, results.compare)
        if along and results.joint:
            sentences += _compared(results.joined, results.joined.name_of(results.joint))
    return sentences + _cautions(results)


EACH = "With "
"""How sentences begin that tell of one setting each."""
MOST_LINES = 6
"""Settings of the other labels of which the answer tells where along a compared number they are best."""


def along_number(results: Results) -> list[str]:
    """Where along a compared number each setting of the other labels is best, and which numbers are worse there.

    The differences are those of the table that compares all pairs of numbers in every setting, so finding the best on
    the same rows is allowed for.
    """
    name, label = results.headline, results.compare
    higher = results.higher_is_better
    if higher is None:
        return _compared(results, label)
    gaps = by_setting(results, name, label)
    sentences = []
    parts: dict[str, list[Group]] = {}
    for group in results.groups:
        if group.protocol == 0 and label in group.labels and estimate(results, group, name).value is not None:
            rest = {n: v for n, v in group.labels.items() if n in results.free}
            parts.setdefault(canonical(rest), []).append(group)
    for groups in list(parts.values())[:MOST_LINES]:
        best = (max if higher else min)(groups, key=lambda g: estimate(results, g, name).value or 0.0)
        where = {n: v for n, v in best.labels.items() if n in results.varies(results.groups) and n != label}
        told: dict[str, list[str]] = {}
        for other in [*results.values(label), f"no {label}"]:
            ends = {best.labels[label], other}
            gap = next((d for d in gaps if {d.first, d.second} == ends and _within(d, best)), None)
            if gap is None or other == best.labels[label] or gap.adjusted is None:
                continue
            words = other if other == f"no {label}" else label_text(other)
            ahead = ((gap.value > 0) == (gap.first == best.labels[label])) is higher
            kind = ("worse" if ahead else "better") if gap.holds else "alike"
            told.setdefault(kind, []).append(str(words))
        top = estimate(results, best, name)
        said = [f"{_listed(told[k])} {_are(told[k])} {k}" for k in ("worse", "better") if k in told]
        said += [f"{_listed(told[k])} cannot be told from it" for k in ("alike",) if k in told]
        with_ = f"{EACH}{setting(where)}, the" if where else "The"
        best_text = f"{number(top.value or 0.0, top.unit)} {unit_name(top.unit)}".rstrip()
        sentences.append(
            f"{with_} {'highest' if higher else 'lowest'} is at {label} {label_text(best.labels[label])} ({best_text})"
            + (f": {'; '.join(said)}." if said else ".")
        )
    if len(parts) > MOST_LINES:
        sentences.append(f"{len(parts) - MOST_LINES} more settings are in the tables.")
    return sentences


def _within(found: Difference, group: Group) -> bool:
    return all(group.labels.get(name) == value for name, value in (found.context or {}).items())


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _best(results: Results, groups: Sequence[Group], best: Group, others: Mapping[int, Difference | None]) -> list[str]:
    name = results.headline
    top: Estimate = estimate(results, best, name)
    assert top.value is not None
    value = measured(top.value, top.low, top.high, top.unit)
    highest = "highest" if results.higher_is_better else "lowest"
    where = setting(results.telling(best.labels)) or "the only setting"
    sentences = [
        f"The {highest} {metric_name(name)} is {value}, of {where} "
        f"({count(top.seeds, 'row')}, {count(top.items, 'item')} each)."
    ]
    if top.low is None:
        sentences.append("Nothing in the rows tells how far it would vary, so it has no interval.")
    if not others:
        return sentences
    worse = sum(d is not None and d.holds for d in others.values())
    untested = sum(d is None or d.adjusted is None for d in others.values())
    alike = len(others) - worse - untested
    parts = []
    if worse:
        parts.append(f"{worse} {'differs' if worse == 1 else 'differ'} from it")
    if alike:
        parts.append(f"{alike} cannot be told from it")
    if untested:
        parts.append(f"{untested} could not be tested")
    sentences.append(f"Of the {count(len(others), 'other setting')}, {' and '.join(parts)} after correction.")
    if len(groups) > 2:
        sentences.append(
            "Being the best of many, it was likely a little lucky: its own interval does not allow for that."
        )
    return sentences


def _compared(results: Results, label: str) -> list[str]:
    pairs = over_settings(results, results.headline, label)
    unit = results.metrics.get(results.headline, {}).get("unit", "share")
    tested = [d for d in pairs if d.adjusted is not None]
    if not pairs:
        return [f"No two values of {label} were measured with everything else equal."] if results.labels else []
    if not tested:
        return [f"The differences between values of {label} could not be tested: they have one row each."]
    holding = sorted((d for d in tested if d.holds), key=lambda d: -abs(d.value))
    if not holding:
        return [
            f"Between values of {label}, everything else equal, no difference holds after correction for "
            f"{count(len(tested), 'comparison')}; that does not show them to be equal."
        ]
    uneven = len({d.settings for d in tested}) > 1
    of = {id(d): f" over {count(d.settings, 'setting')}" if uneven else "" for d in holding}
    shown = "; ".join(f"{pair(d)}: {difference(d, unit)}{of[id(d)]}" for d in holding[:4])
    rest = len(tested) - len(holding)
    more = f" and {len(holding) - 4} more" if len(holding) > 4 else ""
    tail = f"; the other {rest} {'does' if rest == 1 else 'do'} not" if rest else ""
    return [
        f"Between values of {label}, averaged over the settings that both have, "
        f"{count(len(holding), 'difference')} of {len(tested)} {'holds' if len(holding) == 1 else 'hold'} after "
        f"correction ({shown}{more}){tail}."
    ]


def _cautions(results: Results) -> list[str]:
    sentences = []
    lost = sum(bool(degenerate(row)) for row in results.done)
    if results.failed:
        sentences.append(
            f"{count(len(results.failed), 'row')} of {len(results.rows)} failed and {_are(results.failed)} in no mean."
        )
    if lost:
        sentences.append(
            f"{count(lost, 'row')} {'is' if lost == 1 else 'are'} degenerate (answers are empty, repeat themselves or "
            "do not end) and left out of the scores' means."
        )
    if any(group.protocol for group in results.groups):
        sentences.append(
            "Some rows were measured in another way; they stand apart and are compared with none of these."
        )
    return sentences + _covered(results)


def _covered(results: Results) -> list[str]:
    """What the intervals of the headline do not cover."""
    found = [estimate(results, group, results.headline) for group in results.groups if group.protocol == 0]
    kinds = {each.covers for each in found if each.value is not None and each.low is not None}
    if kinds == {ITEMS}:
        start = "There is one row for each setting: the" if most_seeds(results) < 2 else "The"
        return [f"{start} intervals cover the choice of items, not the chance of training."]
    if kinds == {SEEDS}:
        return ["Nothing is known of the single items: the intervals cover the chance of training alone."]
    if len(kinds) > 1:
        return ["Not all intervals cover both the chance of training and the choice of items; the tables mark them."]
    return []


def _are(rows: Sequence[object]) -> str:
    return "is" if len(rows) == 1 else "are"


def most_seeds(results: Results) -> int:
    """Rows of the setting that has most of them."""
    return max((len({row["labels"].get(SEED) for row in group.rows}) for group in results.groups), default=0)
