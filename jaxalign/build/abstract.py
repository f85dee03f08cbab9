"""A run's arrays without values: their shapes, and where they live on a mesh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.config import RunConfig
from jaxalign.method import INPUTS, Method
from jaxalign.models.quantization import quantize
from jaxalign.training.mesh import MeshPlan
from jaxalign.types import Rows


@dataclass(frozen=True)
class RowSizes:
    """What a step's batch looks like: R rows of T tokens, S scored ones and E examples with K completions each."""

    rows: int
    tokens: int
    scored: int
    examples: int
    completions: int


def device_bytes(tree: Any) -> float:
    """Bytes of a tree of placed shapes on one device."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        total += math.prod(shape) * jnp.dtype(leaf.dtype).itemsize
    return total


def abstract_rows(
    sizes: RowSizes, columns: Sequence[str], method: Method | None, config: RunConfig, plan: MeshPlan
) -> Rows:
    """A batch without values, placed as `MeshPlan.put_rows` does it."""
    where = plan.rows_sharding()
    count, tokens, scored, examples, completions = (
        sizes.rows, sizes.tokens, sizes.scored, sizes.examples, sizes.completions,
    )  # fmt: skip

    def array(*shape: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=where)

    ends = completions
    if method is not None and "degrees" in method.columns:
        ends += completions * (method.head_outputs(method.resolve_options(config.method.options)) - 1)
    known = {
        "reference_logps": ((scored,), np.float32),
        "reference_sums": ((examples, completions), np.float32),
        "reference_lengths": ((examples, completions), np.float32),
        "ends": ((examples, ends), np.int32),
        "degrees": ((examples, ends), np.int32),
        "score_index": ((scored,), np.int32),
    }
    shapes = {"example": (examples,), "completion": (examples, completions), "token": (scored,), "batch": ()}
    found: dict[str, Any] = {"example_id": array(examples)}
    for name in columns:
        if name in known:
            shape, dtype = known[name]
        else:
            facts = INPUTS.get(name)
            shape = shapes[facts.per] if facts else (examples,)
            dtype = np.bool_ if facts and facts.is_bool else np.int32 if name == "step_labels" else np.float32
        found[name] = array(*shape, dtype=dtype)
    return Rows(
        tokens=array(tokens),
        positions=array(tokens),
        own_start=array(tokens),
        prefix_start=array(tokens),
        prefix_end=array(tokens),
        score_source=array(scored),
        score_target=array(scored),
        score_slot=array(scored),
        example_mask=array(examples, dtype=np.bool_),
        columns=found,
        completions=completions,
    )


def quantized(shapes: Any, axes: Any, plan: MeshPlan) -> Any:
    """Weights in int8 with their scales, each split as the weight it stands for."""
    is_axes = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    names = {jax.tree_util.keystr(p): a for p, a in jax.tree_util.tree_flatten_with_path(axes, is_leaf=is_axes)[0]}

    def place(path, leaf):
        for length in range(len(path), 0, -1):
            found = names.get(jax.tree_util.keystr(path[:length]))
            if found is not None and len(found) == len(leaf.shape):
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=plan.sharding(found, leaf.shape))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=plan.replicated)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(quantize, shapes))


def placed(tree: Any, where: Any) -> Any:
    """Shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, where
    )
