"""A store of per-token reference log-probabilities, addressed by what they were computed from.

One entry is one completion: its scored tokens' log-probabilities (nats, float32) under a reference. Its key is a
SHA-256 over everything that the values depend on: the reference's weights, the token ids of prompt and completion,
which of them are scored, the chat template, and the precision and version of the forward pass. Nothing else is in
the key, so every beta, method, seed, learning rate and subset of the data shares the entries, and an entry cannot be
stale: other inputs are another key.

Entries lie in Parquet parts that are never changed after they got their name, so a kill at any moment leaves whole
parts and perhaps a temporary file, which nobody reads. Several processes may write at once, each its own parts. Several
hosts must see one file system (NFS, a mounted bucket) and the same ``cache_dir``.

Each read checks the entry again (checksum, number of tokens, finite). A damaged entry counts as missing: it is logged,
counted and computed again, never used.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxalign.errors import ConfigError, NumericsError
from jaxalign.training.reference_parts import (
    FORMAT,
    UNREADABLE,
    Index,
    as_matrix,
    checksum,
    clean,
    read_index,
    read_rows,
    write_part,
)

Integers = Sequence[int] | np.ndarray
_log = logging.getLogger("jaxalign")


@dataclass
class StoreStats:
    """What one `ReferenceStore` object has seen.

    Attributes:
      hits: entries read and found good.
      computed: entries written.
      corrupted: entries, or whole parts, found damaged and left aside.
      duplicates: further copies of a key with the same values.
      conflicts: further copies of a key with other values (the same completion scored on another mesh or machine may
        differ in the last bit). The oldest good copy is the one read, so a resumed run sees the values it began with.
    """

    hits: int = 0
    computed: int = 0
    corrupted: int = 0
    duplicates: int = 0
    conflicts: int = 0


class ReferenceStore:
    """Per-token log-probabilities of one reference, on disk.

    Args:
      cache_dir: the root, shared by all references; entries lie in a folder of it named after the reference.
      reference_hash: content hash of the reference's weights and architecture.
      template_hash: hash of the chat template and tokenisation that made the token ids.
      precision: precision and version of the forward pass, e.g. ``"bfloat16/forward-1"``.
      process_index: this process's number in a run of several; part of the names of its files.
      read_only: write and clean nothing (a shared store that this user cannot write).

    Raises:
      ConfigError: an identity is empty, or the folder cannot be made or written.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        reference_hash: str,
        template_hash: str,
        precision: str,
        *,
        process_index: int = 0,
        read_only: bool = False,
    ):
        identity = {"reference_hash": reference_hash, "template_hash": template_hash, "precision": precision}
        problems = [
            f"reference store: {name} is empty; expected a content hash" for name in identity if not identity[name]
        ]
        if problems:
            raise ConfigError(problems)
        self.identity = identity
        self.folder = Path(cache_dir) / re.sub(r"[^A-Za-z0-9]+", "-", reference_hash)[:24]
        self.stats = StoreStats()
        self._process = process_index
        self._read_only = read_only
        self._parts: list[Path] = []
        self._seen: set[str] = set()
        self._index = Index()
        self._fresh: list[tuple[int, np.ndarray, np.ndarray]] = []  # parts whose keys are not in the index yet
        self._loaded = False
        self._lock = threading.RLock()
        self._hasher = hashlib.sha256()
        for field in (FORMAT, *(value.encode() for value in identity.values())):
            self._hasher.update(len(field).to_bytes(8, "little") + field)
        if not read_only:
            self._open_folder()
            clean(self.folder)

    def _open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError("no permission to write")
        except OSError as error:
            raise ConfigError(
                f"reference.cache_dir: {str(self.folder.parent)!r} cannot be used ({error.strerror or error}). "
                "Expected a folder that can be made and written; set reference.cache_dir, or JAXALIGN_CACHE."
            ) from error

    def key(self, prompt: Integers, completion: Integers, scored: Sequence[bool] | np.ndarray | None = None) -> bytes:
        """The entry's name, 32 bytes.

        Args:
          prompt: token ids, ``[P]``.
          completion: token ids, ``[C]``.
          scored: which completion tokens are scored, ``[C]``; all of them when None.
        """
        ids = np.concatenate([np.asarray(prompt), np.asarray(completion)]).astype("<i4")
        mask = np.zeros(len(ids), np.uint8)
        mask[len(prompt) :] = 1 if scored is None else np.asarray(scored, bool)
        digest = self._hasher.copy()
        # Every field has its length in front, so no two different inputs are the same bytes.
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + mask.tobytes())
        return digest.digest()

    def __len__(self) -> int:
        """Entries known, copies and other precisions or templates of this reference included."""
        return len(self._current().keys)

    def refresh(self) -> None:
        """Looks for parts that other processes have written since."""
        with self._lock:
            self._loaded = False

    def missing(self, keys: Sequence[bytes], lengths: Integers) -> np.ndarray:
        """Indices of the keys without a good entry; every entry is read and checked.

        Args:
          keys: from `key`.
          lengths: number of scored tokens of each.
        """
        good, _ = self._read(keys, lengths)
        return np.flatnonzero(~good)

    def get(self, keys: Sequence[bytes], lengths: Integers) -> list[np.ndarray]:
        """The log-probabilities of each key, ``[lengths[i]]`` float32 each, views of one array. Ask for many at once.

        Raises:
          KeyError: an entry is missing or damaged; `fill` computes it.
        """
        flat, offsets = self.get_flat(keys, lengths)
        return [flat[a:b] for a, b in itertools.pairwise(offsets)]

    def get_flat(self, keys: Sequence[bytes], lengths: Integers) -> tuple[np.ndarray, np.ndarray]:
        """As `get`, as one float32 array and its offsets ``[n + 1]``."""
        good, flat = self._read(keys, lengths)
        if not good.all():
            raise KeyError(
                f"{int((~good).sum())} of {len(good)} reference log-probabilities are missing or damaged in "
                f"{self.folder}; compute them with fill (jaxalign cache-reference) first"
            )
        self.stats.hits += len(good)
        return flat, _offsets(lengths)

    def put(self, keys: Sequence[bytes], arrays: Sequence[np.ndarray]) -> None:
        """Writes the entries as one new part, durable when this returns.

        Args:
          keys: from `key`.
          arrays: the log-probabilities of each key's scored tokens, nats.

        Raises:
          NumericsError: a value is not finite. Nothing is written.
        """
        if self._read_only:
            raise ConfigError(f"reference store {self.folder}: opened read-only; entries are missing from it")
        if not len(keys):
            return
        values = [np.asarray(array, "<f4").reshape(-1) for array in arrays]
        broken = [i for i, array in enumerate(values) if not np.isfinite(array).all()]
        if broken:
            raise NumericsError(
                f"reference log-probabilities are not finite for {len(broken)} of {len(keys)} completions (first: "
                f"entry {broken[0]} of the batch); check the reference's weights and precision. Nothing was stored"
            )
        path, checks = write_part(self.folder, keys, values, self._process, self.identity)
        with self._lock:
            self._add(path, as_matrix(keys), checks)
        self.stats.computed += len(keys)

    def _current(self) -> Index:
        with self._lock:
            if not self._loaded:
                self._loaded = True
                for path in sorted(self.folder.glob("part-*.parquet")):
                    if path.name not in self._seen:
                        self._load(path)
            if self._fresh:
                self._index, duplicates, conflicts = self._index.merged(self._fresh)
                self._fresh = []
                self.stats.duplicates += duplicates
                self.stats.conflicts += conflicts
            return self._index

    def _load(self, path: Path) -> None:
        try:
            keys, checks = read_index(path)
        except FileNotFoundError:
            return
        except UNREADABLE as error:
            self.stats.corrupted += 1
            self._seen.add(path.name)
            _log.warning("reference store: %s cannot be read and is left aside (%s)", path, error)
            return
        self._add(path, keys, checks)

    def _add(self, path: Path, keys: np.ndarray, checks: np.ndarray) -> None:
        self._fresh.append((len(self._parts), keys, checks))
        self._parts.append(path)
        self._seen.add(path.name)

    def _read(self, keys: Sequence[bytes], lengths: Integers) -> tuple[np.ndarray, np.ndarray]:
        """Which keys have a good entry ``[n]``, and the values one after another (zeros where there is none)."""
        if len(keys) != len(lengths):
            raise ValueError(f"got {len(keys)} keys and {len(lengths)} lengths")
        wanted, offsets = as_matrix(keys), _offsets(lengths)
        flat = np.zeros(offsets[-1], np.float32)
        good = np.zeros(len(keys), bool)
        open_keys = np.arange(len(keys))
        while open_keys.size:
            with self._lock:
                index = self._current()
                at = index.find(wanted[open_keys])
            open_keys, at = open_keys[at >= 0], at[at >= 0]
            for part in np.unique(index.part[at]):
                chosen = index.part[at] == part
                members, rows, places = open_keys[chosen], index.row[at[chosen]], at[chosen]
                damaged = 0
                for i, values in read_rows(self._parts[part], rows):
                    member = members[i]
                    if values is not None and _is_good(
                        keys[member], values, index.checks[places[i]], int(lengths[member])
                    ):
                        flat[offsets[member] : offsets[member + 1]] = values
                        good[member] = True
                    elif not index.bad[places[i]]:
                        index.bad[places[i]] = True
                        damaged += 1
                if damaged:
                    self.stats.corrupted += damaged
                    _log.warning(
                        "reference store: %d damaged entries in %s are left aside and computed again",
                        damaged,
                        self._parts[part],
                    )
            open_keys = open_keys[~good[open_keys]]
        return good, flat


def _offsets(lengths: Integers) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)


def _is_good(key: bytes, values: np.ndarray, check: np.ndarray, length: int) -> bool:
    return len(values) == length and checksum(key, values) == check.tobytes() and bool(np.isfinite(values).all())
