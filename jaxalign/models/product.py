"""A product with a weight matrix whose gradient a mesh may sum in its own way."""

from __future__ import annotations

import re
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array


class GradientSum(Protocol):
    """How a mesh sums the gradients that its parts make of a weight, each from its own rows."""

    def split(self, array: Array) -> Array:
        """An array of all tokens, ``[n, ...]``, as ``[parts, n / parts, ...]``: each part has its own."""
        ...

    def __call__(self, parts: Array, axes: tuple[str | None, ...]) -> Array:
        """The sum of ``[parts, ...]`` over the first axis, laid out as a parameter with these logical axes."""
        ...


def product(
    equation: str,
    x: Array,
    kernel: Array,
    axes: tuple[str | None, ...],
    gradient_sum: GradientSum | None,
    precision: jax.lax.Precision | None = None,
) -> Array:
    """``einsum(equation, x, kernel)`` in the arithmetic of `x`.

    Args:
      equation: of two factors; the first axis of `x` and of the result is the tokens'.
      x: activations, ``[n, ...]``.
      kernel: the weights as they are stored.
      axes: the kernel's logical axes.
      gradient_sum: how the kernel's gradient is summed over the mesh; None = as XLA sees fit.
      precision: of the products.
    """

    def plain(x: Array, kernel: Array) -> Array:
        return jnp.einsum(equation, x, kernel.astype(x.dtype), precision=precision)

    if gradient_sum is None:
        return plain(x, kernel)
    inputs, weights, outputs = re.split(",|->", equation)

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return plain(x, kernel), (x, kernel)

    def backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
        x, kernel = kept
        (of_x,) = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)
        split = gradient_sum.split
        parts = jnp.einsum(f"Z{inputs},Z{outputs}->Z{weights}", split(x), split(gradient), precision=precision)
        return of_x, gradient_sum(parts, axes).astype(kernel.dtype)

    summed = jax.custom_vjp(plain)
    summed.defvjp(forward, backward)
    return summed(x, kernel)
