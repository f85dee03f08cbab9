"""What a training run carries from step to step. It is donated, updated and checkpointed as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
      method_state: running statistics of a method; empty for those without.
      rng: key from which each step derives its own.
    """

    step: Int[Array, ""]
    trainable: Any
    opt_state: Any
    reference: Any
    method_state: Any
    rng: jax.Array


def create_state(
    variables: Variables,
    trainable: Trainable,
    optimizer: optax.GradientTransformation,
    reference: Reference,
    seed: int,
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
        method_state={},
        rng=jax.random.key_data(jax.random.key(seed)),
    )
    return state, untrained
