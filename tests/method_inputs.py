"""Random inputs for any method, made from the names that its objective asks for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.methods import INPUTS, Layout, Logps, Method
from jaxalign.types import Pair

B = 6  # examples
K = 4  # completions of a ranking
N = 9  # most tokens of a completion
M = 2  # damaged completions

# Where a ranking has a completion: example 2 has three, example 5 has two, and gaps may be anywhere.
EXISTS = np.ones((B, K), bool)
EXISTS[2, 1] = EXISTS[5, 0] = EXISTS[5, 3] = False


def make_inputs(method: Method, *, seed: int = 0, low: float = -60.0, high: float = -5.0) -> dict[str, Any]:
    """What the method asks for, shaped as its layout says; summed log-probabilities lie between `low` and `high`.

    Values of one name are the same whatever else the method asks for. Some rankings have fewer than K completions:
    where `EXISTS` is False, all is 0.
    """
    return {name: _input(method, name, seed, low, high) for name in method.inputs}


def take(method: Method, inputs: dict, index) -> dict:
    """The examples of that index, in that order; what belongs to the whole batch stays."""
    return {
        name: value if INPUTS[name].per == "batch" else jax.tree.map(lambda x: x[index], value)
        for name, value in inputs.items()
    }


def trained(method: Method, inputs: dict) -> dict:
    """The inputs that a gradient flows from."""
    return {name: inputs[name] for name in method.inputs if INPUTS[name].trains}


def fill(method: Method, inputs: dict, policy: float, reference: float, dtype) -> dict:
    """The inputs with log-probabilities at extremes: chosen ones as given, the others at -1000 minus that."""
    filled = dict(inputs)
    for name, value in (("policy", policy), ("reference", reference)):
        if name not in inputs:
            continue
        sides = jax.tree.leaves(inputs[name])
        new = []
        for i, side in enumerate(sides):
            nats = value if i == 0 else -1000.0 - value
            if method.logps is Logps.TOKEN:
                present = side != 0
                new.append((nats * present / jnp.maximum(present.sum(-1, keepdims=True), 1)).astype(dtype))
            elif method.layout is Layout.RANKED:
                new.append(jnp.full_like(side, nats, dtype).at[:, 1:].set(-1000.0 - nats))
            else:
                new.append(jnp.full_like(side, nats, dtype))
        filled[name] = jax.tree.unflatten(jax.tree.structure(inputs[name]), new)
    return filled


def _input(method: Method, name: str, seed: int, low: float, high: float) -> Any:
    known = INPUTS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    lengths = np.random.default_rng([seed, 1]).integers(1, N, (B, K)).astype(np.float32)
    if method.layout is Layout.RANKED:
        lengths = lengths * EXISTS
    if name == "mean_lengths":
        return jax.tree.map(jnp.mean, _structure(method, lengths))
    if name == "state":
        return {key: jnp.asarray(value, jnp.float32) for key, value in method.state.items()}
    if name == "keys":
        return jax.random.split(jax.random.key(seed), B)
    if known.per == "example":
        return jnp.asarray(
            {
                "example_mask": lambda: np.ones(B, bool),
                "desirable": lambda: np.array([True, False, True, True, False, False]),
                "absolute": lambda: np.array([True, False, False, True, True, False]),
                "mismatched_policy": lambda: rng.uniform(low, high, B),
                "mismatched_reference": lambda: rng.uniform(low, high, B) - 10.0,
                "preference": lambda: rng.uniform(0.55, 1.0, B),
                "density_ratios": lambda: rng.uniform(0.25, 4.0, B),
                "degree_logits": lambda: rng.normal(size=(B, M, method.head_outputs(method.resolve_options({})))),
                "degrees": lambda: np.tile(1 + np.arange(M), (B, 1)),
            }[name](),
            {"degrees": jnp.int32}.get(name, jnp.float32)
            if name not in ("example_mask", "desirable", "absolute")
            else bool,
        )
    if known.per == "completion" and not (name in ("policy", "reference") and method.logps is Logps.TOKEN):
        scale = 20.0 if method.logps is Logps.MEAN else 1.0
        drawn = {
            "lengths": lambda: lengths,
            "scores": lambda: np.stack([rng.permutation(K) for _ in range(B)]) + 0.5,
            "win_probabilities": lambda: rng.uniform(0.1, 0.9, (B, K)),
            "rewards": lambda: rng.normal(size=(B, K)),
        }.get(name, lambda: rng.uniform(low, high, (B, K)) / scale)()
        return _structure(method, drawn.astype(np.float32))
    present = np.arange(N) < lengths[..., None]
    if name == "token_mask":
        return _structure(method, present)
    if name == "marked":
        return _structure(method, present & (rng.random((B, K, N)) < 0.5))
    if name == "step_labels":
        return _structure(method, np.where(present, rng.integers(-1, 2, (B, K, N)), -1).astype(np.int32))
    if name == "step_logits":
        return _structure(method, rng.normal(size=(B, K, N, 2)).astype(np.float32))
    nonnegative = name in ("token_kl", "token_entropy", "token_weights")
    values = rng.uniform(0.05, 1.5, (B, K, N)) if nonnegative else rng.uniform(-4.0, -0.05, (B, K, N))
    return _structure(method, np.where(present, values, 0.0).astype(np.float32))


def _structure(method: Method, values: np.ndarray) -> Any:
    if method.layout is Layout.RANKED:
        exists = EXISTS.reshape(B, K, *[1] * (values.ndim - 2))
        return jnp.asarray(np.where(exists, values, np.zeros((), values.dtype)))
    values = jnp.asarray(values)
    return Pair(values[:, 0], values[:, 1]) if method.layout is Layout.PAIRED else values[:, 0]
