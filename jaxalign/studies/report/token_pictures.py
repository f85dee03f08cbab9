"""The report's pictures of tokens and lengths: distributions, and the tokens that moved most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from jaxalign.studies.report.charts import Curve, Panel, panels
from jaxalign.studies.report.marks import key
from jaxalign.studies.report.page_tables import head, table
from jaxalign.studies.report.pictures import MOST_PANELS, figure, shown_groups, split, too_many
from jaxalign.studies.report.results import Group, Results
from jaxalign.studies.report.style import RAMP
from jaxalign.studies.report.wording import label_text, short_setting, signed


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
    keep = f"{about}Of the first row of each setting.{too_many(found)}"
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
