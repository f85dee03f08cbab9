"""From log-probabilities by completion to what an objective's parameters are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.errors import ConfigError
from jaxalign.methods import INPUTS, Layout, Logps, Method
from jaxalign.types import Pair

COMPLETIONS: Mapping[Layout, tuple[int, ...]] = {Layout.SINGLE: (1,), Layout.PAIRED: (2,), Layout.UNPAIRED: (1, 2)}
"""Completions behind a prompt, K, by layout. The second of an unpaired example belongs to another example."""


def mean_lengths(lengths: Float[Array, "*B K"], example_mask: Bool[Array, "*B"]) -> Float[Array, " K"]:
    """Mean scored tokens of each of the K completions over the valid examples; 0 when there is none.

    Args:
      lengths: scored tokens, ``[R, E, K]`` or ``[B, K]``.
      example_mask: False where there is no example, ``[R, E]`` or ``[B]``.
    """
    completions = lengths.shape[-1]
    mask = example_mask.reshape(-1)
    total = jnp.where(mask[:, None], lengths.reshape(-1, completions), 0.0).sum(axis=0)
    return total / jnp.maximum(mask.sum(), 1)


def objective_inputs(
    method: Method,
    *,
    policy_sums: Float[Array, "*B K"],
    reference_sums: Float[Array, "*B K"] | None,
    lengths: Float[Array, "*B K"],
    columns: Mapping[str, Array],
    example_mask: Bool[Array, "*B"],
    mean_lengths: Float[Array, " K"] | None = None,
) -> dict[str, Any]:
    """What the method's objective asks for, by name; exactly its positional parameters.

    Leading axes (rows and examples) become one axis B. Only the policy's own completions carry a gradient.

    Args:
      method: its layout says what the K completions are, its `logps` whether sums or token means are given.
      policy_sums: summed log-probability of each completion, nats.
      reference_sums: the same under the reference; None where no reference is there.
      lengths: scored tokens of each completion.
      columns: what came with the data, by name, ``[*B]`` or ``[*B, K]``: ``desirable`` for unpaired data, and
        ``reference_lengths`` where the reference counts tokens with another tokenizer (used for token means only).
      example_mask: False where there is no example.
      mean_lengths: from `mean_lengths`, over the whole batch; None computes it from these examples.

    Raises:
      ConfigError: the data lack something that the method needs.
    """
    completions = policy_sums.shape[-1]
    problems = _problems(method, completions, reference_sums, columns)
    if problems:
        raise ConfigError(problems)

    mask = example_mask.reshape(-1)
    counts = lengths.reshape(-1, completions)
    policy = policy_sums.reshape(-1, completions)
    reference = jnp.zeros_like(policy) if reference_sums is None else reference_sums.reshape(-1, completions)
    if method.logps is Logps.MEAN:
        reference_counts = columns.get("reference_lengths", lengths)
        policy = policy / jnp.maximum(counts, 1.0)
        reference = reference / jnp.maximum(reference_counts.reshape(-1, completions), 1.0)
    reference = jax.lax.stop_gradient(reference)
    if mean_lengths is None:
        mean_lengths = _mean_lengths(counts, mask)

    structured = _STRUCTURE[method.layout]
    supply = {
        "policy": lambda: structured(policy),
        "reference": lambda: structured(reference),
        "lengths": lambda: structured(counts),
        "mean_lengths": lambda: structured(mean_lengths),
        "example_mask": lambda: mask,
        "desirable": lambda: jnp.asarray(columns["desirable"]).reshape(-1).astype(bool),
        "mismatched_policy": lambda: jax.lax.stop_gradient(policy[:, 1]),
        "mismatched_reference": lambda: reference[:, 1],
    }
    return {name: supply[name]() for name in method.inputs}


def _pair(values):
    return Pair(values[..., 0], values[..., 1])


_STRUCTURE = {
    Layout.SINGLE: lambda values: values[..., 0],
    Layout.PAIRED: _pair,
    Layout.UNPAIRED: lambda values: values[..., 0],
    Layout.RANKED: lambda values: values,
    Layout.SAMPLED: lambda values: values,
}
_mean_lengths = mean_lengths


def _problems(method: Method, completions: int, reference_sums, columns: Mapping[str, Any]) -> list[str]:
    """All that is missing, one line each. Shapes and names only, so it is found while tracing, before any step."""
    where = f"method {method.name} ({method.layout.name.lower()} data)"
    problems = []
    if method.logps is Logps.TOKEN:
        problems.append(f"{where}: needs the log-probability of each token, but only sums are given here")
    expected = COMPLETIONS.get(method.layout)
    if expected is not None and completions not in expected:
        counts = " or ".join(map(str, expected))
        problems.append(f"{where}: got {completions} completions behind each prompt, expected {counts}")
    for name in method.inputs:
        if name in ("mismatched_policy", "mismatched_reference") and completions == 1:
            problems.append(
                f"{where}: the input {name!r} needs a second completion behind each prompt, that of another example"
            )
        if INPUTS[name].reference and reference_sums is None:
            problems.append(f"{where}: the input {name!r} needs a reference; set reference.source")
    if "desirable" in method.inputs and "desirable" not in columns:
        have = ", ".join(sorted(columns)) or "none"
        problems.append(f"{where}: needs the column 'desirable' (the label); the columns are: {have}")
    return problems
