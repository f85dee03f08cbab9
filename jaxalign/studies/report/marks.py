"""What charts are drawn with: linear and logarithmic axes, ticks, and marks that differ not by colour alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_SHAPES = {
    "k0": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",  # a disc
    "k1": "M-3.6,-3.6H3.6V3.6H-3.6Z",  # a square
    "k2": "M0,-4.8L4.6,3.4H-4.6Z",  # a triangle
    "k3": "M0,-5L4.6,0L0,5L-4.6,0Z",  # a diamond
    "k4": "M0,4.8L4.6,-3.4H-4.6Z",  # a triangle upside down
    "k5": "M-1.6,-4.8H1.6V-1.6H4.8V1.6H1.6V4.8H-1.6V1.6H-4.8V-1.6H-1.6Z",  # a plus
    "k6": "M0,-4.8L4.6,-1.5L2.8,3.9H-2.8L-4.6,-1.5Z",  # a pentagon
    "k7": "M-4.6,-2.2H4.6V2.2H-4.6Z",  # a bar
    "kn": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0ZM-2,0a2,2 0 1,1 4,0a2,2 0 1,1 -4,0Z",  # a ring
}


@dataclass(frozen=True)
class Axis:
    """A range of numbers along a stretch of the picture.

    Attributes:
      low: number at `start`.
      high: number at `end`.
      start: place of `low`, in the picture's units.
      end: place of `high`.
      log: equal ratios are equal distances.
      marks: numbers that are named.
      share: numbers are shares and shown as percentages.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    marks: tuple[float, ...]
    share: bool = False

    def at(self, value: float) -> float:
        """The place of a number; of one outside, the nearest end."""
        turn: Callable[[float], float] = math.log if self.log else float
        low, high = turn(self.low), turn(self.high)
        part = (turn(max(value, self.low) if self.log else value) - low) / (high - low)
        return round(self.start + (self.end - self.start) * min(max(part, 0.0), 1.0), 1)

    def text(self, value: float) -> str:
        """A number as the axis shows it."""
        return short(100 * value if self.share else value)


def axis(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    share: bool = False,
    marks: Sequence[float] = (),
    count: int = 4,
) -> Axis:
    """An axis that holds the values.

    Args:
      values: numbers to hold, at least one; above 0 where `log`.
      start: place of its low end.
      end: place of its high end.
      log: equal ratios are equal distances.
      share: the numbers are shares.
      marks: numbers to name, instead of round ones.
      count: about how many round numbers are named.
    """
    low, high = min(values), max(values)
    if log:
        margin = max((high / low) ** 0.06, 1.05)
        return Axis(low / margin, high * margin, start, end, True, tuple(marks) or _powers(low, high), share)
    if marks:
        margin = (high - low) * 0.06 or 0.5
        return Axis(low - margin, high + margin, start, end, False, tuple(marks), share)
    named = ticks(low, high, count)
    return Axis(named[0], named[-1], start, end, False, tuple(named), share)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover the range, about `count` of them."""
    if not high > low:
        high = low + 1.0
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _powers(low: float, high: float) -> tuple[float, ...]:
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    inside = [power for power in powers if low * 0.999 <= power <= high * 1.001]
    if len(inside) > 1:
        return tuple(inside[:: max(1, len(inside) // 5)])
    finer = [m * power for power in (powers[0] / 10, *powers) for m in (1, 2, 5)]
    finer = [value for value in finer if low * 0.999 <= value <= high * 1.001]
    return tuple(finer) if len(finer) > 1 else (low, high)


def short(value: float) -> str:
    """A number on an axis: ``0.01``, ``250``, ``12k``."""
    if abs(value) >= 10_000:
        return f"{value / 1e6:.4g}M" if abs(value) >= 1e6 else f"{value / 1e3:.4g}k"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def mark(style: str, across: float, down: float, note: str = "") -> str:
    """A compared value's mark at a place; `note` is shown to readers who point at it."""
    title = f"<title>{escape(note)}</title>" if note else ""
    shape = _SHAPES.get(style, _SHAPES["k0"])
    return f'<path class="mark {style}" transform="translate({across:g} {down:g})" d="{shape}">{title}</path>'


def text(style: str, across: float, down: float, words: str, anchor: str = "middle") -> str:
    """A line of text."""
    return f'<text class="{style}" x="{across:.1f}" y="{down:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def stroke(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line."""
    return f'<line class="{style}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def key(styles: dict[str, str], *, lines: bool = True) -> str:
    """Names beside their marks: name -> CSS class."""
    items = []
    for name, style in styles.items():
        bar = f'<line class="line {style}" x1="1" x2="27" y1="8" y2="8"/>' if lines else ""
        svg = f'<svg class="sample" viewBox="0 0 28 16" aria-hidden="true">{bar}{mark(style, 14, 8)}</svg>'
        items.append(f"<span>{svg}{escape(name)}</span>")
    return f'<div class="legend">{"".join(items)}</div>'


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels near the wished ones, at least `gap` apart and inside the range where they fit."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    free = list(places)
    floor = low
    for i in order:
        free[i] = max(places[i], floor)
        floor = free[i] + gap
    ceiling = high
    for i in reversed(order):
        free[i] = min(free[i], ceiling)
        ceiling = free[i] - gap
    return free
