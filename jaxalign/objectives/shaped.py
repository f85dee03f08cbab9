"""Objectives on preference pairs that change DPO's log-ratios, or their margin, before the logistic loss."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.objectives.divergences import Divergence, divergence_link
from jaxalign.objectives.ranges import NonNegative, Positive, Range, Smoothing
from jaxalign.objectives.terms import (
    Pairs,
    at_least_float32,
    difference,
    fixed,
    log_ratios,
    logistic_loss,
    paired_output,
    scaled,
)
from jaxalign.types import LossOutput, Pair

BetweenKls = Annotated[float, Range(gt=0.0, lt=1.0)]
Exponent = Annotated[float, Range(gt=0.0, le=80.0)]
"""A largest argument of exp in float32, which overflows at 88.7."""


def h_dpo(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.1,
    alpha: Positive = 0.95,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Entropy-controllable DPO: the policy's log-probabilities are scaled by `alpha`, the reference's are not.

    ::

      h    = alpha * beta * (lp_w - lp_l) - beta * (lr_w - lr_l)
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

    The KL divergence of RLHF is a cross-entropy minus the policy's entropy; `alpha` weighs the entropy alone. The
    optimal policy is proportional to ``reference^(1 / alpha) * exp(reward / (alpha * beta))``: sharper than that of
    DPO below 1, more diverse above. With ``alpha=1`` it is DPO. Otherwise the loss does not start at ``ln 2``, and the
    lengths of the completions no longer cancel at the start.

    The formula was derived and compared with third-party code. The paper's settings were not verified: from memory
    its best `alpha` lies at 0.9 to 0.95 and its `beta` is 0.01.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference, per nat.
      alpha: weight of the policy's entropy.
      label_smoothing: the share of preference labels assumed to be flipped (not in the paper).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``alpha * beta * lp - beta * lr``, not 0
      at the start.

    References:
      Omura et al. 2024, "Entropy Controllable Direct Preference Optimization", arXiv 2411.07595.

    Example:
      The policy's margin is 3 nats and the reference has none: ``h = 0.9 * 0.1 * 3`` and the loss is
      ``log(1 + exp(-0.27))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(h_dpo(policy, reference, beta=0.1, alpha=0.9).losses.item(), 4)
      0.5672
    """
    # alpha * lp - lr, written so that what is left of two numbers that nearly cancel keeps its digits.
    ratios, share = log_ratios(policy, reference), 1.0 - alpha
    lp = Pair(at_least_float32(policy.chosen), at_least_float32(policy.rejected))
    losses = logistic_loss(beta * (difference(ratios) - share * difference(lp)), label_smoothing)
    rewards = Pair(beta * (ratios.chosen - share * lp.chosen), beta * (ratios.rejected - share * lp.rejected))
    return paired_output(losses, rewards=rewards, policy=policy)


def dpop(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.3,
    penalty: NonNegative = 50.0,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """DPO-Positive (Smaug): DPO whose margin pays for every nat that the chosen completion loses on the reference.

    ::

      h    = beta * ((lp_w - lr_w) - (lp_l - lr_l) - penalty * max(0, lr_w - lp_w))
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

    DPO is content when both completions become less likely as long as the rejected one loses more, which happens most
    where the two differ in few tokens. The penalty, the paper's lambda, forbids it. Where the chosen completion is at
    least as likely as under the reference, and with ``penalty=0``, it is DPO. (At ``lp_w = lr_w``, where training
    starts, the penalty has no gradient.)

    The penalty stands inside the sigmoid, as in the paper; some ports add it outside. The defaults are the paper's
    from memory, not verified; turbo-alignment's default penalty is 0.1.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference, per nat.
      penalty: what a nat lost by the chosen completion costs, in nats of margin.
      label_smoothing: the share of preference labels assumed to be flipped (not in the paper).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``, without the
      penalty; ``penalty`` is ``beta * penalty * max(0, lr_w - lp_w)``.

    References:
      Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", arXiv 2402.13228.

    Example:
      Both lost, the rejected one 3 nats more, and the chosen one 1 nat: ``h = 0.3 * (3 - 50 * 1) = -14.1``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-13.0]), jnp.array([-16.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(dpop(policy, reference, beta=0.3, penalty=50.0).losses.item(), 4)
      14.1
    """
    ratios = log_ratios(policy, reference)
    lost = penalty * jax.nn.relu(-ratios.chosen)
    losses = logistic_loss(beta * (difference(ratios) - lost), label_smoothing)
    return paired_output(losses, rewards=scaled(beta, ratios), policy=policy, penalty=beta * lost)


def r_dpo(
    policy: Pairs,
    reference: Pairs,
    lengths: Pairs,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 0.01,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Length-regularised DPO: a margin for the difference in length stands beside the difference of log-ratios.

    ::

      h    = beta * ((lp_w - lr_w) - (lp_l - lr_l)) + alpha * (|y_w| - |y_l|)
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

    The policy is to maximise the reward minus `alpha` per token. Solved for the reward, that adds ``alpha * |y|`` to
    each completion's log-ratio, with a plus sign: a chosen completion that is longer has part of its preference
    explained by its length, and needs the policy less. With ``alpha=0`` it is DPO.

    The plus sign is what the derivation gives. The implementation in the repository of BMC (arXiv 2408.07471) has a
    minus, which pushes towards length. The default `alpha` is a choice of this package, 1 nat per 100 tokens; the
    papers' values were not verified.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      lengths: scored tokens of the two completions, ``[B]`` each.
      beta: strength of the tie to the reference, per nat.
      alpha: what a token costs, in units of the reward.
      label_smoothing: the share of preference labels assumed to be flipped (not in the paper).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``, what the policy
      maximises: the reward after its length was paid for.

    References:
      Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization", arXiv 2403.19159.

    Example:
      ``h = 0.1 * 3 + 0.05 * (30 - 10) = 1.3``, and the loss is ``log(1 + exp(-1.3))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> lengths = Pair(jnp.array([30.0]), jnp.array([10.0]))
      >>> round(r_dpo(policy, reference, lengths, beta=0.1, alpha=0.05).losses.item(), 4)
      0.241
    """
    ratios = log_ratios(policy, reference)
    longer = fixed(lengths.chosen) - fixed(lengths.rejected)
    losses = logistic_loss(beta * difference(ratios) + alpha * longer, label_smoothing)
    return paired_output(losses, rewards=scaled(beta, ratios), policy=policy)


def chi_po(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.1,
    r_max: Positive = 5.0,
    exponent_clip: Exponent = 20.0,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Chi-squared preference optimization: DPO with the probability ratio itself added to its logarithm.

    ::

      rho   = lp - lr
      phi   = exp(min(rho, exponent_clip)) + rho
      h     = clip(beta * (phi_w - phi_l), -2 * r_max, 2 * r_max)
      loss  = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

    The policy is tied to the reference by the chi-squared divergence as well as by the KL divergence, which is
    stronger where the policy gives a completion much more probability than the reference did, and so guards against
    trusting rewards that the data does not cover. For completions that have become unlikely it is DPO, and at the
    start its gradient is twice that of DPO.

    There are two clips, and beyond either there is no gradient. The margin's, ``2 * r_max``, is the paper's, where
    ``r_max`` bounds the reward. It also stops pairs that are ``2 * r_max`` on the wrong side. The exponential's keeps
    it finite; only the argument of exp is clipped, ``rho`` itself still counts. (A lower clip at -88, where exp
    underflows, would change nothing.) Both clips, and the default of `exponent_clip`, are from memory of the paper
    and not verified against it; the default of `r_max` is a choice of this package.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference.
      r_max: largest reward, in the unit of the margin.
      exponent_clip: largest log-ratio whose exponential is taken, nats.
      label_smoothing: the share of preference labels assumed to be flipped (not in the paper).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * phi``; their margin is not
      clipped at ``2 * r_max``.

    References:
      Huang et al. 2024, "Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization via
      Chi-Squared Preference Optimization", arXiv 2407.13399.

    Example:
      ``rho = 2`` and ``-1``: ``h = 0.1 * (exp(2) + 2 - exp(-1) + 1) = 1.0021``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(chi_po(policy, reference, beta=0.1).losses.item(), 4)
      0.3127
    """
    ratios = log_ratios(policy, reference)

    def link(rho: Float[Array, " B"]) -> Float[Array, " B"]:
        return jnp.exp(jnp.minimum(rho, exponent_clip)) + rho

    links = Pair(link(ratios.chosen), link(ratios.rejected))
    losses = logistic_loss(jnp.clip(beta * difference(links), -2.0 * r_max, 2.0 * r_max), label_smoothing)
    return paired_output(losses, rewards=scaled(beta, links), policy=policy)


def f_dpo(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.1,
    divergence: Divergence = "forward_kl",
    alpha: BetweenKls = 0.5,
    exponent_clip: Exponent = 80.0,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """DPO with another divergence: the policy is tied to the reference by an f-divergence of choice.

    ::

      rho  = lp - lr
      h    = beta * (g(rho_w) - g(rho_l))
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

      g(rho) = rho                                 "reverse_kl": DPO
               1 - exp(-rho)                       "forward_kl"
               log 2 + log sigmoid(rho)            "js", Jensen-Shannon
               (1 - exp(-alpha * rho)) / alpha     "alpha"; alpha -> 0 is reverse_kl, alpha -> 1 is forward_kl

    ``g(rho)`` is ``f'(exp(rho))``, shifted so that it is 0 where policy and reference agree; constants cancel in
    ``h``. The reverse KL divergence lets the policy drop whatever the reward does not favour; the others pay more for
    that, and keep more of the reference's diversity. The default is the forward KL divergence, the far end of the
    range.

    The arguments of exp are clipped at `exponent_clip`, beyond which they have no gradient. A gradient still grows
    with ``exp(-rho)``: a few nats that a completion lost decide the step. Its square overflows float32 from a ``-rho``
    of about 40 on, and with it a gradient norm; lower the clip if that happens.

    The values are TRL's with ``f_divergence_type``: "forward_kl", "js_divergence" and "alpha_divergence" there, with
    ``f_alpha_divergence_coef = 1 - alpha``. TRL clips at 80 for "alpha" only, so its forward KL divergence becomes
    infinite at 88 nats. TRL also reports ``beta * rho`` as rewards for every divergence.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference.
      divergence: the divergence.
      alpha: where between the reverse (0) and the forward (1) KL divergence; only ``"alpha"`` uses it.
      exponent_clip: largest argument of exp.
      label_smoothing: the share of preference labels assumed to be flipped (not in the paper).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * g(rho)``.

    Raises:
      ValueError: `divergence` is none of the four.

    References:
      Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
      Constraints", arXiv 2309.16240.

    Example:
      ``rho = 2`` and ``-1``: ``h = 0.1 * (exp(1) - exp(-2)) = 0.2583``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(f_dpo(policy, reference, beta=0.1, divergence="forward_kl").losses.item(), 4)
      0.5723
    """
    ratios = log_ratios(policy, reference)
    links = Pair(*(divergence_link(divergence, rho, alpha, exponent_clip) for rho in ratios))
    losses = logistic_loss(beta * difference(links), label_smoothing)
    return paired_output(losses, rewards=scaled(beta, links), policy=policy)
