"""Tree attention on TPUs: flash attention over the pairs of blocks that meet (Pallas, Mosaic).

The grid walks over `jaxalign.kernels.block_pairs`, so that it has no step without work and reads no block without need.
The kernels are in `jaxalign.kernels.tree_attention_tpu_kernels`; here are their grids, blocks and arrays.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jaxalign.errors import ModelError
from jaxalign.kernels.block_pairs import block_pairs, most_pairs
from jaxalign.kernels.spans import Spans
from jaxalign.kernels.tree_attention_tpu_kernels import Call, Tile, dkey_kernel, dquery_kernel, forward_kernel

LANES = 128
COLUMNS = 1024
"""Query columns of a step (tokens times heads) that the default blocks aim at."""
WIDEST = 512
"""Bytes of a head's query that so many columns leave room for; with wider ones there are fewer columns."""
MOST_WORDS = 1 << 17
"""Words of a list in scalar memory (half a MiB of the one that there is); a larger batch goes in several calls."""


class Blocks(NamedTuple):
    """The tiles of the forward kernel, and of those for the gradients of queries and of keys and values."""

    forward: Tile
    dquery: Tile
    dkey: Tile


def default_blocks(length: int, heads: int, width: int, dtype: Any) -> Blocks:
    """For rows of `length` tokens and `heads` query heads a key head; within 16 MiB of vector memory."""
    room = -(-length // LANES) * LANES
    columns = COLUMNS * WIDEST // max(width * jnp.dtype(dtype).itemsize, WIDEST)
    queries = min(max(LANES, columns // _together(heads)), 512, room)
    queries = 1 << (queries.bit_length() - 1)
    keys = 1 << (min(512, room).bit_length() - 1)
    return Blocks(Tile(queries, keys), Tile(queries, min(keys, 256)), Tile(queries, min(keys, 256)))


def _together(heads: int) -> int:
    """How many of the query heads of a key head one step takes: all, or the most that fit `COLUMNS` at 128 tokens."""
    return next(count for count in range(heads, 0, -1) if heads % count == 0 and count * LANES <= COLUMNS)


class _Layout(NamedTuple):
    """The sizes of a batch in blocks, and its arrays as the kernels take them."""

    rows: int
    length: int
    heads: int
    groups: int
    width: int
    together: int

    @property
    def steps(self) -> int:
        """Steps that the query heads of a key head take."""
        return self.heads // self.groups // self.together

    def columns(self, x: Array) -> Array:
        """``[R, T, H, C]`` as ``[R, H/P, P, T, C]``: P heads together, rows padded."""
        x = jnp.swapaxes(_padded(x, 1, self.length), 1, 2)
        return x.reshape(self.rows, self.heads // self.together, self.together, self.length, self.width)

    def lanes(self, x: Array) -> Array:
        """``[R, H, T]`` as ``[R, H/P, P, T]``."""
        x = _padded(x, 2, self.length)
        return x.reshape(self.rows, self.heads // self.together, self.together, self.length)

    def keys(self, x: Array) -> Array:
        """``[R, T, G, C]`` as ``[R, G, T, C]``."""
        return jnp.swapaxes(_padded(x, 1, self.length), 1, 2)

    def tokens(self, x: Array, length: int) -> Array:
        """The way back of `columns` and `keys`, without the padding."""
        x = x.reshape(self.rows, -1, self.length, self.width)
        return jnp.swapaxes(x[:, :, :length], 1, 2)

    def _blocks(self, call: Call, word: Array) -> tuple[Array, Array]:
        """The block of queries and the block of keys of a word."""
        owner, visited = call.packing.owner(word), call.packing.visited(word)
        return (visited, owner) if call.key_owner else (owner, visited)

    def _column_index(self, call: Call, head, step, *rest) -> tuple[Any, ...]:
        """Row, heads and block of queries of a step. By keys, an inner axis of the grid goes over a group's heads."""
        *inner, words = rest
        word = words[step]
        heads = head * self.steps + inner[0] if call.key_owner else head
        return call.packing.row(word), heads, 0, self._blocks(call, word)[0]

    def column_spec(self, call: Call) -> pl.BlockSpec:
        """The block of queries of a step."""
        block = (None, None, self.together, call.tile.queries, self.width)
        return pl.BlockSpec(block, lambda *at: (*self._column_index(call, *at), 0))

    def lane_spec(self, call: Call) -> pl.BlockSpec:
        """One number for each query of a step."""
        return pl.BlockSpec((None, None, self.together, call.tile.queries), functools.partial(self._column_index, call))

    def key_spec(self, call: Call) -> pl.BlockSpec:
        """The block of keys or values of a step."""

        def index(head, step, *rest):
            word = rest[-1][step]
            group = head if call.key_owner else head // self.steps
            return call.packing.row(word), group, self._blocks(call, word)[1], 0

        return pl.BlockSpec((None, None, call.tile.keys, self.width), index)

    def span_spec(self, call: Call) -> pl.BlockSpec:
        """The ranges of the queries of a step."""

        def index(_, step, *rest):
            word = rest[-1][step]
            return call.packing.row(word), 0, self._blocks(call, word)[0]

        return pl.BlockSpec((None, len(Spans._fields), call.tile.queries), index)


def _padded(array: Array, axis: int, size: int) -> Array:
    room = [(0, 0)] * array.ndim
    room[axis] = (0, size - array.shape[axis])
    return jnp.pad(array, room)


def _padded_spans(spans: Spans, size: int) -> Spans:
    """The spans of longer rows; what is added sees itself."""
    length = spans.own_start.shape[1]
    own, start, end = (_padded(x, 1, size) for x in spans)
    index = jnp.arange(size, dtype=jnp.int32)
    return Spans(jnp.where(index < length, own, index), start, end)


class _Options(NamedTuple):
    scale: float
    soft_cap: float | None
    interpret: bool


def _run(kernel, spans: Spans, layout: _Layout, tile: Tile, options: _Options, arrays, specs, outs, *, sums, owner):
    """One kernel over the pairs of a batch.

    Args:
      kernel: one of the three.
      spans: of the padded rows.
      layout: theirs.
      tile: its blocks.
      options: scale, soft cap, interpret.
      arrays: its inputs behind the spans.
      specs: what makes the block of each from a call.
      outs: the same of each result, and its shape.
      sums: shapes of what it sums up in.
      owner: whose block keeps its results over its visits, "query" or "key".
    """
    pairs, packing = block_pairs(spans, *tile, owner=owner)
    by_key = owner == "key"
    call = Call(packing, tile, options.scale, options.soft_cap, by_key)
    if by_key:
        grid = (layout.groups, pairs.total, layout.steps)
        parameters = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary"))
        kernel = functools.partial(kernel, call=call, inner=layout.steps)
    else:
        grid = (layout.heads // layout.together, pairs.total)
        parameters = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))
        kernel = functools.partial(kernel, call=call)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[layout.span_spec(call), *(spec(call) for spec in specs)],
            out_specs=[spec(call) for spec, _ in outs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
        ),
        out_shape=[shape for _, shape in outs],
        compiler_params=parameters,
        name=f"tree_attention_{kernel.func.__name__}",
        interpret=options.interpret,
    )(pairs.words, jnp.stack(spans, axis=1), *arrays)


def _prepare(query: Array, key: Array, spans: Spans, blocks: Blocks | None) -> tuple[_Layout, Blocks, Spans]:
    """The layout of a batch, its blocks, and the spans of its padded rows."""
    rows, length, heads, width = query.shape
    groups = key.shape[2]
    blocks = blocks or default_blocks(length, heads // groups, width, query.dtype)
    step = math.lcm(*(size for tile in blocks for size in tile))
    padded = -(-length // step) * step
    return _Layout(rows, padded, heads, groups, width, _together(heads // groups)), blocks, _padded_spans(spans, padded)


def _pieces(rows: int, length: int, blocks: Blocks) -> list[slice]:
    """The rows of each call, so that no list is too long for scalar memory.

    Raises:
      ModelError: one row's alone is.
    """
    most = max(most_pairs(length, *tile) for tile in blocks)
    if most > MOST_WORDS:
        fitting = LANES * bisect_right(
            range(LANES, length, LANES), MOST_WORDS, key=lambda n: max(most_pairs(n, *tile) for tile in blocks)
        )
        raise ModelError(
            f"Rows of {length} tokens have up to {most} pairs of blocks, and scalar memory holds {MOST_WORDS}:"
            f" rows of up to {fitting} tokens. Spread the batch over more rows (train.microbatches, or more devices;"
            " data.row_length fixes how long they are), or set model.attention=chunked."
        )
    size = MOST_WORDS // most
    return [slice(start, start + size) for start in range(0, rows, size)]


def forward(
    query: Float[Array, "R T H C"],
    key: Float[Array, "R T G C"],
    value: Float[Array, "R T G C"],
    spans: Spans,
    *,
    scale: float,
    soft_cap: float | None,
    interpret: bool = False,
    blocks: Blocks | None = None,
) -> tuple[Float[Array, "R T H C"], Float[Array, "R H T"]]:
    """Attention and the log-sum-exp of the scores; see `jaxalign.kernels.tree_attention.tree_attention`."""
    length = query.shape[1]
    layout, blocks, spans = _prepare(query, key, spans, blocks)
    arrays = (layout.columns(query), layout.keys(key), layout.keys(value))
    tile = blocks.forward
    columns = layout.together * tile.queries

    def piece(rows: slice) -> tuple[Array, Array]:
        its = [x[rows] for x in arrays]
        return _run(
            forward_kernel,
            Spans(*(x[rows] for x in spans)),
            layout,
            tile,
            _Options(scale, soft_cap, interpret),
            its,
            [layout.column_spec, layout.key_spec, layout.key_spec],
            [
                (layout.column_spec, jax.ShapeDtypeStruct(its[0].shape, query.dtype)),
                (layout.lane_spec, jax.ShapeDtypeStruct(its[0].shape[:-1], jnp.float32)),
            ],
            sums=[(layout.width, columns), (1, columns), (1, columns)],
            owner="query",
        )

    out, lse = _over(piece, _pieces(layout.rows, layout.length, blocks))
    return layout.tokens(out, length), lse.reshape(layout.rows, layout.heads, layout.length)[:, :, :length]


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
    soft_cap: float | None,
    interpret: bool = False,
    blocks: Blocks | None = None,
) -> tuple[Float[Array, "R T H C"], Float[Array, "R T G C"], Float[Array, "R T G C"]]:
    """The gradients of query, key and value."""
    length = query.shape[1]
    layout, blocks, spans = _prepare(query, key, spans, blocks)
    options = _Options(scale, soft_cap, interpret)
    products = out.astype(jnp.float32) * dout.astype(jnp.float32)  # No dot: a TPU would round what it multiplies.
    delta = jnp.swapaxes(products.sum(axis=-1), 1, 2)
    arrays = (
        layout.columns(query),
        layout.keys(key),
        layout.keys(value),
        layout.columns(dout),
        layout.lanes(lse),
        layout.lanes(delta),
    )
    specs = [
        layout.column_spec,
        layout.key_spec,
        layout.key_spec,
        layout.column_spec,
        layout.lane_spec,
        layout.lane_spec,
    ]

    def piece(rows: slice) -> tuple[Array, ...]:
        its = [x[rows] for x in arrays]
        part = Spans(*(x[rows] for x in spans))
        columns, keys = (jax.ShapeDtypeStruct(its[i].shape, its[i].dtype) for i in (0, 1))
        tile = blocks.dquery
        sums = [(layout.width, layout.together * tile.queries)]
        outs = [(layout.column_spec, columns)]
        (dquery,) = _run(dquery_kernel, part, layout, tile, options, its, specs, outs, sums=sums, owner="query")
        tile = blocks.dkey
        sums = [(tile.keys, layout.width)] * 2
        outs = [(layout.key_spec, keys)] * 2
        return dquery, *_run(dkey_kernel, part, layout, tile, options, its, specs, outs, sums=sums, owner="key")

    dquery, dkey, dvalue = _over(piece, _pieces(layout.rows, layout.length, blocks))
    return layout.tokens(dquery, length), layout.tokens(dkey, length), layout.tokens(dvalue, length)


def _over(piece, slices: list[slice]) -> list[Array]:
    """The results of all pieces, joined."""
    return [x[0] if len(x) == 1 else jnp.concatenate(x) for x in zip(*(piece(rows) for rows in slices), strict=True)]
