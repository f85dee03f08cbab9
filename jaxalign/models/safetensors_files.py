"""Safetensors folders: which file holds which tensor, slices of tensors, and writing one tensor at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxalign.errors import ModelError
from jaxalign.models.config_json import read_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F64": np.dtype(np.float64),
}
"""Floating-point types of safetensors that weights may have."""


class Tensors:
    """The tensors of a folder, opened lazily (memory-mapped). Read-only.

    Attributes:
      files: tensor name -> file name.
    """

    def __init__(self, folder: str | Path):
        """Find the tensors.

        Raises:
          ModelError: no safetensors there, or files that the index names are missing or broken; all at once.
        """
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        index = read_json(self.folder / INDEX_FILE)
        if index is not None:
            weight_map = index.get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ModelError(f"{self.folder / INDEX_FILE}: 'weight_map' is missing or empty.")
            self.files: dict[str, str] = weight_map
            problems = []
            held = {}
            for file in sorted(set(weight_map.values())):
                try:
                    held[file] = set(self._handle(file).keys())
                except ModelError as error:
                    problems += error.problems
            for name, file in weight_map.items():
                if file in held and name not in held[file]:
                    problems.append(f"{self.folder / file}: holds no tensor {name!r}, though the index says so.")
            if problems:
                raise ModelError(problems)
        elif (self.folder / WEIGHTS_FILE).is_file():
            self.files = dict.fromkeys(self._handle(WEIGHTS_FILE).keys(), WEIGHTS_FILE)
        else:
            others = sorted(p.name for p in self.folder.glob("*") if p.suffix in (".bin", ".pth", ".pt", ".gguf"))
            hint = f" It holds {', '.join(others)}; convert to safetensors first." if others else ""
            raise ModelError(f"{self.folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there.{hint}")

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            path = self.folder / file
            if not path.is_file():
                raise ModelError(f"{path}: no such file, though the index names it. Is the download complete?")
            try:
                self._open[file] = safe_open(str(path), framework="np")
            except SafetensorError as error:
                raise ModelError(f"{path}: not a readable safetensors file ({error}). Is it complete?") from error
        return self._open[file]

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def view(self, name: str) -> Any:
        """A lazy view: indexing it by a tuple of slices reads just that into numpy."""
        return self._handle(self.files[name]).get_slice(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, from the file's header."""
        return tuple(self.view(name).get_shape())

    def dtype(self, name: str) -> str:
        """Its type as safetensors names it, such as ``"BF16"``."""
        return self.view(name).get_dtype()


def write_tensors(
    folder: Path,
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    dtype: np.dtype,
    tensors: Iterable[np.ndarray],
    *,
    max_shard_bytes: float,
    writes: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors one at a time into one file or into numbered shards with an index.

    Args:
      folder: an existing folder.
      shapes: names and shapes, in the order of the files.
      dtype: of all of them.
      tensors: their values in the same order; each is dropped before the next one is asked for.
      max_shard_bytes: a shard is closed before it would grow beyond this.
      writes: False walks through `tensors` without writing (processes that only take part in gathering).
      metadata: of the files' headers.
    """
    kind = next(name for name, known in DTYPES.items() if known == dtype)
    plan: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in shapes:
        bytes_ = int(np.prod(shape)) * dtype.itemsize
        if plan[-1] and size + bytes_ > max_shard_bytes:
            plan.append([])
            size = 0
        plan[-1].append((name, shape))
        size += bytes_
    count = len(plan)
    names = [WEIGHTS_FILE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    values = iter(tensors)
    for file, shard in zip(names, plan, strict=True):
        if not writes:
            for _ in shard:
                next(values)
            continue
        _write_file(folder / file, shard, kind, dtype, lambda: next(values), metadata or {})
    if writes and count > 1:
        total = sum(int(np.prod(shape)) for _, shape in shapes)
        index = {
            "metadata": {"total_parameters": total, "total_size": total * dtype.itemsize},
            "weight_map": {name: file for file, shard in zip(names, plan, strict=True) for name, _ in shard},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(
    path: Path,
    shard: Sequence[tuple[str, tuple[int, ...]]],
    kind: str,
    dtype: np.dtype,
    take: Callable[[], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, shape in shard:
        end = offset + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # The data must start at a multiple of 8 bytes.
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name, shape in shard:
            array = take()
            assert (array.shape, array.dtype) == (shape, dtype), name
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
