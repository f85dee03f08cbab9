"""Frozen weights in int8: how far off, how small, and what is left alone."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ModelError
from jaxalign.models import quantization
from jaxalign.models.quantization import is_quantized, quantize, quantized_product

pytest.importorskip("qwix")


def test_a_product_is_that_of_the_rounded_numbers():
    """Both sides rounded by hand, each token and each output with a scale of its own."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 4, 8)).astype(np.float32), rng.normal(size=(1, 4, 8, 6)).astype(np.float32)
    kernel = quantize({"params": {"layers": {"attention": {"output": {"kernel": jnp.asarray(w)}}}}})
    kernel = jax.tree.map(lambda leaf: leaf[0], kernel["params"]["layers"]["attention"]["output"]["kernel"])
    got = np.asarray(quantized_product("rthc,hcd->rtd", jnp.asarray(x), kernel)).reshape(6, 6)
    tokens, matrix = x.reshape(6, 32), w.reshape(32, 6)
    scale = np.abs(matrix).max(0) / 127.5
    np.testing.assert_allclose(np.asarray(kernel.scale).reshape(6), scale, rtol=1e-6)
    rounded = np.asarray(kernel.qvalue).reshape(32, 6).astype(np.float32) * scale
    # The largest number itself is half a step beyond what int8 holds.
    assert (np.abs(rounded - matrix) <= 0.501 * scale).all()
    per_token = np.abs(tokens).max(1, keepdims=True) / 127.5
    # Half a step of each token's scale, whichever way it fell, times what the column holds.
    bound = 0.501 * per_token * np.abs(rounded).sum(0)
    assert (np.abs(got - tokens @ rounded) <= bound).all()
    assert np.abs(got - tokens @ rounded).max() > 1e-3


def test_a_model_in_int8(make_tiny):
    policy, variables = make_tiny(layers=2, qkv_bias=True)
    small = quantize(variables)
    block = small["params"]["layers"]
    assert is_quantized(block["mlp"]["down"]["kernel"])
    assert block["mlp"]["down"]["kernel"].qvalue.dtype == jnp.int8
    for path in (("embed", "embedding"), ("head", "kernel"), ("final_norm", "scale")):
        np.testing.assert_array_equal(small["params"][path[0]][path[1]], variables["params"][path[0]][path[1]])
    np.testing.assert_array_equal(
        block["attention"]["query"]["bias"], variables["params"]["layers"]["attention"]["query"]["bias"]
    )
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 61)
    exact, rounded = (jax.nn.log_softmax(policy.logits(v, tokens)) for v in (variables, small))
    error = np.abs(np.asarray(exact - rounded))
    assert 0 < error.mean() < 0.1


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ModelError, match=r"jaxalign\[quantization\]"):
        quantization.load_qwix()
