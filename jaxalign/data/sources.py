"""Readers: rows out of JSONL, JSON and Parquet files (plain or gzip) and Hugging Face data sets.

A row is any JSON value here; whether it is a usable object is for the next floor to say. A line that cannot be read
comes as a `RowProblem` in its place, so that it is counted like every other bad row.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.data.contract import RowProblem
from jaxalign.data.records import Where
from jaxalign.errors import DataError, did_you_mean

Source = str | Path | Sequence[Any]
"""A path, a glob, a folder, a data set's name ``org/name``, several of these, or rows (mappings) in memory."""

Row = tuple[Where, Any]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_KNOWN = tuple(s + z for s in SUFFIXES for z in ("", ".gz"))
_ID_KEYS = ("id", "prompt_id", "example_id", "message_tree_id", "uid", "uuid")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class SourceRows:
    """All rows of some sources.

    Attributes:
      rows: ``(where, value)``; the value of an unreadable row is a `RowProblem`.
      files: each source's name with the SHA-256 of its bytes, None where it is not a file.
    """

    rows: list[Row]
    files: dict[str, str | None]


def read_rows(source: Source, *, split: str = "train", config: str | None = None) -> SourceRows:
    """Read all rows.

    Args:
      source: see `Source`.
      split: of a Hugging Face data set. Where it has no ``train`` (``test``), ``train_prefs`` and ``train_sft`` are
        tried.
      config: configuration name of a Hugging Face data set.

    Raises:
      DataError: a source does not exist, is not of a known kind, cannot be read at all, or has no rows.
    """
    if not isinstance(source, str | Path) and not _are_names(source):
        rows = [_row("rows", i, value) for i, value in enumerate(source, 1)]
        if not rows:
            raise DataError("the data has no rows")
        return SourceRows(rows, {"rows in memory": None})
    entries: list[str | Path] = [source] if isinstance(source, str | Path) else list(source)
    paths: list[Path | str] = [p for entry in entries for p in expand(entry)]
    names = _display_names([p for p in paths if isinstance(p, Path)])
    rows, files, problems = [], {}, []
    for path in paths:
        before = len(rows)
        try:
            if isinstance(path, Path):
                data = _read_bytes(path)
                files[str(path)] = hashlib.sha256(data).hexdigest()
                rows += _parse(data, path, names[path])
            else:
                files[f"{path} ({config + ', ' if config else ''}{split})"] = None
                rows += _read_hub(path, split, config)
            if len(rows) == before:
                problems.append(f"{path}: the file has no rows" if isinstance(path, Path) else f"{path}: no rows")
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return SourceRows(rows, files)


def _are_names(source: Sequence[Any]) -> bool:
    return len(source) > 0 and all(isinstance(source[i], str | Path) for i in range(len(source)))


def expand(entry: str | Path) -> list[Path | str]:
    """The files of a path, folder or glob, or the name of a data set on the hub by itself.

    Raises:
      DataError: there is no such file.
    """
    text = str(entry)
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name.endswith(_KNOWN))
        if not found:
            raise DataError(f"{path}: the folder holds no data file (expected {', '.join(SUFFIXES)}, also .gz)")
        return list(found)
    if any(c in text for c in "*?["):
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not found:
            raise DataError(f"{text}: no file matches")
        return list(found)
    if not text.endswith(_KNOWN) and not text.startswith((".", "/", "~")) and _HUB_NAME.fullmatch(text):
        return [text]
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    where = "" if path.parent.is_dir() else f" (there is no folder {path.parent})"
    raise DataError(f"{text}: no such file{where}.{did_you_mean(path.name, siblings)}")


def _display_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The file name, or the path where two files have the same name."""
    names = [p.name for p in paths]
    return {p: p.name if names.count(p.name) == 1 else str(p) for p in paths}


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _parse(data: bytes, path: Path, name: str) -> Iterator[Row]:
    kind = path.name.removesuffix(".gz")
    if data[:4] == b"PAR1" or kind.endswith(".parquet"):
        return _parse_parquet(data, path, name)
    if not kind.endswith((".jsonl", ".ndjson", ".json")):
        raise DataError(f"{path}: unknown kind of file (expected {', '.join(SUFFIXES)}, also .gz)")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip()[:1] == b"[":
        return _parse_array(data, path, name)
    return _parse_lines(data, path, name)


def _row(file: str, number: int, value: Any) -> Row:
    found = next((value[k] for k in _ID_KEYS if value.get(k) is not None), None) if isinstance(value, Mapping) else None
    return Where(file, number, str(found) if isinstance(found, str | int) else None), value


def _parse_lines(data: bytes, path: Path, name: str) -> Iterator[Row]:
    rows, failed = [], 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(name, number, json.loads(line.decode("utf-8"))))
        except UnicodeDecodeError as error:
            rows.append((Where(name, number), RowProblem("non-UTF-8", _bad_byte(error))))
        except ValueError as error:
            failed += 1
            rows.append((Where(name, number), RowProblem("malformed JSON", _json_error(error))))
    if failed == len(rows) > 1 and path.name.removesuffix(".gz").endswith(".json"):
        raise DataError(f"{path}: neither a JSON array of objects nor one JSON object a line")
    return iter(rows)


def _parse_array(data: bytes, path: Path, name: str) -> Iterator[Row]:
    try:
        values = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path} line {line}: {_bad_byte(error)}. Re-encode the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno} column {error.colno}: not valid JSON: {error.msg}") from error
    return (_row(name, i, value) for i, value in enumerate(values, 1))


def _bad_byte(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} is not UTF-8"


def _json_error(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg}"
    return f"not valid JSON: {error}"


def _parse_parquet(data: bytes, path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    return _arrow_rows(table, name)


def _arrow_rows(table: Any, name: str) -> Iterator[Row]:
    number = 0
    for batch in table.to_batches(max_chunksize=1024):
        try:
            values = batch.to_pylist()
        except UnicodeDecodeError:  # find the row
            values = [_arrow_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for value in values:
            number += 1
            yield _row(name, number, value)


def _arrow_row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return RowProblem("non-UTF-8", _bad_byte(error))


def _read_hub(name: str, split: str, config: str | None) -> Iterator[Row]:
    import datasets

    try:
        available = datasets.get_dataset_split_names(name, config)
        wanted = [split, f"{split}_prefs", f"{split}_sft"]
        chosen = next((s for s in wanted if s in available or "[" in s), None)
        if chosen is None:
            raise DataError(f"{name}: there is no split {split!r}; it has {', '.join(available)}")
        table = datasets.load_dataset(name, config, split=chosen)
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds, also its dependencies'
        raise DataError(
            f"{name}: is neither a file nor a Hugging Face data set that can be loaded: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}. "
            "Without a network, download it first and give its files (JSONL, JSON or Parquet)."
        ) from error
    return (_row(f"{name} {chosen}", i, dict(value)) for i, value in enumerate(table, 1))
