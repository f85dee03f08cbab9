"""Device meshes: which axes divide an array's axis, and what the devices are."""

from __future__ import annotations

import math

import jax
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


def platform() -> str:
    """Of the devices that are computed for: "cpu", "gpu" or "tpu".

    Those of `jax.set_mesh`, which may be a mesh of one, or one to compile for ahead of time; else the default ones.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
