"""Optimizers and learning-rate schedules, by name, from optax.

The learning rate means the same for every optimizer: each update is ``-learning_rate * (direction + weight_decay *
weight)`` with a direction of about unit size (sgd: the gradient itself). Weight decay is decoupled from the gradient
for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import ConfigError, did_you_mean

OPTIMIZERS: Mapping[str, tuple[float, float | None]] = MappingProxyType(
    {
        "adamw": (0.9, 0.999),
        "adam": (0.9, 0.999),
        "lion": (0.9, 0.99),
        "adafactor": (0.0, None),
        "rmsprop": (0.0, 0.99),
        "sgd": (0.0, None),
    }
)
"""Name -> its own (b1, b2), used where none is given; b2 None = it has no such decay to set."""

SCHEDULES = ("constant", "linear", "cosine", "inverse_sqrt")


def make_optimizer(
    name: str,
    learning_rate: float,
    schedule: str = "linear",
    total_steps: int = 1,
    warmup_ratio: float = 0.0,
    *,
    warmup_steps: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    b1: float | None = None,
    b2: float | None = None,
    eps: float = 1e-8,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """An optimizer and its learning-rate schedule.

    The order is: gradients to float32, clip by global norm, the optimizer's direction, plus ``weight_decay *
    weight``, times minus the learning rate. Moments are float32 whatever the weights are.

    Args:
      name: ``adamw``, ``adam`` (no weight decay), ``lion``, ``adafactor`` (factored second moments, no first moment, no
        scaling by the weights' size, so that the learning rate keeps its meaning), ``rmsprop`` (torch's form: epsilon
        outside the root) or ``sgd``.
      learning_rate: the peak.
      schedule: ``constant``, ``linear``, ``cosine`` or ``inverse_sqrt``; see `make_schedule`.
      total_steps: optimizer steps of the whole run.
      warmup_ratio: share of the steps in which the learning rate rises from 0; rounded up to whole steps.
      warmup_steps: the same as a number of steps, instead of the ratio.
      weight_decay: decay of the weights per unit of learning rate. Norms and biases do not decay.
      clip_norm: largest global norm of the gradient; None = no clipping.
      b1: decay of the first moment (rmsprop, sgd: momentum); None = the optimizer's own.
      b2: decay of the second moment; None = the optimizer's own. adafactor and sgd have none.
      eps: added to the root of the second moment (adamw, adam, rmsprop).

    Returns:
      The transformation, and the schedule that it follows: step -> learning rate, float32.

    Raises:
      ConfigError: with every problem of the arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, schedule = make_optimizer("adamw", 1e-3, "linear", total_steps=10, warmup_ratio=0.2)
      >>> [round(float(schedule(step)), 6) for step in (0, 1, 2, 6, 10)]
      [0.0, 0.0005, 0.001, 0.0005, 0.0]
    """
    problems = _problems(
        name, learning_rate, schedule, total_steps, warmup_ratio, warmup_steps, weight_decay, clip_norm, b1, b2, eps
    )
    if problems:
        raise ConfigError(problems)
    if warmup_steps is None:
        warmup_steps = math.ceil(warmup_ratio * total_steps)
    rate = make_schedule(schedule, learning_rate, total_steps, warmup_steps)
    parts = []
    if clip_norm is not None:
        parts.append(optax.clip_by_global_norm(clip_norm))
    parts.extend(_direction(name, b1, b2, eps))
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, mask=decays))
    parts.append(optax.scale_by_learning_rate(rate))
    return in_float32(optax.chain(*parts)), rate


def _direction(name: str, b1: float | None, b2: float | None, eps: float) -> list[optax.GradientTransformation]:
    """What turns gradients into the optimizer's direction."""
    own_b1, own_b2 = OPTIMIZERS[name]
    b1 = own_b1 if b1 is None else b1
    if own_b2 is None:
        parts = [] if name == "sgd" else [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
        return [*parts, optax.trace(b1)] if b1 else parts
    b2 = own_b2 if b2 is None else b2
    if name == "lion":
        return [optax.scale_by_lion(b1=b1, b2=b2)]
    if name == "rmsprop":
        parts = [optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False)]
        return [*parts, optax.trace(b1)] if b1 else parts
    return [optax.scale_by_adam(b1=b1, b2=b2, eps=eps)]


def make_schedule(name: str, learning_rate: float, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """The learning rate by step, 0 for the first: the numbers of Hugging Face transformers' schedulers.

    During the warm-up it is ``learning_rate * step / warmup_steps``, so its first step changes nothing. Then:

    * ``constant``: the peak;
    * ``linear``: down to 0 at `total_steps`;
    * ``cosine``: half a cosine, down to 0 at `total_steps`;
    * ``inverse_sqrt``: ``learning_rate * sqrt(t / (step - warmup_steps + t))`` where t is `warmup_steps`, or 10,000
      without a warm-up.

    Args:
      name: one of the four.
      learning_rate: the peak.
      total_steps: optimizer steps of the whole run.
      warmup_steps: steps of the warm-up.
    """
    rest = max(1, total_steps - warmup_steps)
    timescale = warmup_steps or 10_000

    def after(step):
        if name == "constant":
            return jnp.ones_like(step)
        if name == "inverse_sqrt":
            return jax.lax.rsqrt((step - warmup_steps + timescale) / timescale)
        progress = jnp.clip((step - warmup_steps) / rest, 0.0, 1.0)
        return 1.0 - progress if name == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        share = jnp.where(step < warmup_steps, step / max(1, warmup_steps), after(jnp.maximum(step, warmup_steps)))
        return learning_rate * share

    return schedule


def decays(params: Any) -> Any:
    """Which weights decay: True but for norms, biases and other vectors and scalars. Same tree, bool leaves.

    Blocks are stacked over layers, so the number of axes does not tell a norm's scale from a matrix; its name does.
    """

    def one(path, leaf) -> bool:
        names = [str(getattr(key, "key", getattr(key, "name", ""))).lower() for key in path]
        return leaf.ndim > 1 and not {"bias", "scale"} & {*names[-1:]} and not any("norm" in name for name in names)

    return jax.tree.map_with_path(one, params)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `inner` on float32 gradients and weights, so that its state is float32 whatever theirs are.

    Updates come out in float32; `optax.apply_updates` adds them before it rounds to the weights' dtype.
    """

    def lift(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates, state, params=None):
        return inner.update(lift(updates), state, None if params is None else lift(params))

    return optax.GradientTransformation(lambda params: inner.init(lift(params)), update)


def _problems(
    name, learning_rate, schedule, total_steps, warmup_ratio, warmup_steps, weight_decay, clip_norm, b1, b2, eps
) -> list[str]:
    """Everything wrong with the arguments of `make_optimizer`."""
    problems = []

    def check(field: str, value: Any, holds: bool, expected: str) -> None:
        if not holds:
            problems.append(f"optimizer.{field}: got {value!r}, expected {expected}.")

    if name not in OPTIMIZERS:
        problems.append(
            f"optimizer.name: got {name!r}, expected one of {', '.join(OPTIMIZERS)}.{did_you_mean(name, OPTIMIZERS)}"
        )
    if schedule not in SCHEDULES:
        problems.append(
            f"optimizer.schedule: got {schedule!r}, expected one of {', '.join(SCHEDULES)}."
            f"{did_you_mean(schedule, SCHEDULES)}"
        )
    check("learning_rate", learning_rate, 0 < learning_rate < math.inf, "a finite number > 0")
    check("total_steps", total_steps, total_steps >= 1, "an integer >= 1")
    check("warmup_ratio", warmup_ratio, 0 <= warmup_ratio < 1, "a number >= 0 and < 1")
    check("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "a finite number >= 0")
    if name == "adam" and weight_decay:
        problems.append("optimizer.weight_decay: adam has none; use adamw.")
    check("eps", eps, 0 < eps < math.inf, "a finite number > 0")
    if warmup_steps is not None:
        check("warmup_steps", warmup_steps, warmup_steps >= 0, "an integer >= 0")
        if warmup_ratio:
            problems.append("optimizer.warmup_steps: set either warmup_steps or warmup_ratio, not both.")
    if clip_norm is not None:
        check("clip_norm", clip_norm, 0 < clip_norm < math.inf, "a finite number > 0, or none")
    for field, value in (("b1", b1), ("b2", b2)):
        if value is not None:
            check(field, value, 0 <= value < 1, "a number >= 0 and < 1")
    return problems
