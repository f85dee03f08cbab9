"""The report on the end of answers: how likely the models find it to stop where a given completion stops.

Where the probability of the end token falls, answers grow long and at last never end. Source: arXiv 2407.13709,
figure 3, which averages over beta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import NamedTuple

from jaxalign.studies.report.charts import Dot, dot_rows, grid
from jaxalign.studies.report.comparisons import Difference, mean_over
from jaxalign.studies.report.marks import key
from jaxalign.studies.report.page_tables import head, table
from jaxalign.studies.report.pictures import figure
from jaxalign.studies.report.results import SEED, Group, Results, canonical, is_number
from jaxalign.studies.report.tables import markdown_table
from jaxalign.studies.report.wording import DASH, number, setting, short_setting, signed
from jaxalign.studies.study import Label

COLUMNS = {
    "end/logp/chosen": "chosen",
    "end/logp/rejected": "rejected",
    "end/margin": "chosen minus rejected",
    "end/reference_margin": "the same, reference",
}
"""Metrics of `jaxalign.evaluation.end_token` and how they are called here."""
SIDES = {"end/logp/chosen": "good", "end/logp/rejected": "bad"}
MARGINS = {"end/margin": "good", "end/reference_margin": "kn"}
MOST = 24
"""Settings in a picture."""

EXPLANATION = """Mean log-probability of the end token where the held-out completions end, in nats, and its mean
difference between chosen and rejected completions. A model that finds the end unlikely even there writes longer
answers, or never stops."""


class _Line(NamedTuple):
    labels: Mapping[str, Label]
    values: Mapping[str, Difference]
    settings: int


def _lines(results: Results, measure: str) -> list[_Line]:
    """The settings of every label but numbers, averaged over these."""
    families: dict[str, tuple[dict[str, Label], list[Group]]] = {}
    merged: dict[str, Group] = {}
    for group in results.groups:  # how the headline was measured does not matter here
        kin = merged.get(canonical(group.labels))
        rows = group.rows if kin is None else (*kin.rows, *group.rows)
        merged[canonical(group.labels)] = Group(group.labels, rows, group.protocol)
    for group in merged.values():
        labels = {n: v for n, v in group.labels.items() if n != SEED and not is_number(v)}
        families.setdefault(canonical(labels), (labels, []))[1].append(group)
    found = []
    for labels, groups in families.values():
        means = {name: mean_over(results, groups, f"{measure}/{name}") for name in COLUMNS}
        values = {name: _possible(mean, name) for name, mean in means.items() if mean is not None}
        if values:
            found.append(_Line(labels, values, max(mean.settings for mean in values.values())))
    return found


def _possible(found: Difference, name: str) -> Difference:
    """A log-probability's interval ends at 0."""
    if found.paired is None or "logp" not in name:
        return found
    return replace(found, paired=found.paired._replace(high=min(found.paired.high, 0.0)))


def _measures(results: Results) -> list[str]:
    return [m for m in results.protocols if any(f"{m}/{name}" in results.metrics for name in COLUMNS)]


def end_of_answers(results: Results) -> str:
    """A table and two rows of dots for every measure that has these metrics."""
    parts = []
    for measure in _measures(results):
        lines = _lines(results, measure)
        names = [name for name in COLUMNS if any(name in line.values for line in lines)]
        heads = [head("setting", "label"), *(head(COLUMNS[name]) for name in names), head("settings"), head("seeds")]
        rows = []
        for line in lines:
            cells = "".join(f'<td class="value">{_cell(line.values.get(name), name)}</td>' for name in names)
            rows.append(
                f'<tr><th scope="row">{escape(setting(line.labels) or "all")}</th>{cells}'
                f"<td>{line.settings}</td><td>{_seeds(line)}</td></tr>"
            )
        drawn = _drawn(lines)
        numbers = [name for name in results.labels if results.is_numeric(name)]
        mean = f"Means over {', '.join(numbers)} and seeds." if numbers else "Means over seeds."
        missing = f" {len(lines) - MOST} more settings are in the table alone." if len(lines) > MOST else ""
        title = f"<h3>{escape(measure)}</h3>" if len(_measures(results)) > 1 else ""
        parts.append(title + figure(drawn, escape(f"{mean} Bars are 95 % intervals.{missing}")) + table(heads, rows))
    return f"<p>{EXPLANATION}</p>{''.join(parts)}" if parts else ""


def markdown_ends(results: Results) -> list[str]:
    """The same table in Markdown, its section included."""
    parts = []
    for measure in _measures(results):
        rows = []
        for line in _lines(results, measure):
            cells = [_text(line.values.get(name), name) for name in COLUMNS]
            rows.append([setting(line.labels) or "all", *cells, str(line.settings), str(_seeds(line))])
        head_cells = ["setting", *(f"{words}, nats" for words in COLUMNS.values()), "settings", "seeds"]
        parts += [f"## End of answers ({measure})\n", markdown_table(head_cells, rows)]
    return parts


def _seeds(line: _Line) -> int:
    return max(mean.seeds for mean in line.values.values())


def _text(found: Difference | None, name: str) -> str:
    if found is None:
        return DASH
    value = signed(found.value, "nats") if "margin" in name else number(found.value, "nats")
    if found.paired is None:
        return value
    return f"{value} [{number(found.paired.low, 'nats')}, {number(found.paired.high, 'nats')}]"


def _cell(found: Difference | None, name: str) -> str:
    value, _, reach = _text(found, name).partition(" ")
    return f"{value} <small>{reach}</small>" if reach else value


def _telling(line: _Line, lines: list[_Line]) -> Mapping[str, Label]:
    """The line's labels without those that are the same in all lines that have these labels at all."""
    kin = [other.labels for other in lines if other.labels.keys() == line.labels.keys()]
    return {n: v for n, v in line.labels.items() if len({other[n] for other in kin}) > 1} or line.labels


def _drawn(lines: list[_Line]) -> str:
    parts = []
    pictures = (
        ("Where completions end", SIDES, {"chosen": "good", "rejected": "bad"}, "log-probability of the end, nats"),
        ("Chosen minus rejected", MARGINS, {"policy": "good", "reference": "kn"}, "difference, nats"),
    )
    for title, styles, keys, x in pictures:
        rows = {}
        for line in lines[:MOST]:
            name = short_setting(_telling(line, lines)) or "all"
            dots = []
            for metric, style in styles.items():
                found = line.values.get(metric)
                if found is not None:
                    low, high = (found.paired.low, found.paired.high) if found.paired else (None, None)
                    note = f"{name}, {COLUMNS[metric]}: {_text(found, metric)} nats"
                    dots.append(Dot(found.value, style, note, low, high))
            if dots:
                rows[name] = dots
        if rows:
            chart = dot_rows(title, rows, x=x, include=(0.0,))
            keyed = key(keys, lines=False)
            parts.append(f'<div class="panel"><p class="panel-title">{escape(title)}</p>{keyed}{chart}</div>')
    return grid(parts)
