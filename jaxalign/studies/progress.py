"""What a row is doing, as one line that grows: ``align 120 s, measuring answers``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from jaxalign.studies.folders import write_json
from jaxalign.studies.processes import is_first


class Progress:
    """Collects what a row has done and is doing.

    Args:
      show: gets the line when it changes.
      file: gets it too, for the process that watches this one.
    """

    def __init__(self, show: Callable[[str], None] | None = None, file: Path | None = None):
        self._show, self._file = show, file
        self._done: list[str] = []

    def __call__(self, what: str, key: str | None, seconds: float | None) -> None:
        """See `jaxalign.studies.make_row.Tell`."""
        if seconds is not None:
            self._done.append(f"{what} {took(seconds)}")
        if not is_first():
            return
        line = ", ".join(self._done + ([what] if seconds is None else []))
        if self._file is not None:
            doing = what if seconds is None else None
            write_json(self._file, {"line": line, "what": doing, "key": key if doing else None, "since": time.time()})
        if self._show is not None:
            self._show(line)


def took(seconds: float) -> str:
    """A duration for people: ``0.4 s``, ``120 s``, ``2.5 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
