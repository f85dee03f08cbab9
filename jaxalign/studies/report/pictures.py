"""The report's pictures: scores against numbers of the grid and against divergence, training, categories, tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from jaxalign.studies.report.charts import TALL, WIDE, Curve, Dot, Level, Panel, dot_rows, grid, panels
from jaxalign.studies.report.comparisons import Estimate, estimate
from jaxalign.studies.report.marks import key
from jaxalign.studies.report.results import Group, Results
from jaxalign.studies.report.wording import (
    count,
    label_text,
    measured,
    metric_name,
    setting,
    short_setting,
    unit_name,
)
from jaxalign.studies.study import Label

MOST_PANELS = 12
"""Panels of one picture; what is beyond is told, not drawn."""
MOST_BANDS = 3
"""Lines of a panel whose intervals are bands; those of more would cover one another."""
MOST_LINES = 8
"""Combinations of labels that are lines of one panel when a number is compared."""
LOG_FROM = 3
"""Ratio of the largest to the smallest value of a label from which on its axis is logarithmic."""


def figure(picture: str, caption: str, keys: str = "") -> str:
    """A picture with what it shows."""
    return f"<figure>{keys}{picture}<figcaption>{caption}</figcaption></figure>"


def legend(results: Results, values: Iterable[Label | None], *, lines: bool = True) -> str:
    """The compared values' marks."""
    names = {value: f"no {results.compare}" if value is None else label_text(value) for value in values}
    return key({name: results.style(value) for value, name in names.items()}, lines=lines)


def shown_groups(results: Results) -> list[Group]:
    """The settings that pictures show: those of the headline's most frequent protocol."""
    return [group for group in results.groups if group.protocol == 0]


def split(groups: Sequence[Group], names: Sequence[str]) -> Iterator[tuple[dict[str, Label], list[Group]]]:
    """Groups by their values of some labels; one that lacks some belongs to every part whose others it shares."""
    whole = [group for group in groups if all(name in group.labels for name in names)]
    parts = dict.fromkeys(tuple(group.labels[name] for name in names) for group in whole)
    for values in parts:
        labels = dict(zip(names, values, strict=True))
        yield labels, [g for g in groups if all(g.labels.get(name, value) == value for name, value in labels.items())]


def too_many(found: Sequence[Any]) -> str:
    """How many panels are not drawn, for a caption."""
    hidden = len(found) - MOST_PANELS
    return f" {hidden} more panels are not drawn; rows.csv has their numbers." if hidden > 0 else ""


def curves(results: Results) -> str:
    """The headline against every label that is a number."""
    parts = []
    for label in results.numeric():
        picture = _against_label(results, label)
        if picture:
            parts.append(f"<h3>Against {escape(label)}</h3>{picture}")
    if results.is_numeric(results.compare):
        parts.append(f"<h3>Against {escape(results.compare)}</h3>{_against_label(results, results.compare)}")
    return "".join(parts)


def _against_label(results: Results, label: str) -> str:
    groups = shown_groups(results)
    rest = results.varies([g for g in groups if label in g.labels], (label,))
    inner = _as_lines([g for g in groups if label in g.labels], rest) if label == results.compare else []
    combined = _line_styles(groups, inner)
    rest = [name for name in rest if name not in inner]
    values = [value for value in results.values(label) if isinstance(value, int | float)]
    log = min(values) > 0 and max(values) / min(values) >= LOG_FROM
    pictures, seen, unit, lost = [], dict[Label | None, None](), "share", 0
    drawn_lines: dict[str, str] = {}
    found = list(split(groups, rest))
    for labels, members in found[:MOST_PANELS]:
        lines, levels = [], []
        for words, style in combined.items() if inner else ():
            own = [g for g in members if label in g.labels and _words(g, inner) == words]
            along = sorted(own, key=lambda g: float(g.labels[label]))
            known = [(float(g.labels[label]), estimate(results, g, results.headline)) for g in along]
            lost += sum(e.value is None and e.degenerate > 0 for _, e in known)
            curve = replace(_curve(results, words, label, known), style=style)
            if curve.points:
                lines.append(curve)
                drawn_lines[words] = style
                unit = known[0][1].unit
        kinds = [None] if label == results.compare else [*results.values(results.compare), None]
        for value in kinds:
            own = [g for g in members if label == results.compare or g.labels.get(results.compare) == value]
            own = [g for g in own if label not in g.labels] if inner else own
            along = sorted((g for g in own if label in g.labels), key=lambda g: float(g.labels[label]))
            known = [(float(g.labels[label]), estimate(results, g, results.headline)) for g in along]
            lost += sum(e.value is None and e.degenerate > 0 for _, e in known)
            curve = _curve(results, value, label, known)
            if curve.points:
                lines.append(curve)
                seen[value] = None
                unit = known[0][1].unit
            for group in own:
                level = estimate(results, group, results.headline)
                if label not in group.labels and level.value is not None and len(levels) < 3:
                    lonely = {n: v for n, v in group.labels.items() if n not in (*rest, *results.numeric())}
                    levels.append(_level(results, value, level, short_setting(lonely)))
                    seen[value] = None
        pictures.append(Panel(short_setting(labels), lines, levels))
    if not any(panel.curves for panel in pictures):
        return ""
    crowded = max(len(panel.curves) for panel in pictures) > MOST_BANDS
    if crowded:
        pictures = [Panel(panel.title, _side_by_side(panel.curves), panel.levels) for panel in pictures]
    drawn = panels(
        f"{metric_name(results.headline)} against {label}",
        pictures,
        x=label + (" (log scale)" if log else ""),
        y=_axis_name(results.headline, unit),
        log_x=log,
        share_y=unit == "share",
        marks_x=values if len(values) <= 8 else (),
        names=len(drawn_lines) <= MOST_BANDS,
        size=(520, 300) if drawn_lines and len(pictures) == 1 else (WIDE, TALL),
    )
    gone = f" No point for {count(lost, 'degenerate setting')}." if lost else ""
    names = dict.fromkeys(level.name for panel in pictures for level in panel.levels)
    levels = f" Dashed, without {label}: {'; '.join(names)}." if names else ""
    reach = "bars, side by side," if crowded else "bands"
    caption = f"Means over seeds; {reach} are 95 % intervals.{levels}{gone}{too_many(found)}"
    keys = key(drawn_lines) if drawn_lines else legend(results, [v for v in seen if v is not None])
    return figure(_wide(drawn) if drawn_lines else drawn, escape(caption), keys)


def _as_lines(groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    """The labels whose combinations are lines of one panel; the others part the panels."""
    inner: list[str] = []
    for name in reversed(names):
        if len({_words(g, [name, *inner]) for g in groups}) <= MOST_LINES:
            inner = [name, *inner]
    return inner


def _words(group: Group, names: Sequence[str]) -> str:
    return short_setting({name: group.labels[name] for name in names if name in group.labels})


def _line_styles(groups: Sequence[Group], names: Sequence[str]) -> dict[str, str]:
    found = dict.fromkeys(_words(g, names) for g in groups if all(name in g.labels for name in names))
    return {words: f"k{i % 8}" for i, words in enumerate(found)}


def _side_by_side(lines: Sequence[Curve]) -> list[Curve]:
    """Bars instead of bands, each line a little beside the others, so that many can be told apart."""
    middle = (len(lines) - 1) / 2
    return [replace(line, spans=True, shift=4.5 * (i - middle)) for i, line in enumerate(lines)]


def _level(results: Results, value: Label | None, found: Estimate, name: str) -> Level:
    _, low, high = _reach(0.0, found)
    return Level(name, found.value or 0.0, low, high, results.style(value))


def _curve(results: Results, value: Label | None, label: str, known: Sequence[tuple[float, Estimate]]) -> Curve:
    fine = [(x, e) for x, e in known if e.value is not None]
    name = results.headline.partition("/")[2] if value is None else label_text(value)
    return Curve(
        name="" if value is None else name,
        points=[(x, e.value) for x, e in fine if e.value is not None],
        style="k0" if value is None else results.style(value),
        band=[(x, e.low, e.high) for x, e in fine if e.low is not None and e.high is not None],
        notes=[f"{name}, {label} {x:g}: {measured(e.value or 0.0, e.low, e.high, e.unit)}" for x, e in fine],
    )


def _axis_name(name: str, unit: str) -> str:
    metric = name.partition("/")[2] or name
    return f"{metric}, {unit_name(unit)}".rstrip(", ")


def frontier(results: Results) -> str:
    """The headline against the divergence from the reference."""
    # Of sampled answers only: the mean log-ratio of given completions is no divergence, and may be negative.
    sampled = {n: m for n, m in results.metrics.items() if not n.startswith("held_out/")}
    names = [n for n, m in sampled.items() if "kl/sequence" in n.lower() and m.get("unit") == "nats"]
    names = [n for n in names if not n.endswith(("_k1", "_k3"))] or names
    names = (names or [n for n in sampled if n.rpartition("/")[2].lower() == "kl"])[:1]
    return "".join(_frontier(results, name) for name in names)


def _frontier(results: Results, name: str) -> str:
    groups = shown_groups(results)
    along = results.is_numeric(results.compare)
    numeric = [results.compare] if along else results.numeric()
    rest = results.varies(groups, numeric)
    inner = _as_lines([g for g in groups if results.compare in g.labels], rest) if along else []
    combined, rest = _line_styles(groups, inner), [name for name in rest if name not in inner]
    pictures, seen, spread_x = [], dict[Label | None, None](), []
    drawn_lines: dict[str, str] = {}
    found = list(split(groups, rest))
    unit = "share"
    for labels, members in found[:MOST_PANELS]:
        lines, levels = [], []
        kinds = [*combined, None] if inner else [None] if along else [*results.values(results.compare), None]
        for value in kinds:
            own = [g for g in members if along or g.labels.get(results.compare) == value]
            if inner:
                aligned = [g for g in own if all(name in g.labels for name in inner)]
                own = [g for g in own if g not in aligned] if value is None else aligned
                own = own if value is None else [g for g in own if _words(g, inner) == value]
            order = sorted(own, key=lambda g: [float(g.labels.get(n, 0)) for n in numeric])
            pairs = [(g, estimate(results, g, name), estimate(results, g, results.headline)) for g in order]
            pairs = [(g, x, y) for g, x, y in pairs if x.value is not None and y.value is not None]
            if pairs:
                seen[value] = None
            # No divergence at all is the start itself: a level, which also a logarithmic axis can show. Nor is a model
            # without the others' numbers on any line: its divergence is from a reference of its own.
            still = [each for each in pairs if each[1].value == 0 or _unaligned(results, each[0])]
            for group, _, y in still[:3]:
                levels.append(
                    _level(results, None if inner else value, y, short_setting(results.telling(group.labels)))
                )
            pairs = [each for each in pairs if each not in still]
            if not pairs:
                continue
            unit = pairs[0][2].unit
            drawn_lines |= {str(value): combined[str(value)]} if inner and value is not None else {}
            spread_x += [x.value or 0.0 for _, x, _ in pairs]
            lines.append(
                Curve(
                    name=label_text(value),
                    points=[(x.value or 0.0, y.value or 0.0) for _, x, y in pairs],
                    style=combined.get(str(value), "kn") if inner else "k0" if along else results.style(value),
                    tags=_end_tags([label_text(g.labels.get(numeric[0])) for g, _, _ in pairs]) if along else (),
                    band=[_reach(x.value, y) for _, x, y in pairs],
                    spans=True,
                    across=[(max(low, 0.0), high) for _, low, high in (_reach(0.0, x) for _, x, _ in pairs)],
                    joined=len(numeric) == 1,
                    notes=[
                        f"{setting(g.labels)}: {measured(y.value or 0.0, y.low, y.high, y.unit)} at "
                        f"{measured(x.value or 0.0, x.low, x.high, x.unit)}"
                        for g, x, y in pairs
                    ],
                )
            )
        pictures.append(Panel(short_setting(labels), lines, levels))
    if not any(panel.curves for panel in pictures):
        return ""
    crowded = max(len(panel.curves) for panel in pictures) > MOST_BANDS
    if crowded:
        pictures = [Panel(p.title, [replace(line, across=()) for line in p.curves], p.levels) for p in pictures]
    log = min(spread_x) > 0 and max(spread_x) / min(spread_x) > 30
    drawn = panels(
        f"{metric_name(results.headline)} against divergence",
        pictures,
        x=f"KL from the reference, nats{' (log scale)' if log else ''}",
        y=_axis_name(results.headline, unit),
        log_x=log,
        share_y=unit == "share",
        names=False,
        size=(520, 300) if drawn_lines and len(pictures) == 1 else (WIDE, TALL),
    )
    order = f" Lines join neighbouring values of {numeric[0]}." if len(numeric) == 1 else ""
    order += f" The largest {numeric[0]} of each is named." if along else ""
    bars = " Bars are 95 % intervals" + (" of the score." if crowded else ".")
    caption = f"{metric_name(name)}. Up and to the left is better: more score for less divergence.{order}{bars}"
    caption += too_many(found)
    keys = key(drawn_lines) if along else legend(results, [v for v in seen if v is not None])
    return figure(_wide(drawn) if drawn_lines else drawn, escape(caption), keys)


def _unaligned(results: Results, group: Group) -> bool:
    return group.labels.get(results.compare) in (None, *results.baselines)


def _end_tags(words: Sequence[str]) -> list[str]:
    """A word at a line's last point: those of all would cover one another."""
    return [word if i == len(words) - 1 else "" for i, word in enumerate(words)]


def _wide(drawn: str) -> str:
    """A single panel of many lines, larger."""
    return drawn.replace('class="panels one"', 'class="panels wide"', 1)


def _reach(x: float | None, found: Estimate) -> tuple[float, float, float]:
    value = found.value or 0.0
    return x or 0.0, value if found.low is None else found.low, value if found.high is None else found.high


def categories(results: Results) -> str:
    """Scores by category: metrics ``NAME/CATEGORY`` of a measure that also has ``NAME``."""
    parts = []
    for whole, metric in results.metrics.items():
        inside = [
            n for n in results.metrics if n.startswith(whole + "/") and metric.get("higher_is_better") is not None
        ]
        inside = [n for n in inside if not n.removeprefix(whole + "/").startswith("turn_")]
        if len(inside) >= 3:
            parts.append(f"<h3>{escape(metric_name(whole))} by category</h3>{_categories(results, whole, inside)}")
    return "".join(parts)


def _categories(results: Results, whole: str, names: Sequence[str]) -> str:
    groups = shown_groups(results)
    rest = results.varies(groups)
    found, parts, seen = list(split(groups, rest)), [], dict[Label | None, None]()
    metric = results.metrics[whole]
    every = [estimate(results, group, name).value for group in groups for name in names]
    every = [value for value in every if value is not None]
    share = metric.get("unit", "share") == "share"
    for labels, members in found[:MOST_PANELS]:
        rows: dict[str, list[Dot]] = {}
        for name in names:
            dots = []
            for group in members:
                found_value = estimate(results, group, name)
                if found_value.value is None:
                    continue
                value = group.labels.get(results.compare)
                seen[value] = None
                text = measured(found_value.value, found_value.low, found_value.high, found_value.unit)
                note = f"{label_text(value)}, {name.rpartition('/')[2]}: {text}"
                dots.append(Dot(found_value.value, results.style(value), note))
            if dots:
                rows[name.removeprefix(whole + "/")] = dots
        if rows:
            title = short_setting(labels)
            chart = dot_rows(
                f"By category, {title}",
                rows,
                x=_axis_name(whole, metric.get("unit", "share")),
                share=share,
                include=every,
            )
            parts.append(f'<div class="panel"><p class="panel-title">{escape(title)}</p>{chart}</div>')
    if not parts:
        return ""
    caption = "Means over seeds. Categories hold few items each: point at a mark for its interval."
    return figure(grid(parts), escape(caption + too_many(found)), legend(results, list(seen), lines=False))
