"""What objectives are given, by layout and form of the log-probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.methods import METHODS, Layout, Logps, Method, get_method
from jaxalign.training.inputs import example_keys, mean_lengths, objective_inputs
from jaxalign.types import LossOutput, Pair

R, E = 2, 3
MASK = np.array([[True, True, False], [True, False, False]])


def make(completions: int, **columns):
    rng = np.random.default_rng(0)
    shape = (R, E, completions)
    lengths = rng.integers(1, 9, shape).astype(np.float32) * MASK[..., None]
    return {
        "values": {
            "policy": jnp.asarray(-rng.random(shape, np.float32) * 9),
            "reference": jnp.asarray(-rng.random(shape, np.float32) * 9),
        },
        "lengths": jnp.asarray(lengths),
        "columns": {name: jnp.asarray(value) for name, value in columns.items()},
        "example_mask": jnp.asarray(MASK),
    }


def without_reference(data):
    return data | {"values": {"policy": data["values"]["policy"]}}


def flat(values):
    return np.asarray(values).reshape(R * E, -1)


def all_inputs(policy: Pair, reference: Pair, lengths: Pair, mean_lengths: Pair, example_mask, *, beta: float = 0.1):
    """Asks for everything that a pair has."""
    return LossOutput(jnp.zeros(1), jnp.zeros(1), {})


def ranked(policy, reference, lengths, mean_lengths):
    """Asks for everything that a ranking has."""
    return LossOutput(jnp.zeros(1), jnp.zeros(1), {})


def test_paired_sums():
    data = make(2)
    got = objective_inputs(Method("m", all_inputs, Layout.PAIRED), **data)
    assert list(got) == ["policy", "reference", "lengths", "mean_lengths", "example_mask"]
    for name, source in (data["values"] | {"lengths": data["lengths"]}).items():
        assert isinstance(got[name], Pair)
        np.testing.assert_array_equal(got[name].chosen, flat(source)[:, 0])
        np.testing.assert_array_equal(got[name].rejected, flat(source)[:, 1])
    lengths = flat(data["lengths"])[MASK.reshape(-1)]
    np.testing.assert_allclose([got["mean_lengths"].chosen, got["mean_lengths"].rejected], lengths.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(got["example_mask"], MASK.reshape(-1))


def test_token_means_divide_by_the_scored_tokens_and_stay_finite_where_there_are_none():
    data = make(2)
    got = objective_inputs(Method("m", all_inputs, Layout.PAIRED, Logps.MEAN), **data)
    for name, source in data["values"].items():
        expected = flat(source) / np.maximum(flat(data["lengths"]), 1)
        np.testing.assert_allclose(np.stack(got[name], 1), expected, rtol=1e-6)


def test_a_reference_with_its_own_tokenizer_is_divided_by_its_own_tokens():
    own = np.random.default_rng(1).integers(1, 30, (R, E, 2)).astype(np.float32)
    data = make(2, reference_lengths=own)
    got = objective_inputs(METHODS["ipo"], **data)
    np.testing.assert_allclose(np.stack(got["reference"], 1), flat(data["values"]["reference"]) / flat(own), rtol=1e-6)
    np.testing.assert_allclose(
        np.stack(got["policy"], 1), flat(data["values"]["policy"]) / np.maximum(flat(data["lengths"]), 1), rtol=1e-6
    )
    sums = objective_inputs(METHODS["dpo"], **data)
    np.testing.assert_array_equal(np.stack(sums["reference"], 1), flat(data["values"]["reference"]))


def test_unpaired_takes_the_mismatched_completion_second():
    data = make(2, desirable=np.array([[1, 0, 0], [1, 0, 0]]))
    got = objective_inputs(METHODS["kto"], **data)
    np.testing.assert_array_equal(got["policy"], flat(data["values"]["policy"])[:, 0])
    np.testing.assert_array_equal(got["mismatched_policy"], flat(data["values"]["policy"])[:, 1])
    np.testing.assert_array_equal(got["mismatched_reference"], flat(data["values"]["reference"])[:, 1])
    assert got["desirable"].dtype == bool
    np.testing.assert_array_equal(got["desirable"], [True, False, False, True, False, False])


def test_single_and_ranked():
    data = make(1)
    got = objective_inputs(METHODS["sft"], **without_reference(data))
    assert list(got) == ["policy", "lengths"]
    np.testing.assert_array_equal(got["policy"], flat(data["values"]["policy"])[:, 0])
    data = make(4)
    got = objective_inputs(Method("m", ranked, Layout.RANKED), **data)
    assert got["policy"].shape == (R * E, 4)
    assert got["mean_lengths"].shape == (4,)


def test_only_the_policys_own_completions_carry_a_gradient():
    data = make(2, desirable=MASK)

    def total(policy, reference):
        inputs = objective_inputs(METHODS["kto"], **(data | {"values": {"policy": policy, "reference": reference}}))
        return sum(jnp.sum(inputs[name]) for name in inputs if name not in ("desirable", "example_mask"))

    policy, reference = jax.grad(total, argnums=(0, 1))(data["values"]["policy"], data["values"]["reference"])
    np.testing.assert_array_equal(policy[..., 0], 1)
    np.testing.assert_array_equal(policy[..., 1], 0)
    np.testing.assert_array_equal(reference, 0)


def test_mean_lengths_of_the_whole_batch_can_be_given():
    data = make(2)
    means = mean_lengths(data["lengths"], data["example_mask"])
    method = Method("m", all_inputs, Layout.PAIRED)
    part = jax.tree.map(lambda value: value[:1], data)
    got = objective_inputs(method, **part, mean_lengths=means)
    np.testing.assert_array_equal(np.stack(got["mean_lengths"]), means)
    none = mean_lengths(data["lengths"], jnp.zeros_like(data["example_mask"]))
    np.testing.assert_array_equal(none, [0, 0])


@pytest.mark.parametrize(
    ("method", "completions", "columns", "reference", "message"),
    [
        ("kto", 2, {}, True, "needs the column 'desirable'"),
        ("kto", 1, {"desirable": MASK}, True, "'mismatched_policy' needs a second completion"),
        ("kto", 2, {"desirable": MASK}, False, "'reference' needs a reference; set reference.source"),
        ("dpo", 2, {}, False, "needs a reference"),
        ("dpo", 3, {}, True, "got 3 completions behind each prompt, expected 2"),
        ("sft", 2, {}, True, "got 2 completions behind each prompt, expected 1"),
    ],
)
def test_what_is_missing_is_named_while_tracing(method, completions, columns, reference, message):
    data = make(completions, **columns)
    if not reference:
        data = without_reference(data)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda: objective_inputs(METHODS[method], **data))


def test_all_problems_are_told_at_once():
    data = without_reference(make(1))
    with pytest.raises(ConfigError) as caught:
        objective_inputs(METHODS["kto"], **data)
    assert len(caught.value.problems) == 5


def test_a_method_that_compares_distributions_needs_a_live_reference():
    def compares(policy: Pair, token_kl: Pair):
        return LossOutput(jnp.zeros(1), jnp.zeros(1), {})

    with pytest.raises(ConfigError, match=r"'token_kl' needs a live reference; set reference.mode=live"):
        objective_inputs(Method("m", compares, Layout.PAIRED), **make(2))


def test_columns_take_the_shape_of_the_layout():
    def asks(policy: Pair, scores: Pair, absolute, token_weights: Pair, token_mask: Pair, state):
        return LossOutput(jnp.zeros(1), jnp.zeros(1), {})

    rng = np.random.default_rng(2)
    scores, weights = rng.random((R, E, 2)), rng.random((R, E, 2, 7))
    data = make(2, scores=scores, absolute=MASK)
    data["values"] |= {"token_weights": jnp.asarray(weights)}
    method = Method("m", asks, Layout.PAIRED, batch_coupled=True, state={"mean": 0.5})
    got = objective_inputs(method, **data)
    assert list(got) == ["policy", "scores", "absolute", "token_weights", "token_mask", "state"]
    np.testing.assert_allclose(got["scores"].rejected, scores.reshape(-1, 2)[:, 1], rtol=1e-6)
    np.testing.assert_allclose(got["token_weights"].chosen, weights.reshape(-1, 2, 7)[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(got["token_mask"].chosen.sum(1), flat(data["lengths"])[:, 0].clip(max=7))
    assert got["absolute"].dtype == bool
    assert got["state"] == {"mean": 0.5}
    assert objective_inputs(method, **data, state={"mean": 2.0})["state"] == {"mean": 2.0}


@pytest.mark.parametrize("expression", ["0.1*spo + ld(dpo)", "ld(dpo) + 0.1*spo"])
def test_the_mask_of_tokens_takes_its_length_from_tokens(expression):
    """A term on damaged copies, ``[B, M, C]``, is none of the tokens', wherever it stands in the sum."""
    method, data = get_method(expression), make(2, degrees=np.zeros((R, E, 6), np.int32))
    tokens = {name: jnp.zeros((R, E, 2, 9)) for name in ("policy", "reference")}
    given = tokens | {"degree_logits": jnp.zeros((R, E, 6, 3))}
    data["values"] = {name: given[name] for name in method.inputs if name in given}
    got = objective_inputs(method, **data)
    assert got["token_mask"].chosen.shape == (R * E, 9)


def test_keys_differ_by_example_and_step_and_do_not_depend_on_the_place():
    rng, ids = jax.random.key_data(jax.random.key(3)), jnp.asarray([[4, 9], [2, -1]])
    keys = example_keys(rng, 5, ids)
    data = jax.random.key_data(keys)
    assert keys.shape == (2, 2)
    assert len({tuple(key) for key in data.reshape(4, -1).tolist()}) == 4
    np.testing.assert_array_equal(jax.random.key_data(example_keys(rng, 5, ids[::-1, ::-1])), data[::-1, ::-1])
    assert (jax.random.key_data(example_keys(rng, 6, ids)) != data).any(-1).all()
