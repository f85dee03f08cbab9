"""Hand-worked numbers, plain forms and limiting cases of the objectives that couple the pairs of a batch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives import aot, aot_unpaired, bco_pair, beta_dpo, dpo, kto_pair
from jaxalign.types import Pair


def pair(chosen, rejected):
    return Pair(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))


def numbers(seed, count=6, high=10.0):
    rng = np.random.default_rng(seed)
    return pair(rng.uniform(-high, 0, count), rng.uniform(-high, 0, count))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def state(**values):
    return {name: jnp.float32(value) for name, value in values.items()}


def beta_dpo_from_start(policy, reference, **options):
    return beta_dpo(policy, reference, keys(len(policy.chosen)), state(mean=0, std=0), **options)


def bco_pair_from_start(policy, reference, **options):
    return bco_pair(policy, reference, state(mean=0, count=0), **options)


def value_and_gradient(objective, policy, reference, **options):
    def loss(policy):
        output = objective(policy, reference, **options)
        return (output.weights * output.losses).sum() / output.weights.sum()

    return jax.value_and_grad(loss)(policy)


def assert_same(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), actual, expected)


@pytest.mark.parametrize(
    ("objective", "start"),
    [
        (aot, np.log(2.0)),
        (aot_unpaired, np.log(2.0)),
        (beta_dpo_from_start, np.log(2.0)),
        (bco_pair_from_start, 2 * np.log(2.0)),
        (kto_pair, 0.5),
    ],
)
def test_starting_values(objective, start):
    """Policy = reference: all margins, means and log-ratios are 0, and -log sigmoid(0) = log 2."""
    policy = numbers(0)
    np.testing.assert_allclose(objective(policy, policy).losses, start, rtol=1e-6)


# AOT


def sorted_form(policy, reference, beta, unpaired):
    """As written: the losses of the ranks, not of the examples."""
    if unpaired:
        gaps = jnp.sort(policy.chosen - reference.chosen) - jnp.sort(policy.rejected - reference.rejected)
    else:
        gaps = jnp.sort(policy.chosen - policy.rejected) - jnp.sort(reference.chosen - reference.rejected)
    return jax.nn.softplus(-beta * gaps)


@pytest.mark.parametrize("objective", [aot, aot_unpaired])
@pytest.mark.parametrize("seed", range(5))
def test_aot_has_the_value_and_the_gradient_of_the_sorted_form(objective, seed):
    policy, reference = numbers(seed), numbers(seed + 100)

    def plain(policy):
        return sorted_form(policy, reference, 0.1, objective is aot_unpaired).mean()

    assert_same(value_and_gradient(objective, policy, reference, beta=0.1), jax.value_and_grad(plain)(policy))
    ranks = sorted_form(policy, reference, 0.1, objective is aot_unpaired)
    np.testing.assert_allclose(np.sort(objective(policy, reference, beta=0.1).losses), np.sort(ranks), rtol=2e-6)


def test_each_example_gets_the_loss_of_the_rank_it_holds():
    """Policy margins 3, -1, 7 meet the reference's 0, 2, 5 in order: -1 - 0, 3 - 2, 7 - 5."""
    policy, reference = pair([3, -1, 7], [0, 0, 0]), pair([5, 0, 2], [0, 0, 0])
    expected = np.log1p(np.exp(-np.array([1.0, -1.0, 2.0])))
    np.testing.assert_allclose(aot(policy, reference, beta=1.0).losses, expected, rtol=1e-6)


def test_unpaired_aot_by_hand():
    """Log-ratios 3, -1, 7 (chosen) meet 0, 2, 5 (rejected) in order; the gradient of rank r also goes to the rejected
    completion of rank r: 5 is the first example's and meets 7, so its slope is sigmoid(-2) / 3."""
    policy, zeros = pair([3, -1, 7], [5, 0, 2]), pair([0, 0, 0], [0, 0, 0])
    expected = np.log1p(np.exp(-np.array([1.0, -1.0, 2.0])))
    np.testing.assert_allclose(aot_unpaired(policy, zeros, beta=1.0).losses, expected, rtol=1e-6)
    _, gradient = value_and_gradient(aot_unpaired, policy, zeros, beta=1.0)
    slopes = 1 / (1 + np.exp([1.0, -1.0, 2.0])) / 3
    np.testing.assert_allclose(gradient.chosen, -slopes, rtol=1e-6)
    np.testing.assert_allclose(gradient.rejected, slopes[[2, 1, 0]], rtol=1e-6)


def test_one_pair_alone_is_dpo():
    policy, reference = numbers(1, count=1), numbers(2, count=1)
    for objective in (aot, aot_unpaired):
        assert_same(
            value_and_gradient(objective, policy, reference, beta=0.3),
            value_and_gradient(dpo, policy, reference, beta=0.3),
        )


# beta-DPO


def test_beta_dpo_without_scaling_and_filtering_is_dpo():
    policy, reference = numbers(1), numbers(2)
    assert_same(
        value_and_gradient(beta_dpo_from_start, policy, reference, beta=0.3, scaling_factor=0.0, filtering_ratio=0.0),
        value_and_gradient(dpo, policy, reference, beta=0.3),
    )


def test_beta_dpos_statistics_by_hand():
    """Deltas 1, 3, 8: mean 4, unbiased variance (9 + 1 + 16) / 2 = 13. M = 0.9 * 2 + 0.4 = 2.2, S = 0.9 + 0.1 *
    sqrt(13) = 1.260555. All kept: beta' = 0.1 * (1 + 0.6 * (4 - 2.2)) = 0.208."""
    policy, zeros = pair([1, 3, 8], [0, 0, 0]), pair([0, 0, 0], [0, 0, 0])
    output = beta_dpo(policy, zeros, keys(3), state(mean=2, std=1), filtering_ratio=0.0)
    assert output.state["mean"] == pytest.approx(2.2, rel=1e-6)
    assert output.state["std"] == pytest.approx(1.260555, rel=1e-6)
    np.testing.assert_allclose(output.metrics["beta"], 0.208, rtol=1e-6)
    np.testing.assert_allclose(output.losses, np.log1p(np.exp(-0.208 * np.array([1.0, 3.0, 8.0]))), rtol=1e-6)


def test_beta_dpos_beta_carries_no_gradient_and_has_a_floor():
    """The gradient is that of DPO at the batch's beta. Deltas of -50 with M = -5: beta * (1 - 0.6 * 45) < 0 becomes
    0.001."""
    policy, zeros = pair([1, 3, 8], [0, 0, 0]), pair([0, 0, 0], [0, 0, 0])
    options = {"keys": keys(3), "state": state(mean=2, std=1), "filtering_ratio": 0.0}
    assert_same(
        value_and_gradient(beta_dpo, policy, zeros, **options), value_and_gradient(dpo, policy, zeros, beta=0.208)
    )
    low = beta_dpo_from_start(pair([-50, -50], [0, 0]), pair([0, 0], [0, 0]), filtering_ratio=0.0)
    np.testing.assert_allclose(low.metrics["beta"], 1e-3, rtol=1e-6)


def test_dropped_pairs_weigh_nothing():
    """With 10 pairs and a ratio of 0.1, 9 are kept; the outlier of 500 nats is not among them."""
    policy, zeros = pair([1, 2, 0, 500, 1, 2, 0, 1, 2, 1], [0] * 10), pair([0] * 10, [0] * 10)
    output = beta_dpo(policy, zeros, keys(10), state(mean=1, std=1), filtering_ratio=0.1, momentum=0.99)
    np.testing.assert_array_equal(output.weights, np.arange(10) != 3)
    _, gradient = value_and_gradient(
        beta_dpo, policy, zeros, keys=keys(10), state=state(mean=1, std=1), filtering_ratio=0.1, momentum=0.99
    )
    np.testing.assert_array_equal(gradient.chosen == 0, np.arange(10) == 3)


def test_the_draw_is_one_without_replacement():
    """Three of four pairs are kept. Against the sum over all orders in which they can be drawn one by one."""
    deltas, mean, std = np.array([0.0, 1.0, 2.0, 3.0]), 1.0, 1.5
    weights = np.exp(-0.5 * ((deltas - mean) / std) ** 2)
    expected = np.zeros(4)
    for order in itertools.permutations(range(4), 3):
        left, probability = weights.sum(), 1.0
        for i in order:
            probability *= weights[i] / left
            left -= weights[i]
        expected[list(order)] += probability

    policy, zeros = pair(deltas, [0] * 4), pair([0] * 4, [0] * 4)
    # A momentum next to 1 leaves M and S where they are.
    frozen = {"state": state(mean=mean, std=std), "filtering_ratio": 0.25, "momentum": 1.0 - 1e-7}
    draws = 20_000
    many = jax.random.split(jax.random.key(7), (draws, 4))
    kept = jax.jit(jax.vmap(lambda keys: beta_dpo(policy, zeros, keys, **frozen).weights))(many)
    np.testing.assert_array_equal(kept.sum(1), 3)
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(np.asarray(kept).mean(0) - expected) < 5 * error).all()


def test_pairs_that_are_all_alike_are_drawn_evenly():
    """S is 0, where the authors' weights are 0/0: every pair is kept in 1/2 of the draws, the first in no more."""
    policy = numbers(3, count=4)
    many = jax.random.split(jax.random.key(1), (2_000, 4))
    kept = jax.vmap(lambda keys: beta_dpo(policy, policy, keys, state(mean=0, std=0), filtering_ratio=0.5).weights)(
        many
    )
    assert (np.abs(np.asarray(kept).mean(0) - 0.5) < 5 * np.sqrt(0.25 / 2_000)).all()


# BCO on pairs


def test_bco_pair_by_hand():
    """beta 0.1: rewards 0.2, 0.6 and -0.4, 0; d = 0.1: -log sigmoid of 0.1 and 0.5, and of 0.5 and 0.1."""
    output = bco_pair_from_start(pair([2, 6], [-4, 0]), pair([0, 0], [0, 0]), beta=0.1)
    expected = np.log1p(np.exp(-np.array([0.1, 0.5]))) + np.log1p(np.exp(-np.array([0.5, 0.1])))
    np.testing.assert_allclose(output.losses, expected, rtol=1e-6)
    np.testing.assert_allclose(output.metrics["delta"], 0.1, rtol=1e-6)


def test_bcos_shift_is_the_mean_of_all_rewards_so_far():
    """Batches of different sizes: each pair counts the same."""
    batches = [(numbers(i, count=count), numbers(i + 50, count=count)) for i, count in enumerate((4, 1, 6))]
    now, seen = state(mean=0, count=0), []
    for policy, reference in batches:
        output = bco_pair(policy, reference, now, beta=0.5)
        seen += [0.5 * (p - r) for p, r in zip(policy, reference, strict=True)]
        now = output.state
        np.testing.assert_allclose(output.metrics["delta"], np.concatenate(seen).mean(), rtol=1e-5)
    assert now["count"] == 11


def test_bcos_shift_carries_no_gradient():
    """d loss / d m_w = -sigmoid(d - m_w): one pair with m = 0.2 and -0.4, d = -0.1."""
    _, gradient = value_and_gradient(bco_pair_from_start, pair([2], [-4]), pair([0], [0]), beta=0.1)
    np.testing.assert_allclose(gradient.chosen, -0.1 / (1 + np.exp(0.3)), rtol=1e-6)
    np.testing.assert_allclose(gradient.rejected, 0.1 / (1 + np.exp(0.3)), rtol=1e-6)


# KTO on pairs


def plain_kto_pair(policy, reference, beta):
    """As TRL had it: two halves, behind each other."""
    chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    chosen_kl, rejected_kl = jnp.clip(chosen.mean(), 0), jnp.clip(rejected.mean(), 0)
    return jnp.concatenate(
        [1 - jax.nn.sigmoid(beta * (chosen - rejected_kl)), 1 - jax.nn.sigmoid(beta * (chosen_kl - rejected))]
    )


@pytest.mark.parametrize("seed", range(5))
def test_kto_pair_is_the_mean_over_both_halves_with_its_gradient(seed):
    """The reference points are not detached."""
    policy, reference = numbers(seed), numbers(seed + 100)
    plain = jax.value_and_grad(lambda policy: plain_kto_pair(policy, reference, 0.3).mean())(policy)
    assert_same(value_and_gradient(kto_pair, policy, reference, beta=0.3), plain)


def test_kto_pairs_slope_at_its_clamp_is_torchs():
    """Where policy = reference both means are 0, and torch's clamp lets the gradient through: each completion has
    1/4 of its own and 1/4 through the reference point of the other kind, half of it, over B = 2."""
    policy = numbers(0, count=2)
    _, gradient = value_and_gradient(kto_pair, policy, policy, beta=0.4)
    np.testing.assert_allclose(gradient.chosen, -0.4 * 0.5 / 2 / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient.rejected, 0.4 * 0.5 / 2 / 2, rtol=1e-6)


# All of them


@pytest.mark.parametrize("objective", [aot, aot_unpaired, beta_dpo, bco_pair, kto_pair])
def test_absent_pairs_may_hold_anything(objective):
    """Losses, state and gradient of a batch with a hole are those of the batch without it, even around nan."""
    policy, reference, present = numbers(1, count=4), numbers(2, count=4), jnp.array([True, False, True, True])
    holes = jax.tree.map(lambda x: jnp.where(present, x, jnp.nan), policy)
    rest = jax.tree.map(lambda x: x[present], (policy, reference, keys(4)))
    before = {beta_dpo: state(mean=1, std=2), bco_pair: state(mean=1, count=5)}.get(objective)
    more = {} if before is None else {"state": before}

    def run(policy, reference, drawn, mask):
        options = more | ({"keys": drawn} if objective is beta_dpo else {})
        output = objective(policy, reference, example_mask=mask, **options)
        loss = jnp.where(output.weights > 0, output.losses, 0.0).sum() / output.weights.sum()
        return loss, output.state

    with_holes = jax.value_and_grad(run, has_aux=True)(holes, reference, keys(4), present)
    without = jax.value_and_grad(run, has_aux=True)(*rest, None)
    assert_same(with_holes[0], without[0])
    assert_same(jax.tree.map(lambda x: x[present], with_holes[1]), without[1])
    assert all((side[1] == 0).all() for side in with_holes[1])
