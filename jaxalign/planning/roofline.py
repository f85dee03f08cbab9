"""How long a step takes at least: operations, memory and interconnect, each at its peak rate.

compute      ``operations of a device / peak``: the model's own, and what remat and the chunked attention do again
memory       ``bytes of a device / bandwidth``: the state read and written once, the weights of every pass read once in
             the arithmetic's precision, kept activations written and read once
interconnect for each mesh axis ``bytes sent by a device / rate``. An axis that runs along d dimensions of the torus has
             d links, or 2 d where these dimensions are closed rings; behind a switch the device's whole link

`hidden` takes the largest of them, as if everything overlapped; `exposed` adds them. A real step lies between, above
both where kernels stay below the peaks: expect a tenth to a half more than `exposed`'s compute alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.planning.targets import Target


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step, at least.

    Attributes:
      compute: of arithmetic.
      memory: of reading and writing memory.
      network: of each mesh axis.
    """

    compute: float
    memory: float
    network: Mapping[str, float]

    @property
    def hidden(self) -> float:
        """If all overlaps."""
        return max(self.compute, self.memory, sum(self.network.values()))

    @property
    def exposed(self) -> float:
        """If nothing overlaps; arithmetic always hides the memory's share below it."""
        return max(self.compute, self.memory) + sum(self.network.values())

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {"compute": self.compute, "memory": self.memory}
        parts |= {f"interconnect ({axes})": seconds for axes, seconds in self.network.items()}
        return max(parts, key=lambda name: parts[name])


def roofline(
    target: Target,
    *,
    operations: float,
    moved: float,
    sent: Mapping[str, Mapping[str, float]],
    along: Mapping[str, Sequence[int]] | None = None,
) -> Roofline:
    """A step's times.

    Args:
      target: the machine.
      operations: of one device.
      moved: bytes that a device reads and writes.
      sent: bytes that it sends, by mesh axes and kind of collective (`jaxalign.planning.hlo.sent_by_axis`).
      along: the torus' dimensions that each mesh axis runs along (`torus_dimensions`); None = all.
    """
    network = {}
    for axes, kinds in sent.items():
        dimensions = {d for axis in axes.split("+") for d in (along or {}).get(axis, range(len(target.shape)))}
        network[axes] = sum(kinds.values()) / rate(target, dimensions)
    return Roofline(operations / target.flops, moved / target.bandwidth, network)


def rate(target: Target, dimensions: Any) -> float:
    """Bytes that a device sends in a second along these dimensions of the torus."""
    if not target.shape:
        return target.link
    links = sum(2 if target.wrapped[d] else 1 for d in dimensions if target.shape[d] > 1)
    return target.link * max(1, links)


def torus_dimensions(devices: np.ndarray, axes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Which coordinates of the chips change along each mesh axis.

    Args:
      devices: of a mesh, with ``coords``.
      axes: their names.
    """
    coordinates = np.array([list(device.coords) for device in devices.flat]).reshape(*devices.shape, -1)
    found = {}
    for i, axis in enumerate(axes):
        moved = np.ptp(coordinates, axis=i).reshape(-1, coordinates.shape[-1]).max(axis=0)
        found[axis] = tuple(int(d) for d in np.flatnonzero(moved))
    return found


def fsdp_bytes(parameters: float, *, passes: int, computed: int, stored: int, shards: int) -> float:
    """Bytes that a device sends under full sharding, where no compiler says it: gathers and one scatter.

    Args:
      parameters: of the model, after any tensor split.
      passes: how often all weights are gathered: forward, backward, and recomputation if it gathers again.
      computed: bytes of a gathered weight.
      stored: bytes of a scattered gradient; 0 = none is.
      shards: devices along the axis.
    """
    return parameters * (passes * computed + stored) * (shards - 1) / shards if shards > 1 else 0.0


def seconds_text(seconds: float) -> str:
    """A duration for a table."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
