"""Objectives that imitate: there is one completion, and it is right."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.objectives.terms import at_least_float32, fixed
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
