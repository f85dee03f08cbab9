"""The pairs of blocks that a kernel's grid walks over, as one list of packed words for the whole batch.

One list rather than one a block: the grid has exactly as many steps as there are pairs to compute, whatever the rows
hold, and a word of four bytes a pair is small enough for scalar memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxalign.errors import ModelError
from jaxalign.kernels.spans import Spans, meets


class Packing(NamedTuple):
    """Where row, owner, visited block and flag lie in a word: ``row | owner | visited | whole``, lowest bit last."""

    owner_bits: int
    visited_bits: int

    def word(self, row: Array, owner: Array, visited: Array, whole: Array) -> Array:
        """The four as one number; in the order of the numbers, the visits of an owner follow one another."""
        return (((row << self.owner_bits | owner) << self.visited_bits) | visited) << 1 | whole

    def owner_key(self, word: Array) -> Array:
        """Row and owner: what changes where the next owner begins."""
        return word >> (self.visited_bits + 1)

    def row(self, word: Array) -> Array:
        """The row of the batch."""
        return word >> (self.owner_bits + self.visited_bits + 1)

    def owner(self, word: Array) -> Array:
        """The block whose result is summed up over its visits."""
        return (word >> (self.visited_bits + 1)) & (2**self.owner_bits - 1)

    def visited(self, word: Array) -> Array:
        """The block of the other side."""
        return (word >> 1) & (2**self.visited_bits - 1)

    def whole(self, word: Array) -> Array:
        """1 where every query of the pair sees every key, so that there is nothing to mask."""
        return word & 1


class Pairs(NamedTuple):
    """What a kernel visits: the first `total` words."""

    words: Int[Array, " W"]
    total: Int[Array, ""]


def wholly(spans: Spans, query_block: int, key_block: int) -> Bool[Array, "R N M"]:
    """Whether every query of a block sees every key of a block; block sizes divide T."""
    rows, length = spans.own_start.shape
    first = jnp.arange(0, length, key_block, dtype=jnp.int32)
    last = first + key_block - 1
    index = jnp.arange(length, dtype=jnp.int32)[:, None]
    own = (spans.own_start[..., None] <= first) & (last <= index)
    prefix = (spans.prefix_start[..., None] <= first) & (last < spans.prefix_end[..., None])
    return (own | prefix).reshape(rows, length // query_block, query_block, -1).all(axis=2)


def most_pairs(length: int, query_block: int, key_block: int) -> int:
    """How many pairs a row can have: no token sees a later one."""
    return sum(min(end + query_block - 1, length - 1) // key_block + 1 for end in range(0, length, query_block))


def block_pairs(spans: Spans, query_block: int, key_block: int, *, owner: str) -> tuple[Pairs, Packing]:
    """The list of a batch: by query block (`owner` "query") or by key block ("key"), in order.

    Raises:
      ModelError: rows and blocks are too many for a word.
    """
    rows, length = spans.own_start.shape
    owners, visited = -(-length // query_block), -(-length // key_block)
    if owner == "key":
        owners, visited = visited, owners
    packing = Packing((owners - 1).bit_length(), (visited - 1).bit_length())
    if (rows - 1).bit_length() + packing.owner_bits + packing.visited_bits + 1 > 30:
        raise ModelError(
            f"{rows} rows of {length} tokens in blocks of {query_block} queries and {key_block} keys are more than the"
            " kernel's list can name. Use larger blocks or fewer rows a device."
        )
    meeting, whole = meets(spans, query_block, key_block), wholly(spans, query_block, key_block)
    if owner == "key":
        meeting, whole = jnp.swapaxes(meeting, 1, 2), jnp.swapaxes(whole, 1, 2)
    row, block, other = (jax.lax.broadcasted_iota(jnp.int32, meeting.shape, axis) for axis in range(3))
    words = packing.word(row, block, other, whole.astype(jnp.int32))
    words = jnp.sort(jnp.where(meeting, words, jnp.iinfo(jnp.int32).max), axis=None)
    most = rows * most_pairs(length, query_block, key_block)
    return Pairs(words[: min(most, math.prod(meeting.shape))], meeting.sum(dtype=jnp.int32)), packing
