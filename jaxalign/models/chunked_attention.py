"""Attention in plain XLA that computes only blocks of scores that are seen, for long rows without a kernel."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from jaxalign.kernels.spans import Spans, meets, spans, visits
from jaxalign.kernels.tree_attention import SAVED
from jaxalign.mesh_axes import platform
from jaxalign.models.attention import HIDDEN, Ranges, Window
from jaxalign.models.layers import exact

BLOCK = 64
"""Tokens of a block on a CPU, where it is the fastest. Smaller blocks waste fewer scores on what is not seen."""
LONGER = 4
"""Times as long are blocks elsewhere: a GPU waits for its host in each round of a loop whose end depends on data, and
small products leave it idle. By that reasoning; not measured yet."""
TOGETHER = 4
"""Query blocks of a row that go through their visits together."""


def chunked(
    query: Array,
    key: Array,
    value: Array,
    ranges: Ranges,
    window: Window,
    *,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Array:
    """Scores of a few blocks of queries with one block of keys each at a time; never ``[R, H, T, T]``.

    Blocks that do not meet (`jaxalign.kernels.spans`) cost nothing, forward or backward: a rejected completion skips
    the chosen one, an example the others of its row. Query blocks of a row that visit about as many key blocks go
    through their visits together, so that few are waited for. The backward pass computes the scores again from the
    saved log-sum-exp.
    """
    size = block_size()
    together = min(TOGETHER, -(-query.shape[1] // size))
    plan = _Plan(size, together, query.shape[3] ** -0.5 if scale is None else scale, soft_cap)
    return _visiting(query, key, value, spans(*ranges, window), plan)


def block_size() -> int:
    """Tokens of a block on the devices that are computed for."""
    return BLOCK if platform() == "cpu" else LONGER * BLOCK


class _Plan(NamedTuple):
    """What is known before tracing: tokens of a block, query blocks that go together."""

    size: int
    together: int
    scale: float
    soft_cap: float | None


class _Groups(NamedTuple):
    """Query blocks in the order in which they are worked off, `together` at a time; G groups of P blocks.

    Attributes:
      index: which query block, ``[G, R, P]``; the last group is filled up with blocks that visit nothing.
      count: key blocks that it visits, ``[G, R, P]``.
      blocks: which ones, ``[G, R, P, N]``.
      first: where each block's first group place is, ``[R, N]``: undoes the order.
    """

    index: Array
    count: Array
    blocks: Array
    first: Array


def _groups(of: Spans, plan: _Plan) -> _Groups:
    found = visits(meets(of, plan.size, plan.size))
    rows, blocks = found.count.shape
    order = jnp.argsort(-found.count, axis=1, stable=True)
    groups = -(-blocks // plan.together)
    room = ((0, 0), (0, groups * plan.together - blocks))

    def arranged(x, empty):
        x = jnp.take_along_axis(x, order.reshape(rows, blocks, *(1,) * (x.ndim - 2)), axis=1)
        x = jnp.pad(x, (*room, *((0, 0),) * (x.ndim - 2)), constant_values=empty)
        return jnp.moveaxis(x.reshape(rows, groups, plan.together, *x.shape[2:]), 1, 0)

    index = jnp.broadcast_to(jnp.arange(blocks, dtype=jnp.int32), (rows, blocks))
    return _Groups(arranged(index, 0), arranged(found.count, 0), arranged(found.blocks, 0), jnp.argsort(order, axis=1))


def _fold(x: Array, size: int) -> Array:
    """``[R, T, ...] -> [R, N, size, ...]``, padded with zeros."""
    rows, length = x.shape[:2]
    blocks = -(-length // size)
    x = jnp.pad(x, ((0, 0), (0, blocks * size - length), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(rows, blocks, size, *x.shape[2:])


def _heads_first(x: Array, groups: int, size: int) -> Array:
    """``[R, T, H, C] -> [R, N, G, (H/G) * size, C]``: the heads that share keys stand below each other."""
    x = _fold(x, size)
    rows, blocks, _, heads, width = x.shape
    x = x.reshape(rows, blocks, size, groups, heads // groups, width)
    return jnp.transpose(x, (0, 1, 3, 4, 2, 5)).reshape(rows, blocks, groups, heads // groups * size, width)


def _tokens_first(x: Array, length: int, size: int) -> Array:
    """The inverse of `_heads_first`."""
    rows, blocks, groups, stacked, width = x.shape
    x = x.reshape(rows, blocks, groups, stacked // size, size, width)
    x = jnp.transpose(x, (0, 1, 4, 2, 3, 5)).reshape(rows, blocks * size, -1, width)
    return x[:, :length]


_pick = jax.vmap(lambda blocks, index: blocks[index])
"""Blocks of each row by index: ``[R, N, ...], [R, P] -> [R, P, ...]``."""
_add = jax.vmap(lambda blocks, index, more: blocks.at[index].add(more))


def _seen(of: Spans, index: Array, keys: Array, valid: Array, plan: _Plan) -> Array:
    """Which keys of its visited block each query sees, ``[R, P, 1, 1, size, size]``; `of` is folded and picked."""
    inside = jnp.arange(plan.size, dtype=jnp.int32)
    q = (index[..., None] * plan.size + inside)[..., :, None]
    k = (keys[..., None] * plan.size + inside)[..., None, :]
    own_start, prefix_start, prefix_end = (x[..., None] for x in of)
    seen = ((own_start <= k) & (k <= q)) | ((prefix_start <= k) & (k < prefix_end))
    return (seen & valid[..., None, None])[:, :, None, None]


def _scores(query: Array, key: Array, seen: Array, plan: _Plan) -> tuple[Array, Array | float]:
    """Scores of picked blocks, ``[R, P, G, stacked, size]``, and what the soft cap's derivative multiplies them by."""
    scores = jnp.einsum(
        "rpgqc,rpgkc->rpgqk", query, key, precision=exact(query.dtype), preferred_element_type=jnp.float32
    )
    scores, slope = scores * plan.scale, 1.0
    if plan.soft_cap is not None:
        capped = jnp.tanh(scores / plan.soft_cap)
        scores, slope = plan.soft_cap * capped, 1.0 - jnp.square(capped)
    shape = scores.shape
    scores = scores.reshape(*shape[:3], -1, plan.size, plan.size)
    return jnp.where(seen, scores, HIDDEN).reshape(shape), slope


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _visiting(query: Array, key: Array, value: Array, of: Spans, plan: _Plan) -> Array:
    return _visiting_forward(query, key, value, of, plan)[0]


def _visiting_forward(query: Array, key: Array, value: Array, of: Spans, plan: _Plan):
    rows, length, _, width = query.shape
    size, groups = plan.size, key.shape[2]
    order = _groups(of, plan)
    queries, keys, values = (_heads_first(x, groups, size) for x in (query, key, value))
    folded = Spans(*(_fold(x, size) for x in of))

    def group(_, inputs):
        index, count, blocks = inputs
        its_queries, its_spans = _pick(queries, index), Spans(*(_pick(x, index) for x in folded))
        shape = its_queries.shape[:-1]

        def visit(carry):
            place, peak, total, sums = carry
            block = jax.lax.dynamic_index_in_dim(blocks, place, axis=2, keepdims=False)
            seen = _seen(its_spans, index, block, place < count, plan)
            scores, _ = _scores(its_queries, _pick(keys, block), seen, plan)
            highest = jnp.maximum(peak, scores.max(-1))
            weights = jnp.exp(scores - highest[..., None])
            shrink = jnp.exp(peak - highest)
            sums = sums * shrink[..., None] + jnp.einsum(
                "rpgqk,rpgkc->rpgqc",
                weights.astype(value.dtype),
                _pick(values, block),
                precision=exact(value.dtype),
                preferred_element_type=jnp.float32,
            )
            return place + 1, highest, total * shrink + weights.sum(-1), sums

        # A peak above the score of what is hidden: a block whose keys a query all does not see adds nothing to it.
        start = (jnp.int32(0), jnp.full(shape, HIDDEN / 2), jnp.zeros(shape), jnp.zeros((*shape, width)))
        most = count.max()
        _, peak, total, sums = jax.lax.while_loop(lambda carry: carry[0] < most, visit, start)
        total = jnp.where(total == 0, 1.0, total)  # padding of the last block
        return None, ((sums / total[..., None]).astype(query.dtype), peak + jnp.log(total))

    _, (out, logsumexp) = jax.lax.scan(group, None, order[:3])

    def back(x):
        x = jnp.moveaxis(x, 0, 1)
        return _pick(x.reshape(rows, -1, *x.shape[3:]), order.first)

    out, logsumexp = _tokens_first(back(out), length, size), back(logsumexp)
    out, logsumexp = checkpoint_name(out, SAVED), checkpoint_name(logsumexp, SAVED)
    return out, (query, key, value, of, out, logsumexp)


def _visiting_backward(plan: _Plan, residuals, gradient: Array):
    query, key, value, of, out, logsumexp = residuals
    length, groups, size = query.shape[1], key.shape[2], plan.size
    order = _groups(of, plan)
    delta = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1, keepdims=True)
    queries, keys, values, gradients, deltas = (
        _heads_first(x, groups, size) for x in (query, key, value, gradient, delta)
    )
    folded = Spans(*(_fold(x, size) for x in of))
    products = {"precision": exact(query.dtype), "preferred_element_type": jnp.float32}

    def group(carry, inputs):
        index, count, blocks = inputs
        its_queries, its_gradient = _pick(queries, index), _pick(gradients, index)
        its_delta, its_logsumexp = _pick(deltas, index), _pick(logsumexp, index)[..., None]
        its_spans = Spans(*(_pick(x, index) for x in folded))

        def visit(carry):
            place, dq, dk, dv = carry
            block = jax.lax.dynamic_index_in_dim(blocks, place, axis=2, keepdims=False)
            its_keys, its_values = _pick(keys, block), _pick(values, block)
            seen = _seen(its_spans, index, block, place < count, plan)
            scores, slope = _scores(its_queries, its_keys, seen, plan)
            weights = jnp.exp(scores - its_logsumexp)
            rise = jnp.einsum("rpgqc,rpgkc->rpgqk", its_gradient, its_values, **products)
            rise = (weights * (rise - its_delta) * slope * plan.scale).astype(query.dtype)
            dq = dq + jnp.einsum("rpgqk,rpgkc->rpgqc", rise, its_keys, **products)
            dk = _add(dk, block, jnp.einsum("rpgqk,rpgqc->rpgkc", rise, its_queries, **products))
            weights = weights.astype(query.dtype)
            dv = _add(dv, block, jnp.einsum("rpgqk,rpgqc->rpgkc", weights, its_gradient, **products))
            return place + 1, dq, dk, dv

        most = count.max()
        start = (jnp.int32(0), jnp.zeros(its_queries.shape), *carry)
        _, dq, dk, dv = jax.lax.while_loop(lambda carry: carry[0] < most, visit, start)
        return (dk, dv), dq

    zeros = jnp.zeros(keys.shape)
    (dk, dv), dq = jax.lax.scan(group, (zeros, zeros), order[:3])
    dq = jnp.moveaxis(dq, 0, 1)
    dq = _pick(dq.reshape(len(query), -1, *dq.shape[3:]), order.first)
    found = (_tokens_first(x, length, size).astype(query.dtype) for x in (dq, dk, dv))
    return *found, jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), of)


_visiting.defvjp(_visiting_forward, _visiting_backward)
