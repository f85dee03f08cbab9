"""The report's tables as HTML: the headline, differences, all metrics, published numbers, what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from jaxalign.studies.report.charts import forest
from jaxalign.studies.report.comparisons import (
    BOTH,
    ITEMS,
    NEITHER,
    SEEDS,
    Difference,
    Estimate,
    by_setting,
    estimate,
    over_settings,
)
from jaxalign.studies.report.marks import Axis, axis, mark, short, stroke, text
from jaxalign.studies.report.published import published_lines
from jaxalign.studies.report.results import Group, Results, degenerate, is_number
from jaxalign.studies.report.tables import ALIKE, APART, BEST, DEGENERATE, Line, letter, main_table, p_of
from jaxalign.studies.report.wording import (
    DASH,
    MINUS,
    count,
    difference,
    label_text,
    metric_name,
    number,
    setting,
    unit_name,
)
from jaxalign.studies.study import Label

MARKS = {ITEMS: "†", SEEDS: "‡", NEITHER: "§"}
"""Marks of intervals that do not cover both the chance of training and the choice of items."""
MARK_TEXTS = {
    ITEMS: "One seed: the interval covers the choice of items, not the chance of training.",
    SEEDS: "Nothing is known of the items: the interval covers the chance of training alone.",
    NEITHER: "One seed, and nothing is known of the items: no interval.",
}
MOST_ROWS = 30
"""Rows of a table of differences that is shown without being asked for."""
UNPAIRED = "¶"
UNPAIRED_TEXT = """The items' values are not kept: their part is by standard errors, as if each model had answered items
of its own, which makes the interval rather too wide."""


def swatch(results: Results, value: Label | None) -> str:
    """A compared value's mark before its name."""
    return f'<svg class="swatch" viewBox="-6.5 -6.5 13 13" aria-hidden="true">{mark(results.style(value), 0, 0)}</svg>'


def forest_head(scale: Axis | None, share: bool) -> str:
    """The axis over a column of `forest` pictures."""
    if scale is None:
        return head("", "screen")
    marks = scale.marks if len(scale.marks) < 4 else (scale.marks[0], scale.marks[-1])
    marks = tuple(sorted({*marks, 0.0})) if scale.low < 0 < scale.high else marks
    ticks = "".join(text("tick", scale.at(m), 11, short(100 * m if share else m)) for m in marks)
    ticks += "".join(stroke("notch", scale.at(m), 14, scale.at(m), 18) for m in marks)
    return (
        f'<th scope="col" class="screen"><svg class="forest" viewBox="0 0 140 18" aria-hidden="true">{ticks}</svg></th>'
    )


def table(names: Sequence[str], body: Sequence[str], caption: str = "") -> str:
    """A table that scrolls sideways where the window is narrow. `names` and `body` are HTML."""
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="group"><table>{title}<thead><tr>{"".join(names)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def head(words: str, kind: str = "") -> str:
    """A column's name."""
    style = f' class="{kind}"' if kind else ""
    return f'<th scope="col"{style}>{escape(words)}</th>'


def label_cells(results: Results, labels: Mapping[str, Label]) -> str:
    """A setting's labels, the compared one with its mark, as the cells that begin a row."""
    cells = []
    for i, name in enumerate(results.columns):
        value = labels.get(name)
        sign = swatch(results, value) if name == results.compare and value is not None else ""
        start, end = ('<th scope="row">', "</th>") if i == 0 else ('<td class="label">', "</td>")
        cells.append(f"{start}{sign}{escape(label_text(value))}{end}")
    return "".join(cells) or '<th scope="row">all rows</th>'


def label_heads(results: Results) -> list[str]:
    """Names of the columns of `label_cells`."""
    return [head(name, "label") for name in results.columns] or [head("setting", "label")]


def headline_tables(results: Results) -> str:
    """The main table, one for each protocol of the headline."""
    tables = main_table(results)
    ends = [e for _, lines in tables for line in lines for e in _ends(line.estimate)]
    known = [end for end in ends if end is not None]
    scale = axis(known, 16, 124) if known else None
    parts = []
    for protocol, lines in tables:
        unit = next((line.estimate.unit for line in lines if line.estimate.value is not None), "")
        names = [*label_heads(results), head(f"{metric_name(results.headline)}, {unit_name(unit)}".rstrip(", "))]
        share = unit == "share"
        names += [
            head("95 % interval", "words"),
            forest_head(scale, share),
            head("seeds"),
            head("items"),
            head("", "words"),
        ]
        title = ""
        if len(tables) > 1:
            way = "The headline was not measured." if protocol is None else f"Protocol {letter(protocol)}."
            title = way + (" Not comparable with the tables above." if protocol else "")
        parts.append(table(names, [_headline_row(results, line, scale) for line in lines], title))
        parts.append(_marks_told([line.estimate.covers for line in lines if line.estimate.value is not None]))
    return "".join(parts)


def _ends(found: Estimate) -> tuple[float | None, ...]:
    return found.value, found.low, found.high


def _headline_row(results: Results, line: Line, scale: Axis | None) -> str:
    found = line.estimate
    style = results.style(line.group.labels.get(results.compare))
    picture = "" if found.value is None or scale is None else forest(found.value, found.low, found.high, scale, style)
    tags = {
        BEST: '<span class="tag best">★ best</span>',
        ALIKE: f'<span class="tag">≈ p {p_of(line.difference)}</span>',
        APART: f'<span class="tag apart">differs, p {p_of(line.difference)}</span>',
    }
    tag = tags.get(line.verdict, f'<span class="tag">{escape(line.verdict)}</span>' if line.verdict else "")
    remark = f" <small>{escape(line.remark)}</small>" if line.remark else ""
    kind = ' class="best"' if line.verdict == BEST else "" if found.value is not None else ' class="gone"'
    reach = line.interval + (MARKS.get(found.covers, "") if found.value is not None else "")
    value = f'<td class="value{"" if found.value is not None else " none"}">{escape(line.text)}</td>'
    return (
        f"<tr{kind}>{label_cells(results, line.group.labels)}{value}<td class='words value'>{reach}</td>"
        f"<td class='screen'>{picture}</td><td>{found.seeds or ''}</td><td>{found.items or ''}</td>"
        f'<td class="words">{tag}{remark}</td></tr>'
    )


def differences(results: Results) -> str:
    """Paired differences of the compared values, then of every other label that is no number."""
    unit = results.metrics.get(results.headline, {}).get("unit", "share")
    parts = []
    for own, label in results.compared_labels:
        pooled, single = over_settings(own, results.headline, label), by_setting(own, results.headline, label)
        if not pooled:
            continue
        parts.append(f"<h3>Between values of {escape(label)}</h3>{_tied(own, label)}")
        parts.append(_folded(_difference_table(own, pooled, unit, label, "settings"), len(pooled)))
        if len(single) > len(pooled):
            inner = _difference_table(own, single, unit, label, "setting")
            words = f"In each setting ({count(len(single), 'comparison')}, corrected together)"
            parts.append(f'<details class="folded"><summary>{words}</summary>{inner}</details>')
    return "".join(parts)


def _folded(drawn: str, rows: int) -> str:
    """A long table, folded."""
    if rows <= MOST_ROWS:
        return drawn
    return f'<details class="folded"><summary>All {rows} comparisons</summary>{drawn}</details>'


def _tied(results: Results, label: str) -> str:
    """Which labels differ along with the compared one."""
    told = []
    for name in results.tied(label):
        own = {labels[label]: labels.get(name) for labels in map(results.labels_of, results.rows) if label in labels}
        if len(set(own.values()) - {None}) > 1:
            values = ", ".join(f"{label_text(v)} {label_text(other)}" for v, other in own.items() if other is not None)
            told.append(f"Each value of {label} has its own {name}, so they are compared together: {values}.")
    return f'<p class="soft">{escape(" ".join(told))}</p>' if told else ""


def _difference_table(results: Results, found: Sequence[Difference], unit: str, label: str, last: str) -> str:
    ends = [e for d in found for e in ((d.value, d.paired.low, d.paired.high) if d.paired else (d.value,))]
    scale = axis([*ends, 0.0], 16, 124)
    name = "points" if unit == "share" else unit_name(unit)
    names = [head("difference", "label"), head(f"mean, {name} [95 % interval]"), forest_head(scale, unit == "share")]
    names += [
        head("p, corrected"),
        head("after correction", "words"),
        head("pairs of rows"),
        head("items"),
        head(last, "words"),
    ]
    rows = []
    for d in found:
        low, high = (d.paired.low, d.paired.high) if d.paired else (None, None)
        style = results.style(d.first) if label == results.compare else "kn"
        verdict = "not tested" if d.adjusted is None else "holds" if d.holds else "does not hold"
        where = str(d.settings) if d.context is None else setting(d.context) or "all"
        signs = [swatch(results, v) if label == results.compare else "" for v in (d.first, d.second)]
        pair = f" {MINUS} ".join(
            sign + escape(label_text(v)) for sign, v in zip(signs, (d.first, d.second), strict=True)
        )
        strong = ("<b>", "</b>") if d.holds else ("", "")
        told = difference(d, unit).replace(f" {name}", "", 1) if name else difference(d, unit)
        told += MARKS.get(d.covers, "") + (UNPAIRED if is_unpaired(d) else "")
        rows.append(
            f'<tr><th scope="row">{pair}</th><td class="value">{escape(told)}</td>'
            f'<td class="screen">{forest(d.value, low, high, scale, style, zero=True)}</td><td>{escape(p_of(d))}</td>'
            f'<td class="words">{strong[0]}{verdict}{strong[1]}</td><td>{d.seeds}</td><td>{d.items or DASH}</td>'
            f'<td class="words">{escape(where)}</td></tr>'
        )
    return table(names, rows) + _marks_told([d.covers for d in found], any(map(is_unpaired, found)))


def is_unpaired(found: Difference) -> bool:
    """Whether the items' part of its interval is that of two independent means."""
    return found.items == 0 and found.covers in (BOTH, ITEMS)


def _marks_told(covers: Sequence[str], unpaired: bool = False) -> str:
    parts = [f"{MARKS[kind]} {text}" for kind, text in MARK_TEXTS.items() if kind in covers]
    parts += [f"{UNPAIRED} {UNPAIRED_TEXT}"] * unpaired
    return f'<p class="soft">{" ".join(parts)}</p>' if parts else ""


def all_metrics(results: Results) -> str:
    """Every metric of every setting, a table for each measure."""
    parts = []
    for measure, ways in results.protocols.items():
        names = [name for name in results.metrics if name.partition("/")[0] == measure]
        if not names:
            continue
        heads = label_heads(results)
        for name in names:
            metric = results.metrics[name]
            sign = {True: " ↑", False: " ↓"}.get(metric.get("higher_is_better"), "")  # type: ignore[arg-type]
            unit = unit_name(metric.get("unit", "share"))
            small = f"<br><small>{escape(unit)}{sign}</small>" if unit or sign else ""
            heads.append(f'<th scope="col">{escape(name.partition("/")[2])}{small}</th>')
        rows = []
        for group in results.groups:
            cells = "".join(_metric_cell(results, group, name, len(ways) > 1) for name in names)
            rows.append(f"<tr>{label_cells(results, group.labels)}{cells}</tr>")
        note = "Protocols by letter; numbers of different ones do not compare." if len(ways) > 1 else ""
        notes = dict.fromkeys(
            f"{note} ({setting(row['labels'])})" if len(results.done) > 1 else note
            for row in results.done
            for note in row["results"].get(measure, {}).get("notes", ())
        )
        inner = table(heads, rows, escape(note)) + _notes(list(notes))
        opened = " open" if measure == results.headline.partition("/")[0] else ""
        words = f"{escape(measure)} <small>({count(len(names), 'metric')})</small>"
        parts.append(f"<details{opened}><summary>{words}</summary>{inner}</details>")
    return "".join(parts)


def _notes(notes: Sequence[str], most: int = 12) -> str:
    if not notes:
        return ""
    more = f"<li>and {len(notes) - most} more</li>" if len(notes) > most else ""
    return f'<ul class="notes soft">{"".join(f"<li>{escape(note)}</li>" for note in notes[:most])}{more}</ul>'


def _metric_cell(results: Results, group: Group, name: str, several: bool) -> str:
    found = estimate(results, group, name)
    if found.value is None:
        why = "mixed protocols" if found.mixed else DEGENERATE if found.degenerate else DASH
        return f'<td class="none">{why}</td>'
    half = ""
    if found.low is not None and found.high is not None:
        half = f" <small>[{number(found.low, found.unit)}, {number(found.high, found.unit)}]</small>"
    measure = name.partition("/")[0]
    ways = {way for row in group.rows if (way := results.protocol(row, measure)) is not None}
    way = "".join(f" <small>{letter(index)}</small>" for index in sorted(ways)) if several else ""
    return f'<td class="value">{number(found.value, found.unit)}{half}{way}</td>'


def published(results: Results) -> str:
    """Numbers of the paper beside ours, in the paper's unit."""
    rows = [
        f'<tr><th scope="row">{escape(line.setting)}</th>'
        f'<td class="words">{escape(line.metric)}</td><td class="value">{escape(line.value)}</td>'
        f'<td class="value">{escape(line.here)}</td><td class="words">{escape(line.ours)}</td>'
        f'<td class="words">{escape(line.source)}</td></tr>'
        for line in published_lines(results)
    ]
    if not rows:
        return ""
    names = [head("setting", "label"), head("metric of the paper", "words"), head("published"), head("here")]
    return table([*names, head("our metric", "words"), head("source", "words")], rows)


def failures(results: Results) -> str:
    """The rows that failed, with their errors, and those whose model is degenerate, with the reason."""
    parts = []
    if results.failed:
        rows = []
        for row in results.failed:
            error = row.get("error") or {}
            kind = ": ".join(str(error[key]) for key in ("stage", "type") if error.get(key))
            rows.append(
                f'<tr><th scope="row">{escape(str(row["row"]))}</th>'
                f'<td class="words">{escape(setting(row["labels"]))}</td><td class="words">{escape(kind)}</td>'
                f'<td class="words"><code>{escape(str(error.get("message", ""))[:2000])}</code></td></tr>'
            )
        names = [head("row", "label"), head("labels", "words"), head("stage: error", "words"), head("message", "words")]
        parts.append("<h3>Failed</h3>" + table(names, rows))
    lost = [row for row in results.done if degenerate(row)]
    if lost:
        rows = [
            f'<tr><th scope="row">{escape(str(row["row"]))}</th><td class="words">{escape(setting(row["labels"]))}</td>'
            f'<td class="words">{escape(str(degenerate(row)))}</td></tr>'
            for row in lost
        ]
        names = [head("row", "label"), head("labels", "words"), head("why", "words")]
        parts.append("<h3>Degenerate</h3>" + table(names, rows))
    return "".join(parts)


def configurations(results: Results) -> str:
    """The options in which the rows' last stages differ, by row."""
    flat = {row["row"]: _flat(row["stages"][-1].get("config", {})) if row.get("stages") else {} for row in results.rows}
    names = dict.fromkeys(name for options in flat.values() for name in options)
    known = [options for options in flat.values() if options]
    differing = [n for n in names if len({str(options.get(n)) for options in known}) > 1]
    if not differing:
        return ""
    rows = []
    for row in results.rows:
        options = flat[row["row"]]
        cells = "".join(f'<td class="label">{escape(_cell(options.get(name)))}</td>' for name in differing)
        rows.append(f'<tr><th scope="row">{escape(str(row["row"]))}</th>{cells}</tr>')
    return table([head("row", "label"), *(head(name, "label") for name in differing)], rows)


def _flat(tree: Mapping, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _cell(value: object) -> str:
    words = f"{value:g}" if is_number(value) else DASH if value is None else str(value)
    return words if len(words) <= 60 else "…" + words[-58:]
