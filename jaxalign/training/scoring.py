"""A policy's log-probabilities of everything that is scored in a batch of rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.logprobs import Distribution, TokenScores, completion_sums, token_scores
from jaxalign.types import Rows, Variables


class Scores(NamedTuple):
    """
    Attributes:
      tokens: per scored token, ``[R, S]``.
      sums: summed log-probability of each completion, nats, ``[R, E, K]``. Carries the gradient.
    """

    tokens: TokenScores
    sums: Float[Array, "R E K"]


def score(
    policy: Any,
    variables: Variables,
    rows: Rows,
    *,
    hidden: Float[Array, "R T D"] | None = None,
    statistics: Collection[str] = (),
    entropy_gradient: bool = False,
    reference: Distribution | None = None,
) -> Scores:
    """Runs the policy over the rows and scores their completions.

    Args:
      policy: a `jaxalign.models.policy.Policy`.
      variables: its variables.
      rows: the batch.
      hidden: the policy's states of these rows, where they are known already.
      statistics: as for `jaxalign.logprobs.token_scores`.
      entropy_gradient: likewise.
      reference: likewise.
    """
    tokens = token_scores(
        policy.hidden(variables, rows) if hidden is None else hidden,
        policy.head(variables),
        rows.score_source,
        rows.score_target,
        soft_cap=policy.soft_cap,
        statistics=statistics,
        entropy_gradient=entropy_gradient,
        reference=reference,
    )
    return Scores(tokens, sum_completions(tokens.logps, rows))


def sum_completions(values: Float[Array, "R S"], rows: Rows) -> Float[Array, "R E K"]:
    """Sums a per-token value over each completion."""
    return completion_sums(values, rows.score_slot, rows.example_mask.shape[1], rows.completions)


def completion_lengths(rows: Rows) -> Float[Array, "R E K"]:
    """Scored tokens of each completion."""
    return sum_completions(jnp.ones(rows.score_slot.shape, jnp.float32), rows)


def by_completion(values: Array, lengths: Float[Array, "R E K"], empty: float = 0) -> Array:
    """Per-token values, completion by completion: ``[R, S, ...] -> [R, E, K, S, ...]``, `empty` behind the last token.

    The scored slots of a row hold its completions one after another, so each is a slice, and S is room for any.

    Args:
      values: per scored token.
      lengths: from `completion_lengths`.
      empty: what stands where a completion has no token.
    """
    rows, scored = values.shape[:2]
    counts = lengths.reshape(rows, -1).astype(jnp.int32)
    starts = jnp.cumsum(counts, axis=1) - counts
    index = jnp.arange(scored)
    place = jnp.minimum(starts[..., None] + index, scored - 1)
    taken = jnp.take_along_axis(values, place.reshape(rows, -1, *[1] * (values.ndim - 2)), axis=1)
    taken = taken.reshape(*lengths.shape, scored, *values.shape[2:])
    there = (index < counts[..., None]).reshape(*lengths.shape, scored, *[1] * (values.ndim - 2))
    return jnp.where(there, taken, jnp.asarray(empty, values.dtype))
