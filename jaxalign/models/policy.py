"""A policy: pure functions over a dict of arrays. Flax stops here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.models.adapters import COLLECTION, Adapter, init_adapter
from jaxalign.models.attention import Cache, ranges_of
from jaxalign.models.attention_forms import attention_form
from jaxalign.models.decoder import REMAT_POLICIES, Decoder, Settings
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.heads import abstract_head, apply_head, head_axes, init_head
from jaxalign.models.layers import Named, exact
from jaxalign.models.product import Axes, Torus
from jaxalign.types import Rows, Variables, causal_rows

Constrain = Callable[[Array, Axes], Array]
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, eq=False)
class Policy:
    """A language model as pure functions; compared and hashed by identity, so it can be a static argument of jit.

    Attributes:
      config: the architecture.
      dtype: of the arithmetic.
      param_dtype: of the parameters in `init` and `abstract`.
      hidden: ``(variables, rows) -> [R, T, D]``, states after the final norm, in `dtype`.
      head: ``(variables) -> [D, V]``, the output matrix, in `dtype`.
      logits: ``(variables, tokens [N, T]) -> [N, T, V]`` float32, for tests and small models.
      init: ``(rng) -> variables``, random.
      abstract: ``() ->`` the same tree of `jax.ShapeDtypeStruct`.
      axes: ``() ->`` the same tree of tuples of logical axis names.
      prefill: ``(variables, tokens [N, P] padded right, lengths [N], cache_length) -> (logits [N, V] float32 of the
        last token of each, cache)``; `cache_length` >= P is static.
      decode: ``(variables, cache, tokens [N], positions [N]) -> (logits [N, V] float32, cache)``: `tokens` stand at
        `positions`, and the cache holds everything before.
      soft_cap: of the final logits (see `DecoderConfig`), which users of `hidden` and `head` must apply.
      outputs: ``(variables, states [..., D]) -> [..., C]`` float32, the linear head of a reward model or classifier
        (`jaxalign.models.heads`) on results of `hidden`; its parameters are ``variables["head"]``. None without one.
      head_outputs: C, 0 without such a head.
      language_head: False for a model that has such a head only: then `head`, `logits`, `prefill` and `decode` raise
        `ModelError`.
      adapter: the low-rank adapters whose factors are ``variables["lora"]`` (`jaxalign.models.adapters`). All
        functions also take variables without them: they are then those of the base model. None without any.
    """

    config: DecoderConfig
    dtype: Any
    param_dtype: Any
    hidden: Callable[[Variables, Rows], Array]
    head: Callable[[Variables], Array]
    logits: Callable[[Variables, Array], Array]
    init: Callable[[Array], dict[str, Any]]
    abstract: Callable[[], dict[str, Any]]
    axes: Callable[[], dict[str, Any]]
    prefill: Callable[[Variables, Array, Array, int], tuple[Array, Cache]]
    decode: Callable[[Variables, Cache, Array, Array], tuple[Array, Cache]]
    soft_cap: float | None = None
    outputs: Callable[[Variables, Array], Array] | None = None
    head_outputs: int = 0
    language_head: bool = True
    adapter: Adapter | None = None


def identity(array: Array, axes: Axes) -> Array:
    """The constraint of a model on one device."""
    del axes
    return array


def build_policy(
    config: DecoderConfig,
    *,
    dtype: str = "bfloat16",
    param_dtype: str = "float32",
    constrain: Constrain = identity,
    remat: str = "none",
    attention: str = "auto",
    head_outputs: int = 0,
    language_head: bool = True,
    adapter: Adapter | None = None,
    torus: Torus | None = None,
) -> Policy:
    """The policy of an architecture.

    Args:
      config: the architecture.
      dtype: of the arithmetic; norms, rotations, softmax and logits are float32 whatever it is.
      param_dtype: of the parameters.
      constrain: ``(array, logical axes) -> array``, applied to the activations after the embedding and every block.
      remat: what blocks keep for the backward pass: ``"none"`` everything, ``"dots"`` the projections' results,
        ``"full"`` nothing but their input.
      attention: ``"auto"``, ``"dense"``, ``"chunked"`` or ``"kernel"``, see `jaxalign.models.attention_forms`.
      head_outputs: outputs of a linear head on the hidden states, 0 = none. It is float32, whatever `param_dtype`.
      language_head: whether it is a language model, with or without that head. A reward model is none, and has no
        output matrix to store and to train.
      adapter: low-rank adapters beside the blocks' projections; None = none.
      torus: how the blocks' weights and their gradients are moved between devices; None = as XLA sees fit.

    Raises:
      ModelError: an unknown name, or a model without any head; all at once.
    """
    problems = []
    for name, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        if value not in DTYPES:
            problems.append(f"{name} is {value!r}, expected one of {DTYPES}.{did_you_mean(str(value), DTYPES)}")
    known = ("none", *REMAT_POLICIES)
    if remat not in known:
        problems.append(f"remat is {remat!r}, expected one of {known}.{did_you_mean(str(remat), known)}")
    if head_outputs < 0 or not (language_head or head_outputs):
        problems.append(f"head_outputs is {head_outputs}, expected >= {0 if language_head else 1}.")
    if problems:
        raise ModelError(problems)

    compute, stored = jnp.dtype(dtype), jnp.dtype(param_dtype)
    settings = Settings(compute, stored, attention_form(attention), constrain, remat, adapter, torus)
    module = Decoder(config, settings, language_head)

    def run(variables: Variables, *args: Any, **kwargs: Any) -> Any:
        return module.apply(cast(Any, variables), *args, **kwargs)

    def hidden(variables: Variables, rows: Rows) -> Float[Array, "R T D"]:
        return run(variables, rows.tokens, rows.positions, ranges_of(rows))[0]

    def head(variables: Variables) -> Float[Array, "D V"]:
        if not language_head:
            raise ModelError(
                f"the {config.family} model has a head of {head_outputs} output(s) and none of a language model: it "
                "rates text and can neither generate nor score it. Give the folder of a causal language model."
            )
        params = variables["params"]
        if config.tied_embeddings:
            return params["embed"]["embedding"].astype(compute).T
        return params["head"]["kernel"].astype(compute)

    def project(variables: Variables, states: Float[Array, "... D"]) -> Float[Array, "... V"]:
        logits = jnp.einsum(
            "...d,dv->...v", states, head(variables), precision=exact(compute), preferred_element_type=jnp.float32
        )
        return logits if config.soft_cap is None else config.soft_cap * jnp.tanh(logits / config.soft_cap)

    def logits(variables: Variables, tokens: Int[Array, "N T"]) -> Float[Array, "N T V"]:
        return project(variables, hidden(variables, causal_rows(tokens)))

    def init(rng: Array) -> dict[str, Any]:
        variables = jax.tree.map(Named.unbox, _boxed(module, rng), is_leaf=_is_box)
        if adapter is not None:
            variables |= {COLLECTION: init_adapter(rng, abstract()[COLLECTION])}
        return variables | ({"head": init_head(rng, config.width, head_outputs)} if head_outputs else {})

    shapes = functools.partial(_shapes, config, stored, language_head, adapter)

    def abstract() -> dict[str, Any]:
        variables = jax.tree.map(Named.unbox, shapes(), is_leaf=_is_box)
        return variables | ({"head": abstract_head(config.width, head_outputs)} if head_outputs else {})

    def axes() -> dict[str, Any]:
        names = jax.tree.map(lambda box: box.names, shapes(), is_leaf=_is_box)
        return names | ({"head": head_axes(head_outputs)} if head_outputs else {})

    def prefill(
        variables: Variables, tokens: Int[Array, "N P"], lengths: Int[Array, " N"], cache_length: int
    ) -> tuple[Float[Array, "N V"], Cache]:
        rows = causal_rows(tokens)
        states, _, kept = run(variables, rows.tokens, rows.positions, ranges_of(rows), keep=True)
        # Padding on the right leaves rubbish in the slots after a prompt. Its own tokens overwrite it, slot by slot,
        # before any query may see it.
        room = [(0, 0), (0, 0), (0, cache_length - tokens.shape[1]), (0, 0), (0, 0)]
        last = jnp.take_along_axis(states, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return project(variables, last), Cache(*(jnp.pad(x, room) for x in kept))

    def decode(
        variables: Variables, cache: Cache, tokens: Int[Array, " N"], positions: Int[Array, " N"]
    ) -> tuple[Float[Array, "N V"], Cache]:
        states, cache, _ = run(variables, tokens[:, None], positions[:, None], cache=cache)
        return project(variables, states[:, 0]), cache

    # Compiled, so that a call outside of jit does not trace and compile the scan anew; inside of jit it is inlined.
    return Policy(
        config=config,
        dtype=compute,
        param_dtype=stored,
        hidden=jax.jit(hidden),
        head=head,
        logits=jax.jit(logits),
        init=jax.jit(init),
        abstract=abstract,
        axes=axes,
        prefill=jax.jit(prefill, static_argnames="cache_length"),
        decode=jax.jit(decode),
        soft_cap=config.soft_cap,
        outputs=jax.jit(apply_head) if head_outputs else None,
        head_outputs=head_outputs,
        language_head=language_head,
        adapter=adapter,
    )


def _boxed(module: Decoder, rng: Array) -> Any:
    rows = causal_rows(jnp.zeros((1, 1), jnp.int32))
    return module.init(rng, rows.tokens, rows.positions, ranges_of(rows))


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, Named)


@functools.lru_cache(maxsize=64)  # all policies of an architecture share one trace; the trees handed out are made anew
def _shapes(config: DecoderConfig, stored: jnp.dtype, language_head: bool, adapter: Adapter | None) -> Any:
    settings = Settings(stored, stored, attention_form("auto"), identity, "none", adapter)
    return jax.eval_shape(lambda: _boxed(Decoder(config, settings, language_head), jax.random.key(0)))
