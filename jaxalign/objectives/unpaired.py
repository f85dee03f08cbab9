"""Objectives on single completions that are labelled desirable or not."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.objectives.ranges import NonNegative, Positive
from jaxalign.objectives.terms import at_least_float32, fixed, masked_mean
from jaxalign.types import LossOutput, Weighted


def kto(
    policy: Float[Array, " B"],
    reference: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    mismatched_policy: Float[Array, " B"],
    mismatched_reference: Float[Array, " B"],
    example_mask: Bool[Array, " B"] | None = None,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> LossOutput:
    """Kahneman-Tversky Optimization: a completion's worth against a reference point, with no pairs.

    ::

      rho  = lp - lr
      z0   = max(0, mean over the global batch of (mismatched_policy - mismatched_reference))
      loss = desirable_weight   * (1 - sigmoid(beta * (rho - z0)))    where desirable
             undesirable_weight * (1 - sigmoid(beta * (z0 - rho)))    elsewhere

    ``z0`` estimates the KL divergence of the policy from the reference: it scores, behind each prompt, the completion
    of another example. It is clamped after averaging and carries no gradient. Because of it the loss of one example
    depends on the whole batch (the method is batch coupled). Where policy and reference agree, the loss is one half
    of the example's weight.

    The paper writes the loss as ``lambda_y - v(x, y)``, which is this with its ``lambda_D`` and ``lambda_U`` as the
    two weights. It advises weights with ``desirable_weight * n_desirable / (undesirable_weight * n_undesirable)``
    between 1 and 4/3.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B]``.
      reference: the same of the reference policy; no gradient flows into it.
      desirable: True where the completion is wanted, ``[B]``.
      mismatched_policy: summed log-probabilities, under the policy, of another example's completion behind each prompt,
        nats, ``[B]``; no gradient flows into it.
      mismatched_reference: the same under the reference policy.
      example_mask: False where the batch has no example, ``[B]``; None = every one counts.
      beta: strength of the tie to the reference, per nat.
      desirable_weight: weight of the desirable completions' losses.
      undesirable_weight: weight of the others' losses.

    Returns:
      Losses between 0 and the example's weight, ``[B]``; the mean is over all examples, so weights are 1 (0 where
      masked). Metrics ``rewards/chosen`` and ``logps/chosen`` count the desirable examples, ``rewards/rejected`` and
      ``logps/rejected`` the others; ``kl`` is z0, nats. A batch without examples of one kind has a count of 0 there.

    References:
      Ethayarajh et al. 2024, arXiv 2402.01306, sec. 4, the loss ``L_KTO``.

    Example:
      The reference point is ``max(0, (1 + 3) / 2) = 2``. The desirable completion gained 5 nats and loses ``1 -
      sigmoid(0.3)``; the other gained 1 and loses ``1 - sigmoid(0.1)``.

      >>> import jax.numpy as jnp
      >>> zeros = jnp.zeros(2)
      >>> output = kto(jnp.array([5.0, 1.0]), zeros, jnp.array([True, False]), jnp.array([1.0, 3.0]), zeros, beta=0.1)
      >>> [round(loss, 4) for loss in output.losses.tolist()]
      [0.4256, 0.475]
    """
    desirable = jnp.asarray(desirable).astype(bool)
    counted = jnp.ones_like(desirable) if example_mask is None else jnp.asarray(example_mask).astype(bool)
    ratios = at_least_float32(policy) - fixed(reference)
    reference_point = jnp.maximum(masked_mean(fixed(mismatched_policy) - fixed(mismatched_reference), counted), 0.0)

    # 1 - sigmoid(z) = sigmoid(-z), which keeps its precision where the loss is small.
    distance = beta * (ratios - reference_point)
    losses = jnp.where(
        desirable,
        desirable_weight * jax.nn.sigmoid(-distance),
        undesirable_weight * jax.nn.sigmoid(distance),
    )
    rewards = fixed(beta * ratios)
    chosen = (desirable & counted).astype(losses.dtype)
    rejected = (~desirable & counted).astype(losses.dtype)
    return LossOutput(
        losses=losses,
        weights=counted.astype(losses.dtype),
        metrics={
            "rewards/chosen": Weighted(rewards, chosen),
            "rewards/rejected": Weighted(rewards, rejected),
            "logps/chosen": Weighted(fixed(policy), chosen),
            "logps/rejected": Weighted(fixed(policy), rejected),
            "kl": jnp.full_like(losses, reference_point),
        },
    )
