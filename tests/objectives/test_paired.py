"""Hand-worked numbers and closed forms of the objectives on pairs with a reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxalign.objectives import dpo, ipo
from jaxalign.types import Pair


def pair(chosen, rejected):
    return Pair(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))


TIED = pair([-3.0, -80.5, -700.0], [-4.0, -20.0, -1.0])


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_dpo_starts_at_ln_2(beta, label_smoothing):
    output = dpo(TIED, TIED, beta=beta, label_smoothing=label_smoothing)
    np.testing.assert_allclose(output.losses, np.log(2.0), rtol=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert (output.metrics[name] == 0).all()


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_ipo_starts_at_its_squared_target(beta):
    np.testing.assert_allclose(ipo(TIED, TIED, beta=beta).losses, (1 / (2 * beta)) ** 2, rtol=1e-6)


def test_dpo_by_hand():
    """Chosen +2 nats, rejected -1 nat: h = 0.1 * 3 = 0.3.

    -log sigmoid(0.3) = log(1 + e^-0.3) = log(1.740818) = 0.554355; with smoothing 0.1 add 0.1 * 0.3 = 0.03, since
    -log sigmoid(-h) = -log sigmoid(h) + h.
    """
    policy, reference = pair([-10.0], [-13.0]), pair([-12.0], [-12.0])
    assert dpo(policy, reference).losses.item() == pytest.approx(0.554355, abs=1e-6)
    smoothed = dpo(policy, reference, label_smoothing=0.1)
    assert smoothed.losses.item() == pytest.approx(0.584355, abs=1e-6)
    expected = {
        "rewards/chosen": 0.2,
        "rewards/rejected": -0.1,
        "rewards/margins": 0.3,
        "rewards/accuracies": 1.0,
        "logps/chosen": -10.0,
        "logps/rejected": -13.0,
        "policy/accuracies": 1.0,
    }
    assert {name: value.item() for name, value in smoothed.metrics.items()} == pytest.approx(expected)


def test_ipo_by_hand():
    """D = (-1 + 1.5) - (-2 + 1.5) = 1; the target is 1 / 0.2 = 5, so 16; the slope in lp_w is 2 * (1 - 5) = -8."""
    policy, reference = pair([-1.0], [-2.0]), pair([-1.5], [-1.5])
    assert ipo(policy, reference, beta=0.1).losses.item() == pytest.approx(16.0)
    slope = jax.grad(lambda p: ipo(p, reference, beta=0.1).losses.sum())(policy)
    assert (slope.chosen.item(), slope.rejected.item()) == pytest.approx((-8.0, 8.0))


def test_ipo_is_zero_at_its_target():
    assert ipo(pair([-1.0], [-6.0]), pair([-1.0], [-1.0]), beta=0.1).losses.item() == 0.0


def test_dpo_gradient_is_the_weight_of_the_paper():
    """d loss / d lp_w = -beta * sigmoid(r_l - r_w) (the equation after eq. 7): at h = 0.3, -0.1 * 0.425557."""
    policy, reference = pair([-10.0], [-13.0]), pair([-12.0], [-12.0])
    slope = jax.grad(lambda p: dpo(p, reference).losses.sum())(policy)
    assert (slope.chosen.item(), slope.rejected.item()) == pytest.approx((-0.0425557, 0.0425557), abs=1e-7)


def test_reward_accuracy_and_policy_accuracy_differ():
    """The reference prefers the chosen by 10 nats, the policy by 4: the policy ranks it right, the reward does not.

    A tie is no hit."""
    output = dpo(pair([-10.0, -5.0], [-14.0, -5.0]), pair([-10.0, -5.0], [-20.0, -5.0]))
    assert output.metrics["rewards/accuracies"].tolist() == [0.0, 0.0]
    assert output.metrics["policy/accuracies"].tolist() == [1.0, 0.0]


def test_smoothing_bounds_the_margin():
    """With smoothing e the loss is least at h = log((1 - e) / e): beyond it, more margin costs."""
    e, beta = 0.2, 0.1
    best = np.log((1 - e) / e) / beta
    zeros = pair([0.0], [0.0])
    slope = jax.grad(lambda p: dpo(p, zeros, beta=beta, label_smoothing=e).losses.sum())
    assert slope(pair([best], [0.0])).chosen.item() == pytest.approx(0.0, abs=1e-8)
    assert slope(pair([best + 5], [0.0])).chosen.item() > 0


def test_shapes_are_checked_under_pytest():
    """Both fields of a pair, and policy against reference."""
    two, three = pair([0.0] * 2, [0.0] * 2), pair([0.0] * 3, [0.0] * 3)
    with pytest.raises(TypeCheckError):
        dpo(Pair(two.chosen, three.rejected), two)
    with pytest.raises(TypeCheckError):
        dpo(two, three)
