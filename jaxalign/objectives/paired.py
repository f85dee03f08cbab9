"""Objectives on preference pairs that are measured against a reference policy."""

from jaxalign.objectives.ranges import Positive, Smoothing
from jaxalign.objectives.terms import Pairs, difference, log_ratios, logistic_loss, paired_output
from jaxalign.types import LossOutput, Pair


def dpo(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Direct Preference Optimization: logistic loss on the difference of log-ratios.

    ::

      h    = beta * ((lp_w - lr_w) - (lp_l - lr_l))
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

    The policy is its own reward model, with reward ``beta * (lp - lr)``; the loss is the Bradley-Terry negative
    log-likelihood of the preference. A larger `beta` holds the policy nearer to the reference. Where policy and
    reference agree, the loss is ``ln 2`` whatever the options.

    Given means per token in place of sums it is length-normalised DPO, the row `dpo_norm` of the table.

    Versions disagree on label smoothing: TRL's ``loss_type="sigmoid"`` had it before 0.29 and ignores it since, which
    is ``label_smoothing=0``.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference, per nat.
      label_smoothing: the share of preference labels assumed to be flipped ("conservative" DPO).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Rafailov et al. 2023, arXiv 2305.18290, eq. 7. Label smoothing: Mitchell, "A note on DPO with noisy preferences
      and relationship to IPO", 2023, eq. 3.

    Example:
      The chosen completion gained 2 nats on the reference and the rejected one lost 1, so ``h = 0.1 * 3`` and the
      loss is ``log(1 + exp(-0.3))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(dpo(policy, reference, beta=0.1).losses.item(), 4)
      0.5544
    """
    ratios = log_ratios(policy, reference)
    losses = logistic_loss(beta * difference(ratios), label_smoothing)
    return paired_output(losses, rewards=Pair(beta * ratios.chosen, beta * ratios.rejected), policy=policy)


def ipo(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.1,
) -> LossOutput:
    """Identity Preference Optimization: pulls the difference of log-ratios to the finite target ``1 / (2 beta)``.

    ::

      D    = (avg.lp_w - avg.lr_w) - (avg.lp_l - avg.lr_l)
      loss = (D - 1 / (2 * beta))^2

    Unlike the logistic loss of DPO, it stops pushing once the margin is reached, so preferences that are never
    contradicted cannot drive it to infinity. Where policy and reference agree, the loss is ``1 / (4 beta^2)``.

    Paper and code disagree: the paper's eq. 17 is written for whole completions, that is with sums. Its authors
    confirmed to the maintainers of TRL that the published results used means over tokens, as HALOs and TRL (since
    January 2024) do, and so does the table of methods here. The function only sees numbers: with sums passed in,
    as ``summed(ipo)`` does, it is eq. 17 as printed.

    Args:
      policy: mean log-probability per token of the two completions, nats per token, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: the paper's tau: strength of the tie to the reference. The target margin is ``1 / (2 beta)`` nats per token.

    Returns:
      Losses in (nats per token)^2, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta`` times the mean
      log-ratio per token, and ``logps/*`` are means per token.

    References:
      Azar et al. 2023, arXiv 2310.12036, eq. 17.

    Example:
      Per token, the chosen completion gained 0.5 nats and the rejected one lost 0.5: ``D = 1``, the target is
      ``1 / 0.2 = 5`` and the loss ``(1 - 5)^2``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-1.0]), jnp.array([-2.0]))
      >>> reference = Pair(jnp.array([-1.5]), jnp.array([-1.5]))
      >>> round(ipo(policy, reference, beta=0.1).losses.item(), 4)
      16.0
    """
    ratios = log_ratios(policy, reference)
    losses = (difference(ratios) - 1.0 / (2.0 * beta)) ** 2
    return paired_output(losses, rewards=Pair(beta * ratios.chosen, beta * ratios.rejected), policy=policy)
