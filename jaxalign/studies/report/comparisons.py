"""Means over seeds, paired differences with everything else equal, and what holds after correction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxalign.evaluation.statistics import Paired, by_components, holm, seeds_alone, seeds_and_items, wilson
from jaxalign.studies.report.results import SEED, Group, Results, canonical, degenerate, is_score, metric_of
from jaxalign.studies.study import Label

LEVEL = 0.05
"""Differences whose corrected p is below it are said to hold."""
BOTH, ITEMS, SEEDS, NEITHER = "seeds and items", "items only", "seeds only", ""
"""What an interval covers: the chance of training, the choice of items."""


@dataclass(frozen=True)
class Estimate:
    """A metric of a setting.

    Attributes:
      value: mean over the seeds; None where there is none.
      low: lower end of its 95 % interval; None where nothing tells the spread.
      high: upper end.
      seeds: rows it is the mean of.
      items: items a row was measured on.
      degenerate: rows left out of it because their model writes no language.
      mixed: the rows were measured in different ways, so there is no mean.
      unit: of the value.
      covers: what the interval covers: `BOTH`, `ITEMS`, `SEEDS` or `NEITHER`.
    """

    value: float | None
    low: float | None
    high: float | None
    seeds: int
    items: int
    degenerate: int
    mixed: bool
    unit: str
    covers: str = NEITHER


@dataclass(frozen=True)
class Difference:
    """A paired difference of two settings, or of two compared values over several settings.

    Attributes:
      first: compared value, or labels, of the minuend.
      second: those of the subtrahend.
      context: the labels that both have; of a mean over settings, None.
      value: first - second.
      paired: with its interval and p; None where nothing tells the spread.
      adjusted: p after Holm's correction over its table; None where there is no p.
      seeds: pairs of rows.
      items: items compared one by one; 0 where the rows do not have their values.
      settings: settings it is the mean of.
      covers: what the interval covers: `BOTH`, `ITEMS`, `SEEDS` or `NEITHER`.
      by_item: variance by the choice of items; 0 where unknown.
      by_seed: variance by the choice of seeds; None with one seed.
    """

    first: Label
    second: Label
    context: Mapping[str, Label] | None
    value: float
    paired: Paired | None
    adjusted: float | None
    seeds: int
    items: int
    settings: int = 1
    covers: str = NEITHER
    by_item: float = 0.0
    by_seed: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is not zero, after correction."""
        return self.adjusted is not None and self.adjusted < LEVEL


def estimate(results: Results, group: Group, name: str) -> Estimate:
    """The group's mean of a metric, ``"MEASURE/METRIC"``, with its interval."""
    key = (canonical(group.labels), group.protocol, name)
    if key not in results.memory:
        results.memory[key] = _estimate(results, group, name)
    return results.memory[key]


def _estimate(results: Results, group: Group, name: str) -> Estimate:
    rows = [row for row in group.rows if metric_of(row, name)]
    metrics = [metric_of(row, name) or {} for row in rows]
    unit = metrics[0].get("unit", "share") if metrics else results.metrics.get(name, {}).get("unit", "share")
    lost = sum(bool(degenerate(row)) for row in group.rows) if is_score(results.metrics.get(name, {})) else 0
    if lost:
        rows = [row for row in rows if not degenerate(row)]
        metrics = [metric_of(row, name) or {} for row in rows]
    items = max((metric.get("n", 0) for metric in metrics), default=0)
    if len({results.protocol(row, name.partition("/")[0]) for row in rows}) > 1:
        return Estimate(None, None, None, len(rows), items, lost, True, unit)
    if not rows:
        return Estimate(None, None, None, 0, 0, lost, False, unit)
    values = _table([metric.get("values") for metric in metrics])
    if values is not None:
        found = seeds_and_items(values)
        if unit == "share" and (values == values[0, 0]).all() and values[0, 0] in (0.0, 1.0):
            # All right or all wrong: the bootstrap would give a point, which no finite number of items allows.
            found = Paired(*wilson(int(values[0].sum()), values.shape[1]), p=1.0)
        # The mean of the items, unless the measure weighs them, or left some out.
        value = float(np.mean([metric["value"] for metric in metrics]))
        gap = value - float(values.mean())
        if found is not None and abs(gap) > 1e-9:
            found = Paired(value, found.low + gap, found.high + gap, found.p)
    else:
        found = seeds_alone([metric["value"] for metric in metrics], [_stderr(metric) for metric in metrics])
        value = float(np.mean([metric["value"] for metric in metrics]))
    low, high = (None, None) if found is None else (found.low, found.high)
    if unit == "share" and low is not None and high is not None and 0 <= value <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    known = values is not None or any(_stderr(metric) is not None for metric in metrics)
    return Estimate(value, low, high, len(rows), items, lost, False, unit, _covers(found, len(rows), known))


def _covers(found: Paired | None, seeds: int, items: bool) -> str:
    if found is None:
        return NEITHER
    return (BOTH if items else SEEDS) if seeds > 1 else ITEMS


def by_setting(results: Results, name: str, label: str) -> list[Difference]:
    """Differences of all pairs of a label's values, in each setting that both have; Holm over all of them."""
    found = [difference for _, _, difference in _pairs(results, name, label)]
    return corrected(found, _things(found) - len({canonical(d.context) for d in found}))


def over_settings(results: Results, name: str, label: str) -> list[Difference]:
    """Differences of all pairs of a label's values, each the mean over the settings that both have; Holm over them.

    Means are over rows that both values have of the same seed in every one of these settings.
    """
    families: dict[tuple[Label, Label], list[tuple[_Pairing, Difference]]] = {}
    for pairing, key, difference in _pairs(results, name, label):
        families.setdefault(key, []).append((pairing, difference))
    found = []
    for (first, second), members in families.items():
        pooled = _pool([pairing for pairing, _ in members])
        if pooled is not None:
            found.append(_difference(pooled, first, second, None, settings=len(members)))
    return corrected(found, _things(found) - 1)


def mean_over(results: Results, groups: Sequence[Group], name: str) -> Difference | None:
    """The mean of a metric over settings, as a difference from nothing; None where they share no seed.

    Rows that were measured in another way than most are left out.
    """
    measure = name.partition("/")[0]
    singles = []
    for group in groups:
        rows = tuple(row for row in group.rows if results.protocol(row, measure) == 0)
        found = _by_seed(replace(group, rows=rows), name)
        if found:
            tables = {seed: _table([metric.get("values")]) for seed, metric in found.items()}
            singles.append(
                _Pairing(
                    {seed: metric["value"] for seed, metric in found.items()},
                    {seed: None if table is None else table[0] for seed, table in tables.items()},
                    {seed: _stderr(metric) for seed, metric in found.items()},
                )
            )
    pooled = _pool(singles) if singles else None
    return None if pooled is None else _difference(pooled, "", "", None, settings=len(singles))


def _things(found: Sequence[Difference]) -> int:
    """How many different things a table of differences compares."""
    return len({canonical([end, d.context]) for d in found for end in (d.first, d.second)})


def best_of(results: Results, name: str, groups: Sequence[Group]) -> tuple[Group, dict[int, Difference | None]] | None:
    """The best of settings that were measured in the same way, and how far each of the others is from it.

    Which one is the best was found on the same data, so any two of the settings might have been compared: the
    correction is for all pairs, not for those with the best alone.

    Returns:
      The best, and ``id(other) -> best - other`` with Holm's correction over all pairs of settings (None where the two
      have no seed in common); None where the metric has no direction or nobody has a value.
    """
    higher = results.metrics.get(name, {}).get("higher_is_better")
    values = [(estimate(results, group, name).value, group) for group in groups]
    known = [(value, group) for value, group in values if value is not None]
    if higher is None or not known:
        return None
    best = (max if higher else min)(known, key=lambda pair: pair[0])[1]
    memory = ("best", name, *(id(group) for _, group in known))
    if memory not in results.memory:
        # The best first: then its pairs are those in which it is the minuend.
        order = [best, *(group for _, group in known if group is not best)]
        pairs = [(a, b, pair_up(a, b, name)) for a, b in itertools.combinations(order, 2)]
        whole = [(a, b, pairing) for a, b, pairing in pairs if pairing is not None]
        tested = corrected(
            [_difference(p, "best", "other", None, quick=a is not best) for a, _, p in whole], len(order) - 1
        )
        far: dict[int, Difference | None] = dict.fromkeys(map(id, order[1:]))
        far |= {id(b): d for (a, b, _), d in zip(whole, tested, strict=True) if a is best}
        results.memory[memory] = far
    return best, results.memory[memory]


def corrected(differences: Sequence[Difference], contrasts: int) -> list[Difference]:
    """With Holm's correction over those that have a p.

    Two or three seeds that agree by luck make a pair look sure, and among many pairs some do: with two seeds, Holm's
    correction of the pairs' own p-values lets a third of all studies of ten equal settings claim a difference. So with
    several seeds the p that is corrected has the larger of two variances of seeds: the pair's own, and that of the
    whole table. Its degrees of freedom are the table's, fewer where the pairs' variances are unequal (Satterthwaite).

    Args:
      differences: a table of them.
      contrasts: how many of them are independent of one another.
    """
    tested = [d for d in differences if d.paired is not None]
    spread = [d.seeds * d.by_seed for d in tested if d.by_seed is not None]
    pooled = float(np.mean(spread)) if spread else 0.0
    even = pooled**2 / float(np.mean(np.square(spread))) if pooled > 0 else 1.0
    p_values = []
    for d in tested:
        assert d.paired is not None
        p = d.paired.p
        if d.by_seed is not None and pooled > 0 and contrasts > 1:
            freedom = max(contrasts * even, 1.0) * (d.seeds - 1)
            p = by_components(d.value, max(d.by_seed, pooled / d.seeds), freedom, d.by_item, d.items).p
        p_values.append(p)
    adjusted = iter(holm(p_values))
    return [replace(d, adjusted=None if d.paired is None else next(adjusted)) for d in differences]


@dataclass(frozen=True)
class _Pairing:
    """Rows of two settings with the same seed: seed -> difference of means, of items, and standard error over items.

    Items are None where a row does not have their values; the standard error is then that of two independent means, as
    nothing tells how the two go together, and None where it is not known either.
    """

    means: Mapping[Label | None, float]
    items: Mapping[Label | None, np.ndarray | None]
    errors: Mapping[Label | None, float | None]


def pair_up(first: Group, second: Group, name: str) -> _Pairing | None:
    """Pairs the rows of two settings by their seed; None where they have none in common.

    A setting without the label seed and with one row, such as a model that is measured as it is, pairs with every seed.
    """
    ours, theirs = _by_seed(first, name), _by_seed(second, name)
    if set(theirs) == {None}:
        theirs = dict.fromkeys(ours, theirs[None])
    elif set(ours) == {None}:
        ours = dict.fromkeys(theirs, ours[None])
    common = [seed for seed in ours if seed in theirs]
    if not common:
        return None
    means = {seed: ours[seed]["value"] - theirs[seed]["value"] for seed in common}
    items: dict[Label | None, np.ndarray | None] = {}
    for seed in common:
        table = _table([ours[seed].get("values"), theirs[seed].get("values")])
        items[seed] = None if table is None else table[0] - table[1]
    errors = {seed: _apart(_stderr(ours[seed]), _stderr(theirs[seed])) for seed in common}
    return _Pairing(means, items, errors)


def _apart(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else math.hypot(one, other)


def _by_seed(group: Group, name: str) -> dict[Label | None, Mapping]:
    found: dict[Label | None, Mapping] = {}
    for row in group.rows:
        metric = metric_of(row, name)
        if metric is not None and not (is_score(metric) and degenerate(row)):
            found.setdefault(row["labels"].get(SEED), metric)
    return found


def _pairs(results: Results, name: str, label: str) -> list[tuple[_Pairing, tuple[Label, Label], Difference]]:
    if ("pairs", name, label) not in results.memory:
        results.memory["pairs", name, label] = list(_each_pair(results, name, label))
    return results.memory["pairs", name, label]


def _each_pair(results: Results, name: str, compare: str) -> Iterator[tuple[_Pairing, tuple[Label, Label], Difference]]:
    measure, tied = name.partition("/")[0], results.tied(compare)
    # What is compared with a baseline is told as a gain over it.
    values: list[Label | None] = sorted(
        results.values(compare), key=lambda value: compare == results.compare and value in results.baselines
    )
    if compare == results.compare and any(compare not in group.labels for group in results.groups):
        values.append(None)
    for first, second in itertools.combinations(values, 2):
        ours = [group for group in results.groups if group.labels.get(compare) == first]
        theirs = [group for group in results.groups if group.labels.get(compare) == second]
        for one, other in itertools.product(ours, theirs):
            others = [label for label in results.labels if label != compare and label not in tied]
            if not all(_alike(results, one, other, label, compare) for label in others):
                continue
            ways = {results.protocol(row, measure) for row in (*one.rows, *other.rows) if metric_of(row, name)}
            pairing = pair_up(one, other, name) if len(ways) == 1 else None
            if pairing is not None:
                context = {**other.labels, **one.labels}
                context = {n: context[n] for n in results.labels if n in context and n != compare and n not in tied}
                names = [f"no {compare}" if value is None else value for value in (first, second)]
                yield pairing, (names[0], names[1]), _difference(pairing, names[0], names[1], context)


def _alike(results: Results, one: Group, other: Group, label: str, compare: str) -> bool:
    """Whether two settings agree in a label: by its value, or because it says nothing of one of the compared values."""
    if label in one.labels and label in other.labels:
        return one.labels[label] == other.labels[label]
    if label not in one.labels and label not in other.labels:
        return True
    lacking, having = (one, other) if label not in one.labels else (other, one)
    kin = [[label in g.labels for g in results.groups if g.labels.get(compare) == x.labels.get(compare)]
           for x in (lacking, having)]  # fmt: skip
    return not any(kin[0]) and all(kin[1])


def _pool(pairings: Sequence[_Pairing]) -> _Pairing | None:
    seeds = [seed for seed in pairings[0].means if all(seed in pairing.means for pairing in pairings)]
    if not seeds:
        return None
    means = {seed: float(np.mean([pairing.means[seed] for pairing in pairings])) for seed in seeds}
    tables = {seed: _table([pairing.items[seed] for pairing in pairings]) for seed in seeds}
    # The settings are measured on the same items: averaging over them makes their part no smaller.
    errors = {seed: _root_mean_square([pairing.errors[seed] for pairing in pairings]) for seed in seeds}
    return _Pairing(means, {seed: None if table is None else table.mean(0) for seed, table in tables.items()}, errors)


def _root_mean_square(errors: Sequence[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return float(np.sqrt(np.mean(np.square(known)))) if known and len(known) == len(errors) else None


def _difference(
    pairing: _Pairing, first: Label, second: Label, context, settings: int = 1, quick: bool = False
) -> Difference:
    """`quick`: by the components of its variance, without a bootstrap."""
    means = list(pairing.means.values())
    table, value, seeds = _table(list(pairing.items.values())), float(np.mean(means)), len(means)
    by_seed = float(np.var(means, ddof=1)) / seeds if seeds > 1 else None
    if table is None:
        error = _root_mean_square(list(pairing.errors.values()))
        paired = seeds_alone(means, [] if error is None else [error] * seeds)
        items, by_item, known = 0, (error or 0.0) ** 2, error is not None
    else:
        items, known = table.shape[1], True
        by_item = float(table.mean(0).var(ddof=1)) / items if items > 1 else 0.0
        spread = by_item > 0 or (by_seed or 0.0) > 0
        paired = (
            by_components(value, by_seed or 0.0, seeds - 1, by_item, items)
            if quick and spread
            else seeds_and_items(table)
        )
    covers = _covers(paired, seeds, known)
    return Difference(first, second, context, value, paired, None, seeds, items, settings, covers, by_item, by_seed)


def _table(lists: Sequence[Sequence[float | None] | np.ndarray | None]) -> np.ndarray | None:
    """``[S, N]`` of the items that all of the lists have; None where a list is absent or of another length."""
    if not lists or any(values is None or len(values) == 0 for values in lists):
        return None
    if len({len(values) for values in lists if values is not None}) > 1:
        return None
    table = np.array(
        [[math.nan if value is None else value for value in (() if values is None else values)] for values in lists],
        np.float64,
    )
    table = table[:, np.isfinite(table).all(0)]
    return table if table.size else None


def _stderr(metric: Mapping) -> float | None:
    known = metric.get("stderr")
    if known is None and metric.get("values"):
        values = [value for value in metric["values"] if value is not None]
        known = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return known
