"""The tiles that a pass over (tokens x vocabulary) works through, on one device and on each device of a mesh.

The vocabulary is the outer loop: a block of the head is read once a pass, and its gradient is made and written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float

from jaxalign.mesh_axes import dividing, parts

TILE_BYTES = {"cpu": 8 << 20}
"""Of a tile's float32 logits: on a CPU what its caches hold; elsewhere `LARGE_TILE_BYTES`."""
LARGE_TILE_BYTES = 128 << 20
TILE_TOKENS = 4096
"""Of a tile at most: from here on more entries do a product more good than more tokens."""


class MeshAxes(NamedTuple):
    """Which axes of a mesh split what; those that the mesh lacks, or that do not divide a size, are left out.

    Attributes:
      rows: R.
      width: D, of the head only.
      vocabulary: V.
    """

    rows: tuple[str, ...] = ("data", "fsdp")
    width: tuple[str, ...] = ("fsdp",)
    vocabulary: tuple[str, ...] = ("tensor",)


MESH_AXES = MeshAxes()


class Tile(NamedTuple):
    """How many tokens, and how many entries of the vocabulary, have logits at once."""

    tokens: int
    entries: int


def tile_shape(tokens: int, vocabulary: int, platform: str) -> Tile:
    """The tile, (tokens, vocabulary entries), whose logits exist at once.

    Args:
      tokens: scored tokens on a device.
      vocabulary: entries on a device.
      platform: "cpu", "gpu" or "tpu".
    """
    budget = TILE_BYTES.get(platform, LARGE_TILE_BYTES) // 4
    rows = -(-tokens // -(-tokens // TILE_TOKENS))
    entries = max(128, budget // rows)
    if entries >= vocabulary:
        return Tile(rows, vocabulary)
    sizes = [size for size in range(entries, entries // 2, -1) if vocabulary % size == 0]
    aligned = [size for size in sizes if size % 128 == 0]
    if sizes:
        return Tile(rows, (aligned or sizes)[0])
    # Nothing near divides it: blocks of one size, and one smaller block behind them.
    even = -(-vocabulary // -(-vocabulary // entries))
    return Tile(rows, min(-(-even // 128), entries // 128) * 128)


class Division(NamedTuple):
    """How a mesh divides a pass over the vocabulary; `mesh` None: it does not.

    Attributes:
      mesh: the mesh.
      rows: its axes that divide R.
      width: those that divide D, of the head; they are among `rows`.
      vocabulary: those that divide V.
    """

    mesh: AbstractMesh | None = None
    rows: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()

    @classmethod
    def of(cls, axes: MeshAxes, rows: int, head: tuple[int, ...]) -> Division:
        """By the mesh of `jax.set_mesh`, none inside `jax.shard_map`.

        Args:
          axes: which axes of the mesh split what.
          rows: R.
          head: (D, V).
        """
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.size <= 1 or mesh.manual_axes:
            return cls()
        split = dividing(mesh, axes.rows, rows)
        # A head whose width is split over other axes than the rows is gathered by XLA.
        width = dividing(mesh, tuple(axis for axis in axes.width if axis in split), head[0])
        return cls(mesh, split, width, dividing(mesh, axes.vocabulary, head[1]))

    def parts(self, axes: tuple[str, ...]) -> int:
        """Into how many parts these axes divide."""
        return 1 if self.mesh is None else parts(self.mesh, axes)

    def local(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """`function` on each device's part. `inputs`, `outputs`: "rows", "head" or None (absent) for each array."""
        if self.mesh is None:
            return function
        rows = PartitionSpec(self.rows or None)
        specs = {"rows": rows, "head": PartitionSpec(self.width or None, self.vocabulary or None)}

        def spec(names):
            return jax.tree.map(lambda name: specs[name], names)

        return jax.shard_map(function, mesh=self.mesh, in_specs=spec(inputs), out_specs=spec(outputs), check_vma=False)

    def first_entry(self, head: Array) -> Array | int:
        """The vocabulary entry that this device's part of the head begins with."""
        return jax.lax.axis_index(self.vocabulary) * head.shape[1] if self.vocabulary else 0

    def columns(self, head: Array, start: Any, size: int) -> Float[Array, "D size"]:
        """A block of the head."""
        block = jax.lax.dynamic_slice_in_dim(head, start, size, 1) if size < head.shape[1] else head
        return jax.lax.all_gather(block, self.width, axis=0, tiled=True) if self.width else block

    def row_sum(self, gradient: Float[Array, "D size"]) -> Array:
        """The gradient of a block of the head, summed over all devices' rows; this device's part of its width."""
        if self.width:
            gradient = jax.lax.psum_scatter(gradient, self.width, scatter_dimension=0, tiled=True)
        others = tuple(axis for axis in self.rows if axis not in self.width)
        return jax.lax.psum(gradient, others) if others else gradient

    def vocabulary_sum(self, values: Any) -> Any:
        """Over the devices that share the vocabulary."""
        return jax.lax.psum(values, self.vocabulary) if self.vocabulary else values


def chunked(array: Array, size: int) -> Array:
    """``[R, S, ...] -> [chunks, size, ...]``, the axis that the inner loop walks."""
    tokens = array.shape[0] * array.shape[1]
    flat = array.reshape(tokens, *array.shape[2:])
    padding = [(0, -tokens % size), *[(0, 0)] * (flat.ndim - 1)]
    return jnp.pad(flat, padding).reshape(-1, size, *array.shape[2:])


def unchunked(array: Array, rows: int, scored: int) -> Array:
    """What `chunked` was given."""
    flat = array.reshape(-1, *array.shape[2:])
    return flat[: rows * scored].reshape(rows, scored, *array.shape[2:])


def over_blocks(body: Callable[[Any, Any, int], Any], carry: Any, vocabulary: int, size: int) -> Any:
    """``carry = body(carry, start, size)`` for each block of the vocabulary, the last one perhaps smaller."""
    full, rest = divmod(vocabulary, size)
    if full == 1:
        carry = body(carry, 0, size)
    else:
        starts = jnp.arange(full) * size
        carry = jax.lax.scan(lambda c, start: (body(c, start, size), None), carry, starts)[0]
    return body(carry, full * size, rest) if rest else carry


def each(one_chunk: Callable[[Any], Any], chunks: Any, summed: bool = False) -> Any:
    """`one_chunk` for each chunk; `summed`: the second of its two results is summed over the chunks, not collected."""
    count = jax.tree.leaves(chunks)[0].shape[0]
    if count == 1:
        results = one_chunk(jax.tree.map(lambda x: x[0], chunks))
        collected, total = results if summed else (results, None)
        collected = jax.tree.map(lambda x: x[None], collected)
        return (collected, total) if summed else collected
    if not summed:
        return jax.lax.map(one_chunk, chunks)

    def add(total, chunk):
        collected, part = one_chunk(chunk)
        return total + part, collected

    part = jax.eval_shape(one_chunk, jax.tree.map(lambda x: x[0], chunks))[1]
    total, collected = jax.lax.scan(add, jnp.zeros(part.shape, part.dtype), chunks)
    return collected, total
