"""The Linen layers of the decoder: projections, norms, embedding, gated MLP, and rotary positions.

Parameters have their meaningful shapes (``[D, H, C]``, not ``[D, H*C]``) and carry logical axis names in a box that
`policy.py` takes off. Arithmetic runs in `dtype`; norms and rotations in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxalign.models.adapters import COLLECTION, Adapter, factor_axes, factor_shapes, low_rank
from jaxalign.models.decoder_config import RopeScaling
from jaxalign.models.product import Axes, Torus, product
from jaxalign.models.quantization import is_quantized, quantized_product


class Named(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
    """A parameter with the logical names of its axes.

    Linen's own boxes apply sharding constraints when they are opened under a mesh; this one only remembers names.
    """

    value: Any
    names: Axes = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """The array."""
        return self.value

    def replace_boxed(self, val: Any) -> Named:
        """The same names around another array."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Named:
        """The names after stacking along a new axis."""
        names = list(self.names)
        names.insert(index, params[nn.meta.PARTITION_NAME])
        return self.replace(names=tuple(names))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Named:
        """The names of one slice along an axis."""
        names = list(self.names)
        del names[index]
        return self.replace(names=tuple(names))


def named(init: Callable[..., Array], names: Axes) -> Callable[..., Any]:
    """The initializer `init` whose result carries `names`."""
    return lambda key, shape, dtype: Named(init(key, shape, dtype), names)


def fan_in(inputs: int, scale: float = 1.0) -> Callable[..., Array]:
    """Truncated normal of standard deviation ``scale / sqrt(inputs)``."""
    return nn.initializers.truncated_normal(scale / math.sqrt(inputs) / 0.87962566103423978)


def exact(dtype: Any) -> jax.lax.Precision | None:
    """Matrix products of float32 inputs are done in float32, also where the hardware would take fewer bits."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def cheap(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function whose backward pass computes it again from its inputs: to keep what it makes would cost more."""
    return jax.checkpoint(function, prevent_cse=False)


class Projection(nn.Module):
    """``einsum(equation, x, kernel) + bias`` of every token n, plus the low-rank product of an adapter if it has one.

    The one place where a weight matrix of a block meets activations, and so the one place for adapters.
    """

    equation: str
    shape: tuple[int, ...]
    axes: Axes
    inputs: int
    bias_axes: int = 0
    """How many trailing axes of the kernel the bias has; 0 = no bias."""
    scale: float = 1.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    adapter: Adapter | None = None
    torus: Torus | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "R T ..."]) -> Float[Array, "R T ..."]:
        """The projection of `x`."""
        # Rows and tokens as one axis: the weights' gradient then sums over one axis, and XLA's CPU backend copies
        # neither factor into another order for it.
        leading, x = x.shape[:2], x.reshape(-1, *x.shape[2:])
        y = self._of_tokens(x)
        return y.reshape(*leading, *y.shape[1:])

    def _of_tokens(self, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        kernel = self.param("kernel", named(fan_in(self.inputs, self.scale), self.axes), self.shape, self.param_dtype)
        if is_quantized(kernel):
            y = quantized_product(self.equation, x, kernel)
        else:
            y = product(
                self.equation,
                x.astype(self.dtype),
                kernel,
                self.axes,
                torus=self.torus,
                trained=self.adapter is None,
                precision=exact(self.dtype),
            )
        if self.bias_axes:
            shape, axes = self.shape[-self.bias_axes :], self.axes[-self.bias_axes :]
            bias = self.param("bias", named(nn.initializers.zeros, axes), shape, self.param_dtype)
            y = y + bias.astype(self.dtype)
        adapter, factors = self.adapter, self._factors()
        if adapter is not None and factors is not None:
            y = y + low_rank(self.equation, x, *factors, adapter.scale, exact(self.dtype))
        return y

    def _factors(self) -> tuple[Array, Array] | None:
        """The adapter's factors, made where variables are made; None where the variables have none: the base."""
        if self.adapter is None:
            return None
        made = self.is_mutable_collection(COLLECTION) and self.adapter.adapts("/".join(self.path))
        if not (made or self.has_variable(COLLECTION, "a")):
            return None
        shapes = factor_shapes(self.equation, self.shape, self.adapter.rank)
        axes = factor_axes(self.equation, self.axes)

        def factor(name: str, shape: tuple[int, ...], names: Axes) -> Array:
            # Only their shapes and names are used: `init_adapter` draws the values.
            made: Any = self.variable(COLLECTION, name, lambda: Named(jnp.zeros(shape, jnp.float32), names))
            return made.value

        return factor("a", shapes[0], axes[0]), factor("b", shapes[1], axes[1])


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over the last axis, in float32 (Zhang and Sennrich, 2019)."""

    epsilon: float
    axis: str | None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`x` normalised."""
        scale = self.param("scale", named(nn.initializers.ones, (self.axis,)), (x.shape[-1],), self.param_dtype)

        @cheap
        def normed(x: Array, scale: Array) -> Array:
            x = x.astype(jnp.float32)
            x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
            return (x * scale.astype(jnp.float32)).astype(self.dtype)

        return normed(x, scale)


class Embed(nn.Module):
    """Rows of a table by token id."""

    vocab_size: int
    width: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        """The tokens' rows."""
        init = named(nn.initializers.normal(0.02), ("vocab", "embed"))
        table = self.param("embedding", init, (self.vocab_size, self.width), self.param_dtype)
        return jnp.take(table, tokens, axis=0).astype(self.dtype)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class GatedMLP(nn.Module):
    """``down(activation(gate(x)) * up(x))`` (Shazeer, 2020)."""

    width: int
    mlp_width: int
    activation: str
    bias: bool
    output_scale: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    adapter: Adapter | None = None
    torus: Torus | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        """What the MLP adds."""
        common = {
            "bias_axes": int(self.bias),
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "adapter": self.adapter,
            "torus": self.torus,
        }
        wide = {"equation": "nd,df->nf", "shape": (self.width, self.mlp_width), "axes": ("embed", "mlp")}
        gate = Projection(**wide, inputs=self.width, name="gate", **common)(x)
        up = Projection(**wide, inputs=self.width, name="up", **common)(x)
        return Projection(
            equation="nf,fd->nd",
            shape=(self.mlp_width, self.width),
            axes=("mlp", "embed"),
            inputs=self.mlp_width,
            scale=self.output_scale,
            name="down",
            **common,
        )(cheap(lambda gate, up: ACTIVATION_FUNCTIONS[self.activation](gate) * up)(gate, up))


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Radians that each pair of a head turns per position, ``[C/2]`` float32 (Su et al., 2021)."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None and scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling is not None and scaling.kind == "llama3":
        # Turns over the original context: few turns are stretched, many are kept, between the two a linear mix.
        turns = scaling.original_positions * frequencies / (2 * np.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / scaling.factor
    return frequencies.astype(np.float32)


def rope_angles(positions: Int[Array, "R T"], frequencies: np.ndarray) -> tuple[Array, Array]:
    """Cosines and sines, each ``[R, T, 1, C/2]`` float32."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "R T H C"], angles: tuple[Array, Array]) -> Float[Array, "R T H C"]:
    """Turn the pairs ``(i, i + C/2)`` of every head by the angles, in float32."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
