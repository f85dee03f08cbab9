"""Which keys a token sees, as two index ranges, and which blocks of keys the tokens of a block visit.

A window is folded into the ranges, so that a kernel knows two ranges a query and nothing else. What no query of a block
sees is not in the block's list of visits, and so is neither read nor computed, forward or backward.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Spans(NamedTuple):
    """Keys that a token q sees: ``own_start <= k <= q`` and ``prefix_start <= k < prefix_end``; ``[R, T]`` int32."""

    own_start: Int[Array, "R T"]
    prefix_start: Int[Array, "R T"]
    prefix_end: Int[Array, "R T"]


def spans(
    positions: Int[Array, "R T"],
    own_start: Int[Array, "R T"],
    prefix_start: Int[Array, "R T"],
    prefix_end: Int[Array, "R T"],
    window: int | Int[Array, ""] | None,
) -> Spans:
    """The ranges of a batch of rows (`jaxalign.types.Rows`) with a sliding window folded in.

    Positions count on by one within a segment, so a window is a later start of each range.

    Args:
      positions: rotary positions.
      own_start: where the token's own segment starts.
      prefix_start: where its prompt starts.
      prefix_end: where its prompt ends; equal to `prefix_start` where it sees none.
      window: keys whose position is at least so much smaller are not seen, or None.
    """
    if window is None:
        return Spans(own_start, prefix_start, prefix_end)
    index = jnp.arange(positions.shape[1], dtype=jnp.int32)
    first = jnp.take_along_axis(positions, prefix_start, axis=1)  # the position of the prompt's first token
    own = jnp.maximum(own_start, index - window + 1)
    prefix = jnp.maximum(prefix_start, prefix_start + positions - window + 1 - first)
    return Spans(own, jnp.minimum(prefix, prefix_end), prefix_end)


class Visits(NamedTuple):
    """For each block of one side, the blocks of the other side that it must meet.

    Attributes:
      count: how many, ``[R, N]`` int32.
      blocks: which ones, in order, ``[R, N, M]`` int32; behind `count` the last one repeats, so that a kernel that
        walks on reads nothing new.
    """

    count: Int[Array, "R N"]
    blocks: Int[Array, "R N M"]


def meets(spans: Spans, query_block: int, key_block: int) -> Bool[Array, "R N M"]:
    """Whether any query of a block sees any key of a block; N blocks of queries, M of keys (the last may be short)."""
    rows, length = spans.own_start.shape
    queries, keys = -(-length // query_block), -(-length // key_block)
    start = jnp.arange(keys, dtype=jnp.int32) * key_block
    index = jnp.arange(length, dtype=jnp.int32)[:, None]

    def touched(first, last):
        """Keys ``first <= k <= last`` reach into the block."""
        return (first[..., None] < start + key_block) & (start <= last) & (first[..., None] <= last)

    seen = touched(spans.own_start, index) | touched(spans.prefix_start, spans.prefix_end[..., None] - 1)
    seen = jnp.pad(seen, ((0, 0), (0, queries * query_block - length), (0, 0)))
    return seen.reshape(rows, queries, query_block, keys).any(axis=2)


def visits(meeting: Bool[Array, "R N M"]) -> Visits:
    """The lists of a table of meetings; of its transpose, the lists of the backward pass over keys."""
    count = meeting.sum(axis=-1, dtype=jnp.int32)
    order = jnp.argsort(~meeting, axis=-1, stable=True).astype(jnp.int32)
    place = jnp.minimum(jnp.arange(meeting.shape[-1]), jnp.maximum(count - 1, 0)[..., None])
    return Visits(count, jnp.take_along_axis(order, place, axis=-1))
