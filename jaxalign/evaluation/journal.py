"""JSON lines that are appended while work goes on, so that a killed process loses no finished item.

A process that dies while it writes leaves a torn last line. It is found when the file is opened again, and cut off: the
item was not finished.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import ConfigError, DataError
from jaxalign.files import parse_lines, try_lock


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
        if not try_lock(self._file, self.path):
            self._file.close()
            raise ConfigError(f"{self.path} is in use by another process; wait for it, or write elsewhere.")
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
