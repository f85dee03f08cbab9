"""The sum of a weight's gradient over a torus: a reduce-scatter along each of its dimensions in turn.

Left to itself, XLA has every device make its part of a sharded weight's gradient whole, and sums the parts with a
reduce-scatter. On a ring of chips that is what runs. Over several dimensions of the torus libtpu (0.0.52, 64 chips and
more) compiles it to an all-reduce and a slice, which sends twice the bytes; along one dimension at a time it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxalign.training.mesh import MeshPlan


def torus_grid(devices: Sequence[Any]) -> tuple[int, ...]:
    """The sizes of the grid that these devices fill in row-major order, by their coordinates on the torus.

    One size, their number, where they fill none: without coordinates (CPUs, GPUs), or in the order of a ring.
    """
    alone = (len(devices),)
    if not all(hasattr(device, "coords") for device in devices):
        return alone
    coords = np.array([device.coords for device in devices])
    dimensions = [axis for axis in range(coords.shape[1]) if np.ptp(coords[:, axis])]
    # The outermost dimension is the last to change along the devices.
    dimensions.sort(key=lambda axis: -int(np.argmax(coords[:, axis] != coords[0, axis])))
    sizes = tuple(len(np.unique(coords[:, axis])) for axis in dimensions)
    if math.prod(sizes) != len(devices):
        return alone
    for place, axis in enumerate(dimensions):
        lines = np.moveaxis(coords[:, axis].reshape(sizes), place, 0).reshape(sizes[place], -1)
        if np.ptp(lines, axis=1).any():
            return alone
    return sizes


@dataclass(frozen=True)
class TorusSum:
    """Sums gradients over a mesh (`jaxalign.models.product.GradientSum`).

    Attributes:
      plan: the mesh.
      grid: sizes of the grid that the devices along ``fsdp`` fill, in row-major order.
    """

    plan: MeshPlan
    grid: tuple[int, ...]

    def split(self, array: Array) -> Array:
        """An array of all tokens, ``[n, ...]``, as ``[parts, n / parts, ...]``: each part has its own."""
        return array.reshape(self.plan.batch_size, -1, *array.shape[1:])

    def __call__(self, parts: Array, axes: Sequence[str | None]) -> Array:
        """The sum of ``[parts, ...]`` over the first axis, laid out as a parameter with these logical axes."""
        batch, spec = self.plan.rules["batch"], self.plan.spec(axes, parts.shape[1:])
        over = next((axis for axis, names in enumerate(spec) if "fsdp" in (names or ())), None)

        def local(parts: Array) -> Array:
            part = jnp.squeeze(parts, 0)
            if over is None:
                return jax.lax.psum(part, batch)
            # Cut along the outermost axis: of the innermost, pieces would be narrower than a tile of a TPU.
            part = jnp.moveaxis(part, over, 0)
            for lines in _lines(self.grid):
                part = jax.lax.psum_scatter(part, "fsdp", axis_index_groups=lines, tiled=True)
            return jnp.moveaxis(jax.lax.psum(part, "data"), 0, over)

        whole = [None if axis == over else names for axis, names in enumerate(spec)]
        specs = {"in_specs": PartitionSpec(batch, *whole), "out_specs": spec}
        return jax.shard_map(local, mesh=self.plan.mesh, check_vma=False, **specs)(parts)


def _lines(grid: Sequence[int]) -> list[list[list[int]]]:
    """For each dimension of a grid, outermost first: its lines, as places in row-major order."""
    places = np.arange(math.prod(grid)).reshape(grid)
    return [np.moveaxis(places, axis, -1).reshape(-1, size).tolist() for axis, size in enumerate(grid)]


def torus_sum(plan: MeshPlan) -> TorusSum | None:
    """How this mesh sums gradients; None = as XLA does, where ``fsdp`` runs along one dimension or a ring."""
    grid = torus_grid(plan.mesh.devices[0, :, 0].tolist())
    return TorusSum(plan, grid) if len(grid) > 1 else None
