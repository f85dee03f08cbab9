"""Hand-worked numbers, limits and closed forms of the reshaped log-ratios."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives import chi_po, dpo, dpop, f_dpo, h_dpo, r_dpo
from jaxalign.types import Pair


def pair(chosen, rejected):
    return Pair(jnp.asarray(chosen, jnp.float32), jnp.asarray(rejected, jnp.float32))


RNG = np.random.default_rng(0)
REFERENCE = pair(*RNG.uniform(-60, -5, (2, 32)))
POLICY = pair(*(side + RNG.uniform(-4, 4, 32) for side in map(np.asarray, REFERENCE)))
LENGTHS = pair(*RNG.integers(1, 60, (2, 32)))
PLUS_3 = pair([-10.0], [-13.0]), pair([-12.0], [-12.0])  # log-ratios 2 and -1


def gradient(objective, policy, *inputs, **options):
    return jax.grad(lambda given: objective(given, *inputs, **options).losses.sum())(policy)


LIMITS = {
    "h_dpo": (h_dpo, (), {"alpha": 1.0}),
    "dpop": (dpop, (), {"penalty": 0.0, "beta": 0.1}),
    "r_dpo": (r_dpo, (LENGTHS,), {"alpha": 0.0}),
    "f_dpo": (f_dpo, (), {"divergence": "reverse_kl"}),
}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_limits_that_are_dpo(name, label_smoothing):
    """Values, gradients and metrics."""
    objective, further, options = LIMITS[name]
    options = options | {"label_smoothing": label_smoothing}
    ours, theirs = (
        objective(POLICY, REFERENCE, *further, **options),
        dpo(POLICY, REFERENCE, label_smoothing=label_smoothing),
    )
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-6)
    for metric, value in theirs.metrics.items():
        np.testing.assert_allclose(ours.metrics[metric], value, rtol=1e-6)
    slopes = gradient(objective, POLICY, REFERENCE, *further, **options)
    expected = gradient(dpo, POLICY, REFERENCE, label_smoothing=label_smoothing)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), slopes, expected)


def test_h_dpo_by_hand():
    """h = 0.9 * 0.1 * 3 = 0.27 - 0: log(1.763379) = 0.567232. Rewards 0.9 * -1 + 1.2 = 0.3 and -1.17 + 1.2."""
    output = h_dpo(*PLUS_3, beta=0.1, alpha=0.9)
    assert output.losses.item() == pytest.approx(0.567232, abs=1e-6)
    assert output.metrics["rewards/chosen"].item() == pytest.approx(0.3, abs=1e-6)
    assert output.metrics["rewards/rejected"].item() == pytest.approx(0.03, abs=1e-6)
    assert output.metrics["rewards/margins"].item() == pytest.approx(0.27, abs=1e-6)


def test_h_dpo_has_the_optimum_of_its_derivation():
    """pi ~ ref^(1/alpha) exp(r / (alpha beta)) has margins r_w - r_l under the method's reward: the gradient of the
    expected loss over labels drawn from Bradley-Terry with r is 0 there.
    """
    alpha, beta, reward = 0.8, 0.5, np.array([0.7, -0.4])
    reference = np.log([0.3, 0.6])
    optimum = reference / alpha + reward / (alpha * beta)
    share = 1 / (1 + np.exp(reward[1] - reward[0]))
    lr = pair(*reference[:, None])

    def expected(policy):
        right = h_dpo(policy, lr, alpha=alpha, beta=beta).losses
        flipped = h_dpo(
            policy._replace(chosen=policy.rejected, rejected=policy.chosen),
            pair(*reference[::-1, None]),
            alpha=alpha,
            beta=beta,
        ).losses
        return (share * right + (1 - share) * flipped).sum()

    slope = jax.grad(expected)(pair(*optimum[:, None]))
    assert (slope.chosen.item(), slope.rejected.item()) == pytest.approx((0.0, 0.0), abs=1e-7)


def test_h_dpo_does_not_start_at_ln_2():
    """Tied at lp = -10 and -30 with alpha 0.9, beta 0.1: h = -0.1 * 0.1 * 20 = -0.2."""
    tied = pair([-10.0], [-30.0])
    assert h_dpo(tied, tied, alpha=0.9).losses.item() == pytest.approx(np.log1p(np.exp(0.2)), rel=1e-6)


def test_dpop_by_hand():
    """rho = -1 and -4: h = 0.3 * (3 - 50) = -14.1, loss 14.1 + log(1 + e^-14.1) = 14.1000008.

    The chosen completion's slope is 51 times the rejected one's.
    """
    policy, reference = pair([-13.0], [-16.0]), pair([-12.0], [-12.0])
    output = dpop(policy, reference)
    assert output.losses.item() == pytest.approx(14.1, rel=1e-6)
    assert output.metrics["penalty"].item() == pytest.approx(15.0)
    assert output.metrics["rewards/margins"].item() == pytest.approx(0.9)
    slope = gradient(dpop, policy, reference)
    assert (slope.chosen.item(), slope.rejected.item()) == pytest.approx((-0.3 * 51, 0.3), rel=1e-5)


def test_dpop_is_dpo_while_the_chosen_has_not_lost():
    gained = POLICY._replace(chosen=jnp.maximum(POLICY.chosen, REFERENCE.chosen))
    np.testing.assert_array_equal(dpop(gained, REFERENCE, beta=0.1).losses, dpo(gained, REFERENCE).losses)
    tied, expected = gradient(dpop, REFERENCE, REFERENCE, beta=0.1), gradient(dpo, REFERENCE, REFERENCE)
    jax.tree.map(np.testing.assert_array_equal, tied, expected)


def test_r_dpo_by_hand():
    """h = 0.1 * 3 + 0.05 * (30 - 10) = 1.3: log(1 + e^-1.3) = 0.241009. The longer chosen one pulls less than DPO's:
    -0.1 * sigmoid(-1.3) = -0.0214165 against -0.1 * sigmoid(-0.3) = -0.0425557."""
    lengths = pair([30.0], [10.0])
    assert r_dpo(*PLUS_3, lengths, alpha=0.05).losses.item() == pytest.approx(0.241009, abs=1e-6)
    assert gradient(r_dpo, *PLUS_3, lengths, alpha=0.05).chosen.item() == pytest.approx(-0.0214165, abs=1e-6)
    assert gradient(dpo, *PLUS_3).chosen.item() == pytest.approx(-0.0425557, abs=1e-6)


def test_r_dpo_optimum_pays_for_length():
    """pi ~ ref exp((r - alpha |y|) / beta): with labels from Bradley-Terry in r, the expected gradient is 0 there."""
    alpha, beta, reward, lengths = 0.05, 0.5, np.array([0.7, -0.4]), np.array([30.0, 10.0])
    reference = np.log([0.3, 0.6])
    optimum = reference + (reward - alpha * lengths) / beta
    share = 1 / (1 + np.exp(reward[1] - reward[0]))

    def expected(policy):
        total = 0.0
        for weight, order in ((share, slice(None)), (1 - share, slice(None, None, -1))):
            inputs = (policy[order], reference[order, None], lengths[order, None])
            losses = r_dpo(*(pair(*given) for given in inputs), alpha=alpha, beta=beta).losses
            total += weight * losses.sum()
        return total

    slope = jax.grad(expected)(jnp.asarray(optimum[:, None], jnp.float32))
    np.testing.assert_allclose(slope, 0.0, atol=1e-7)


def test_chi_po_by_hand():
    """phi = e^2 + 2 - e^-1 + 1 = 10.021177, h = 1.0021177, loss log(1 + e^-1.0021177) = 0.312692."""
    output = chi_po(*PLUS_3, beta=0.1)
    assert output.losses.item() == pytest.approx(0.312692, abs=1e-6)
    assert output.metrics["rewards/margins"].item() == pytest.approx(1.0021177, rel=1e-6)


def test_chi_po_starts_with_twice_the_gradient_of_dpo():
    twice = jax.tree.map(lambda slope: 2 * slope, gradient(dpo, REFERENCE, REFERENCE))
    jax.tree.map(np.testing.assert_array_equal, gradient(chi_po, REFERENCE, REFERENCE), twice)


def test_chi_po_of_unlikely_completions_is_dpo():
    """From 40 nats below the reference on, exp(rho) is lost in float32."""
    policy = jax.tree.map(lambda lr, lp: lr - 40.0 + (lp - lr), REFERENCE, POLICY)
    np.testing.assert_allclose(chi_po(policy, REFERENCE).losses, dpo(policy, REFERENCE).losses, rtol=1e-6)


def test_chi_po_clips():
    """The margin at 2 * r_max = 10, on both sides and without a gradient; the exponential at exp(2) here."""
    policy, reference = pair([3.0, -1000.0], [-1000.0, 3.0]), pair([0.0, 0.0], [0.0, 0.0])
    np.testing.assert_allclose(
        chi_po(policy, reference).losses, [np.log1p(np.exp(-10.0)), 10 + np.log1p(np.exp(-10.0))], rtol=1e-6
    )
    assert all((slope == 0).all() for slope in gradient(chi_po, policy, reference))
    high = pair([5.0], [0.0]), pair([0.0], [0.0])
    h = 0.1 * (np.exp(2.0) + 5.0 - 1.0)
    clipped = chi_po(*high, exponent_clip=2.0)
    assert clipped.losses.item() == pytest.approx(np.log1p(np.exp(-h)), rel=1e-5)
    slope = gradient(chi_po, *high, exponent_clip=2.0).chosen.item()
    assert slope == pytest.approx(-0.1 / (1 + np.exp(h)), rel=1e-5)


@pytest.mark.parametrize("alpha", [1e-2, 1e-4])
def test_f_dpo_between_the_kls(alpha):
    """alpha -> 0 is DPO and alpha -> 1 the forward KL divergence, with errors that shrink as alpha does.

    (1 - exp(-a rho)) / a = rho - a rho^2 / 2 + ...; at |rho| <= 4 two such links differ by at most 16 a.
    """
    bound = 0.1 * 20 * alpha + 1e-6
    near_dpo = f_dpo(POLICY, REFERENCE, divergence="alpha", alpha=alpha).losses
    np.testing.assert_allclose(near_dpo, dpo(POLICY, REFERENCE).losses, atol=bound)
    near_forward = f_dpo(POLICY, REFERENCE, divergence="alpha", alpha=1 - alpha).losses
    forward = f_dpo(POLICY, REFERENCE, divergence="forward_kl").losses
    np.testing.assert_allclose(near_forward, forward, rtol=20 * alpha)


@pytest.mark.parametrize(
    ("divergence", "margin"),
    [
        ("reverse_kl", 3.0),
        ("forward_kl", np.exp(1.0) - np.exp(-2.0)),
        ("js", np.log(2 / (1 + np.exp(-2.0))) - np.log(2 / (1 + np.exp(1.0)))),
        ("alpha", 2 * (np.exp(0.5) - np.exp(-1.0))),
    ],
)
def test_f_dpo_by_hand(divergence, margin):
    """rho = 2 and -1. In order: 3; 2.718282 - 0.135335; log(1.761594) - log(0.537883); 2 * (1.648721 - 0.367879)."""
    output = f_dpo(*PLUS_3, beta=0.1, divergence=divergence)
    assert output.metrics["rewards/margins"].item() == pytest.approx(0.1 * margin, rel=1e-5)
    assert output.losses.item() == pytest.approx(np.log1p(np.exp(-0.1 * margin)), rel=1e-6)


F_OF_RATIO = {
    "reverse_kl": lambda u: u * np.log(u),
    "forward_kl": lambda u: -np.log(u),
    "js": lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
    "alpha": lambda u: (u**0.5 - 0.5 * u - 0.5) / (0.5 * -0.5),
}


@pytest.mark.parametrize("divergence", F_OF_RATIO)
def test_f_dpo_links_are_derivatives_of_the_divergence(divergence):
    """g(rho_w) - g(rho_l) = f'(u_w) - f'(u_l) at u = exp(rho), by central differences of f in float64."""
    f, step = F_OF_RATIO[divergence], 1e-5
    u = np.exp(np.array([[1.5, -0.5, 2.0], [-1.0, 0.25, -2.0]]))
    slopes = (f(u * (1 + step)) - f(u * (1 - step))) / (2 * step * u)
    policy, reference = pair(*np.log(u)), pair(*np.zeros((2, 3)))
    margins = f_dpo(policy, reference, beta=1.0, divergence=divergence).metrics["rewards/margins"]
    np.testing.assert_allclose(margins, slopes[0] - slopes[1], rtol=1e-5)


@pytest.mark.parametrize("divergence", F_OF_RATIO)
def test_f_dpo_rewards_are_zero_at_the_reference(divergence):
    output = f_dpo(REFERENCE, REFERENCE, divergence=divergence)
    assert (output.metrics["rewards/chosen"] == 0).all()
    np.testing.assert_allclose(output.losses, np.log(2.0), rtol=1e-6)


def test_f_dpo_clips_the_exponent():
    """A chosen completion lost 10 nats, the clip is at 2: g = 1 - e^2, and only the rejected one has a slope."""
    policy, reference = pair([-10.0], [0.0]), pair([0.0], [0.0])
    output = f_dpo(policy, reference, exponent_clip=2.0)
    assert output.metrics["rewards/chosen"].item() == pytest.approx(0.1 * (1 - np.exp(2.0)), rel=1e-6)
    slope = gradient(f_dpo, policy, reference, exponent_clip=2.0)
    assert slope.chosen.item() == 0.0
    assert slope.rejected.item() > 0.0


def test_f_dpo_refuses_another_divergence():
    with pytest.raises((ValueError, TypeError)):  # TypeError where the type checker looks first
        f_dpo(*PLUS_3, divergence="kl")
