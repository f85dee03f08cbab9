"""The device mesh, and the rules that lay logical axes on it.

Models name the axes of their arrays ("embed", "heads", ...); only the rules here know what a name means on the mesh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import ConfigError
from jaxalign.types import Rows

AXES = ("data", "fsdp", "tensor")

DEFAULT_RULES: Mapping[str, tuple[str, ...]] = {
    # Rows are split over every axis that does not split the computation of one token.
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


def programs_in_flight() -> int:
    """How many dispatched programs may be unfinished: a device stays busy, and a NaN is noticed soon.

    None on several CPU devices: XLA runs them all on one pool of threads, where two programs with collectives can
    starve each other for ever.
    """
    return 0 if jax.default_backend() == "cpu" and jax.device_count() > 1 else 2


@dataclass(frozen=True)
class MeshPlan:
    """A mesh and its rules.

    Attributes:
      mesh: with axes ``data`` (copies of the parameters), ``fsdp`` (parameters split, gathered for use) and
        ``tensor`` (heads, MLP width and vocabulary split).
      rules: logical axis -> mesh axes. An axis without a rule is not split.
    """

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(DEFAULT_RULES))

    @property
    def batch_size(self) -> int:
        """How many parts rows are split into."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.rules["batch"]]))

    def spec(self, axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
        """Where an array with these logical axes lives.

        A mesh axis serves one array axis at most, the first that asks. An array axis that the mesh does not divide
        stays whole (4 key/value heads on 8 devices are replicated).
        """
        used: set[str] = set()
        entries: list[tuple[str, ...] | None] = []
        for name, size in zip(axes, shape, strict=True):
            wanted = tuple(a for a in self.rules.get(name or "", ()) if a not in used and self.mesh.shape[a] > 1)
            if wanted and size % int(np.prod([self.mesh.shape[a] for a in wanted])) == 0:
                used.update(wanted)
                entries.append(wanted)
            else:
                entries.append(None)
        return PartitionSpec(*entries)

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        """`spec` on this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape))

    def constrain(self, array: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        """Pins an activation to the mesh, inside jit."""
        return jax.lax.with_sharding_constraint(array, self.sharding(axes, array.shape))

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def rows_sharding(self) -> NamedSharding:
        """Of every array of `Rows`: the leading axis over the batch axes."""
        return NamedSharding(self.mesh, PartitionSpec(self.rules["batch"]))

    def tree_shardings(self, axes: Any, abstract: Any) -> Any:
        """Shardings of a tree of parameters, from its logical axes and shapes."""
        return jax.tree.map(
            lambda leaf, names: self.sharding(names, leaf.shape), abstract, axes, is_leaf=lambda x: hasattr(x, "shape")
        )

    def local_rows(self, rows: int) -> slice:
        """The rows of R that this process's devices hold."""
        slices = self.rows_sharding().addressable_devices_indices_map((rows,)).values()
        bounds = [index[0].indices(rows) for index in slices if index is not None]
        return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))

    def put_rows(self, rows: Rows, global_rows: int, first_row: int) -> Rows:
        """Moves this process's NumPy rows onto its devices, as its part of the global arrays."""
        sharding = self.rows_sharding()
        if jax.process_count() == 1:
            return jax.device_put(rows, sharding)

        def put(array: np.ndarray) -> jax.Array:
            def piece(index):
                start, stop, _ = index[0].indices(global_rows)
                return array[start - first_row : stop - first_row]

            return jax.make_array_from_callback((global_rows, *array.shape[1:]), sharding, piece)

        return jax.tree.map(put, rows)


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None) -> MeshPlan:
    """Builds the mesh over all devices.

    Args:
      data: copies of the parameters.
      fsdp: parts that the parameters are split into.
      tensor: parts that heads, MLP and vocabulary are split into.
      devices: defaults to all devices of all processes. At most one size may be -1: whatever is left.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(open_axes) == 1 and len(devices) % known == 0:
        sizes[open_axes[0]] = len(devices) // known
    if int(np.prod(list(sizes.values()))) != len(devices):
        got = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ConfigError(
            f"mesh: got {got}, expected sizes whose product is the number of devices, {len(devices)}; "
            "set one of them to -1 to take what is left."
        )
    shape = tuple(sizes[axis] for axis in AXES)
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    return MeshPlan(mesh)
