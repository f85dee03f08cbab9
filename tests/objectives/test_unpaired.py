"""Hand-worked numbers, closed forms and the coupling of KTO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives import kto


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
