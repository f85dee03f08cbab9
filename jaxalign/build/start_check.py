"""The check of the first step: while policy and reference are one model, the loss has a closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.pipeline import PackedBatch
from jaxalign.errors import NumericsError
from jaxalign.methods import Logps, Method
from jaxalign.training.inputs import objective_inputs
from jaxalign.training.scoring import completion_lengths
from jaxalign.training.step import StepOutput
from jaxalign.types import Rows

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest difference of two log-probabilities of one completion, relative to their size: what rounding explains."""
ABSOLUTE = {"float32": 1e-4, "bfloat16": 0.5}
"""The same in nats, beside it. In bfloat16 the two programs of a cached and a live model round a token's logits by
hundredths of a nat each, however likely the token is: answers of 1 to 8 tokens differed by up to 0.14 to 0.57 nats, 4 %
of their size (``benchmarks/precision.py`` has longer ones)."""


CLOSED = {"policy", "reference", "lengths", "mean_lengths", "example_mask", "mismatched_policy", "mismatched_reference"}
CLOSED |= {"desirable", "scores", "win_probabilities", "preference", "absolute", "state"}
"""Inputs from which the first loss follows, when the summed log-probabilities of policy and reference are equal."""


def make_start_check(
    method: Method, options: Mapping[str, Any], dtype: str
) -> Callable[[PackedBatch, StepOutput], None]:
    """A check of the first step's output, for a reference that is the policy before training.

    It compares the log-probabilities of policy and reference, completion by completion, and the loss with what the
    objective gives where they are equal (ln 2 for dpo, ``(1 / (2 beta))^2`` for ipo). A stale or misplaced reference,
    wrong weights of examples, or a wrong reduction shows here, before anything is trained.

    Raises:
      NumericsError: from the check.
    """
    tolerance = TOLERANCE[dtype]

    @jax.jit  # in one program: one by one, its operations would take a second to compile
    def loss_of_equals(sums: jax.Array, rows: Rows) -> jax.Array:
        inputs = objective_inputs(
            method,
            {"policy": sums, "reference": sums},
            lengths=completion_lengths(rows),
            columns=rows.columns,
            example_mask=rows.example_mask,
        )
        output = method.objective(**inputs, **options)
        weights = jnp.where(rows.example_mask.reshape(-1), output.weights, 0.0)
        return (weights * output.losses).sum() / weights.sum()

    def check(batch: PackedBatch, output: StepOutput) -> None:
        policy, reference = np.asarray(output.policy_sums), np.asarray(output.reference_sums)
        # Where a row holds no example both are 0.
        excess = np.abs(policy - reference) - tolerance * np.abs(reference) - ABSOLUTE[dtype]
        if excess.max() > 0:
            r, e, k = np.unravel_index(int(excess.argmax()), excess.shape)
            raise NumericsError(
                f"step 1: the policy before training and its reference are one model, but the log-probability of "
                f"completion {k} of an example (row {r}, place {e} of the batch) is {policy[r, e, k]:.6g} under the "
                f"policy and {reference[r, e, k]:.6g} under the reference (nats). The reference is not the model that "
                "training starts from. Set train.check_first_step=false only if that is meant."
            )
        if jax.process_count() > 1:
            return  # the loss below needs the columns of all rows, and those of the other processes are not here
        if method.logps is Logps.TOKEN or not set(method.inputs) <= CLOSED:
            return  # the loss depends on more than the sums that are known here
        expected = float(loss_of_equals(reference, batch.rows))
        total, weight = output.metrics["loss"]
        loss = float(total) / float(weight)
        if abs(loss - expected) > 10 * tolerance * max(abs(expected), 1.0) * (1 + np.abs(reference).max() * tolerance):
            raise NumericsError(
                f"step 1: the loss is {loss:.6g}, but with the reference equal to the policy {method.name} gives "
                f"{expected:.6g}. Set train.check_first_step=false only if that is meant."
            )

    return check
