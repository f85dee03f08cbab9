"""JSON lines that are appended while work goes on, so that a killed process loses no finished item.

A process that dies while it writes leaves a torn last line. It is found when the file is opened again, and cut off: the
item was not finished.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import ConfigError, DataError


class Journal:
    """An append-only file of JSON objects, one a line, open for one process at a time.

    Safe to append to from several threads. A line is handed to the operating system before `append` returns.

    Attributes:
      path: the file.
      records: what it held when it was opened, in order.
      torn: whether a torn last line was cut off.
    """

    def __init__(self, path: str | Path):
        """Opens or creates the file.

        Raises:
          ConfigError: another process has it open, or it cannot be written.
          DataError: a line before the last is no JSON object: it was not written by this class.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115 closed by close()
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError(f"{self.path} is in use by another process; wait for it, or write elsewhere.") from error
        self._file.seek(0)
        content = self._file.read()
        whole, newline, rest = content.rpartition(b"\n")
        self.torn = bool(rest)
        if self.torn:
            self._file.truncate(len(whole) + len(newline))
        try:
            self.records = parse_lines((whole + newline).decode(), self.path)
        except (DataError, UnicodeDecodeError) as error:
            self._file.close()
            raise DataError(f"{self.path} is damaged ({error}); move it away to begin anew.") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record."""
        line = (json.dumps(record) + "\n").encode()
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Ends writing; the next process may open the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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


def write_text(path: str | Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_lines(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON objects, one a line; the file is there whole or not at all."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
