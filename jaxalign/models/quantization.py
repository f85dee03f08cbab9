"""Frozen weights in int8 (qwix): a quarter of float32's memory, half of bfloat16's, and int8 matrix products.

Each kernel of the blocks' projections is kept as int8 with one float32 scale for each output, ``max |w| / 127.5`` over
the inputs. Activations are quantised as they come, one scale for each token, so the product itself is int8 x int8
summed in int32, for which accelerators have the double rate of bfloat16. Embedding, norms, biases, the output head,
attention and all sums stay as they are.

It is for weights that are only read: rounding has no useful gradient. qwix is the optional extra ``quantization``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.errors import ModelError
from jaxalign.models.weights import PROJECTIONS, WEIGHTS, groups
from jaxalign.types import Variables


def load_qwix() -> Any:
    """The library.

    Raises:
      ModelError: it is not installed, or cannot be imported with this jax and flax.
    """
    try:
        import qwix
    except ModuleNotFoundError as error:
        if error.name != "qwix":
            raise _unusable(error) from error
        raise ModelError(
            "int8 weights need qwix, which is not installed: pip install 'jaxalign[quantization]'."
        ) from None
    except (ImportError, AttributeError) as error:
        raise _unusable(error) from error
    return qwix


def _unusable(error: Exception) -> ModelError:
    return ModelError(
        f"int8 weights need qwix, which cannot be imported here ({type(error).__name__}: {error}). It imports "
        "flax.nnx; jax 0.12 needs flax 0.12.12 or newer for that."
    )


def quantize(variables: Variables) -> dict[str, Any]:
    """The variables with the kernels of the projections in int8, all of them new arrays.

    Shardings stay; the scales' input axes, of size 1, are on every device.

    Args:
      variables: of any policy. Adapters and heads stay as they are.

    Raises:
      ModelError: qwix cannot be used.
    """
    qwix = load_qwix()

    def one(path, leaf):
        name = "/".join(key.key for key in path)
        if not name.endswith("/kernel") or (projection := name.removesuffix("/kernel")) not in PROJECTIONS:
            return leaf
        inputs = len(groups(WEIGHTS[f"{projection}/kernel"].theirs)[-1])
        # The axes: layers, inputs, outputs.
        outputs = (0, *range(1 + inputs, leaf.ndim))
        return qwix.quantize(leaf, jnp.int8, channelwise_axes=outputs, scale_dtype=jnp.float32)

    @jax.jit
    def all_of(variables):
        return {**variables, "params": jax.tree.map_with_path(one, variables["params"])}

    return all_of(dict(variables))


def is_quantized(kernel: Any) -> bool:
    """Whether a kernel is one that `quantize` made."""
    return hasattr(kernel, "qvalue")


def quantized_product(equation: str, x: Array, kernel: Any) -> Array:
    """``einsum(equation, x, kernel)`` in int8, in the type of `x`.

    Args:
      equation: the projection's; the leading axes of `x` that it keeps are tokens.
      x: activations.
      kernel: of `quantize`, one layer's.
    """
    qwix = load_qwix()
    inputs, _, outputs = equation.replace("->", ",").split(",")
    tokens = tuple(index for index, letter in enumerate(inputs) if letter in outputs)
    narrow = qwix.quantize(x, jnp.int8, channelwise_axes=tokens, scale_dtype=jnp.float32)
    return qwix.einsum(equation, narrow, kernel).astype(x.dtype)
