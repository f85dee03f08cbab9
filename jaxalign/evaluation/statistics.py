"""Intervals of measured means: nothing is reported without one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""
MOST_DRAWN = 2000
"""Items beyond which the hierarchical bootstrap gives way to its normal limit."""


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


class Paired(NamedTuple):
    """A difference with its 95 % interval and the p-value of its being zero.

    The two agree: the interval leaves zero out just when p < 0.05.
    """

    value: float
    low: float
    high: float
    p: float


def seeds_and_items(
    values: Sequence[Sequence[float]] | np.ndarray, *, seed: int = 0, resamples: int = 4000
) -> Paired | None:
    """A mean over seeds and items, by a hierarchical bootstrap: seeds are drawn, then items.

    Every seed answers the same items, so one draw of items holds for all the seeds drawn (the pigeonhole bootstrap of
    Owen, 2007): drawing items anew for each seed would count them as seeds x items different ones. The spread of a few
    seeds is too small twice over, and both are mended: deviations of seeds are stretched by ``sqrt(S / (S - 1))`` (Rao
    and Wu, 1988), and quantiles by Student's t over the normal, with Satterthwaite's degrees of freedom of the two
    components. With one seed the interval covers the choice of items alone. Means of very many items are normal; then
    nothing is drawn, and the interval is Student's.

    Args:
      values: ``[S, N]``, a row for each seed; of two models' differences it tells the paired difference.
      seed: of the resampling.
      resamples: number of resamples.

    Returns:
      The mean, its interval, and p for the mean being zero: from the same resamples, and beyond their reach from
      Student's tail. None for one value alone, which tells nothing of its spread.

    Raises:
      ValueError: there are no values, or some are not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"got values of shape {array.shape}, expected finite [S, N] with S, N >= 1")
    seeds, items = array.shape
    mean = float(array.mean())
    if array.size == 1:
        return None
    if (array == array[0, 0]).all():
        return Paired(mean, mean, mean, _sign_p(mean, max(seeds, items)))
    stretch = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    by_seed = float(array.mean(1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    by_item = float(array.mean(0).var(ddof=1)) / items if items > 1 else 0.0
    freedom = _satterthwaite(((by_seed, seeds - 1), (by_item, items - 1)))
    if items > MOST_DRAWN:
        return _student(mean, math.sqrt(by_seed + by_item), freedom, seeds * items)
    # A stretched weight of a row is 1/S plus the stretched deviation of its draw from 1/S.
    rows = 1 / seeds + stretch * (_draws(seeds, seed, resamples) - 1 / seeds)
    columns = _draws(items, seed + 1, resamples)
    deviations = np.sort(np.einsum("rs,sr->r", rows, array @ columns.T) - mean)
    low, high = _ends(deviations, freedom, 0.05)
    return Paired(mean, mean + low, mean + high, _p_value(mean, deviations, freedom))


def seeds_alone(means: Sequence[float], stderrs: Sequence[float | None] = ()) -> Paired | None:
    """A mean over seeds whose items' values are not known.

    The variance is that of the seeds' means, plus that of the items where their standard errors are known; the
    interval is Student's, with Satterthwaite's degrees of freedom. None where nothing tells the spread: one seed
    without a standard error.

    Args:
      means: a number for each seed, at least one.
      stderrs: standard errors over the items, as many; None where unknown. Items are the same for all seeds, so more
        seeds do not make their part smaller.
    """
    array = np.asarray(means, np.float64)
    known = [stderr**2 for stderr in stderrs if stderr is not None]
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"got {list(means)}, expected finite numbers, at least one")
    seeds = array.size
    by_seed = float(array.var(ddof=1)) / seeds if seeds > 1 else 0.0
    by_item = sum(known) / len(known) if known else 0.0
    if seeds == 1 and not known:
        return None
    freedom = _satterthwaite(((by_seed, seeds - 1), (by_item, math.inf)))
    return _student(float(array.mean()), math.sqrt(by_seed + by_item), freedom, seeds)


def by_components(mean: float, by_seed: float, freedom: float, by_item: float, items: int) -> Paired:
    """A mean with its variance given in components; the interval is Student's.

    For a table of comparisons whose seeds' variance was estimated from all of them: a few seeds that agree by luck
    make one comparison look sure, and among many comparisons some always do.

    Args:
      mean: over seeds and items.
      by_seed: variance of the mean by the choice of seeds.
      freedom: degrees of freedom of its estimate.
      by_item: variance of the mean by the choice of items.
      items: number of items; 0 where `by_item` is known from elsewhere.
    """
    components = ((by_seed, max(freedom, 1.0)), (by_item, items - 1 if items > 1 else math.inf))
    return _student(mean, math.sqrt(by_seed + by_item), _satterthwaite(components), max(items, 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm, 1979), in the order given.

    Rejecting those below 0.05 keeps the chance of any false rejection among all of them at most 5 %, whatever their
    dependence.
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    adjusted = [0.0] * count
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _student(mean: float, error: float, freedom: float, count: int) -> Paired:
    """A mean of `count` values with its standard error."""
    if error == 0:
        return Paired(mean, mean, mean, _sign_p(mean, count))
    from scipy.special import stdtr

    half = _quantile(freedom, 0.05) * error
    return Paired(mean, mean - half, mean + half, 2 * float(stdtr(min(freedom, 1e9), -abs(mean) / error)))


def _satterthwaite(components: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances: ``(variance, degrees of freedom)`` each."""
    total = sum(variance for variance, _ in components)
    spread = sum(variance**2 / freedom for variance, freedom in components if variance > 0)
    return total**2 / spread if spread > 0 else math.inf


def _quantile(freedom: float, level: float) -> float:
    """Student's two-sided quantile; the normal's for very many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(min(freedom, 1e9), 1 - level / 2))


def _ends(deviations: np.ndarray, freedom: float, level: float) -> tuple[float, float]:
    """The interval's ends as deviations from the mean: quantiles of the resamples, widened by t over normal."""
    widen = _quantile(freedom, level) / _quantile(math.inf, level)
    return min(_at(deviations, level / 2), 0.0) * widen, max(_at(deviations, 1 - level / 2), 0.0) * widen


def _at(ascending: np.ndarray, share: float) -> float:
    """`np.quantile` of sorted values, without its cost: a p-value asks for sixty of them."""
    place = share * (ascending.size - 1)
    before = min(int(place), ascending.size - 2)
    return float(ascending[before] + (place - before) * (ascending[before + 1] - ascending[before]))


def _sign_p(mean: float, count: int) -> float:
    """That so many values, all equal, would have one sign by chance."""
    return 1.0 if mean == 0 else 2.0 ** (1 - min(count, 1000))


@lru_cache(maxsize=16)
def _draws(count: int, seed: int, resamples: int) -> np.ndarray:
    """How often each of `count` things is drawn, as weights ``[resamples, count]``; the same for every comparison."""
    counts = np.random.default_rng((seed, count)).multinomial(count, np.full(count, 1 / count), size=resamples)
    return counts / count


def _p_value(mean: float, deviations: np.ndarray, freedom: float) -> float:
    """The level at which the interval just reaches zero, by bisection."""

    def reaches(level: float) -> bool:
        low, high = _ends(deviations, freedom, level)
        return mean + low <= 0 <= mean + high

    least, most = 2 / (deviations.size + 1), 1.0
    if mean == 0:
        return 1.0
    if not reaches(least):
        from scipy.special import stdtr

        return min(least, 2 * float(stdtr(min(freedom, 1e9), -abs(mean) / deviations.std())))
    for _ in range(30):
        middle = (least + most) / 2
        least, most = (middle, most) if reaches(middle) else (least, middle)
    return most
