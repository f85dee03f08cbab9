"""Intervals of measured means: nothing is reported without one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


class Interval(NamedTuple):
    """A measured value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, total: int) -> Interval:
    """A proportion with its 95 % Wilson score interval (Wilson, 1927), which stays inside 0 and 1.

    Args:
      successes: how many counted, 0 to `total`.
      total: of how many independent trials, at least 1.

    Raises:
      ValueError: the counts are not such numbers.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"got {successes} of {total}, expected 0 <= successes <= total and total >= 1")
    share, spread = successes / total, Z95**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    # At 0 and at `total` the ends are exact; rounding must not move them past the share.
    return Interval(share, min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share))


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, seed: int = 0, resamples: int = 4000) -> Interval:
    """A mean with its 95 % percentile bootstrap interval (Efron, 1979).

    For the difference of two models measured on the same questions, give the per-question differences: the interval
    is then that of the paired difference.

    Args:
      values: ``[n]``, independent of one another, at least one.
      seed: of the resampling.
      resamples: number of resamples.

    Raises:
      ValueError: there are no values.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"got values of shape {array.shape}, expected [n] with n >= 1")
    rng = np.random.default_rng(seed)
    # How often each value occurs in a resample is multinomial; so no [resamples, n] index array of draws is sorted.
    counts = rng.multinomial(array.size, np.full(array.size, 1 / array.size), size=resamples)
    means = counts @ array / array.size
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high))
