"""A policy's log-probabilities of everything that is scored in a batch of rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.logprobs import TokenScores, completion_sums, token_scores
from jaxalign.types import Rows, Variables


class Scores(NamedTuple):
    """
    Attributes:
      tokens: per scored token, ``[R, S]``.
      sums: summed log-probability of each completion, nats, ``[R, E, K]``. Carries the gradient.
    """

    tokens: TokenScores
    sums: Float[Array, "R E K"]


def score(policy: Any, variables: Variables, rows: Rows, *, statistics: bool = False) -> Scores:
    """Runs the policy over the rows and scores their completions.

    Args:
      policy: a `jaxalign.models.policy.Policy`.
      variables: its variables.
      rows: the batch.
      statistics: also the per-token entropy, correctness and mean logit.
    """
    hidden = policy.hidden(variables, rows)
    tokens = token_scores(
        hidden,
        policy.head(variables),
        rows.score_source,
        rows.score_target,
        soft_cap=policy.soft_cap,
        statistics=statistics,
    )
    return Scores(tokens, sum_completions(tokens.logps, rows))


def sum_completions(values: Float[Array, "R S"], rows: Rows) -> Float[Array, "R E K"]:
    """Sums a per-token value over each completion."""
    return completion_sums(values, rows.score_slot, rows.example_mask.shape[1], rows.completions)


def completion_lengths(rows: Rows) -> Float[Array, "R E K"]:
    """Scored tokens of each completion."""
    return sum_completions(jnp.ones(rows.score_slot.shape, jnp.float32), rows)
