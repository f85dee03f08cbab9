"""Low-rank adapters: small trained matrices beside frozen ones (LoRA, Hu et al. 2021, arXiv 2106.09685).

They are a collection of their own, ``variables["lora"]``, with the tree of the projections that they adapt::

    variables["lora"]["layers"]["attention"]["query"] = {"a": [L, D, A], "b": [L, A, H, C]}

A projection with an adapter computes ``x W + scale * (x A) B``; without that entry it computes ``x W``. So the same
functions on the variables without the collection are the base model, and the base *is* the reference, at no memory.
``W + scale * A B`` is formed when a model is written, never in training.

A adapts the inputs (letters of the kernel that are contracted), B the outputs. ``B = 0`` at the start: the adapted
model equals its base bit for bit. Both are float32 whatever the base is stored in.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.models.weights import PROJECTIONS, WEIGHTS
from jaxalign.types import Variables

COLLECTION = "lora"
STREAM = 0x6C6F7261
"""Folded into a model's key, so that the adapters' draws are none of the base's."""
RANK_LETTER = "a"
"""In einsum equations; the projections' own letters do not use it."""


@dataclass(frozen=True)
class Adapter:
    """Which projections are adapted, and how.

    Attributes:
      rank: A, columns of the first factor and rows of the second.
      alpha: numerator of the scale.
      targets: regular expression searched for in the paths of the projections (``layers/attention/query``).
      rslora: divide alpha by the root of the rank, not by the rank (Kalajdzievski 2023, arXiv 2312.03732).

    Raises:
      ModelError: a rank below 1, or targets that no projection has.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = ".*"
    rslora: bool = False

    def __post_init__(self):
        problems = check_targets(self.targets, "adapter: targets")
        if self.rank < 1:
            problems.append(f"adapter: rank is {self.rank}, expected at least 1.")
        if problems:
            raise ModelError(problems)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def adapts(self, path: str) -> bool:
        """Whether the projection at this path gets factors."""
        return re.search(self.targets, path) is not None


def check_targets(targets: str, where: str = "targets") -> list[str]:
    """What is wrong with a regular expression of projections; empty when it is one and finds some."""
    try:
        found = [path for path in PROJECTIONS if re.search(targets, path)]
    except re.error as error:
        return [f"{where}: got {targets!r}, expected a regular expression ({error})."]
    if found:
        return []
    theirs = {WEIGHTS[f"{path}/kernel"].name.split(".")[-2]: path for path in PROJECTIONS}
    meant = [path for name, path in theirs.items() if name in targets]
    short = [path.removeprefix("layers/") for path in meant]
    hint = f" Did you mean {'|'.join(short)!r}?" if short else did_you_mean(targets, PROJECTIONS)
    return [
        f"{where}: got {targets!r}, which is found in none of the projections: {', '.join(PROJECTIONS)}.{hint}",
    ]


def factor_shapes(equation: str, shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B for a projection's equation and its kernel's shape."""
    contracted = _contracted(equation)
    return (*shape[:contracted], rank), (rank, *shape[contracted:])


def factor_axes(equation: str, axes: tuple[str | None, ...]) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Logical axis names of A and B: the kernel's, and none for the rank, which is on every device."""
    contracted = _contracted(equation)
    return (*axes[:contracted], None), (None, *axes[contracted:])


def low_rank(
    equation: str, x: Array, a: Array, b: Array, scale: float, precision: jax.lax.Precision | None = None
) -> Array:
    """``scale * (x A) B`` in the arithmetic of `x`; no array is as large as the kernel.

    Args:
      equation: the projection's.
      x: activations.
      a: first factor.
      b: second factor.
      scale: of `Adapter`.
      precision: of the products.
    """
    inputs, kernel, outputs = re.split(",|->", equation)
    contracted, kept = kernel[: _contracted(equation)], kernel[_contracted(equation) :]
    between = "".join(letter for letter in inputs if letter not in contracted) + RANK_LETTER
    narrow = jnp.einsum(f"{inputs},{contracted}{RANK_LETTER}->{between}", x, a.astype(x.dtype), precision=precision)
    wide = f"{between},{RANK_LETTER}{kept}->{outputs}"
    return jnp.einsum(wide, narrow * scale, b.astype(x.dtype), precision=precision)


def _contracted(equation: str) -> int:
    """How many leading axes of the kernel are summed over."""
    inputs, kernel, _ = re.split(",|->", equation)
    return sum(letter in inputs for letter in kernel)


def init_adapter(rng: Array, abstract: Any) -> Any:
    """Fresh factors: A uniform within ``1 / sqrt(inputs)``, as PEFT draws it, and B = 0.

    Each A has a stream of its own, named by its path: it is the same whatever else is adapted.

    Args:
      rng: the model's key.
      abstract: the collection's tree of shapes.
    """
    rng = jax.random.fold_in(rng, STREAM)

    def one(path, leaf):
        if path[-1].key == "b":
            return jnp.zeros(leaf.shape, leaf.dtype)
        name = "/".join(key.key for key in path)
        bound = 1 / math.sqrt(math.prod(leaf.shape[1:-1]))  # the axes: layers, inputs, rank
        key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
        return jax.random.uniform(key, leaf.shape, leaf.dtype, -bound, bound)

    return jax.tree.map_with_path(one, abstract)


def without_adapter(variables: Variables) -> dict[str, Any]:
    """The base model's variables: the same arrays without the adapters."""
    return {name: value for name, value in variables.items() if name != COLLECTION}


def merged_kernels(variables: Variables) -> Mapping[str, tuple[Array, Array]]:
    """The factors by the path of the kernel that they are added to, ``layers/attention/query/kernel``: (A, B)."""
    leaves = jax.tree.leaves_with_path(variables.get(COLLECTION, {}))
    flat = {"/".join(key.key for key in path): leaf for path, leaf in leaves}
    return {f"{path[:-2]}/kernel": (leaf, flat[f"{path[:-1]}b"]) for path, leaf in flat.items() if path.endswith("/a")}


def merged(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """``W + scale * A B`` of one layer, formed in float32, in the kernel's type.

    Args:
      kernel: ``[inputs..., outputs...]``.
      a: ``[inputs..., A]``.
      b: ``[A, outputs...]``.
      scale: of `Adapter`.
    """
    product = jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), axes=1, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)
