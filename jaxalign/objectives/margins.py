"""Objectives on preference pairs that see nothing but one margin ``h`` between the two completions."""

import jax
import jax.numpy as jnp

from jaxalign.objectives.ranges import Positive, PositiveSmoothing, Smoothing
from jaxalign.objectives.terms import (
    Pairs,
    at_least_float32,
    difference,
    log_ratios,
    logistic_loss,
    paired_output,
    scaled,
    sigmoid,
)
from jaxalign.types import LossOutput, Pair

LARGEST_EXPONENT = 80.0  # of exp in float32, which overflows at 88.7


def robust_dpo(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.1,
) -> LossOutput:
    """Robust DPO: the loss whose mean over randomly flipped labels is the DPO loss of the true ones.

    ::

      h    = beta * ((lp_w - lr_w) - (lp_l - lr_l))
      loss = (-(1 - e) * log sigmoid(h) + e * log sigmoid(-h)) / (1 - 2 * e),    e = label_smoothing
           = -log sigmoid(h) - e / (1 - 2 * e) * h

    If each label is flipped with probability ``e``, the expected loss is that of DPO on the labels before the flips.
    The label smoothing of `dpo` has the other sign: it is biased, but bounded below. This loss has no minimum. It
    falls without end as the margin grows, with a slope of at least ``e / (1 - 2 * e)``, and may be negative. With
    ``label_smoothing=0`` it is DPO.

    The value is TRL's for ``loss_type="robust"``. TRL's own default of ``label_smoothing`` is 0; the default here is
    the 0.1 that TRL's documentation gives as typical of the paper.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference, per nat.
      label_smoothing: the probability that a label is flipped.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Chowdhury et al. 2024, "Provably Robust DPO", arXiv 2403.00409.

    Example:
      ``h = 0.1 * 3``; DPO's loss is 0.5544, from which ``0.1 / 0.8 * 0.3 = 0.0375`` is taken.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(robust_dpo(policy, reference, beta=0.1, label_smoothing=0.1).losses.item(), 4)
      0.5169
    """
    ratios = log_ratios(policy, reference)
    losses = logistic_loss(beta * difference(ratios), -label_smoothing / (1.0 - 2.0 * label_smoothing))
    return paired_output(losses, rewards=scaled(beta, ratios), policy=policy)


def rso(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.05,
) -> LossOutput:
    """RSO's normalised hinge: a linear loss on the difference of log-ratios, until the margin is one.

    ::

      h    = beta * ((lp_w - lr_w) - (lp_l - lr_l))
      loss = max(0, 1 - h)

    SLiC's hinge loss, measured against a reference. A pair whose log-ratios differ by ``1 / beta`` nats is done and
    has no more gradient; until then every pair pulls equally hard. (At exactly ``h = 1`` the gradient is 0.)

    The option `beta` is the paper's gamma, 0.05 there. TRL's ``loss_type="hinge"`` has the same value for the same
    `beta`; its own default is 0.1. What RSO adds to the loss is the way its pairs are made: completions of the start
    policy, thinned by rejection sampling with a reward model so that they follow the optimal policy, and labelled by
    it. That belongs to the data; the loss takes any pairs.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: the paper's gamma: the strength, per nat; the margin asked for is ``1 / beta`` nats.

    Returns:
      Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", arXiv 2309.06657 (there
      "hinge-norm"). The hinge: Zhao et al. 2023, "SLiC-HF", arXiv 2305.10425.

    Example:
      The log-ratios differ by 3 nats: ``1 - 0.05 * 3``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(rso(policy, reference, beta=0.05).losses.item(), 4)
      0.85
    """
    ratios = log_ratios(policy, reference)
    losses = jax.nn.relu(1.0 - beta * difference(ratios))
    return paired_output(losses, rewards=scaled(beta, ratios), policy=policy)


def exo(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.1,
    label_smoothing: PositiveSmoothing = 1e-3,
) -> LossOutput:
    """Efficient Exact Optimization on pairs: the KL divergence from the policy's preference to the labels'.

    ::

      h    = beta * ((lp_w - lr_w) - (lp_l - lr_l))
      p    = sigmoid(h),    e = label_smoothing
      loss = p * (log p - log(1 - e)) + (1 - p) * (log(1 - p) - log e)

    ``(p, 1 - p)`` is the softmax of the two implicit rewards, ``(1 - e, e)`` the smoothed label, and the loss is
    ``KL((p, 1 - p) || (1 - e, e))``. DPO takes the divergence the other way round. The loss is 0 at its minimum,
    ``h = log((1 - e) / e)``, 6.9 by default, and bounded by ``-log e``. The slope is
    ``-p * (1 - p) * (log((1 - e) / e) - h)``: pairs that are far on the wrong side have hardly any gradient left,
    where those of DPO have the most.

    The value is TRL's for ``loss_type="exo_pair"``, whose own default of ``label_smoothing``, 0, is refused there.
    The authors' code takes ``log e = -10``, that is ``label_smoothing=4.54e-5``.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference, per nat (the paper's beta_pi, with the label's temperature in `e`).
      label_smoothing: the probability that the rejected completion is the better one. Not 0: the loss would be
        infinite.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", arXiv 2402.00856, eq. 16 as
      TRL cites it.

    Example:
      ``h = 0.3``, so ``p = 0.5744``: ``0.5744 * (-0.5544 + 0.0010) + 0.4256 * (-0.8544 + 6.9078)``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(exo(policy, reference, beta=0.1, label_smoothing=1e-3).losses.item(), 4)
      2.2582
    """
    ratios = log_ratios(policy, reference)
    h = beta * difference(ratios)
    chosen = sigmoid(h) * (jax.nn.log_sigmoid(h) - jnp.log1p(-label_smoothing))
    rejected = sigmoid(-h) * (jax.nn.log_sigmoid(-h) - jnp.log(label_smoothing))
    return paired_output(chosen + rejected, rewards=scaled(beta, ratios), policy=policy)


def discopop(
    policy: Pairs,
    reference: Pairs,
    *,
    beta: Positive = 0.05,
    tau: Positive = 0.05,
) -> LossOutput:
    """DiscoPOP: a loss found by a language model, logistic for wrong pairs and exponential for right ones.

    ::

      h    = beta * ((lp_w - lr_w) - (lp_l - lr_l))
      m    = sigmoid(h / tau)
      loss = -(1 - m) * log sigmoid(h) + m * exp(-h)

    With the default `tau` the loss is not convex. Between ``h = -0.119`` and ``0.072`` it rises with ``h``, so that a
    pair on which policy and reference agree is first driven to the local minimum at -0.119 (2.37 nats on the wrong
    side at the default `beta`). Outside that stretch a larger margin costs less.

    The value is TRL's for ``loss_type="discopop"`` at the same `beta`; TRL's default is 0.1, here it is the authors'
    0.05. The exponential is multiplied by ``m`` in log space, so it cannot overflow where TRL's does (below
    ``h = -88``, as 0 * inf = nan). For a `tau` above 1 the product itself grows without bound; its exponent is
    clipped at 80, beyond which it has no gradient.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      beta: strength of the tie to the reference, per nat.
      tau: the width, in units of ``h``, of the change from one loss to the other.

    Returns:
      Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models",
      arXiv 2406.08414, eq. 5 as TRL cites it.

    Example:
      ``h = 0.05 * 3``, so ``m = sigmoid(3) = 0.9526``: ``0.0474 * 0.6210 + 0.9526 * 0.8607``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(discopop(policy, reference, beta=0.05, tau=0.05).losses.item(), 4)
      0.8493
    """
    ratios = log_ratios(policy, reference)
    h = beta * difference(ratios)
    exponent = jnp.minimum(jax.nn.log_sigmoid(h / tau) - h, LARGEST_EXPONENT)
    losses = jax.nn.sigmoid(-h / tau) * logistic_loss(h) + jnp.exp(exponent)
    return paired_output(losses, rewards=scaled(beta, ratios), policy=policy)


def probability(
    policy: Pairs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """The "probability" objective: DPO without a reference, logistic loss on the log-probabilities themselves.

    ::

      h    = beta * (lp_w - lp_l)
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

    The reward is ``beta * lp``, that of reinforcement learning with an entropy bonus of strength `beta` in place of
    the KL divergence: the optimum is proportional to ``exp(reward / beta)``. The same numbers come from `dpo` with a
    reference that is 0 for both completions. Sums favour short completions, and nothing here corrects it.

    In the paper the best strength is 100 on a grid for Mistral-7B, and the authors' example command uses 10, far from
    the 0.01 that is best for DPO there. The default here is that of `dpo`, so that either way of leaving the
    reference out gives the same run. The paper's third objective, "likelihood" (eq. 15), is no method of its own: it is
    `dpo` with ``reference.source=prior``, the policy before training without the prompt.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      beta: scale of the reward, per nat.
      label_smoothing: the share of preference labels assumed to be flipped (not in the paper).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * lp``.

    References:
      Liu et al. 2024, "Understanding Reference Policies in Direct Preference Optimization", arXiv 2407.13709, eq. 10.

    Example:
      The margin is ``0.1 * 4``: ``log(1 + exp(-0.4))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-8.0]), jnp.array([-12.0]))
      >>> round(probability(policy, beta=0.1).losses.item(), 4)
      0.513
    """
    lp = Pair(at_least_float32(policy.chosen), at_least_float32(policy.rejected))
    losses = logistic_loss(beta * difference(lp), label_smoothing)
    return paired_output(losses, rewards=scaled(beta, lp), policy=policy)
