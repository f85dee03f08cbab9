"""The step gives the same update however the examples are laid out, split and spread.

Equal means 1e-5 relative to the largest value, float32, for every method. The yardstick is one forward pass for each
sequence with all its logits, which shares nothing with the row layout.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.pipeline import OrderedBatches
from jaxalign.data.row_plans import RowShape
from jaxalign.kernels import tree_attention_tpu
from jaxalign.kernels.tree_attention_tpu import Blocks, Tile
from jaxalign.methods import INPUTS, METHODS, Logps
from jaxalign.models import attention_forms
from jaxalign.training.inputs import example_keys, objective_inputs
from jaxalign.training.mesh import make_mesh
from jaxalign.types import causal_rows
from tests.training.conftest import (
    OPTIONS,
    assert_same,
    completions_of,
    examples_for,
    one_step,
    policy_for,
    variables_for,
)

pytestmark = pytest.mark.slow

N = 12  # most tokens of a completion


KERNEL = ("sft", "dpo", "kto", "info_nca")
"""One method of each layout runs through the TPU's attention kernel, interpreted, on devices and under remat."""
DECODER = ("sft", "dpo", "kto", "tdpo2", "beta_dpo", "info_nca", "reward_model")
"""One method of each kind of input runs through the decoder; the others share everything but their objective."""


@pytest.fixture(scope="module", params=METHODS)
def method_name(request):
    return request.param


@pytest.fixture(scope="module")
def packed(method_name):
    """The step as users run it: packed rows, one device, one micro-batch."""
    return one_step(method_name, examples_for(method_name), small=True)


class Sequences:
    """Every completion of every example alone behind its prompt, padded to one length: ``[M, L]``, M = B * K."""

    def __init__(self, method, examples):
        batches = OrderedBatches(examples, batch_size=len(examples), mismatched=method.mismatched, seed=11)
        shown = [batches.example(i) for i in range(len(examples))]
        answers = [(e.prompt, c) for e in shown for c in (*e.completions, *e.unscored)]
        longest = max(len(prompt) + len(answer) for prompt, answer in answers)
        self.tokens = jnp.asarray([[*p, *c, *[0] * (longest - len(p) - len(c))] for p, c in answers], jnp.int32)
        self.completions = len(shown[0].completions)
        self.each = len(answers) // len(shown)
        self.lengths = np.array([len(c) for _, c in answers])
        self.prompts = np.array([len(p) for p, _ in answers])
        self.present = jnp.asarray(np.arange(N) < self.lengths[:, None])
        self.places = jnp.asarray(np.minimum(self.prompts[:, None] + np.arange(N), longest - 1))
        self.columns = {name: jnp.asarray([e.columns[name] for e in shown]) for name in example_columns(method)}
        self.token_columns = {
            name: self.by_example(jnp.asarray([_padded(c, name) for e in shown for c in e.columns[name]]), scored=False)
            for name in method.columns
            if INPUTS[name].per == "token"
        }

    def by_example(self, array, scored=True):
        """``[M, ...] -> [B, K, ...]``, the scored completions."""
        each = self.each if scored else self.completions
        return array.reshape(-1, each, *array.shape[1:])[:, : self.completions]

    def at(self, array, places):
        return jnp.take_along_axis(array, places.reshape(*places.shape, *[1] * (array.ndim - 2)), axis=1)

    def of_tokens(self, array, before=1):
        """Of each scored token, ``[B, K, N, ...]``: the value one place before it (or at it)."""
        found = self.at(array, self.places - before)
        present = self.present.reshape(*self.present.shape, *[1] * (array.ndim - 2))
        return self.by_example(jnp.where(present, found, 0.0))

    def values(self, method, policy, params, reference):
        """By input name, from all logits."""
        hidden = policy.hidden(params, causal_rows(self.tokens))
        found = dict(self.token_columns)
        if policy.head_outputs:
            outputs = policy.outputs(params, hidden)
            ends = self.at(outputs, jnp.asarray(self.prompts + self.lengths - 1)[:, None])[:, 0]
            found["rewards"] = self.by_example(ends[..., 0])
            found["degree_logits"] = ends.reshape(-1, self.each, ends.shape[-1])
            found["step_logits"] = self.of_tokens(outputs, before=0)
        if policy.language_head:
            log_p = jax.nn.log_softmax(policy.logits(params, self.tokens))
            log_q = jax.nn.log_softmax(policy.logits(reference, self.tokens))
            p, q = jnp.exp(log_p), jnp.exp(log_q)
            target = self.at(self.tokens, self.places)

            def tokens(log_probabilities):
                rows = self.at(log_probabilities, self.places - 1)
                picked = jnp.take_along_axis(rows, target[..., None], -1)[..., 0]
                return self.by_example(jnp.where(self.present, picked, 0.0))

            given = (tokens(log_p), tokens(log_q))
            found["policy"], found["reference"] = given if method.logps is Logps.TOKEN else (g.sum(-1) for g in given)
            found["token_kl"] = self.of_tokens((q * (log_q - log_p)).sum(-1))
            found["token_entropy"] = self.of_tokens(-(p * log_p).sum(-1))
            found["token_collision"] = self.of_tokens(jnp.log(jnp.square(p).sum(-1)))
        return {name: found[name] for name in method.inputs if name in found} | (
            {"policy": found["policy"]} if "policy" in found else {}
        )


def example_columns(method):
    return [name for name in method.columns if INPUTS[name].per != "token"]


def _padded(values, name):
    values = np.asarray(values)
    return np.concatenate([values, np.full(N - len(values), -1 if name == "step_labels" else 0, values.dtype)])


def loss_by_sequence(method, examples, policy, variables, options):
    """The loss and its gradient."""
    sequences, count = Sequences(method, examples), len(examples)

    def loss(params, reference):
        inputs = objective_inputs(
            method,
            sequences.values(method, policy, params, reference),
            lengths=sequences.by_example(jnp.asarray(sequences.lengths, jnp.float32)),
            columns=sequences.columns,
            example_mask=jnp.ones(count, bool),
            keys=example_keys(jax.random.key_data(jax.random.key(0)), 0, jnp.arange(count)),
        )
        output = method.objective(**inputs, **method.resolve_options(options))
        return (output.losses * output.weights).sum() / output.weights.sum()

    return jax.jit(jax.value_and_grad(loss))(*variables)


def assert_is_gradient(outcome, value, gradients):
    np.testing.assert_allclose(outcome.loss, value, rtol=1e-5, atol=1e-6)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), outcome.gradient, gradients)


def test_equals_one_forward_pass_for_each_sequence(method_name, packed):
    method, examples = METHODS[method_name], examples_for(method_name)
    policy, variables = policy_for(method, small=True), variables_for(method, small=True)
    options = OPTIONS.get(method_name, {})
    assert_is_gradient(packed, *loss_by_sequence(method, examples, policy, variables, options))


def test_rows_devices_and_microbatches(method_name, packed):
    """Longer rows with fewer examples each and empty ones among them, on 2 x 2 x 2 devices, in four parts."""
    method, examples = METHODS[method_name], examples_for(method_name)
    spread = one_step(
        method_name,
        examples,
        shape=RowShape(128, 96, 3, completions_of(method, examples)),
        row_count=32,
        plan=make_mesh(data=2, fsdp=2, tensor=2),
        microbatches=4,
        small=True,
    )
    assert_same(packed, spread)


@pytest.mark.parametrize("name", DECODER)
def test_the_decoder(name, monkeypatch):
    """The same with the decoder: against single sequences, and in two parts on devices."""
    method, examples = METHODS[name], examples_for(name)
    packed, options = one_step(name, examples), OPTIONS.get(name, {})
    assert_is_gradient(packed, *loss_by_sequence(method, examples, policy_for(method), variables_for(method), options))
    plan = make_mesh(data=2, fsdp=2, tensor=2)
    if name in KERNEL:
        monkeypatch.setattr(attention_forms, "form_name", lambda *_: "kernel")
        monkeypatch.setattr(attention_forms, "platform", lambda: "interpret")
        monkeypatch.setattr(tree_attention_tpu, "default_blocks", lambda *_: Blocks(*[Tile(16, 16)] * 3))
    with jax.set_mesh(plan.mesh) if name in KERNEL else contextlib.nullcontext():
        assert_same(packed, one_step(name, examples, plan=plan, microbatches=2))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_batch_in_which_nothing_counts_changes_nothing(microbatches):
    """Rankings that are all ties have no pair to learn from; that is no reason to end a run with 0 / 0."""
    examples = examples_for("reward_model_ranked")
    tied = replace(examples, columns={"scores": np.ones_like(examples.columns["scores"])})
    outcome = one_step("reward_model_ranked", tied, microbatches=microbatches, small=True)
    assert "loss" not in outcome.metrics
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), outcome.gradient)


def test_one_example_a_row():
    """The other end of packing, for one method of each kind of input."""
    for name in ("sft", "dpo", "kto"):
        method, examples = METHODS[name], examples_for(name)
        shape = RowShape(48, 32, 1, completions_of(method, examples))
        assert_same(one_step(name, examples), one_step(name, examples, shape=shape))


def test_identical_policy_and_reference_give_the_closed_form():
    """Step 0 of DPO: the loss is ln 2 and the rewards are exactly 0; IPO's is (1 / (2 beta))^2; KTO's is 1/2."""
    same = (variables_for(METHODS["dpo"])[1],) * 2
    dpo = one_step("dpo", examples_for("dpo"), variables=same)
    assert dpo.metrics["rewards/chosen"] == dpo.metrics["rewards/margins"] == 0.0
    np.testing.assert_allclose(dpo.loss, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(one_step("ipo", examples_for("ipo"), variables=same).loss, 25.0, rtol=1e-6)
    np.testing.assert_allclose(one_step("kto", examples_for("kto"), variables=same).loss, 0.5, rtol=1e-6)
