"""Hand-worked numbers, closed forms and the coupling of the objectives on labelled completions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives import apo_zero, apo_zero_unpaired, bco, bco_udm, kto
from jaxalign.types import Pair


def floats(*values):
    return jnp.asarray(values, jnp.float32)


def bools(*values):
    return jnp.asarray(values, bool)


def mean(metric):
    return ((metric.values * metric.weights).sum() / metric.weights.sum()).item()


def test_one_half_where_policy_and_reference_agree():
    """rho = 0 and z0 = 0, so each loss is its weight times 1 - sigmoid(0)."""
    lp, other = floats(-3.0, -90.0, -500.0), floats(-4.0, -1.0, -800.0)
    losses = kto(lp, lp, bools(True, False, True), other, other).losses
    np.testing.assert_array_equal(losses, [0.5, 0.5, 0.5])
    losses = kto(lp, lp, bools(True, False, True), other, other, desirable_weight=1.5, undesirable_weight=0.5).losses
    np.testing.assert_array_equal(losses, [0.75, 0.25, 0.75])


def test_by_hand():
    """z0 = (1 + 3) / 2 = 2. Desirable, rho 5: 1 - sigmoid(0.3) = 0.425557. Not, rho 1: 1 - sigmoid(0.1) = 0.475021."""
    zeros = floats(0.0, 0.0)
    output = kto(floats(5.0, 1.0), zeros, bools(True, False), floats(1.0, 3.0), zeros, beta=0.1)
    assert output.losses.tolist() == pytest.approx([0.425557, 0.475021], abs=1e-6)
    assert output.metrics["kl"].tolist() == [2.0, 2.0]
    assert mean(output.metrics["rewards/chosen"]) == pytest.approx(0.5)
    assert mean(output.metrics["rewards/rejected"]) == pytest.approx(0.1)
    assert mean(output.metrics["logps/chosen"]) == 5.0
    assert mean(output.metrics["logps/rejected"]) == 1.0


def test_the_reference_point_is_clamped_after_averaging():
    """(-10 + 4) / 2 = -3 becomes 0; clamping first would give (0 + 4) / 2 = 2."""
    zeros = floats(0.0, 0.0)
    assert kto(zeros, zeros, bools(True, True), floats(-10.0, 4.0), zeros).metrics["kl"].tolist() == [0.0, 0.0]


def test_absent_examples_count_nothing():
    """Their values may be anything: the reference point, the weights and the metrics leave them out."""
    zeros, nan = floats(0.0, 0.0), jnp.nan
    alone = kto(floats(5.0, 1.0), zeros, bools(True, False), floats(1.0, 3.0), zeros)
    padded = kto(
        floats(5.0, nan, 1.0),
        floats(0.0, nan, 0.0),
        bools(True, True, False),
        floats(1.0, nan, 3.0),
        floats(0.0, 7.0, 0.0),
        bools(True, False, True),
    )
    assert padded.weights.tolist() == [1.0, 0.0, 1.0]
    assert padded.metrics["kl"].tolist() == [2.0] * 3
    np.testing.assert_array_equal(padded.losses[jnp.array([0, 2])], alone.losses)
    assert padded.metrics["rewards/chosen"].weights.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("label", [True, False])
def test_a_batch_of_one_kind(label):
    """Nothing is divided by the number of the other kind."""
    lp, lr = floats(-3.0, -4.0), floats(-3.5, -3.0)
    labels = bools(label, label)
    output = kto(lp, lr, labels, lp, lr)
    slope = jax.grad(lambda p: kto(p, lr, labels, lp, lr).losses.sum())(lp)
    assert jnp.isfinite(output.losses).all()
    assert jnp.isfinite(slope).all()
    assert output.metrics["rewards/chosen"].weights.sum() == (2.0 if label else 0.0)
    assert output.metrics["rewards/rejected"].weights.sum() == (0.0 if label else 2.0)


def test_a_batch_without_examples():
    zeros = floats(0.0, 0.0)
    output = kto(zeros, zeros, bools(True, False), zeros, zeros, bools(False, False))
    assert output.weights.tolist() == [0.0, 0.0]
    assert output.metrics["kl"].tolist() == [0.0, 0.0]


def test_small_losses_keep_their_precision():
    """1 - sigmoid(20) = 2.061e-9 is less than float32's step at 1, so subtracting would give 0."""
    zeros = floats(0.0)
    assert kto(floats(200.0), zeros, bools(True), zeros, zeros).losses.item() == pytest.approx(2.0611536e-9, rel=1e-5)


def test_desirable_and_undesirable_mirror_each_other():
    """An undesirable example with log-ratio -rho is a desirable one with rho, when z0 = 0."""
    zeros, rho = floats(0.0, 0.0, 0.0), floats(-7.0, 0.5, 40.0)
    np.testing.assert_array_equal(
        kto(rho, zeros, bools(True, True, True), zeros, zeros).losses,
        kto(-rho, zeros, bools(False, False, False), zeros, zeros).losses,
    )


# APO-zero without pairs


def test_apo_zero_unpaired_by_hand():
    """beta 0.1: sigmoid(-0.5) = 0.377541, sigmoid(0.1) = 0.524979; with weights 2 and 0.5."""
    inputs = floats(5.0, 1.0), floats(0.0, 0.0), bools(True, False)
    losses = apo_zero_unpaired(*inputs, beta=0.1).losses
    assert losses.tolist() == pytest.approx([0.377541, 0.524979], abs=1e-6)
    weighted = apo_zero_unpaired(*inputs, beta=0.1, desirable_weight=2.0, undesirable_weight=0.5).losses
    np.testing.assert_allclose(weighted, losses * floats(2.0, 0.5), rtol=1e-6)


def test_apo_zero_unpaired_is_kto_with_a_reference_point_of_zero():
    """And the two completions of a pair have together the loss of apo_zero."""
    policy, reference, labels = floats(-5.0, -7.0, -1.0), floats(-6.0, -3.0, -4.0), bools(True, False, True)
    zeros = floats(0.0, 0.0, 0.0)
    unpaired = apo_zero_unpaired(policy, reference, labels, beta=0.3).losses
    np.testing.assert_allclose(unpaired, kto(policy, reference, labels, zeros, zeros, beta=0.3).losses, rtol=1e-6)
    pairs = apo_zero(Pair(policy[:1], policy[1:2]), Pair(reference[:1], reference[1:2]), beta=0.3).losses
    np.testing.assert_allclose(unpaired[:2].sum(), pairs[0], rtol=1e-6)


# BCO


def before(mean, count):
    return {"mean": jnp.float32(mean), "count": jnp.float32(count)}


def test_bco_by_hand():
    """Rewards 0.5 and 0.1 after two of mean 0.1: d = (0.2 + 0.6) / 4 = 0.2; log(1 + exp(-0.3)), log(1 + exp(-0.1))."""
    output = bco(floats(5.0, 1.0), floats(0.0, 0.0), bools(True, False), before(0.1, 2), beta=0.1)
    assert output.losses.tolist() == pytest.approx([0.554355, 0.644397], abs=1e-6)
    np.testing.assert_allclose(output.metrics["delta"], 0.2, rtol=1e-6)
    assert (output.state["mean"].item(), output.state["count"].item()) == (pytest.approx(0.2), 4.0)


def test_bcos_shift_is_the_mean_of_all_rewards_so_far():
    """Batches of different sizes: each example counts the same, as with TRL's running moments."""
    rng, now, seen = np.random.default_rng(0), before(0, 0), []
    for count in (4, 1, 7):
        policy, reference = (jnp.asarray(rng.uniform(-9, 0, count), jnp.float32) for _ in range(2))
        output = bco(policy, reference, jnp.asarray(rng.random(count) < 0.5), now, beta=0.5)
        seen += (0.5 * (policy - reference)).tolist()
        now = output.state
        np.testing.assert_allclose(output.metrics["delta"], np.mean(seen), rtol=1e-5)


def test_bcos_shift_carries_no_gradient():
    """One desirable example with a reward of 0.2, which is also d: the slope is -0.1 sigmoid(0), not 0."""
    gradient = jax.grad(lambda policy: bco(policy, floats(0.0), bools(True), before(0, 0), beta=0.1).losses.sum())(
        floats(2.0)
    )
    np.testing.assert_allclose(gradient, -0.05, rtol=1e-6)


def test_udm_weights_the_undesirable_within_bounds():
    """Ratios 3, 0.1 and 20 weigh 3, 0.5 and 10; a desirable example keeps its 1."""
    policy, reference = floats(-5.0, -7.0, -1.0, -2.0), floats(-6.0, -3.0, -4.0, -2.5)
    labels, ratios = bools(False, False, False, True), floats(3.0, 0.1, 20.0, 7.0)
    plain = bco(policy, reference, labels, before(0, 0))
    weighted = bco_udm(policy, reference, labels, ratios, before(0, 0))
    np.testing.assert_allclose(weighted.losses / plain.losses, [3.0, 0.5, 10.0, 1.0], rtol=1e-6)
    assert weighted.state == plain.state
    even = bco_udm(policy, reference, labels, floats(1.0, 1.0, 1.0, 1.0), before(0, 0))
    np.testing.assert_array_equal(even.losses, plain.losses)


@pytest.mark.parametrize("objective", [bco, bco_udm])
def test_bcos_absent_examples_may_hold_anything(objective):
    here, nan = bools(True, False, True), jnp.nan
    more = {bco: [(), ()], bco_udm: [(floats(2.0, nan, 3.0),), (floats(2.0, 3.0),)]}[objective]
    labels = bools(True, False, False)
    holes = objective(floats(5.0, nan, 1.0), floats(1.0, nan, 0.0), labels, *more[0], before(0.5, 3), here)
    rest = objective(floats(5.0, 1.0), floats(1.0, 0.0), labels[here], *more[1], before(0.5, 3))
    np.testing.assert_allclose(holes.losses[here], rest.losses, rtol=1e-6)
    assert jnp.isfinite(holes.losses).all()
    assert holes.weights.tolist() == [1.0, 0.0, 1.0]
    assert holes.state == rest.state
