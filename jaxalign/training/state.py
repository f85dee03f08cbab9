"""What a training run carries from step to step. It is donated, updated and checkpointed as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxalign.training.references import Reference
from jaxalign.training.trainable import Trainable
from jaxalign.types import Variables

Frozen = Mapping[str, Any]
"""What a step reads and never changes: ``policy`` (untrained variables) and ``reference`` (a frozen reference's)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """
    Attributes:
      step: optimizer steps taken.
      trainable: the trained variables, float32 master weights.
      opt_state: the optimizer's.
      reference: a moving reference's variables; empty for the others.
      method_state: a method's running statistics, scalars by name; empty for most.
      rng: key data of the run; a step folds its number into it, so it never changes.
    """

    step: Int[Array, ""]
    trainable: Any
    opt_state: Any
    reference: Any
    method_state: Any
    rng: jax.Array


def state_shardings(shapes: TrainState, parameters: Any, replicated: Any) -> TrainState:
    """Where each part of a state lives: whatever has the shape of a parameter lives where that parameter does.

    Args:
      shapes: the state's, from `jax.eval_shape`.
      parameters: shardings of all the policy's variables.
      replicated: for counters, keys and other small things.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(parameters)
    by_path = {jax.tree_util.keystr(path): sharding for path, sharding in flat}
    sizes = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes.trainable)[0]
    }

    def place(path, leaf):
        # An optimizer's moments, or a moving reference, repeat the parameters' tree below their own path.
        for start in range(len(path)):
            name = jax.tree_util.keystr(path[start:])
            if name in by_path and leaf.shape == sizes.get(name):
                return by_path[name]
        return replicated

    return jax.tree_util.tree_map_with_path(place, shapes)


def create_state(
    variables: Variables,
    trainable: Trainable,
    optimizer: optax.GradientTransformation,
    reference: Reference,
    seed: int,
    method_state: Mapping[str, float] = MappingProxyType({}),
) -> tuple[TrainState, Any]:
    """The state at step 0, and the variables that are not trained.

    Run it under jit with output shardings, or on variables that live where they should.
    """
    trained, untrained = trainable.split(variables)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trained,
        opt_state=optimizer.init(trained),
        reference=reference.init(variables),
        method_state={name: jnp.asarray(value, jnp.float32) for name, value in method_state.items()},
        rng=jax.random.key_data(jax.random.key(seed)),
    )
    return state, untrained
