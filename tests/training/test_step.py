"""The step gives the same update however the examples are laid out, split and spread.

Equal means 1e-5 relative to the largest value, float32, for every method. The yardstick is one forward pass for each
sequence with all its logits, which shares nothing with the row layout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.rows import RowShape
from jaxalign.methods import METHODS, Layout
from jaxalign.models.policy import build_policy
from jaxalign.training.inputs import objective_inputs
from jaxalign.training.mesh import make_mesh
from tests.training.conftest import CONFIG, assert_same, examples_for, one_step

EVERY = list(METHODS)


@pytest.fixture(scope="module", params=EVERY)
def method_name(request):
    return request.param


@pytest.fixture(scope="module")
def packed(method_name, policy, variables):
    """The step as users run it: packed rows, one device, one micro-batch."""
    return one_step(method_name, policy, variables, examples_for(method_name))


def sequence_logp(policy, variables, prompt, completion):
    tokens = jnp.concatenate([prompt, completion])[None]
    logps = jax.nn.log_softmax(policy.logits(variables, tokens)[0, :-1])
    return jnp.take_along_axis(logps, tokens[0, 1:, None], axis=1)[len(prompt) - 1 :, 0].sum()


@pytest.mark.parametrize("name", [name for name in EVERY if METHODS[name].layout is not Layout.UNPAIRED])
def test_equals_one_forward_pass_for_each_sequence(name, policy, variables):
    examples, method = examples_for(name, count=5), METHODS[name]
    outcome = one_step(name, policy, variables, examples)
    trained, reference = variables

    def sums(params):
        return jnp.stack(
            [jnp.stack([sequence_logp(policy, params, e.prompt, c) for c in e.completions]) for e in examples]
        )

    def loss(params):
        inputs = objective_inputs(
            method,
            {"policy": sums(params), "reference": sums(reference)},
            lengths=jnp.asarray(examples.completion_lengths, jnp.float32),
            columns={},
            example_mask=jnp.ones(len(examples), bool),
        )
        output = method.objective(**inputs, **method.resolve_options({}))
        return (output.losses * output.weights).sum() / output.weights.sum()

    value, gradients = jax.value_and_grad(loss)(trained)
    np.testing.assert_allclose(outcome.loss, value, rtol=1e-5)
    np.testing.assert_allclose([outcome.policy_sums[i] for i in range(5)], sums(trained), rtol=1e-5, atol=1e-4)

    def close(new, old, gradient):
        np.testing.assert_allclose(old - new, gradient, atol=1e-5 * max(float(jnp.abs(gradient).max()), 1e-2))

    jax.tree.map(close, outcome.params, trained, gradients)  # plain SGD with rate 1: the update is the gradient


def test_one_example_a_row(method_name, packed, policy, variables):
    completions = 1 if method_name == "sft" else 2
    assert_same(
        packed,
        one_step(method_name, policy, variables, examples_for(method_name), shape=RowShape(48, 32, 1, completions)),
    )


def test_longer_rows_more_slots_and_empty_rows(method_name, packed, policy, variables):
    completions = 1 if method_name == "sft" else 2
    shape = RowShape(128, 80, 9, completions)
    assert_same(packed, one_step(method_name, policy, variables, examples_for(method_name), shape=shape, row_count=12))


def test_microbatches(method_name, packed, policy, variables):
    assert_same(packed, one_step(method_name, policy, variables, examples_for(method_name), microbatches=4))


def test_eight_devices_and_microbatches(method_name, packed, variables):
    plan = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = build_policy(CONFIG, dtype="float32", constrain=plan.constrain, remat="full")
    assert_same(packed, one_step(method_name, sharded, variables, examples_for(method_name), plan=plan, microbatches=2))


def test_identical_policy_and_reference_give_the_closed_form(policy, variables):
    """Step 0 of DPO: the loss is ln 2 and the rewards are exactly 0; IPO's is (1 / (2 beta))^2; KTO's is 1/2."""
    same = (variables[1], variables[1])
    dpo = one_step("dpo", policy, same, examples_for("dpo"))
    assert dpo.metrics["rewards/chosen"] == dpo.metrics["rewards/margins"] == 0.0
    np.testing.assert_allclose(dpo.loss, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(one_step("ipo", policy, same, examples_for("ipo")).loss, 25.0, rtol=1e-6)
    np.testing.assert_allclose(one_step("kto", policy, same, examples_for("kto")).loss, 0.5, rtol=1e-6)
