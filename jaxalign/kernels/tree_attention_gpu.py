"""Tree attention on NVIDIA GPUs: flash attention over the blocks that a row's two key ranges touch (Pallas, Triton).

Triton and not Mosaic GPU, because one kernel then serves Ampere and Hopper, runs in interpret mode, and lowers on a
machine without a GPU; Mosaic GPU serves Hopper and later alone. Pallas has called its Triton lowering deprecated since
JAX 0.11: before it is removed, the kernels are to be written again, and nothing around them.
cuDNN's flash attention (own segments and prompts as two packed passes, merged by their log-sum-exp) is not used: JAX
has no public function for its packed form with offsets, which needs Hopper; its gradient takes no log-sum-exp from
outside; and it knows neither soft caps nor a window that reaches into another segment. Its speed beside this
kernel's is not measured.

A program owns a block of queries of one head (for the gradients of keys and values a block of keys of one key head) and
walks over a list of the blocks of the other side that it must meet. What is not listed is neither read nor computed.
Scores, softmax and sums are float32. Not run on a GPU yet.

After Dao, FlashAttention-2 (arXiv:2307.08691), algorithms 1 and 2.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int

from jaxalign.kernels.block_pairs import wholly
from jaxalign.kernels.spans import Spans, meets
from jaxalign.kernels.tree_attention_gpu_kernels import Tile, forward_kernel, keys_kernel, queries_kernel

SMALLEST_BLOCK = 16
"""Tensor cores take no less."""


class Blocks(NamedTuple):
    """The tiles of the forward kernel, and of those for the gradients of keys and values and of queries."""

    forward: Tile
    keys: Tile
    queries: Tile


def default_blocks(width: int, dtype: Any) -> Blocks:
    """Tiles by head width, chosen by what the compiler reports and not by time: not tuned on a GPU yet.

    As Triton 3.9 compiles them for bfloat16, they spill little (at most 56 bytes a thread up to a width of 128, 200 at
    256), leave Hopper's matrix instruction its 64 rows up to a width of 128, and keep loads in flight. The largest
    kernel takes 96 KiB of shared memory on Ampere and 128 on Hopper up to a width of 128, and 136 and 192 at 256; an
    A100 has 163, an H100 227, and cards with 99 need smaller tiles at 256.
    """
    if jnp.dtype(dtype).itemsize > 2:  # Exact float32 products use no tensor cores, and many registers.
        if width <= 128:
            return Blocks(Tile(32, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 32, 8, 2))
        return Blocks(Tile(32, 16, 8, 2), Tile(16, 16, 8, 2), Tile(16, 16, 8, 2))
    if width <= 64:
        return Blocks(Tile(128, 64, 8, 3), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2))
    if width <= 128:
        return Blocks(Tile(128, 64, 8, 3), Tile(32, 128, 8, 2), Tile(128, 64, 8, 2))
    return Blocks(Tile(64, 64, 8, 2), Tile(32, 64, 8, 2), Tile(64, 64, 8, 2))


class Lists(NamedTuple):
    """For each block of one side the blocks of the other that it meets.

    Attributes:
      whole: how many of them come without a hidden score; they are first in the list; ``[R, N]`` int32.
      count: how many there are in all, ``[R, N]`` int32.
      blocks: which ones, ``[R, N, M]`` int32; what stands behind `count` is not read.
    """

    whole: Int[Array, "R N"]
    count: Int[Array, "R N"]
    blocks: Int[Array, "R N M"]


def lists(meeting: Bool[Array, "R N M"], whole: Bool[Array, "R N M"]) -> Lists:
    """The lists of a table of meetings and of those among them without a hidden score."""
    order = jnp.argsort(jnp.where(whole, 0, jnp.where(meeting, 1, 2)), axis=-1, stable=True)
    return Lists(whole.sum(axis=-1, dtype=jnp.int32), meeting.sum(axis=-1, dtype=jnp.int32), order.astype(jnp.int32))


def forward(
    query: Float[Array, "R T H C"],
    key: Float[Array, "R T G C"],
    value: Float[Array, "R T G C"],
    spans: Spans,
    *,
    scale: float,
    soft_cap: float | None = None,
    interpret: bool = False,
    blocks: Blocks | None = None,
) -> tuple[Float[Array, "R T H C"], Float[Array, "R H T"]]:
    """Attention over the two ranges of every token, and what its backward pass needs.

    Args:
      query: the queries.
      key: the keys; query head ``h`` reads key head ``h // (H/G)``.
      value: the values.
      spans: which keys a token sees.
      scale: factor of the scores, before the soft cap.
      soft_cap: scores ``s`` become ``soft_cap * tanh(s / soft_cap)``, or None.
      interpret: run as plain XLA on any device, to test.
      blocks: how the kernels are cut; None = `default_blocks` of the width and dtype.

    Returns:
      The result in the dtype of the query (0 where a token sees nothing), and the log-sum-exp of its scores, in nats.
    """
    length, heads, width = query.shape[1:]
    tile = _fit((blocks or default_blocks(width, query.dtype)).forward, length)
    shared = heads // key.shape[2]
    query, key, value = (_lengthen(x, tile, axis=1) for x in (query, key, value))
    spans = _lengthen_spans(spans, tile)
    rows, padded = query.shape[:2]
    last, lanes = padded // tile.queries - 1, pl.next_power_of_2(width)
    table = lists(meets(spans, tile.queries, tile.keys), wholly(spans, tile.queries, tile.keys))
    own, own_row, numbers = _by_queries(tile, last, lanes)
    whole_row = pl.BlockSpec((None, padded, None, lanes), lambda h, i, r: (r, 0, h // shared, 0))
    out, lse = pl.pallas_call(
        functools.partial(forward_kernel, tile=tile, width=width, scale=scale, soft_cap=soft_cap),
        grid=(heads, last + 1, rows),
        in_specs=[*_listed(table, lambda i: last - i), own_row, own_row, own_row, own, whole_row, whole_row],
        out_specs=[own, numbers],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((rows, heads, padded), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="tree_attention_forward",
    )(*table, *spans, query, key, value)
    return out[:, :length], lse[:, :, :length]


def backward(
    query: Float[Array, "R T H C"],
    key: Float[Array, "R T G C"],
    value: Float[Array, "R T G C"],
    out: Float[Array, "R T H C"],
    lse: Float[Array, "R H T"],
    dout: Float[Array, "R T H C"],
    spans: Spans,
    *,
    scale: float,
    soft_cap: float | None = None,
    interpret: bool = False,
    blocks: Blocks | None = None,
) -> tuple[Float[Array, "R T H C"], Float[Array, "R T G C"], Float[Array, "R T G C"]]:
    """Gradients of query, key and value for `dout`, that of `forward`'s result; `out` and `lse` are what it returned.

    The scores are computed again, once in each of two kernels; no gradient is added up across programs, so that the
    result is the same every time.
    """
    blocks = blocks or default_blocks(query.shape[-1], query.dtype)
    products = out.astype(jnp.float32) * dout.astype(jnp.float32)
    delta = jnp.swapaxes(products.sum(axis=-1), 1, 2)
    dout = dout.astype(query.dtype)
    key_tile, query_tile = _fit(blocks.keys, query.shape[1]), _fit(blocks.queries, query.shape[1])
    options = {"scale": scale, "soft_cap": soft_cap, "width": query.shape[-1]}
    dkey, dvalue = _backward_keys(query, key, value, dout, lse, delta, spans, key_tile, interpret, options)
    dquery = _backward_queries(query, key, value, dout, lse, delta, spans, query_tile, interpret, options)
    return dquery, dkey, dvalue


def _backward_queries(
    query: Array, key: Array, value: Array, dout: Array, lse: Array, delta: Array, spans: Spans, tile: Tile,
    interpret: bool, options: dict[str, Any],
) -> Array:  # fmt: skip
    length, heads, width = query.shape[1:]
    shared = heads // key.shape[2]
    query, key, value, dout = (_lengthen(x, tile, axis=1) for x in (query, key, value, dout))
    lse, delta = (_lengthen(x, tile, axis=2) for x in (lse, delta))
    spans = _lengthen_spans(spans, tile)
    rows, padded = query.shape[:2]
    last, lanes = padded // tile.queries - 1, pl.next_power_of_2(width)
    table = lists(meets(spans, tile.queries, tile.keys), wholly(spans, tile.queries, tile.keys))
    own, own_row, numbers = _by_queries(tile, last, lanes)
    whole_row = pl.BlockSpec((None, padded, None, lanes), lambda h, i, r: (r, 0, h // shared, 0))
    inputs = [own, whole_row, whole_row, own, numbers, numbers]
    dquery = pl.pallas_call(
        functools.partial(queries_kernel, tile=tile, **options),
        grid=(heads, last + 1, rows),
        in_specs=[*_listed(table, lambda i: last - i), own_row, own_row, own_row, *inputs],
        out_specs=own,
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="tree_attention_backward_queries",
    )(*table, *spans, query, key, value, dout, lse, delta)
    return dquery[:, :length]


def _backward_keys(
    query: Array, key: Array, value: Array, dout: Array, lse: Array, delta: Array, spans: Spans, tile: Tile,
    interpret: bool, options: dict[str, Any],
) -> tuple[Array, Array]:  # fmt: skip
    length, heads, width = query.shape[1:]
    groups = key.shape[2]
    shared = heads // groups
    query, key, value, dout = (_lengthen(x, tile, axis=1) for x in (query, key, value, dout))
    lse, delta = (_lengthen(x, tile, axis=2) for x in (lse, delta))
    spans = _lengthen_spans(spans, tile)
    rows, padded = query.shape[:2]
    lanes = pl.next_power_of_2(width)
    meeting, whole = meets(spans, tile.queries, tile.keys), wholly(spans, tile.queries, tile.keys)
    table = lists(jnp.swapaxes(meeting, 1, 2), jnp.swapaxes(whole, 1, 2))
    own = pl.BlockSpec((None, tile.keys, None, lanes), lambda g, i, r: (r, i, g, 0))
    whole_rows = pl.BlockSpec((None, padded, shared, lanes), lambda g, i, r: (r, 0, g, 0))
    numbers = pl.BlockSpec((None, shared, padded), lambda g, i, r: (r, g, 0))
    ranges = pl.BlockSpec((None, padded), lambda g, i, r: (r, 0))
    inputs = [whole_rows, own, own, whole_rows, numbers, numbers]
    dkey, dvalue = pl.pallas_call(
        functools.partial(keys_kernel, tile=tile, shared=shared, **options),
        # The early blocks, which are visited most, come first as they are.
        grid=(groups, padded // tile.keys, rows),
        in_specs=[*_listed(table, lambda i: i), ranges, ranges, ranges, *inputs],
        out_specs=[own, own],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, value)],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="tree_attention_backward_keys",
    )(*table, *spans, query, key, value, dout, lse, delta)
    return dkey[:, :length], dvalue[:, :length]


def _by_queries(tile: Tile, last: int, lanes: int) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """A program's vectors, its ranges and its numbers a head, where a program owns a block of queries.

    The heads of a block run side by side, since they share its keys; late blocks, which visit most, run first.
    """
    return (
        pl.BlockSpec((None, tile.queries, None, lanes), lambda h, i, r: (r, last - i, h, 0)),
        pl.BlockSpec((None, tile.queries), lambda h, i, r: (r, last - i)),
        pl.BlockSpec((None, None, tile.queries), lambda h, i, r: (r, h, last - i)),
    )


def _listed(table: Lists, block: Any) -> list[pl.BlockSpec]:
    """The list of a program, whose second index gives its block."""
    count = pl.BlockSpec((None, None), lambda h, i, r: (r, block(i)))
    return [count, count, pl.BlockSpec((None, None, table.blocks.shape[2]), lambda h, i, r: (r, block(i), 0))]


def _fit(tile: Tile, length: int) -> Tile:
    """No block much longer than the row."""
    most = max(SMALLEST_BLOCK, pl.next_power_of_2(length))
    return tile._replace(queries=min(tile.queries, most), keys=min(tile.keys, most))


def _room(length: int, tile: Tile) -> int:
    return -length % max(tile.queries, tile.keys)


def _lengthen(x: Array, tile: Tile, axis: int) -> Array:
    """Zeros behind the last token, up to whole blocks."""
    room = [(0, 0)] * x.ndim
    room[axis] = (0, _room(x.shape[axis], tile))
    return jnp.pad(x, room) if room[axis][1] else x


def _lengthen_spans(spans: Spans, tile: Tile) -> Spans:
    """The tokens behind the last see nothing and are seen by none."""
    length = spans.own_start.shape[1]
    room = _room(length, tile)
    fill = (length + room, 0, 0)
    return Spans(*(jnp.pad(x, ((0, 0), (0, room)), constant_values=y) for x, y in zip(spans, fill, strict=True)))
