"""Published benchmark files as the columns that lm-eval's official tasks read.

A folder of benchmarks holds a folder for each data set, with files named by split::

  benchmarks/
    gsm8k/train.jsonl  gsm8k/test.jsonl.gz
    hellaswag/train.jsonl  hellaswag/validation.jsonl

Rows have the columns of the data set on the hub, or one of the forms that the benchmark is also published in. Whatever
else a task does (its prompt, its metric) is lm-eval's own.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError, did_you_mean
from jaxalign.files import cache_folder, write_text

Row = Mapping[str, Any]
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
    "dev": ("dev",),
    "default": ("default", "test"),
}
"""Names that a file of each split may have, best first."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True)
class BenchmarkData:
    """A data set in files.

    Attributes:
      folders: what its folder may be called, behind an optional ``bench-``.
      columns: of the data set on the hub.
      convert: makes a row of them from another published form; raises `KeyError` or `ValueError` for none.
      files: further names that the file of a split may have.
      note: what differs from the hub's rows after `convert`.
    """

    folders: tuple[str, ...]
    columns: tuple[str, ...]
    convert: Callable[[Row], dict[str, Any]] = dict
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""


def _arc(row: Row) -> dict[str, Any]:
    question, _, options = row["problem"].partition("\nOptions:\n")
    texts = options.split("\n")
    matches = [i for i, text in enumerate(texts) if text.strip().casefold() == row["answer"].strip().casefold()]
    if not matches:
        raise ValueError(f"answer {row['answer']!r} is none of the options {texts}")
    labels = [chr(ord("A") + i) for i in range(len(texts))]
    return {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": labels[matches[0]]}


def _hellaswag(row: Row) -> dict[str, Any]:
    activity, _, context = row["context"].partition(": ")
    # The sentence to be finished begins in lower case; the task itself writes it with a capital.
    start = max(context.rfind(mark) + len(mark) for mark in (". ", "? ", "! "))
    first = context[start : start + 1]
    split = start >= 2 and first.islower()
    beginning, sentence = (context[: start - 1], context[start:]) if split else (context, "")
    return {
        "activity_label": activity,
        "ctx_a": beginning,
        "ctx_b": sentence,
        "endings": list(row["endings"]),
        "label": str(row["label"]),
    }


def _mmlu(row: Row) -> dict[str, Any]:
    answer = row["answer"]
    index = "ABCD".index(answer) if isinstance(answer, str) else int(answer)
    return {"question": row["question"], "subject": row["subject"], "choices": list(row["choices"]), "answer": index}


def _boolq(row: Row) -> dict[str, Any]:
    return {"passage": row["passage"], "question": row["question"], "label": int(row["answer"])}


def _truthfulqa(row: Row) -> dict[str, Any]:
    def targets(answers: Any) -> dict[str, Any]:
        if "choices" in answers:
            return dict(answers)
        return {"choices": list(answers), "labels": [int(label) for label in answers.values()]}

    return {"question": row["question"]} | {name: targets(row[name]) for name in ("mc1_targets", "mc2_targets")}


DATA: Mapping[str, BenchmarkData] = {
    "arc_challenge": BenchmarkData(
        ("arc-challenge",),
        ("question", "choices", "answerKey"),
        _arc,
        note="options begin in lower case, as BMC publishes them",
    ),
    "arc_easy": BenchmarkData(
        ("arc-easy",),
        ("question", "choices", "answerKey"),
        _arc,
        note="options begin in lower case, as BMC publishes them",
    ),
    "hellaswag": BenchmarkData(
        ("hellaswag",),
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        _hellaswag,
        note="contexts are split where their last sentence begins in lower case",
    ),
    "mmlu": BenchmarkData(("mmlu",), ("question", "subject", "choices", "answer"), _mmlu),
    "truthfulqa": BenchmarkData(
        ("truthfulqa",),
        ("question", "mc1_targets", "mc2_targets"),
        _truthfulqa,
        files={"validation": ("mc_task",)},
    ),
    "winogrande": BenchmarkData(("winogrande",), ("sentence", "option1", "option2", "answer")),
    "gsm8k": BenchmarkData(("gsm8k",), ("question", "answer")),
    "bbh": BenchmarkData(("bbh",), ("input", "target"), files={"test": ("all-tasks",)}),
    "bigbench": BenchmarkData(("bigbench",), ("inputs", "targets", "multiple_choice_targets")),
    "openbookqa": BenchmarkData(("openbookqa",), ("question_stem", "choices", "answerKey")),
    "boolq": BenchmarkData(("boolq",), ("passage", "question", "label"), _boolq),
    "piqa": BenchmarkData(("piqa",), ("goal", "sol1", "sol2", "label")),
    "ifeval": BenchmarkData(
        ("ifeval",), ("key", "prompt", "instruction_id_list", "kwargs"), files={"train": ("input_data",)}
    ),
}
"""The data sets that can be read from files."""

_BBH_TASK = re.compile(r"(?:leaderboard_)?bbh_(?:(?:cot_)?(?:few|zero)shot_)?(?P<subset>\w+)")


def data_of(task: str) -> tuple[str, str | None] | None:
    """The data set of an lm-eval task and the subset of it that the task asks; None for a task that is not known."""
    if task.startswith("mmlu_"):
        return "mmlu", task.removeprefix("mmlu_")
    if task in ("truthfulqa_mc1", "truthfulqa_mc2"):
        return "truthfulqa", None
    if bbh := _BBH_TASK.fullmatch(task):
        return "bbh", bbh["subset"]
    if task.startswith("bigbench_"):
        return "bigbench", task.removeprefix("bigbench_").removesuffix("_multiple_choice")
    return (task, None) if task in DATA else None


class BenchmarkFolder:
    """Reads data sets from a folder, and writes the rows that tasks read into a cache.

    Args:
      folder: of benchmarks.
      cache: where rows are written, by their content; None = ``~/.cache/jaxalign/benchmarks``.

    Raises:
      DataError: there is no such folder.
    """

    def __init__(self, folder: str | Path, cache: str | Path | None = None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"--benchmarks: {self.folder} is not a folder. Expected one with a folder per data set.")
        self.cache = Path(cache) if cache else cache_folder() / "benchmarks"
        self.notes: dict[str, str] = {}
        self._rows: dict[Path, list[Row]] = {}

    def subsets(self, name: str, column: str, split: str) -> list[str]:
        """The values of a column in a split, sorted."""
        return sorted({row[column] for row in self._read(self._split_file(name, split), name)})

    def splits(self, name: str, wanted: Sequence[str], subset: str | None = None) -> dict[str, str]:
        """Files in the official columns, by split; a split that the folder does not have is left out.

        Args:
          name: of the data set.
          wanted: splits.
          subset: a subject of MMLU or a task of BBH.

        Raises:
          DataError: there is no folder for the data set, or rows have other columns.
        """
        found = {}
        for split in wanted:
            path = self._split_file(name, split, subset, missing_is_fine=True)
            if path is None or (split == "validation" and "dev" in wanted and _stem(path) == "dev"):
                continue
            rows = [row for row in self._read(path, name) if _in_subset(row, subset)]
            if rows:
                found[split] = str(self._write(name, subset, split, rows))
        return found

    def data_folder(self, name: str) -> Path:
        """Where a data set lies.

        Raises:
          DataError: nowhere.
        """
        names = DATA[name].folders
        for candidate in (*names, *(n.replace("-", "_") for n in names), *(f"bench-{n}" for n in names)):
            if (self.folder / candidate).is_dir():
                return self.folder / candidate
        there = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
        if self.folder.name.replace("_", "-").removeprefix("bench-") in names:
            hint = f" Did you mean its parent, {str(self.folder.parent)!r}?"
        else:
            hint = did_you_mean(names[0], there)
        raise DataError(
            f"{name}: {self.folder} has no folder {names[0]!r} or 'bench-{names[0]}', only "
            f"{', '.join(there) or 'files'}.{hint} Put its files there as train.jsonl, validation.jsonl, test.jsonl, "
            f"with the columns {', '.join(DATA[name].columns)}."
        )

    def _split_file(self, name: str, split: str, subset: str | None = None, missing_is_fine: bool = False) -> Any:
        folder = self.data_folder(name)
        stems = (*((subset,) if subset else ()), *DATA[name].files.get(split, ()), *SPLITS[split])
        for home in (folder / subset, folder) if subset else (folder,):
            for stem in stems:
                for suffix in SUFFIXES:
                    if (path := home / f"{stem}{suffix}").is_file():
                        return path
        if missing_is_fine:
            return None
        raise DataError(f"{name}: {folder} has no {split} split, expected {SPLITS[split][0]}.jsonl or .jsonl.gz.")

    def _read(self, path: Path, name: str) -> list[Row]:
        if path not in self._rows:
            self._rows[path] = self._converted(path, name)
        return self._rows[path]

    def _converted(self, path: Path, name: str) -> list[Row]:
        data, rows, problems = DATA[name], [], []
        try:
            raw = _read_json(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as JSON rows ({error}).") from error
        for number, row in enumerate(raw, 1):
            try:
                if not isinstance(row, Mapping):
                    raise ValueError("it is no object")
                official = all(column in row for column in data.columns)
                if official and name not in ("mmlu", "truthfulqa"):
                    rows.append(row)
                    continue
                converted = data.convert(row)
                missing = [column for column in data.columns if column not in converted]
                if missing:
                    raise KeyError(missing[0])
                rows.append(converted | {k: row[k] for k in ("task", "subject") if k in row})
                if data.note:
                    self.notes[name] = data.note
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
                got = f"columns {', '.join(row)}" if isinstance(row, Mapping) else type(row).__name__
                problems.append(f"{path} row {number}: {reason}; got {got}, expected {', '.join(data.columns)}.")
        if problems:
            more = [f"{len(problems) - 10} more rows have such problems."] if len(problems) > 10 else []
            raise DataError([*problems[:10], *more])
        return rows

    def _write(self, name: str, subset: str | None, split: str, rows: Sequence[Row]) -> Path:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = self.cache / name / (subset or "all") / f"{split}-{digest}.jsonl"
        if not path.is_file():
            write_text(path, text)
        return path


def _in_subset(row: Row, subset: str | None) -> bool:
    return subset is None or (row.get("subject", row.get("task", subset)) == subset)


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _read_json(path: Path) -> list[Any]:
    """Rows of JSON lines, of a JSON list, or of BIG-bench's ``{"examples": [...]}``; gzip or not."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        text = file.read()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    tree = json.loads(text)
    return tree["examples"] if isinstance(tree, dict) else tree
