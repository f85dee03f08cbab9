"""The kernels of tree attention on GPUs; their grids, blocks and arrays are in `jaxalign.kernels.tree_attention_gpu`.

A reference to an array of the device is a pointer here: only what a kernel loads is read. Each kernel walks over its
list of blocks in two loops, the first over the blocks without a hidden score, which need no mask. Exponentials are to
the base 2, as GPUs compute them.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

LOG2_E = 1.4426950408889634
HIDDEN = -1e30
"""Score of a key that is not seen."""
NOTHING = -1e20
"""Where a running maximum starts: below any score, and above `HIDDEN`, so that a query that sees nothing sums to 0."""
LEAST = 1e-37
"""The smallest sum of weights that is divided by."""


class Tile(NamedTuple):
    """How a kernel is cut.

    Attributes:
      queries: queries of a block, a power of 2.
      keys: keys of a block, a power of 2.
      warps: warps of a program; on Hopper four of them share a matrix instruction of 64 rows of the block owned.
      stages: blocks in shared memory at once, those still on their way included.
    """

    queries: int
    keys: int
    warps: int
    stages: int


def _load(ref: Any, width: int) -> Array:
    """A block of vectors; the lanes behind the head width, where it is no power of 2, are 0."""
    lanes = ref.shape[-1]
    if lanes == width:
        return plgpu.load(ref)
    return plgpu.load(ref, mask=jnp.arange(lanes)[None, :] < width, other=0.0)


def _store(ref: Any, x: Array, width: int) -> None:
    x = x.astype(ref.dtype)
    if ref.shape[-1] == width:
        plgpu.store(ref, x)
    else:
        plgpu.store(ref, x, mask=jnp.arange(ref.shape[-1])[None, :] < width)


def _product(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """A product of tiles over one axis of each; float32, and of float32 tiles exact."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _capped(scores: Array, scale: float, soft_cap: float | None, dtype: Any) -> tuple[Array, Array | None]:
    """Scores over `soft_cap` (as they are without one), and the tanh where there is one."""
    if soft_cap is None:
        return scores, None
    x = scores * (scale / soft_cap)
    if dtype == jnp.float32:
        bent = jnp.tanh(x)
    else:  # Within 2e-7 of tanh; the GPU's own approximation is off by 5e-4, times the cap.
        bent = 1.0 - 2.0 / (jnp.exp2(x * (2.0 * LOG2_E)) + 1.0)
    return bent, bent


def _factor(scale: float, soft_cap: float | None) -> float:
    """What makes of `_capped` scores the exponents of 2."""
    return LOG2_E * (scale if soft_cap is None else soft_cap)


def _seen(keys: Array, index: Array, spans: tuple[Array, Array, Array]) -> Array:
    """The mask of a tile; `keys` vary along one axis, the rest along the other."""
    own_start, prefix_start, prefix_end = spans
    return ((own_start <= keys) & (keys <= index)) | ((prefix_start <= keys) & (keys < prefix_end))


def forward_kernel(
    whole_ref, count_ref, blocks_ref, own_start_ref, prefix_start_ref, prefix_end_ref, query_ref, key_ref, value_ref,
    out_ref, lse_ref, *, tile: Tile, width: int, scale: float, soft_cap: float | None,
) -> None:  # fmt: skip
    """Result and log-sum-exp of a block of queries of one head, by the online softmax."""
    block = pl.num_programs(1) - 1 - pl.program_id(1)
    index = (block * tile.queries + jnp.arange(tile.queries, dtype=jnp.int32))[:, None]
    spans = (own_start_ref[...][:, None], prefix_start_ref[...][:, None], prefix_end_ref[...][:, None])
    query = _load(query_ref, width)
    factor = _factor(scale, soft_cap)

    def visit(i, carry, masked: bool):
        most, total, sums = carry
        start = blocks_ref[i] * tile.keys
        key = _load(key_ref.at[pl.ds(start, tile.keys)], width)
        scores, _ = _capped(_product(query, key, (1, 1)), scale, soft_cap, query.dtype)
        if masked:
            keys = (start + jnp.arange(tile.keys, dtype=jnp.int32))[None, :]
            scores = jnp.where(_seen(keys, index, spans), scores, HIDDEN)
        higher = jnp.maximum(most, scores.max(axis=1) * factor)
        weights = jnp.exp2(scores * factor - higher[:, None])
        decay = jnp.exp2(most - higher)
        value = _load(value_ref.at[pl.ds(start, tile.keys)], width)
        sums = sums * decay[:, None] + _product(weights.astype(value.dtype), value, (1, 0))
        return higher, total * decay + weights.sum(axis=1), sums

    carry = (
        jnp.full((tile.queries,), NOTHING, jnp.float32),
        jnp.zeros((tile.queries,), jnp.float32),
        jnp.zeros(query.shape, jnp.float32),
    )
    carry = jax.lax.fori_loop(0, whole_ref[...], functools.partial(visit, masked=False), carry)
    carry = jax.lax.fori_loop(whole_ref[...], count_ref[...], functools.partial(visit, masked=True), carry)
    most, total, sums = carry
    _store(out_ref, sums / jnp.maximum(total, LEAST)[:, None], width)
    lse_ref[...] = most * (1.0 / LOG2_E) + jnp.log(jnp.maximum(total, LEAST))


def _gradient(
    scores: Array, products: Array, lse: Array, delta: Array, seen: Array | None, scale: float, soft_cap: float | None,
    dtype: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """Softmax weights of a tile, and the gradient of its scores before scale; lse to the base 2."""
    scores, bent = _capped(scores, scale, soft_cap, dtype)
    exponent = scores * _factor(scale, soft_cap) - lse
    weights = jnp.exp2(exponent if seen is None else jnp.where(seen, exponent, HIDDEN))
    gradient = weights * (products - delta)
    return weights, gradient if bent is None else gradient * (1.0 - bent * bent)


def queries_kernel(
    whole_ref, count_ref, blocks_ref, own_start_ref, prefix_start_ref, prefix_end_ref, query_ref, key_ref, value_ref,
    dout_ref, lse_ref, delta_ref, dquery_ref, *, tile: Tile, width: int, scale: float, soft_cap: float | None,
) -> None:  # fmt: skip
    """Gradient of a block of queries of one head."""
    block = pl.num_programs(1) - 1 - pl.program_id(1)
    index = (block * tile.queries + jnp.arange(tile.queries, dtype=jnp.int32))[:, None]
    spans = (own_start_ref[...][:, None], prefix_start_ref[...][:, None], prefix_end_ref[...][:, None])
    query, dout = _load(query_ref, width), _load(dout_ref, width)
    lse, delta = lse_ref[...][:, None] * LOG2_E, delta_ref[...][:, None]

    def visit(i, dquery, masked: bool):
        start = blocks_ref[i] * tile.keys
        keys = (start + jnp.arange(tile.keys, dtype=jnp.int32))[None, :]
        key = _load(key_ref.at[pl.ds(start, tile.keys)], width)
        value = _load(value_ref.at[pl.ds(start, tile.keys)], width)
        seen = _seen(keys, index, spans) if masked else None
        scores, products = _product(query, key, (1, 1)), _product(dout, value, (1, 1))
        _, gradient = _gradient(scores, products, lse, delta, seen, scale, soft_cap, query.dtype)
        return dquery + _product(gradient.astype(key.dtype), key, (1, 0))

    dquery = jnp.zeros(query.shape, jnp.float32)
    dquery = jax.lax.fori_loop(0, whole_ref[...], functools.partial(visit, masked=False), dquery)
    dquery = jax.lax.fori_loop(whole_ref[...], count_ref[...], functools.partial(visit, masked=True), dquery)
    _store(dquery_ref, dquery * scale, width)


def keys_kernel(
    whole_ref, count_ref, blocks_ref, own_start_ref, prefix_start_ref, prefix_end_ref, query_ref, key_ref, value_ref,
    dout_ref, lse_ref, delta_ref, dkey_ref, dvalue_ref, *, tile: Tile, width: int, scale: float,
    soft_cap: float | None, shared: int,
) -> None:  # fmt: skip
    """Gradients of a block of keys and values of one key head, over the `shared` query heads that read it."""
    keys = (pl.program_id(1) * tile.keys + jnp.arange(tile.keys, dtype=jnp.int32))[:, None]
    key, value = _load(key_ref, width), _load(value_ref, width)

    def visit(i, carry, masked: bool):
        """Meets one block of queries of one of the heads that share the key head; tiles have keys along axis 0."""
        dkey, dvalue = carry
        head = jax.lax.rem(i, shared)
        start = blocks_ref[jax.lax.div(i, shared)] * tile.queries
        at = pl.ds(start, tile.queries)
        query, dout = _load(query_ref.at[at, head], width), _load(dout_ref.at[at, head], width)
        lse, delta = lse_ref[head, at][None, :] * LOG2_E, delta_ref[head, at][None, :]
        seen = None
        if masked:
            index = (start + jnp.arange(tile.queries, dtype=jnp.int32))[None, :]
            spans = (own_start_ref[at][None, :], prefix_start_ref[at][None, :], prefix_end_ref[at][None, :])
            seen = _seen(keys, index, spans)
        scores, products = _product(key, query, (1, 1)), _product(value, dout, (1, 1))
        weights, gradient = _gradient(scores, products, lse, delta, seen, scale, soft_cap, key.dtype)
        dvalue = dvalue + _product(weights.astype(dout.dtype), dout, (1, 0))
        return dkey + _product(gradient.astype(query.dtype), query, (1, 0)), dvalue

    carry = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32))
    whole, count = whole_ref[...] * shared, count_ref[...] * shared
    carry = jax.lax.fori_loop(0, whole, functools.partial(visit, masked=False), carry)
    dkey, dvalue = jax.lax.fori_loop(whole, count, functools.partial(visit, masked=True), carry)
    _store(dkey_ref, dkey * scale, width)
    _store(dvalue_ref, dvalue, width)
