"""The pieces that objectives share: precision, log-ratios, the logistic loss, NLL normalisation, paired metrics."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxalign.types import LossOutput, Pair

NllNormalization = Literal["batch_tokens", "tokens", "sum"]

# What the names mean is what the type checker sees. At run time they are trees, because beartype, which checks shapes
# under pytest, knows no generic NamedTuple, and in a tree jaxtyping also checks what both fields hold.
if TYPE_CHECKING:
    Pairs: TypeAlias = Pair[Float[Array, " B"]]
    PairOfScalars: TypeAlias = Pair[Float[Array, ""]]
else:
    Pairs = PyTree[Float[Array, " B"]]
    PairOfScalars = PyTree[Float[Array, ""]]


def at_least_float32(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Lifts bfloat16 and float16 to float32: log-ratios reach hundreds of nats, where bfloat16 has steps of 1."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def fixed(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same values in at least float32, with no gradient."""
    return jax.lax.stop_gradient(at_least_float32(values))


def difference(pair: Pairs) -> Float[Array, " B"]:
    """Chosen minus rejected, ``[B]``."""
    return pair.chosen - pair.rejected


def log_ratios(policy: Pairs, reference: Pairs) -> Pairs:
    """``rho = lp - lr`` of both completions, ``[B]`` each. The reference carries no gradient."""
    return Pair(
        at_least_float32(policy.chosen) - fixed(reference.chosen),
        at_least_float32(policy.rejected) - fixed(reference.rejected),
    )


def scaled(factor: float, pair: Pairs) -> Pairs:
    """``factor`` times both values, ``[B]`` each."""
    return Pair(factor * pair.chosen, factor * pair.rejected)


def logistic_loss(margin: Float[Array, " B"], label_smoothing: float = 0.0) -> Float[Array, " B"]:
    """``-(1 - e) log sigmoid(margin) - e log sigmoid(-margin)``, ``[B]``, finite for any finite margin.

    Since ``log(1 + exp(z)) = z + log(1 + exp(-z))``, this equals ``log(1 + exp(-margin)) + e * margin``.
    """
    return jax.nn.softplus(-margin) + label_smoothing * margin


def sigmoid(values: Float[Array, " B"]) -> Float[Array, " B"]:
    """The logistic function, whose gradient keeps its precision on both sides.

    JAX takes the gradient from the value as ``s (1 - s)``, which is 0 in float32 from 17 on.
    """
    return jnp.where(values > 0, 1.0 - jax.nn.sigmoid(-values), jax.nn.sigmoid(values))


def masked_mean(values: Float[Array, " B"], mask: Bool[Array, " B"] | Float[Array, " B"]) -> Float[Array, ""]:
    """The mean of `values` where `mask` holds, a scalar; 0 where it holds nowhere.

    Values outside the mask may be anything, nan included.
    """
    counted = jnp.where(mask, values, 0.0)
    return counted.sum() / jnp.maximum(mask.astype(counted.dtype).sum(), 1.0)


def present(example_mask: Bool[Array, " B"] | None, values: Float[Array, " B"]) -> Bool[Array, " B"]:
    """The example mask as bool, ``[B]``; True everywhere if there is none."""
    return jnp.ones(values.shape, bool) if example_mask is None else jnp.asarray(example_mask).astype(bool)


def running_mean(
    state: Mapping[str, Float[Array, ""]], values: Float[Array, " B"], mask: Bool[Array, " B"]
) -> dict[str, Float[Array, ""]]:
    """The state ``{"mean", "count"}`` after this batch: the mean of all values so far, each counting the same.

    It carries no gradient. Values outside the mask may be anything.
    """
    mean, count, added = fixed(state["mean"]), fixed(state["count"]), mask.sum().astype(jnp.float32)
    total = count + added
    return {"mean": mean + (masked_mean(fixed(values), mask) - mean) * added / jnp.maximum(total, 1.0), "count": total}


def negative_log_likelihood(
    policy: Float[Array, " B"],
    lengths: Float[Array, " B"],
    mean_length: Float[Array, ""] | None,
    normalization: NllNormalization,
) -> Float[Array, " B"]:
    """The negative log-likelihood of completions, normalised so that its mean over the batch is as named, ``[B]``.

    Args:
      policy: summed log-probabilities, nats, ``[B]``.
      lengths: scored tokens, ``[B]``.
      mean_length: mean of `lengths` over the valid examples of the global batch; None takes the mean of `lengths`.
      normalization: ``"batch_tokens"`` divides by `mean_length`: the batch mean is nats per token of the whole batch,
        so long completions count more. ``"tokens"`` divides each by its own length: nats per token, every completion
        counts the same. ``"sum"`` divides by nothing: nats per completion.

    Raises:
      ValueError: the normalization is none of the three.
    """
    policy = at_least_float32(policy)
    lengths = fixed(lengths)
    if normalization == "sum":
        return -policy
    if normalization == "tokens":
        return -policy / jnp.maximum(lengths, 1.0)
    if normalization == "batch_tokens":
        mean_length = lengths.mean() if mean_length is None else fixed(mean_length)
        return -policy / jnp.maximum(mean_length, 1.0)
    raise ValueError(f"nll_normalization: got {normalization!r}, expected 'batch_tokens', 'tokens' or 'sum'.")


def paired_output(
    losses: Float[Array, " B"],
    *,
    rewards: Pairs,
    policy: Pairs | None,
    **metrics: Float[Array, " B"],
) -> LossOutput:
    """Pairs count equally; the metrics are those of a preference pair under TRL's names, with no gradient.

    Args:
      losses: ``[B]``.
      rewards: the method's implicit rewards, ``[B]`` each.
      policy: the policy's log-probabilities as the method got them (sums or token means), ``[B]`` each; None where it
        gets none.
      **metrics: further metrics, ``[B]`` each.

    Returns:
      Metrics ``rewards/chosen``, ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies`` (1 where the chosen
      reward is the larger; a tie is 0), ``logps/chosen``, ``logps/rejected``, ``policy/accuracies`` (1 where the policy
      itself finds the chosen completion more likely), and the further ones.
    """
    rewards = Pair(fixed(rewards.chosen), fixed(rewards.rejected))
    named = {
        "rewards/chosen": rewards.chosen,
        "rewards/rejected": rewards.rejected,
        "rewards/accuracies": (rewards.chosen > rewards.rejected).astype(losses.dtype),
        "rewards/margins": difference(rewards),
    }
    if policy is not None:
        policy = Pair(fixed(policy.chosen), fixed(policy.rejected))
        named |= {
            "logps/chosen": policy.chosen,
            "logps/rejected": policy.rejected,
            "policy/accuracies": (policy.chosen > policy.rejected).astype(losses.dtype),
        }
    named |= {name: fixed(values) for name, values in metrics.items()}
    return LossOutput(losses=losses, weights=jnp.ones_like(losses), metrics=named)
