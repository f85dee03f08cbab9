"""Weights and gradients moved along one dimension of the torus at a time.

XLA gathers a weight that is split over ``fsdp`` in one all-gather, and sums its gradient in one reduce-scatter. Over
several dimensions of the torus libtpu (0.0.52) compiles the second to an all-reduce and a slice on 64 chips and more,
and on a torus of three dimensions the first to an all-reduce of zeros and pieces: each sends twice the bytes. Along one
dimension it has both, so here they take one after the other. On a ring of chips, on GPUs and CPUs XLA is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
class TorusMesh:
    """A mesh on a torus (`jaxalign.models.product.Torus`).

    Attributes:
      plan: the mesh.
      grid: sizes of the grid that the devices along ``fsdp`` fill, in row-major order.
    """

    plan: MeshPlan
    grid: tuple[int, ...]

    def gather(self, weight: Array, axes: Sequence[str | None]) -> Array:
        """A weight with these logical axes, whole along the axis that ``fsdp`` splits."""
        spec, over = self._split_axis(axes, weight.shape)
        if over is None:
            return weight

        def local(piece: Array) -> Array:
            piece = jnp.moveaxis(piece, over, 0)
            for lines in reversed(_lines(self.grid)):
                piece = jax.lax.all_gather(piece, "fsdp", axis_index_groups=lines, tiled=True)
            return jnp.moveaxis(piece, 0, over)

        return self._on_devices(local, spec, _without(spec, over), weight)

    def split(self, array: Array) -> Array:
        """An array of all tokens, ``[n, ...]``, as ``[parts, n / parts, ...]``: each part has its own rows."""
        return array.reshape(self.plan.batch_size, -1, *array.shape[1:])

    def scatter(self, parts: Array, axes: Sequence[str | None]) -> Array:
        """The sum of ``[parts, ...]`` over the first axis, laid out as a parameter with these logical axes."""
        batch = self.plan.rules["batch"]
        spec, over = self._split_axis(axes, parts.shape[1:])

        def local(parts: Array) -> Array:
            part = jnp.squeeze(parts, 0)
            if over is None:
                return jax.lax.psum(part, batch)
            part = jnp.moveaxis(part, over, 0)
            for lines in _lines(self.grid):
                part = jax.lax.psum_scatter(part, "fsdp", axis_index_groups=lines, tiled=True)
            return jnp.moveaxis(jax.lax.psum(part, "data"), 0, over)

        return self._on_devices(local, PartitionSpec(batch, *_without(spec, over)), spec, parts)

    def _split_axis(self, axes: Sequence[str | None], shape: Sequence[int]) -> tuple[PartitionSpec, int | None]:
        """Where a parameter lives, and which of its axes ``fsdp`` splits."""
        spec = self.plan.spec(axes, shape)
        return spec, next((axis for axis, names in enumerate(spec) if "fsdp" in (names or ())), None)

    def _on_devices(
        self, local: Callable[[Array], Array], inputs: PartitionSpec, outputs: PartitionSpec, array: Array
    ) -> Array:
        # Pieces are cut from, and put together along, the outermost axis: of the innermost, a piece may be narrower
        # than a tile of a TPU, and libtpu would take an all-reduce after all.
        mesh = self.plan.mesh
        return jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)(array)


def torus_mesh(plan: MeshPlan) -> TorusMesh | None:
    """The torus that a mesh lies on; None where ``fsdp`` runs along one dimension, a ring, or no torus."""
    grid = torus_grid(plan.mesh.devices[0, :, 0].tolist())
    return TorusMesh(plan, grid) if len(grid) > 1 else None


def _lines(grid: Sequence[int]) -> list[list[list[int]]]:
    """For each dimension of a grid, outermost first: its lines, as places in row-major order."""
    places = np.arange(math.prod(grid)).reshape(grid)
    return [np.moveaxis(places, axis, -1).reshape(-1, size).tolist() for axis, size in enumerate(grid)]


def _without(spec: PartitionSpec, over: int | None) -> PartitionSpec:
    return PartitionSpec(*(None if axis == over else names for axis, names in enumerate(spec)))
