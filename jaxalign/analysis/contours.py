"""Lines of equal value on a grid, by marching squares."""

from __future__ import annotations

import numpy as np

Point = tuple[float, float]


def contour(x: np.ndarray, y: np.ndarray, values: np.ndarray, level: float) -> list[tuple[Point, Point]]:
    """The straight pieces of the line ``values = level``, one or two in each cell that it crosses.

    Args:
      x: places of the columns, ``[n]``.
      y: places of the rows, ``[m]``.
      values: ``[m, n]``. Cells with a corner that is not finite have no line.
      level: the value.
    """
    pieces = []
    above = values > level
    crossed = (
        (above[:-1, :-1] != above[:-1, 1:]) | (above[:-1, :-1] != above[1:, :-1]) | (above[1:, 1:] != above[1:, :-1])
    )
    for row, column in np.argwhere(crossed):
        corners = [(row, column), (row, column + 1), (row + 1, column + 1), (row + 1, column)]
        if not all(np.isfinite(values[corner]) for corner in corners):
            continue
        ends = []
        for one, other in zip(corners, corners[1:] + corners[:1], strict=True):
            if above[one] != above[other]:
                share = float((level - values[one]) / (values[other] - values[one]))
                (r0, c0), (r1, c1) = one, other
                ends.append((float(x[c0] + share * (x[c1] - x[c0])), float(y[r0] + share * (y[r1] - y[r0]))))
        if len(ends) == 4 and above[corners[0]] != (np.mean([values[corner] for corner in corners]) > level):
            ends = ends[1:] + ends[:1]  # a saddle: the middle is not of the first corner's side, which is cut off
        pieces += [(ends[i], ends[i + 1]) for i in range(0, len(ends), 2)]
    return pieces


def levels(values: np.ndarray, count: int = 8) -> list[float]:
    """About `count` values, ascending, with as much of the plane between each two, rounded to three digits."""
    finite = values[np.isfinite(values)]
    if not finite.size or finite.max() == finite.min():
        return []
    shares = np.linspace(0, 1, count + 2)[1:-1]
    rounded = {float(f"{value:.3g}") for value in np.quantile(finite, shares)}
    return sorted(value for value in rounded if finite.min() < value < finite.max())
