"""Attention over the row layout, in plain XLA: a dense form for short rows and a chunked form for long ones.

All forms share one signature, `AttentionForm`, so that a kernel can take their place: query ``[R, T, H, C]``, key and
value ``[R, T, G, C]``, the rows' ranges, and the window; result ``[R, T, H, C]``. Which key a query sees::

    own_start[q] <= k <= q            its own segment up to itself
    prefix_start[q] <= k < prefix_end[q]   the prompt of its example
    positions[q] - positions[k] < window   and, where the layer has a sliding window, not too long ago

Scores and softmax are float32; head ``h`` reads key/value head ``h // (H/G)``, which is never repeated in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.models.layers import exact
from jaxalign.types import Rows

DENSE_LENGTH = 1024
"""Longest row, in tokens, for which `attend` takes the dense form: its scores are ``[R, H, T, T]``."""
QUERY_BLOCK = 256
KEY_BANDS = 4
HIDDEN = -1e30
"""Score of a key that is not seen. Finite: a query that sees nothing would otherwise give nan."""


class Ranges(NamedTuple):
    """What of the row layout attention reads; every field ``[R, T]`` int32. See `jaxalign.types.Rows`."""

    positions: Int[Array, "R T"]
    own_start: Int[Array, "R T"]
    prefix_start: Int[Array, "R T"]
    prefix_end: Int[Array, "R T"]


Window = int | Int[Array, ""] | None
AttentionForm = Callable[[Array, Array, Array, Ranges, Window], Array]


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
) -> Float[Array, "R Q H C"]:
    """Softmax attention under an explicit mask; the definition of all other forms."""
    rows, length, heads, width = query.shape
    groups = key.shape[2]
    precision = exact(query.dtype)
    query = query.reshape(rows, length, groups, heads // groups, width)
    scores = jnp.einsum("rqghc,rkgc->rghqk", query, key, precision=precision, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * width**-0.5, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("rghqk,rkgc->rqghc", weights, value, precision=precision)
    return out.reshape(rows, length, heads, width)


def dense(query: Array, key: Array, value: Array, ranges: Ranges, window: Window) -> Array:
    """All scores of a row at once, ``[R, H, T, T]``."""
    index = jnp.arange(query.shape[1], dtype=jnp.int32)
    return masked_attention(query, key, value, visible(ranges, index, ranges.positions, window))


def chunked(query: Array, key: Array, value: Array, ranges: Ranges, window: Window) -> Array:
    """Scores of `QUERY_BLOCK` queries at a time, computed again in the backward pass; never ``[R, H, T, T]``.

    The row is cut into `KEY_BANDS` bands of blocks, and a band is shown only the keys up to its own end, since no
    token sees a later one: with 4 bands 5/8 of the full square is computed.
    """
    length = query.shape[1]
    blocks = -(-length // QUERY_BLOCK)
    bands = min(KEY_BANDS, blocks)
    out, start = [], 0
    for band in range(bands):
        count = (blocks * (band + 1)) // bands - start // QUERY_BLOCK
        stop = start + count * QUERY_BLOCK
        end = min(stop, length)
        banded = _band(query, key[:, :end], value[:, :end], ranges, window, start, count)
        out.append(banded[:, : end - start])
        start = stop
    return jnp.concatenate(out, axis=1)


def _band(query: Array, key: Array, value: Array, ranges: Ranges, window: Window, start: int, count: int) -> Array:
    rows = query.shape[0]
    stop = start + count * QUERY_BLOCK

    def fold(x: Array) -> Array:
        x = x[:, start:stop]
        x = jnp.pad(x, [(0, 0), (0, stop - start - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, count, QUERY_BLOCK, *x.shape[2:]), 1, 0)

    key_positions = ranges.positions[:, : key.shape[1]]
    index = start + jnp.arange(count * QUERY_BLOCK, dtype=jnp.int32).reshape(count, QUERY_BLOCK)

    @jax.checkpoint
    def block(inputs: tuple[Array, Ranges, Array]) -> Array:
        queries, its_ranges, its_index = inputs
        return masked_attention(queries, key, value, visible(its_ranges, its_index, key_positions, window))

    out = jax.lax.map(block, (fold(query), Ranges(*map(fold, ranges)), index))
    return jnp.moveaxis(out, 0, 1).reshape(rows, count * QUERY_BLOCK, *query.shape[2:])


def automatic(query: Array, key: Array, value: Array, ranges: Ranges, window: Window) -> Array:
    """The dense form for rows of up to `DENSE_LENGTH` tokens, the chunked one for longer rows."""
    form = dense if query.shape[1] <= DENSE_LENGTH else chunked
    return form(query, key, value, ranges, window)


FORMS: dict[str, AttentionForm] = {"auto": automatic, "dense": dense, "chunked": chunked}


def attention_form(name: str) -> AttentionForm:
    """The form of that name.

    Raises:
      ModelError: there is none.
    """
    if name not in FORMS:
        raise ModelError(f"attention {name!r} is unknown, expected one of {tuple(FORMS)}.{did_you_mean(name, FORMS)}")
    return FORMS[name]


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
