"""Batches of tokens, methods on them, and what it means to agree with TRL.

TRL computes in float64 where it can. In float32, in which this package trains, loss and gradient must be the same to
1e-5 of the largest; in float64 each number to 1e-9. What differs on purpose stands in the tests as a term or a factor
with its reason; the docstrings of the objectives say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.methods import Logps, get_method
from jaxalign.types import LossOutput, Pair

N = 7  # most tokens of a completion
CASES = ("random", "near", "tied", "extreme", "short")


def tokens(trl: Any, case: str, sides: int = 2) -> Any:
    """The log-probabilities of a batch; the rows of one side behind those of the other."""
    rng = np.random.default_rng([sides, *case.encode()])
    examples = 3 if case == "short" else 6
    rows = sides * examples
    lengths = np.ones(rows, int) if case == "short" else rng.integers(1, N + 1, rows)
    policy, reference = rng.uniform(-6.0, -0.05, (2, rows, N)).astype(np.float32)
    if case == "near":
        reference = np.minimum(policy + rng.uniform(-0.5, 0.5, (rows, N)), -0.01).astype(np.float32)
    if case == "tied":
        reference = policy
    if case == "extreme":
        # Log-ratios of +1000, -1000 and 0 nats in all combinations of the sides.
        sums = {"+": (-1.0, -1001.0), "-": (-1001.0, -1.0), "0": (-1001.0, -1001.0)}
        combinations = ["+-", "-+", "++", "--", "+0", "0+"]
        spread = [sums[signs[side % 2]] for side in range(sides) for signs in combinations]
        for values, nats in zip((policy, reference), zip(*spread, strict=True), strict=True):
            values[:] = -0.125  # numbers whose sums are exact
            values[:, 0] = np.asarray(nats) + 0.125 * (lengths - 1)
    return trl.Tokens(policy, reference, lengths)


def agree(variable: np.ndarray, loss: Callable[[jax.Array], jax.Array], expected: Any, exact: bool = True) -> None:
    """`loss` and its gradient are TRL's.

    Args:
      variable: what is trained.
      loss: the loss of the batch.
      expected: TRL's loss and gradient.
      exact: whether TRL computed in float64.
    """

    def compare(dtype: Any, relative: float, absolute: float) -> None:
        found = jax.value_and_grad(loss)(jnp.asarray(variable, dtype))
        for actual, wanted in zip(map(np.asarray, found), expected, strict=True):
            assert actual.dtype == dtype
            assert np.isfinite(actual).all()
            known = np.isfinite(wanted)  # see OVERFLOWS
            largest = np.abs(wanted[known]).max(initial=0.0)
            np.testing.assert_allclose(actual[known], wanted[known], rtol=relative, atol=absolute * largest)

    expected = tuple(np.asarray(value, np.float64) for value in expected)
    compare(jnp.float32, 0.0, 1e-5)
    if exact:
        with jax.enable_x64(True):
            compare(jnp.float64, 1e-9, 1e-12)


def mean(output: LossOutput) -> jax.Array:
    """What the train step makes of an output."""
    return (output.losses * output.weights).sum() / output.weights.sum()


def pair(values: jax.Array) -> Pair:
    return Pair(*jnp.split(values, 2))


def reduced(values: jax.Array, mask: jax.Array, logps: Logps) -> jax.Array:
    """Tokens in the form that a method reads."""
    masked = jnp.where(mask, values, 0.0)
    if logps is Logps.TOKEN:
        return masked
    return masked.sum(-1) / (mask.sum(-1) if logps is Logps.MEAN else 1.0)


def paired(name: str, policy: jax.Array, batch: Any, **options: Any) -> LossOutput:
    """A method of pairs on tokens; the reference may stay unread."""
    method, mask = get_method(name), jnp.asarray(batch.mask)
    assert not method.check_options(options)
    lengths = pair(jnp.asarray(batch.lengths, policy.dtype))
    collision = jnp.log(jnp.exp(policy) ** 2 + (1.0 - jnp.exp(policy)) ** 2)  # of a model of two words
    inputs = {
        "policy": pair(reduced(policy, mask, method.logps)),
        "reference": pair(reduced(jnp.asarray(batch.reference, policy.dtype), mask, method.logps)),
        "lengths": lengths,
        "mean_lengths": Pair(lengths.chosen.mean(), lengths.rejected.mean()),
        "token_mask": pair(mask),
        "token_collision": pair(jnp.where(mask, collision, 0.0)),
        "example_mask": jnp.ones(lengths.chosen.shape, bool),
    }
    return method.loss(inputs, options)
