"""The report's lower half: samples side by side, how each row was made, and what was measured in another way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from jaxalign.studies.report.page_tables import configurations, head, swatch, table
from jaxalign.studies.report.pictures import shown_groups, split
from jaxalign.studies.report.results import Group, Results, degenerate
from jaxalign.studies.report.tables import letter
from jaxalign.studies.report.wording import DASH, count, label_text, setting

PROMPTS, SETTINGS, LETTERS = 6, 12, 1200
"""Prompts and settings with samples, and the letters of one that are shown."""


def samples(results: Results) -> str:
    """The same prompts answered by the compared values, a part for each setting of the other labels."""
    measures = dict.fromkeys(
        measure for row in results.done for measure, outcome in row.get("results", {}).items() if outcome.get("samples")
    )
    parts = []
    for measure in measures:
        groups = [group for group in shown_groups(results) if _said(group, measure)] or [
            group for group in results.groups if _said(group, measure)
        ]
        rest = results.varies(groups)
        found = list(split(groups, rest))
        drawn = []
        for labels, members in found[:SETTINGS]:
            inner = "".join(_prompts(results, measure, members))
            opened = "" if drawn else " open"
            folded = ' class="folded"' if drawn else ""
            drawn.append(
                f"<details{folded}{opened}><summary>{escape(setting(labels) or 'all settings')}</summary>"
                f"{inner}</details>"
            )
        more = (
            f'<p class="soft">{len(found) - SETTINGS} more settings are not shown.</p>' if len(found) > SETTINGS else ""
        )
        parts.append(f"<h3>{escape(measure)}</h3>{''.join(drawn)}{more}")
    if not parts:
        return ""
    note = "The first prompts, answered by the first row of each setting. Not selected by how good they are."
    return f'<p class="soft">{note}</p>{"".join(parts)}'


def _said(group: Group, measure: str) -> dict[str, Mapping[str, Any]]:
    """Prompt -> sample, of the first row of a setting that has some."""
    for row in group.rows:
        found = row.get("results", {}).get(measure, {}).get("samples", ())
        if found:
            return {_text(sample.get("prompt", "")): sample for sample in found}
    return {}


def _prompts(results: Results, measure: str, members: Sequence[Group]) -> Iterator[str]:
    said = [(group, _said(group, measure)) for group in members]
    for prompt in list(dict.fromkeys(prompt for _, found in said for prompt in found))[:PROMPTS]:
        cells = []
        for group, found in said:
            if prompt not in found:
                continue
            value = group.labels.get(results.compare)
            lost = " (degenerate)" if any(degenerate(row) for row in group.rows) else ""
            extra = _extra(found[prompt])
            text = _cut(_text(found[prompt].get("completion", "")))
            name = f"{swatch(results, value)}{escape(label_text(value) + lost)}"
            cells.append(f"<div><h4>{name}{extra}</h4><p>{escape(text) or '<i>nothing</i>'}</p></div>")
        yield f'<div class="prompt"><p>{escape(_cut(prompt))}</p><div class="said">{"".join(cells)}</div></div>'


def _extra(sample: Mapping[str, Any]) -> str:
    """What else is told of a sample in a word: its score, whether it is right."""
    told = []
    for name, value in sample.items():
        if name == "ended" and value is False:
            told.append("cut, no end token")
        if name in ("prompt", "completion", "id", "ended") or not isinstance(value, bool | int | float):
            continue
        told.append(f"{name} {'yes' if value is True else 'no' if value is False else f'{value:g}'}")
    return f" · {escape(', '.join(told[:3]))}" if told else ""


def _text(value: Any) -> str:
    """A prompt or completion as text; of messages, who says what."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(
            f"{m.get('role', '')}: {m.get('content', '')}" if isinstance(m, Mapping) else str(m) for m in value
        )
    return "" if value is None else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[:LETTERS]} … ({len(text) - LETTERS:,} more letters)"


def mismatches(results: Results) -> str:
    """What was not measured in the same way of all rows: loudly for the headline, which is then split."""
    loud, quiet = [], []
    for measure, texts in results.mismatches():
        trees = [json.loads(text) for text in texts]
        names = [
            name
            for name in dict.fromkeys(n for tree in trees for n in tree)
            if len({_shown(t.get(name)) for t in trees}) > 1
        ]
        items = []
        for place, tree in enumerate(trees):
            rows = [row for row in results.done if results.protocol(row, measure) == place]
            told = ", ".join(f"<code>{escape(name)} = {escape(_shown(tree.get(name)))}</code>" for name in names)
            which = "; ".join(dict.fromkeys(setting(row["labels"]) or str(row["row"]) for row in rows[:4]))
            more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
            listed = f" <small>({escape(which + more)})</small>" if place else ""
            items.append(f"<li><b>Protocol {letter(place)}</b>, {count(len(rows), 'row')}: {told} {listed}</li>")
        said = f"<p><b>{escape(measure)}</b> was measured in {len(texts)} ways:</p><ul>{''.join(items)}</ul>"
        (loud if measure == results.headline.partition("/")[0] else quiet).append(said)
    parts = []
    if loud:
        parts.append(
            '<div class="warn" role="note"><h3>⚠ The headline was not measured in the same way of all rows</h3>'
            f"{''.join(loud)}<p>Rows of different protocols are never averaged or compared with one another. "
            "Pictures and the answer are of protocol A.</p></div>"
        )
    if quiet:
        names = ", ".join(
            measure for measure, _ in results.mismatches() if measure != results.headline.partition("/")[0]
        )
        parts.append(
            f'<details class="quiet"><summary>Other measures with several protocols: {escape(names)}</summary>'
            f'<div class="warn">{"".join(quiet)}</div></details>'
        )
    return "".join(parts)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 120 else text[:117] + "…"


def provenance(results: Results) -> str:
    """How the rows were made: options that differ, each row's stages, each stage's whole configuration."""
    differing = configurations(results)
    parts = []
    if differing:
        parts.append(
            f'<details class="folded"><summary>Options in which the rows differ</summary>{differing}</details>'
        )
    names = [
        head("row", "label"),
        head("labels", "words"),
        head("stages", "words"),
        head("model", "words"),
        head("seconds"),
    ]
    rows, stages = [], {}
    for row in results.rows:
        made = []
        for stage in row.get("stages") or ():
            stages.setdefault(str(stage.get("key", stage.get("folder", len(stages)))), stage)
            made.append(f"{stage.get('name', '')}-{stage.get('key', '')}")
        seconds = row.get("seconds")
        rows.append(
            f'<tr><th scope="row">{escape(str(row["row"]))}</th><td class="words">{escape(setting(row["labels"]))}</td>'
            f'<td class="words"><code>{escape(", ".join(made)) or DASH}</code></td>'
            f'<td class="words"><code>{escape(str(row.get("model") or DASH))}</code></td>'
            f"<td>{DASH if not isinstance(seconds, int | float) else f'{seconds:,.0f}'}</td></tr>"
        )
    parts.append(f'<details class="folded"><summary>Rows and their stages</summary>{table(names, rows)}</details>')
    for key, stage in stages.items():
        facts = {name: value for name, value in stage.items() if name not in ("config", "curves")}
        tree = json.dumps({**facts, "config": stage.get("config", {})}, indent=1, ensure_ascii=False)
        parts.append(
            f'<details class="folded"><summary>Stage {escape(str(stage.get("name", "")))}-{escape(key)}</summary>'
            f"<pre>{escape(tree)}</pre></details>"
        )
    ways = {m: [json.loads(text) for text in texts] for m, texts in results.protocols.items()}
    tree = escape(json.dumps(ways, indent=1, ensure_ascii=False))
    parts.append(f'<details class="folded"><summary>Protocols of the measures</summary><pre>{tree}</pre></details>')
    return "".join(parts)
