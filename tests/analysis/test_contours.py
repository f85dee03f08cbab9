"""Contours: on planes and circles, whose lines are known."""

from __future__ import annotations

import numpy as np

from jaxalign.analysis.contours import contour, levels


def grid(points: int = 21) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axis = np.linspace(-1, 1, points)
    return axis, *np.meshgrid(axis, axis)


def test_the_line_of_a_plane_is_exact():
    axis, x, y = grid()
    pieces = contour(axis, axis, 2 * x + y, 0.33)
    ends = np.array(pieces).reshape(-1, 2)
    assert np.abs(2 * ends[:, 0] + ends[:, 1] - 0.33).max() < 1e-12
    length = sum(np.hypot(a[0] - b[0], a[1] - b[1]) for a, b in pieces)
    assert abs(length - 2 * np.sqrt(1.25)) < 1e-9  # from the top of the square to its bottom


def test_the_line_of_a_cone_is_a_circle():
    axis, x, y = grid(81)
    pieces = contour(axis, axis, np.hypot(x, y), 0.6)
    ends = np.array(pieces).reshape(-1, 2)
    assert np.abs(np.hypot(*ends.T) - 0.6).max() < 1e-3
    length = sum(np.hypot(a[0] - b[0], a[1] - b[1]) for a, b in pieces)
    assert abs(length - 2 * np.pi * 0.6) < 0.01


def test_a_saddle_is_not_crossed():
    """Of x * y around 0 the pieces stay within one quadrant, or in the middle cell turn with the sign of the level."""
    axis = np.array([-1.0, 1.0])
    values = np.array([[1.0, -1.0], [-1.0, 1.0]])
    for level in (0.5, -0.5):
        for one, other in contour(axis, axis, values, level):
            middle = (one[0] + other[0]) / 2 * (one[1] + other[1]) / 2
            assert np.sign(middle) == np.sign(level)


def test_no_line_through_what_is_not_finite():
    axis, x, _ = grid(5)
    values = x.copy()
    values[0, 2] = np.inf
    values[1, 2] = np.nan
    pieces = contour(axis, axis, values, 0.1)
    assert pieces
    assert np.isfinite(np.array(pieces)).all()


def test_levels_share_the_plane():
    _, x, _ = grid()
    found = levels(np.exp(3 * x), 4)
    assert found == sorted(found)
    shares = [float((np.exp(3 * x) < level).mean()) for level in found]
    assert np.abs(np.array(shares) - [0.2, 0.4, 0.6, 0.8]).max() < 0.05
    assert levels(np.ones((3, 3))) == []
    assert levels(np.full((2, 2), np.nan)) == []
