"""Hand-worked numbers, limits and closed forms of the objectives of one margin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.methods import METHODS
from jaxalign.objectives import discopop, dpo, exo, probability, robust_dpo, rso
from jaxalign.types import Pair


def pair(chosen, rejected):
    return Pair(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))


RNG = np.random.default_rng(0)
POLICY, REFERENCE = pair(*RNG.uniform(-60, -5, (2, 32))), pair(*RNG.uniform(-60, -5, (2, 32)))
ZEROS = pair(np.zeros(32), np.zeros(32))
PLUS_3 = pair([-10.0], [-13.0]), pair([-12.0], [-12.0])  # log-ratios 2 and -1


def swapped(given):
    return Pair(given.rejected, given.chosen)


def at_margin(objective, h, **options):
    """Loss and slope of an objective at beta * Delta = h, for any h."""
    beta = options.get("beta", 1.0)

    def loss(value):
        policy = Pair(value[None] / beta, jnp.zeros(1))
        return objective(policy, Pair(jnp.zeros(1), jnp.zeros(1)), **({"beta": beta} | options)).losses[0]

    value, slope = jax.value_and_grad(loss)(jnp.float32(h))
    return value.item(), slope.item()


def test_robust_without_flips_is_dpo():
    np.testing.assert_allclose(
        robust_dpo(POLICY, REFERENCE, label_smoothing=0.0).losses, dpo(POLICY, REFERENCE).losses, rtol=1e-7
    )


@pytest.mark.parametrize("flips", [0.05, 0.3, 0.45])
def test_robust_is_unbiased_under_flips(flips):
    """(1 - e) * loss(as labelled) + e * loss(flipped) is DPO's loss on the true labels, and so is its gradient."""

    def expected(policy):
        right = robust_dpo(policy, REFERENCE, label_smoothing=flips).losses
        flipped = robust_dpo(swapped(policy), swapped(REFERENCE), label_smoothing=flips).losses
        return (1 - flips) * right + flips * flipped

    np.testing.assert_allclose(expected(POLICY), dpo(POLICY, REFERENCE).losses, rtol=2e-5, atol=1e-5)
    ours = jax.grad(lambda p: expected(p).sum())(POLICY)
    true = jax.grad(lambda p: dpo(p, REFERENCE).losses.sum())(POLICY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, true)


def test_robust_by_hand():
    """h = 0.3 and -log sigmoid(0.3) = 0.554355, -log sigmoid(-0.3) = 0.854355: (0.9 * 0.554355 - 0.0854355) / 0.8."""
    assert robust_dpo(*PLUS_3).losses.item() == pytest.approx(0.516855, abs=1e-6)


def test_robust_may_be_negative_and_never_stops():
    """At h = 50 with e = 0.1 the loss is -0.125 * 50, and its slope -0.125."""
    assert at_margin(robust_dpo, 50.0, label_smoothing=0.1) == pytest.approx((-6.25, -0.125))


def test_rso_by_hand():
    """Delta = 3: 1 - 0.05 * 3 = 0.85, slope -0.05. From Delta = 20 on both are 0, at 20 exactly as well."""
    assert rso(*PLUS_3).losses.item() == pytest.approx(0.85)
    slope = jax.grad(lambda p: rso(p, PLUS_3[1]).losses.sum())(PLUS_3[0])
    assert (slope.chosen.item(), slope.rejected.item()) == pytest.approx((-0.05, 0.05))
    for h in (1.0, 1.5, 40.0):
        assert at_margin(rso, h) == (0.0, 0.0)
    assert at_margin(rso, -40.0) == (41.0, -1.0)


@pytest.mark.parametrize("noise", [1e-3, np.exp(-10.0), 0.3])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_exo_is_the_divergence_of_two_softmaxes(noise, beta):
    """KL(softmax of the rewards || smoothed labels), and its gradient through the softmax, in float64."""
    rewards = beta * np.stack(
        [np.float64(p) - np.float64(r) for p, r in zip(POLICY, REFERENCE, strict=True)]
    )  # [2, 32]
    p = np.exp(rewards - rewards.max(0))
    p /= p.sum(0)
    score = np.log(p) - np.log([[1 - noise], [noise]])
    divergence = (p * score).sum(0)
    gradient = beta * p * (score - divergence)  # of sum_i p_i s_i; the derivative of log p_i adds nothing
    losses = exo(POLICY, REFERENCE, beta=beta, label_smoothing=float(noise)).losses
    np.testing.assert_allclose(losses, divergence, rtol=1e-5, atol=1e-6)
    slopes = jax.grad(lambda given: exo(given, REFERENCE, beta=beta, label_smoothing=float(noise)).losses.sum())(POLICY)
    np.testing.assert_allclose(np.stack(slopes), gradient, rtol=1e-4, atol=1e-6)


def test_exo_by_hand():
    """h = 0.3, p = 0.574443: 0.574443 * (-0.554355 + 0.0010005) + 0.425557 * (-0.854355 + 6.907755) = 2.258199."""
    assert exo(*PLUS_3).losses.item() == pytest.approx(2.258199, abs=1e-6)


def test_exo_is_zero_at_the_labels_and_bounded():
    """h = log(0.8 / 0.2): p is the label. Far on the wrong side: -log e, with no gradient left."""
    assert at_margin(exo, np.log(4.0), label_smoothing=0.2) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert at_margin(exo, -500.0, label_smoothing=0.2) == pytest.approx((-np.log(0.2), 0.0))
    assert at_margin(exo, 500.0, label_smoothing=0.2) == pytest.approx((-np.log(0.8), 0.0))


def test_exo_keeps_its_gradient_on_the_wrong_side():
    """At h = -30: sigmoid(-30) * (-30 - log 999) = 9.3576e-14 * -36.9068 = -3.4536e-12."""
    assert at_margin(exo, -30.0, label_smoothing=1e-3)[1] == pytest.approx(-3.4536e-12, rel=1e-4)


def test_exo_cannot_have_certain_labels():
    (problem,) = METHODS["exo"].check_options({"label_smoothing": 0.0})
    assert "> 0 and < 0.5" in problem


def test_discopop_by_hand():
    """beta = tau = 0.05: h = 0.15, m = sigmoid(3) = 0.952574; 0.047426 * 0.620957 + 0.952574 * 0.860708 = 0.849337.

    Tied, it is half of each: (ln 2 + 1) / 2.
    """
    assert discopop(*PLUS_3).losses.item() == pytest.approx(0.849337, abs=1e-6)
    np.testing.assert_allclose(discopop(POLICY, POLICY).losses, (np.log(2.0) + 1) / 2, rtol=1e-6)


def test_discopop_is_not_convex():
    """The slope at 0 is -1/2 * 1/2 - 1/2 + (1 - ln 2) / (4 * tau) = 0.784264. It is 0 at -0.118570 and at 0.072006."""
    assert at_margin(discopop, 0.0)[1] == pytest.approx(0.784264, abs=1e-5)
    for h, sign in ((-0.1190, -1), (-0.1182, 1), (0.0715, 1), (0.0725, -1)):
        assert np.sign(at_margin(discopop, h)[1]) == sign


def test_discopop_is_logistic_on_the_left_and_exponential_on_the_right():
    """Wrong by far, where exp(-h) alone overflows, it is DPO's loss; right by far it is exp(-h)."""
    assert at_margin(discopop, -200.0) == pytest.approx((200.0, -1.0))
    assert at_margin(discopop, 4.0) == pytest.approx((np.exp(-4.0), -np.exp(-4.0)), rel=1e-5)


def test_discopop_with_a_wide_change_is_clipped():
    """tau = 2: the exponential grows as exp(-h / 2) on the left, up to exp(80) at h = -160."""
    assert at_margin(discopop, -100.0, tau=2.0) == pytest.approx((np.exp(50.0), -np.exp(50.0) / 2), rel=1e-4)
    value, slope = at_margin(discopop, -1000.0, tau=2.0)
    assert value == pytest.approx(np.exp(80.0), rel=1e-5)
    assert slope == pytest.approx(-1.0)  # the logistic part's


@pytest.mark.parametrize("options", [{}, {"beta": 10.0}, {"label_smoothing": 0.2}])
def test_probability_is_dpo_without_a_reference(options):
    ours, theirs = probability(POLICY, **options), dpo(POLICY, ZEROS, **options)
    np.testing.assert_array_equal(ours.losses, theirs.losses)
    for name, value in theirs.metrics.items():
        np.testing.assert_array_equal(ours.metrics[name], value)


def test_dpo_norm_is_dpo_on_means():
    """avg.rho 0.5 and -0.25 at beta 5: h = 3.75, log(1 + e^-3.75) = 0.023245."""
    method = METHODS["dpo_norm"]
    assert method.logps is METHODS["simpo"].logps
    output = method.loss({"policy": pair([-1.0], [-1.75]), "reference": pair([-1.5], [-1.5])}, {"beta": 5.0})
    assert output.losses.item() == pytest.approx(0.023245, abs=1e-6)
