"""Objectives of reward models: a linear head on a completion's last token, trained on preferences."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.objectives.ranges import NonNegative
from jaxalign.objectives.ranked_terms import beats, existing, only, ranked_output
from jaxalign.objectives.terms import Pairs, at_least_float32, difference, fixed, logistic_loss, paired_output
from jaxalign.types import LossOutput, Pair, Weighted


def reward_model(rewards: Pairs, *, center_coefficient: NonNegative = 0.0) -> LossOutput:
    """Bradley-Terry reward model: logistic loss on the difference of two rewards.

    ::

      loss = -log sigmoid(r_w - r_l) + center_coefficient * (r_w + r_l)^2

    The first term is the negative log-likelihood of the preference where the chosen completion wins with probability
    ``sigmoid(r_w - r_l)``. It sees differences only, so the rewards of a prompt may drift together; the second term
    holds their mean at 0. Two equal rewards cost ``ln 2`` and the centring.

    Args:
      rewards: the head's value at the last token of the two completions, ``[B]`` each; what is trained.
      center_coefficient: weight of the centring; 0 = none. TRL recommends 0.01 for its ``center_rewards_coefficient``,
        the same term.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Metrics are ``rewards/*`` of the head.

    References:
      Ouyang et al. 2022 (InstructGPT), arXiv 2203.02155, eq. 1 with two completions. Centring: Eisenstein et al. 2023,
      "Helping or Herding?", arXiv 2312.09244, eq. 2 (the number as TRL gives it).

    Example:
      Rewards 1.5 and 0.5: ``log(1 + exp(-1)) = 0.3133``, and centring costs ``0.01 * 2^2``.

      >>> import jax.numpy as jnp
      >>> rewards = Pair(jnp.array([1.5]), jnp.array([0.5]))
      >>> round(reward_model(rewards).losses.item(), 4)
      0.3133
      >>> round(reward_model(rewards, center_coefficient=0.01).losses.item(), 4)
      0.3533
    """
    return _margin_loss(rewards, 0.0, center_coefficient)


def reward_model_margin(
    rewards: Pairs,
    scores: Pairs,
    *,
    scale: NonNegative = 1.0,
    center_coefficient: NonNegative = 0.0,
) -> LossOutput:
    """Bradley-Terry reward model with a margin: the better the data rates the chosen completion, the further apart.

    ::

      loss = -log sigmoid(r_w - r_l - scale * (s_w - s_l)) + center_coefficient * (r_w + r_l)^2

    Without the margin every preference asks for the same difference of rewards; with it a clear preference asks for a
    larger one than a slight one. A margin of 0 makes it `reward_model`. TRL's trainer takes the same margin from a
    column of that name; Llama 2's are one number for each of four grades of preference, say 1, 2/3, 1/3, 0.

    Args:
      rewards: the head's value at the last token of the two completions, ``[B]`` each; what is trained.
      scores: the data's own scores s of the two completions, ``[B]`` each. Where the chosen one has the lower score the
        margin is negative.
      scale: difference of rewards asked for per unit of score.
      center_coefficient: see `reward_model`.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Metrics are ``rewards/*`` of the head.

    References:
      Touvron et al. 2023 (Llama 2), arXiv 2307.09288, eq. 2.

    Example:
      Rewards 2 apart, scores 3 apart, half a unit of reward per unit of score: ``log(1 + exp(-0.5))``.

      >>> import jax.numpy as jnp
      >>> rewards, scores = Pair(jnp.array([1.0]), jnp.array([-1.0])), Pair(jnp.array([8.0]), jnp.array([5.0]))
      >>> round(reward_model_margin(rewards, scores, scale=0.5).losses.item(), 4)
      0.4741
    """
    margin = scale * (fixed(scores.chosen) - fixed(scores.rejected))
    return _margin_loss(rewards, margin, center_coefficient)


def eurus_reward_model(rewards: Pairs, absolute: Bool[Array, " B"]) -> LossOutput:
    """Eurus's reward model: Bradley-Terry, and absolute terms where completions are right and wrong.

    ::

      loss = -log sigmoid(r_w - r_l)  +  ( -log sigmoid(r_w) - log sigmoid(-r_l)   where absolute, else 0 )

    A pair of a correct and an incorrect solution says more than which is better: the absolute terms push the reward of
    the first above 0 and that of the second below. Chat preferences have the first term only. Eurus takes the absolute
    terms for the pairs of UltraInteract and not for those of UltraFeedback and UltraSafety.

    The equation is written down from memory and was not verified against the paper; the project's page confirms only
    that the objective goes beyond Bradley-Terry.

    Args:
      rewards: the head's value at the last token of the two completions, ``[B]`` each; what is trained.
      absolute: True where the completions are right and wrong, not just better and worse, ``[B]``.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Metrics are ``rewards/*`` of the head, and ``absolute/accuracies``:
      the share of the absolute pairs' completions whose reward has the right sign.

    References:
      Yuan et al. 2024, "Advancing LLM Reasoning Generalists with Preference Trees", arXiv 2404.02078.

    Example:
      Rewards ``ln 3`` and 0. Relative: ``-log(3/4)``. Absolute, too: ``- log(3/4) - log(1/2)``.

      >>> import jax.numpy as jnp
      >>> rewards = Pair(jnp.log(jnp.array([3.0, 3.0])), jnp.zeros(2))
      >>> [round(loss, 4) for loss in eurus_reward_model(rewards, jnp.array([False, True])).losses.tolist()]
      [0.2877, 1.2685]
    """
    absolute = jnp.asarray(absolute).astype(bool)
    right, wrong = at_least_float32(rewards.chosen), at_least_float32(rewards.rejected)
    terms = jax.nn.softplus(-right) + jax.nn.softplus(wrong)
    losses = logistic_loss(right - wrong) + jnp.where(absolute, terms, 0.0)
    output = paired_output(losses, rewards=rewards, policy=None)
    signs = fixed(((right > 0).astype(losses.dtype) + (wrong < 0).astype(losses.dtype)) / 2)
    return LossOutput(
        losses=losses,
        weights=output.weights,
        metrics={**output.metrics, "absolute/accuracies": Weighted(signs, absolute.astype(losses.dtype))},
    )


def reward_model_ranked(
    rewards: Float[Array, "B K"],
    scores: Float[Array, "B K"],
    lengths: Float[Array, "B K"],
) -> LossOutput:
    """Reward model on K ranked completions: Bradley-Terry over all of a prompt's pairs.

    ::

      loss = mean of -log sigmoid(r_i - r_j) over the pairs of completions with s_i > s_j

    A prompt's pairs stay together in one example and share its weight, as in InstructGPT: shuffled into single pairs,
    each completion would be fitted K - 1 times an epoch, and the model overfit. Only the order of the scores counts.
    Completions with equal scores form no pair, nor do those that do not exist; an example without any pair weighs 0.
    With two completions it is `reward_model`. Rewards that are all equal cost ``ln 2``.

    A Plackett-Luce likelihood of the whole order is the other choice, where later places count as much as the first;
    pairs need no order of all K.

    Args:
      rewards: the head's value at the last token of each completion, ``[B, K]``; what is trained.
      scores: the data's own score of each completion, higher is better, ``[B, K]``.
      lengths: scored tokens, ``[B, K]``; 0 where there is no such completion.

    Returns:
      Losses in nats, ``[B]``. Metrics are ``rewards/*`` of the head; chosen and rejected are the completions with the
      highest and the lowest score.

    References:
      Ouyang et al. 2022 (InstructGPT), arXiv 2203.02155, eq. 1.

    Example:
      Rewards ``ln 4``, ``ln 2``, 0 in the order of the scores: the pairs are won with 2/3, 4/5 and 2/3.

      >>> import jax.numpy as jnp
      >>> rewards, scores = jnp.log(jnp.array([[4.0, 2.0, 1.0]])), jnp.array([[9.0, 7.0, 1.0]])
      >>> round(reward_model_ranked(rewards, scores, jnp.ones((1, 3))).losses.item(), 4)
      0.3447
    """
    exists = existing(lengths)
    rewards = only(rewards, exists)
    won = beats(scores, exists)
    pairs = won.sum((1, 2)).astype(rewards.dtype)
    misses = jnp.where(won, jax.nn.softplus(rewards[:, None, :] - rewards[:, :, None]), 0.0)
    losses = misses.sum((1, 2)) / jnp.maximum(pairs, 1.0)
    output = ranked_output(losses, rewards=rewards, policy=None, scores=scores, exists=exists)
    return LossOutput(losses=losses, weights=(pairs > 0).astype(losses.dtype), metrics=output.metrics)


def _margin_loss(rewards: Pairs, margin: Float[Array, " B"] | float, center_coefficient: float) -> LossOutput:
    rewards = Pair(at_least_float32(rewards.chosen), at_least_float32(rewards.rejected))
    losses = logistic_loss(difference(rewards) - margin)
    losses = losses + center_coefficient * (rewards.chosen + rewards.rejected) ** 2
    return paired_output(losses, rewards=rewards, policy=None)
