"""A study's rows from its files: read, checked field by field, and gathered where rows.jsonl lacks some."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxalign.errors import DataError
from jaxalign.studies import rows
from jaxalign.studies.report.results import is_number

MOST = 40
"""Problems that are told one by one."""


class Found(NamedTuple):
    """A study's rows, and what a reader must know of where they come from."""

    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]


def read_rows(folder: str | Path) -> Found:
    """The rows of ``rows.jsonl``, after those were added that only ``rows/*.json`` has.

    Several processes write a study on machines that share no locks; the last of them to write rows.jsonl may have
    missed a row, while each row's own file is written by its maker alone.

    Args:
      folder: the study's folder, or the rows.jsonl itself, which is then read as it is.

    Raises:
      DataError: there is no row, or some are none: with file, line and field, all of them.
    """
    folder = Path(folder)
    file = folder / "rows.jsonl" if folder.is_dir() else folder
    problems: list[str] = []
    notes = _gather(folder, file, problems) if folder.is_dir() else []
    listed = list(_lines(file, problems))
    for where, row in listed:
        problems += _problems(row, where)
    if not problems:
        problems += _twice(listed)
    if problems:
        more = [f"and {len(problems) - MOST} more."] if len(problems) > MOST else []
        raise DataError([*problems[:MOST], *more])
    if not listed:
        raise DataError(f"{folder}: no rows yet, expected at least one; jaxalign study makes them.")
    return Found(tuple(row for _, row in listed), tuple(notes))


def _gather(folder: Path, file: Path, problems: list[str]) -> list[str]:
    """Writes rows.jsonl anew from the rows' own files; what a reader must know of it."""
    single = list(_files(folder / "rows", problems))
    for where, row in single:
        problems += _problems(row, where)
    if problems or not single or not _is_described(folder):
        return []
    before = _finished(file)
    rows.collect_folder(folder)
    added = sorted(_finished(file) - before)
    if not added:
        return []
    many = len(added) > 1
    told = ", ".join(added[:6]) + (f" and {len(added) - 6} more" if len(added) > 6 else "")
    return [
        f"{len(added)} finished {'rows were' if many else 'row was'} not in rows.jsonl and {'are' if many else 'is'} "
        f"taken from {'their own files' if many else 'its own file'} in rows/: {told}."
    ]


def _is_described(folder: Path) -> bool:
    """Whether the folder says which rows its study has, as newer ones do; those of others are left as they are."""
    try:
        return "headline" in json.loads((folder / "study.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _finished(file: Path) -> set[str]:
    found = [row for _, row in _lines(file, [])]
    return {str(row.get("row")) for row in found if isinstance(row, Mapping) and row.get("status") == "done"}


def _lines(file: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"not UTF-8: {error.reason}"
        problems.append(f"{file}: no rows can be read ({why}); expected the folder of a study that has made a row.")
        return
    # Not splitlines: samples may hold letters such as U+2028, which it takes for the end of a line.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        where = f"{file} line {number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: not JSON: {error}.")


def _files(folder: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    for file in sorted(folder.glob("*.json")):
        try:
            yield str(file), json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{file}: not readable as JSON: {error}.")


def _twice(listed: list[tuple[str, Any]]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for where, row in listed:
        if row["row"] in seen:
            yield f"{where}: field 'row': {row['row']!r} again, as in {seen[row['row']]}; expected once."
        seen.setdefault(row["row"], where)


def _number(value: Any) -> bool:
    return value is None or (is_number(value) and math.isfinite(value))


def _label(value: Any) -> bool:
    return isinstance(value, str) or (is_number(value) and math.isfinite(value))


Check = tuple[Callable[[Any], bool], str]
TEXT: Check = (lambda v: isinstance(v, str), "a text")
TEXT_OR_NONE: Check = (lambda v: v is None or isinstance(v, str), "a text or null")
OBJECT: Check = (lambda v: isinstance(v, Mapping), "an object")
OBJECT_OR_NONE: Check = (lambda v: v is None or isinstance(v, Mapping), "an object or null")
LIST: Check = (lambda v: isinstance(v, list), "a list")
OBJECTS: Check = (lambda v: isinstance(v, list) and all(isinstance(e, Mapping) for e in v), "a list of objects")
OBJECTS_OR_NONE: Check = (lambda v: v is None or OBJECTS[0](v), "a list of objects or null")
NUMBER: Check = (_number, "a finite number or null")
COUNT: Check = (lambda v: is_number(v) and v >= 0, "a number of items, 0 or more")
NUMBERS: Check = (
    lambda v: v is None or (isinstance(v, list) and all(isinstance(e, bool) or _number(e) for e in v)),
    "a list of finite numbers and nulls, or null",
)
BETTER: Check = (lambda v: v is None or isinstance(v, bool), "true, false or null")
LABEL: Check = (_label, "a text or a finite number")
STATUS: Check = (lambda v: v in ("done", "failed"), "'done' or 'failed'")
TEXTS: Check = (lambda v: isinstance(v, list) and all(isinstance(e, str) for e in v), "a list of texts")

ROW = {"row": TEXT, "labels": OBJECT, "status": STATUS, "study": OBJECT}
"""Fields that every row has."""
ROW_MORE = {"error": OBJECT_OR_NONE, "results": OBJECT, "stages": OBJECTS_OR_NONE, "seconds": NUMBER}
STUDY = {"name": TEXT, "question": TEXT, "headline": TEXT, "compare": TEXT, "notes": LIST, "published": OBJECTS}
OUTCOME = {
    "metrics": OBJECT, "protocol": OBJECT, "samples": OBJECTS, "details": OBJECT, "degenerate": TEXT_OR_NONE,
    "notes": TEXTS,
}  # fmt: skip
METRIC = {
    "n": COUNT, "values": NUMBERS, "stderr": NUMBER, "unit": TEXT, "higher_is_better": BETTER, "of_given_text": BETTER
}  # fmt: skip
STAGE = {"config": OBJECT, "curves": OBJECT, "metrics": OBJECT, "name": TEXT}
PUBLISHED = {"metric": TEXT, "source": TEXT, "labels": OBJECT}
PUBLISHED_MORE = {"value": NUMBER, "ours": TEXT_OR_NONE, "unit": TEXT_OR_NONE}


def _problems(row: Any, where: str) -> Iterator[str]:
    """What is wrong with a row, field by field."""
    if not isinstance(row, Mapping):
        yield f"{where}: got {_short(row)}, expected a row: an object with {', '.join(map(repr, ROW))}."
        return
    tell = _Teller(where)
    yield from tell.fields(row, "", ROW, ROW_MORE)
    for name, value in _of(row, "labels"):
        yield from tell.one(value, f"labels.{name}", LABEL)
    study = row.get("study")
    if isinstance(study, Mapping):
        yield from tell.fields(study, "study.", {}, STUDY)
        for place, each in enumerate(study.get("published") or ()):
            if isinstance(each, Mapping):
                path = f"study.published[{place}]."
                yield from tell.fields(each, path, PUBLISHED, PUBLISHED_MORE)
                for name, value in _of(each, "labels"):
                    yield from tell.one(value, f"{path}labels.{name}", LABEL)
    for measure, outcome in _of(row, "results"):
        path = f"results.{measure}"
        yield from tell.one(outcome, path, OBJECT)
        if isinstance(outcome, Mapping):
            yield from tell.fields(outcome, f"{path}.", {}, OUTCOME)
            for name, metric in _of(outcome, "metrics"):
                yield from tell.one(metric, f"{path}.metrics.{name}", OBJECT)
                if isinstance(metric, Mapping):
                    yield from tell.fields(metric, f"{path}.metrics.{name}.", {"value": NUMBER}, METRIC)
    stages = row.get("stages")
    for place, stage in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(stage, Mapping):
            yield from tell.fields(stage, f"stages[{place}].", {}, STAGE)
            for name, curve in _of(stage, "curves"):
                yield from tell.one(curve, f"stages[{place}].curves.{name}", NUMBERS)


def _of(tree: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    found = tree.get(name)
    return list(found.items()) if isinstance(found, Mapping) else []


class _Teller(NamedTuple):
    """Tells what is wrong at a place."""

    where: str

    def one(self, value: Any, path: str, check: Check) -> Iterator[str]:
        if not check[0](value):
            yield f"{self.where}: field {path!r}: got {_short(value)}, expected {check[1]}."

    def fields(
        self, tree: Mapping[str, Any], path: str, needed: Mapping[str, Check], others: Mapping[str, Check]
    ) -> Iterator[str]:
        for name, check in needed.items():
            if name not in tree:
                yield f"{self.where}: field {path + name!r} is absent, expected {check[1]}."
        for name, check in {**needed, **others}.items():
            if name in tree:
                yield from self.one(tree[name], path + name, check)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
