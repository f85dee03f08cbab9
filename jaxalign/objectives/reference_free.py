"""Objectives on preference pairs that need no reference policy."""

import jax
import jax.numpy as jnp

from jaxalign.objectives.ranges import NonNegative, Positive, Smoothing
from jaxalign.objectives.terms import (
    NllNormalization,
    PairOfScalars,
    Pairs,
    at_least_float32,
    difference,
    fixed,
    logistic_loss,
    negative_log_likelihood,
    paired_output,
)
from jaxalign.types import LossOutput, Pair


def cpo(
    policy: Pairs,
    lengths: Pairs,
    mean_lengths: PairOfScalars | None = None,
    *,
    beta: Positive = 0.1,
    nll_coefficient: NonNegative = 1.0,
    nll_normalization: NllNormalization = "batch_tokens",
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Contrastive Preference Optimization: DPO with a uniform reference, plus the likelihood of the chosen completion.

    ::

      h    = beta * (lp_w - lp_l)
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h) + nll_coefficient * nll

      nll  = -lp_w / mean length of the batch's chosen completions    "batch_tokens"
             -lp_w / |y_w|                                            "tokens"
             -lp_w                                                    "sum"

    The likelihood term takes the place of the reference: it holds the policy to the chosen completions.

    Paper and code disagree: the paper's term is ``-E[log pi(y_w | x)]``, a sum over the completion; the authors' code
    and TRL take the cross-entropy over all chosen tokens of the batch, which is the default here. With
    ``"batch_tokens"`` the losses' mean is TRL's value exactly, for any number of devices and micro-batches, because
    the mean length is that of the global batch.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      lengths: scored tokens of the two completions, ``[B]`` each.
      mean_lengths: means of `lengths` over the valid examples of the global batch, scalars; None takes the means of
        `lengths`. Only ``"batch_tokens"`` uses it.
      beta: scale of the preference margin, per nat.
      nll_coefficient: weight of the likelihood term.
      nll_normalization: how the likelihood term is divided.
      label_smoothing: the share of preference labels assumed to be flipped.

    Returns:
      Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * lp``; ``nll_loss`` is the likelihood
      term before its coefficient.

    Raises:
      ValueError: `nll_normalization` is none of the three.

    References:
      Xu et al. 2024, arXiv 2401.08417, eq. 3 (the preference term) and the objective that follows it.

    Example:
      The margin is ``0.1 * 4``, and the chosen completion has 8 nats over 4 tokens: ``log(1 + exp(-0.4)) + 2``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-8.0]), jnp.array([-12.0]))
      >>> lengths = Pair(jnp.array([4.0]), jnp.array([4.0]))
      >>> round(cpo(policy, lengths, beta=0.1).losses.item(), 4)
      2.513
    """
    lp = Pair(at_least_float32(policy.chosen), at_least_float32(policy.rejected))
    mean_length = None if mean_lengths is None else mean_lengths.chosen
    nll = negative_log_likelihood(lp.chosen, lengths.chosen, mean_length, nll_normalization)
    losses = logistic_loss(beta * difference(lp), label_smoothing) + nll_coefficient * nll
    return paired_output(losses, rewards=Pair(beta * lp.chosen, beta * lp.rejected), policy=policy, nll_loss=nll)


def simpo(
    policy: Pairs,
    *,
    beta: Positive = 2.0,
    gamma_beta_ratio: NonNegative = 0.5,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Simple Preference Optimization: logistic loss on mean log-probabilities, with a target margin and no reference.

    ::

      h    = beta * (avg.lp_w - avg.lp_l) - gamma,    gamma = beta * gamma_beta_ratio
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

    The reward ``beta * avg.lp`` is the quantity that ranks completions at decoding, so training and decoding agree,
    and length alone earns nothing. The paper names the margin ``gamma``; the authors' code takes its ratio to beta,
    and so does this function: it is a margin in nats per token, which keeps its meaning when beta is tuned.

    Args:
      policy: mean log-probability per token of the two completions, nats per token, ``[B]`` each.
      beta: scale of the reward, per (nat per token). The authors use 2 to 10.
      gamma_beta_ratio: target margin ``gamma / beta`` in nats per token. The authors use 0.1 to 0.8.
      label_smoothing: the share of preference labels assumed to be flipped (in the authors' code, not in the paper).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * avg.lp`` (without the margin),
      and ``logps/*`` are means per token.

    References:
      Meng et al. 2024, arXiv 2405.14734, eq. 6.

    Example:
      ``h = 2 * (-1 - -1.5) - 2 * 0.5 = 0``: half a nat per token is exactly the margin asked for, and the loss is
      ``ln 2``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-1.0]), jnp.array([-1.5]))
      >>> round(simpo(policy, beta=2.0, gamma_beta_ratio=0.5).losses.item(), 4)
      0.6931
    """
    avg = Pair(at_least_float32(policy.chosen), at_least_float32(policy.rejected))
    losses = logistic_loss(beta * (difference(avg) - gamma_beta_ratio), label_smoothing)
    return paired_output(losses, rewards=Pair(beta * avg.chosen, beta * avg.rejected), policy=policy)


def cpo_simpo(
    policy: Pairs,
    lengths: Pairs,
    mean_lengths: PairOfScalars | None = None,
    *,
    beta: Positive = 10.0,
    gamma_beta_ratio: NonNegative = 0.54,
    nll_coefficient: NonNegative = 0.05,
    nll_normalization: NllNormalization = "batch_tokens",
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """CPO-SimPO: SimPO, plus the likelihood of the chosen completion as in CPO.

    ::

      h    = beta * (avg.lp_w - avg.lp_l) - gamma,    gamma = beta * gamma_beta_ratio
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h) + nll_coefficient * nll

      nll  = -lp_w / mean length of the batch's chosen completions    "batch_tokens"
             -avg.lp_w                                                "tokens"
             -lp_w                                                    "sum"

    The likelihood term keeps the chosen completions from losing probability together with the rejected ones, which
    SimPO alone allows.

    There is no paper, only the authors' code. It takes ``gamma`` (5.4) where this function takes its ratio to beta, as
    `simpo` does. Its likelihood term is the cross-entropy over all chosen tokens of the batch, the default here; with
    it the losses' mean is the value of that code and of TRL, for any number of devices and micro-batches.

    Args:
      policy: mean log-probability per token of the two completions, nats per token, ``[B]`` each.
      lengths: scored tokens of the two completions, ``[B]`` each.
      mean_lengths: means of `lengths` over the valid examples of the global batch, scalars; None takes the means of
        `lengths`. Only ``"batch_tokens"`` uses it.
      beta: scale of the reward, per (nat per token).
      gamma_beta_ratio: target margin ``gamma / beta`` in nats per token.
      nll_coefficient: weight of the likelihood term; 0 is SimPO.
      nll_normalization: how the likelihood term is divided.
      label_smoothing: the share of preference labels assumed to be flipped.

    Returns:
      Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * avg.lp``, ``logps/*`` are means per
      token, and ``nll_loss`` is the likelihood term before its coefficient.

    Raises:
      ValueError: `nll_normalization` is none of the three.

    References:
      The authors' code, github.com/fe1ixxu/CPO_SIMPO. It joins Xu et al. 2024, arXiv 2401.08417, and Meng et al. 2024,
      arXiv 2405.14734.

    Example:
      ``h = 10 * (-1 - -1.54) - 5.4 = 0`` costs ``ln 2``; the chosen completion's 1 nat per token adds 0.05.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-1.0]), jnp.array([-1.54]))
      >>> lengths = Pair(jnp.array([4.0]), jnp.array([4.0]))
      >>> round(cpo_simpo(policy, lengths).losses.item(), 4)
      0.7431
    """
    avg = Pair(at_least_float32(policy.chosen), at_least_float32(policy.rejected))
    mean_length = None if mean_lengths is None else mean_lengths.chosen
    sums = avg.chosen * fixed(lengths.chosen)
    nll = negative_log_likelihood(sums, lengths.chosen, mean_length, nll_normalization)
    preference = logistic_loss(beta * (difference(avg) - gamma_beta_ratio), label_smoothing)
    rewards = Pair(beta * avg.chosen, beta * avg.rejected)
    return paired_output(preference + nll_coefficient * nll, rewards=rewards, policy=policy, nll_loss=nll)


def alphapo(
    policy: Pairs,
    *,
    alpha: float = 0.25,
    beta: Positive = 2.5,
    gamma_beta_ratio: NonNegative = 0.04,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """AlphaPO: SimPO with a reward whose shape, from the logarithm on, is set by alpha.

    ::

      r(y) = (1 - p^(-alpha)) / alpha,    p = exp(avg.lp)
      h    = beta * (r_w - r_l) - gamma,  gamma = beta * gamma_beta_ratio
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

    As alpha goes to 0, ``r`` goes to ``avg.lp`` and the loss to that of `simpo`; 0 is that case. A positive alpha
    punishes improbable completions harder than the logarithm does, a negative one less: ``r`` then stays above
    ``1 / alpha``.

    With positive alpha the reward grows like ``exp(alpha * |avg.lp|)``. The exponent is clipped at 60, beyond which the
    completion gets no gradient: at the default alpha that is 240 nats per token. TRL's form, a power of the
    probability, overflows earlier; below that the values are equal.

    The defaults are those that TRL gives for the paper's Mistral-Instruct run (alpha 0.25, beta 2.5, gamma 0.1); they
    were not verified against the paper.

    Args:
      policy: mean log-probability per token of the two completions, nats per token, ``[B]`` each.
      alpha: shape of the reward; 0 is SimPO.
      beta: scale of the reward.
      gamma_beta_ratio: target margin ``gamma / beta``, in units of r (nats per token where alpha is 0). TRL's option
        is ``gamma``.
      label_smoothing: the share of preference labels assumed to be flipped (in TRL's code).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * r``, and ``logps/*`` are means
      per token.

    References:
      Gupta et al. 2025, arXiv 2501.03884.

    Example:
      With alpha 1 and probabilities 1/2 and 1/4 per token, ``r = 1 - 2`` and ``1 - 4``: ``h = 0.5 * 2 - 0.5 * 2 = 0``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25])))
      >>> round(alphapo(policy, alpha=1.0, beta=0.5, gamma_beta_ratio=2.0).losses.item(), 4)
      0.6931
    """

    def reward(mean_logps):
        if alpha == 0:
            return mean_logps
        exponent = jnp.minimum(-alpha * mean_logps, 60.0)
        # expm1 keeps the digits that p^(-alpha) - 1 loses near 0. Far below 0 its derivative, taken as expm1 + 1, loses
        # them instead.
        return -jnp.where(exponent < -0.5, jnp.exp(exponent) - 1.0, jnp.expm1(exponent)) / alpha

    shaped = Pair(reward(at_least_float32(policy.chosen)), reward(at_least_float32(policy.rejected)))
    losses = logistic_loss(beta * (difference(shaped) - gamma_beta_ratio), label_smoothing)
    return paired_output(losses, rewards=Pair(beta * shaped.chosen, beta * shaped.rejected), policy=policy)


def slic_hf(
    policy: Pairs,
    lengths: Pairs,
    mean_lengths: PairOfScalars | None = None,
    *,
    margin: Positive = 1.0,
    nll_coefficient: NonNegative = 0.1,
    nll_normalization: NllNormalization = "sum",
) -> LossOutput:
    """SLiC-HF: a hinge on the log-probabilities, plus the likelihood of the chosen completion.

    ::

      loss = max(0, margin - (lp_w - lp_l)) + nll_coefficient * nll

      nll  = -lp_w                                                    "sum"
             -lp_w / |y_w|                                            "tokens"
             -lp_w / mean length of the batch's chosen completions    "batch_tokens"

    Once the chosen completion is `margin` nats more likely than the rejected one, only the likelihood term is left.

    Paper and code: the paper's likelihood term is that of a separate target ``y_ref`` (the completion that supervised
    fine-tuning imitates); here, as in HALOs, it is the chosen completion. The paper sums over the completion, the
    default here; HALOs adds a tensor of per-token values to one of per-example values there, which is not reproduced.
    TRL's CPO trainer with ``loss_type="hinge"`` is `beta` times this loss with ``margin = 1 / beta``,
    ``nll_coefficient = cpo_alpha / beta`` and ``"batch_tokens"``.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      lengths: scored tokens of the two completions, ``[B]`` each.
      mean_lengths: means of `lengths` over the valid examples of the global batch, scalars; None takes the means of
        `lengths`. Only ``"batch_tokens"`` uses it.
      margin: the paper's delta: where the hinge ends, nats.
      nll_coefficient: the paper's lambda: weight of the likelihood term.
      nll_normalization: how the likelihood term is divided.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``lp``; ``nll_loss`` is the likelihood
      term before its coefficient.

    Raises:
      ValueError: `nll_normalization` is none of the three.

    References:
      Zhao et al. 2023, arXiv 2305.10425.

    Example:
      The chosen completion is 0.25 nats ahead of 1, and has 8 nats: ``0.75 + 0.1 * 8``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-8.0]), jnp.array([-8.25]))
      >>> lengths = Pair(jnp.array([4.0]), jnp.array([4.0]))
      >>> round(slic_hf(policy, lengths).losses.item(), 4)
      1.55
    """
    lp = Pair(at_least_float32(policy.chosen), at_least_float32(policy.rejected))
    mean_length = None if mean_lengths is None else mean_lengths.chosen
    nll = negative_log_likelihood(lp.chosen, lengths.chosen, mean_length, nll_normalization)
    losses = jax.nn.relu(margin - difference(lp)) + nll_coefficient * nll
    return paired_output(losses, rewards=lp, policy=policy, nll_loss=nll)
