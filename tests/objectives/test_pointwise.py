"""Hand-worked numbers and limiting cases of the objectives that hold each completion against its own target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives import apo_down, apo_zero, cal_dpo, dpo, nca_pair, sppo, sppo_soft
from jaxalign.types import Pair


def pair(chosen, rejected):
    return Pair(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))


# The chosen completion gained 2 nats, then lost 3; the rejected one lost 1, then gained 4.
POLICY, REFERENCE = pair([-10.0, -15.0], [-13.0, -8.0]), pair([-12.0, -12.0], [-12.0, -12.0])
TIED = pair([-3.0, -80.5, -700.0], [-4.0, -20.0, -1.0])


@pytest.mark.parametrize(
    ("objective", "start"),
    [
        (apo_zero, 1.0),
        (apo_down, 1.0),
        (nca_pair, 2 * np.log(2.0)),
        (sppo, 2 * 500.0**2),
        (cal_dpo, np.log(2.0) + 0.5 * 2 * 500.0**2),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_starting_values(objective, start):
    """Policy = reference, default options: sigmoid(0) = 1/2, log 2 each, and targets of 1 / 0.002 = 500 nats."""
    np.testing.assert_allclose(objective(TIED, TIED).losses, start, rtol=1e-6)


def test_apo_by_hand():
    """beta 0.1. Zero: sigmoid(-0.2) + sigmoid(-0.1) = 0.450166 + 0.475021; sigmoid(0.3) + sigmoid(0.4) = 1.173130.
    Down: sigmoid(0.2) + sigmoid(-0.3) = 0.549834 + 0.425557; sigmoid(-0.3) + sigmoid(0.7) = 0.425557 + 0.668188."""
    assert apo_zero(POLICY, REFERENCE, beta=0.1).losses.tolist() == pytest.approx([0.925187, 1.173130], abs=2e-6)
    assert apo_down(POLICY, REFERENCE, beta=0.1).losses.tolist() == pytest.approx([0.975391, 1.093745], abs=2e-6)


def test_apo_down_cancels_in_the_chosen_gradient_at_the_start():
    """d/d rho_w of sigmoid(b rho_w) - sigmoid(b (rho_w - rho_l)) is b/4 - b/4; of the rejected one it is b/4."""
    gradient = jax.grad(lambda policy: apo_down(policy, TIED, beta=0.4).losses.sum())(TIED)
    np.testing.assert_allclose(gradient.chosen, 0.0, atol=1e-8)
    np.testing.assert_allclose(gradient.rejected, 0.1, rtol=1e-6)


def test_nca_by_hand():
    """beta 0.1, pair 2: -log sigmoid(-0.3) - 0.5 log sigmoid(0.3) - 0.5 log sigmoid(-0.4) = 0.854355 + 0.277178 +
    0.456508; biased: 0.854355 + 0.913015."""
    assert nca_pair(POLICY, REFERENCE, beta=0.1).losses[1] == pytest.approx(1.588041, abs=2e-6)
    assert nca_pair(POLICY, REFERENCE, beta=0.1, noise_share=0.0).losses[1] == pytest.approx(1.767370, abs=2e-6)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_ncas_chosen_reward_has_its_optimum_at_the_log_of_the_inverse_share(share):
    """-s(-m) + share s(m) = 0 at exp(m) = 1 / share."""
    best = pair([-np.log(share) / 0.1 - 12.0], [-12.0])
    reference = pair([-12.0], [-12.0])
    gradient = jax.grad(lambda policy: nca_pair(policy, reference, beta=0.1, noise_share=share).losses.sum())(best)
    np.testing.assert_allclose(gradient.chosen, 0.0, atol=1e-7)


def test_sppo_by_hand():
    """beta 0.1: (2 - 5)^2 + (-1 + 5)^2 = 25 and (-3 - 5)^2 + (4 + 5)^2 = 145."""
    np.testing.assert_allclose(sppo(POLICY, REFERENCE, beta=0.1).losses, [25.0, 145.0], rtol=1e-6)


def test_soft_sppo_with_sure_wins_is_half_of_the_hard_one():
    sure = pair([1.0, 1.0], [0.0, 0.0])
    for beta in (0.001, 0.1):
        soft, hard = sppo_soft(POLICY, REFERENCE, sure, beta=beta), sppo(POLICY, REFERENCE, beta=beta)
        np.testing.assert_allclose(soft.losses, 0.5 * hard.losses, rtol=1e-6)


def test_soft_sppo_holds_an_even_match_at_the_reference():
    """P = 1/2 has the target 0: no loss and no gradient where policy and reference agree."""
    even = pair([0.5] * 3, [0.5] * 3)
    assert (sppo_soft(TIED, TIED, even).losses == 0).all()
    gradient = jax.grad(lambda policy: sppo_soft(policy, TIED, even).losses.sum())(TIED)
    assert all((leaf == 0).all() for leaf in gradient)


def test_cal_dpo_by_hand():
    """beta 0.1: log(1 + exp(-3)) = 0.048587, + 0.5 * 25; log(1 + exp(7)) = 7.000911, + 0.5 * 145."""
    assert cal_dpo(POLICY, REFERENCE, beta=0.1).losses.tolist() == pytest.approx([12.548587, 79.500911], rel=1e-6)
    output = cal_dpo(POLICY, REFERENCE, beta=0.1)
    np.testing.assert_array_equal(output.metrics["rewards/chosen"], [2.0, -3.0])
    np.testing.assert_array_equal(output.metrics["calibration_loss"], [25.0, 145.0])


def test_cal_dpo_without_calibration_is_dpo_at_beta_1():
    def gradient(objective, **options):
        return jax.value_and_grad(lambda policy: objective(policy, REFERENCE, **options).losses.sum())(POLICY)

    jax.tree.map(np.testing.assert_array_equal, gradient(cal_dpo, beta=0.01, calibration=0.0), gradient(dpo, beta=1.0))
