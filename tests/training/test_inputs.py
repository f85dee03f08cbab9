"""What objectives are given, by layout and form of the log-probabilities."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.methods import METHODS, Layout, Logps, Method
from jaxalign.training.inputs import mean_lengths, objective_inputs
from jaxalign.types import LossOutput, Pair

R, E = 2, 3
MASK = np.array([[True, True, False], [True, False, False]])


def make(completions: int, **columns):
    rng = np.random.default_rng(0)
    shape = (R, E, completions)
    lengths = rng.integers(1, 9, shape).astype(np.float32) * MASK[..., None]
    return {
        "policy_sums": jnp.asarray(-rng.random(shape, np.float32) * 9),
        "reference_sums": jnp.asarray(-rng.random(shape, np.float32) * 9),
        "lengths": jnp.asarray(lengths),
        "columns": {name: jnp.asarray(value) for name, value in columns.items()},
        "example_mask": jnp.asarray(MASK),
    }


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
    for name, source in (("policy", "policy_sums"), ("reference", "reference_sums"), ("lengths", "lengths")):
        assert isinstance(got[name], Pair)
        np.testing.assert_array_equal(got[name].chosen, flat(data[source])[:, 0])
        np.testing.assert_array_equal(got[name].rejected, flat(data[source])[:, 1])
    lengths = flat(data["lengths"])[MASK.reshape(-1)]
    np.testing.assert_allclose([got["mean_lengths"].chosen, got["mean_lengths"].rejected], lengths.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(got["example_mask"], MASK.reshape(-1))


def test_token_means_divide_by_the_scored_tokens_and_stay_finite_where_there_are_none():
    data = make(2)
    got = objective_inputs(Method("m", all_inputs, Layout.PAIRED, Logps.MEAN), **data)
    for name, source in (("policy", "policy_sums"), ("reference", "reference_sums")):
        expected = flat(data[source]) / np.maximum(flat(data["lengths"]), 1)
        np.testing.assert_allclose(np.stack(got[name], 1), expected, rtol=1e-6)


def test_a_reference_with_its_own_tokenizer_is_divided_by_its_own_tokens():
    own = np.random.default_rng(1).integers(1, 30, (R, E, 2)).astype(np.float32)
    data = make(2, reference_lengths=own)
    got = objective_inputs(METHODS["ipo"], **data)
    np.testing.assert_allclose(np.stack(got["reference"], 1), flat(data["reference_sums"]) / flat(own), rtol=1e-6)
    np.testing.assert_allclose(
        np.stack(got["policy"], 1), flat(data["policy_sums"]) / np.maximum(flat(data["lengths"]), 1), rtol=1e-6
    )
    sums = objective_inputs(METHODS["dpo"], **data)
    np.testing.assert_array_equal(np.stack(sums["reference"], 1), flat(data["reference_sums"]))


def test_unpaired_takes_the_mismatched_completion_second():
    data = make(2, desirable=np.array([[1, 0, 0], [1, 0, 0]]))
    got = objective_inputs(METHODS["kto"], **data)
    np.testing.assert_array_equal(got["policy"], flat(data["policy_sums"])[:, 0])
    np.testing.assert_array_equal(got["mismatched_policy"], flat(data["policy_sums"])[:, 1])
    np.testing.assert_array_equal(got["mismatched_reference"], flat(data["reference_sums"])[:, 1])
    assert got["desirable"].dtype == bool
    np.testing.assert_array_equal(got["desirable"], [True, False, False, True, False, False])


def test_single_and_ranked():
    data = make(1)
    got = objective_inputs(METHODS["sft"], **(data | {"reference_sums": None}))
    assert list(got) == ["policy", "lengths"]
    np.testing.assert_array_equal(got["policy"], flat(data["policy_sums"])[:, 0])
    data = make(4)
    got = objective_inputs(Method("m", ranked, Layout.RANKED), **data)
    assert got["policy"].shape == (R * E, 4)
    assert got["mean_lengths"].shape == (4,)


def test_only_the_policys_own_completions_carry_a_gradient():
    data = make(2, desirable=MASK)

    def total(policy_sums, reference_sums):
        given = {"policy_sums": policy_sums, "reference_sums": reference_sums}
        inputs = objective_inputs(METHODS["kto"], **(data | given))
        return sum(jnp.sum(inputs[name]) for name in inputs if name not in ("desirable", "example_mask"))

    policy, reference = jax.grad(total, argnums=(0, 1))(data["policy_sums"], data["reference_sums"])
    np.testing.assert_array_equal(policy[..., 0], 1)
    np.testing.assert_array_equal(policy[..., 1], 0)
    np.testing.assert_array_equal(reference, 0)


def test_mean_lengths_of_the_whole_batch_can_be_given():
    data = make(2)
    means = mean_lengths(data["lengths"], data["example_mask"])
    method = Method("m", all_inputs, Layout.PAIRED)
    part = {name: value[:1] for name, value in data.items() if name != "columns"} | {"columns": {}}
    got = objective_inputs(method, **part, mean_lengths=means)
    np.testing.assert_array_equal(np.stack(got["mean_lengths"]), means)
    none = mean_lengths(data["lengths"], jnp.zeros_like(data["example_mask"]))
    np.testing.assert_array_equal(none, [0, 0])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gets_exactly_its_inputs_and_gives_a_loss_each(name):
    method = METHODS[name]
    data = make(1 if method.layout is Layout.SINGLE else 2, desirable=MASK)
    inputs = objective_inputs(method, **data)
    assert tuple(inputs) == method.inputs
    assert method.objective(**inputs).losses.shape == (R * E,)


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
        data["reference_sums"] = None
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda: objective_inputs(METHODS[method], **data))


def test_all_problems_are_told_at_once():
    data = make(1) | {"reference_sums": None}
    with pytest.raises(ConfigError) as caught:
        objective_inputs(METHODS["kto"], **data)
    assert len(caught.value.problems) == 5


def test_token_methods_are_refused_here():
    method = dataclasses.replace(METHODS["dpo"], logps=Logps.TOKEN)
    with pytest.raises(ConfigError, match="of each token"):
        objective_inputs(method, **make(2))
