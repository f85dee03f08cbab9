"""The groups of devices that a collective of a compiled program talks in, and the mesh axes that these run along."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

_SUB_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def groups_of(rest: str, mesh: Mapping[str, int]) -> list[tuple[int, ...]]:
    """The groups of devices, in any of the three forms that XLA writes."""
    explicit = re.search(r"replica_groups=\{(\{.*?\}|)\}", rest)
    if explicit is not None:
        groups = [tuple(int(n) for n in re.findall(r"\d+", g)) for g in re.findall(r"\{([^}]*)\}", explicit[1])]
        return groups or [tuple(range(math.prod(mesh.values())))]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota is not None:
        shape, dims = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            ids = ids.transpose([int(n) for n in iota[3].split(",")])
        return [tuple(int(n) for n in row) for row in ids.reshape(shape)]
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? ?\{([^}]*)\}", rest)
    if named is not None:
        return _mesh_groups(named[1], named[2], named[3])
    return [tuple(range(math.prod(mesh.values())))]


def _mesh_groups(shape: str, order: str | None, axes: str) -> list[tuple[int, ...]]:
    """``mesh['axis_0'=2,'axis_1'=8] {'axis_1'}``; a part of an axis is ``'axis_1':(pre-size)size``."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", shape)}
    ids = np.arange(math.prod(sizes.values()))
    iota = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order or "")
    if iota is not None:
        ids = ids.reshape([int(n) for n in iota[1].split(",")])
        if iota[2]:
            ids = ids.transpose([int(n) for n in iota[2].split(",")])
        ids = ids.reshape(-1)
    split: list[int] = []
    inside: list[bool] = []
    wanted = {name: (int(pre or 0), int(size or 0)) for name, pre, size in _SUB_AXIS.findall(axes)}
    for name, size in sizes.items():
        pre, part = wanted.get(name, (0, 0))
        if name in wanted and part:
            split += [pre, part, size // (pre * part)]
            inside += [False, True, False]
        else:
            split.append(size)
            inside.append(name in wanted)
    array = ids.reshape(split)
    outer = [i for i, own in enumerate(inside) if not own]
    inner = [i for i, own in enumerate(inside) if own]
    members = math.prod(split[i] for i in inner)
    return [tuple(int(n) for n in row) for row in array.transpose([*outer, *inner]).reshape(-1, members)]


def axes_of(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> str:
    """The mesh axes whose coordinate differs within a group."""
    sizes = list(mesh.values())
    varying: set[int] = set()
    for group in groups:
        if len(group) < 2 or max(group) >= math.prod(sizes):
            continue
        coordinates = np.array(np.unravel_index(np.array(group), sizes))
        varying |= {axis for axis, row in enumerate(coordinates) if len(set(row.tolist())) > 1}
    return "+".join(name for axis, name in enumerate(mesh) if axis in varying)
