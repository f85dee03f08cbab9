"""The three kernels of tree attention on TPUs, one step each: what happens when two blocks meet.

The tokens of a block bring all query heads that share a key head along: `heads * queries` columns meet one block of
keys, whose mask is made once. Scores stand upside down, ``[keys, columns]``: what belongs to a query (ranges, maximum,
sum, log-sum-exp) then lies along lanes, as it does in memory, and maxima and sums over keys are plain vector
operations. Powers are of two, with the scale folded in.

Names ending in ``_ref`` are the blocks of a step: queries and what is like them ``[heads, queries, C]``, keys and
values ``[keys, C]``, numbers of queries ``[heads, queries]``, ranges ``[3, queries]``; `words_ref` lists the pairs.
Those ending in ``_sum_ref``, `top_ref` and `norm_ref` keep their values from one step to the next.

After Dao, FlashAttention-2 (arXiv:2307.08691), algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from jaxalign.kernels.block_pairs import Packing

HIDDEN = -1e30
"""Score of a key that is not seen. Finite, so that differences of it are 0 and not nan."""
LOG2E = math.log2(math.e)


class Tile(NamedTuple):
    """Queries and keys of a block, in tokens. Multiples of 128 on a TPU."""

    queries: int
    keys: int


class Call(NamedTuple):
    """What the three kernels share."""

    packing: Packing
    tile: Tile
    scale: float
    soft_cap: float | None
    key_owner: bool


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """The product of two matrices over one axis of each, in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _flat(ref: Any) -> Array:
    """``[heads, queries, C]`` as columns ``[heads * queries, C]``."""
    heads, queries, width = ref.shape
    return ref[...].reshape(heads * queries, width)


def _lane(ref: Any) -> Array:
    """``[heads, queries]`` along the lanes, ``[1, heads * queries]``."""
    return jnp.concatenate([ref[head : head + 1, :] for head in range(ref.shape[0])], axis=1)


def _scores(call: Call, query: Array, key: Array) -> tuple[Array, Array | None]:
    """Scores in powers of two, ``[keys, columns]``, and the tanh of a soft cap."""
    scores = _dot(key, query, (1, 1))
    if call.soft_cap is None:
        return scores * (call.scale * LOG2E), None
    bent = jnp.tanh(scores * (call.scale / call.soft_cap))
    return bent * (call.soft_cap * LOG2E), bent


def _bias(call: Call, word: Array, spans_ref: Any, heads: int) -> Array:
    """0 where a query sees a key, `HIDDEN` elsewhere; ``[keys, columns]``."""
    visited, owner = call.packing.visited(word), call.packing.owner(word)
    query_block, key_block = (visited, owner) if call.key_owner else (owner, visited)
    shape = (call.tile.keys, call.tile.queries)
    keys = key_block * call.tile.keys + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    queries = query_block * call.tile.queries + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    own, start, end = (spans_ref[field : field + 1, :] for field in range(3))
    seen = ((own <= keys) & (keys <= queries)) | ((start <= keys) & (keys < end))
    bias = jnp.where(seen, 0.0, HIDDEN).astype(jnp.float32)
    return jnp.concatenate([bias] * heads, axis=1)


def _at_ends(call: Call, words_ref: Any, inner: int | None) -> tuple[Array, Array, Array]:
    """The word of this step, and whether it is its owner's first and last; `inner` grid steps share a word."""
    step, steps = pl.program_id(1), pl.num_programs(1)
    word = words_ref[step]
    key = call.packing.owner_key(word)
    before = call.packing.owner_key(words_ref[jnp.maximum(step - 1, 0)])
    behind = call.packing.owner_key(words_ref[jnp.minimum(step + 1, steps - 1)])
    first, last = (step == 0) | (before != key), (step == steps - 1) | (behind != key)
    if inner is not None:
        first, last = first & (pl.program_id(2) == 0), last & (pl.program_id(2) == inner - 1)
    return word, first, last


def _masked_or_not(call: Call, word: Array, spans_ref: Any, heads: int, body: Callable[[Array | None], None]) -> None:
    """Runs the body with a bias, or with None where nothing is hidden."""
    whole = call.packing.whole(word) == 1

    @pl.when(whole)
    def _():
        body(None)

    @pl.when(jnp.logical_not(whole))
    def _():
        body(_bias(call, word, spans_ref, heads))


def forward_kernel(
    words_ref, spans_ref, query_ref, key_ref, value_ref, out_ref, lse_ref, out_sum_ref, top_ref, norm_ref, *, call: Call
):
    """Output and log-sum-exp of a block of queries, summed up over the blocks of keys that it meets."""
    word, first, last = _at_ends(call, words_ref, None)
    heads, queries, width = query_ref.shape

    @pl.when(first)
    def _():
        out_sum_ref[...] = jnp.zeros_like(out_sum_ref)
        top_ref[...] = jnp.full_like(top_ref, HIDDEN)
        norm_ref[...] = jnp.zeros_like(norm_ref)

    def body(bias):
        value = value_ref[...]
        scores, _ = _scores(call, _flat(query_ref), key_ref[...])
        if bias is not None:
            scores = scores + bias
        # A query that sees nothing of its first blocks sums up ones; its own token, seen later, multiplies them by 0.
        top = jnp.maximum(top_ref[...], scores.max(axis=0, keepdims=True))
        weights = jnp.exp2(scores - top)
        fade = jnp.exp2(top_ref[...] - top)
        norm_ref[...] = norm_ref[...] * fade + weights.sum(axis=0, keepdims=True)
        out_sum_ref[...] = out_sum_ref[...] * fade + _dot(value, weights.astype(value.dtype), (0, 0))
        top_ref[...] = top

    _masked_or_not(call, word, spans_ref, heads, body)

    @pl.when(last)
    def _():
        out = (out_sum_ref[...] / norm_ref[...]).T
        out_ref[...] = out.astype(out_ref.dtype).reshape(heads, queries, width)
        lse = top_ref[...] * (1 / LOG2E) + jnp.log(norm_ref[...])
        for head in range(heads):
            lse_ref[head : head + 1, :] = lse[:, head * queries : (head + 1) * queries]


def _gradient(call: Call, bias, query, key, value, dout, lse, delta) -> tuple[Array, Array]:
    """The weights again, and the gradient of the unscaled scores; ``[keys, columns]`` each."""
    scores, bent = _scores(call, query, key)
    if bias is not None:
        scores = scores + bias
    weights = jnp.exp2(scores - lse * LOG2E)
    dscores = weights * (_dot(value, dout, (1, 1)) - delta)
    if bent is not None:
        dscores = dscores * (1 - bent * bent)
    return weights, dscores


def dquery_kernel(
    words_ref,
    spans_ref,
    query_ref,
    key_ref,
    value_ref,
    dout_ref,
    lse_ref,
    delta_ref,
    dquery_ref,
    dquery_sum_ref,
    *,
    call,
):
    """The gradient of a block of queries, over the blocks of keys that it meets."""
    word, first, last = _at_ends(call, words_ref, None)
    heads, queries, width = query_ref.shape

    @pl.when(first)
    def _():
        dquery_sum_ref[...] = jnp.zeros_like(dquery_sum_ref)

    def body(bias):
        key = key_ref[...]
        lse, delta = _lane(lse_ref), _lane(delta_ref)
        _, dscores = _gradient(call, bias, _flat(query_ref), key, value_ref[...], _flat(dout_ref), lse, delta)
        dquery_sum_ref[...] += _dot(key, dscores.astype(key.dtype), (0, 0))

    _masked_or_not(call, word, spans_ref, heads, body)

    @pl.when(last)
    def _():
        dquery = (dquery_sum_ref[...] * call.scale).T
        dquery_ref[...] = dquery.astype(dquery_ref.dtype).reshape(heads, queries, width)


def dkey_kernel(
    words_ref,
    spans_ref,
    query_ref,
    key_ref,
    value_ref,
    dout_ref,
    lse_ref,
    delta_ref,
    dkey_ref,
    dvalue_ref,
    dkey_sum_ref,
    dvalue_sum_ref,
    *,
    call: Call,
    inner: int,
):
    """The gradients of a block of keys and values, over the blocks of queries that meet it and the group's heads."""
    word, first, last = _at_ends(call, words_ref, inner)

    @pl.when(first)
    def _():
        dkey_sum_ref[...] = jnp.zeros_like(dkey_sum_ref)
        dvalue_sum_ref[...] = jnp.zeros_like(dvalue_sum_ref)

    def body(bias):
        query, dout = _flat(query_ref), _flat(dout_ref)
        lse, delta = _lane(lse_ref), _lane(delta_ref)
        weights, dscores = _gradient(call, bias, query, key_ref[...], value_ref[...], dout, lse, delta)
        dvalue_sum_ref[...] += _dot(weights.astype(dout.dtype), dout, (1, 0))
        dkey_sum_ref[...] += _dot(dscores.astype(query.dtype), query, (1, 0))

    _masked_or_not(call, word, spans_ref, query_ref.shape[0], body)

    @pl.when(last)
    def _():
        dkey_ref[...] = (dkey_sum_ref[...] * call.scale).astype(dkey_ref.dtype)
        dvalue_ref[...] = dvalue_sum_ref[...].astype(dvalue_ref.dtype)
