"""The XLA forms of attention against a definition written with loops, and against each other."""

from __future__ import annotations

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxalign.errors import ModelError
from jaxalign.models import attention_forms, chunked_attention
from jaxalign.models.attention import Ranges
from jaxalign.models.attention_forms import FORMS, attention_form
from tests.kernels import row_plans
from tests.kernels.row_plans import apart, plan_rows, plans

RANGES = plan_rows([[(5, [3, 8]), (1, [1, 9, 2])], [(0, [4]), (17, [6])]], 37, full=False)


def definition(query, key, value, ranges, window):
    """Float64, one query and one head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    r = Ranges(*(np.asarray(x) for x in ranges))
    rows, length, heads, width = query.shape
    repeat = heads // key.shape[2]
    out = np.zeros_like(query)
    for row in range(rows):
        for q in range(length):
            seen = [
                k
                for k in range(length)
                if (r.own_start[row, q] <= k <= q or r.prefix_start[row, q] <= k < r.prefix_end[row, q])
                and (window is None or r.positions[row, q] - r.positions[row, k] < window)
            ]
            for head in range(heads):
                scores = key[row, seen, head // repeat] @ query[row, q, head] / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                out[row, q, head] = weights @ value[row, seen, head // repeat] / weights.sum()
    return out


def inputs(rows: int, length: int, heads: int, kv_heads: int, width: int):
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = [(rows, length, heads, width), (rows, length, kv_heads, width), (rows, length, kv_heads, width)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("form", ["dense", "chunked"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_the_definition(form, window, kv_heads, monkeypatch):
    monkeypatch.setattr(chunked_attention, "BLOCK", 8)
    arrays = inputs(2, 37, 4, kv_heads, 6)
    out = FORMS[form](*arrays, RANGES, window)
    np.testing.assert_allclose(out, definition(*arrays, RANGES, window), atol=1e-6)


PLANS = plans(2, 75)
WINDOWS = st.one_of(st.just(100), st.integers(1, 40))
WHOLE = plan_rows([[(0, [75])], [(75, [1])]], 75, full=True)
MANY = plan_rows([[(30, [1, 9, 1, 4, 2, 1, 8, 7])], [(5, [1])] * 6], 75, full=False)


@functools.cache
def value_and_gradient(name: str, soft_cap: float | None):
    """Of the plain definition or of the chunked form in blocks of 16 tokens, windows traced."""

    def form(query, key, value, ranges, window):
        if name == "chunked":
            return FORMS[name](query, key, value, ranges, window, soft_cap=soft_cap, scale=0.7)
        return row_plans.definition(query, key, value, ranges, window, soft_cap=soft_cap, scale=0.7)[0]

    @jax.jit
    def run(arrays, weights, ranges, window):
        out, pull = jax.vjp(lambda *x: form(*x, ranges, window), *arrays)
        return out, *pull(weights.astype(out.dtype))

    return run


def check_chunked(ranges, window: int, *, soft_cap: float | None = None, dtype: str = "float32", bound: float = 1e-5):
    arrays = [x.astype(dtype) for x in inputs(2, 75, 4, 2, 8)]
    weights = jax.random.normal(jax.random.key(9), arrays[0].shape)
    with mock.patch.object(chunked_attention, "BLOCK", 16):
        found = value_and_gradient("chunked", soft_cap)(arrays, weights, ranges, jnp.int32(window))
    plain = value_and_gradient("definition", soft_cap)
    expected = plain([x.astype("float32") for x in arrays], weights, ranges, jnp.int32(window))
    for name, ours, theirs in zip(("out", "query", "key", "value"), found, expected, strict=True):
        assert ours.dtype == dtype
        assert apart(ours, theirs) < bound, name


@settings(deadline=None, max_examples=25, derandomize=True)
@given(ranges=PLANS, window=WINDOWS)
@example(ranges=WHOLE, window=100)
@example(ranges=MANY, window=100)
@example(ranges=MANY, window=1)
def test_chunked_equals_the_plain_definition(ranges, window):
    check_chunked(ranges, window)


@settings(deadline=None, max_examples=5, derandomize=True)
@given(ranges=PLANS, window=WINDOWS)
@example(ranges=MANY, window=20)
def test_chunked_with_a_soft_cap_and_in_bfloat16(ranges, window):
    """Weights, results and gradients of bfloat16 are rounded to 8 bits, the sums are not."""
    check_chunked(ranges, window, soft_cap=1.5)
    check_chunked(ranges, window, soft_cap=1.5, dtype="bfloat16", bound=2**-6)


def test_window_as_an_array_equals_the_number():
    arrays = inputs(2, 37, 2, 2, 4)
    np.testing.assert_array_equal(FORMS["dense"](*arrays, RANGES, jnp.int32(4)), FORMS["dense"](*arrays, RANGES, 4))


def test_automatic_choice_goes_by_length(monkeypatch):
    called = []
    for name in ("dense", "chunked"):
        monkeypatch.setitem(FORMS, name, lambda query, *_, name=name, **__: called.append(name) or query)
    monkeypatch.setattr(attention_forms, "DENSE_LENGTH", 10)
    for length in (10, 11):
        FORMS["auto"](*inputs(1, length, 2, 2, 4), plan_rows([[]], length, full=False), None)
    assert called == ["dense", "chunked"]


def test_chunked_never_holds_all_scores():
    length, heads = 2048, 8
    arrays, ranges = inputs(1, length, heads, 2, 16), plan_rows([[(length // 2, [99, 700])]], length, full=False)

    def temporary(form):
        loss = lambda *arrays: jnp.sum(FORMS[form](*arrays, ranges, None) ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = heads * length * length * 4
    assert temporary("chunked") < scores / 2 < scores < temporary("dense")


def test_unknown_form():
    with pytest.raises(ModelError, match="Did you mean 'chunked'"):
        attention_form("chunk")
