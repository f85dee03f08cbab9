"""The smallest language model that is a `Policy`: the next token from this token and its position.

It compiles in a fraction of a decoder's time, so that what surrounds a policy can be tested for every method. What the
decoder does inside a row is tested with the decoder.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.heads import abstract_head, apply_head, head_axes, init_head
from jaxalign.models.policy import Policy
from jaxalign.types import causal_rows

POSITIONS = 64


def bigram_policy(config: DecoderConfig, *, head_outputs: int = 0, constrain=lambda array, axes: array) -> Policy:
    """A policy of this configuration's vocabulary and width, float32."""
    shapes = {
        "embed": ((config.vocab_size, config.width), ("vocab", "embed")),
        "position": ((POSITIONS, config.width), (None, "embed")),
        "mix": ((config.width, config.width), ("embed", "mlp")),
        "out": ((config.width, config.vocab_size), ("embed", "vocab")),
    }

    def init(rng):
        keys = jax.random.split(rng, len(shapes))
        params = {
            name: jax.random.normal(key, shape) / (1.0 if name == "position" else shape[0] ** 0.25)
            for key, (name, (shape, _)) in zip(keys, shapes.items(), strict=True)
        }
        return {"params": params} | ({"head": init_head(rng, config.width, head_outputs)} if head_outputs else {})

    def abstract():
        params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, (shape, _) in shapes.items()}
        return {"params": params} | ({"head": abstract_head(config.width, head_outputs)} if head_outputs else {})

    def axes():
        names = {name: named for name, (_, named) in shapes.items()}
        return {"params": names} | ({"head": head_axes(head_outputs)} if head_outputs else {})

    def hidden(variables, rows):
        params = variables["params"]
        states = constrain(params["embed"][rows.tokens], ("batch", "length", "embed"))
        states = states + params["position"][jnp.minimum(rows.positions, POSITIONS - 1)]
        states = jnp.tanh(jnp.einsum("rtd,de->rte", states, params["mix"], precision=jax.lax.Precision.HIGHEST))
        return constrain(states, ("batch", "length", "embed"))

    def head(variables):
        return variables["params"]["out"]

    def logits(variables, tokens):
        states = hidden(variables, causal_rows(tokens))
        return jnp.einsum("rtd,dv->rtv", states, head(variables), precision=jax.lax.Precision.HIGHEST)

    def no_sampling(*arguments: Any) -> Any:
        raise NotImplementedError("a bigram model is not sampled from here")

    return Policy(
        config=config,
        dtype=jnp.dtype("float32"),
        param_dtype=jnp.dtype("float32"),
        hidden=hidden,
        head=head,
        logits=logits,
        init=jax.jit(init),
        abstract=abstract,
        axes=axes,
        prefill=no_sampling,
        decode=no_sampling,
        outputs=apply_head if head_outputs else None,
        head_outputs=head_outputs,
    )


def log_probabilities(variables: Any, tokens: Any) -> np.ndarray:
    """The same model once more, one sequence in float64 NumPy: of every next token, ``[T, V]``, nats."""
    params = {name: np.asarray(value, np.float64) for name, value in variables["params"].items()}
    positions = np.minimum(np.arange(len(tokens)), POSITIONS - 1)
    logits = np.tanh((params["embed"][tokens] + params["position"][positions]) @ params["mix"]) @ params["out"]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
