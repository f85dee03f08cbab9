"""Attention over the row layout, in plain XLA: a dense form for short rows and a chunked form for long ones.

All forms share one signature, `AttentionForm`, so that a kernel can take their place: query ``[R, T, H, C]``, key and
value ``[R, T, G, C]``, the rows' ranges, and the window; result ``[R, T, H, C]``. Which key a query sees::

    own_start[q] <= k <= q            its own segment up to itself
    prefix_start[q] <= k < prefix_end[q]   the prompt of its example
    positions[q] - positions[k] < window   and, where the layer has a sliding window, not too long ago

Scores and softmax are float32; head ``h`` reads key/value head ``h // (H/G)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.models.layers import exact
from jaxalign.types import Rows

DENSE_LENGTH = 64
"""Longest row, in tokens, that goes as one block: its scores are ``[R, H, T, T]``."""
SMALLEST_BLOCK = 64
MOST_BLOCKS = 16
"""Blocks of the chunked form: at least so many queries each, and at most so many blocks, since they are unrolled."""
LOOPED_LENGTH = 1024
"""Rows longer than this go through a loop in `LOOP_BANDS` bands of blocks of `LOOPED_BLOCK` queries: XLA runs unrolled
blocks side by side on some devices, and would hold all their scores."""
LOOPED_BLOCK = 128
LOOP_BANDS = 4
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
    """Scores of one block of queries at a time, computed again in the backward pass; never ``[R, H, T, T]``.

    A block sees only the keys up to its own end, since no token sees a later one: with B blocks ``(B + 1) / 2B`` of the
    full square is computed. The softmax is divided out after the product with the values, ``[Q, C]`` numbers instead of
    ``[Q, T]``. On a CPU this takes a third of the dense form's time at 448 tokens: a block's scores stay in cache.
    """
    length, heads, width = query.shape[1:]
    shared = heads // key.shape[2]
    # Heads before tokens: every product is then one of plain matrices.
    query = jnp.swapaxes(query, 1, 2) * width**-0.5
    key, value = (jnp.repeat(jnp.swapaxes(x, 1, 2), shared, axis=1) for x in (key, value))
    if length > LOOPED_LENGTH:
        return jnp.swapaxes(_looped(query, key, value, ranges, window), 1, 2)
    size = max(SMALLEST_BLOCK, -(-length // (MOST_BLOCKS * SMALLEST_BLOCK)) * SMALLEST_BLOCK)
    out = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        index = jnp.arange(start, stop, dtype=jnp.int32)
        mask = visible(Ranges(*(x[:, start:stop] for x in ranges)), index, ranges.positions[:, :stop], window)
        out.append(_block(query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], mask))
    return jnp.swapaxes(jnp.concatenate(out, axis=2), 1, 2)


def _looped(query: Array, key: Array, value: Array, ranges: Ranges, window: Window) -> Array:
    """The chunked form with one block at a time; a band of blocks sees the keys up to the band's end."""
    length = query.shape[2]
    blocks = -(-length // LOOPED_BLOCK)
    bands = min(LOOP_BANDS, blocks)
    bounds = [band * blocks // bands for band in range(bands + 1)]

    def fold(x: Array, axis: int, first: int, count: int) -> Array:
        """Blocks ``first, first + 1, ...`` of the tokens on `axis`, stacked in front; the last one is padded."""
        x = jax.lax.slice_in_dim(x, first * LOOPED_BLOCK, min((first + count) * LOOPED_BLOCK, length), axis=axis)
        room = [(0, 0)] * x.ndim
        room[axis] = (0, count * LOOPED_BLOCK - x.shape[axis])
        x = jnp.pad(x, room)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, LOOPED_BLOCK, *x.shape[axis + 1 :]), axis, 0)

    out = []
    for first, last in itertools.pairwise(bounds):
        end = min(last * LOOPED_BLOCK, length)
        keys, values, positions = key[:, :, :end], value[:, :, :end], ranges.positions[:, :end]

        @jax.checkpoint  # The mask too is made again, rather than kept for every block.
        def block(inputs: tuple[Array, Ranges, Array], keys=keys, values=values, positions=positions) -> Array:
            queries, its_ranges, start = inputs
            index = start + jnp.arange(LOOPED_BLOCK, dtype=jnp.int32)
            return _block(queries, keys, values, visible(its_ranges, index, positions, window))

        count = last - first
        starts = jnp.arange(first, last, dtype=jnp.int32) * LOOPED_BLOCK
        folded = Ranges(*(fold(x, 1, first, count) for x in ranges))
        band = jax.lax.map(block, (fold(query, 2, first, count), folded, starts))
        band = jnp.moveaxis(band, 0, 2)
        out.append(band.reshape(*band.shape[:2], count * LOOPED_BLOCK, band.shape[-1]))
    return jnp.concatenate(out, axis=2)[:, :, :length]


@jax.checkpoint
def _block(
    query: Float[Array, "R H Q C"], key: Float[Array, "R H T C"], value: Float[Array, "R H T C"], mask: Array
) -> Float[Array, "R H Q C"]:
    precision = exact(query.dtype)
    scores = jnp.einsum("rhqc,rhkc->rhqk", query, key, precision=precision, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores, HIDDEN)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum(
        "rhqk,rhkc->rhqc",
        weights.astype(value.dtype),
        value,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return (out / total).astype(query.dtype)


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
