"""Small charts as inline SVG: colours come from the page's style sheet, so that light and dark both read well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 12, 38
FLOOR = HEIGHT - BOTTOM

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
      name: in the legend.
      points: ``(x, y)``, x ascending.
      style: CSS class that gives it its colour.
      dots: draw a mark at each point, for values measured seldom.
    """

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Span:
    """A measured share with its interval, in a row of an interval chart.

    Attributes:
      value: the share, 0 to 1.
      low: lower end of its interval.
      high: upper end.
      style: CSS class that gives it its colour.
      note: what a reader sees who points at it.
    """

    value: float
    low: float
    high: float
    style: str
    note: str


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover the range, about `count` of them."""
    if not high > low:
        high = low + 1.0
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series], *, x: str, y: str, include: Sequence[float] = ()) -> str:
    """Lines over a common x axis from 0, with a legend.

    Args:
      title: what it shows, in words, for readers who do not see it.
      series: the lines; those without points are left out.
      x: name and unit of the x axis.
      y: name and unit of the y axis.
      include: values that the y axis reaches whatever the lines do.
    """
    series = [line for line in series if line.points]
    if not series:
        return f'<p class="none">{escape(title)}: nothing was recorded.</p>'
    end = max(px for line in series for px, _ in line.points) or 1
    ys = [*include, *(py for line in series for _, py in line.points)]
    marks = ticks(min(ys), max(ys))

    def at(px: float, py: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * px / end
        return round(across, 1), round(TOP + (FLOOR - TOP) * (marks[-1] - py) / (marks[-1] - marks[0]), 1)

    parts = [_open(title, WIDTH, HEIGHT), _axis_names(x, y)]
    parts += [_level(at(0, value)[1], _short(value)) for value in marks]
    parts += [_text("tick", at(value, 0)[0], FLOOR + 15, _short(value)) for value in ticks(0, end) if value <= end]
    for line in series:
        places = [at(*point) for point in line.points]
        path = " ".join(f"{across},{down}" for across, down in places)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if line.dots:
            for (across, down), (px, py) in zip(places, line.points, strict=True):
                note = escape(f"{line.name}, {x} {_short(px)}: {py:.4g}")
                mark = f'<circle class="dot {line.style}" cx="{across}" cy="{down}" r="3.5">'
                parts.append(f"{mark}<title>{note}</title></circle>")
    return "".join(parts) + "</svg>" + legend({line.name: line.style for line in series})


def interval_chart(title: str, rows: Mapping[str, Sequence[Span]], *, x: str) -> str:
    """Shares from 0 to 100 % with their intervals; a row for each label, its spans under one another.

    Args:
      title: what it shows, in words.
      rows: label -> its spans.
      x: name of the x axis.
    """
    left, right, width, tall, gap = 110, 24, 720, 15, 12
    bottom = TOP + sum(len(spans) * tall + gap for spans in rows.values())

    def at(share: float) -> float:
        return round(left + (width - left - right) * share, 1)

    parts = [_open(title, width, bottom + 38), _text("axis", at(0.5), bottom + 32, x)]
    for percent in range(0, 101, 20):
        across = at(percent / 100)
        parts.append(f'<line class="grid" x1="{across}" x2="{across}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text("tick", across, bottom + 15, f"{percent} %"))
    down = float(TOP)
    for label, spans in rows.items():
        parts.append(_text("label", left - 10, down + len(spans) * tall / 2 + 4, label, "end"))
        for span in spans:
            middle = down + tall / 2
            line = f'x1="{at(span.low)}" x2="{at(span.high)}" y1="{middle}" y2="{middle}"'
            dot = f'<circle class="dot {span.style}" cx="{at(span.value)}" cy="{middle}" r="4.5"/>'
            parts.append(f'<g><title>{escape(span.note)}</title><line class="span {span.style}" {line}/>{dot}</g>')
            down += tall
        down += gap
    return "".join(parts) + "</svg>"


def histogram(title: str, groups: Mapping[str, tuple[str, Mapping[int, float]]], *, x: str, y: str) -> str:
    """Shares by whole number, the groups' bars side by side.

    Args:
      title: what it shows, in words.
      groups: name -> (CSS class, number -> share).
      x: name of the numbers.
      y: name of the shares.
    """
    present = {number for _, shares in groups.values() for number in shares}
    numbers = range(min(present), max(present) + 1)
    marks = ticks(0, max(share for _, shares in groups.values() for share in shares.values()))
    slot = (WIDTH - LEFT - RIGHT) / len(numbers)
    wide = slot * 0.8 / len(groups)
    parts = [_open(title, WIDTH, HEIGHT), _axis_names(x, y)]
    parts += [_level(FLOOR - (FLOOR - TOP) * value / marks[-1], f"{value:.0%}") for value in marks]
    for place, number in enumerate(numbers):
        start = LEFT + slot * (place + 0.1)
        parts.append(_text("tick", start + slot * 0.4, FLOOR + 15, str(number)))
        for index, (name, (style, shares)) in enumerate(groups.items()):
            tall = (FLOOR - TOP) * shares.get(number, 0.0) / marks[-1]
            box = f'x="{start + index * wide:.1f}" y="{FLOOR - tall:.1f}" width="{wide - 1:.1f}" height="{tall:.1f}"'
            note = f"{escape(name)}, {number}: {shares.get(number, 0.0):.1%}"
            parts.append(f'<rect class="bar {style}" {box}><title>{note}</title></rect>')
    return "".join(parts) + "</svg>" + legend({name: style for name, (style, _) in groups.items()})


def legend(styles: Mapping[str, str]) -> str:
    """Names beside their colours."""
    keys = "".join(f'<span><i class="key {style}"></i>{escape(name)}</span>' for name, style in styles.items())
    return f'<div class="legend">{keys}</div>'


def _open(title: str, width: float, height: float) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}">'


def _text(style: str, across: float, down: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="{style}" x="{across:.1f}" y="{down:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _level(down: float, text: str) -> str:
    """A horizontal line of the grid with its number."""
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>'
    return line + _text("tick", LEFT - 6, down + 3.5, text, "end")


def _axis_names(x: str, y: str) -> str:
    turned = f'<g transform="translate(11 {(TOP + FLOOR) / 2}) rotate(-90)">{_text("axis", 0, 0, y)}</g>'
    return _text("axis", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x) + turned


def _short(value: float) -> str:
    return f"{value:g}" if abs(value) < 10_000 else f"{value:,.0f}"
