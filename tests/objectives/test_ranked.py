"""Hand-worked numbers and limiting cases of the objectives on rankings."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.methods import METHODS, Layout
from jaxalign.objectives import (
    cpo,
    dpo,
    exo_list,
    info_nca,
    nca,
    nca_pair,
    plackett_luce,
    rrhf,
    simpo,
    sppo_ranked,
    sppo_soft,
    tpo,
    tpo_l,
)
from jaxalign.types import Pair

PAIR_POLICY = Pair(jnp.array([-10.0, -30.0, -6.0, -900.0]), jnp.array([-13.0, -9.0, -60.0, -2.0]))
PAIR_REFERENCE = Pair(jnp.array([-12.0, -25.0, -6.5, -3.0]), jnp.array([-12.0, -10.0, -55.0, -800.0]))
TWO = jnp.full((4, 2), 7.0)
ORDERED = jnp.tile(jnp.array([2.0, 1.0]), (4, 1))


def side_by_side(pair):
    return jnp.stack([pair.chosen, pair.rejected], axis=1)


POLICY, REFERENCE = side_by_side(PAIR_POLICY), side_by_side(PAIR_REFERENCE)


def row(*values):
    return jnp.asarray([values], jnp.float32)


def assert_same(ranked, paired):
    """Losses and the metrics that both have."""
    np.testing.assert_allclose(ranked.losses, paired.losses, rtol=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
        np.testing.assert_allclose(ranked.metrics[name], paired.metrics[name], rtol=1e-6)
    np.testing.assert_array_equal(ranked.metrics["rewards/accuracies"].values, paired.metrics["rewards/accuracies"])


# Two completions are a pair.


@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_info_nca_of_two_is_dpo(beta):
    assert_same(info_nca(POLICY, REFERENCE, ORDERED, TWO, beta=beta), dpo(PAIR_POLICY, PAIR_REFERENCE, beta=beta))


def test_info_nca_of_two_with_soft_targets_is_dpo_with_label_smoothing():
    """Scores ln 4 apart at temperature 1: targets 0.8 and 0.2."""
    scores = jnp.tile(jnp.array([math.log(4.0), 0.0]), (4, 1))
    assert_same(
        info_nca(POLICY, REFERENCE, scores, TWO, beta=0.1, temperature=1.0),
        dpo(PAIR_POLICY, PAIR_REFERENCE, beta=0.1, label_smoothing=0.2),
    )


@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_nca_of_two_is_nca_pair(beta):
    assert_same(nca(POLICY, REFERENCE, ORDERED, TWO, beta=beta), nca_pair(PAIR_POLICY, PAIR_REFERENCE, beta=beta))


@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_plackett_luce_of_two_is_dpo(beta):
    assert_same(plackett_luce(POLICY, REFERENCE, ORDERED, TWO, beta=beta), dpo(PAIR_POLICY, PAIR_REFERENCE, beta=beta))


def test_sppo_ranked_of_two_is_sppo_soft():
    wins = Pair(jnp.array([0.9, 0.7, 1.0, 0.6]), jnp.array([0.2, 0.3, 0.0, 0.5]))
    assert_same(
        sppo_ranked(POLICY, REFERENCE, side_by_side(wins), TWO, beta=0.01),
        sppo_soft(PAIR_POLICY, PAIR_REFERENCE, wins, beta=0.01),
    )


def test_tpo_of_two_is_cpo():
    options = {"beta": 0.1, "nll_coefficient": 0.5, "nll_normalization": "tokens", "label_smoothing": 0.1}
    assert_same(tpo(POLICY, ORDERED, TWO, **options), cpo(PAIR_POLICY, Pair(TWO[:, 0], TWO[:, 1]), **options))


def test_tpo_l_of_two_without_likelihood_is_simpo():
    options = {"beta": 2.5, "gamma_beta_ratio": 0.3, "label_smoothing": 0.1}
    assert_same(tpo_l(POLICY, ORDERED, TWO, nll_coefficient=0.0, **options), simpo(PAIR_POLICY, **options))


# By hand.


def test_info_nca_by_hand():
    """Targets 1/2, 1/4, 1/4 and rewards of ln 1, ln 2, ln 5 (1/8, 2/8, 5/8): ln(8) / 2 + ln(4) / 4 + ln(8/5) / 4."""
    policy = row(0.0, math.log(2), math.log(5)) - 9.0
    scores = row(3 * math.log(2), 0.0, 0.0)
    output = info_nca(policy, row(-9.0, -9.0, -9.0), scores, row(1.0, 2.0, 3.0), beta=1.0, temperature=3.0)
    assert output.losses.item() == pytest.approx(math.log(8) / 2 + math.log(4) / 4 + math.log(8 / 5) / 4, abs=1e-6)


def test_info_nca_tied_scores_share_their_weight():
    """Both best have 1/2, whatever the rest: rewards ln 1, ln 2, ln 1 give ln(4) / 2 + ln(2) / 2."""
    policy = row(0.0, math.log(2), 0.0) - 9.0
    output = info_nca(policy, row(-9.0, -9.0, -9.0), row(4.0, 4.0, 3.5), row(1.0, 1.0, 1.0), beta=1.0)
    assert output.losses.item() == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert output.metrics["rewards/chosen"].item() == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_info_nca_tells_close_scores_apart_at_a_small_temperature():
    """Scores 8.25 and 8.25 + 2^-12 (exact in float32) at 2^-12: targets e / (1 + e) and 1 / (1 + e)."""
    policy, scores = row(-9.0, -9.0 - math.log(3)), row(8.25 + 2.0**-12, 8.25)
    output = info_nca(policy, row(-9.0, -9.0), scores, row(1.0, 1.0), beta=1.0, temperature=2.0**-12)
    share = math.e / (1 + math.e)
    assert output.losses.item() == pytest.approx(-share * math.log(3 / 4) - (1 - share) * math.log(1 / 4), abs=1e-6)


def test_nca_by_hand():
    """Sigmoids 3/4, 1/2, 1/4; all weight on the first: -ln(3/4) - (ln(1/4) + ln(1/2) + ln(3/4)) / 3."""
    policy = row(math.log(3), 0.0, -math.log(3)) - 9.0
    output = nca(policy, row(-9.0, -9.0, -9.0), row(3.0, 2.0, 1.0), row(1.0, 2.0, 3.0), beta=1.0)
    expected = -math.log(3 / 4) - (math.log(1 / 4) + math.log(1 / 2) + math.log(3 / 4)) / 3
    assert output.losses.item() == pytest.approx(expected, abs=1e-6)


def test_plackett_luce_by_hand():
    """Weights 1, 2, 5 with scores 3, 1, 2: first 1 of 8, then 5 of 7: ln 8 + ln(7/5)."""
    policy = row(0.0, math.log(2), math.log(5)) - 9.0
    output = plackett_luce(policy, row(-9.0, -9.0, -9.0), row(3.0, 1.0, 2.0), row(1.0, 2.0, 3.0), beta=1.0)
    assert output.losses.item() == pytest.approx(math.log(8) + math.log(7 / 5), abs=1e-6)
    assert output.metrics["rewards/accuracies"].values.item() == pytest.approx(1 / 3)


def test_plackett_luce_probabilities_of_all_orders_sum_to_one():
    policy, zeros, lengths = row(-1.0, -2.5, 0.5, -3.0), row(0.0, 0.0, 0.0, 0.0), row(1.0, 1.0, 1.0, 1.0)
    losses = [
        plackett_luce(policy, zeros, row(*scores), lengths, beta=1.0).losses.item()
        for scores in itertools.permutations([1.0, 2.0, 3.0, 4.0])
    ]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1.0, abs=1e-6)


def test_plackett_luce_does_not_compare_ties():
    """Two tied best before one: each against the last only. A ranking of ties alone costs nothing."""
    policy = row(0.0, math.log(3), 0.0) - 9.0
    reference, lengths = row(-9.0, -9.0, -9.0), row(1.0, 1.0, 1.0)
    output = plackett_luce(policy, reference, row(2.0, 2.0, 1.0), lengths, beta=1.0)
    assert output.losses.item() == pytest.approx(math.log(2) + math.log(4 / 3), abs=1e-6)
    tied = plackett_luce(policy, reference, row(2.0, 2.0, 2.0), lengths, beta=1.0)
    assert tied.losses.item() == 0.0
    assert tied.metrics["rewards/accuracies"].weights.item() == 0.0
    assert tied.metrics["rewards/margins"].item() == 0.0


def test_exo_list_by_hand():
    """The policy's 1/4 and 3/4 to the data's 1/2 and 1/2: ln(1/2) / 4 + 3 ln(3/2) / 4."""
    output = exo_list(row(-9.0, -9.0 + math.log(3)), row(-9.0, -9.0), row(1.0, 1.0), row(2.0, 3.0), beta=1.0)
    assert output.losses.item() == pytest.approx(math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4, abs=1e-6)


def test_exo_list_is_zero_with_no_gradient_at_its_optimum():
    """Where beta * rho = scores / temperature, up to a constant."""
    scores, reference = row(1.0, 3.0, 2.5), row(-9.0, -4.0, -30.0)

    def loss(policy):
        return exo_list(policy, reference, scores, row(1.0, 2.0, 3.0), beta=0.5, temperature=2.0).losses.sum()

    value, gradient = jax.value_and_grad(loss)(reference + scores - 7.0)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_sppo_ranked_by_hand():
    """Targets (P - 1/2) / 0.1 = 4, 0, -3; log-ratios 2, 1, -3: (4 + 1 + 0) / 3."""
    output = sppo_ranked(
        row(-10.0, -8.0, -20.0), row(-12.0, -9.0, -17.0), row(0.9, 0.5, 0.2), row(1.0, 1.0, 1.0), beta=0.1
    )
    assert output.losses.item() == pytest.approx(5 / 3, rel=1e-5)
    assert output.metrics["rewards/margins"].item() == pytest.approx(0.5, abs=1e-6)


def test_rrhf_by_hand():
    """Only the pair (second, third) is in the wrong order, by 0.5; the best has 1 nat per token, 8 tokens."""
    given = (row(-1.0, -2.0, -1.5), row(3.0, 2.0, 1.0), row(8.0, 4.0, 4.0))
    assert rrhf(*given).losses.item() == 8.5
    assert rrhf(*given, nll_normalization="tokens", nll_coefficient=0.5).losses.item() == 1.0
    assert rrhf(*given).metrics["rewards/accuracies"].values.item() == pytest.approx(2 / 3)


def test_rrhf_does_not_compare_ties():
    """Both best are imitated, by half: (8 + 2) / 2 nats; neither is compared with the other."""
    output = rrhf(row(-2.0, -1.0, -3.0), row(3.0, 3.0, 1.0), row(4.0, 2.0, 5.0))
    assert output.losses.item() == 5.0


def test_tpo_by_hand():
    """Second - worst = 4 nats at beta 0.1; the best has 6 nats on 3 tokens; the third of four does not matter."""
    scores, lengths = row(1.0, 9.0, 5.0, 7.0), row(4.0, 3.0, 2.0, 6.0)
    output = tpo(row(-13.0, -6.0, -50.0, -9.0), scores, lengths, beta=0.1)
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-0.4)) + 2.0, abs=1e-6)
    gradient = jax.grad(lambda policy: tpo(policy, scores, lengths).losses.sum())(row(-13.0, -6.0, -50.0, -9.0))
    assert [bool(value) for value in gradient[0] != 0] == [True, True, False, True]


def test_tpo_l_by_hand():
    """h = 2 * 1.3 - 1.6 = 1, log(1 + e^-1) = 0.313262; the best's 0.5 nats per token count a twentieth."""
    output = tpo_l(row(-0.5, -1.0, -2.3), row(3.0, 2.0, 1.0), row(4.0, 4.0, 4.0))
    assert output.losses.item() == pytest.approx(0.338262, abs=1e-5)


def test_tpo_of_one_completion_imitates_it():
    lengths = row(0.0, 3.0)
    output = tpo(row(0.0, -6.0), row(0.0, 4.0), lengths, nll_coefficient=1.0)
    assert output.losses.item() == pytest.approx(math.log(2) + 2.0, abs=1e-6)
    gradient = jax.grad(lambda policy: tpo(policy, row(0.0, 4.0), lengths).losses.sum())(row(0.0, -6.0))
    assert gradient.tolist() == [[0.0, pytest.approx(-1 / 3)]]


@pytest.mark.parametrize("objective", [rrhf, tpo, tpo_l])
def test_unknown_normalisation(objective):
    with pytest.raises((ValueError, TypeError)):  # TypeError where the shape checker looks first
        objective(row(-1.0, -2.0), row(2.0, 1.0), row(1.0, 1.0), nll_normalization="batch_tokens")


# Absent completions.

each_ranked = pytest.mark.parametrize(
    "method",
    [m for m in METHODS.values() if m.layout is Layout.RANKED and m.objective.__module__.endswith(("ranked", "_free"))],
    ids=lambda m: m.name,
)


@each_ranked
def test_nan_where_there_is_no_completion(method):
    """Neither in the loss and the metrics nor in the gradient."""
    lengths = jnp.array([[3.0, 0.0, 5.0], [0.0, 0.0, 2.0]])
    values = {"policy": -2.0, "reference": -3.0, "scores": 4.0, "win_probabilities": 0.25}
    spread = jnp.array([1.0, 1.5, 2.0])
    inputs = {name: jnp.where(lengths > 0, value * spread, jnp.nan) for name, value in values.items()}
    inputs["lengths"] = lengths

    def loss(policy):
        output = method.loss(inputs | {"policy": policy})
        return output.losses.sum(), output.metrics

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(inputs["policy"])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((value, metrics, gradient)))
    assert (gradient[lengths == 0] == 0).all()


@each_ranked
def test_an_example_without_completions_is_finite(method):
    """As a batch's empty places are."""
    zeros = jnp.zeros((2, 3))
    inputs = dict.fromkeys(("policy", "reference", "scores", "win_probabilities", "lengths"), zeros)
    value, gradient = jax.value_and_grad(lambda policy: method.loss(inputs | {"policy": policy}).losses.sum())(zeros)
    assert jnp.isfinite(value)
    assert (gradient == 0).all()
