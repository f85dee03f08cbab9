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

import contextlib
import hashlib
import itertools
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxalign.errors import ConfigError, NumericsError

FORMAT = b"jaxalign-reference-1"
KEY_BYTES = 32
CHECK_BYTES = 8
ROW_GROUP = 1024  # entries decoded together
STALE_SECONDS = 24 * 3600  # a temporary file this old has no writer any more

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("logps", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
        pa.field("checksum", pa.binary(CHECK_BYTES), nullable=False),
    ]
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


class _Index:
    """Keys, sorted by their first 8 bytes; copies of one key in the order of their parts. 48 bytes an entry."""

    def __init__(self) -> None:
        self.keys = np.zeros((0, KEY_BYTES), np.uint8)
        self.checks = np.zeros((0, CHECK_BYTES), np.uint8)
        self.part = np.zeros(0, np.int32)
        self.row = np.zeros(0, np.int32)
        self.bad = np.zeros(0, bool)
        self.prefix = np.zeros(0, np.uint64)

    def merged(self, part: int, keys: np.ndarray, checks: np.ndarray) -> _Index:
        new = _Index()
        new.keys = np.concatenate([self.keys, keys])
        new.checks = np.concatenate([self.checks, checks])
        new.part = np.concatenate([self.part, np.full(len(keys), part, np.int32)])
        new.row = np.concatenate([self.row, np.arange(len(keys), dtype=np.int32)])
        new.bad = np.concatenate([self.bad, np.zeros(len(keys), bool)])
        prefix = _prefix(new.keys)
        order = np.argsort(prefix, kind="stable")
        for name in ("keys", "checks", "part", "row", "bad"):
            setattr(new, name, getattr(new, name)[order])
        new.prefix = prefix[order]
        return new

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Position of the first good copy of each key ``[n, 32]``, -1 where there is none."""
        found = np.full(len(wanted), -1, np.int64)
        prefix = _prefix(wanted)
        at = np.searchsorted(self.prefix, prefix)
        active = np.arange(len(wanted))
        while active.size:
            inside = at[active] < len(self.prefix)
            active = active[inside]
            active = active[self.prefix[at[active]] == prefix[active]]
            here = at[active]
            match = ~self.bad[here] & (self.keys[here] == wanted[active]).all(axis=1)
            found[active[match]] = here[match]
            active = active[~match]
            at[active] += 1
        return found


def _prefix(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def _as_matrix(keys: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES)


def _checksum(key: bytes, values: np.ndarray) -> bytes:
    return hashlib.blake2b(key + values.astype("<f4", copy=False).tobytes(), digest_size=CHECK_BYTES).digest()


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
      ConfigError: an identity is empty.
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
        self._index = _Index()
        self._loaded = False
        self._lock = threading.RLock()
        self._hasher = hashlib.sha256()
        for field in (FORMAT, *(value.encode() for value in identity.values())):
            self._hasher.update(len(field).to_bytes(8, "little") + field)
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            _clean(self.folder)

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
        checks = b"".join(_checksum(key, array) for key, array in zip(keys, values, strict=True))
        offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
        table = pa.Table.from_arrays(
            [
                pa.array(keys, pa.binary(KEY_BYTES)),
                pa.ListArray.from_arrays(
                    pa.array(offsets), pa.array(np.concatenate(values)), type=_SCHEMA.field("logps").type
                ),
                pa.FixedSizeBinaryArray.from_buffers(pa.binary(CHECK_BYTES), len(keys), [None, pa.py_buffer(checks)]),
            ],
            schema=_SCHEMA.with_metadata({"format": FORMAT.decode(), **self.identity}),
        )
        name = f"part-{time.time_ns():020d}-p{self._process:05d}-{uuid.uuid4().hex[:8]}.parquet"
        temporary = self.folder / f".tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with temporary.open("wb") as file:
            # Plain floats: they hardly compress, and decoding is then a copy. Page checksums guard the layout itself.
            pq.write_table(
                table,
                file,
                row_group_size=ROW_GROUP,
                compression="none",
                use_dictionary=False,
                write_page_checksum=True,
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)
        _sync_folder(self.folder)
        with self._lock:
            self._add(self.folder / name, _as_matrix(keys), np.frombuffer(checks, np.uint8).reshape(-1, CHECK_BYTES))
        self.stats.computed += len(keys)

    def _current(self) -> _Index:
        with self._lock:
            if not self._loaded:
                self._loaded = True
                for path in sorted(self.folder.glob("part-*.parquet")):
                    if path.name in self._seen:
                        continue
                    try:
                        table = pq.read_table(
                            path,
                            columns=["key", "checksum"],
                            memory_map=True,
                            page_checksum_verification=True,
                            partitioning=None,
                        )
                        keys, checks = (_bytes_matrix(table.column(name)) for name in ("key", "checksum"))
                    except FileNotFoundError:
                        continue
                    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                        self.stats.corrupted += 1
                        self._seen.add(path.name)
                        _log.warning("reference store: %s cannot be read and is left aside (%s)", path, error)
                        continue
                    self._add(path, keys, checks)
            return self._index

    def _add(self, path: Path, keys: np.ndarray, checks: np.ndarray) -> None:
        at = self._index.find(keys)
        known = at >= 0
        same = (self._index.checks[at[known]] == checks[known]).all(axis=1)
        self.stats.duplicates += int(same.sum())
        self.stats.conflicts += int((~same).sum())
        self._index = self._index.merged(len(self._parts), keys, checks)
        self._parts.append(path)
        self._seen.add(path.name)

    def _read(self, keys: Sequence[bytes], lengths: Integers) -> tuple[np.ndarray, np.ndarray]:
        """Which keys have a good entry ``[n]``, and the values one after another (zeros where there is none)."""
        if len(keys) != len(lengths):
            raise ValueError(f"got {len(keys)} keys and {len(lengths)} lengths")
        wanted, offsets = _as_matrix(keys), _offsets(lengths)
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
                for i, values in _read_rows(self._parts[part], rows):
                    member = members[i]
                    if values is not None and _is_good(keys[member], values, index.checks[places[i]], lengths[member]):
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
    return len(values) == length and _checksum(key, values) == check.tobytes() and bool(np.isfinite(values).all())


def _bytes_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size binary column as ``[n, width]`` bytes."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    width = column.type.byte_width
    data = array.buffers()[1]
    if array.null_count or (data is None and len(array)):
        raise ValueError("a key or a checksum is null")
    flat = np.frombuffer(data or b"", np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    return flat.reshape(len(array), width)


def _read_rows(path: Path, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray | None]]:
    """For each wanted row of a part, its place in ``rows`` and its values, None where they cannot be read."""
    group_of = rows // ROW_GROUP
    for group in np.unique(group_of):
        places = np.flatnonzero(group_of == group)
        try:
            with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
                column = file.read_row_group(int(group), columns=["logps"]).column("logps").combine_chunks()
            array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            starts = array.offsets.to_numpy()
            values = array.values.to_numpy()
        except (pa.ArrowException, OSError, KeyError, ValueError, IndexError) as error:
            _log.warning("reference store: row group %d of %s cannot be read (%s)", group, path, error)
            for place in places:
                yield int(place), None
            continue
        for place in places:
            row = int(rows[place]) - int(group) * ROW_GROUP
            inside = row + 1 < len(starts) and 0 <= starts[row] <= starts[row + 1] <= len(values)
            yield int(place), values[starts[row] : starts[row + 1]] if inside else None


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable. Some network file systems cannot; their rename is then as durable as they make it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _clean(folder: Path) -> None:
    """Removes temporary files whose writer is gone: a dead process of this host, or any a day old."""
    for path in folder.glob(".tmp-*"):
        with contextlib.suppress(OSError, ValueError):
            host, pid = path.name.removeprefix(".tmp-").rsplit("-", 2)[:2]
            dead = host == socket.gethostname() and not _is_alive(int(pid))
            if dead or time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
