"""The files of the reference store: Parquet parts, and the index of their keys in memory."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = b"jaxalign-reference-1"
KEY_BYTES = 32
CHECK_BYTES = 8
ROW_GROUP = 1024  # entries decoded together
STALE_SECONDS = 24 * 3600  # a temporary file this old has no writer any more
UNREADABLE = (pa.ArrowException, OSError, KeyError, ValueError, IndexError)
"""What reading a damaged file may raise."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("logps", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
        pa.field("checksum", pa.binary(CHECK_BYTES), nullable=False),
    ]
)
_log = logging.getLogger("jaxalign")


class Index:
    """Where each key's entries are, sorted by key; copies of one key in the order of their parts. 57 bytes an entry."""

    def __init__(self) -> None:
        self.keys = np.zeros((0, KEY_BYTES), np.uint8)
        self.checks = np.zeros((0, CHECK_BYTES), np.uint8)
        self.part = np.zeros(0, np.int32)
        self.row = np.zeros(0, np.int32)
        self.bad = np.zeros(0, bool)
        self.prefix = np.zeros(0, np.uint64)

    def merged(self, parts: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> tuple[Index, int, int]:
        """The index with further parts, each (number, keys ``[n, 32]``, checksums ``[n, 8]``).

        Returns:
          The index, and how many of its new entries are copies of a key with the same and with other values.
        """
        new = Index()
        new.keys = np.concatenate([self.keys, *(keys for _, keys, _ in parts)])
        new.checks = np.concatenate([self.checks, *(checks for _, _, checks in parts)])
        new.part = np.concatenate([self.part, *(np.full(len(keys), part, np.int32) for part, keys, _ in parts)])
        new.row = np.concatenate([self.row, *(np.arange(len(keys), dtype=np.int32) for _, keys, _ in parts)])
        new.bad = np.concatenate([self.bad, np.zeros(len(new.keys) - len(self.bad), bool)])
        words = _words(new.keys)
        order = np.lexsort(words.T[::-1])  # stable: an older entry stays before a newer one
        for name in ("keys", "checks", "part", "row", "bad"):
            setattr(new, name, getattr(new, name)[order])
        new.prefix = np.ascontiguousarray(words[order, 0])
        duplicates, conflicts = (a - b for a, b in zip(new._copies(), self._copies(), strict=True))
        return new, duplicates, conflicts

    def _copies(self) -> tuple[int, int]:
        again = (self.keys[1:] == self.keys[:-1]).all(axis=1)
        same = (self.checks[1:] == self.checks[:-1]).all(axis=1)
        return int((again & same).sum()), int((again & ~same).sum())

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Position of the first good entry of each key ``[n, 32]``, -1 where there is none."""
        found = np.full(len(wanted), -1, np.int64)
        prefix = _words(wanted)[:, 0]
        at = np.searchsorted(self.prefix, prefix)
        active = np.arange(len(wanted))
        while active.size:
            active = active[at[active] < len(self.prefix)]
            active = active[self.prefix[at[active]] == prefix[active]]
            here = at[active]
            match = ~self.bad[here] & (self.keys[here] == wanted[active]).all(axis=1)
            found[active[match]] = here[match]
            active = active[~match]
            at[active] += 1
        return found


def _words(keys: np.ndarray) -> np.ndarray:
    """Keys ``[n, 32]`` bytes as ``[n, 4]`` integers of the same order."""
    return np.ascontiguousarray(keys).view(">u8").astype(np.uint64)


def as_matrix(keys: Sequence[bytes]) -> np.ndarray:
    """Keys as ``[n, 32]`` bytes."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES)


def checksum(key: bytes, values: np.ndarray) -> bytes:
    """Ties values to their key; 8 bytes."""
    return hashlib.blake2b(key + values.astype("<f4", copy=False).tobytes(), digest_size=CHECK_BYTES).digest()


def write_part(
    folder: Path, keys: Sequence[bytes], values: Sequence[np.ndarray], process: int, identity: Mapping[str, str]
) -> tuple[Path, np.ndarray]:
    """Writes a part under a temporary name, then renames it. Returns its path and the checksums ``[n, 8]``."""
    checks = b"".join(checksum(key, array) for key, array in zip(keys, values, strict=True))
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    table = pa.Table.from_arrays(
        [
            pa.array(keys, pa.binary(KEY_BYTES)),
            pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(np.concatenate(values)), type=SCHEMA.field("logps").type
            ),
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(CHECK_BYTES), len(keys), [None, pa.py_buffer(checks)]),
        ],
        schema=SCHEMA.with_metadata({"format": FORMAT.decode(), **identity}),
    )
    name = f"part-{time.time_ns():020d}-p{process:05d}-{uuid.uuid4().hex[:8]}.parquet"
    temporary = folder / f".tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
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
    os.replace(temporary, folder / name)
    _sync_folder(folder)
    return folder / name, np.frombuffer(checks, np.uint8).reshape(-1, CHECK_BYTES)


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The keys ``[n, 32]`` and checksums ``[n, 8]`` of a part. Raises one of `UNREADABLE`."""
    with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
        table = file.read(columns=["key", "checksum"])
    return _bytes_matrix(table.column("key"), KEY_BYTES), _bytes_matrix(table.column("checksum"), CHECK_BYTES)


def read_rows(path: Path, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray | None]]:
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
        except UNREADABLE as error:
            _log.warning("reference store: row group %d of %s cannot be read (%s)", group, path, error)
            for place in places:
                yield int(place), None
            continue
        for place in places:
            row = int(rows[place]) - int(group) * ROW_GROUP
            inside = row + 1 < len(starts) and 0 <= starts[row] <= starts[row + 1] <= len(values)
            yield int(place), values[starts[row] : starts[row + 1]] if inside else None


def clean(folder: Path) -> None:
    """Removes temporary files whose writer is gone: a dead process of this host, or any a day old."""
    for path in folder.glob(".tmp-*"):
        with contextlib.suppress(OSError, ValueError):
            host, pid = path.name.removeprefix(".tmp-").rsplit("-", 2)[:2]
            dead = host == socket.gethostname() and not _is_alive(int(pid))
            if dead or time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _bytes_matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A fixed-size binary column as ``[n, width]`` bytes."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    if array.type != pa.binary(width):
        raise ValueError(f"a column has the type {array.type}")
    data = array.buffers()[1]
    if array.null_count or (data is None and len(array)):
        raise ValueError("a key or a checksum is null")
    flat = np.frombuffer(data or b"", np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    return flat.reshape(len(array), width)


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable. Some network file systems cannot; their rename is then as durable as they make it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
