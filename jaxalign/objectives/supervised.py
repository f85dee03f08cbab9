"""Objectives that imitate: there is one completion, and it is right."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.objectives.terms import (
    NllNormalization,
    PairOfScalars,
    Pairs,
    at_least_float32,
    fixed,
    negative_log_likelihood,
    paired_output,
)
from jaxalign.types import LossOutput, Weighted


def sft(policy: Float[Array, " B"], lengths: Float[Array, " B"]) -> LossOutput:
    """Supervised fine-tuning: the cross-entropy of the completions' tokens.

    ::

      loss   = -lp / |y|      nats per token
      weight = |y|

    The batch's loss, ``sum(weights * losses) / sum(weights)``, is the mean over all completion tokens of the global
    batch, for any number of devices and micro-batches: every token counts the same.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B]``.
      lengths: scored tokens, ``[B]``. A completion without any weighs 0.

    Returns:
      Losses in nats per token, ``[B]``, weighted by length. Metrics: ``nll_loss``, the same numbers with the same
      weights (its exponential is the perplexity); ``logps/chosen``, nats per completion.

    Example:
      Six nats over 2 tokens and 2 nats over 8: 3 and 0.25 nats per token, and 8 nats over 10 tokens in the batch.

      >>> import jax.numpy as jnp
      >>> output = sft(jnp.array([-6.0, -2.0]), jnp.array([2.0, 8.0]))
      >>> output.losses.tolist()
      [3.0, 0.25]
      >>> round(((output.losses * output.weights).sum() / output.weights.sum()).item(), 4)
      0.8
    """
    lengths = fixed(lengths)
    losses = -at_least_float32(policy) / jnp.maximum(lengths, 1.0)
    return LossOutput(
        losses=losses,
        weights=lengths,
        metrics={"nll_loss": Weighted(fixed(losses), lengths), "logps/chosen": fixed(policy)},
    )


def dft(policy: Float[Array, "B N"], lengths: Float[Array, " B"]) -> LossOutput:
    """Dynamic fine-tuning: cross-entropy in which each token counts as much as the policy already believes in it.

    ::

      loss   = -(sum over t of p_t * log p_t) / |y|,   no gradient through the factor p_t
      weight = |y|

    The gradient of the cross-entropy is that of a reward of ``1 / p_t`` for the right token, which is largest where
    the policy finds it least likely. The factor takes this back: unlikely tokens no longer dominate. A token that the
    policy gives no chance teaches nothing, so this is for a policy that already writes about right. The value of the
    loss is not monotone (``p log p`` is 0 at both ends): watch ``nll_loss``.

    Equals TRL's ``loss_type="dft"``.

    Args:
      policy: log-probability of each token of the completions, nats, ``[B, N]``.
      lengths: scored tokens, ``[B]``. A completion without any weighs 0.

    Returns:
      Losses, ``[B]``, weighted by length: the batch's loss is a mean over its tokens. Metrics: ``nll_loss``, nats per
      token with the same weights (the loss of `sft`); ``logps/chosen``, nats per completion.

    References:
      Wu et al. 2025, arXiv 2508.05629.

    Example:
      Two tokens of probability 1/2 and 1/4: ``(ln 2 / 2 + ln 4 / 4) / 2``.

      >>> output = dft(jnp.log(jnp.array([[0.5, 0.25]])), jnp.array([2.0]))
      >>> round(output.losses.item(), 4)
      0.3466
    """
    policy = at_least_float32(policy)
    lengths = fixed(lengths)
    logps = policy.sum(-1)
    losses = -(fixed(jnp.exp(policy)) * policy).sum(-1) / jnp.maximum(lengths, 1.0)
    nll = fixed(-logps) / jnp.maximum(lengths, 1.0)
    return LossOutput(
        losses=losses,
        weights=lengths,
        metrics={"nll_loss": Weighted(nll, lengths), "logps/chosen": fixed(logps)},
    )


def nll(
    policy: Pairs,
    lengths: Pairs,
    mean_lengths: PairOfScalars | None = None,
    *,
    normalization: NllNormalization = "batch_tokens",
) -> LossOutput:
    """Negative log-likelihood of the chosen completion, as a term to add to a method on pairs: ``dpo + 0.2*nll``.

    ::

      loss = -lp_w / mean length of the batch's chosen completions    "batch_tokens"
             -lp_w / |y_w|                                            "tokens"
             -lp_w                                                    "sum"

    It keeps the chosen completion likely, which a loss on margins alone does not. Alone it is `sft` on the chosen
    completions. Papers normalise it in three ways, which differ by the scale of its weight and by how much long
    completions count: ``"batch_tokens"`` is the mean over all chosen tokens of the global batch (TRL's ``sft`` term),
    ``"tokens"`` the mean of the completions' means per token (iterative RPO), ``"sum"`` nats per completion.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      lengths: scored tokens of the two completions, ``[B]`` each.
      mean_lengths: means of `lengths` over the valid examples of the global batch, scalars; None takes the means of
        `lengths`. Only ``"batch_tokens"`` uses it.
      normalization: how the likelihood is divided.

    Returns:
      Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are ``lp``; ``nll_loss`` is the loss.

    Raises:
      ValueError: `normalization` is none of the three.

    Example:
      Eight nats over 4 tokens.

      >>> from jaxalign.types import Pair
      >>> policy, lengths = (Pair(jnp.array([w]), jnp.array([l])) for w, l in ((-8.0, -12.0), (4.0, 6.0)))
      >>> nll(policy, lengths, normalization="tokens").losses.item()
      2.0
    """
    mean_length = None if mean_lengths is None else mean_lengths.chosen
    losses = negative_log_likelihood(policy.chosen, lengths.chosen, mean_length, normalization)
    return paired_output(losses, rewards=policy, policy=policy, nll_loss=losses)
