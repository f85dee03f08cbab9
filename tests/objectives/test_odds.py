"""Hand-worked numbers, identities and the ends of the range of the objectives on odds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives import asft, asft_tempered, orpo
from jaxalign.types import Pair

LENGTHS = Pair(jnp.array([4.0, 10.0, 1.0]), jnp.array([4.0, 3.0, 20.0]))


def pair(chosen, rejected):
    return Pair(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))


def probabilities(chosen, rejected):
    return pair(np.log(chosen), np.log(rejected))


POLICY = probabilities([0.9, 0.3, 0.001], [0.5, 0.6, 0.999])


def log_odds(p):
    return np.log(p) - np.log1p(-p)


def test_orpo_by_hand():
    """Odds 4 and 1/4, ratio 16: -log(0.8) = 0.223144 and -0.1 log(16/17) = 0.006062."""
    output = orpo(probabilities([0.8], [0.2]), pair([4.0], [9.0]))
    assert output.losses.item() == pytest.approx(0.229206, abs=1e-6)
    assert output.metrics["nll_loss"].item() == pytest.approx(0.223144, abs=1e-6)
    assert output.metrics["log_odds_chosen"].item() == pytest.approx(np.log(16), abs=1e-6)
    assert output.metrics["log_odds_ratio"].item() == pytest.approx(np.log(16 / 17), abs=1e-6)


def test_orpo_batch_tokens_averages_to_the_token_mean():
    """The sum of the chosen completions' nats over their 15 tokens."""
    total = -(POLICY.chosen * LENGTHS.chosen).sum() / 15
    assert orpo(POLICY, LENGTHS).metrics["nll_loss"].mean().item() == pytest.approx(total.item(), rel=1e-6)


def test_orpo_without_odds_is_supervised():
    np.testing.assert_allclose(
        orpo(POLICY, LENGTHS, odds_coefficient=0.0, nll_normalization="tokens").losses, -POLICY.chosen, rtol=1e-6
    )


@pytest.mark.parametrize("objective", [lambda policy: orpo(policy, LENGTHS), asft, asft_tempered])
@pytest.mark.parametrize("nearly", [0.0, -1e-30, -1e-9, -1e-7, -1e-6, -1e-3, -100.0, -1000.0])
def test_finite_where_p_goes_to_one_or_zero(objective, nearly):
    """Also for gradients: the odds are clamped, and log(1 - p) keeps its digits on both sides."""
    for policy in (pair([nearly] * 3, [-1.0] * 3), pair([-1.0] * 3, [nearly] * 3), pair([nearly] * 3, [nearly] * 3)):
        losses, gradient = jax.value_and_grad(lambda p: objective(p).losses.sum())(policy)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, gradient)))


@pytest.mark.parametrize("p", [1e-6, 1e-3, 0.4999, 0.5, 0.5001, 0.999, 1 - 1e-6])
def test_log_odds_keep_their_digits(p):
    """ORPO's log_odds_chosen against a completion with odds 1, from float32 values of log p."""
    log_p = np.float32(np.log(p))
    exact = np.float64(log_p) - np.log(-np.expm1(np.float64(log_p)))
    actual = orpo(pair([log_p], [np.log(0.5)]), pair([1.0], [1.0])).metrics["log_odds_chosen"].item()
    assert actual == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_asft_by_hand():
    """-2 log(0.5) = 1.386294 and -log(1 - 0.2) = 0.223144; odds of 1 and 1/4."""
    output = asft(probabilities([0.5], [0.2]))
    assert output.losses.item() == pytest.approx(1.609438, abs=1e-6)
    assert output.metrics["rewards/chosen"].item() == pytest.approx(0.0, abs=1e-6)
    assert output.metrics["rewards/rejected"].item() == pytest.approx(np.log(0.25), abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_asft_equals_its_form_with_odds(weight):
    """-log p_w - w (log sigmoid(z_w) + log sigmoid(-z_l)), with sigmoid(z) = 1 / (1 + e^-z)."""
    p, q = np.array([0.9, 0.3, 0.001]), np.array([0.5, 0.6, 0.999])
    expected = -np.log(p) + weight * (np.log1p(np.exp(-log_odds(p))) + np.log1p(np.exp(log_odds(q))))
    np.testing.assert_allclose(asft(POLICY, odds_coefficient=weight).losses, expected, rtol=2e-5)


def test_asft_is_its_two_stages_in_one():
    """-(1 + w) log p_w - w log(1 - p_l) is the likelihood plus w times the untempered second stage."""
    np.testing.assert_allclose(
        asft(POLICY, odds_coefficient=0.3).losses, -POLICY.chosen + 0.3 * asft_tempered(POLICY).losses, rtol=1e-5
    )


def test_asft_tempered_by_hand():
    """Odds 1 and 1/16, at beta 1/4 odds 1 and 1/2: log 2 + log 3/2 = log 3."""
    output = asft_tempered(probabilities([1 / 2], [1 / 17]), beta=0.25)
    assert output.losses.item() == pytest.approx(np.log(3), abs=1e-6)
    assert output.metrics["rewards/margins"].item() == pytest.approx(np.log(2), abs=1e-6)
