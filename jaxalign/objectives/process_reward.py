"""Objectives of process reward models: a linear head that rates each step of a solution."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.objectives.terms import at_least_float32
from jaxalign.types import LossOutput, Weighted


def process_reward_model(step_logits: Float[Array, "B N 2"], step_labels: Int[Array, "B N"]) -> LossOutput:
    """Process reward model: tells at the end of each step whether the solution is right so far.

    ::

      loss   = mean over the labelled tokens t of -log softmax(z_t)[label_t]
      weight = number of labelled tokens

    The head has two outputs at every token, wrong and right; those where a step ends are labelled. The batch's loss is
    the mean over all labelled steps of the global batch: every step counts the same, as in the token classification of
    TRL's process reward trainer (TRL up to 1.13). An example without labels weighs 0.

    Args:
      step_logits: the head's outputs z at each token, wrong and right, ``[B, N, 2]``; what is trained.
      step_labels: 1 where a right step ends, 0 where a wrong one does, -1 elsewhere, ``[B, N]``.

    Returns:
      Losses in nats per step, ``[B]``, weighted by steps. Metrics, with the same kind of weights: ``accuracies``, the
      share of steps whose larger logit is the label's (a tie is wrong); ``accuracies/right`` and ``accuracies/wrong``,
      the same among the steps of one label, since most steps are right and a model that always says so scores well.

    References:
      Lightman et al. 2023, "Let's Verify Step by Step", arXiv 2305.20050.

    Example:
      One right step with logits 3/4 against 1/4 in favour of right, and one wrong step with even logits.

      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[[0.0, 0.0], [0.0, jnp.log(3.0)], [0.0, 0.0]]])
      >>> output = process_reward_model(logits, jnp.array([[-1, 1, 0]]))
      >>> round(output.losses.item(), 4), output.weights.item()
      (0.4904, 2.0)
    """
    labels = jnp.asarray(step_labels)
    # Where there is no label anything may stand; zeros there keep the gradient finite.
    logits = jnp.where((labels >= 0)[..., None], at_least_float32(step_logits), 0.0)
    margin = logits[..., 1] - logits[..., 0]  # two classes: the softmax is a sigmoid of the difference
    towards = jnp.where(labels == 1, margin, -margin)
    kinds = {"accuracies": labels >= 0, "accuracies/right": labels == 1, "accuracies/wrong": labels == 0}
    counts = {name: kind.sum(-1).astype(logits.dtype) for name, kind in kinds.items()}
    hits = {name: (kind & (towards > 0)).sum(-1).astype(logits.dtype) for name, kind in kinds.items()}
    weights = counts["accuracies"]
    losses = jnp.where(labels >= 0, jax.nn.softplus(-towards), 0.0).sum(-1) / jnp.maximum(weights, 1.0)
    return LossOutput(
        losses=losses,
        weights=weights,
        metrics={name: Weighted(hits[name] / jnp.maximum(counts[name], 1.0), counts[name]) for name in kinds},
    )
