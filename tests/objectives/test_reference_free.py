"""Hand-worked numbers and limiting cases of the objectives without a reference."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives import cpo, dpo, simpo
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
