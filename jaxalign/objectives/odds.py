"""Objectives on the odds of completions: pairs, no reference policy.

The probability of a completion is here ``p(y) = exp(avg.lp)``, the geometric mean of its tokens' probabilities. That of
the whole completion would be so near to 0 that ``log(1 - p)`` could not be told from 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.objectives.ranges import NonNegative, Positive
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


def _log_complement(mean_logps: Float[Array, " B"]) -> Float[Array, " B"]:
    """``log(1 - p)``, ``[B]``, accurate on the whole range; p is clamped at ``exp(-1e-7)``, with no gradient beyond."""
    return jax.nn.log1mexp(-jnp.minimum(mean_logps, -1e-7))


def _log_odds(mean_logps: Float[Array, " B"]) -> Float[Array, " B"]:
    """``log(p / (1 - p))``, ``[B]``, at most 16.1; p is clamped as in `_log_complement`."""
    return jnp.minimum(mean_logps, -1e-7) - _log_complement(mean_logps)


def orpo(
    policy: Pairs,
    lengths: Pairs,
    mean_lengths: PairOfScalars | None = None,
    *,
    odds_coefficient: NonNegative = 0.1,
    nll_normalization: NllNormalization = "batch_tokens",
) -> LossOutput:
    """Odds Ratio Preference Optimization: supervised fine-tuning with a penalty on the odds of the rejected completion.

    ::

      z(y) = log( p / (1 - p) ),    p = exp(avg.lp)
      loss = nll - odds_coefficient * log sigmoid(z_w - z_l)

      nll  = -lp_w / mean length of the batch's chosen completions    "batch_tokens"
             -avg.lp_w                                                "tokens"
             -lp_w                                                    "sum"

    Fine-tuning and preference in one stage, from a base model: there is no reference, and the likelihood term is not a
    regulariser but the main part of the loss.

    Paper and code disagree: the paper's likelihood term is that of the chosen completion, as here; the authors' code
    and TRL train on the tokens of the prompt as well. Apart from the prompt, ``"batch_tokens"`` is what both compute,
    the cross-entropy over all tokens of the batch, for any number of devices and micro-batches; ``"tokens"`` is the
    paper's average log-likelihood of each completion. The term of the odds is TRL's, except that p is clamped at
    ``exp(-1e-7)``, where the odds would be infinite.

    Args:
      policy: mean log-probability per token of the two completions, nats per token, ``[B]`` each.
      lengths: scored tokens of the two completions, ``[B]`` each.
      mean_lengths: means of `lengths` over the valid examples of the global batch, scalars; None takes the means of
        `lengths`. Only ``"batch_tokens"`` uses it.
      odds_coefficient: the paper's lambda (TRL's beta): weight of the odds ratio.
      nll_normalization: how the likelihood term is divided.

    Returns:
      Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are ``odds_coefficient * avg.lp``, ``logps/*`` are
      means per token; ``nll_loss`` is the likelihood term, ``log_odds_chosen`` is ``z_w - z_l`` and ``log_odds_ratio``
      its log sigmoid (TRL's names).

    Raises:
      ValueError: `nll_normalization` is none of the three.

    References:
      Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7.

    Example:
      Probabilities of 2/3 and 1/3 per token have odds 2 and 1/2, whose ratio is 4: ``-log(2/3) - 0.1 * log(4/5)``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.log(jnp.array([2 / 3])), jnp.log(jnp.array([1 / 3])))
      >>> lengths = Pair(jnp.array([4.0]), jnp.array([4.0]))
      >>> round(orpo(policy, lengths).losses.item(), 4)
      0.4278
    """
    avg = Pair(at_least_float32(policy.chosen), at_least_float32(policy.rejected))
    mean_length = None if mean_lengths is None else mean_lengths.chosen
    sums = avg.chosen * fixed(lengths.chosen)
    nll = negative_log_likelihood(sums, lengths.chosen, mean_length, nll_normalization)
    log_ratio = difference(Pair(_log_odds(avg.chosen), _log_odds(avg.rejected)))
    preference = logistic_loss(log_ratio)
    return paired_output(
        nll + odds_coefficient * preference,
        rewards=Pair(odds_coefficient * avg.chosen, odds_coefficient * avg.rejected),
        policy=policy,
        nll_loss=nll,
        log_odds_chosen=log_ratio,
        log_odds_ratio=-preference,
    )


def asft(policy: Pairs, *, odds_coefficient: NonNegative = 1.0) -> LossOutput:
    """Aligned Supervised Fine-Tuning: the likelihood and the odds of each completion by itself.

    ::

      z(y) = log( p / (1 - p) ),    p = exp(avg.lp)
      loss = -log p_w - odds_coefficient * ( log sigmoid(z_w) + log sigmoid(-z_l) )
           = -(1 + odds_coefficient) * log p_w - odds_coefficient * log(1 - p_l)

    The second line is the same number, since ``sigmoid(z) = p``, and it is what is computed. So the method raises each
    chosen completion and lowers each rejected one, without comparing the two. p of a rejected completion is clamped at
    ``exp(-1e-7)``, where ``log(1 - p)`` would be infinite.

    Args:
      policy: mean log-probability per token of the two completions, nats per token, ``[B]`` each.
      odds_coefficient: the paper's lambda: weight of the odds; 0 is supervised fine-tuning, every completion counting
        the same. The default is that of turbo-alignment and was not verified against the paper.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``odds_coefficient * z``, and ``logps/*``
      are means per token.

    References:
      Wang et al. 2024, arXiv 2409.10571. The identity: arXiv 2502.01237.

    Example:
      Probabilities of 1/2 and 1/4 per token: ``-2 log(1/2) - log(3/4)``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25])))
      >>> round(asft(policy).losses.item(), 4)
      1.674
    """
    avg = Pair(at_least_float32(policy.chosen), at_least_float32(policy.rejected))
    losses = -(1.0 + odds_coefficient) * avg.chosen - odds_coefficient * _log_complement(avg.rejected)
    rewards = Pair(odds_coefficient * _log_odds(avg.chosen), odds_coefficient * _log_odds(avg.rejected))
    return paired_output(losses, rewards=rewards, policy=policy)


def asft_tempered(policy: Pairs, *, beta: Positive = 1.0) -> LossOutput:
    """ASFT for a model that is already fine-tuned: no likelihood term, and log-odds at a temperature.

    ::

      z(y) = log( p / (1 - p) ),    p = exp(avg.lp)
      loss = -log sigmoid(beta * z_w) - log sigmoid(-beta * z_l)

    With `beta` 1 this is ``-log p_w - log(1 - p_l)``. It is the second of two stages: the first is supervised
    fine-tuning. p is clamped at ``exp(-1e-7)``, where the odds would be infinite.

    Args:
      policy: mean log-probability per token of the two completions, nats per token, ``[B]`` each.
      beta: scale of the log-odds. The authors tune it for each model and find that it matters; 1 is the untempered
        loss, not their best value.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * z``, and ``logps/*`` are means
      per token.

    References:
      Gorbatovski et al. 2025, "The Differences Between Direct Alignment Algorithms are a Blur", arXiv 2502.01237.

    Example:
      Probabilities of 1/2 and 1/5 per token have odds 1 and 1/4, and with beta 1/2 odds 1 and 1/2: ``-log(1/2) -
      log(2/3)``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.2])))
      >>> round(asft_tempered(policy, beta=0.5).losses.item(), 4)
      1.0986
    """
    rewards = Pair(
        beta * _log_odds(at_least_float32(policy.chosen)), beta * _log_odds(at_least_float32(policy.rejected))
    )
    losses = logistic_loss(rewards.chosen) + logistic_loss(-rewards.rejected)
    return paired_output(losses, rewards=rewards, policy=policy)
