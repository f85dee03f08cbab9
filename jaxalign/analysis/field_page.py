"""A gradient field as a page: arrows of descent over lines of equal loss, and which completion is pushed harder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from jaxalign.analysis.contours import contour, levels
from jaxalign.analysis.field import Field
from jaxalign.analysis.page import html

SIZE, LEFT, TOP, BOTTOM, RIGHT = 440, 56, 10, 46, 12
ARROWS = 15
"""Most arrows along an axis."""
STEEPEST = 0.98
"""The share of places whose slope an arrow's length tells; those of the steepest are of one length."""
FACTORS = (0.01, 0.1, 0.3, 0.9, 1.1, 3.0, 10.0, 100.0)
"""Edges of the bands of the push ratio."""

STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 28px; }
figure h2 { margin: 8px 0; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11.5px; font-family: inherit; font-variant-numeric: tabular-nums; }
.axis { stroke: var(--soft); stroke-width: 1; fill: none; }
.zero { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; }
.contour { stroke: var(--soft); stroke-width: 1; fill: none; opacity: .75; }
svg text.level { font-size: 10.5px; fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.arrow { stroke: var(--ink); stroke-width: 1.3; fill: none; } .head { fill: var(--ink); }
.spot { fill: transparent; } .spot:hover { fill: rgb(var(--up) / .18); }
.band { shape-rendering: crispEdges; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .85rem; color: var(--soft); margin-top: 6px; }
.key { display: inline-block; width: 15px; height: 12px; border: 1px solid var(--rule); margin-right: 5px;
  vertical-align: -1px; }
"""


def render(field: Field, formula: str = "") -> str:
    """The page as text.

    Args:
      field: what to show.
      formula: the method's formula.
    """
    unit = "nats a token" if field.per_token else "nats"
    options = ", ".join(f"{name} = {value}" for name, value in field.options.items()) or "no options"
    where = "The loss depends on these two log-ratios alone."
    if field.origin is not None:
        where = (
            f"At log x = 0 the two log-probabilities are {field.origin[0]:g} and {field.origin[1]:g} {unit}; elsewhere "
            "the picture may be another one."
        )
    ratio = "mean log-ratio per token" if field.per_token else "log-ratio"
    body = f"""<h1>Gradient field of {escape(field.method)}</h1>
<p class="soft">{escape(options)}</p>
<pre>{escape(formula)}</pre>
<p>x<sub>1</sub> = π(y<sub>w</sub>) / π<sub>ref</sub>(y<sub>w</sub>) belongs to the chosen completion and
x<sub>2</sub> = π(y<sub>l</sub>) / π<sub>ref</sub>(y<sub>l</sub>) to the rejected one; each axis is the {ratio},
{unit}. {where}</p>
<div class="pair">
<figure><h2>Loss, and where descent pushes</h2>{_loss_chart(field)}
<figcaption>Arrows: the way of descent, right and up for more probability; their length grows as the square root of the
slope, because slopes differ by orders of magnitude, and the steepest 2 % are of one length.
Lines: equal loss, with as much of the plane between each two.
Point at a place to read its numbers.</figcaption></figure>
<figure><h2>Which probability is pushed harder</h2>{_push_chart(field)}{_keys()}
<figcaption>|∂L/∂x<sub>1</sub>| / |∂L/∂x<sub>2</sub>|: the slope in the probabilities themselves, not in their
logarithms. For DPO it is x<sub>2</sub> / x<sub>1</sub>. Blank: no push at all.</figcaption></figure>
</div>
<h2>Numbers on the falling diagonal</h2>
<p>log x<sub>2</sub> = &minus;log x<sub>1</sub>: what the chosen completion gains, the rejected one loses. At 0 both are
as likely as under the reference.</p>
{_table(field)}
<p class="soft">Derivatives by automatic differentiation of the method's own function. The view of a loss as a field
over the two ratios is that of arXiv 2404.04626.</p>"""
    return html(f"Gradient field of {field.method}", body, STYLE)


def _at(field: Field) -> tuple[Callable[[float], float], Callable[[float], float]]:
    low, high = float(field.chosen[0]), float(field.chosen[-1])
    return (
        lambda x: round(LEFT + SIZE * (x - low) / (high - low), 1),
        lambda y: round(TOP + SIZE * (high - y) / (high - low), 1),
    )


def _loss_chart(field: Field) -> str:
    x, y = _at(field)
    parts = [_open(f"Loss of {field.method} over the two log-ratios, with arrows of descent"), *_zero(x, y)]
    labels = []
    for level in levels(field.loss):
        pieces = contour(field.chosen, field.rejected, field.loss, level)
        path = " ".join(f"M{x(a[0])},{y(a[1])}L{x(b[0])},{y(b[1])}" for a, b in pieces)
        # Loss falls from the upper left to the lower right, so that diagonal crosses most lines.
        middle = min(pieces, key=lambda piece: abs(piece[0][0] + piece[0][1]))[0]
        parts.append(f'<path class="contour" d="{path}"/>')
        labels.append(f'<text class="level" x="{x(middle[0])}" y="{y(middle[1])}">{level:g}</text>')
    parts += [_arrows(field), *labels, *_frame(field, x, y), *_spots(field, x, y)]
    return "".join(parts) + "</svg>"


def _push_chart(field: Field) -> str:
    x, y = _at(field)
    half = (field.chosen[1] - field.chosen[0]) / 2
    low, high = float(field.chosen[0]), float(field.chosen[-1])
    cells: dict[int, list[str]] = {}
    bands = np.digitize(field.log_push_ratio, np.log(FACTORS))
    undefined = np.isnan(field.log_push_ratio)
    for row, level in enumerate(field.rejected):
        top, bottom = y(min(level + half, high)), y(max(level - half, low))
        start = 0
        for column in range(1, len(field.chosen) + 1):
            last = column == len(field.chosen)
            if last or bands[row, column] != bands[row, start] or undefined[row, column] != undefined[row, start]:
                left, right = x(max(field.chosen[start] - half, low)), x(min(field.chosen[column - 1] + half, high))
                if not undefined[row, start]:
                    band = cells.setdefault(int(bands[row, start]), [])
                    band.append(f"M{left},{top}H{right}V{bottom}H{left}Z")
                start = column
    parts = [_open(f"Ratio of the slopes of {field.method} in the two probabilities")]
    parts += [f'<path class="band" fill="{_colour(band)}" d="{"".join(found)}"/>' for band, found in cells.items()]
    parts += [*_zero(x, y), *_frame(field, x, y), *_spots(field, x, y)]
    return "".join(parts) + "</svg>"


def _colour(band: int) -> str:
    """Of a band of the push ratio: one end where the rejected completion is pushed harder, the other for the chosen."""
    distance = band - len(FACTORS) // 2
    if distance == 0:
        return "var(--card)"
    return f"rgb(var(--{'up' if distance > 0 else 'down'}) / {abs(distance) * 0.22:.2f})"


def _keys() -> str:
    edges = [f"{factor:g}" for factor in FACTORS]
    names = [f"below {edges[0]}"]
    names += [f"{a} to {b}" for a, b in itertools.pairwise(edges)]
    names += [f"above {edges[-1]}"]
    keys = [f'<span><i class="key" style="background:{_colour(i)}"></i>{name}</span>' for i, name in enumerate(names)]
    return f'<div class="keys">{"".join(keys)}</div>'


def _sampled(field: Field) -> list[int]:
    """Indices of the grid, evenly spaced around its middle, at most `ARROWS`."""
    count = len(field.chosen)
    step = math.ceil(count / ARROWS)
    middle = count // 2
    return [i for i in range(count) if (i - middle) % step == 0]


def _arrows(field: Field) -> str:
    x, y = _at(field)
    some = _sampled(field)
    longest = 0.9 * SIZE / len(some)
    slopes = np.hypot(field.chosen_slope, field.rejected_slope)
    # Of a place where the slope overflows nothing is known; a few steep places hide no others.
    pushed = slopes[np.isfinite(slopes) & (slopes > 0)]
    most = float(np.quantile(pushed, STEEPEST)) if pushed.size else 0.0
    inside = [i for i in some if 0 < i < len(field.chosen) - 1]  # arrows stay in the frame
    lines, heads = [], []
    for row in inside:
        for column in inside:
            slope = slopes[row, column]
            if not np.isfinite(slope) or slope == 0.0:
                continue
            length = longest * math.sqrt(min(1.0, slope / most))
            across, down = -field.chosen_slope[row, column] / slope, field.rejected_slope[row, column] / slope
            x0 = x(float(field.chosen[column])) - length * across / 2
            y0 = y(float(field.rejected[row])) - length * down / 2
            x1, y1 = x0 + length * across, y0 + length * down
            tip = min(5.0, length)
            bx, by = x1 - tip * across, y1 - tip * down
            lines.append(f"M{x0:.1f},{y0:.1f}L{bx:.1f},{by:.1f}")
            px, py = -0.45 * tip * down, 0.45 * tip * across
            heads.append(f"M{x1:.1f},{y1:.1f}L{bx + px:.1f},{by + py:.1f}L{bx - px:.1f},{by - py:.1f}Z")
    return f'<path class="arrow" d="{"".join(lines)}"/><path class="head" d="{"".join(heads)}"/>'


def _spots(field: Field, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """Places to point at, with their numbers."""
    some = _sampled(field)
    half = (field.chosen[1] - field.chosen[0]) * (some[1] - some[0]) / 2 if len(some) > 1 else 1.0
    low, high = float(field.chosen[0]), float(field.chosen[-1])
    ratio = np.exp(np.clip(field.log_push_ratio, -80, 80))
    spots = []
    for row in some:
        for column in some:
            a, b = float(field.chosen[column]), float(field.rejected[row])
            left, right = x(max(a - half, low)), x(min(a + half, high))
            top, bottom = y(min(b + half, high)), y(max(b - half, low))
            note = (
                f"log x1 = {a:.2f}, log x2 = {b:.2f}\nloss {field.loss[row, column]:.5g}\n"
                f"dL/dlog x1 {field.chosen_slope[row, column]:.4g}\n"
                f"dL/dlog x2 {field.rejected_slope[row, column]:.4g}\n"
                f"|dL/dx1| / |dL/dx2| {ratio[row, column]:.4g}"
            )
            box = f'x="{left}" y="{top}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
            spots.append(f'<rect class="spot" {box}><title>{note}</title></rect>')
    return spots


def _table(field: Field) -> str:
    """Numbers where the chosen completion gains what the rejected one loses."""
    middle = len(field.chosen) // 2
    steps = sorted({0, *(round(middle * share) for share in (-1, -0.5, 0.25, 0.5, 1))})
    head = "<tr><th>log x1</th><th>log x2</th><th>loss</th><th>∂L/∂log x1</th><th>∂L/∂log x2</th>"
    rows = []
    for step in steps:
        row, column = middle - step, middle + step
        values = (
            f"{field.chosen[column]:.2f}",
            f"{field.rejected[row]:.2f}",
            f"{field.loss[row, column]:.5g}",
            f"{field.chosen_slope[row, column]:.4g}",
            f"{field.rejected_slope[row, column]:.4g}",
            f"{math.exp(min(80.0, max(-80.0, field.log_push_ratio[row, column]))):.4g}"
            if not np.isnan(field.log_push_ratio[row, column])
            else "-",
        )
        rows.append("<tr>" + "".join(f"<td>{value}</td>" for value in values) + "</tr>")
    return f'<div class="scroll"><table>{head}<th>|∂L/∂x1| / |∂L/∂x2|</th></tr>{"".join(rows)}</table></div>'


def _open(title: str) -> str:
    box = f"0 0 {LEFT + SIZE + RIGHT} {TOP + SIZE + BOTTOM}"
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(title, quote=True)}">'


def _zero(x: Callable[[float], float], y: Callable[[float], float]) -> Sequence[str]:
    return (
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="{TOP}" y2="{TOP + SIZE}"/>',
        f'<line class="zero" x1="{LEFT}" x2="{LEFT + SIZE}" y1="{y(0)}" y2="{y(0)}"/>',
    )


def _frame(field: Field, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """Border, ticks and names of the axes."""
    parts = [f'<rect class="axis" x="{LEFT}" y="{TOP}" width="{SIZE}" height="{SIZE}"/>']
    end = float(field.chosen[-1])
    for tick in (-end, -end / 2, 0.0, end / 2, end):
        parts.append(f'<text x="{x(tick)}" y="{TOP + SIZE + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>')
    unit = "nats a token" if field.per_token else "nats"
    middle = TOP + SIZE / 2
    parts.append(
        f'<text x="{LEFT + SIZE / 2}" y="{TOP + SIZE + 38}" text-anchor="middle">log x1, chosen, {unit}</text>'
    )
    turned = f'<g transform="translate(14 {middle}) rotate(-90)">'
    parts.append(f'{turned}<text text-anchor="middle">log x2, rejected, {unit}</text></g>')
    return parts
