"""The words that every floor shares: the row layout, pairs, and what a loss returns.

Axis letters, the same in every file: ``B`` examples, ``K`` completions per prompt, ``R`` rows, ``T`` tokens in a row,
``S`` scored tokens in a row, ``E`` examples in a row, ``D`` model width, ``V`` vocabulary. Log-probabilities are in
nats and float32. Masks are bool, True = counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

T = TypeVar("T")

Variables = Mapping[str, Any]
"""A nested dict of arrays: ``{"params": {...}}``, plus further collections (adapters)."""


class Pair(NamedTuple, Generic[T]):
    """Something known of both completions of a preference pair."""

    chosen: T
    rejected: T


class Weighted(NamedTuple):
    """A per-example metric that counts only some examples (KTO's ``rewards/chosen`` counts the desirable ones)."""

    values: Float[Array, " B"]
    weights: Float[Array, " B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossOutput:
    """What an objective returns. Nothing is averaged yet: sums go up, one division comes at the end.

    Attributes:
      losses: the loss of each example, ``[B]`` float32.
      weights: how much each example counts, ``[B]``. The batch's loss is ``sum(weights * losses) / sum(weights)``;
        the train step multiplies the weights by the example mask first.
      metrics: per-example values by name (TRL's names where TRL has one), ``[B]`` each or `Weighted`. They carry no
        gradient.
      state: the method's running statistics after this batch, for a method that keeps any. They carry no gradient.
    """

    losses: Float[Array, " B"]
    weights: Float[Array, " B"]
    metrics: Mapping[str, Float[Array, " B"] | Weighted]
    state: Any = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The only batch layout there is: R rows of T tokens, up to E examples a row, K completions behind each prompt.

    ::

      row:  | prompt a | chosen a | rejected a | prompt b | chosen b | rejected b | pad |

    A token sees its own segment up to itself, ``own_start <= key <= query``, and the prompt of its example,
    ``prefix_start <= key < prefix_end``. A padding token sees only itself. Completions continue the rotary positions
    of their prompt, so each is computed as if it alone followed the prompt.

    Attributes:
      tokens: token ids, ``[R, T]`` int32.
      positions: rotary positions, ``[R, T]`` int32.
      own_start: index in the row where the token's own segment starts, ``[R, T]`` int32.
      prefix_start: first index of the prompt that the token also sees, ``[R, T]`` int32.
      prefix_end: one past its last index; equal to ``prefix_start`` for prompt and padding tokens, ``[R, T]`` int32.
      score_source: index in the row of the hidden state that predicts the scored token, ``[R, S]`` int32.
      score_target: the token predicted, ``[R, S]`` int32.
      score_slot: which of the row's ``E*K`` completions it belongs to, ``e*K + k``; ``E*K`` = none, ``[R, S]`` int32.
      example_mask: False where the row has fewer examples, ``[R, E]`` bool.
      columns: what else rides along, each with leading axis R: ``desirable [R, E]``, ``reference_logps [R, S]``
        (per token), ``reference_sums [R, E, K]`` (references with a tokenizer of their own), ...
      completions: K, static.
    """

    tokens: Int[Array, "R T"]
    positions: Int[Array, "R T"]
    own_start: Int[Array, "R T"]
    prefix_start: Int[Array, "R T"]
    prefix_end: Int[Array, "R T"]
    score_source: Int[Array, "R S"]
    score_target: Int[Array, "R S"]
    score_slot: Int[Array, "R S"]
    example_mask: Bool[Array, "R E"]
    columns: Mapping[str, Array] = field(default_factory=dict)
    completions: int = field(default=1, metadata={"static": True})


def causal_rows(tokens: Int[Array, "R T"]) -> Rows:
    """Plain causal sequences as rows, one a row, nothing scored: the simplest case of the layout."""
    tokens = jnp.asarray(tokens, jnp.int32)
    rows, length = tokens.shape
    zeros = jnp.zeros_like(tokens)
    none = jnp.zeros((rows, 0), jnp.int32)
    return Rows(
        tokens=tokens,
        positions=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length)),
        own_start=zeros,
        prefix_start=zeros,
        prefix_end=zeros,
        score_source=none,
        score_target=none,
        score_slot=none,
        example_mask=jnp.ones((rows, 1), bool),
    )
