"""How measured numbers read, on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def percent(value: float) -> str:
    """A share: ``43.5 %``, or ``65 %`` when it is a whole number."""
    return f"{100 * value:.1f} %".replace(".0 %", " %")


def share(interval: Sequence[float]) -> str:
    """A share with its interval: ``43.5 % [41.0, 46.1]``."""
    value, low, high = interval
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def points(interval: Sequence[float]) -> str:
    """A difference of shares with its interval, in percentage points: ``+30.2 points [+27.0, +33.4]``."""
    value, low, high = interval
    return f"{100 * value:+z.1f} points [{100 * low:+z.1f}, {100 * high:+z.1f}]"


def number(interval: Sequence[float]) -> str:
    """A mean with its interval: ``4.52 [4.31, 4.73]``."""
    value, low, high = interval
    return f"{value:z.2f} [{low:z.2f}, {high:z.2f}]"
