"""MT-Bench's questions, judge prompts and reference answers, and the files of answers and judgments, all FastChat's.

The files themselves are not part of this package: they are read from a folder, as they are.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError
from jaxalign.files import parse_lines, read_lines

PUBLISHED = {
    "questions": "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    "prompts": "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
    "references": "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
}
"""SHA-256 of FastChat's files at commit 0e6d3e4, unchanged since the scores of papers were made."""

NAMES = {
    "questions": ("mt_bench/question.jsonl", "data/mt_bench/question.jsonl", "mt_bench_question.jsonl"),
    "prompts": ("judge_prompts.jsonl", "data/judge_prompts.jsonl"),
    "references": (
        "mt_bench/reference_answer/{name}.jsonl",
        "data/mt_bench/reference_answer/{name}.jsonl",
        "mt_bench_reference_{name}.jsonl",
    ),
}
"""Where the files are: in FastChat's ``llm_judge/data``, in ``llm_judge``, or side by side in one folder."""

NEEDS_REFERENCE = ("math", "reasoning", "coding")
"""Categories that are judged with a reference answer."""

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Of sampling the answers, by category; 0.7 elsewhere."""


@dataclass(frozen=True)
class Question:
    """A question of one or more turns.

    Attributes:
      id: MT-Bench's are 81 to 160.
      category: ``"writing"``, ...
      turns: what the user says.
      temperature: of sampling its answers.
    """

    id: int
    category: str
    turns: tuple[str, ...]
    temperature: float


@dataclass(frozen=True)
class MtBench:
    """The benchmark.

    Attributes:
      questions: in the file's order.
      prompts: the judge's prompts by name, as in the file.
      references: turns of the reference answers by question; math, reasoning and coding have them.
      reference_name: who wrote them.
      hashes: SHA-256 of each file.
    """

    questions: tuple[Question, ...]
    prompts: Mapping[str, Mapping[str, Any]]
    references: Mapping[int, tuple[str, ...]]
    reference_name: str
    hashes: Mapping[str, str]

    @property
    def changed(self) -> list[str]:
        """The files that are not as FastChat published them."""
        return [name for name, value in self.hashes.items() if value != PUBLISHED[name]]


def read_mt_bench(folder: str | Path, *, reference: str = "gpt-4", limit: int | None = None) -> MtBench:
    """Reads the benchmark.

    Args:
      folder: FastChat's ``fastchat/llm_judge/data``, or a folder with ``mt_bench_question.jsonl``,
        ``judge_prompts.jsonl`` and ``mt_bench_reference_gpt-4.jsonl``.
      reference: whose reference answers.
      limit: of each category only this many questions, the first ones; None = all.

    Raises:
      DataError: files are missing or hold something else; all problems.
    """
    folder = Path(folder).expanduser()
    problems: list[str] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    hashes: dict[str, str] = {}
    for kind, names in NAMES.items():
        paths = [folder / name.format(name=reference) for name in names]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            shown = ", ".join(name.format(name=reference) for name in names)
            problems.append(f"{folder}: no {kind}, expected one of {shown} (of FastChat's fastchat/llm_judge).")
            continue
        content = path.read_bytes()
        hashes[kind] = hashlib.sha256(content).hexdigest()
        try:
            rows[kind] = parse_lines(content.decode(), path)
        except (DataError, UnicodeDecodeError) as error:
            problems += getattr(error, "problems", [f"{path}: not UTF-8 ({error})."])
    if problems:
        raise DataError(problems)
    try:
        questions = [
            Question(row["question_id"], row["category"], tuple(row["turns"]), TEMPERATURES.get(row["category"], 0.7))
            for row in rows["questions"]
        ]
        prompts = {row["name"]: row for row in rows["prompts"]}
        references = {row["question_id"]: tuple(row["choices"][0]["turns"]) for row in rows["references"]}
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{folder}: a row has no {error}, expected FastChat's files of MT-Bench.") from error
    if limit is not None:
        seen: dict[str, int] = {}
        kept = []
        for question in questions:
            seen[question.category] = seen.get(question.category, 0) + 1
            if seen[question.category] <= limit:
                kept.append(question)
        questions = kept
    for question in questions:
        if question.category in NEEDS_REFERENCE and question.id not in references:
            problems.append(f"{folder}: question {question.id} ({question.category}) has no reference of {reference}.")
    if problems:
        raise DataError(problems)
    return MtBench(tuple(questions), prompts, references, reference, hashes)


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Attributes:
      turns: what it said.
      too_long: turns, from 1, for which the conversation did not fit into the model's context. Nobody judges them.
    """

    turns: tuple[str, ...]
    too_long: tuple[int, ...] = ()


TOO_LONG = "ERROR"
"""What FastChat writes in place of an answer that could not be made."""


def answer_row(question: int, model: str, answer: Answer, time: float) -> dict[str, Any]:
    """An answer as FastChat writes it."""
    row = {
        "question_id": question,
        "answer_id": _short_uuid(f"{model} {question} {answer.turns}"),
        "model_id": model,
        "choices": [{"index": 0, "turns": list(answer.turns)}],
        "tstamp": time,
    }
    return row | ({"too_long": list(answer.too_long)} if answer.too_long else {})


def read_answer(row: Mapping[str, Any]) -> Answer:
    """The inverse of `answer_row`. Of several choices the first counts, as for FastChat's judges."""
    return Answer(tuple(row["choices"][0]["turns"]), tuple(row.get("too_long", ())))


def read_answers(path: str | Path, questions: Sequence[Question]) -> tuple[str, dict[int, Answer]]:
    """A model's name and its answers by question, from FastChat's file.

    Raises:
      DataError: the file cannot be read, or answers are missing; all of them.
    """
    rows = read_lines(path)
    try:
        answers = {row["question_id"]: read_answer(row) for row in rows}
        names = {row["model_id"] for row in rows}
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: a row has no {error}, expected FastChat's file of model answers.") from error
    if len(names) != 1:
        raise DataError(f"{path}: got answers of {sorted(names)}, expected those of one model.")
    short = [
        f"{path}: no answer to question {question.id}, turn {len(given) + 1}."
        for question in questions
        if len(given := answers[question.id].turns if question.id in answers else ()) < len(question.turns)
    ]
    if short:
        raise DataError(short)
    return names.pop(), answers


def file_name(model: str) -> str:
    """A model's name for a file: FastChat takes the name from there."""
    return "".join(c if c.isalnum() or c in "-_.+@" else "_" for c in model)


_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def _short_uuid(text: str) -> str:
    """An id of 22 letters as shortuuid makes them, from the content: the same answer has the same id."""
    number, letters = uuid.uuid5(uuid.NAMESPACE_URL, text).int, []
    while number:
        number, digit = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[digit])
    return "".join(reversed(letters)).rjust(22, _ALPHABET[0])
