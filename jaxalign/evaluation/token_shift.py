"""Which tokens a policy writes more or less often than its reference: log-ratios by entry of the vocabulary.

``d_t = log p(y_t | x, y_<t) - log p_ref(y_t | x, y_<t)`` of every token of given completions, averaged over all places
where the same token stands. Strong methods and small betas move some tokens, the end token among them, by many nats.

Source: arXiv 2407.13709, section 4 and figure 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.evaluation.outcome import Metric

MIN_COUNT = 100
"""Places where a token must stand for its mean to be ranked: the paper's."""
TOP = 10
"""Tokens listed: the paper's."""
BINS = 48
"""Most bins of a histogram."""


@dataclass(frozen=True)
class Scored:
    """A completion under policy and reference, ``[C]`` a token.

    Attributes:
      tokens: ids.
      policy: log-probability of each, nats.
      reference: the same under the reference.
      ended: its last token is one that ends an answer, not one where it was cut.
    """

    tokens: np.ndarray
    policy: np.ndarray
    reference: np.ndarray
    ended: bool

    @property
    def shift(self) -> np.ndarray:
        """``d_t``, float64."""
        return self.policy.astype(np.float64) - self.reference


@dataclass(frozen=True)
class TokenShift:
    """Mean log-ratios by token, in the order of the ids.

    Attributes:
      ids: the tokens that occur, ``[n]``.
      counts: places where each stands.
      means: mean of ``d_t`` over these, nats.
    """

    ids: np.ndarray
    counts: np.ndarray
    means: np.ndarray

    def often(self, min_count: int) -> TokenShift:
        """The tokens that stand in at least so many places."""
        kept = self.counts >= min_count
        return TokenShift(self.ids[kept], self.counts[kept], self.means[kept])

    def largest(self, number: int) -> TokenShift:
        """The tokens with the largest means, up or down; of equal ones those with the lower id."""
        order = np.argsort(-np.abs(self.means), kind="stable")[:number]
        return TokenShift(self.ids[order], self.counts[order], self.means[order])

    def histogram(self, bins: int = BINS) -> dict[str, list[float]]:
        """How many tokens have a mean in each bin: ``edges [k + 1]`` (nats), ``counts [k]``.

        The bins' width is 1, 2 or 5 times a power of ten and their edges are multiples of it, so that histograms of
        different models fit on one another.
        """
        edges = _edges(self.means, bins)
        return {"edges": edges.tolist(), "counts": np.histogram(self.means, edges)[0].tolist()}


def by_token(completions: Sequence[Scored]) -> TokenShift:
    """Averages the log-ratios of each token over all its places."""
    if not completions:
        return TokenShift(*(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float64)))
    tokens = np.concatenate([np.asarray(each.tokens, np.int64) for each in completions])
    ids, place, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    sums = np.bincount(place, weights=np.concatenate([each.shift for each in completions]), minlength=len(ids))
    return TokenShift(ids, counts, sums / counts)


def shift_metrics(examples: Sequence[Mapping[str, Scored]], *, min_count: int = MIN_COUNT) -> dict[str, Metric]:
    """How far tokens moved.

    ========================  =========================================================================================
    ``shift/NAME``            mean of ``d_t`` over a completion, then over the completions NAME, nats per token
    ``by_token/mean_abs``     mean size of the tokens' mean log-ratios, over those that stand in `min_count` places
    ``by_token/lowest``       the lowest of these means, and ``by_token/highest`` the highest
    ========================  =========================================================================================

    Args:
      examples: completions by name (``chosen``, ``rejected``).
      min_count: see above.
    """
    metrics = {}
    for name in _names(examples):
        values = [float(each[name].shift.mean()) for each in examples if name in each]
        metrics[f"shift/{name}"] = Metric(
            value=sum(values) / len(values), n=len(values), values=values, unit="nats/token"
        )
    found = by_token([scored for each in examples for scored in each.values()]).often(min_count)
    if len(found.ids):
        sizes = np.abs(found.means)
        spread = float(sizes.std(ddof=1) / math.sqrt(len(sizes))) if len(sizes) > 1 else None
        metrics |= {
            "by_token/mean_abs": Metric(value=float(sizes.mean()), n=len(sizes), stderr=spread, unit="nats"),
            "by_token/lowest": Metric(value=float(found.means.min()), n=len(sizes), unit="nats"),
            "by_token/highest": Metric(value=float(found.means.max()), n=len(sizes), unit="nats"),
        }
    return metrics


def shift_details(
    examples: Sequence[Mapping[str, Scored]],
    text_of: Callable[[int], str],
    *,
    min_count: int = MIN_COUNT,
    top: int = TOP,
) -> dict[str, Any]:
    """What the pictures are drawn from, of all completions and in ``groups`` of those of each name.

    ``histogram`` counts tokens by their mean log-ratio, all that occur. ``top_tokens`` lists those with the largest
    means among the ones that stand in `min_count` places: ``id``, ``token``, ``count``, ``mean``.
    """

    def told(completions: Sequence[Scored]) -> dict[str, Any]:
        found = by_token(completions)
        first = found.often(min_count).largest(top)
        rows = zip(first.ids.tolist(), first.counts.tolist(), first.means.tolist(), strict=True)
        return {
            "histogram": found.histogram(),
            "top_tokens": [{"id": i, "token": text_of(i), "count": count, "mean": mean} for i, count, mean in rows],
            "tokens": int(found.counts.sum()),
            "ids": len(found.ids),
        }

    groups = {name: told([each[name] for each in examples if name in each]) for name in _names(examples)}
    return {**told([scored for each in examples for scored in each.values()]), "groups": groups}


def _names(examples: Sequence[Mapping[str, Scored]]) -> list[str]:
    return list(dict.fromkeys(name for each in examples for name in each))


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    width = next(
        factor * 10.0**power
        for power in range(-3, 12)
        for factor in (1, 2, 5)
        if (high - low) / (factor * 10.0**power) <= bins - 2
    )
    first, last = math.floor(low / width), math.floor(high / width) + 1
    return np.arange(first, last + 1) * width
