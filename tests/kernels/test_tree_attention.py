"""The TPU kernel, interpreted on the CPU, against the dense definition: values and gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from jaxalign.errors import ModelError
from jaxalign.kernels import tree_attention_tpu
from jaxalign.kernels.block_pairs import Packing, block_pairs, most_pairs
from jaxalign.kernels.spans import Spans, spans
from jaxalign.kernels.tree_attention import sharded, tree_attention
from jaxalign.kernels.tree_attention_tpu import Blocks, Tile
from jaxalign.models.attention import visible
from jaxalign.models.chunked_attention import chunked
from jaxalign.models.decoder import REMAT_POLICIES
from tests.kernels.row_plans import apart, definition, plan_rows, plans

ROWS, LENGTH, WIDTH, SCALE = 2, 75, 8, 0.3
PLANS = plans(ROWS, LENGTH)
WINDOWS = st.one_of(st.just(LENGTH + 1), st.integers(1, 40))


class Case(NamedTuple):
    heads: int
    groups: int
    soft_cap: float | None
    blocks: Blocks
    dtype: Any = jnp.float32


PLAIN = Case(4, 2, None, Blocks(Tile(16, 16), Tile(16, 16), Tile(16, 16)))
CAPPED = Case(3, 3, 2.0, Blocks(Tile(16, 32), Tile(32, 16), Tile(16, 48)))
HALVES = Case(16, 1, None, Blocks(Tile(32, 16), Tile(16, 32), Tile(32, 16)))  # Heads of a group in two steps.
COARSE = Case(4, 2, 2.0, Blocks(Tile(32, 32), Tile(32, 32), Tile(32, 32)), jnp.bfloat16)


def inputs(case: Case, rows: int = ROWS, length: int = LENGTH, seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 4)
    heads = (case.heads, case.groups, case.groups, case.heads)
    return [jax.random.normal(k, (rows, length, h, WIDTH)).astype(case.dtype) for k, h in zip(keys, heads, strict=True)]


def value_and_pull(form, query, key, value, dout):
    out, pull = jax.vjp(form, query, key, value)
    return out, *pull(dout.astype(out.dtype))


@functools.cache
def kernel(case: Case):
    def run(query, key, value, dout, seen):
        options = {"scale": SCALE, "soft_cap": case.soft_cap, "platform": "interpret", "blocks": case.blocks}
        return value_and_pull(lambda *x: tree_attention(*x, seen, **options), query, key, value, dout)

    return jax.jit(run)


@functools.cache
def plain(case: Case):
    def run(query, key, value, dout, ranges, window):
        options = {"ranges": ranges, "window": window, "scale": SCALE, "soft_cap": case.soft_cap}
        return value_and_pull(lambda *x: definition(*x, **options)[0], query, key, value, dout.astype(jnp.float32))

    return jax.jit(run)


def check(case: Case, ranges, window: int, bound: float):
    arrays = inputs(case)
    found = kernel(case)(*arrays, spans(*ranges, window))
    expected = plain(case)(*arrays, ranges, jnp.int32(window))
    for name, ours, theirs in zip(("out", "dquery", "dkey", "dvalue"), found, expected, strict=True):
        assert ours.dtype == case.dtype
        assert apart(ours, theirs) < bound, name


WHOLE = plan_rows([[(0, [LENGTH])], [(LENGTH, [1])]], LENGTH, full=True)
"""A row that is one completion behind no prompt, and one that is a prompt."""
MANY = plan_rows([[(30, [1, 9, 1, 4, 2, 1, 8, 7])], [(5, [1])] * 6], LENGTH, full=False)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(ranges=PLANS, window=WINDOWS)
@example(ranges=WHOLE, window=LENGTH + 1)
@example(ranges=MANY, window=LENGTH + 1)
@example(ranges=MANY, window=1)
def test_values_and_gradients_equal_the_definition(ranges, window):
    check(PLAIN, ranges, window, 1e-5)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(ranges=PLANS, window=WINDOWS)
@example(ranges=MANY, window=20)
def test_soft_caps_and_blocks_of_other_shapes(ranges, window):
    check(CAPPED, ranges, window, 1e-5)


@settings(deadline=None, max_examples=5, derandomize=True)
@given(ranges=PLANS, window=WINDOWS)
def test_a_group_too_large_for_one_step(ranges, window):
    assert tree_attention_tpu._together(16) < 16
    check(HALVES, ranges, window, 1e-5)


@settings(deadline=None, max_examples=5, derandomize=True)
@given(ranges=PLANS, window=WINDOWS)
@example(ranges=MANY, window=LENGTH + 1)
def test_bfloat16(ranges, window):
    """Weights, results and gradients are rounded to 8 bits, the sums are not."""
    check(COARSE, ranges, window, 2**-6)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def words_of(seen: Spans, size: int, queries: int, keys: int, owner: str):
    return block_pairs(tree_attention_tpu._padded_spans(seen, size), queries, keys, owner=owner)[0]


@settings(deadline=None, max_examples=20, derandomize=True)
@given(ranges=PLANS, window=WINDOWS, tile=st.sampled_from([(16, 16), (5, 40), (80, 20)]))
def test_pairs_are_those_of_the_mask(ranges, window, tile):
    queries, keys = tile
    size = -(-LENGTH // 80) * 80
    mask = np.eye(size, dtype=bool) & np.ones((ROWS, 1, 1), bool)
    index = jnp.arange(LENGTH, dtype=jnp.int32)
    mask[:, :LENGTH, :LENGTH] |= np.asarray(visible(ranges, index, ranges.positions, window))
    blocks = mask.reshape(ROWS, size // queries, queries, size // keys, keys)
    some, every = blocks.any((2, 4)), blocks.all((2, 4))
    for owner in ("query", "key"):
        words, total = words_of(spans(*ranges, window), size, queries, keys, owner)
        packing = Packing(*((size // block - 1).bit_length() for block in (tile if owner == "query" else tile[::-1])))
        words = np.asarray(words)[: int(total)]
        row, first, second = (np.asarray(part(words)) for part in (packing.row, packing.owner, packing.visited))
        found = np.zeros_like(some)
        flags = np.zeros_like(some)
        at = (row, first, second) if owner == "query" else (row, second, first)
        found[at], flags[at] = True, np.asarray(packing.whole(words)) == 1
        assert len(set(words.tolist())) == len(words)
        assert (found == some).all()
        # Two ranges that meet within a block may cover it together; that is not looked for.
        assert (every >= flags).all()
        assert (np.diff(packing.owner_key(words)) >= 0).all()
        assert len(words) <= ROWS * most_pairs(size, queries, keys)


def test_whole_blocks_are_found():
    seen = spans(*plan_rows([[(64, [8, 8])]], 80, full=True), None)
    pairs, packing = block_pairs(seen, 16, 16, owner="query")
    words = np.asarray(pairs.words)[: int(pairs.total)]
    whole = {(int(packing.owner(w)), int(packing.visited(w))) for w in words if packing.whole(w)}
    assert whole == {(query, key) for query in range(5) for key in range(min(query, 4))}


def test_rows_that_do_not_fit_one_list_go_in_several_calls(monkeypatch):
    case = PLAIN
    arrays, seen = inputs(case, rows=3, length=32), spans(*plan_rows([[(9, [4, 3])]] * 3, 32, full=False), None)

    def run():
        options = {"scale": SCALE, "soft_cap": None, "interpret": True, "blocks": case.blocks}
        return jax.jit(functools.partial(tree_attention_tpu.forward, **options))(*arrays[:3], seen)

    expected = run()
    monkeypatch.setattr(tree_attention_tpu, "MOST_WORDS", 6)  # Two of these rows' three pairs each: 2 calls.
    assert len(tree_attention_tpu._pieces(3, 32, case.blocks)) == 2
    for found, one in zip(run(), expected, strict=True):
        np.testing.assert_array_equal(found, one)


def test_log_sum_exp():
    ranges = MANY
    query, key, value, _ = inputs(PLAIN)
    options = {"scale": SCALE, "soft_cap": None, "interpret": True, "blocks": PLAIN.blocks}
    _, lse = jax.jit(functools.partial(tree_attention_tpu.forward, **options))(query, key, value, spans(*ranges, None))
    _, expected = definition(query, key, value, ranges, None, scale=SCALE, soft_cap=None)
    assert lse.dtype == jnp.float32
    assert apart(lse, expected) < 1e-5


def layers(form, policy):
    """Two layers under scan and remat, with a window that is traced."""

    def loss(query, key, value, ranges, windows):
        @functools.partial(jax.checkpoint, policy=policy)
        def layer(carry, window):
            return form(carry, key, value, ranges, window), None

        return jax.lax.scan(layer, query, windows)[0].sum()

    return jax.grad(loss, argnums=(0, 1, 2))


def by_kernel(query, key, value, ranges, window):
    options = {"scale": SCALE, "platform": "interpret", "blocks": PLAIN.blocks}
    return tree_attention(query, key, value, spans(*ranges, window), **options)


SHORT = plan_rows([[(12, [4, 9])], [(20, [12])]], 32, full=False)


def equations(jaxpr) -> Iterator[Any]:
    """All of a program, but for those inside of kernels."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "pallas_call":
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def by_shards(query, key, value, ranges, window):
    return sharded(query, key, value, spans(*ranges, window), scale=SCALE, platform="interpret", blocks=PLAIN.blocks)


def by_chunks(query, key, value, ranges, window):
    return chunked(query, key, value, ranges, window, scale=SCALE)


@pytest.mark.parametrize("form", [by_kernel, by_shards, by_chunks])
@pytest.mark.parametrize(("policy", "forwards"), [("full", 2), ("dots", 1)])
def test_what_dots_saves_spares_the_second_forward_pass(form, policy, forwards):
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    query, key, value, _ = inputs(PLAIN, length=32)
    with jax.set_mesh(mesh):
        run = jax.make_jaxpr(layers(form, REMAT_POLICIES[policy]))
        program = run(query, key, value, SHORT, jnp.array([40, 5], jnp.int32))
    names = [x.primitive.name for x in equations(program.jaxpr)]
    # Of the kernel, the backward pass is two; the chunked form loops over visits once forward and once backward.
    found = names.count("while") - 1 if form is by_chunks else names.count("pallas_call") - 2
    assert found == forwards


@pytest.mark.parametrize("sizes", [(2, 2, 2), (2, 1, 4)])
def test_sharded_equals_the_definition(sizes):
    """Rows and heads are divided, also among more devices than there are key heads: nobody computes another's."""
    rows = [[(12, [4, 9])], [(20, [12])], [(1, [1])] * 5, [(0, [32])]]
    ranges = plan_rows(rows, 32, full=False)
    *arrays, dout = inputs(PLAIN, rows=4, length=32)
    mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def run(query, key, value, dout):
        return value_and_pull(lambda *x: by_shards(*x, ranges, 9), query, key, value, dout)

    with jax.set_mesh(mesh):
        traced = jax.jit(run).trace(*arrays, dout)
        found = traced.lower().compile()(*arrays, dout)
    expected = plain(PLAIN)(*arrays, dout, ranges, jnp.int32(9))
    assert all(apart(*both) < 1e-5 for both in zip(found, expected, strict=True))
    kernels = [x for x in equations(traced.jaxpr.jaxpr) if x.primitive.name == "pallas_call"]
    results = [math.prod(x.shape) for kernel in kernels for x in kernel.params["out_avals"]]
    assert len(kernels) == 3
    assert max(results) == arrays[0].size // mesh.size


def test_wrong_calls_are_named():
    query, key, value, _ = inputs(PLAIN, length=16)
    seen = Spans(*(jnp.zeros((ROWS, 16), jnp.int32) for _ in range(3)))
    with pytest.raises(ModelError, match=r"\[R, T, G, C\] with H a multiple of G"):
        tree_attention(query, key[:, :, :1].repeat(3, axis=2), value, seen, scale=1.0)
    with pytest.raises(ModelError, match=r"no attention kernel for 'tpi'.*Did you mean 'tpu'"):
        tree_attention(query, key, value, seen, scale=1.0, platform="tpi")
    with pytest.raises(ModelError, match="larger blocks or fewer rows"):
        block_pairs(Spans(*(jax.ShapeDtypeStruct((2**22, 4096), jnp.int32),) * 3), 128, 128, owner="query")
    with pytest.raises(ModelError, match=r"131072.*rows of up to 92544 tokens.*model.attention=chunked"):
        tree_attention_tpu._pieces(1, 2**17, Blocks(*[Tile(128, 256)] * 3))
