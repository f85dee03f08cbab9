"""A study's folder: where its files lie, and how they are written so that none is ever half there."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.files import try_lock, write_text

POLL = 0.2
"""Seconds between two looks at a lock that another process holds."""


@dataclass(frozen=True)
class Folders:
    """The places in a study's folder.

    Attributes:
      root: the folder, absolute.
    """

    root: Path

    @classmethod
    def of(cls, workdir: str | Path) -> Folders:
        """The places in a folder of this name."""
        return cls(Path(workdir).expanduser().absolute())

    def stage(self, name: str, key: str) -> Path:
        """The run folder of a stage."""
        return self.root / "stages" / f"{name}-{key}"

    def measure(self, name: str, key: str) -> Path:
        """The folder of one measurement."""
        return self.root / "measures" / f"{name}-{key}"

    def filled(self, key: str) -> Path:
        """Says that the reference log-probabilities of this key are in the cache."""
        return self.cache / "filled" / f"{key}.json"

    def failure(self, name: str, key: str) -> Path:
        """Says that a stage failed, and how."""
        return self.root / "stages" / f"{name}-{key}.failed.json"

    def row(self, row: str) -> Path:
        """The file of one row."""
        return self.root / "rows" / f"{row}.json"

    def log(self, row: str) -> Path:
        """What the process of a row printed."""
        return self.root / "logs" / f"{row}.log"

    def doing(self, row: str) -> Path:
        """What the process of a row is doing."""
        return self.root / "logs" / f"{row}.doing.json"

    def lock(self, name: str) -> Path:
        """A file to lock."""
        return self.root / "locks" / name

    @property
    def cache(self) -> Path:
        """Reference log-probabilities."""
        return self.root / "cache"

    @property
    def all_rows(self) -> Path:
        """All rows in one file, in the plan's order."""
        return self.root / "rows.jsonl"

    @property
    def about(self) -> Path:
        """Whose folder it is: the study, and the keys of its rows."""
        return self.root / "study.json"

    @property
    def events(self) -> Path:
        """What was begun and ended when, a line each, oldest first."""
        return self.root / "events.jsonl"

    def relative(self, value: Any) -> Any:
        """JSON values with paths into the study's folder made relative to it, so that the folder may be moved."""
        if isinstance(value, str):
            root = str(self.root)
            return "." if value == root else value.removeprefix(root + os.sep)
        if isinstance(value, Mapping):
            return {name: self.relative(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.relative(item) for item in value]
        return value


def write_json(path: Path, tree: Any) -> None:
    """Writes JSON in the same way; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(tree), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """JSON values with null for numbers that are not finite, and plain Python in place of numpy's."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    return float(value) if math.isfinite(value) else None


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def note_event(folders: Folders, event: str, **facts: Any) -> None:
    """Adds a line to the study's record. Lines of several processes do not mix: each is one short append."""
    folders.root.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": now(), "pid": os.getpid(), "event": event, **facts}) + "\n"
    file = os.open(folders.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def now() -> str:
    """The time, for files that people read."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock between processes that the end of the process gives back, however it ends.

    Args:
      path: the file to lock; created, and never removed.
      waiting: called once if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        told = False
        while not try_lock(file, path):
            if waiting is not None and not told:
                waiting()
                told = True
            time.sleep(POLL)
        yield
