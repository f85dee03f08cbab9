"""Token shifts as a page: a histogram over the vocabulary, the tokens that moved most, and the end token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxalign.analysis.page import html

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 42

STYLE = """
svg { display: block; width: 100%; max-width: 720px; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
svg line { stroke: var(--rule); } svg line.zero { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .u { fill: rgb(var(--up)); } svg .d { fill: rgb(var(--down)); }
svg rect:hover { opacity: .7; }
td.token { text-align: left; } td.token code { white-space: pre; background: var(--card); border-radius: 3px;
  padding: 1px 5px; }
th:first-child { text-align: left; } td:first-child { text-align: left; }
"""


def render(found: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
      found: the outcome of `jaxalign.build.token_shift` as a dict: metrics, protocol, details, notes.
    """
    details, least = found["details"], found["protocol"]["min_count"]
    groups = details.get("groups", {})
    parts = [
        f"""<h1>Which tokens moved</h1>
<p><code>{escape(details["model"])}</code> against <code>{escape(details["reference"])}</code> on
{found["protocol"]["examples"]} examples: log π(token) - log π<sub>ref</sub>(token) at each place of the given
completions, averaged over all places of the same token. {details["ids"]} different tokens stand in
{details["tokens"]} places.</p>""",
        *(f'<p class="soft">{escape(note)}.</p>' for note in found.get("notes", ())),
        "<h2>How far each token moved</h2>",
        _figure(details["histogram"], "all completions"),
        "<h2>The tokens that moved most</h2>",
        f'<p class="soft">Of those that stand in at least {least} places, by the size of the mean, up or down.</p>',
        _top_table(details["top_tokens"]),
        _end_table(found["metrics"], details["end_tokens"], list(groups)),
    ]
    for name, group in groups.items() if len(groups) > 1 else ():
        parts += [f"<h2>In {escape(name)} completions</h2>", _figure(group["histogram"], f"{name} completions")]
        parts.append(_top_table(group["top_tokens"]))
    parts.append('<p class="soft">The analysis is that of arXiv 2407.13709, section 4, figures 1 and 3.</p>')
    return html("Token shift", "\n".join(parts), STYLE)


def _figure(histogram: Mapping[str, Sequence[float]], what: str) -> str:
    edges, counts = histogram["edges"], histogram["counts"]
    low, high = edges[0], edges[-1]
    most = math.log10(max([*counts, 1])) + 0.3  # a single token must be seen, so bars begin below 1
    inner = WIDTH - LEFT - RIGHT

    def x(value: float) -> float:
        return LEFT + inner * (value - low) / (high - low)

    def y(count: float) -> float:
        share = (math.log10(count) + 0.3) / (most + 0.3) if count > 0 else 0.0
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    marks = []
    for power in range(int(most) + 1):
        at = y(10**power)
        marks.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        marks.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10**power}</text>')
    for start, stop, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            top = y(count)
            marks.append(
                f'<rect class="{"d" if (start + stop) < 0 else "u"}" x="{x(start) + 0.5:.1f}" y="{top:.1f}" '
                f'width="{max(x(stop) - x(start) - 1, 0.5):.1f}" height="{HEIGHT - BOTTOM - top:.1f}">'
                f"<title>{start:.4g} to {stop:.4g} nats: {count} tokens</title></rect>"
            )
    if low < 0 < high:
        marks.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    numbers = [round(edge / (edges[1] - edges[0])) for edge in edges]  # edges are multiples of their distance
    step = next(step for step in (1, 2, 5, 10, 20, 50) if len(edges) <= 9 * step)
    for edge in (edge for edge, number in zip(edges, numbers, strict=True) if number % step == 0):
        marks.append(f'<text x="{x(edge):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{edge:.4g}</text>')
    axis = "mean log-ratio of a token, nats"
    marks.append(f'<text x="{LEFT + inner / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{axis}</text>')
    label = escape(f"Histogram of the mean log-ratios of tokens, {what}", quote=True)
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(marks)}</svg>'
        f"<figcaption>Tokens of the vocabulary by their mean log-ratio, {escape(what)}; the scale of counts is "
        "logarithmic.</figcaption></figure>"
    )


def _top_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>There is none.</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name in ("token", "id", "places", "mean, nats"))
    body = "".join(
        f'<tr><td class="token"><code>{_visible(row["token"])}</code></td><td>{row["id"]}</td>'
        f"<td>{row['count']}</td><td>{row['mean']:+.3f}</td></tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _end_table(metrics: Mapping[str, Any], end_tokens: Sequence[str], names: Sequence[str]) -> str:
    lines = [(f"at the end of {name} completions", f"end/logp/{name}", f"end/reference_logp/{name}") for name in names]
    lines.append(("chosen minus rejected, in pairs", "end/margin", "end/reference_margin"))
    lines = [line for line in lines if line[1] in metrics]
    if not lines:
        return ""
    shown = ", ".join(f"<code>{_visible(token)}</code>" for token in end_tokens)
    body = "".join(
        f"<tr><td>{escape(label)}</td><td>{metrics[own]['n']}</td><td>{metrics[own]['value']:+.3f}</td>"
        f"<td>{metrics[other]['value']:+.3f}</td><td>{metrics[own]['value'] - metrics[other]['value']:+.3f}</td></tr>"
        for label, own, other in lines
    )
    head = "<th></th><th>n</th><th>policy</th><th>reference</th><th>difference</th>"
    return (
        f"<h2>The end token</h2>\n<p>Mean log-probability, nats, of {shown} where the completion ends. Where it falls "
        f'below the reference, answers grow longer.</p><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
    )


def _visible(text: str) -> str:
    return escape(text.replace("\n", "\\n").replace("\t", "\\t"))
