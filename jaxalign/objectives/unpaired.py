"""Objectives on single completions that are labelled desirable or not."""

from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.objectives.ranges import NonNegative, Positive
from jaxalign.objectives.terms import (
    at_least_float32,
    fixed,
    logistic_loss,
    masked_mean,
    present,
    running_mean,
    sigmoid,
)
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
    ratios = at_least_float32(policy) - fixed(reference)
    counted = present(example_mask, ratios)
    reference_point = jnp.maximum(masked_mean(fixed(mismatched_policy) - fixed(mismatched_reference), counted), 0.0)

    # 1 - sigmoid(z) = sigmoid(-z), which keeps its precision where the loss is small.
    distance = beta * (ratios - reference_point)
    losses = jnp.where(
        desirable,
        desirable_weight * sigmoid(-distance),
        undesirable_weight * sigmoid(distance),
    )
    return _output(losses, desirable, counted, rewards=beta * ratios, policy=policy, kl=reference_point)


def apo_zero_unpaired(
    policy: Float[Array, " B"],
    reference: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> LossOutput:
    """Anchored Preference Optimization, zero, without pairs: KTO whose reference point is held at 0.

    ::

      rho  = lp - lr
      loss = desirable_weight   * (1 - sigmoid(beta * rho))    where desirable
             undesirable_weight * sigmoid(beta * rho)          elsewhere

    It needs no mismatched completions, hence a third fewer passes than `kto`, and no example depends on another. The
    two completions of a pair, taken as two examples, have together the loss of `apo_zero`. Where policy and reference
    agree, the loss is one half of the example's weight.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B]``.
      reference: the same of the reference policy; no gradient flows into it.
      desirable: True where the completion is wanted, ``[B]``.
      beta: strength of the tie to the reference, per nat.
      desirable_weight: weight of the desirable completions' losses (TRL's, as for KTO).
      undesirable_weight: weight of the others' losses.

    Returns:
      Losses between 0 and the example's weight, ``[B]``; every example weighs 1. Metrics ``rewards/chosen`` and
      ``logps/chosen`` count the desirable examples, ``rewards/rejected`` and ``logps/rejected`` the others.

    References:
      D'Oosterlinck et al. 2024, arXiv 2408.06266; TRL's ``apo_zero_unpaired``.

    Example:
      Gains of 5 nats and 1 nat: ``1 - sigmoid(0.5)`` and ``sigmoid(0.1)``.

      >>> import jax.numpy as jnp
      >>> output = apo_zero_unpaired(jnp.array([5.0, 1.0]), jnp.zeros(2), jnp.array([True, False]), beta=0.1)
      >>> [round(loss, 4) for loss in output.losses.tolist()]
      [0.3775, 0.525]
    """
    desirable = jnp.asarray(desirable).astype(bool)
    ratios = at_least_float32(policy) - fixed(reference)
    distance = beta * ratios
    losses = jnp.where(desirable, desirable_weight * sigmoid(-distance), undesirable_weight * sigmoid(distance))
    return _output(losses, desirable, present(None, losses), rewards=distance, policy=policy)


def bco(
    policy: Float[Array, " B"],
    reference: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    state: Mapping[str, Float[Array, ""]],
    example_mask: Bool[Array, " B"] | None = None,
    *,
    beta: Positive = 0.1,
) -> LossOutput:
    """Binary Classifier Optimization: a classifier of wanted and unwanted completions whose logit is the reward.

    ::

      m    = beta * (lp - lr)
      d    = mean of all m so far, this batch's included
      loss = -log sigmoid(m - d)       where desirable
             -log sigmoid(-(m - d))    elsewhere

    The reward shift ``d`` keeps the classifier from solving its task by moving all rewards; it carries no gradient
    and counts every example once, whatever the batch sizes, as in TRL. Where policy and reference agree and always
    have, the loss is ``ln 2``.

    Wherever this function is called, the batch at hand is part of ``d``; TRL leaves evaluation batches out. It makes
    a difference only while few examples have been seen. TRL has BCO up to 1.13. `bco_udm` also weights for differing
    prompts, `bco_pair` is the form for pairs.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B]``.
      reference: the same of the reference policy; no gradient flows into it.
      desirable: True where the completion is wanted, ``[B]``.
      state: ``mean``, the d before this batch, and ``count``, how many examples it has seen.
      example_mask: False where the batch has no example, ``[B]``; None = every one counts.
      beta: strength of the tie to the reference, per nat.

    Returns:
      Losses in nats, ``[B]``; every example weighs 1 (0 where masked). Metrics ``rewards/chosen`` (of m) and
      ``logps/chosen`` count the desirable examples, ``rewards/rejected`` and ``logps/rejected`` the others; ``delta``
      is d. State: the new mean and count.

    References:
      Jung et al. 2024, arXiv 2404.04656 (checked against TRL, not against the paper).

    Example:
      Rewards 0.5 and 0.1 after 2 examples with a mean of 0.1: ``d = (0.2 + 0.6) / 4 = 0.2``. The losses are
      ``log(1 + exp(-0.3))`` and ``log(1 + exp(-0.1))``.

      >>> import jax.numpy as jnp
      >>> seen = {"mean": jnp.array(0.1), "count": jnp.array(2.0)}
      >>> output = bco(jnp.array([5.0, 1.0]), jnp.zeros(2), jnp.array([True, False]), seen, beta=0.1)
      >>> [round(loss, 4) for loss in output.losses.tolist()]
      [0.5544, 0.6444]
    """
    desirable = jnp.asarray(desirable).astype(bool)
    ratios = at_least_float32(policy) - fixed(reference)
    counted = present(example_mask, ratios)
    rewards = beta * jnp.where(counted, ratios, 0.0)
    after = running_mean(state, rewards, counted)
    distance = rewards - after["mean"]
    losses = logistic_loss(jnp.where(desirable, distance, -distance))
    output = _output(losses, desirable, counted, rewards=beta * ratios, policy=policy, delta=after["mean"])
    return replace(output, state=after)


def bco_udm(
    policy: Float[Array, " B"],
    reference: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    density_ratios: Float[Array, " B"],
    state: Mapping[str, Float[Array, ""]],
    example_mask: Bool[Array, " B"] | None = None,
    *,
    beta: Positive = 0.1,
    smallest_ratio: NonNegative = 0.5,
    largest_ratio: NonNegative = 10.0,
) -> LossOutput:
    """Binary Classifier Optimization with underlying distribution matching: BCO for labels on differing prompts.

    ::

      m    = beta * (lp - lr)
      d    = mean of all m so far, this batch's included
      u    = min(max(density_ratios, smallest_ratio), largest_ratio)
      loss = -log sigmoid(m - d)             where desirable
             -u * log sigmoid(-(m - d))      elsewhere

    Where wanted and unwanted completions come from different prompts, the classifier of `bco` could tell them by the
    prompt. The weight makes the unwanted ones' prompts count like those of the wanted: prompts that are typical of
    wanted completions count more. As in TRL, the mean is over all examples, not divided by the weights.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B]``.
      reference: the same of the reference policy; no gradient flows into it.
      desirable: True where the completion is wanted, ``[B]``.
      density_ratios: ``p / (1 - p)`` with p the probability that the prompt is one of a desirable completion, ``[B]``;
        of no effect where desirable.
      state: ``mean``, the d before this batch, and ``count``, how many examples it has seen.
      example_mask: False where the batch has no example, ``[B]``; None = every one counts.
      beta: strength of the tie to the reference, per nat.
      smallest_ratio: lower bound of the weight, TRL's default.
      largest_ratio: upper bound of the weight, TRL's default.

    Returns:
      As `bco`; the weights are part of the losses.

    References:
      Jung et al. 2024, arXiv 2404.04656 (checked against TRL, not against the paper).

    Example:
      As in `bco`, where the second example's prompt is 3 times as likely to be one of a desirable completion:
      ``3 * log(1 + exp(-0.1))``.

      >>> import jax.numpy as jnp
      >>> seen, ratios = {"mean": jnp.array(0.1), "count": jnp.array(2.0)}, jnp.array([3.0, 3.0])
      >>> output = bco_udm(jnp.array([5.0, 1.0]), jnp.zeros(2), jnp.array([True, False]), ratios, seen, beta=0.1)
      >>> [round(loss, 4) for loss in output.losses.tolist()]
      [0.5544, 1.9332]
    """
    output = bco(policy, reference, desirable, state, example_mask, beta=beta)
    weights = jnp.clip(fixed(density_ratios), smallest_ratio, largest_ratio)
    weighted = ~jnp.asarray(desirable).astype(bool) & present(example_mask, output.losses)
    return replace(output, losses=jnp.where(weighted, weights, 1.0) * output.losses)


def _output(
    losses: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    counted: Bool[Array, " B"],
    *,
    rewards: Float[Array, " B"],
    policy: Float[Array, " B"],
    **statistics: Float[Array, ""],
) -> LossOutput:
    """Examples count equally; the metrics count the desirable examples or the others, the batch's statistics all."""
    chosen = (desirable & counted).astype(losses.dtype)
    rejected = (~desirable & counted).astype(losses.dtype)
    return LossOutput(
        losses=losses,
        weights=counted.astype(losses.dtype),
        metrics={
            "rewards/chosen": Weighted(fixed(rewards), chosen),
            "rewards/rejected": Weighted(fixed(rewards), rejected),
            "logps/chosen": Weighted(fixed(policy), chosen),
            "logps/rejected": Weighted(fixed(policy), rejected),
        }
        | {name: jnp.full_like(losses, fixed(value)) for name, value in statistics.items()},
    )
