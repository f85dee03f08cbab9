"""The GPU's tree attention against its definition, interpreted, and lowered for real shapes. No GPU is needed."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxalign.kernels import tree_attention_gpu as gpu
from jaxalign.kernels.spans import Spans, spans
from jaxalign.kernels.tree_attention_gpu_kernels import Tile
from jaxalign.models.attention import Ranges
from tests.kernels.row_plans import apart, definition, plan_rows, plans

SMALL = gpu.Blocks(Tile(16, 16, 4, 2), Tile(16, 32, 4, 2), Tile(32, 16, 4, 2))
"""Blocks small enough that a row of 50 tokens has several of each kind."""


def inputs(rows: int, length: int, heads: int, groups: int, width: int, dtype=jnp.float32):
    """Random query, key, value and the gradient of the result."""
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.standard_normal((rows, length, n, width)), dtype) for n in (heads, groups, groups, heads)]


FAST_COMPILE = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnames=("soft_cap", "scale"), compiler_options=FAST_COMPILE)
def interpreted(query, key, value, dout, where: Spans, *, scale: float, soft_cap: float | None):
    """Result, log-sum-exp and the three gradients of the kernels."""
    options = {"scale": scale, "soft_cap": soft_cap, "interpret": True, "blocks": SMALL}
    out, lse = gpu.forward(query, key, value, where, **options)
    return out, lse, *gpu.backward(query, key, value, out, lse, dout, where, **options)


@functools.partial(jax.jit, static_argnames=("soft_cap", "scale"), compiler_options=FAST_COMPILE)
def expected(query, key, value, dout, ranges: Ranges, window, *, scale: float, soft_cap: float | None):
    """The same of the definition."""
    options = {"scale": scale, "soft_cap": soft_cap}
    (out, lse), pull = jax.vjp(lambda *x: definition(*x, ranges, window, **options), query, key, value)
    return out, lse, *pull((dout, jnp.zeros_like(lse)))


windowed = jax.jit(spans)


def check(ranges: Ranges, window: int, operands, bound: float, scale: float, soft_cap: float | None) -> None:
    reach = jnp.int32(window)
    got = interpreted(*operands, windowed(*ranges, reach), scale=scale, soft_cap=soft_cap)
    wanted = expected(*(x.astype(jnp.float32) for x in operands), ranges, reach, scale=scale, soft_cap=soft_cap)
    for name, a, b in zip(("out", "lse", "dquery", "dkey", "dvalue"), got, wanted, strict=True):
        assert apart(a, b) < bound, (name, window)


MANY = plan_rows([[(20, [1, 9, 1, 4, 2, 1, 8, 7])], [(5, [1])] * 6], 50, full=True)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(ranges=plans(2, 50), window=st.one_of(st.just(100), st.integers(1, 40)))
@example(ranges=plan_rows([[(0, [50])], [(50, [1])]], 50, full=True), window=100)
@example(ranges=MANY, window=100)
@example(ranges=MANY, window=4)
def test_equals_the_definition(ranges, window):
    """Grouped heads, a width that is no power of 2, a length that is no multiple of a block, windows below a prompt."""
    operands = inputs(2, 50, heads=4, groups=2, width=24)
    check(ranges, window, operands, bound=1e-5, scale=24**-0.5, soft_cap=None)


def test_soft_caps_and_bfloat16_which_is_as_close_as_its_digits():
    """Inputs, weights and results are rounded to 8 bits, 2**-9 relative each; 2**-6 is room for a chain of them."""
    operands = [3 * x for x in inputs(2, 50, heads=2, groups=1, width=32)]
    check(MANY, 9, operands, bound=1e-5, scale=32**-0.5, soft_cap=5.0)
    halves = [x.astype(jnp.bfloat16) for x in operands]
    check(MANY, 9, halves, bound=2**-6, scale=32**-0.5, soft_cap=5.0)


def test_what_is_not_visited_is_not_read_and_a_token_that_sees_nothing_is_0():
    """The first 32 tokens are poisoned; the tokens behind them, another example, stay clean forward and backward."""
    index = np.arange(50, dtype=np.int32)
    own = np.where(index < 32, 0, 32)
    own[40] = 50  # Sees nothing.
    where = Spans(*(jnp.asarray(np.stack([x, x]).astype(np.int32)) for x in (own, 0 * own, 0 * own)))
    operands = [x.at[:, :32].set(jnp.nan) for x in inputs(2, 50, heads=4, groups=2, width=24)]
    out, lse, *gradients = interpreted(*operands, where, scale=24**-0.5, soft_cap=None)
    for name, x in zip(("out", "dquery", "dkey", "dvalue"), (out, *gradients), strict=True):
        assert np.isnan(x[:, :32]).all(), name
        assert np.isfinite(x[:, 32:]).all(), name
    assert np.isfinite(lse[:, :, 32:]).all()
    assert not np.asarray(out[:, 40]).any()
    assert not np.asarray(gradients[0][:, 40]).any()


def test_lists_name_every_meeting_once_and_whole_blocks_first():
    rng = np.random.default_rng(0)
    meeting = rng.random((2, 5, 7)) < 0.5
    whole = meeting & (rng.random(meeting.shape) < 0.4)
    table = jax.tree.map(np.asarray, gpu.lists(jnp.asarray(meeting), jnp.asarray(whole)))
    for at in np.ndindex(2, 5):
        first, count = table.whole[at], table.count[at]
        np.testing.assert_array_equal(table.blocks[at][:first], np.flatnonzero(whole[at]))
        np.testing.assert_array_equal(table.blocks[at][first:count], np.flatnonzero(meeting[at] & ~whole[at]))


def hopper() -> AbstractMesh:
    """Where no GPU is, later releases of JAX want to be told which one they lower for; 0.10 takes a Hopper."""
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="cuda")
    return AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=device)


SHAPES = {
    "Llama-3-8B": (2, 16384, 32, 8, 128, None),
    "Qwen2-0.5B": (4, 2048, 14, 2, 64, None),
    "Qwen3-0.6B": (4, 2048, 16, 8, 128, None),
    "Gemma-2-9B": (2, 4096, 16, 8, 256, 50.0),
    "Phi-3": (2, 2048, 32, 32, 96, None),
}


@pytest.mark.parametrize(("name", "dtype"), [*((x, jnp.bfloat16) for x in SHAPES), ("Qwen3-0.6B", jnp.float32)])
def test_lowers_for_cuda(name, dtype):
    rows, length, heads, groups, width, soft_cap = SHAPES[name]
    query, key = (jax.ShapeDtypeStruct((rows, length, n, width), dtype) for n in (heads, groups))
    lse = jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)
    ranges = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    options = {"scale": width**-0.5, "soft_cap": soft_cap}

    def forward(query, key, value, where):
        return gpu.forward(query, key, value, Spans(*where), **options)

    def backward(query, key, value, out, lse, dout, where):
        return gpu.backward(query, key, value, out, lse, dout, Spans(*where), **options)

    with jax.sharding.use_abstract_mesh(hopper()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
        for function, operands, kernels in [
            (forward, (query, key, key, (ranges,) * 3), 1),
            (backward, (query, key, key, query, lse, query, (ranges,) * 3), 2),
        ]:
            text = jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
            assert text.count("@__gpu$xla.gpu.triton") == kernels
            assert f"{length}x{length}x" not in text
