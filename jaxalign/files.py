"""Files on disk: written whole, hashed, locked, and read as JSON lines."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from jaxalign.errors import DataError

_log = logging.getLogger("jaxalign")

LARGE = 64 * 2**20
"""Bytes from which on a file's hash is kept on disk: reading it again would take longer."""
SETTLED = 2.0
"""Seconds after which another change of a file surely shows in its time of change."""


def write_text(path: str | Path, text: str) -> None:
    """Writes a file that is whole or absent at every moment, also when the machine stops."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_lines(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON objects, one a line, in the same way."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def parse_lines(text: str, name: str | Path) -> list[dict[str, Any]]:
    """JSON objects, one a line; empty lines are skipped.

    Raises:
      DataError: every line that is none.
    """
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    # Not splitlines: a JSON text may hold the line separators of Unicode.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            problems.append(f"{name} line {number}: not JSON ({error}).")
            continue
        if isinstance(record, dict):
            records.append(record)
        else:
            problems.append(f"{name} line {number}: got {type(record).__name__}, expected an object.")
    if problems:
        raise DataError(problems)
    return records


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line.

    Raises:
      DataError: it cannot be read, or holds something else; all problems.
    """
    try:
        return parse_lines(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error


def cache_folder() -> Path:
    """The user's folder for what may be computed again: reference log-probabilities, compiled programs, hashes, rows.

    It is ``JAXALIGN_CACHE``, else ``jaxalign`` in ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if chosen := os.environ.get("JAXALIGN_CACHE"):
        return Path(chosen).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "jaxalign"


def compiled_folder() -> Path:
    """Where compiled programs are kept, unless ``JAX_COMPILATION_CACHE_DIR`` says another place.

    Programs for the CPU use the instructions that it has, so machines that share a home and differ in these share none.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = ""
    machine = hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:8]
    return cache_folder() / "compiled" / machine


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, all of them, as hexadecimal digits.

    That of a large file is kept in the user's cache and read from there while the file's place, inode, size and times
    of modification and change stay what they were.
    """
    path = Path(os.path.realpath(path))
    return kept_hash("bytes", [path], lambda: _read_hash(path))


def file_state(path: str | Path) -> tuple[str, int, int, int, int]:
    """A file's place, inode, size, and times of modification and change, which other bytes would not leave as they are.

    The time of change is kept by the file system. Archives and images set that of modification, the same for all bytes.
    """
    stat = os.stat(path)
    return os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def kept_hash(kind: str, paths: Iterable[Path], compute: Callable[[], str]) -> str:
    """A hash of what is in files; that of large ones is kept in the user's cache, as `file_hash` says.

    Args:
      kind: what of the files is hashed, and how: other kinds are other hashes.
      paths: the files.
      compute: reads the files.
    """

    def look() -> dict[str, Any]:
        return {"kind": kind, "files": [list(file_state(path)) for path in paths]}

    paths = list(paths)
    state = look()
    if sum(size for _, _, size, _, _ in state["files"]) < LARGE:
        return compute()
    place = hashlib.sha256(os.fsencode(json.dumps([kind, *(path for path, *_ in state["files"])]))).hexdigest()[:32]
    memo = cache_folder() / "hashes" / f"{place}.json"
    try:
        kept = json.loads(memo.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and {name: kept.get(name) for name in state} == state:
            return str(kept["sha256"])
    except (OSError, ValueError, KeyError):
        pass
    found = compute()
    after = look()
    if after == state and time.time() - max(changed for *_, changed in after["files"]) / 1e9 > SETTLED:
        try:
            write_text(memo, json.dumps(state | {"sha256": found}) + "\n")
        except OSError as error:  # a home that cannot be written: the next process reads the files again
            _log.debug("%s cannot be written: %s", memo, error)
    return found


def _read_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def try_lock(file: IO[Any], path: str | Path) -> bool:
    """Locks an open file for this process until it is closed. False if another process holds it.

    On a file system that knows no locks, such as some buckets, nothing keeps others out; that is logged.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        _log.warning("%s cannot be locked (%s); let one process at a time write there.", path, error.strerror)
    return True
