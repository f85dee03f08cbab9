"""The train step: one pure function from (state, frozen, rows) to the next state.

Sums go up and are divided once, by the weight of the whole batch, so that devices and micro-batches change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxalign.methods import Layout, Method
from jaxalign.training.inputs import example_keys, mean_lengths, objective_inputs
from jaxalign.training.readings import by_example, read, sums
from jaxalign.training.references import Reference
from jaxalign.training.scoring import completion_lengths
from jaxalign.training.state import Frozen, TrainState
from jaxalign.training.trainable import Trainable
from jaxalign.types import Rows, Weighted

METRIC_STATISTICS = ("entropy", "correct", "mean_logit")

Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Metrics on their way up: name -> (weighted sum, weight)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepOutput:
    """What a step tells.

    Attributes:
      metrics: name -> (weighted sum, weight) over the global batch; the mean is their ratio.
      finite: False when the loss, the gradient's norm or the update's norm is not.
      policy_sums: summed log-probability of each completion under the policy before the update, ``[R, E, K]``; zeros
        for a method that reads none.
      reference_sums: the same under the reference.
    """

    metrics: Sums
    finite: Bool[Array, ""]
    policy_sums: Float[Array, "R E K"]
    reference_sums: Float[Array, "R E K"]


def make_train_step(
    policy: Any,
    method: Method,
    reference: Reference,
    trainable: Trainable,
    optimizer: optax.GradientTransformation,
    *,
    options: Mapping[str, Any],
    microbatches: int = 1,
    schedule: optax.Schedule | None = None,
    statistics: bool = True,
    pin_gradients: Callable[[Any], Any] = lambda gradients: gradients,
) -> Callable[[TrainState, Frozen, Rows], tuple[TrainState, StepOutput]]:
    """Builds the step. It is pure: the caller jits it, donates the state and pins shardings.

    A method whose loss couples the examples of a batch (KTO's KL estimate) gets the statistics of the whole batch
    also under micro-batches: the completions of all of them are scored first, the loss and its gradient with respect
    to what was scored are taken over the whole batch, and a second pass carries that gradient to the weights.

    Args:
      policy: the policy's functions.
      method: the row of `METHODS`.
      reference: where reference log-probabilities come from.
      trainable: which variables are trained.
      optimizer: applied to the mean gradient.
      options: the method's hyper-parameters.
      microbatches: parts that the rows are worked off in; R must be a multiple.
      schedule: only to report ``learning_rate``.
      statistics: also report ``entropy``, ``mean_token_accuracy`` and ``logits/*``.
      pin_gradients: constrains the gradients to the parameters' shardings; without it FSDP gathers them.
    """
    paired = method.layout is Layout.PAIRED
    wanted = METRIC_STATISTICS if statistics else ()

    def batch_loss(carried, rest, rows, context):
        means, state, keys = context
        fixed, theirs = rest
        inputs = objective_inputs(
            method,
            by_example(method, carried, fixed, theirs, rows),
            lengths=completion_lengths(rows),
            columns=rows.columns,
            example_mask=rows.example_mask,
            mean_lengths=means,
            state=state,
            keys=None if keys is None else example_keys(keys[0], keys[1], rows.columns["example_id"]),
        )
        output = method.objective(**inputs, **options)
        mask = rows.example_mask.reshape(-1)
        weights = jnp.where(mask, output.weights, 0.0)
        total = jnp.sum(jnp.where(mask, output.losses, 0.0) * weights)
        metrics = {"loss": (jax.lax.stop_gradient(total), weights.sum())}
        for name, value in output.metrics.items():
            values, counts = value if isinstance(value, Weighted) else (value, jnp.ones_like(value))
            counts = jnp.where(mask, counts, 0.0)
            metrics[name] = (jnp.sum(jnp.where(counts != 0, values, 0.0) * counts), counts.sum())
        return total, jax.lax.stop_gradient((metrics, output.state))

    def reading(params, state, frozen, rows):
        """What carries a gradient, and: what carries none, the sums to report, the token metrics."""
        variables = trainable.join(params, frozen["policy"])
        found = read(policy, variables, method, reference, state.reference, frozen, rows, wanted)
        reported = jax.lax.stop_gradient(sums(found.policy, rows)), found.reference.sums
        token_metrics = _token_metrics(found.tokens, rows, paired) if statistics and found.tokens is not None else {}
        return found.policy, ((found.fixed, found.reference), reported, token_metrics)

    def part_loss(params, state, frozen, rows, context):
        carried, (rest, reported, token_metrics) = reading(params, state, frozen, rows)
        total, (metrics, method_state) = batch_loss(carried, rest, rows, context)
        return total, (metrics | token_metrics, reported, method_state)

    def whole(state, frozen, rows, context):
        """All rows at once."""
        gradients, found = jax.grad(part_loss, has_aux=True)(state.trainable, state, frozen, rows, context)
        return gradients, *found

    def in_parts(state, frozen, rows, context):
        """Micro-batch after micro-batch; the examples do not see each other."""
        parts = _fold(rows, microbatches)

        def one(carry, part):
            gradients, metrics, reported, _ = whole(state, frozen, part, context)
            return jax.tree.map(jnp.add, carry, (pin_gradients(gradients), metrics)), reported

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(whole, state, frozen, first, context)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])
        (gradients, metrics), reported = jax.lax.scan(one, zeros, parts)
        return gradients, metrics, _unfold(reported), None

    def in_two_passes(state, frozen, rows, context):
        """Read every micro-batch, take the loss over the whole batch, then carry its gradient back."""
        parts = _fold(rows, microbatches)

        def forward(_, part):
            return None, reading(state.trainable, state, frozen, part)

        _, (carried, (rest, reported, token_metrics)) = jax.lax.scan(forward, None, parts)
        token_metrics = jax.tree.map(lambda x: x.sum(0), token_metrics)
        cotangents, (metrics, method_state) = jax.grad(batch_loss, has_aux=True)(
            _unfold(carried), _unfold(rest), rows, context
        )

        def backward(carry, inputs):
            part, cotangent = inputs
            _, pull = jax.vjp(lambda params: reading(params, state, frozen, part)[0], state.trainable)
            return jax.tree.map(jnp.add, carry, pin_gradients(pull(cotangent)[0])), None

        zeros = jax.tree.map(jnp.zeros_like, state.trainable)
        gradients, _ = jax.lax.scan(backward, zeros, (parts, _fold(cotangents, microbatches)))
        return gradients, metrics | token_metrics, _unfold(reported), method_state

    if microbatches == 1:
        gradients_of = whole
    else:
        gradients_of = in_two_passes if method.batch_coupled else in_parts

    def step(state: TrainState, frozen: Frozen, rows: Rows) -> tuple[TrainState, StepOutput]:
        context = (
            mean_lengths(completion_lengths(rows), rows.example_mask),
            state.method_state,
            (state.rng, state.step) if "keys" in method.inputs else None,
        )
        gradients, metrics, (policy_sums, reference_sums), method_state = gradients_of(state, frozen, rows, context)
        total, weight = metrics["loss"]
        # A batch in which nothing counts (rankings that are all ties) has no gradient, rather than 0 / 0.
        weight = jnp.where(weight == 0, 1.0, weight)
        gradients = pin_gradients(jax.tree.map(lambda g: g / weight, gradients))
        norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        params = optax.apply_updates(state.trainable, updates)
        one = jnp.ones(())
        metrics = metrics | {"grad_norm": (norm, one)}
        if schedule is not None:
            metrics["learning_rate"] = (jnp.asarray(schedule(state.step), jnp.float32), one)
        count = state.step + 1
        next_state = TrainState(
            step=count,
            trainable=params,
            opt_state=opt_state,
            reference=reference.update(state.reference, trainable.join(params, frozen["policy"]), count),
            method_state=state.method_state if method_state is None else method_state,
            rng=state.rng,
        )
        finite = jnp.isfinite(total / weight) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        return next_state, StepOutput(metrics, finite, policy_sums, reference_sums)

    return step


def _token_metrics(tokens, rows: Rows, paired: bool) -> Sums:
    """Sums over scored tokens; a mismatched completion (the second behind an unpaired prompt) counts like the first."""
    slots = rows.score_slot
    real = slots < rows.example_mask.shape[1] * rows.completions
    weights = real.astype(jnp.float32)

    def total(values, counts):
        return jnp.sum(jnp.where(counts > 0, values, 0.0) * counts), counts.sum()

    sums = {"entropy": total(tokens.entropy, weights), "mean_token_accuracy": total(tokens.correct, weights)}
    if paired:
        for k, name in enumerate(("chosen", "rejected")):
            sums[f"logits/{name}"] = total(tokens.mean_logit, weights * (slots % 2 == k))
    return sums


def _fold(tree, parts: int):
    """``[R, ...] -> [parts, R / parts, ...]``, column-major: part j takes rows j, j + parts, ...

    An axis sharded over devices then stays sharded, and no row moves.
    """

    def fold(array):
        rows = array.shape[0]
        return jnp.swapaxes(array.reshape(rows // parts, parts, *array.shape[1:]), 0, 1)

    return jax.tree.map(fold, tree)


def _unfold(tree):
    """The inverse of `_fold`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), tree)
