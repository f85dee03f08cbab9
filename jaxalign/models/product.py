"""A product with a weight matrix, which a mesh may gather and whose gradient it may sum in its own way."""

from __future__ import annotations

import re
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

Axes = tuple[str | None, ...]


class Torus(Protocol):
    """How a mesh moves weights and their gradients along its links (`jaxalign.training.torus`)."""

    def gather(self, weight: Array, axes: Axes) -> Array:
        """A weight with these logical axes, whole along the axis that is split over the devices with other rows."""
        ...

    def split(self, array: Array) -> Array:
        """An array of all tokens, ``[n, ...]``, as ``[parts, n / parts, ...]``: each part has its own rows."""
        ...

    def scatter(self, parts: Array, axes: Axes) -> Array:
        """The sum of ``[parts, ...]`` over the first axis, laid out as a parameter with these logical axes."""
        ...


def product(
    equation: str,
    x: Array,
    kernel: Array,
    axes: Axes,
    *,
    torus: Torus | None,
    trained: bool = True,
    precision: jax.lax.Precision | None = None,
) -> Array:
    """``einsum(equation, x, kernel)`` in the arithmetic of `x`.

    Args:
      equation: of two factors; the first axis of `x` and of the result is the tokens'.
      x: activations, ``[n, ...]``.
      kernel: the weights as they are stored.
      axes: the kernel's logical axes.
      torus: how the weights and their gradient are moved; None = as XLA sees fit.
      trained: whether anything asks for the kernel's gradient; else it is 0.
      precision: of the products.
    """

    def plain(x: Array, kernel: Array) -> Array:
        kernel = kernel.astype(x.dtype)
        kernel = kernel if torus is None else torus.gather(kernel, axes)
        return jnp.einsum(equation, x, kernel, precision=precision)

    if torus is None:
        return plain(x, kernel)
    inputs, weights, outputs = re.split(",|->", equation)

    # The kernel is kept as it is stored: gathered, the kernels of all layers would be whole on each device.
    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return plain(x, kernel), (x, kernel)

    def backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
        x, kernel = kept
        (of_x,) = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)
        if not trained:
            return of_x, jnp.zeros_like(kernel)
        mine, theirs = torus.split(x), torus.split(gradient)
        parts = jnp.einsum(f"Z{inputs},Z{outputs}->Z{weights}", mine, theirs, precision=precision)
        return of_x, torus.scatter(parts, axes).astype(kernel.dtype)

    moved = jax.custom_vjp(plain)
    moved.defvjp(forward, backward)
    return moved(x, kernel)
