"""Where a method pushes: its loss and gradient over the probability ratios of the two completions of a pair.

With ``x1 = pi(y_w) / pi_ref(y_w)`` and ``x2 = pi(y_l) / pi_ref(y_l)``, a method that sees nothing but the two ratios is
a function of the plane, and its gradient a vector field on it (arXiv 2404.04626). Axes here are ``log x1`` and
``log x2``, which are what an optimizer moves; for DPO ``|dL/dx1| / |dL/dx2| = x2 / x1`` everywhere, so once the chosen
completion has gained on the rejected one, the push on the rejected one is the larger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxalign.errors import ConfigError
from jaxalign.method import Layout, Logps, Method
from jaxalign.types import Pair

NEUTRAL = ("lengths", "mean_lengths", "example_mask")
"""Inputs beside ``policy`` and ``reference`` that a pair on its own has."""


@dataclass(frozen=True)
class Field:
    """A method over the plane of the two log-ratios. Rows of the arrays go with ``rejected``, columns with ``chosen``.

    Attributes:
      method: its name.
      options: all of its options, and the preference where one was given.
      per_token: the log-ratios are means over tokens, not sums.
      origin: log-probabilities of the chosen and the rejected completion at ``log x = 0``; None where the loss does not
        depend on them.
      chosen: ``log x1``, ``[n]``, nats.
      rejected: ``log x2``, ``[n]``, nats.
      loss: ``[n, n]``.
      chosen_slope: ``dL / dlog x1``, ``[n, n]``.
      rejected_slope: ``dL / dlog x2``, ``[n, n]``.
    """

    method: str
    options: Mapping[str, Any]
    per_token: bool
    origin: tuple[float, float] | None
    chosen: np.ndarray
    rejected: np.ndarray
    loss: np.ndarray
    chosen_slope: np.ndarray
    rejected_slope: np.ndarray

    @property
    def log_push_ratio(self) -> np.ndarray:
        """``log(|dL/dx1| / |dL/dx2|)``, ``[n, n]``: above 0 the chosen probability is pushed harder.

        Since ``dL/dx = (dL/dlog x) / x``. Where one slope is 0 it is infinite, where both are it is nan.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.log(np.abs(self.chosen_slope)) - np.log(np.abs(self.rejected_slope))
        return slopes + self.rejected[:, None] - self.chosen[None, :]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain lists, for JSON; what is not finite is None."""
        arrays = {
            "log_x1": self.chosen,
            "log_x2": self.rejected,
            "loss": self.loss,
            "dloss_dlog_x1": self.chosen_slope,
            "dloss_dlog_x2": self.rejected_slope,
            "log_push_ratio": self.log_push_ratio,
        }
        return {
            "method": self.method,
            "options": dict(self.options),
            "per_token": self.per_token,
            "origin": self.origin,
            **{name: _finite(values) for name, values in arrays.items()},
        }


def gradient_field(
    method: Method,
    options: Mapping[str, Any] = MappingProxyType({}),
    *,
    extent: float = 4.0,
    points: int = 57,
    origin: Sequence[float] | None = None,
    lengths: Sequence[float] = (1.0, 1.0),
    preference: float | None = None,
) -> Field:
    """Computes the field by `jax.grad` at each point of a square grid around 0.

    Args:
      method: a paired method that needs nothing but `policy`, perhaps `reference`, and what a pair on its own has.
      options: its options; absent ones keep their defaults.
      extent: the grid goes from ``-extent`` to ``extent`` on both axes, nats (per token where the method takes means).
      points: of the grid along an axis.
      origin: log-probabilities of the chosen and the rejected completion at ``log x = 0``, nats as the method takes
        them. Needed where the loss depends on the log-probabilities themselves.
      lengths: tokens of the two completions.
      preference: the probability that the chosen completion is preferred, for a method that reads it.

    Raises:
      ConfigError: an option is wrong, or the loss cannot be written as a function of the two log-ratios.
    """
    problems = [*method.check_options(options), *_unfit(method, preference is not None)]
    if problems:
        raise ConfigError(problems)
    settings = method.resolve_options(options)
    axis = np.linspace(-extent, extent, points, dtype=np.float32)
    tokens = Pair(*(jnp.asarray(length, jnp.float32) for length in lengths))

    def loss(ratios: Float[Array, " 2"], at: Float[Array, " 2"]) -> Float[Array, ""]:
        """The loss of a batch of this one pair."""
        inputs = {
            "policy": Pair(*(at + ratios)[:, None]),
            "reference": Pair(*at[:, None]),
            "lengths": Pair(*(length[None] for length in tokens)),
            "mean_lengths": tokens,
            "example_mask": jnp.ones(1, bool),
            "preference": jnp.full(1, 1.0 if preference is None else preference),
        }
        return method.loss(inputs, settings).losses[0]

    x1, x2 = np.meshgrid(axis, axis)
    grid = jnp.asarray(np.stack([x1.ravel(), x2.ravel()], axis=1))
    start = jnp.asarray((0.0, 0.0) if origin is None else origin, jnp.float32)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(0, None)))(grid, start)
    if origin is None and not _same_elsewhere(loss, grid, values):
        raise ConfigError(
            f"method.name: the loss of {method.name} depends on the log-probabilities themselves, not only on their "
            "ratios to the reference. Say where the field shall be drawn: --origin=CHOSEN,REJECTED, the "
            "log-probabilities of the two completions at log x = 0, such as --origin="
            + ("-1,-1.2." if method.logps is Logps.MEAN else "-40,-50.")
        )
    shape = (points, points)
    return Field(
        method=method.name,
        options=settings if preference is None else {**settings, "preference": preference},
        per_token=method.logps is Logps.MEAN,
        origin=None if origin is None else (float(origin[0]), float(origin[1])),
        chosen=axis,
        rejected=axis,
        loss=np.asarray(values).reshape(shape),
        chosen_slope=np.asarray(slopes[:, 0]).reshape(shape),
        rejected_slope=np.asarray(slopes[:, 1]).reshape(shape),
    )


def _unfit(method: Method, preferred: bool) -> list[str]:
    """Why the method is no function of the plane, one line each; empty when it may be one."""
    known = ("policy", "reference", *NEUTRAL, *(("preference",) if preferred else ()))
    problems = []
    if preferred and "preference" not in method.inputs:
        problems.append(f"--preference: {method.name} reads none.")
    if method.layout is not Layout.PAIRED:
        problems.append(
            f"method.name: {method.name} learns from {method.layout.name.lower()} data ({method.layout.value}), but a "
            "gradient field needs pairs."
        )
    elif method.logps is Logps.TOKEN:
        problems.append(
            f"method.name: {method.name} sees single tokens, so its loss is no function of the two log-ratios."
        )
    elif others := [name for name in method.inputs if name not in known]:
        problems.append(
            f"method.name: {method.name} also reads {', '.join(others)}, so its loss is no function of the two "
            "log-ratios alone." + (" Fix it: --preference=0.8, say." if others == ["preference"] else "")
        )
    elif method.batch_coupled:
        problems.append(
            f"method.name: the loss of {method.name} for a pair depends on the other pairs of the batch, so it is no "
            "function of the two log-ratios alone."
        )
    return problems


def _same_elsewhere(loss: Any, grid: Float[Array, "N 2"], values: Float[Array, " N"]) -> bool:
    """Whether the loss on a part of the grid stays the same when policy and reference move together."""
    some = slice(None, None, max(1, len(grid) // 64))
    moved = jax.vmap(loss, in_axes=(0, None))(grid[some], jnp.array([-24.0, -40.0], jnp.float32))
    # Log-probabilities of 40 nats have steps of 4e-6 in float32; a loss that depends on them moves by whole nats.
    scale = float(jnp.abs(values).max()) + 1.0
    return bool(jnp.allclose(moved, values[some], rtol=1e-3, atol=1e-4 * scale))


def _finite(values: np.ndarray) -> Any:
    if values.ndim:
        return [_finite(value) for value in values]
    return round(float(values), 7) if np.isfinite(values) else None
