"""Hand-worked numbers and limiting cases of the objectives without a reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives import alphapo, cpo, cpo_simpo, dpo, simpo, slic_hf
from jaxalign.types import Pair


def pair(chosen, rejected):
    return Pair(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))


POLICY = pair([-8.0, -30.0, -6.0], [-12.0, -9.0, -60.0])
LENGTHS = pair([4.0, 10.0, 1.0], [4.0, 3.0, 20.0])
ZEROS = pair([0.0] * 3, [0.0] * 3)


def test_cpo_by_hand():
    """h = 0.1 * 4, log(1 + e^-0.4) = 0.513015; 8 nats over 4 tokens add 2."""
    output = cpo(pair([-8.0], [-12.0]), pair([4.0], [4.0]))
    assert output.losses.item() == pytest.approx(2.513015, abs=1e-6)
    assert output.metrics["nll_loss"].item() == 2.0
    assert output.metrics["rewards/chosen"].item() == pytest.approx(-0.8)
    assert output.metrics["rewards/rejected"].item() == pytest.approx(-1.2)


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("batch_tokens", [1.6, 6.0, 1.2]), ("tokens", [2.0, 3.0, 6.0]), ("sum", [8.0, 30.0, 6.0])],
)
def test_cpo_nll_normalisations(normalization, expected):
    """The chosen completions hold 8, 30, 6 nats and 4, 10, 1 tokens, 5 on average."""
    output = cpo(POLICY, LENGTHS, nll_normalization=normalization)
    np.testing.assert_allclose(output.metrics["nll_loss"], expected, rtol=1e-6)


def test_cpo_batch_tokens_averages_to_the_token_mean():
    """44 nats over 15 tokens, as one cross-entropy over all of the batch's chosen tokens."""
    output = cpo(POLICY, LENGTHS)
    assert output.metrics["nll_loss"].mean().item() == pytest.approx(44 / 15, rel=1e-6)


def test_cpo_takes_the_mean_length_of_the_global_batch():
    """Two halves of a batch with the whole batch's mean length give the whole batch's losses."""
    means = Pair(LENGTHS.chosen.mean(), LENGTHS.rejected.mean())

    def part(pair, rows):
        return Pair(pair.chosen[rows], pair.rejected[rows])

    parts = [cpo(part(POLICY, rows), part(LENGTHS, rows), means).losses for rows in (slice(0, 1), slice(1, 3))]
    np.testing.assert_allclose(jnp.concatenate(parts), cpo(POLICY, LENGTHS).losses, rtol=1e-6)


def test_cpo_without_its_likelihood_term_is_dpo_with_a_uniform_reference():
    np.testing.assert_array_equal(
        cpo(POLICY, LENGTHS, beta=0.3, nll_coefficient=0.0, label_smoothing=0.1).losses,
        dpo(POLICY, ZEROS, beta=0.3, label_smoothing=0.1).losses,
    )


def test_cpo_unknown_normalisation():
    with pytest.raises((ValueError, TypeError)):  # TypeError where the shape checker looks first
        cpo(POLICY, LENGTHS, nll_normalization="token")


def test_simpo_by_hand():
    """beta 2, margin 0.5: h = 2 * 0.5 - 1 = 0 gives ln 2; h = 2 * 1.5 - 1 = 2 gives log(1 + e^-2) = 0.126928."""
    output = simpo(pair([-1.0, -1.0], [-1.5, -2.5]), beta=2.0, gamma_beta_ratio=0.5)
    assert output.losses.tolist() == pytest.approx([0.693147, 0.126928], abs=1e-6)
    assert output.metrics["rewards/chosen"].tolist() == [-2.0, -2.0]
    assert output.metrics["rewards/margins"].tolist() == [1.0, 3.0]
    assert output.metrics["logps/rejected"].tolist() == [-1.5, -2.5]


def test_simpo_without_a_margin_is_dpo_with_a_uniform_reference():
    np.testing.assert_allclose(
        simpo(POLICY, beta=0.3, gamma_beta_ratio=0.0, label_smoothing=0.1).losses,
        dpo(POLICY, ZEROS, beta=0.3, label_smoothing=0.1).losses,
        rtol=1e-6,
    )


def test_cpo_simpo_by_hand():
    """h = 10 * 0.64 - 5.4 = 1, log(1 + e^-1) = 0.313262; 1 nat per token on 4 of 4 mean tokens adds 0.05."""
    output = cpo_simpo(pair([-1.0], [-1.64]), pair([4.0], [9.0]))
    assert output.losses.item() == pytest.approx(0.363262, abs=1e-5)
    assert output.metrics["nll_loss"].item() == 1.0
    assert output.metrics["rewards/rejected"].item() == pytest.approx(-16.4)


def test_cpo_simpo_without_its_likelihood_term_is_simpo():
    options = {"beta": 2.5, "gamma_beta_ratio": 0.3, "label_smoothing": 0.1}
    np.testing.assert_array_equal(
        cpo_simpo(POLICY, LENGTHS, nll_coefficient=0.0, **options).losses, simpo(POLICY, **options).losses
    )


@pytest.mark.parametrize("normalization", ["batch_tokens", "tokens", "sum"])
def test_cpo_simpo_has_the_likelihood_term_of_cpo(normalization):
    """From token means what CPO computes from sums."""
    sums = pair(POLICY.chosen * LENGTHS.chosen, POLICY.rejected * LENGTHS.rejected)
    np.testing.assert_allclose(
        cpo_simpo(POLICY, LENGTHS, nll_normalization=normalization).metrics["nll_loss"],
        cpo(sums, LENGTHS, nll_normalization=normalization).metrics["nll_loss"],
        rtol=1e-6,
    )


def test_alphapo_by_hand():
    """Alpha 0.5, p = 1/4 and 1/16: r = (1 - 2) / 0.5 = -2 and (1 - 4) / 0.5 = -6; h = 0.5 * 4 - 1 = 1."""
    policy = pair(np.log([0.25]), np.log([0.0625]))
    output = alphapo(policy, alpha=0.5, beta=0.5, gamma_beta_ratio=2.0)
    assert output.losses.item() == pytest.approx(0.313262, abs=1e-6)
    assert output.metrics["rewards/chosen"].item() == pytest.approx(-1.0, abs=1e-6)
    assert output.metrics["rewards/rejected"].item() == pytest.approx(-3.0, abs=1e-6)


def test_alphapo_without_alpha_is_simpo():
    policy = pair([-0.5, -2.0], [-1.0, -0.25])
    options = {"beta": 2.5, "gamma_beta_ratio": 0.3, "label_smoothing": 0.1}
    expected = simpo(policy, **options).losses
    np.testing.assert_array_equal(alphapo(policy, alpha=0.0, **options).losses, expected)
    for alpha in (1e-6, -1e-6):
        np.testing.assert_allclose(alphapo(policy, alpha=alpha, **options).losses, expected, rtol=1e-5)


def test_alphapo_punishes_improbable_completions_by_its_alpha():
    """The derivative of r by avg.lp is p^-alpha: at p = e^-2 it is e^(2 alpha), so e, 1 and 1/e."""
    slopes = [
        jax.grad(lambda x, a=alpha: alphapo(Pair(x, jnp.zeros(1)), alpha=a, beta=1e-3).losses.sum())(jnp.array([-2.0]))
        for alpha in (0.5, 0.0, -0.5)
    ]
    assert [(slope / slopes[1]).item() for slope in slopes] == pytest.approx([np.e, 1.0, 1 / np.e], rel=1e-2)


@pytest.mark.parametrize(("alpha", "mean"), [(-0.5, -40.0), (-1e-4, -1.0), (0.25, -40.0), (1e-4, -1.0), (2.0, -1e-4)])
def test_alphapo_keeps_the_digits_of_reward_and_slope(alpha, mean):
    """Against float64: r = (1 - p^-alpha) / alpha and dr = p^-alpha, whose loss at h = 0 has the slope -beta / 2."""
    policy = pair([mean], [mean])
    output = alphapo(policy, alpha=alpha, beta=0.5, gamma_beta_ratio=0.0)
    gradient = jax.grad(lambda p: alphapo(p, alpha=alpha, beta=0.5, gamma_beta_ratio=0.0).losses.sum())(policy)
    mean = np.float64(np.float32(mean))
    reward = -np.expm1(-alpha * mean) / alpha
    assert output.metrics["rewards/chosen"].item() == pytest.approx(0.5 * reward, rel=2e-6)
    assert gradient.rejected.item() == pytest.approx(0.25 * np.exp(-alpha * mean), rel=2e-6)


def test_slic_hf_by_hand():
    """Margin 1: 4 nats ahead cost nothing, 0.25 cost 0.75, 2 behind cost 3; a tenth of 8 nats is added."""
    output = slic_hf(pair([-8.0] * 3, [-12.0, -8.25, -6.0]), pair([4.0] * 3, [4.0] * 3))
    assert output.losses.tolist() == pytest.approx([0.8, 1.55, 3.8])
    assert output.metrics["nll_loss"].tolist() == [8.0] * 3


def test_slic_hf_leaves_the_rejected_alone_beyond_the_margin():
    def loss(policy):
        return slic_hf(policy, pair([4.0] * 2, [4.0] * 2)).losses.sum()

    gradient = jax.grad(loss)(pair([-8.0, -8.0], [-12.0, -8.5]))
    assert gradient.rejected.tolist() == [0.0, 1.0]
    assert gradient.chosen.tolist() == pytest.approx([-0.1, -1.1])
