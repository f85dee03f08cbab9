"""Rows of results: one JSON file each, and all of them in ``rows.jsonl``.

A row says what it is (``labels``), whether it was made (``status``, ``error``), how (``stages``), and what was found
(``results``, the outcome of each measure). Files are whole or absent at every moment. Paths into the study's folder
are relative to it. A number that is not finite is null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError
from jaxalign.studies.folders import Folders, finite, locked, read_json, write_json, write_text

Row = dict[str, Any]

TIMES = ("started", "finished", "seconds", "stderr")
"""What two makings of one row need not have in common: when, how long, and what was printed."""


def read(path: str | Path) -> list[Row]:
    """All rows of a study.

    Args:
      path: the study's folder, or its rows.jsonl.

    Raises:
      DataError: there is no such file, or a line of it is no row.
    """
    path = Path(path)
    file = path / "rows.jsonl" if path.is_dir() else path
    try:
        # Not splitlines: samples may hold letters such as U+2028, which it takes for the end of a line.
        text = file.read_text(encoding="utf-8")
        lines = text.removesuffix("\n").split("\n") if text else []
    except OSError as error:
        raise DataError(
            f"{path}: no rows can be read ({error.strerror}); expected the folder of a study that has made a row."
        ) from error
    found, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.append(f"{file} line {number}: not JSON: {error}.")
            continue
        if not isinstance(row, dict) or not {"row", "labels", "status"} <= row.keys():
            problems.append(f"{file} line {number}: no row of a study: it lacks 'row', 'labels' or 'status'.")
            continue
        found.append(row)
    if problems:
        raise DataError(problems)
    return found


def comparable(row: Mapping[str, Any]) -> Row:
    """The row without times and throughput: equal for two makings of the same row on the same machine."""

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                name: kept(item)
                for name, item in value.items()
                if name not in TIMES and "perf/" not in name and "per_second" not in name
            }
        return [kept(item) for item in value] if isinstance(value, list | tuple) else value

    return kept(row)


def read_row(path: Path) -> Row | None:
    """The row in a file; None where there is none."""
    row = read_json(path)
    return row if row is not None and row.get("status") in ("done", "failed") else None


def write_row(folders: Folders, row: Mapping[str, Any]) -> None:
    """Writes one row's own file."""
    write_json(folders.row(row["row"]), folders.relative(row))


def collect(folders: Folders, keys: Iterable[tuple[str, str]]) -> list[Row]:
    """Writes all rows that are there to ``rows.jsonl``, in the order given.

    Args:
      folders: the study's.
      keys: names of the rows with their keys; a row that was made with another key is left out.

    Returns:
      The rows.
    """
    with locked(folders.lock("rows")):
        found = []
        for name, key in keys:
            row = read_row(folders.row(name))
            if row is not None and row.get("key") == key:
                found.append(row)
        lines = (json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in found)
        write_text(folders.all_rows, "".join(lines))
    return found
