"""From what policy, reference and data say of each completion to what an objective's parameters are called."""

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


def example_keys(rng: Array, step: Array | int, example_id: Array) -> Array:
    """A random key for each example and step, ``[*B]``, whatever row, device or micro-batch it lies in.

    Args:
      rng: key data of the run.
      step: optimizer steps taken.
      example_id: which example it is, ``[*B]`` int.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(rng), step)
    ids = example_id.reshape(-1).astype(jnp.uint32)
    return jax.vmap(lambda identity: jax.random.fold_in(key, identity))(ids).reshape(example_id.shape)


def objective_inputs(
    method: Method,
    values: Mapping[str, Array],
    *,
    lengths: Float[Array, "*B K"],
    columns: Mapping[str, Array],
    example_mask: Bool[Array, "*B"],
    mean_lengths: Float[Array, " K"] | None = None,
    state: Mapping[str, Array] | None = None,
    keys: Array | None = None,
) -> dict[str, Any]:
    """What the method's objective asks for, by name; exactly its positional parameters.

    Leading axes (rows and examples) become one axis B. Only the policy's own completions carry a gradient.

    Args:
      method: its layout says what the K completions are, its `logps` whether sums, token means or tokens are given.
      values: what models say, by input name: ``policy`` and ``reference`` (summed log-probabilities, nats, ``[*B, K]``,
        or of each token, ``[*B, K, N]``, for methods that take those), ``token_kl`` and the like ``[*B, K, N]``,
        ``rewards [*B, K]``, ...; also the data's values of each token. No ``reference`` = there is none.
      lengths: scored tokens of each completion.
      columns: what came with the data, by name, ``[*B]`` or ``[*B, K]``: ``desirable`` for unpaired data, ``scores``,
        and ``reference_lengths`` where the reference counts tokens with another tokenizer (used for token means only).
      example_mask: False where there is no example.
      mean_lengths: from `mean_lengths`, over the whole batch; None computes it from these examples.
      state: the method's running statistics; None = those before the first step.
      keys: from `example_keys`.

    Raises:
      ConfigError: the data lack something that the method needs.
    """
    completions = lengths.shape[-1]
    problems = _problems(method, completions, values, columns)
    if problems:
        raise ConfigError(problems)
    leading = example_mask.ndim
    mask = example_mask.reshape(-1)

    def flat(array):
        return jnp.asarray(array).reshape(-1, *array.shape[leading:])

    counts = flat(lengths)
    given = {name: flat(value) for name, value in values.items()}
    if method.logps is Logps.MEAN:
        reference_counts = flat(columns.get("reference_lengths", lengths))
        for name, tokens in (("policy", counts), ("reference", reference_counts)):
            if name in given:
                given[name] = given[name] / jnp.maximum(tokens, 1.0)
    if mean_lengths is None:
        mean_lengths = _mean_lengths(counts, mask)

    def structured(array):
        return _STRUCTURE[method.layout](array)

    def supply(name: str) -> Any:
        known = INPUTS[name]
        if name == "lengths":
            return structured(counts)
        if name == "mean_lengths":
            return _STRUCTURE[method.layout](mean_lengths[None], lambda array: array[0])
        if name == "token_mask":
            tokens = next(given[n].shape[2] for n in given if given[n].ndim > 2 and INPUTS[n].per != "example")
            return structured(jnp.arange(tokens) < counts[..., None])
        if name == "example_mask":
            return mask
        if name == "mismatched_policy":
            return jax.lax.stop_gradient(given["policy"][:, 1])
        if name == "mismatched_reference":
            return jax.lax.stop_gradient(given["reference"][:, 1])
        if name == "state":
            before = {key: jnp.asarray(value, jnp.float32) for key, value in method.state.items()}
            return before if state is None else dict(state)
        if name == "keys":
            assert keys is not None
            return keys.reshape(-1)
        if known.column:
            value = given[name] if known.per == "token" else flat(columns[name])
            if known.is_bool:
                value = value.astype(bool)
        else:
            value = given[name]
        if not known.trains:
            value = jax.lax.stop_gradient(value)
        return value if known.per == "example" else structured(value)

    return {name: supply(name) for name in method.inputs}


def _same(array):
    return array


def _first(array, each=_same):
    return each(array[:, 0])


def _pair(array, each=_same):
    return Pair(each(array[:, 0]), each(array[:, 1]))


def _all(array, each=_same):
    return each(array)


_STRUCTURE = {
    Layout.SINGLE: _first,
    Layout.PAIRED: _pair,
    Layout.UNPAIRED: _first,
    Layout.RANKED: _all,
    Layout.SAMPLED: _all,
}
_mean_lengths = mean_lengths


def _problems(method: Method, completions: int, values: Mapping[str, Any], columns: Mapping[str, Any]) -> list[str]:
    """All that is missing, one line each. Shapes and names only, so it is found while tracing, before any step."""
    where = f"method {method.name} ({method.layout.name.lower()} data)"
    problems = []
    expected = COMPLETIONS.get(method.layout)
    if expected is not None and completions not in expected:
        counts = " or ".join(map(str, expected))
        problems.append(f"{where}: got {completions} completions behind each prompt, expected {counts}")
    for name in method.inputs:
        if name in ("mismatched_policy", "mismatched_reference") and completions == 1:
            problems.append(
                f"{where}: the input {name!r} needs a second completion behind each prompt, that of another example"
            )
        known = INPUTS[name]
        if known.live and name not in values:
            problems.append(f"{where}: the input {name!r} needs a live reference; set reference.mode=live")
        elif known.reference and "reference" not in values and name not in values:
            problems.append(f"{where}: the input {name!r} needs a reference; set reference.source")
        if known.column and name not in (values if known.per == "token" else columns):
            have = ", ".join(sorted(columns)) or "none"
            problems.append(f"{where}: needs the column {name!r} ({known.meaning}); the columns are: {have}")
    return problems
