"""A linear head on the final hidden states: the value of a reward model, the classes of a classifier.

Its parameters are the collection ``variables["head"]``, beside ``variables["params"]``: ``kernel [D, C]``, and for
C > 1 ``bias [C]``. One output has no bias, because preferences see differences of rewards only, and because that is
how transformers stores the two kinds (``score`` of ``*ForSequenceClassification`` and ``*ForTokenClassification``).
Parameters and arithmetic are float32 whatever the backbone's are: a reward is small beside the states it is read from.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.errors import ModelError
from jaxalign.models.config_json import checkpoint_kind
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.safetensors_files import Tensors
from jaxalign.models.weights import WEIGHTS
from jaxalign.types import Variables

SCALE = 0.02
"""Standard deviation of a fresh kernel, as transformers (and so TRL) draws it; a bias starts at 0."""

STREAM = 0x68656164
"""Folded into a model's key, so that the head's draws are none of the backbone's."""


def head_axes(outputs: int) -> dict[str, tuple[str | None, ...]]:
    """Logical axis names of a head's parameters."""
    axes: dict[str, tuple[str | None, ...]] = {"kernel": ("embed", None)}
    return axes | ({"bias": (None,)} if outputs > 1 else {})


def abstract_head(width: int, outputs: int, dtype: Any = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a head's parameters."""
    shapes = {"kernel": (width, outputs), "bias": (outputs,)}
    return {name: jax.ShapeDtypeStruct(shapes[name], jnp.dtype(dtype)) for name in head_axes(outputs)}


def init_head(rng: Array, width: int, outputs: int) -> dict[str, Array]:
    """A fresh head: the kernel normal with standard deviation `SCALE`, the bias 0.

    Args:
      rng: the model's key; the head has a stream of its own.
      width: D.
      outputs: C.
    """
    rng = jax.random.fold_in(rng, STREAM)
    values = {"kernel": SCALE * jax.random.normal(rng, (width, outputs), jnp.float32), "bias": jnp.zeros(outputs)}
    return {name: values[name] for name in head_axes(outputs)}


def apply_head(variables: Variables, states: Float[Array, "... D"]) -> Float[Array, "... C"]:
    """The head's outputs at each state, float32.

    Args:
      variables: with the collection ``"head"``.
      states: hidden states after the final norm.
    """
    head = {name: value.astype(jnp.float32) for name, value in variables["head"].items()}
    outputs = jnp.einsum(
        "...d,dc->...c", states.astype(jnp.float32), head["kernel"], precision=jax.lax.Precision.HIGHEST
    )
    return outputs + head["bias"] if "bias" in head else outputs


def read_head(tensors: Tensors, config: DecoderConfig) -> int:
    """How many outputs the head of a folder has; 0 when it holds a causal language model.

    Raises:
      ModelError: a classifier without its head, or one of another form than those above.
    """
    kind = checkpoint_kind(config)
    if kind == "causal_lm":
        return 0
    kernel, bias = WEIGHTS["score/kernel"].name, WEIGHTS["score/bias"].name
    name = config.source.config["architectures"][0]
    if kernel not in tensors:
        raise ModelError(f"{tensors.folder}: tensor {kernel!r} is missing, which architecture {name!r} needs.")
    outputs = tensors.shape(kernel)[0]
    if kind == "sequence_classification" and outputs != 1:
        raise ModelError(
            f"{tensors.folder}: {name} with {outputs} labels is not modelled, expected a reward model: 1 label."
        )
    if kind == "token_classification" and (outputs < 2 or bias not in tensors):
        has = "" if bias in tensors else " without a bias"
        raise ModelError(
            f"{tensors.folder}: {name} with {outputs} label(s){has} is not modelled, expected 2 or more and {bias!r}."
        )
    return outputs
