"""Objectives against TRL's other trainers: the batch's loss and its gradient, on the same tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.methods import Logps, get_method
from jaxalign.types import LossOutput, Pair
from tests.objectives.trl_cases import CASES, agree, mean, pair, paired, reduced, tokens

pytestmark = [pytest.mark.judge, pytest.mark.trl]

# Name of the test, method, its options, TRL's settings.
REFERENCE_FREE = {
    "cpo": ("cpo", {"beta": 0.1}, {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "cpo smooth": (
        "cpo",
        {"beta": 0.3, "label_smoothing": 0.2, "nll_coefficient": 0.5},
        {"loss_type": "sigmoid", "label_smoothing": 0.2, "cpo_alpha": 0.5},
    ),
    # TRL's option is the margin itself: gamma = beta * gamma_beta_ratio.
    "simpo": ("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}, {"loss_type": "simpo", "simpo_gamma": 1.0}),
    "cpo_simpo": (
        "cpo_simpo",
        {"beta": 10.0, "gamma_beta_ratio": 0.54, "nll_coefficient": 0.05, "label_smoothing": 0.1},
        {"loss_type": "simpo", "simpo_gamma": 5.4, "cpo_alpha": 0.05, "label_smoothing": 0.1},
    ),
    "alphapo": (
        "alphapo",
        {"beta": 2.5, "gamma_beta_ratio": 0.04, "alpha": 0.25},
        {"loss_type": "simpo", "simpo_gamma": 0.1, "alpha": 0.25},
    ),
    "alphapo negative": (
        "alphapo",
        {"beta": 2.5, "gamma_beta_ratio": 0.04, "alpha": -0.5},
        {"loss_type": "simpo", "simpo_gamma": 0.1, "alpha": -0.5},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", REFERENCE_FREE)
def test_cpo(trl, loss, case):
    name, options, settings = REFERENCE_FREE[loss]
    batch = tokens(trl, case)
    if name == "alphapo" and case == "extreme":
        batch.policy[:] = np.maximum(batch.policy, -200.0)  # its exponential is clipped here from 240 nats on
    expected = trl.cpo(batch, beta=options["beta"], **settings)
    agree(batch.policy, lambda policy: mean(paired(name, policy, batch, **options)), expected)


@pytest.mark.parametrize("case", CASES)
def test_cpo_hinge(trl, case):
    """TRL scales the margin, SLiC-HF asks for 1 / beta nats: the same loss, times beta."""
    batch, beta = tokens(trl, case), 0.1
    options = {"margin": 1.0 / beta, "nll_coefficient": 0.5 / beta, "nll_normalization": "batch_tokens"}
    expected = trl.cpo(batch, loss_type="hinge", beta=beta, cpo_alpha=0.5)
    agree(batch.policy, lambda policy: beta * mean(paired("slic_hf", policy, batch, **options)), expected)


@pytest.mark.parametrize("case", CASES)
def test_cpo_ipo(trl, case):
    """IPO without a reference is IPO with one that is 0."""
    batch = tokens(trl, case)
    bare = batch._replace(reference=np.zeros_like(batch.reference))
    expected = trl.cpo(batch, loss_type="ipo", beta=0.1)
    agree(batch.policy, lambda policy: mean(paired("ipo", policy, bare, beta=0.1)), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prompt", [0, 1])
def test_orpo(trl, case, prompt):
    """TRL's likelihood is that of the prompt, too (of whose first token there is none): its tokens are added here."""
    batch = tokens(trl, case)
    if prompt:
        ones = np.full((len(batch.lengths), 1), -2.0, np.float32)
        batch = trl.Tokens(*(np.concatenate([ones, values], 1) for values in batch[:2]), batch.lengths + 1)
    completion = batch._replace(policy=batch.policy[:, prompt:], reference=batch.reference[:, prompt:])
    completion = completion._replace(lengths=batch.lengths - prompt)

    def loss(policy):
        output = paired("orpo", policy[:, prompt:], completion, odds_coefficient=0.1)
        chosen = pair(jnp.where(batch.mask, policy, 0.0)).chosen
        likelihood = -chosen.sum() / pair(batch.mask).chosen.sum()
        here = paired("nll", policy[:, prompt:], completion)
        return mean(output) - mean(here) + likelihood

    agree(batch.policy, loss, trl.orpo(batch, beta=0.1, prompt=prompt), exact=False)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["tpo", "tpo_l"])
def test_tpo(trl, name, case):
    """TRL's likelihood is the mean over all gold tokens of the batch, here every gold completion counts the same."""
    batch = tokens(trl, case, sides=3)
    method, lengths = get_method(name), np.stack(np.split(batch.lengths, 3), 1)
    settings = {"tpo": {"loss_type": "sigmoid"}, "tpo_l": {"loss_type": "tpo-l", "tpo_l_gamma": 1.6}}[name]
    options = {"beta": 2.0, "label_smoothing": 0.1, "nll_coefficient": 0.5}
    options |= {"tpo": {}, "tpo_l": {"gamma_beta_ratio": 0.8}}[name]

    def loss(policy):
        counts = jnp.asarray(lengths, policy.dtype)
        values = jnp.stack(jnp.split(reduced(policy, batch.mask, method.logps), 3), 1)
        scores = jnp.broadcast_to(jnp.asarray([1.0, 0.0, 2.0], policy.dtype), values.shape)  # the third is the best
        output = method.loss({"policy": values, "scores": scores, "lengths": counts}, options)
        gold = jnp.split(jnp.where(batch.mask, policy, 0.0), 3)[2].sum(-1)
        here, there = -(gold / counts[:, 2]).mean(), -gold.sum() / counts[:, 2].sum()
        return mean(output) + 0.5 * (there - here)

    agree(batch.policy, loss, trl.tpo(batch, beta=2.0, tpo_alpha=0.5, label_smoothing=0.1, **settings))


def unpaired(name: str, policy: jax.Array, batch: Any, mismatched: Any, desirable: np.ndarray, **options) -> LossOutput:
    """A method of single completions on tokens."""

    def sums(values, of):
        return reduced(jnp.asarray(values, policy.dtype), of.mask, Logps.SUM)

    inputs = {
        "policy": sums(policy, batch),
        "reference": sums(batch.reference, batch),
        "desirable": jnp.asarray(desirable),
        "mismatched_policy": sums(mismatched.policy, mismatched),
        "mismatched_reference": sums(mismatched.reference, mismatched),
        "example_mask": jnp.ones(desirable.shape, bool),
    }
    return get_method(name).loss(inputs, options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.33, 0.5)])
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_kto(trl, name, weights, case):
    batch, mismatched = tokens(trl, case), tokens(trl, "near")
    if case == "short":
        mismatched = trl.Tokens(*(values[:6] for values in mismatched))
    desirable = np.arange(len(batch.lengths)) % 3 != 1
    options = {"beta": 0.1, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    expected = trl.kto(batch, mismatched, desirable, loss_type=name, **options)
    agree(batch.policy, lambda policy: mean(unpaired(name, policy, batch, mismatched, desirable, **options)), expected)


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_kto_of_one_kind(trl, label, shift):
    """A batch without desirable or without undesirable completions; a KL estimate below and above 0."""
    batch, mismatched = tokens(trl, "random"), tokens(trl, "near")
    mismatched.reference[:] = np.minimum(mismatched.policy - shift, -0.01)
    desirable = np.full(len(batch.lengths), label)
    options = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    expected = trl.kto(batch, mismatched, desirable, loss_type="kto", **options)
    agree(batch.policy, lambda policy: mean(unpaired("kto", policy, batch, mismatched, desirable, **options)), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss_type", ["dft", "nll"])
def test_sft(trl, loss_type, case):
    if loss_type == "nll" and trl.VERSION < (1, 15):
        pytest.skip("this TRL leaves it to the model")
    batch, method = tokens(trl, case, sides=1), get_method({"dft": "dft", "nll": "sft"}[loss_type])

    def loss(policy):
        lengths = jnp.asarray(batch.lengths, policy.dtype)
        return mean(method.loss({"policy": reduced(policy, batch.mask, method.logps), "lengths": lengths}))

    agree(batch.policy, loss, trl.sft(batch, loss_type=loss_type))


REWARDS = {
    "random": [1.5, -0.3, 2.0, 0.2, 0.5, -4.0, 2.5, 0.2],
    "tied": [1.5, -0.3, 2.0, 0.2, 1.5, -0.3, 2.0, 0.2],
    "extreme": [1000.0, -1000.0, 0.0, 500.0, -1000.0, 1000.0, 1000.0, 500.0],
    "short": [0.5, -0.5],
}


@pytest.mark.parametrize("case", REWARDS)
@pytest.mark.parametrize("coefficient", [None, 0.01])
@pytest.mark.parametrize("with_margin", [False, True])
def test_reward_model(trl, with_margin, coefficient, case):
    rewards = np.asarray(REWARDS[case], np.float32)
    margin = np.linspace(-0.5, 2.0, len(rewards) // 2) if with_margin else None

    def loss(values):
        options = {"center_coefficient": coefficient or 0.0}
        inputs = {"rewards": pair(values)}
        if with_margin:  # TRL takes the difference of scores, half of it wanted here
            scores = jnp.asarray(margin, values.dtype)
            inputs, options = inputs | {"scores": Pair(3.0 + scores, 3.0 - scores)}, options | {"scale": 0.5}
        return mean(get_method("reward_model_margin" if with_margin else "reward_model").loss(inputs, options))

    agree(rewards, loss, trl.reward_model(rewards, margin, coefficient))


@pytest.fixture
def trl_with_bco(trl: Any) -> Any:
    if trl.VERSION >= (1, 14):
        pytest.skip("TRL dropped BCO and process reward models with 1.14")
    return trl


@pytest.mark.parametrize("udm", [False, True])
def test_bco(trl_with_bco, udm):
    """Batches of several sizes: random, tied, extreme and short ones, and the running mean over all of them."""
    theirs = trl_with_bco.Bco(beta=0.1, match_underlying_distribution=udm)
    method = get_method("bco_udm" if udm else "bco")
    state = {name: jnp.asarray(value, jnp.float32) for name, value in method.state.items()}
    for step, case in enumerate(("random", "short", "tied", "extreme", "near", "random")):
        batch = tokens(trl_with_bco, case)
        policy, reference = (np.asarray(reduced(jnp.asarray(v), batch.mask, Logps.SUM)) for v in batch[:2])
        policy, reference = policy[step:], reference[step:]
        desirable = np.arange(len(policy)) % 3 != 1
        probabilities = np.linspace(0.05, 0.98, len(policy))
        inputs = {
            "reference": jnp.asarray(reference),
            "desirable": jnp.asarray(desirable),
            "density_ratios": jnp.asarray(probabilities / (1.0 - probabilities), jnp.float32),
            "state": state,
            "example_mask": jnp.ones(len(policy), bool),
        }

        def output(values, method=method, inputs=inputs):
            return method.loss(inputs | {"policy": values}, {"beta": 0.1})

        # TRL's running mean is a float32.
        agree(policy, lambda values: mean(output(values)), theirs(policy, reference, desirable, probabilities), False)
        state = output(jnp.asarray(policy)).state
        np.testing.assert_allclose(state["mean"], theirs.trainer.running.mean, rtol=1e-5)
        np.testing.assert_allclose(state["count"], theirs.trainer.running.count)


def test_process_reward_model(trl_with_bco):
    """Steps of several lengths, one of a single token; no step carries the label of its first tokens."""
    step_lengths, marks = [[3, 1, 4], [2, 5], [1]], [[True, False, True], [False, False], [True]]
    logits = np.random.default_rng(0).uniform(-5.0, 5.0, (3, 9, 2)).astype(np.float32)
    logits[0, 2], logits[1, 1] = (1000.0, -1000.0), (0.5, 0.5)  # certain and wrong; a tie
    labels = np.full((3, 9), -1)
    for row, lengths, right in zip(labels, step_lengths, marks, strict=True):
        row[np.cumsum(lengths) - 1] = right

    def loss(values):
        return mean(
            get_method("process_reward_model").loss({"step_logits": values, "step_labels": jnp.asarray(labels)})
        )

    # transformers computes the cross-entropy in float32
    agree(logits, loss, trl_with_bco.process_reward_model(logits, step_lengths, marks), exact=False)
