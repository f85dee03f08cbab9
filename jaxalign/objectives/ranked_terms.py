"""The pieces that objectives on rankings share: which completions exist, softmax and order among them, metrics.

A ranking holds K completions of one prompt. Where ``lengths`` is 0 there is none: what stands there, nan included,
counts nothing and gets no gradient. Completions have no order but that of their scores.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.objectives.terms import at_least_float32, fixed
from jaxalign.types import LossOutput, Weighted


def existing(lengths: Float[Array, "B K"]) -> Bool[Array, "B K"]:
    """Where there is a completion."""
    return fixed(lengths) > 0


def only(values: Float[Array, "B K"], exists: Bool[Array, "B K"]) -> Float[Array, "B K"]:
    """The values in at least float32, 0 where there is no completion."""
    return jnp.where(exists, at_least_float32(values), 0.0)


def mean_over(values: Float[Array, "B K"], among: Bool[Array, "B K"]) -> Float[Array, " B"]:
    """The mean of an example's values over the completions `among`, ``[B]``; 0 where there are none."""
    return jnp.where(among, values, 0.0).sum(-1) / jnp.maximum(among.sum(-1), 1)


def log_softmax_over(values: Float[Array, "*B K"], among: Bool[Array, "*B K"]) -> Float[Array, "*B K"]:
    """Log of the softmax over the completions `among`; 0 elsewhere, also where there are none."""
    peak = jax.lax.stop_gradient(jnp.where(among, values, -jnp.inf).max(-1, keepdims=True))
    # Sanitised before exp, so that what stands elsewhere can neither overflow nor bring nan into the gradient.
    shifted = jnp.where(among, values - jnp.where(jnp.isfinite(peak), peak, 0.0), 0.0)
    total = jnp.where(among, jnp.exp(shifted), 0.0).sum(-1, keepdims=True)
    return jnp.where(among, shifted - jnp.log(jnp.where(total > 0, total, 1.0)), 0.0)


def log_targets(scores: Float[Array, "B K"], exists: Bool[Array, "B K"], temperature: float) -> Float[Array, "B K"]:
    """``log softmax(scores / temperature)`` over an example's completions; 0 where there is none, no gradient."""
    scores = fixed(scores)
    # The best is subtracted first: differences of scores are exact, quotients by a small temperature are not.
    below = scores - best_value(scores, exists)[:, None]
    return log_softmax_over(jnp.where(exists, below, 0.0) / temperature, exists)


def best_value(scores: Float[Array, "B K"], exists: Bool[Array, "B K"]) -> Float[Array, " B"]:
    """The highest score among an example's completions, ``[B]``; 0 where it has none."""
    highest = jnp.where(exists, scores, -jnp.inf).max(-1)
    return jnp.where(exists.any(-1), highest, 0.0)


def best(scores: Float[Array, "B K"], exists: Bool[Array, "B K"]) -> Bool[Array, "B K"]:
    """True at the completions with the highest score; several where they tie."""
    scores = only(fixed(scores), exists)
    return exists & (scores == best_value(scores, exists)[:, None])


def worst(scores: Float[Array, "B K"], exists: Bool[Array, "B K"]) -> Bool[Array, "B K"]:
    """True at the completions with the lowest score; several where they tie."""
    return best(-fixed(scores), exists)


def beats(scores: Float[Array, "B K"], exists: Bool[Array, "B K"]) -> Bool[Array, "B K K"]:
    """``[b, i, j]``: completion i of example b has a higher score than its completion j."""
    scores = only(fixed(scores), exists)
    return exists[:, :, None] & exists[:, None, :] & (scores[:, :, None] > scores[:, None, :])


def ranked_output(
    losses: Float[Array, " B"],
    *,
    rewards: Float[Array, "B K"],
    policy: Float[Array, "B K"] | None,
    scores: Float[Array, "B K"],
    exists: Bool[Array, "B K"],
    **metrics: Float[Array, " B"],
) -> LossOutput:
    """Examples count equally; the metrics are named as those of a pair of the best and the worst completion.

    Args:
      losses: ``[B]``.
      rewards: the method's implicit rewards, ``[B, K]``.
      policy: the policy's log-probabilities as the method got them (sums or token means), ``[B, K]``; None where it
        gets none.
      scores: what orders the completions, ``[B, K]``.
      exists: where there is a completion, ``[B, K]``.
      **metrics: further metrics, ``[B]`` each.

    Returns:
      Metrics ``rewards/chosen`` and ``logps/chosen`` of the completion with the highest score (the mean where several
      tie), ``rewards/rejected`` and ``logps/rejected`` of that with the lowest, ``rewards/margins``, their difference;
      ``rewards/accuracies``, the share of the example's differently scored pairs that the rewards order alike (an
      example without such a pair does not count; a tie of rewards is wrong); and the further ones. No gradient.
    """
    rewards = fixed(rewards)
    top, bottom, ordered = best(scores, exists), worst(scores, exists), beats(scores, exists)
    pairs = ordered.sum((1, 2)).astype(losses.dtype)
    right = (ordered & (rewards[:, :, None] > rewards[:, None, :])).sum((1, 2)).astype(losses.dtype)
    chosen, rejected = mean_over(rewards, top), mean_over(rewards, bottom)
    named: dict[str, Float[Array, " B"] | Weighted] = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": Weighted(right / jnp.maximum(pairs, 1.0), (pairs > 0).astype(losses.dtype)),
        "rewards/margins": chosen - rejected,
    }
    if policy is not None:
        policy = fixed(policy)
        named |= {"logps/chosen": mean_over(policy, top), "logps/rejected": mean_over(policy, bottom)}
    named |= {name: fixed(values) for name, values in metrics.items()}
    return LossOutput(losses=losses, weights=jnp.ones_like(losses), metrics=named)
