"""What attention over the row layout is, in plain XLA, and attention against a cache.

`dense` is the definition. All forms (`jaxalign.models.attention_forms`) share its signature, `AttentionForm`: query
``[R, T, H, C]``, key and value ``[R, T, G, C]``, the rows' ranges, and the window; result ``[R, T, H, C]``.
Which key a query sees::

    own_start[q] <= k <= q            its own segment up to itself
    prefix_start[q] <= k < prefix_end[q]   the prompt of its example
    positions[q] - positions[k] < window   and, where the layer has a sliding window, not too long ago

Scores and softmax are float32; head ``h`` reads key/value head ``h // (H/G)``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.models.layers import exact
from jaxalign.types import Rows

HIDDEN = -1e30
"""Score of a key that is not seen. Finite: a query that sees nothing would otherwise give nan."""


class Ranges(NamedTuple):
    """What of the row layout attention reads; every field ``[R, T]`` int32. See `jaxalign.types.Rows`."""

    positions: Int[Array, "R T"]
    own_start: Int[Array, "R T"]
    prefix_start: Int[Array, "R T"]
    prefix_end: Int[Array, "R T"]


Window = int | Int[Array, ""] | None


class AttentionForm(Protocol):
    """Attention over rows; `soft_cap` and `scale` as in `masked_attention`."""

    def __call__(
        self,
        query: Array,
        key: Array,
        value: Array,
        ranges: Ranges,
        window: Window,
        *,
        soft_cap: float | None = None,
        scale: float | None = None,
    ) -> Array:
        """The heads' outputs, ``[R, T, H, C]``."""
        ...


def ranges_of(rows: Rows) -> Ranges:
    """The ranges of a batch of rows."""
    return Ranges(rows.positions, rows.own_start, rows.prefix_start, rows.prefix_end)


def visible(
    queries: Ranges, index: Int[Array, " Q"], key_positions: Int[Array, "R T"], window: Window
) -> Bool[Array, "R Q T"]:
    """Which keys the queries at `index` in the row see; `queries` holds their ranges, ``[R, Q]`` each."""
    keys = jnp.arange(key_positions.shape[1], dtype=jnp.int32)
    own = (queries.own_start[:, :, None] <= keys) & (keys <= index[:, None])
    prefix = (queries.prefix_start[:, :, None] <= keys) & (keys < queries.prefix_end[:, :, None])
    seen = own | prefix
    if window is not None:
        seen &= queries.positions[:, :, None] - key_positions[:, None, :] < window
    return seen


def masked_attention(
    query: Float[Array, "R Q H C"],
    key: Float[Array, "R T G C"],
    value: Float[Array, "R T G C"],
    mask: Bool[Array, "R Q T"],
    *,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Float[Array, "R Q H C"]:
    """Softmax attention under an explicit mask; the definition of all other forms.

    Args:
      query: not yet scaled.
      key: one head for each group of ``H/G`` query heads.
      value: likewise.
      mask: which keys a query sees; at least one.
      soft_cap: of the scaled scores, ``c * tanh(s / c)`` (Gemma Team, 2024), or None.
      scale: of the scores; None = ``C ** -0.5``.
    """
    rows, length, heads, width = query.shape
    groups = key.shape[2]
    precision = exact(query.dtype)
    query = query.reshape(rows, length, groups, heads // groups, width)
    scores = jnp.einsum("rqghc,rkgc->rghqk", query, key, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * (width**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(mask[:, None, None], scores, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("rghqk,rkgc->rqghc", weights, value, precision=precision)
    return out.reshape(rows, length, heads, width)


def dense(
    query: Array,
    key: Array,
    value: Array,
    ranges: Ranges,
    window: Window,
    *,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Array:
    """All scores of a row at once, ``[R, H, T, T]``."""
    index = jnp.arange(query.shape[1], dtype=jnp.int32)
    mask = visible(ranges, index, ranges.positions, window)
    return masked_attention(query, key, value, mask, soft_cap=soft_cap, scale=scale)


class Cache(NamedTuple):
    """Keys and values of a batch of sequences, slot = position; ``[L, N, length, G, C]`` each."""

    key: Float[Array, "L N length G C"]
    value: Float[Array, "L N length G C"]


def write(
    cache: Cache, layer: Array, positions: Int[Array, " N"], key: Float[Array, "N G C"], value: Float[Array, "N G C"]
) -> Cache:
    """The cache with one more token of each sequence at its position."""
    sequences = jnp.arange(positions.shape[0])
    at = (layer, sequences, positions)
    return Cache(cache.key.at[at].set(key), cache.value.at[at].set(value))


def cached_attention(
    query: Float[Array, "N 1 H C"], cache: Cache, layer: Array, positions: Int[Array, " N"], window: Window
) -> Float[Array, "N 1 H C"]:
    """One query of each sequence against what its cache holds up to its position."""
    key = jax.lax.dynamic_index_in_dim(cache.key, layer, 0, keepdims=False)
    value = jax.lax.dynamic_index_in_dim(cache.value, layer, 0, keepdims=False)
    slots = jnp.arange(key.shape[1], dtype=jnp.int32)
    seen = slots <= positions[:, None]
    if window is not None:
        seen &= positions[:, None] - slots < window
    return masked_attention(query, key, value, seen[:, None, :])
