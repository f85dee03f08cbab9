"""Objectives on preference pairs that need no reference policy."""

from jaxalign.objectives.ranges import NonNegative, Positive, Smoothing
from jaxalign.objectives.terms import (
    NllNormalization,
    PairOfScalars,
    Pairs,
    at_least_float32,
    difference,
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
