"""Which axes of a device mesh divide an array's axis."""

from __future__ import annotations

import math

from jax.sharding import AbstractMesh, Mesh


def dividing(mesh: Mesh | AbstractMesh, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The leading ones of `axes` whose sizes together divide `size`; those of size 1 or missing are left out."""
    kept: tuple[str, ...] = ()
    for axis in axes:
        if mesh.shape.get(axis, 1) == 1:
            continue
        if size % parts(mesh, (*kept, axis)):
            break
        kept = (*kept, axis)
    return kept


def parts(mesh: Mesh | AbstractMesh, axes: tuple[str, ...]) -> int:
    """Into how many parts these axes divide."""
    return math.prod(mesh.shape[axis] for axis in axes)
