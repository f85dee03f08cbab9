"""Attention over the row layout by a kernel: a query sees two ranges of keys, and blocks in neither are not visited.

`jaxalign.models.attention` is the definition. A kernel of our own exists because no kept one takes these ranges: splash
attention (jax, tokamax) wants its mask at trace time or as a ``[T, T]`` array, and the segment ids of the flash kernels
neither skip blocks nor let a completion see a prompt that other completions see too. Their speed beside this kernel's
is not measured; `benchmarks/attention.py` measures it where there is a TPU.

A platform is a module with two functions; ``lse`` is the log-sum-exp of the scores, ``[R, H, T]`` float32::

    forward(query, key, value, spans, *, scale, soft_cap, interpret) -> (out, lse)
    backward(query, key, value, out, lse, dout, spans, *, scale, soft_cap, interpret) -> (dquery, dkey, dvalue)
"""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.kernels.spans import Spans
from jaxalign.mesh_axes import dividing, parts

MODULES = {"tpu": "jaxalign.kernels.tree_attention_tpu", "gpu": "jaxalign.kernels.tree_attention_gpu"}
SAVED = "tree_attention"
"""The name of output and log-sum-exp under `jax.checkpoint`: a policy can save them."""


class _Options(NamedTuple):
    scale: float
    soft_cap: float | None
    interpret: bool
    platform: str
    blocks: tuple[tuple[str, Any], ...]

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(MODULES[self.platform])

    @property
    def keywords(self) -> dict[str, Any]:
        return {"scale": self.scale, "soft_cap": self.soft_cap, "interpret": self.interpret, **dict(self.blocks)}


@functools.partial(jax.jit, static_argnums=(4,))
def _out_and_lse(query: Array, key: Array, value: Array, spans: Spans, options: _Options) -> tuple[Array, Array]:
    """Jitted, since `jax.checkpoint` drops no bare `pallas_call` that it need not repeat, but drops a call of it."""
    return options.module.forward(query, key, value, spans, **options.keywords)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(query: Array, key: Array, value: Array, spans: Spans, options: _Options) -> Array:
    return _out_and_lse(query, key, value, spans, options)[0]


def _forward(query: Array, key: Array, value: Array, spans: Spans, options: _Options):
    out, lse = _out_and_lse(query, key, value, spans, options)
    out, lse = checkpoint_name(out, SAVED), checkpoint_name(lse, SAVED)
    return out, (query, key, value, spans, out, lse)


def _backward(options: _Options, residuals, dout: Array):
    query, key, value, spans, out, lse = residuals
    grads = options.module.backward(query, key, value, out, lse, dout, spans, **options.keywords)
    return (*grads, None)


_attention.defvjp(_forward, _backward)


def tree_attention(
    query: Float[Array, "R T H C"],
    key: Float[Array, "R T G C"],
    value: Float[Array, "R T G C"],
    spans: Spans,
    *,
    scale: float,
    soft_cap: float | None = None,
    interpret: bool = False,
    platform: str | None = None,
    **blocks: Any,
) -> Float[Array, "R T H C"]:
    """Softmax attention of every query over the keys that its spans name; differentiable in query, key and value.

    Scores and softmax are float32; products are float32 for float32 inputs. Head ``h`` reads key/value head
    ``h // (H/G)``. No array grows with the square of T.

    Args:
      query: bfloat16 or float32, as `key` and `value`.
      key: G divides H.
      value: like `key`.
      spans: what each token sees; every token must see itself, as it does in `jaxalign.types.Rows`.
      scale: the factor of the scores, usually ``C ** -0.5``.
      soft_cap: c of ``c * tanh(score / c)``, applied to scaled scores (Gemma 2, arXiv:2408.00118, section 2).
      interpret: run the kernel as plain XLA, for tests on a CPU.
      platform: "tpu", "gpu", or "interpret" (the TPU's kernel, interpreted); None is the default backend. Name it when
        compiling ahead of time for a device that is not at hand.
      blocks: block sizes, under the names of the platform's module.

    Raises:
      ModelError: shapes that do not fit, or a platform without a kernel.
    """
    if query.ndim != 4 or key.shape != value.shape or key.ndim != 4 or query.shape[2] % key.shape[2]:
        raise ModelError(
            f"Attention got query {query.shape}, key {key.shape}, value {value.shape}; expected [R, T, H, C] and twice"
            " [R, T, G, C] with H a multiple of G."
        )
    if platform is None:
        platform = jax.default_backend()
    if platform == "interpret":
        platform, interpret = "tpu", True
    if platform not in MODULES:
        known = (*MODULES, "interpret")
        raise ModelError(
            f"There is no attention kernel for {platform!r}, expected one of {known}.{did_you_mean(platform, known)}"
        )
    options = _Options(
        float(scale), None if soft_cap is None else float(soft_cap), interpret, platform, tuple(sorted(blocks.items()))
    )
    return _attention(query, key, value, spans, options)


def sharded(
    query: Float[Array, "R T H C"],
    key: Float[Array, "R T G C"],
    value: Float[Array, "R T G C"],
    spans: Spans,
    *,
    mesh: Mesh | AbstractMesh | None = None,
    row_axes: tuple[str, ...] = ("data", "fsdp"),
    head_axes: tuple[str, ...] = ("tensor",),
    **options: Any,
) -> Float[Array, "R T H C"]:
    """`tree_attention` on every device's own rows and heads: XLA cannot divide a kernel, and would gather its inputs.

    Where the devices along the heads do not divide the key heads, these are repeated until they do: every device
    computes its own query heads and no others.

    Args:
      query: as in `tree_attention`.
      key: as there.
      value: as there.
      spans: as there.
      mesh: the mesh; None is that of `jax.set_mesh`. Without one, or inside `jax.shard_map`, the kernel runs as it is.
      row_axes: axes over which rows are divided, as far as their sizes divide R.
      head_axes: axes over which heads are divided, as far as their sizes divide H; along an axis that does not, every
        device computes the same heads.
      options: those of `tree_attention`.
    """
    if mesh is None:
        mesh = jax.sharding.get_abstract_mesh()
    attend = functools.partial(tree_attention, **options)
    if mesh.empty or mesh.size == 1 or (isinstance(mesh, AbstractMesh) and mesh.manual_axes):
        return attend(query, key, value, spans)
    rows, heads = dividing(mesh, row_axes, query.shape[0]), dividing(mesh, head_axes, query.shape[2])
    copies = parts(mesh, heads) // math.gcd(parts(mesh, heads), key.shape[2])
    if copies > 1:
        key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
    whole, ranges = PartitionSpec(rows or None, None, heads or None, None), PartitionSpec(rows or None, None)
    local = jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(whole, whole, whole, ranges),
        out_specs=whole,
        check_vma=False,
    )
    return local(query, key, value, spans)
