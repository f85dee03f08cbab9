"""Objectives on preference pairs that hold each completion against a target of its own, not only against the other."""

from typing import Annotated

from jaxalign.objectives.ranges import NonNegative, Positive, Range
from jaxalign.objectives.terms import (
    Pairs,
    difference,
    fixed,
    log_ratios,
    logistic_loss,
    paired_output,
    scaled,
    sigmoid,
)
from jaxalign.types import LossOutput, Pair

Share = Annotated[float, Range(ge=0.0, lt=1.0)]


def apo_zero(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.1,
) -> LossOutput:
    """Anchored Preference Optimization, zero: pushes the chosen completion up and the rejected one down.

    ::

      rho  = lp - lr
      loss = (1 - sigmoid(beta * rho_w)) + sigmoid(beta * rho_l)

    Each completion is anchored at the reference, so the chosen one's likelihood cannot fall as long as the margin
    grows, as it can with DPO. Both pushes fade as their completion leaves the reference in the wanted direction. For
    data whose chosen completions are better than what the policy writes. Where policy and reference agree, the loss
    is 1.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference, per nat.

    Returns:
      Losses between 0 and 2, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7 (TRL's count; checked against TRL, not against the paper).

    Example:
      The chosen completion gained 2 nats and the rejected one lost 1: ``(1 - sigmoid(0.2)) + sigmoid(-0.1)``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(apo_zero(policy, reference, beta=0.1).losses.item(), 4)
      0.9252
    """
    ratios = log_ratios(policy, reference)
    # 1 - sigmoid(z) = sigmoid(-z), which keeps its precision where the loss is small.
    losses = sigmoid(-beta * ratios.chosen) + sigmoid(beta * ratios.rejected)
    return paired_output(losses, rewards=scaled(beta, ratios), policy=policy)


def apo_down(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.1,
) -> LossOutput:
    """Anchored Preference Optimization, down: pushes both completions down, the rejected one further.

    ::

      rho  = lp - lr
      loss = sigmoid(beta * rho_w) + (1 - sigmoid(beta * (rho_w - rho_l)))

    For data whose chosen completions are better than the rejected ones, but worse than what the policy writes. Where
    policy and reference agree, the loss is 1, and the two terms just cancel in the chosen completion's gradient.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference, per nat.

    Returns:
      Losses between 0 and 2, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8 (TRL's count; checked against TRL, not against the paper).

    Example:
      The chosen completion lost 2 nats and the rejected one 5: ``sigmoid(-0.2) + (1 - sigmoid(0.3))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-14.0]), jnp.array([-17.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(apo_down(policy, reference, beta=0.1).losses.item(), 4)
      0.8757
    """
    ratios = log_ratios(policy, reference)
    losses = sigmoid(beta * ratios.chosen) + sigmoid(-beta * difference(ratios))
    return paired_output(losses, rewards=scaled(beta, ratios), policy=policy)


def nca_pair(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.01,
    noise_share: Share = 0.5,
) -> LossOutput:
    """Noise Contrastive Alignment of a pair: tells the chosen completion from what the reference would write.

    ::

      m    = beta * (lp - lr)
      loss = -log sigmoid(m_w) - noise_share * log sigmoid(-m_w) - (1 - noise_share) * log sigmoid(-m_l)

    The chosen completion is the signal, and both are samples of the reference, that is noise; hence one half of the
    chosen completion's push is taken back, and its reward has the finite optimum ``log(1 / noise_share)``. The
    rewards are absolute, unlike DPO's, which holds the chosen completion's likelihood up. Where policy and reference
    agree, the loss is ``2 ln 2``.

    With ``noise_share=0`` this is the authors' "biased" form, in which the chosen completion is no noise. It is also
    what TRL computes today as ``bco_pair``: that of BCO without its reward shift; see `bco_pair`.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference, per nat. The default is that of the authors' code.
      noise_share: the chosen completion's share of the noise. One half is the paper's method and TRL's ``nca_pair``.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Chen et al. 2024, arXiv 2402.05369; the pairwise form of the authors' code.

    Example:
      Rewards ``0.1 * 2`` and ``0.1 * -1``: ``-log sigmoid(0.2) - 0.5 log sigmoid(-0.2) - 0.5 log sigmoid(0.1)``,
      that is ``0.5981 + 0.3991 + 0.3222``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(nca_pair(policy, reference, beta=0.1).losses.item(), 4)
      1.3194
    """
    ratios = log_ratios(policy, reference)
    rewards = scaled(beta, ratios)
    losses = (
        logistic_loss(rewards.chosen)
        + noise_share * logistic_loss(-rewards.chosen)
        + (1.0 - noise_share) * logistic_loss(-rewards.rejected)
    )
    return paired_output(losses, rewards=rewards, policy=policy)


def sppo(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.001,
) -> LossOutput:
    """Self-Play Preference Optimization, hard: draws both log-ratios to fixed targets of opposite sign.

    ::

      rho  = lp - lr
      loss = (rho_w - 1 / (2 * beta))^2 + (rho_l + 1 / (2 * beta))^2

    The chosen completion is taken to win against the policy's own with probability 1 and the rejected one with
    probability 0; `sppo_soft` takes these probabilities from the data. The method is meant for rounds: the pairs are
    sampled from the policy of the round before, which is the reference. Where policy and reference agree, the loss is
    ``1 / (2 beta^2)``.

    This is TRL's ``sppo_hard``, the sum of the two squares. The authors' code takes their mean, as `sppo_soft` does:
    half of this loss, hence the same minimum with half the gradient.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: the paper's ``1 / eta``, per nat. The default of the authors' recipe puts the targets at 500 nats: out of
        reach, so that the losses are large numbers and the method works as a steady push.

    Returns:
      Losses in nats^2, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Wu et al. 2024, arXiv 2405.00675, eq. 4.7 with probabilities 1 and 0 (TRL's count of the equation).

    Example:
      Targets ``+5`` and ``-5``; the chosen completion gained 2 nats and the rejected one lost 1:
      ``(2 - 5)^2 + (-1 + 5)^2``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(sppo(policy, reference, beta=0.1).losses.item(), 4)
      25.0
    """
    ratios = log_ratios(policy, reference)
    target = 1.0 / (2.0 * beta)
    losses = (ratios.chosen - target) ** 2 + (ratios.rejected + target) ** 2
    return paired_output(losses, rewards=scaled(beta, ratios), policy=policy)


def sppo_soft(
    policy: Pairs,
    reference: Pairs,
    win_probabilities: Pairs,
    *,
    beta: Positive = 0.001,
) -> LossOutput:
    """Self-Play Preference Optimization: draws each log-ratio to a target set by the completion's own win rate.

    ::

      rho  = lp - lr
      loss = ((rho_w - (P_w - 1/2) / beta)^2 + (rho_l - (P_l - 1/2) / beta)^2) / 2

    ``P`` is the probability that a completion beats one of the policy's own. A completion that wins half of its
    comparisons stays where it is, and a "chosen" one with ``P < 1/2`` is pushed down: each completion stands for
    itself, the pair is only how the data comes. The authors estimate ``P`` with a preference model, as the mean of
    ``sigmoid(s_i - s_j)`` over the five samples ``j`` of the prompt, the completion itself among them.

    With ``P_w = 1`` and ``P_l = 0`` the loss is half of `sppo`.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      win_probabilities: the ``P`` of the two completions, ``[B]`` each, between 0 and 1.
      beta: the paper's ``1 / eta``, per nat.

    Returns:
      Losses in nats^2, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Wu et al. 2024, arXiv 2405.00675, eq. 4.7 (TRL's count of the equation); the mean over the two completions is
      that of the authors' code.

    Example:
      Targets ``(0.9 - 0.5) / 0.1 = 4`` and ``(0.2 - 0.5) / 0.1 = -3``: ``((2 - 4)^2 + (-1 + 3)^2) / 2``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> wins = Pair(jnp.array([0.9]), jnp.array([0.2]))
      >>> round(sppo_soft(policy, reference, wins, beta=0.1).losses.item(), 4)
      4.0
    """
    ratios = log_ratios(policy, reference)
    targets = Pair((fixed(win_probabilities.chosen) - 0.5) / beta, (fixed(win_probabilities.rejected) - 0.5) / beta)
    losses = 0.5 * ((ratios.chosen - targets.chosen) ** 2 + (ratios.rejected - targets.rejected) ** 2)
    return paired_output(losses, rewards=scaled(beta, ratios), policy=policy)


def cal_dpo(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.001,
    calibration: NonNegative = 0.5,
) -> LossOutput:
    """Calibrated DPO: DPO whose log-ratios are also drawn to the rewards that they should stand for.

    ::

      rho  = lp - lr
      loss = -log sigmoid(rho_w - rho_l) + calibration * ((rho_w - 1/(2 beta))^2 + (rho_l + 1/(2 beta))^2)

    DPO knows differences of rewards only, so both may fall; the squares tie each to a value, ``1/2`` and ``-1/2`` in
    units of ``1 / beta``. There is no `beta` inside the sigmoid. With ``calibration=0`` this is DPO at ``beta=1``.

    Paper and code disagree: the objective as others quote it from the paper adds the squares with weight 1, and the
    authors' code with weight one half, which is the default here.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: sets the targets ``1 / (2 beta)`` and ``-1 / (2 beta)``, nats. The authors' recipe has 0.001.
      calibration: weight of the squares.

    Returns:
      Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are the log-ratios ``lp - lr``, nats (the authors'
      code logs the policy's log-probabilities under that name).

    References:
      Xiao et al. 2024, arXiv 2412.14516 (checked against the authors' code, not against the paper).

    Example:
      Targets ``+5`` and ``-5``: ``log(1 + exp(-3)) + 0.5 * ((2 - 5)^2 + (-1 + 5)^2)``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(cal_dpo(policy, reference, beta=0.1).losses.item(), 4)
      12.5486
    """
    ratios = log_ratios(policy, reference)
    target = 1.0 / (2.0 * beta)
    squares = (ratios.chosen - target) ** 2 + (ratios.rejected + target) ** 2
    losses = logistic_loss(difference(ratios)) + calibration * squares
    return paired_output(losses, rewards=ratios, policy=policy, calibration_loss=squares)
