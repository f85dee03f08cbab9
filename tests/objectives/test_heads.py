"""Hand-worked numbers and limiting cases of the objectives that train a linear head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.methods import METHODS, get_method
from jaxalign.objectives import (
    dpo,
    eurus_reward_model,
    process_reward_model,
    reward_model,
    reward_model_margin,
    reward_model_ranked,
    spo,
)
from jaxalign.types import Pair


def pair(chosen, rejected):
    return Pair(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))


REWARDS = pair([1.0, -0.5, 0.25], [-1.0, 0.5, 0.25])


def test_reward_model_by_hand():
    """log(1 + exp(-2)) = 0.126928, log(1 + exp(1)) = 1.313262, log 2; centring adds 0.1 times 0, 0, 0.5^2."""
    output = reward_model(REWARDS)
    assert output.losses.tolist() == pytest.approx([0.126928, 1.313262, 0.693147], abs=1e-6)
    assert output.metrics["rewards/accuracies"].tolist() == [1.0, 0.0, 0.0]  # a tie is wrong
    centred = reward_model(REWARDS, center_coefficient=0.1)
    assert (centred.losses - output.losses).tolist() == pytest.approx([0.0, 0.0, 0.025], abs=1e-7)


def test_reward_model_is_dpo_with_a_head():
    """The same Bradley-Terry likelihood: DPO's reward is beta times the log-ratio."""
    policy, reference = pair([-10.0, -15.0], [-13.0, -8.0]), pair([-12.0, -12.0], [-12.0, -12.0])
    rewards = jax.tree.map(lambda lp, lr: 0.1 * (lp - lr), policy, reference)
    np.testing.assert_allclose(reward_model(rewards).losses, dpo(policy, reference, beta=0.1).losses, rtol=1e-6)


def test_rewards_may_drift_together_unless_centred():
    shifted = jax.tree.map(lambda r: r + 7.0, REWARDS)
    np.testing.assert_allclose(reward_model(shifted).losses, reward_model(REWARDS).losses, rtol=1e-6)
    pull = jax.grad(lambda r: reward_model(r, center_coefficient=0.01).losses.sum())(shifted)
    assert (pull.chosen + pull.rejected > 0).all()


def test_margin_by_hand():
    """Scores 3 apart and a scale of 0.5 ask for 1.5: log(1 + exp(-(2 - 1.5))) = 0.474077. A negative margin of 2
    (scores the other way round) asks for less: log(1 + exp(-(-1 + 2))) = 0.313262. No margin: log 2."""
    scores = pair([8.0, 1.0, 4.0], [5.0, 5.0, 4.0])
    losses = reward_model_margin(REWARDS, scores, scale=0.5).losses
    assert losses.tolist() == pytest.approx([0.474077, 0.313262, 0.693147], abs=1e-6)
    unscaled = reward_model_margin(REWARDS, scores, scale=0.0, center_coefficient=0.1)
    np.testing.assert_array_equal(unscaled.losses, reward_model(REWARDS, center_coefficient=0.1).losses)


def test_eurus_by_hand():
    """First pair, absolute: 0.126928 + 2 log(1 + exp(-1)) = 0.126928 + 0.626523. Second, not absolute: 1.313262. Third,
    absolute, both 0.25: log 2 + log(1 + exp(-0.25)) + log(1 + exp(0.25)) = 0.693147 + 0.575939 + 0.825939."""
    output = eurus_reward_model(REWARDS, jnp.array([True, False, True]))
    assert output.losses.tolist() == pytest.approx([0.753451, 1.313262, 2.095026], abs=2e-6)
    signs = output.metrics["absolute/accuracies"]
    assert signs.values.tolist() == [1.0, 0.0, 0.5]
    assert signs.weights.tolist() == [1.0, 0.0, 1.0]
    none = eurus_reward_model(REWARDS, jnp.zeros(3, bool))
    np.testing.assert_array_equal(none.losses, reward_model(REWARDS).losses)


def test_absolute_terms_have_an_origin():
    """Without them only the difference counts; with them the best rewards lie on both sides of 0."""
    rewards = jnp.array([5.0, 4.0])

    def loss(r, absolute):
        return eurus_reward_model(Pair(r[:1], r[1:]), jnp.array([absolute])).losses.sum()

    assert float(jax.grad(loss)(rewards, False).sum()) == pytest.approx(0.0, abs=1e-6)
    assert float(jax.grad(loss)(rewards, True).sum()) > 0.9  # both are pulled down


def test_two_completions_are_a_pair():
    rewards = jnp.stack(REWARDS, axis=1)
    ranked = reward_model_ranked(rewards, jnp.array([[2.0, 1.0]] * 3), jnp.ones((3, 2)))
    np.testing.assert_allclose(ranked.losses, reward_model(REWARDS).losses, rtol=1e-6)
    turned = reward_model_ranked(rewards[:, ::-1], jnp.array([[1.0, 2.0]] * 3), jnp.ones((3, 2)))
    np.testing.assert_array_equal(turned.losses, ranked.losses)


def test_ranked_counts_every_ordered_pair_once():
    """Scores 3, 1, 1: two pairs and no third. Rewards 1, 0, -1: the mean of log(1 + exp(-1)) and log(1 + exp(-2)),
    (0.313262 + 0.126928) / 2. The completion that does not exist changes nothing, whatever it holds."""
    rewards, scores = jnp.array([[1.0, 0.0, -1.0, jnp.nan]]), jnp.array([[3.0, 1.0, 1.0, 9.0]])
    lengths = jnp.array([[5.0, 2.0, 1.0, 0.0]])
    assert reward_model_ranked(rewards, scores, lengths).losses.item() == pytest.approx(0.220095, abs=1e-6)
    gradient = jax.grad(lambda r: reward_model_ranked(r, scores, lengths).losses.sum())(rewards)
    assert jnp.isfinite(gradient).all()
    assert gradient[0, 3] == 0


def test_a_ranking_of_ties_says_nothing():
    output = reward_model_ranked(jnp.array([[1.0, 2.0]]), jnp.array([[4.0, 4.0]]), jnp.ones((1, 2)))
    assert output.losses.tolist() == [0.0]
    assert output.weights.tolist() == [0.0]


def test_process_reward_model_by_hand():
    """Margins 1 (right), 1 and -2 (wrong): log(1 + exp(-1)), log(1 + exp(1)), log(1 + exp(-2)); over 2 and 1 steps:
    (0.313262 + 1.313262) / 2 and 0.126928. The batch's loss is the mean over all three."""
    logits = jnp.array([[[0.0, 1.0], [jnp.nan, 0.0], [0.0, 1.0]], [[2.0, 0.0], [9.0, 9.0], [jnp.inf, 0.0]]])
    labels = jnp.array([[1, -1, 0], [0, -1, -1]])
    output = process_reward_model(logits, labels)
    assert output.losses.tolist() == pytest.approx([0.813262, 0.126928], abs=1e-6)
    assert output.weights.tolist() == [2.0, 1.0]
    batch = (output.losses * output.weights).sum() / output.weights.sum()
    assert batch.item() == pytest.approx((0.313262 + 1.313262 + 0.126928) / 3, abs=1e-6)
    metrics = {name: (m.values.tolist(), m.weights.tolist()) for name, m in output.metrics.items()}
    assert metrics["accuracies"] == ([0.5, 1.0], [2.0, 1.0])
    assert metrics["accuracies/right"] == ([1.0, 0.0], [1.0, 0.0])
    assert metrics["accuracies/wrong"] == ([0.0, 1.0], [1.0, 1.0])
    gradient = jax.grad(lambda z: process_reward_model(z, labels).losses.sum())(logits)
    assert jnp.isfinite(gradient).all()
    assert (gradient[labels == -1] == 0).all()


def test_further_tokens_change_nothing():
    logits = jax.random.normal(jax.random.key(0), (2, 4, 2))
    labels = jnp.array([[1, -1, 0, 1], [0, 0, -1, 1]])
    longer = process_reward_model(
        jnp.pad(logits, ((0, 0), (0, 3), (0, 0)), constant_values=5.0),
        jnp.pad(labels, ((0, 0), (0, 3)), constant_values=-1),
    )
    np.testing.assert_allclose(longer.losses, process_reward_model(logits, labels).losses, rtol=1e-6)


def test_spo_by_hand():
    """Even logits cost log 3 = 1.098612 whatever the degree; (ln 2, 0, 0) gives 1/2 to degree 0: log 2."""
    logits = jnp.log(jnp.array([[[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]], [[2.0, 1.0, 1.0], [jnp.nan] * 3]]))
    output = spo(logits, jnp.array([[2, 0], [0, -1]]))
    assert output.losses.tolist() == pytest.approx([(1.098612 + 0.693147) / 2, 0.693147], abs=1e-6)
    assert output.metrics["degree_accuracies"].values.tolist() == [0.5, 1.0]
    gradient = jax.grad(lambda z: spo(z, jnp.array([[2, 0], [0, -1]])).losses.sum())(logits)
    assert jnp.isfinite(gradient).all()
    assert (gradient[1, 1] == 0).all()
    assert spo(logits, jnp.full((2, 2), -1)).weights.tolist() == [0.0, 0.0]


def test_spo_with_another_number_of_degrees():
    method = get_method("spo")
    assert method.head_outputs(method.resolve_options({"classes": 5})) == 5
    assert method.check_options({"classes": 1})
    with pytest.raises(ValueError, match="has 3 outputs, expected classes = 4"):
        spo(jnp.zeros((1, 1, 3)), jnp.zeros((1, 1), jnp.int32), classes=4)


def test_heads_of_the_table():
    heads = {name: m.head_outputs(m.resolve_options({})) for name, m in METHODS.items() if m.head}
    rewards = dict.fromkeys(("reward_model", "reward_model_margin", "reward_model_ranked", "eurus_reward_model"), 1)
    assert heads == {**rewards, "process_reward_model": 2, "spo": 3}
    assert all("policy" not in METHODS[name].inputs for name in heads)
