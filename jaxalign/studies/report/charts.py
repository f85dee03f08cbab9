"""Small multiples: panels side by side on common axes, with lines, interval bands and marks; rows of dots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from jaxalign.studies.report.marks import Axis, axis, mark, short, spread, stroke, text

Point = tuple[float, float]
WIDE, TALL = 330, 226
RIGHT, TOP, BOTTOM = 12, 24, 38


@dataclass(frozen=True)
class Curve:
    """A line of a panel.

    Attributes:
      name: of it, written at its end.
      points: ``(x, y)``, in the order in which they are joined.
      style: CSS class that gives it colour and mark.
      band: ``(x, low, high)`` of its interval; empty where unknown.
      spans: draw the interval as a bar at each point instead of a band; with `across`, also that of x.
      across: ``(low, high)`` of each point's x.
      marks: draw a mark at each point.
      joined: draw the line between them.
      notes: what readers see who point at a mark, one a point.
      tags: words beside the marks, one a point.
      shift: how far to the right of its place it is drawn, in the picture's units.
    """

    name: str
    points: Sequence[Point]
    style: str
    band: Sequence[tuple[float, float, float]] = ()
    spans: bool = False
    across: Sequence[tuple[float, float]] = ()
    marks: bool = True
    joined: bool = True
    notes: Sequence[str] = ()
    tags: Sequence[str] = ()
    shift: float = 0.0


@dataclass(frozen=True)
class Level:
    """A value that holds at every x, as a dashed line over the panel: a model before alignment.

    Attributes:
      name: of it.
      value: y.
      low: lower end of its interval, or the value.
      high: upper end.
      style: CSS class.
    """

    name: str
    value: float
    low: float
    high: float
    style: str


@dataclass(frozen=True)
class Panel:
    """One picture of several.

    Attributes:
      title: which setting it shows; may be empty.
      curves: its lines.
      levels: its horizontal lines.
    """

    title: str
    curves: Sequence[Curve]
    levels: Sequence[Level] = ()


def panels(
    title: str,
    pictures: Sequence[Panel],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    share_y: bool = False,
    marks_x: Sequence[float] = (),
    include: Sequence[float] = (),
    names: bool = True,
    size: tuple[int, int] = (WIDE, TALL),
) -> str:
    """Panels on common axes.

    Args:
      title: what they show, in words, for readers who do not see them.
      pictures: the panels; those without a point are left out.
      x: name and unit of the x axis.
      y: name and unit of the y axis.
      log_x: x is logarithmic.
      log_y: y is.
      share_y: y is a share, shown in per cent.
      marks_x: values of x to name.
      include: values that the y axis reaches in any case.
      names: write the curves' names at their ends.
      size: width and height of one, in its own units: letters are 11 high.
    """
    pictures = [p for p in (_finite(picture, log_x, log_y) for picture in pictures) if any(c.points for c in p.curves)]
    if not pictures:
        return f'<p class="none">{escape(title)}: nothing to draw.</p>'
    curves = [curve for picture in pictures for curve in picture.curves]
    xs = [px for curve in curves for px, _ in curve.points] + [e for c in curves for pair in c.across for e in pair]
    ys = [py for curve in curves for _, py in curve.points] + [e for c in curves for _, *pair in c.band for e in pair]
    ys += [end for picture in pictures for level in picture.levels for end in (level.low, level.high)] + [*include]
    ends = [*curves, *(level for picture in pictures for level in picture.levels)]
    longest = max(len(end.name) for end in ends) if names else 0
    wide, tall = size
    right = wide - RIGHT - min(7.0 * longest, 104)
    floor = tall - BOTTOM
    up = axis(ys, floor, TOP, share=share_y, log=log_y)
    left = 14 + 6.4 * max(len(up.text(value)) for value in up.marks)
    across = axis([v for v in xs if v > 0] if log_x else xs, left, right, log=log_x, marks=marks_x)
    drawn = [_panel(title, picture, across, up, x, y, names, size) for picture in pictures]
    return grid(drawn)


def grid(drawn: Sequence[str]) -> str:
    """Panels beside one another; few ones are larger."""
    size = {1: " one", 2: " two"}.get(len(drawn), "")
    return f'<div class="panels{size}">{"".join(drawn)}</div>'


def unwrapped(drawn: str) -> list[str]:
    """The panels of a drawn picture, to be put into another grid."""
    return [f'<div class="panel">{part}' for part in drawn.removesuffix("</div>").split('<div class="panel">')[1:]]


def _panel(
    title: str, picture: Panel, across: Axis, up: Axis, x: str, y: str, names: bool, size: tuple[int, int]
) -> str:
    whole = f"{title}: {picture.title}" if picture.title else title
    parts = [text("axis", 6, 12, y, "start")]
    for value in up.marks:
        parts += [stroke("grid", across.start, up.at(value), across.end, up.at(value))]
        parts += [text("tick", across.start - 6, up.at(value) + 3.5, up.text(value), "end")]
    for value in across.marks:
        parts.append(stroke("notch", across.at(value), up.start, across.at(value), up.start + 4))
    parts += [text("tick", place, up.start + 16, words) for place, words in _apart(across)]
    parts.append(text("axis", (across.start + across.end) / 2, up.start + 33, x))
    for level in picture.levels:
        top, bottom = up.at(level.high), up.at(level.low)
        box = f'x="{across.start:g}" y="{top:g}" width="{across.end - across.start:g}" height="{bottom - top:.1f}"'
        note = f"<title>{escape(level.name)}: {up.text(level.value)}</title>"
        parts.append(f'<g>{note}<rect class="band {level.style}" {box}/>')
        parts.append(
            stroke(f"line level {level.style}", across.start, up.at(level.value), across.end, up.at(level.value))
        )
        parts.append("</g>")
    parts += [part for curve in picture.curves for part in _curve(curve, across, up)]
    if names:
        parts += _names(picture, across, up)
    words = f'<p class="panel-title">{escape(picture.title)}</p>' if picture.title else ""
    svg = f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(whole, quote=True)}">'
    return f'<div class="panel">{words}{svg}{"".join(parts)}</svg></div>'


def _curve(curve: Curve, across: Axis, up: Axis) -> list[str]:
    places = [(across.at(px) + curve.shift, up.at(py)) for px, py in curve.points]
    parts = []
    if curve.band and curve.spans:
        for px, low, high in curve.band:
            at = across.at(px) + curve.shift
            parts.append(stroke(f"span {curve.style}", at, up.at(low), at, up.at(high)))
        for (_, down), (low, high) in zip(places, curve.across, strict=False):
            parts.append(stroke(f"span {curve.style}", across.at(low), down, across.at(high), down))
    elif len(curve.band) > 1:
        lower = [(across.at(px), up.at(low)) for px, low, _ in curve.band]
        upper = [(across.at(px), up.at(high)) for px, _, high in curve.band]
        edge = " ".join(f"{a:g},{b:g}" for a, b in [*upper, *reversed(lower)])
        parts.append(f'<polygon class="band {curve.style}" points="{edge}"/>')
    elif curve.band:
        (px, low, high) = curve.band[0]
        parts.append(stroke(f"span {curve.style}", across.at(px), up.at(low), across.at(px), up.at(high)))
    if curve.joined and len(places) > 1:
        path = " ".join(f"{a:g},{b:g}" for a, b in places)
        parts.append(f'<polyline class="line {curve.style}" points="{path}"/>')
    if curve.marks:
        for i, (a, b) in enumerate(places):
            px, py = curve.points[i]
            note = curve.notes[i] if i < len(curve.notes) else f"{curve.name}: {short(px)}, {up.text(py)}"
            parts.append(mark(curve.style, a, b, note))
            if curve.tags and curve.tags[i]:
                parts.append(text("tick", a + 7, b - 7, curve.tags[i], "start"))
    return parts


def _names(picture: Panel, across: Axis, up: Axis) -> list[str]:
    """Each line's name at its end, moved apart where they meet."""
    ends = [(curve.name, curve.style, up.at(curve.points[-1][1])) for curve in picture.curves if curve.points]
    ends += [(level.name, level.style, up.at(level.value)) for level in picture.levels]
    downs = spread([down for _, _, down in ends], 12, up.end + 2, up.start)
    return [
        text(f"name {style}", across.end + 6, down + 4, name if len(name) <= 16 else name[:15] + "…", "start")
        for (name, style, _), down in zip(ends, downs, strict=True)
    ]


def _apart(across: Axis) -> list[tuple[float, str]]:
    """The named numbers of an x axis whose texts do not run into one another, the first and last kept."""
    found: list[tuple[float, str]] = []
    places = [(across.at(value), across.text(value)) for value in across.marks]
    for i, (place, words) in enumerate(places):
        room = 3.2 * (len(words) + (len(found[-1][1]) if found else 0)) + 6
        if not found or place - found[-1][0] >= room:
            found.append((place, words))
        elif i == len(places) - 1 and len(found) > 1:
            found[-1] = (place, words)
    return found


def _finite(picture: Panel, log_x: bool, log_y: bool) -> Panel:
    """Without points that cannot be drawn."""

    def fine(*values: float) -> bool:
        return all(math.isfinite(value) for value in values)

    curves = []
    for curve in picture.curves:
        keep = [
            i
            for i, (px, py) in enumerate(curve.points)
            if fine(px, py) and (px > 0 or not log_x) and (py > 0 or not log_y)
        ]
        curves.append(
            replace(
                curve,
                points=[curve.points[i] for i in keep],
                across=[curve.across[i] for i in keep] if curve.across else (),
                notes=[curve.notes[i] for i in keep] if curve.notes else (),
                tags=[curve.tags[i] for i in keep] if curve.tags else (),
                band=[part for part in curve.band if fine(*part) and (part[0] > 0 or not log_x)],
            )
        )
    return replace(picture, curves=[curve for curve in curves if curve.points])


@dataclass(frozen=True)
class Dot:
    """A value in a row of dots.

    Attributes:
      value: the number.
      style: CSS class that gives it colour and mark.
      note: what a reader sees who points at it.
      low: lower end of its interval; None where unknown.
      high: upper end.
    """

    value: float
    style: str
    note: str
    low: float | None = None
    high: float | None = None


def dot_rows(
    title: str, rows: Mapping[str, Sequence[Dot]], *, x: str, share: bool = False, include: Sequence[float] = ()
) -> str:
    """Dots along a common axis, a row for each label: how several models do in several categories.

    Args:
      title: what it shows, in words.
      rows: label -> its dots.
      x: name and unit of the axis.
      share: the values are shares.
      include: values that the axis reaches in any case.
    """
    wide, tall, left = WIDE, 26, 16 + 6.4 * max((len(label[:24]) for label in rows), default=0)
    ends = [e for dots in rows.values() for d in dots for e in (d.value, d.low, d.high) if e is not None]
    if not ends:
        return f'<p class="none">{escape(title)}: nothing to draw.</p>'
    floor = TOP + tall * len(rows)
    across = axis([*ends, *include], left, wide - 16, share=share)
    parts = []
    for value in across.marks:
        parts.append(stroke("grid", across.at(value), TOP - 6, across.at(value), floor))
        parts.append(text("tick", across.at(value), floor + 15, across.text(value)))
    parts.append(text("axis", (left + across.end) / 2, floor + 32, x))
    for i, (label, dots) in enumerate(rows.items()):
        middle = TOP + tall * (i + 0.5) - 3
        parts.append(text("label", left - 10, middle + 4, label if len(label) <= 24 else label[:23] + "…", "end"))
        if dots:
            places = [across.at(dot.value) for dot in dots]
            parts.append(stroke("reach", min(places), middle, max(places), middle))
        for dot in dots:
            if dot.low is not None and dot.high is not None:
                parts.append(stroke(f"span {dot.style}", across.at(dot.low), middle, across.at(dot.high), middle))
        parts += [mark(dot.style, across.at(dot.value), middle, dot.note) for dot in dots]
    svg = f'<svg viewBox="0 0 {wide} {floor + 40}" role="img" aria-label="{escape(title, quote=True)}">'
    return f"{svg}{''.join(parts)}</svg>"


def forest(value: float, low: float | None, high: float | None, scale: Axis, style: str, *, zero: bool = False) -> str:
    """A value and its interval as a small picture for a table's cell."""
    parts = [stroke("zero", scale.at(0), 1, scale.at(0), 17)] if zero else []
    if low is not None and high is not None:
        parts.append(stroke(f"span {style}", scale.at(low), 9, scale.at(high), 9))
    parts.append(mark(style, scale.at(value), 9))
    return f'<svg class="forest" viewBox="0 0 140 18" aria-hidden="true">{"".join(parts)}</svg>'
