"""The XLA forms of attention against a definition written with loops, and against each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ModelError
from jaxalign.models import attention_forms, chunked_attention
from jaxalign.models.attention import Ranges
from jaxalign.models.attention_forms import FORMS, attention_form


def packed_ranges(length: int, rows: int, seed: int) -> Ranges:
    """Rows of random examples: a prompt, two completions behind it, and padding at the end."""
    rng = np.random.default_rng(seed)
    fields = {name: np.zeros((rows, length), np.int32) for name in Ranges._fields}
    for row in range(rows):
        at = 0
        while True:
            prompt, completions = rng.integers(1, 9), rng.integers(1, 9, size=2)
            if at + prompt + completions.sum() > length:
                break
            start = at
            for size, prefix in [(prompt, 0), *((c, prompt) for c in completions)]:
                piece = slice(at, at + size)
                fields["positions"][row, piece] = prefix + np.arange(size)
                fields["own_start"][row, piece] = at
                if prefix:
                    fields["prefix_start"][row, piece], fields["prefix_end"][row, piece] = start, start + prompt
                at += size
        fields["own_start"][row, at:] = np.arange(at, length)
    return Ranges(**{name: jnp.asarray(value) for name, value in fields.items()})


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
    arrays, ranges = inputs(2, 37, 4, kv_heads, 6), packed_ranges(37, 2, seed=3)
    out = FORMS[form](*arrays, ranges, window)
    np.testing.assert_allclose(out, definition(*arrays, ranges, window), atol=1e-6)


@pytest.mark.parametrize("length", [16, 65, 130])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_chunked_equals_dense_with_gradient(length, soft_cap, monkeypatch):
    monkeypatch.setattr(chunked_attention, "BLOCK", 16)
    arrays, ranges = inputs(2, length, 4, 2, 8), packed_ranges(length, 2, seed=length)
    weights = jax.random.normal(jax.random.key(9), arrays[0].shape)

    def run(form):
        def loss(*arrays):
            out = FORMS[form](*arrays, ranges, 7, soft_cap=soft_cap, scale=0.7)
            return jnp.sum(out * weights), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
        return out, grads

    (dense, dense_grads), (chunked, chunked_grads) = run("dense"), run("chunked")
    np.testing.assert_allclose(chunked, dense, atol=1e-6)
    for ours, theirs in zip(chunked_grads, dense_grads, strict=True):
        scale = float(jnp.max(jnp.abs(theirs)))
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-6)


def test_window_as_an_array_equals_the_number():
    arrays, ranges = inputs(1, 20, 2, 2, 4), packed_ranges(20, 1, seed=0)
    np.testing.assert_array_equal(FORMS["dense"](*arrays, ranges, jnp.int32(4)), FORMS["dense"](*arrays, ranges, 4))


def test_automatic_choice_goes_by_length(monkeypatch):
    called = []
    for name in ("dense", "chunked"):
        monkeypatch.setattr(attention_forms, name, lambda query, *_, name=name, **__: called.append(name) or query)
    monkeypatch.setattr(attention_forms, "DENSE_LENGTH", 10)
    for length in (10, 11):
        FORMS["auto"](*inputs(1, length, 2, 2, 4), packed_ranges(length, 1, seed=0), None)
    assert called == ["dense", "chunked"]


def test_chunked_never_holds_all_scores():
    length, heads = 2048, 8
    arrays, ranges = inputs(1, length, heads, 2, 16), packed_ranges(length, 1, seed=0)

    def temporary(form):
        loss = lambda *arrays: jnp.sum(FORMS[form](*arrays, ranges, None) ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = heads * length * length * 4
    assert temporary("chunked") < scores / 2 < scores < temporary("dense")


def test_unknown_form():
    with pytest.raises(ModelError, match="Did you mean 'chunked'"):
        attention_form("chunk")
