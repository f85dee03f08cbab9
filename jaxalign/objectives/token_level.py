"""Objectives on preference pairs that look at single tokens: how likely, how far from the reference, how telling."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.objectives.paired import dpo
from jaxalign.objectives.ranges import NonNegative, Positive, Smoothing
from jaxalign.objectives.terms import Pairs, difference, fixed, logistic_loss, paired_output
from jaxalign.objectives.token_terms import TokenMasks, TokenPairs, alignment_weights, token_sums
from jaxalign.types import LossOutput, Pair


def tdpo1(
    policy: TokenPairs,
    reference: TokenPairs,
    token_kl: TokenPairs,
    *,
    beta: Positive = 0.1,
) -> LossOutput:
    """Token-level DPO, first form: DPO whose margin also counts how far each completion's tokens drift.

    ::

      D    = sum over the completion's tokens of KL(reference || policy) over the vocabulary
      rho  = lp - lr
      loss = -log sigmoid(beta * ((rho_w - rho_l) - (D_l - D_w)))

    Read as a bandit, DPO ties whole completions to the reference; read token by token, a Bradley-Terry model of the
    advantages adds the difference of the two forward divergences. The gradient flows through both of them, so the
    chosen completion is also rewarded for drifting, which `tdpo2` corrects. Where policy and reference agree, ``D`` is
    0 and the loss is ``ln 2``.

    Args:
      policy: log-probability of each token of the two completions, nats, ``[B, N]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      token_kl: KL divergence from the reference's next-token distribution to the policy's at each token, nats,
        ``[B, N]`` each.
      beta: strength of the tie to the reference, per nat.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (rho + D)``; ``kl/chosen`` and
      ``kl/rejected`` are ``D``, nats.

    References:
      Zeng et al. 2024, arXiv 2404.11999, and the authors' code.

    Example:
      Log-ratios of 3 and 1 nats, drifts of 1 and 2: the margin is ``0.1 * (2 - 1)``, the loss ``log(1 + exp(-0.1))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([[-1.0, -1.0]]), jnp.array([[-2.0, 0.0]]))
      >>> reference = Pair(jnp.array([[-3.0, -2.0]]), jnp.array([[-3.0, 0.0]]))
      >>> drift = Pair(jnp.array([[0.5, 0.5]]), jnp.array([[2.0, 0.0]]))
      >>> round(tdpo1(policy, reference, drift, beta=0.1).losses.item(), 4)
      0.6444
    """
    drift = token_sums(token_kl)
    return _tdpo(policy, reference, drift, drift.rejected - drift.chosen, beta)


def tdpo2(
    policy: TokenPairs,
    reference: TokenPairs,
    token_kl: TokenPairs,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 0.5,
) -> LossOutput:
    """Token-level DPO, second form: DPO that holds the rejected completion's drift to that of the chosen one.

    ::

      D    = sum over the completion's tokens of KL(reference || policy) over the vocabulary
      rho  = lp - lr
      loss = -log sigmoid(beta * ((rho_w - rho_l) - alpha * (D_l - sg(D_w))))

    ``sg`` stops the gradient: the chosen completion's drift is the measure, and is not itself changed. DPO lets the
    rejected completions drift faster than the chosen ones; this balances them. With ``alpha = 0`` it is `dpo`. Where
    policy and reference agree, the loss is ``ln 2``.

    Args:
      policy: log-probability of each token of the two completions, nats, ``[B, N]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      token_kl: KL divergence from the reference's next-token distribution to the policy's at each token, nats,
        ``[B, N]`` each; no gradient flows into the chosen side.
      beta: strength of the tie to the reference, per nat.
      alpha: weight of the difference of the drifts.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (rho + D)``, without `alpha` as
      in the authors' code; ``kl/chosen`` and ``kl/rejected`` are ``D``, nats.

    References:
      Zeng et al. 2024, arXiv 2404.11999, and the authors' code.

    Example:
      Log-ratios of 3 and 1 nats, drifts of 1 and 2: the margin is ``0.1 * (2 - 0.5 * 1)``, the loss
      ``log(1 + exp(-0.15))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([[-1.0, -1.0]]), jnp.array([[-2.0, 0.0]]))
      >>> reference = Pair(jnp.array([[-3.0, -2.0]]), jnp.array([[-3.0, 0.0]]))
      >>> drift = Pair(jnp.array([[0.5, 0.5]]), jnp.array([[2.0, 0.0]]))
      >>> round(tdpo2(policy, reference, drift, beta=0.1, alpha=0.5).losses.item(), 4)
      0.621
    """
    drift = token_sums(token_kl)
    return _tdpo(policy, reference, drift, alpha * (drift.rejected - fixed(drift.chosen)), beta)


def _tdpo(
    policy: TokenPairs, reference: TokenPairs, drift: Pairs, penalty: Float[Array, " B"], beta: float
) -> LossOutput:
    lp, lr = token_sums(policy), token_sums(reference)
    ratios = Pair(lp.chosen - fixed(lr.chosen), lp.rejected - fixed(lr.rejected))
    losses = logistic_loss(beta * (difference(ratios) - penalty))
    rewards = Pair(beta * (ratios.chosen + drift.chosen), beta * (ratios.rejected + drift.rejected))
    further = {"kl/chosen": drift.chosen, "kl/rejected": drift.rejected}
    return paired_output(losses, rewards=rewards, policy=lp, **further)


def wpo(
    policy: TokenPairs,
    reference: TokenPairs,
    token_collision: TokenPairs,
    token_mask: TokenMasks,
    *,
    beta: Positive = 0.01,
    label_smoothing: Smoothing = 0.0,
    clamp: bool = True,
) -> LossOutput:
    """Weighted Preference Optimization: DPO in which a pair counts as much as the policy would write it.

    ::

      w(y) = exp(mean over t of (log p_t - log sum over v of p_v^2))
      W    = min(1, w(y_w) * w(y_l)), no gradient
      loss = W * (the loss of dpo)

    Pairs that another model wrote are made to look like samples of the policy. A token's probability is set against
    the probability that two samples agree there (``sum p_v^2``, the paper's "sampled alignment"), so that a text that
    the policy would sample weighs 1 whatever its entropy. The weight multiplies the loss; the batch's loss is still the
    mean over its pairs. With all weights 1 it is `dpo`.

    Paper and codes disagree: the authors' code clamps ``W`` to at most 1, the default here; TRL does not
    (``clamp = false``). With TRL's ``hinge`` and ``sft`` the weights fail in torch (TRL 1.16, multiplied in place);
    ``on_policy(rso)`` and ``on_policy(nll)`` weigh each pair.

    Args:
      policy: log-probability of each token of the two completions, nats, ``[B, N]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      token_collision: ``log sum over v of p_v^2`` of the policy at each token, nats, ``[B, N]`` each; no gradient.
      token_mask: True where the completion has such a token, ``[B, N]`` each.
      beta: strength of the tie to the reference, per nat.
      label_smoothing: the share of preference labels assumed to be flipped.
      clamp: whether no pair counts more than 1.

    Returns:
      Losses in nats times ``W``, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``;
      ``pair_weights`` is ``W``.

    References:
      Zhou et al. 2024, arXiv 2406.11827, and the authors' code.

    Example:
      Both completions have one token, with ``log p - log sum p^2`` of -1 and -0.5. Policy and reference agree, so the
      loss is ``exp(-1.5) ln 2``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([[-2.0]]), jnp.array([[-1.5]]))
      >>> collision = Pair(jnp.array([[-1.0]]), jnp.array([[-1.0]]))
      >>> mask = Pair(jnp.array([[True]]), jnp.array([[True]]))
      >>> round(wpo(policy, policy, collision, mask).losses.item(), 4)
      0.1547
    """
    weights = pair_weights(policy, token_collision, token_mask, clamp)
    output = dpo(token_sums(policy), token_sums(reference), beta=beta, label_smoothing=label_smoothing)
    metrics = dict(output.metrics) | {"pair_weights": weights}
    return LossOutput(weights * output.losses, output.weights, metrics)


def pair_weights(
    policy: TokenPairs, token_collision: TokenPairs, token_mask: TokenMasks, clamp: bool
) -> Float[Array, " B"]:
    """WPO's ``W``: how likely the policy would write both completions of a pair, ``[B]``, no gradient."""
    log_weights = alignment_weights(policy, token_collision, token_mask)
    total = log_weights.chosen + log_weights.rejected
    return jnp.exp(jnp.minimum(total, 0.0 if clamp else 80.0))


def bmc(
    policy: TokenPairs,
    reference: TokenPairs,
    marked: TokenMasks,
    *,
    beta: Positive = 0.01,
    delta: NonNegative = 2.0,
    reference_weights: Literal["policy", "own"] = "policy",
) -> LossOutput:
    """Bridging and Modelling Correlations: DPO in which the tokens that make the difference count more.

    ::

      lam_t = 1 + marked_t * min(1 / p_t, delta), no gradient
      h     = beta * (sum over y_w of lam_t * (log p_t - log q_t) - the same over y_l)
      loss  = -log sigmoid(h)

    ``p`` is the policy's probability of a token and ``q`` the reference's. A token is marked where the other
    completion of the pair does not have it; an unsure policy (small ``p``) learns more from it. A marked token weighs
    between 2 and ``1 + delta`` (if ``delta >= 1``). With ``delta = 0`` it is `dpo`.

    This is the modelling half of the method ("DPO-BMC"); the bridging half, which rewrites the rejected completions,
    happens to the data.

    Paper and code disagree: the authors' code weighs the reference's tokens by the reference's own probabilities
    (``reference_weights = own``). The default weighs log-ratios, with the policy's; that this is the paper's form was
    not verified against the paper.

    Args:
      policy: log-probability of each token of the two completions, nats, ``[B, N]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      marked: True for the tokens that the other completion does not have, ``[B, N]`` each.
      beta: strength of the tie to the reference, per nat. The authors use 0.01 for chat, 0.05 for questions and
        mathematics.
      delta: the largest further weight of a marked token. The authors use 1.5 to 3.
      reference_weights: whose probabilities weigh the reference's tokens.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta`` times the weighted sums of
      log-ratios; ``logps/*`` are plain sums.

    Raises:
      ValueError: `reference_weights` is neither of the two.

    References:
      Jiang et al. 2024, arXiv 2408.07471, and the authors' code.

    Example:
      The chosen completion has one marked token of probability 0.8, up from 0.4: it weighs ``1 + 1 / 0.8 = 2.25``, the
      margin is ``2.25 ln 2`` and the loss ``log(1 + 2^-2.25)``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.log(jnp.array([[0.8]])), jnp.array([[-1.0]]))
      >>> reference = Pair(jnp.log(jnp.array([[0.4]])), jnp.array([[-1.0]]))
      >>> marked = Pair(jnp.array([[True]]), jnp.array([[False]]))
      >>> round(bmc(policy, reference, marked, beta=1.0, delta=2.0).losses.item(), 4)
      0.1908
    """
    if reference_weights not in ("policy", "own"):
        raise ValueError(f"reference_weights: got {reference_weights!r}, expected 'policy' or 'own'.")

    def weights(logps: Float[Array, "B N"], mask: Bool[Array, "B N"]) -> Float[Array, "B N"]:
        return 1.0 + jnp.where(mask, jnp.minimum(jnp.exp(-fixed(logps)), delta), 0.0)

    policy_weights = jax.tree.map(weights, policy, marked)
    own_weights = policy_weights if reference_weights == "policy" else jax.tree.map(weights, reference, marked)
    lp, lr = token_sums(policy, policy_weights), token_sums(reference, own_weights)
    ratios = Pair(lp.chosen - fixed(lr.chosen), lp.rejected - fixed(lr.rejected))
    losses = logistic_loss(beta * difference(ratios))
    rewards = Pair(beta * ratios.chosen, beta * ratios.rejected)
    return paired_output(losses, rewards=rewards, policy=token_sums(policy))
