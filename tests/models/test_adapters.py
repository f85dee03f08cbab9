"""Low-rank adapters: what they add and where, and that at their start, or without them, there is only the base."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ModelError
from jaxalign.models.adapters import (
    Adapter,
    check_targets,
    factor_axes,
    factor_shapes,
    init_adapter,
    low_rank,
    without_adapter,
)
from jaxalign.models.decoder_config import decoder_config
from jaxalign.models.huggingface import load_policy, load_variables, save_pretrained
from jaxalign.models.policy import build_policy
from jaxalign.models.weights import PROJECTIONS

SIZES = {
    "vocab_size": 61, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 40,
    "max_positions": 64,
}  # fmt: skip
FIELDS = {"plain": {}, "biases": {"qkv_bias": True, "output_bias": True, "mlp_bias": True, "tied_embeddings": True}}


def tokens(rows: int = 2, length: int = 9):
    return jax.random.randint(jax.random.key(0), (rows, length), 0, 61)


def adapted(adapter: Adapter | None, dtype: str = "float32", **fields):
    return build_policy(decoder_config(SIZES | fields), dtype=dtype, adapter=adapter)


def drawn(policy, factors: float = 0.3):
    """Variables drawn with numpy, which compiles nothing; `factors` = 0: adapters as they start, with B = 0."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        started = path[0].key == "lora" and path[-1].key == "b"
        return jnp.asarray(rng.normal(0.1, factors if started else 0.3, leaf.shape), leaf.dtype) * (
            factors > 0 or not started
        )

    return jax.tree.map_with_path(draw, policy.abstract())


@pytest.mark.parametrize(("fields", "dtype"), [("plain", "bfloat16"), ("biases", "float32")])
def test_the_start_and_no_adapter_are_the_base_bit_for_bit(fields, dtype):
    policy, base = adapted(Adapter(rank=4), dtype, **FIELDS[fields]), adapted(None, dtype, **FIELDS[fields])
    variables = drawn(policy, factors=0)
    plain = without_adapter(variables)
    expected = base.logits(plain, tokens())
    np.testing.assert_array_equal(policy.logits(variables, tokens()), expected)
    np.testing.assert_array_equal(policy.logits(plain, tokens()), expected)


def test_adapters_change_no_draw_of_a_fresh_base():
    rng = jax.random.key(1)
    one, other = adapted(Adapter(rank=4)).init(rng), adapted(None).init(rng)
    jax.tree.map(np.testing.assert_array_equal, without_adapter(one), other)


def test_the_low_rank_product_is_that_of_the_merged_matrix():
    rng = np.random.default_rng(0)
    for equation, shape in (("rtd,dhc->rthc", (6, 2, 4)), ("rthc,hcd->rtd", (2, 4, 6)), ("rtd,df->rtf", (6, 8))):
        first, second = factor_shapes(equation, shape, 3)
        inputs = equation.split(",")[0]
        lengths = dict(zip(equation.split(",")[1].split("->")[0], shape, strict=True)) | {"r": 2, "t": 5}
        x, a, b = (rng.normal(size=s).astype(np.float32) for s in ([lengths[i] for i in inputs], first, second))
        expected = np.einsum(equation, x.astype(np.float64), 0.5 * np.tensordot(a, b, 1))
        got = low_rank(equation, jnp.asarray(x), jnp.asarray(a), jnp.asarray(b), 0.5, jax.lax.Precision.HIGHEST)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert factor_axes("rthc,hcd->rtd", ("heads", "head", "embed")) == (("heads", "head", None), (None, "embed"))


def test_generation_reads_the_adapters_and_the_export_has_them_merged(tmp_path):
    policy = adapted(Adapter(rank=4, alpha=6.0, rslora=True), **FIELDS["biases"])
    variables = drawn(policy)
    batch, rows = tokens(), jnp.arange(2)
    whole = policy.logits(variables, batch)
    last, cache = policy.prefill(variables, batch[:, :6], jnp.array([6, 4]), 9)
    np.testing.assert_allclose(last, whole[rows, jnp.array([5, 3])], atol=1e-4)
    logits, _ = policy.decode(variables, cache, batch[rows, jnp.array([6, 4])], jnp.array([6, 4]))
    np.testing.assert_allclose(logits, whole[rows, jnp.array([6, 4])], atol=1e-4)

    save_pretrained(policy, variables, tmp_path / "merged")
    base, merged = load_policy(tmp_path / "merged", dtype="float32")
    np.testing.assert_allclose(base.logits(merged, batch), whole, atol=1e-4)
    query, theirs = (v["params"]["layers"]["attention"]["query"] for v in (variables, merged))
    assert np.abs(query["kernel"] - theirs["kernel"]).max() > 0.1
    # What is not adapted is written as it was, bit for bit.
    np.testing.assert_array_equal(theirs["bias"], query["bias"])
    np.testing.assert_array_equal(merged["params"]["embed"]["embedding"], variables["params"]["embed"]["embedding"])
    # A folder has no adapters: they start anew over the model in it.
    fresh = load_variables(tmp_path / "merged", policy, seed=3)
    jax.tree.map(np.testing.assert_array_equal, without_adapter(fresh), merged)
    assert not np.asarray(fresh["lora"]["layers"]["mlp"]["up"]["b"]).any()


def test_targets_choose_and_change_no_other_draw():
    def fresh(**fields):
        abstract = adapted(Adapter(rank=4, **fields)).abstract()["lora"]
        return jax.jit(lambda rng: init_adapter(rng, abstract))(jax.random.key(1))

    everything, some = fresh(), fresh(targets="query|value")
    assert some["layers"].keys() == {"attention"}
    assert some["layers"]["attention"].keys() == {"query", "value"}
    np.testing.assert_array_equal(
        some["layers"]["attention"]["query"]["a"], everything["layers"]["attention"]["query"]["a"]
    )
    # A within 1 / sqrt(inputs), and filling that range; B = 0; a stream for each.
    for path, inputs in (("mlp/down", 40), ("attention/output", 32)):
        block, name = path.split("/")
        a = np.abs(everything["layers"][block][name]["a"])
        assert 0.95 / math.sqrt(inputs) < a.max() <= 1 / math.sqrt(inputs)
    assert not any(
        np.asarray(leaf).any() for path, leaf in jax.tree.leaves_with_path(everything) if path[-1].key == "b"
    )
    assert not np.array_equal(everything["layers"]["mlp"]["gate"]["a"], everything["layers"]["mlp"]["up"]["a"])


def test_factors_are_float32_and_named_whatever_the_base_is():
    policy = build_policy(decoder_config(SIZES), param_dtype="bfloat16", adapter=Adapter(rank=4))
    abstract, axes = policy.abstract(), policy.axes()
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract["lora"])} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract["params"])} == {jnp.dtype("bfloat16")}
    query = axes["lora"]["layers"]["attention"]["query"]
    assert query == {"a": ("layers", "embed", None), "b": ("layers", None, "heads", "head")}
    assert abstract["lora"]["layers"]["attention"]["query"]["b"].shape == (2, 4, 4, 8)


def test_the_scale():
    assert Adapter(rank=16, alpha=32.0).scale == 2.0
    assert Adapter(rank=16, alpha=32.0, rslora=True).scale == 8.0


def test_wrong_targets_are_named():
    assert check_targets("query|mlp") == []
    assert check_targets(".*") == []
    assert "Did you mean 'attention/query|attention/value'" in check_targets("q_proj|v_proj")[0]
    assert "regular expression" in check_targets("(")[0]
    assert all(path in check_targets("embed")[0] for path in PROJECTIONS)
    with pytest.raises(ModelError, match="rank is 0"):
        Adapter(targets="query", rank=0)
    with pytest.raises(ModelError, match="found in none of the projections"):
        Adapter(targets="embed")
