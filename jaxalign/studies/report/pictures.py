"""The report's pictures: scores against numbers of the grid and against divergence, training, categories, tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from jaxalign.studies.report.charts import TALL, WIDE, Curve, Dot, Level, Panel, dot_rows, grid, panels
from jaxalign.studies.report.comparisons import Estimate, estimate
from jaxalign.studies.report.marks import key
from jaxalign.studies.report.page_tables import head, table
from jaxalign.studies.report.results import Group, Results
from jaxalign.studies.report.style import RAMP
from jaxalign.studies.report.wording import (
    count,
    label_text,
    measured,
    metric_name,
    setting,
    short_setting,
    signed,
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


def _too_many(found: Sequence[Any]) -> str:
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
    caption = f"Means over seeds; {reach} are 95 % intervals.{levels}{gone}{_too_many(found)}"
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
    return Level(label_text(value) if value is not None else name, found.value or 0.0, low, high, results.style(value))


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
            # without the compared number on any line: its divergence is from a reference of its own.
            still = [each for each in pairs if each[1].value == 0 or (along and results.compare not in each[0].labels)]
            for group, _, y in still[:3]:
                levels.append(_level(results, None if inner else value, y, short_setting(group.labels)))
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
    caption += _too_many(found)
    keys = key(drawn_lines) if along else legend(results, [v for v in seen if v is not None])
    return figure(_wide(drawn) if drawn_lines else drawn, escape(caption), keys)


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
    return figure(grid(parts), escape(caption + _too_many(found)), legend(results, list(seen), lines=False))


def histograms(results: Results) -> str:
    """Distributions in the measures' details, such as tokens by how far their log-probability moved."""
    names: dict[tuple[str, str], None] = {}
    for row in results.done:
        for measure, outcome in row.get("results", {}).items():
            names |= {(measure, n): None for n, value in outcome.get("details", {}).items() if _is_histogram(value)}
    return "".join(_histogram(results, *name) for name in sorted(names, key=lambda name: "shift" not in name[0]))


def _is_histogram(value: Any) -> bool:
    if not isinstance(value, Mapping) or "edges" not in value:
        return False
    counts = value.get("counts", value.get("shares"))
    return isinstance(counts, list) and len(value["edges"]) == len(counts) + 1 and bool(counts)


def _histogram(results: Results, measure: str, name: str) -> str:
    numeric = [results.compare] if results.is_numeric(results.compare) else results.numeric()[:1]
    groups = [g for g in shown_groups(results) if any(_details(row, measure, name) for row in g.rows)]
    rest = results.varies(groups, numeric)
    if results.compare not in numeric and any(results.compare in g.labels for g in groups):
        rest = [results.compare, *rest]
    whole = [g for g in groups if all(n in g.labels for n in rest)]
    found = [*split(whole, rest), *((dict(g.labels), [g]) for g in groups if g not in whole)]
    values = [v for n in numeric for v in results.values(n)]
    styles = {v: f"r{round(i * (RAMP - 1) / max(len(values) - 1, 1))}" for i, v in enumerate(values)}
    shift = "shift" in measure
    drawn = [(labels, [(group, _steps(group, measure, name)) for group in members]) for labels, members in found]
    least = min((y for _, members in drawn for _, steps in members for _, y in steps if y > 0), default=1.0)
    pictures = []
    for labels, members in drawn[:MOST_PANELS]:
        lines = []
        for group, steps in members:
            style = styles.get(group.labels.get(numeric[0], ""), "kn") if numeric else "k0"
            # A logarithmic axis has no 0: empty bins lie on the floor.
            points = [(x, y or 0.6 * least) for x, y in steps] if shift else steps
            lines.append(Curve("", points, style, marks=False))
        pictures.append(Panel(short_setting(labels), lines))
    unit = "nat" if shift else "token" if "length" in name else "unit"
    picture = panels(
        f"{measure}: {name}",
        pictures,
        x="mean log-ratio to the reference, nats" if shift else f"tokens ({name})" if unit == "token" else name,
        y=f"share of tokens per {unit} (log scale)" if shift else f"share per {unit}, %",
        share_y=not shift,
        log_y=shift,
        names=False,
    )
    title = "How far tokens moved" if shift else f"{measure}: {name}"
    about = (
        "Each token of the vocabulary counts once, by its mean log-ratio wherever it stands in the data. "
        if shift
        else ""
    )
    keys = key({f"{numeric[0]} {label_text(v)}": style for v, style in styles.items()}) if numeric else ""
    keep = f"{about}Of the first row of each setting.{_too_many(found)}"
    return f"<h3>{escape(title)}</h3>" + figure(picture, escape(keep), keys)


def _details(row: Mapping[str, Any], measure: str, name: str) -> Any:
    value = row.get("results", {}).get(measure, {}).get("details", {}).get(name)
    return value if _is_histogram(value) else None


def _steps(group: Group, measure: str, name: str) -> list[tuple[float, float]]:
    value = next(found for row in group.rows if (found := _details(row, measure, name)))
    counts, edges = value.get("counts", value.get("shares")), value["edges"]
    total = sum(counts) or 1
    heights = [count / total / ((edges[i + 1] - edges[i]) or 1) for i, count in enumerate(counts)]
    return [(edge, height) for i, height in enumerate(heights) for edge in (edges[i], edges[i + 1])]


def top_tokens(results: Results) -> str:
    """Lists of tokens in the measures' details, a row for each setting."""
    rows, longest = [], 0
    for group in shown_groups(results):
        for measure, name, found in _token_lists(group):
            cells = "".join(f'<td class="label">{_token(entry)}</td>' for entry in found[:10])
            longest = max(longest, len(found[:10]))
            rows.append(f'<tr><th scope="row">{escape(short_setting(results.telling(group.labels)))}</th>{cells}</tr>')
            title = f"{measure}: {name}, largest first, of the first row of each setting; mean log-ratio in nats"
    if not rows:
        return ""
    names = [head("setting", "label"), *(head(str(rank + 1), "label") for rank in range(longest))]
    drawn = table(names, rows, escape(title))
    if len(rows) > MOST_PANELS:
        drawn = f'<details class="folded"><summary>Of all {len(rows)} settings</summary>{drawn}</details>'
    return f"<h3>Tokens that moved most</h3>{drawn}"


def _token_lists(group: Group) -> Iterator[tuple[str, str, list]]:
    for measure, outcome in group.rows[0].get("results", {}).items():
        for name, found in outcome.get("details", {}).items():
            if isinstance(found, list) and found and all(isinstance(e, Mapping) and "token" in e for e in found):
                yield measure, name, found


def _token(entry: Mapping[str, Any]) -> str:
    mean, places = entry.get("mean"), entry.get("count")
    moved = f" <small>{signed(mean, 'nats')}</small>" if isinstance(mean, int | float) else ""
    note = f' title="in {places:,} places"' if isinstance(places, int) else ""
    return f"<code{note}>{escape(repr(str(entry['token']))[1:-1])}</code>{moved}"
