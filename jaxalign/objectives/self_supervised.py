"""Objectives whose labels come from the texts themselves."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.objectives.ranges import Range
from jaxalign.objectives.terms import at_least_float32
from jaxalign.types import LossOutput, Weighted


def spo(
    degree_logits: Float[Array, "B M C"],
    degrees: Int[Array, "B M"],
    *,
    classes: Annotated[int, Range(ge=2)] = 3,
) -> LossOutput:
    """Self-supervised Preference Optimization's extra term: guesses how much key content a completion lacks.

    ::

      y^(k) = y with the top share q_k of its key phrases removed,  0 = q_0 < q_1 < ... < q_(C-1)
      loss  = mean over the damaged completions of an example of  -log softmax(W h(x, y^(k)) + b)_k

    Key phrases are found by RAKE when the data is made ready. ``h`` is the policy's last hidden state at the end of
    the damaged completion, and a linear head with C outputs guesses the degree k of the damage. The gradient reaches
    the policy, which so learns what the key content of a completion is; the head is dropped at export.

    It is a term to be added to the loss of an alignment method, as in ``dpo + 0.1*spo``, and by itself aligns nothing.

    A reconstruction: that a loss on degrees made by removing key content (found by RAKE) is added to any alignment loss
    is what the abstract and a review of the paper say. The equation, the shares removed, the number of degrees and
    the weight of the term could not be verified, and the official repository holds no code; cross-entropy on a linear
    head, C = 3, shares 0, 1/3, 2/3 and the weight 0.1 are this project's reading.

    Args:
      degree_logits: the head's outputs at the end of M damaged completions, ``[B, M, C]``; what is trained.
      degrees: k of each, from 0 (nothing removed) to C - 1; -1 = there is none, ``[B, M]``.
      classes: C, the number of degrees, which is the number of the head's outputs.

    Returns:
      Losses in nats, ``[B]``; an example weighs 1, or 0 if nothing of it is damaged. Metrics: ``degree_loss``, the same
      numbers, and ``degree_accuracies``, the share of degrees that the head guesses right.

    Raises:
      ValueError: the head has another number of outputs than `classes`.

    References:
      Li et al. 2024, "Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree
      Awareness", arXiv 2409.17791.

    Example:
      One completion in two states: intact, for which the head says 1/2 (1/4, 1/4), and all of it even: ``(log 2 +
      log 3) / 2``.

      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([[[2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]))
      >>> round(spo(logits, jnp.array([[0, 2]])).losses.item(), 4)
      0.8959
    """
    if degree_logits.shape[-1] != classes:
        raise ValueError(f"spo: degree_logits has {degree_logits.shape[-1]} outputs, expected classes = {classes}.")
    degrees = jnp.asarray(degrees)
    given = degrees >= 0
    # Where there is none anything may stand; zeros there keep the gradient finite.
    logits = jnp.where(given[..., None], at_least_float32(degree_logits), 0.0)
    label = jnp.where(given, degrees, 0)[..., None]
    right = jnp.take_along_axis(jax.nn.log_softmax(logits), label, axis=-1)[..., 0]
    count = given.sum(-1).astype(logits.dtype)
    losses = -jnp.where(given, right, 0.0).sum(-1) / jnp.maximum(count, 1.0)
    hits = (given & (logits.argmax(-1) == degrees)).sum(-1).astype(logits.dtype) / jnp.maximum(count, 1.0)
    weights = (count > 0).astype(logits.dtype)
    return LossOutput(
        losses=losses,
        weights=weights,
        metrics={
            "degree_loss": Weighted(jax.lax.stop_gradient(losses), weights),
            "degree_accuracies": Weighted(hits, weights),
        },
    )
