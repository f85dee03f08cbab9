"""Hand-worked numbers and limits of the objectives that see tokens."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.methods import METHODS
from jaxalign.objectives import bmc, dft, dpo, ld_dpo, sampo, sft, tdpo1, tdpo2, weighted_dpo, wpo
from jaxalign.objectives.token_terms import drawn_tokens, tail_weights, token_sums
from jaxalign.types import Pair
from tests.method_inputs import make_inputs

TOKEN_METHODS = ("tdpo1", "tdpo2", "wpo", "bmc", "ld_dpo", "sampo", "weighted_dpo", "dft")
GIVEN = {name: value for row in TOKEN_METHODS for name, value in make_inputs(METHODS[row]).items() if row != "dft"}
SUMS = {"policy": token_sums(GIVEN["policy"]), "reference": token_sums(GIVEN["reference"])}


def call(objective, **changes):
    options = {name: changes.pop(name) for name in list(changes) if name not in GIVEN}
    inputs = GIVEN | changes
    return objective(*(inputs[name] for name in inspect.signature(objective).parameters if name in inputs), **options)


def assert_same(output, expected):
    np.testing.assert_allclose(output.losses, expected.losses, rtol=1e-6)
    for name, values in expected.metrics.items():
        np.testing.assert_allclose(output.metrics[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


def masks(chosen, rejected, n):
    return Pair(*(jnp.arange(n) < jnp.asarray(lengths)[:, None] for lengths in (chosen, rejected)))


# Limits.


@pytest.mark.parametrize(
    ("objective", "changes", "options"),
    [
        (ld_dpo, {}, {"alpha": 1.0}),
        (bmc, {}, {"delta": 0.0, "beta": 0.1}),
        (bmc, {"marked": jax.tree.map(jnp.zeros_like, GIVEN["marked"])}, {"beta": 0.1}),
        (weighted_dpo, {"token_weights": jax.tree.map(jnp.ones_like, GIVEN["token_weights"])}, {}),
        (wpo, {"token_collision": GIVEN["policy"]}, {"beta": 0.1}),
        (wpo, {"token_collision": GIVEN["policy"]}, {"beta": 0.1, "clamp": False}),
    ],
)
def test_limits_are_dpo(objective, changes, options):
    """No tail weight, no bridge, no marks, weights of 1, tokens at their expected probability."""
    assert_same(call(objective, **changes, **options), dpo(**SUMS))


def test_tdpo_without_drift_is_dpo():
    """With alpha = 0 the loss and its gradient; with no KL at all the rewards too."""
    np.testing.assert_allclose(call(tdpo2, alpha=0.0).losses, dpo(**SUMS).losses, rtol=1e-6)
    none = jax.tree.map(jnp.zeros_like, GIVEN["token_kl"])
    assert_same(call(tdpo1, token_kl=none), dpo(**SUMS))
    assert_same(call(tdpo2, token_kl=none), dpo(**SUMS))


def test_the_two_forms_of_tdpo_differ_in_one_gradient():
    """With alpha = 1 their losses agree; the chosen completion's KL has a gradient in the first form only."""
    assert_same(call(tdpo2, alpha=1.0), call(tdpo1))
    for objective, options, flows in ((tdpo1, {}, True), (tdpo2, {"alpha": 1.0}, False)):
        slope = jax.grad(lambda kl, f=objective, o=options: call(f, token_kl=kl, **o).losses.sum())(GIVEN["token_kl"])
        assert (jnp.abs(slope.chosen).sum() > 0) == flows
        assert (slope.rejected > 0).all()  # the rejected completion's drift raises the loss


def test_sampo_of_equal_lengths_is_dpo():
    mask = masks([4, 2, 1, 7, 3, 5], [4, 2, 1, 7, 3, 5], 9)
    inputs = {name: Pair(*(x * m for x, m in zip(GIVEN[name], mask, strict=True))) for name in ("policy", "reference")}
    expected = dpo(**{name: token_sums(value) for name, value in inputs.items()})
    assert_same(call(sampo, token_mask=mask, **inputs), expected)
    assert_same(call(ld_dpo, token_mask=mask, alpha=0.0, **inputs), expected)


def test_dft_of_a_sure_policy_has_the_gradient_of_sft():
    """Where every token has probability 1 the factor is 1."""
    lengths = jnp.array([3.0, 2.0])
    sure = jnp.zeros((2, 4))

    def mean(output):
        return (output.losses * output.weights).sum() / output.weights.sum()

    slope = jax.grad(lambda p: mean(dft(p, lengths)))(sure)
    np.testing.assert_allclose(slope[:, 0], jax.grad(lambda p: mean(sft(p, lengths)))(sure.sum(-1)), rtol=1e-6)


# By hand.


def test_tdpo_by_hand():
    """rho = 3 and 1, D = 1 and 2, beta = 0.1.

    First form: h = 0.1 * (2 - (2 - 1)) = 0.1, log(1 + e^-0.1) = 0.644397. Second, alpha = 0.5: h = 0.1 * (2 - 0.5) =
    0.15, log(1 + e^-0.15) = 0.620957. Rewards 0.1 * (3 + 1) and 0.1 * (1 + 2) in both.
    """
    policy = Pair(jnp.array([[-1.0, -1.0]]), jnp.array([[-2.0, 0.0]]))
    reference = Pair(jnp.array([[-3.0, -2.0]]), jnp.array([[-3.0, 0.0]]))
    drift = Pair(jnp.array([[0.5, 0.5]]), jnp.array([[2.0, 0.0]]))
    first, second = tdpo1(policy, reference, drift), tdpo2(policy, reference, drift)
    assert first.losses.item() == pytest.approx(0.644397, abs=1e-6)
    assert second.losses.item() == pytest.approx(0.620957, abs=1e-6)
    for output in (first, second):
        assert output.metrics["rewards/chosen"].item() == pytest.approx(0.4)
        assert output.metrics["rewards/rejected"].item() == pytest.approx(0.3)
        assert (output.metrics["kl/chosen"].item(), output.metrics["kl/rejected"].item()) == (1.0, 2.0)


def test_wpo_by_hand():
    """log p - log sum p^2: (1 + -2) / 2 for the chosen tokens, 3 for the rejected one.

    W = e^(-0.5 + 3) = e^2.5 = 12.182494, clamped to 1; the loss at the reference is W ln 2.
    """
    policy = Pair(jnp.array([[-1.0, -3.0, 0.0]]), jnp.array([[-0.5, 0.0, 0.0]]))
    collision = Pair(jnp.array([[-2.0, -1.0, 0.0]]), jnp.array([[-3.5, 0.0, 0.0]]))
    mask = masks([2], [1], 3)
    assert wpo(policy, policy, collision, mask).losses.item() == pytest.approx(np.log(2.0))
    free = wpo(policy, policy, collision, mask, clamp=False)
    assert free.losses.item() == pytest.approx(np.exp(2.5) * np.log(2.0), rel=1e-6)
    assert free.metrics["pair_weights"].item() == pytest.approx(12.182494, rel=1e-6)


def test_bmc_by_hand():
    """A marked token of probability 1/2 weighs 1 + 2 = 3 under delta = 2.5, one of 1/4 weighs 1 + 2.5 = 3.5.

    Both gained ln 2 on the reference (1/4 and 1/8), the second is unmarked in the rejected completion: with beta = 1,
    h = (3 + 3.5 - 1) ln 2 and the loss log(1 + 2^-5.5). By its own probabilities the reference's tokens weigh 3.5 each
    (1/p = 4 and 8): h = 3 ln(1/2) + 3.5 ln(1/4) - 3.5 ln(1/4) - 3.5 ln(1/8) - ln 2 = 6.5 ln 2.
    """
    policy = Pair(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([[0.5, 1.0]])))
    reference = Pair(jnp.log(jnp.array([[0.25, 0.125]])), jnp.log(jnp.array([[0.25, 1.0]])))
    marked = Pair(jnp.array([[True, True]]), jnp.array([[False, False]]))
    for weights, h in (("policy", 5.5), ("own", 6.5)):
        output = bmc(policy, reference, marked, beta=1.0, delta=2.5, reference_weights=weights)
        assert output.losses.item() == pytest.approx(np.log1p(2.0**-h), rel=1e-5)
        assert output.metrics["logps/chosen"].item() == pytest.approx(np.log(0.125))
    with pytest.raises(ValueError, match="expected 'policy' or 'own'"):
        inspect.unwrap(bmc)(policy, reference, marked, reference_weights="both")  # beneath the tests' type checks


def test_ld_dpo_by_hand():
    """Chosen 3 tokens, rejected 1: log-ratios 1 + 0.25 * (1 + 2) = 1.75 and 1, h = 0.1 * 0.75."""
    policy = Pair(jnp.array([[-1.0, -1.0, -1.0]]), jnp.array([[-1.0, 0.0, 0.0]]))
    reference = Pair(jnp.array([[-2.0, -2.0, -3.0]]), jnp.array([[-2.0, 0.0, 0.0]]))
    output = ld_dpo(policy, reference, masks([3], [1], 3), alpha=0.25)
    assert output.losses.item() == pytest.approx(np.log1p(np.exp(-0.075)), rel=1e-6)
    assert output.metrics["logps/chosen"].item() == pytest.approx(-1.5)


def test_tail_weights_by_hand():
    """Lengths 3 and 2: the third chosen token is the tail."""
    weights = tail_weights(masks([3], [2], 4), 0.5)
    assert weights.chosen.tolist() == [[1.0, 1.0, 0.5, 0.0]]
    assert weights.rejected.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_dft_by_hand():
    """Probabilities 1/2 and 1/4: (ln 2 / 2 + ln 4 / 4) / 2 = 0.346574, and the nll (ln 2 + ln 4) / 2 = 1.039721.

    The slope in a token's log-probability is -p / 2.
    """
    policy, lengths = jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([2.0])
    output = dft(policy, lengths)
    assert output.losses.item() == pytest.approx(0.346574, abs=1e-6)
    assert output.metrics["nll_loss"].values.item() == pytest.approx(1.039721, abs=1e-6)
    np.testing.assert_allclose(jax.grad(lambda p: dft(p, lengths).losses.sum())(policy), [[-0.25, -0.125]], rtol=1e-6)


# What has no gradient, and what does not matter.


def test_weights_have_no_gradient():
    """The gradient of WPO and BMC is that of dpo with the weights held fixed."""
    held = call(wpo).metrics["pair_weights"]
    slope = jax.grad(lambda p: call(wpo, policy=p, beta=0.1).losses.sum())(GIVEN["policy"])
    plain = jax.grad(lambda p: (held * dpo(token_sums(p), SUMS["reference"]).losses).sum())(GIVEN["policy"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), slope, plain)
    collision = jax.grad(lambda c: call(wpo, token_collision=c).losses.sum())(GIVEN["token_collision"])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(collision))

    slope = jax.grad(lambda p: call(bmc, policy=p, beta=1.0).losses.sum())(GIVEN["policy"]).chosen
    first = slope[:, :1]  # slopes are in the ratio of the tokens' weights
    weights = 1.0 + GIVEN["marked"].chosen * jnp.minimum(jnp.exp(-GIVEN["policy"].chosen), 2.0)
    np.testing.assert_allclose(slope / first, weights / weights[:, :1], rtol=1e-5)


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_padding_does_not_matter(name):
    """Five more places behind every completion."""
    method = METHODS[name]
    inputs = make_inputs(method)

    def longer(key, value):
        if key in ("lengths", "keys"):
            return value
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 5))), value)

    padded = method.loss({key: longer(key, value) for key, value in inputs.items()})
    expected = method.loss(inputs)
    np.testing.assert_allclose(padded.losses, expected.losses, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), dict(padded.metrics), dict(expected.metrics))


# The draw.


def test_a_draw_depends_on_nothing_but_the_key():
    """Neither on padding nor on the neighbours, and it is another one with another key."""
    mask, keys = masks([9, 5, 7, 3], [4, 8, 2, 3], 9), jax.random.split(jax.random.key(3), 4)
    drawn = drawn_tokens(mask, keys)
    padded = drawn_tokens(jax.tree.map(lambda m: jnp.pad(m, ((0, 0), (0, 6))), mask), keys)
    alone = drawn_tokens(jax.tree.map(lambda m: m[2:3], mask), keys[2:3])
    for side in (0, 1):
        np.testing.assert_array_equal(padded[side][:, :9], drawn[side])
        assert (padded[side][:, 9:] == 0).all()
        np.testing.assert_array_equal(alone[side][0], drawn[side][2])
        np.testing.assert_array_equal(drawn[side].sum(-1), [4, 5, 2, 3])
        assert (drawn[side] <= mask[side]).all()
    np.testing.assert_array_equal(drawn.rejected[0], mask.rejected[0])  # the shorter one is whole
    other = drawn_tokens(mask, jax.random.split(jax.random.key(4), 4))
    assert (other.chosen != drawn.chosen).any()


def test_every_subset_is_drawn_equally_often():
    """2 of 5 tokens: 10 subsets over 4000 keys; chi-square with 9 degrees of freedom is below 27.9 at p = 0.001."""
    count = 4000
    mask = masks([5] * count, [2] * count, 6)
    drawn = drawn_tokens(mask, jax.random.split(jax.random.key(0), count)).chosen.astype(int)
    assert (drawn.sum(-1) == 2).all()
    _, found = np.unique(np.asarray(drawn), axis=0, return_counts=True)
    assert len(found) == 10
    assert ((found - count / 10) ** 2 / (count / 10)).sum() < 27.9


def test_the_two_sides_draw_apart():
    """Token t of one side says nothing of token t of the other: joint shares are products."""
    count, keys = 4000, jax.random.split(jax.random.key(1), 4000)
    first = drawn_tokens(masks([6] * count, [3] * count, 6), keys).chosen
    second = drawn_tokens(masks([3] * count, [6] * count, 6), keys).rejected
    both = (first * second).mean(0)
    np.testing.assert_allclose(both, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / count))


def test_policy_and_reference_draw_the_same_tokens():
    """A reference that is the policy leaves ln 2 whatever is drawn."""
    output = call(sampo, reference=GIVEN["policy"])
    np.testing.assert_allclose(output.losses, np.log(2.0), rtol=1e-6)
    assert (output.metrics["rewards/margins"] == 0).all()
