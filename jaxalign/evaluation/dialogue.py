"""Answers to conversations: two-turn ones for MT-Bench, single ones for AlpacaEval, kept as they are made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.journal import Journal
from jaxalign.evaluation.mt_bench_files import TOO_LONG, Answer, Question, answer_row, read_answer
from jaxalign.files import write_lines, write_text

Conversation = Sequence[Mapping[str, str]]
"""``{"role", "content"}`` messages, the user's last."""


class Generate(Protocol):
    """Answers conversations."""

    def __call__(
        self, conversations: Sequence[Conversation], *, temperature: float, max_new_tokens: int, seed: Sequence[int]
    ) -> Sequence[str | None]:
        """One answer each.

        Args:
          conversations: to answer.
          temperature: of sampling, 0 = the likeliest token.
          max_new_tokens: most tokens of an answer.
          seed: one for each conversation; its answer must not depend on the others.

        Returns:
          The answers; None where the conversation and `max_new_tokens` do not fit into the model's context together.
          Nothing may be cut silently.
        """
        ...


Progress = Callable[[int, int], None]
"""Called with what is done and of how much."""


def answer_questions(
    questions: Sequence[Question],
    generate: Generate,
    path: str | Path,
    *,
    model: str,
    max_new_tokens: int = 1024,
    seed: int = 0,
    origin: Mapping[str, Any] | None = None,
    together: int = 16,
    progress: Progress | None = None,
) -> dict[int, Answer]:
    """Answers to questions of several turns, each turn after the model's own answer to the one before.

    Answers are appended to the file as they are made, and those in it are not made again. At the end it is in
    FastChat's form and order.

    Args:
      questions: to answer.
      generate: the model.
      path: FastChat's file of this model's answers.
      model: its name there.
      max_new_tokens: most tokens of a turn.
      seed: of sampling; a question's answer does not depend on which others are asked.
      origin: what else the answers depend on (weights, template), JSON values.
      together: questions given to `generate` at once.
      progress: called with the number of questions answered, and of all.

    Raises:
      DataError: the file holds answers of another model.
      ConfigError: it holds answers that were made with other settings.
    """
    made_with(path, {"model": model, "max_new_tokens": max_new_tokens, "seed": seed, **(origin or {})})
    with Journal(path) as journal:
        others = {row.get("model_id") for row in journal.records} - {model}
        if others:
            raise DataError(f"{path}: holds answers of {sorted(map(str, others))}, expected those of {model!r}.")
        rows = {row["question_id"]: row for row in journal.records}
        missing = [question for question in questions if question.id not in rows]
        for batch in _batches(missing, together):
            for question, answer in zip(batch, _answer(batch, generate, max_new_tokens, seed), strict=True):
                rows[question.id] = answer_row(question.id, model, answer, time.time())
                journal.append(rows[question.id])
            if progress is not None:
                progress(sum(question.id in rows for question in questions), len(questions))
    write_lines(path, [rows[id] for id in sorted(rows)])
    return {question.id: read_answer(rows[question.id]) for question in questions}


def made_with(path: str | Path, settings: Mapping[str, Any]) -> None:
    """Writes beside a file of answers what they are made with, or compares it with what stands there.

    Raises:
      ConfigError: answers are there and were made with something else; all differences.
    """
    path, beside = Path(path), Path(path).with_suffix(".settings.json")
    if not path.is_file() or not path.stat().st_size:
        write_text(beside, json.dumps(dict(settings), indent=2) + "\n")
        return
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: answers are there, but not {beside.name}, which says how they were made. Give them as answers to "
            "judge, or write elsewhere."
        ) from error
    now = json.loads(json.dumps(dict(settings)))
    different = [
        f"{path}: answers are there that were made with {name}={before.get(name)!r}, now it is {now.get(name)!r}; move "
        "them away, or write elsewhere."
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if different:
        raise ConfigError(different)


def _answer(questions: Sequence[Question], generate: Generate, max_new_tokens: int, seed: int) -> list[Answer]:
    """Questions of one temperature and number of turns, turn by turn."""
    conversations: list[list[dict[str, str]]] = [[] for _ in questions]
    turns: list[list[str]] = [[] for _ in questions]
    too_long: list[list[int]] = [[] for _ in questions]
    for turn in range(len(questions[0].turns)):
        asked = [i for i in range(len(questions)) if not too_long[i]]
        for i in asked:
            conversations[i].append({"role": "user", "content": questions[i].turns[turn]})
        said: dict[int, str | None] = {}
        if asked:
            answers = generate(
                [conversations[i] for i in asked],
                temperature=questions[0].temperature,
                max_new_tokens=max_new_tokens,
                seed=[draw_seed(seed, questions[i].id, turn) for i in asked],
            )
            said = dict(zip(asked, answers, strict=True))
        for i in range(len(questions)):
            text = said.get(i)
            if text is None:  # what follows a turn that did not fit does not fit either
                too_long[i].append(turn + 1)
            turns[i].append(TOO_LONG if text is None else text.strip())
            conversations[i].append({"role": "assistant", "content": turns[i][-1]})
    return [Answer(tuple(said), tuple(left)) for said, left in zip(turns, too_long, strict=True)]


def _batches(questions: Sequence[Question], together: int) -> Iterator[list[Question]]:
    """Questions that are sampled alike, a few at a time."""
    kinds: dict[tuple[float, int], list[Question]] = {}
    for question in questions:
        kinds.setdefault((question.temperature, len(question.turns)), []).append(question)
    for members in kinds.values():
        for start in range(0, len(members), together):
            yield members[start : start + together]


def draw_seed(*parts: Any) -> int:
    """A seed below 2**32 for one draw, from what tells it from the others."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")
