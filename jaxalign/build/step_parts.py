"""The train step of a run with all that it is made of: what training runs, and what a plan compiles for elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxalign.build.model import make_trainable
from jaxalign.config import RunConfig
from jaxalign.methods import Method
from jaxalign.models.policy import Policy
from jaxalign.training.mesh import MeshPlan
from jaxalign.training.optimizer import make_optimizer
from jaxalign.training.references import Reference
from jaxalign.training.state import Frozen, TrainState, create_state, state_shardings
from jaxalign.training.step import StepOutput, make_train_step
from jaxalign.training.trainable import Trainable
from jaxalign.types import Rows, Variables


@dataclass(frozen=True)
class StepParts:
    """A run's step and its state, not yet computed.

    Attributes:
      trainable: which variables are trained.
      begin: from the variables to the state at step 0 and the variables that are not trained.
      shapes: of that state.
      untrained: shapes of these variables.
      shardings: of the state.
      untrained_shardings: of these variables.
      step: the step, not jitted.
    """

    trainable: Trainable
    begin: Callable[[Variables], tuple[TrainState, Any]]
    shapes: TrainState
    untrained: Any
    shardings: TrainState
    untrained_shardings: Any
    step: Callable[[TrainState, Frozen, Rows], tuple[TrainState, StepOutput]]


def step_parts(
    config: RunConfig, method: Method, policy: Policy, reference: Reference, plan: MeshPlan, steps: int
) -> StepParts:
    """The step of a configuration.

    Args:
      config: the run, resolved.
      method: its method.
      policy: what is trained.
      reference: where the reference's log-probabilities come from.
      plan: the mesh.
      steps: of the whole run, for the schedule.
    """
    settings = config.optimizer
    optimizer, schedule = make_optimizer(
        settings.name,
        settings.learning_rate,
        settings.schedule,
        steps,
        settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
    )
    trainable = make_trainable(config)

    def begin(variables: Variables) -> tuple[TrainState, Any]:
        return create_state(variables, trainable, optimizer, reference, config.train.seed, method.state)

    shapes, untrained = jax.eval_shape(begin, policy.abstract())
    places = plan.tree_shardings(policy.axes(), policy.abstract())
    shardings = state_shardings(shapes, places, plan.replicated)
    step = make_train_step(
        policy,
        method,
        reference,
        trainable,
        optimizer,
        options=method.resolve_options(config.method.options),
        microbatches=config.train.microbatches,
        schedule=schedule,
        pin_gradients=lambda gradients: jax.lax.with_sharding_constraint(gradients, shardings.trainable),
    )
    return StepParts(trainable, begin, shapes, untrained, shardings, trainable.split(places)[1], step)
