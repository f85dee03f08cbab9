"""Rows of results: one JSON file each, and all of them in ``rows.jsonl``.

A row says what it is (``labels``), whether it was made (``status``, ``error``), how (``stages``), and what was found
(``results``, the outcome of each measure). Files are whole or absent at every moment. Paths into the study's folder
are relative to it. A number that is not finite is null.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError
from jaxalign.files import parse_lines, write_text
from jaxalign.studies.folders import Folders, finite, locked, read_json, write_json
from jaxalign.studies.study import Study

_log = logging.getLogger("jaxalign")

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
        found = parse_lines(file.read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path}: no rows can be read ({why}); expected the folder of a study that has made a row."
        ) from error
    problems = [
        f"{file} row {number}: no row of a study: it lacks 'row', 'labels' or 'status'."
        for number, row in enumerate(found, 1)
        if not {"row", "labels", "status"} <= row.keys()
    ]
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


def study_header(study: Study) -> Row:
    """What every row says of its study."""
    return {
        "name": study.name,
        "question": study.question,
        "headline": study.headline,
        "compare": study.compare,
        "notes": list(study.notes),
        "published": [{**dataclasses.asdict(each), "labels": dict(each.labels)} for each in study.published],
    }


def note_study(folders: Folders, study: Study, keys: Mapping[str, str]) -> None:
    """Records whose folder it is, and which rows with which keys it may hold.

    Rows of earlier plans of the same study stay known behind those of this one: a study may be run part by part.
    """
    with locked(folders.lock("rows")):
        known = (read_json(folders.about) or {}).get("rows", {})
        write_json(
            folders.about, study_header(study) | {"rows": {**keys, **{k: known[k] for k in known if k not in keys}}}
        )


def collect(folders: Folders, keys: Mapping[str, str] | None = None, study: Study | None = None) -> list[Row]:
    """Writes all rows of the study that are there to ``rows.jsonl``, each with the study as it is now.

    A row that was made with another key than the plan's is left out. Rows that the plan does not have, of the same
    study with other arguments, are kept and stand behind its own.

    Args:
      folders: the study's.
      keys: names of the plan's rows with their keys, in its order; None = as `note_study` recorded them.
      study: what rows say of it; None = likewise.

    Returns:
      The rows.
    """
    with locked(folders.lock("rows")):
        about = read_json(folders.about) or {}
        known = about.pop("rows", {})
        header = study_header(study) if study is not None else about
        order = {**(keys or {}), **{name: key for name, key in known.items() if name not in (keys or {})}}
        found = _rows_there(folders, order, keys or {}, header.get("name"))
        if header:
            found = [{**row, "study": header} for row in found]
        lines = (json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in found)
        write_text(folders.all_rows, "".join(lines))
    return found


def _rows_there(folders: Folders, order: Mapping[str, str], plan: Iterable[str], study: str | None) -> list[Row]:
    """The rows in this order, then those that it does not name; beside the plan's none with labels that are there."""
    files = sorted(path.stem for path in folders.row("any").parent.glob("*.json"))
    found, seen, own = [], set(), set(plan)
    for name in (*order, *(name for name in files if name not in order)):
        row = read_row(folders.row(name))
        if row is None or row.get("key") != order.get(name, row.get("key")):
            continue
        labels = json.dumps(row.get("labels"), sort_keys=True)
        other = study is not None and row.get("study", {}).get("name", study) != study
        if name not in own and (other or labels in seen):
            continue
        seen.add(labels)
        found.append(row)
    return found


def collect_folder(path: str | Path) -> list[Row]:
    """All rows of a study, after ``rows.jsonl`` was written anew from the rows' own files.

    Processes that cannot lock one another out, as over a bucket, may leave rows out of ``rows.jsonl`` that are made:
    the last step of a study and its report call this. A folder without such files is read as it is.

    Args:
      path: the study's folder, or its rows.jsonl, which is only read.

    Raises:
      DataError: see `read`.
    """
    folders = Folders.of(path)
    if not folders.row("any").parent.is_dir():
        return read(path)
    try:
        collect(folders)
    except OSError as error:  # somebody else's folder: a report may still be made of it
        _log.warning("%s cannot be written (%s): its rows are read as they are.", folders.all_rows, error.strerror)
    return read(path)
