"""Rows of two answers and what judges say of them, and of one answer whose steps are judged.

==========================================  =====================================================================
prompt, a and b, preference                 also ``response_a``, ``response1`` ...; from 0 to 1 the probability
                                            that the first is better, or from 1 (the first) to 2 (the second)
prompt, response1, response2, annotator1..  votes 1, 2 and 0 for a tie (PandaLM); a tie is half a vote for each
                                            answer: 1, 0, 1 is 0.833 for the first, 0, 2, 0 is 0.667 for the
                                            second, and only an exact balance (1, 2, 0) is a tie
prompt, completions, labels                 the steps of one answer, each right or wrong (process supervision)
==========================================  =====================================================================
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxalign.data.contract import NoExample, RowProblem
from jaxalign.data.records import Messages, Record, Where
from jaxalign.data.values import kind_of, number_of, required, text_of

ANSWER_PAIRS = (("response_a", "response_b"), ("response1", "response2"), ("response_1", "response_2"), ("a", "b"))
_ANNOTATOR = re.compile(r"annotator_?\d+")

TIE = "tie, no preferred answer"


def answer_columns(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of the two answers of a judged row; None if it is no such row."""
    if row.get("preference") is None and not _votes(row):
        return None
    return next((pair for pair in ANSWER_PAIRS if all(name in row for name in pair)), None)


def read_judged(
    row: Mapping[str, Any], where: Where, prompt: str | Messages, columns: tuple[str, str], *, keep_ties: bool
) -> Record:
    """Two judged answers, the preferred one first, with the probability that it is the better one.

    Args:
      row: the row.
      where: its place.
      prompt: of the row.
      columns: those of the answers.
      keep_ties: make a pair of answers that are equally good, with probability 0.5, instead of none.

    Raises:
      NoExample: neither answer is preferred, and ties are not kept.
      RowProblem: the row breaks the contract.
    """
    votes = _votes(row)
    first = _share(votes) if votes else _probability(row["preference"])
    shape = "two answers and annotators' votes" if votes else "two answers and a preference"
    answers = [text_of(required(row, name, "str"), name) for name in columns]
    if first == 0.5 and not keep_ties:
        raise NoExample(TIE, shape)
    wins = row.get("win_probabilities")
    if first < 0.5:
        answers, first = answers[::-1], 1.0 - first
        wins = wins[::-1] if isinstance(wins, list | tuple) else wins
    texts: tuple[str | Messages, ...] = tuple(answers)
    if not isinstance(prompt, str):
        texts = tuple([{"role": "assistant", "content": a}] for a in answers)
    said = {"preference": first} | ({} if wins is None else {"win_probabilities": wins})
    return Record(where, shape, prompt, texts, columns=said)


def _votes(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if _ANNOTATOR.fullmatch(str(name)) and value is not None}


def _share(votes: Mapping[str, Any]) -> float:
    """The share of the votes for the first answer; a tie is half a vote for each."""
    for name, vote in votes.items():
        if isinstance(vote, bool) or vote not in (0, 1, 2):
            raise RowProblem("label invalid", f"{name!r} is {vote!r} (expected 1, 2, or 0 for a tie)")
    counts = Counter(votes.values())
    return (counts[1] + 0.5 * counts[0]) / len(votes)


def _probability(value: Any) -> float:
    """The probability that the first answer is better, from either scale; 1 says so in both."""
    number = number_of(value, "preference", 0.0, 2.0)
    return 2.0 - number if number > 1.0 else number


def is_stepwise(row: Mapping[str, Any]) -> bool:
    """Whether the row lists the steps of one answer with their labels."""
    return isinstance(row.get("labels"), list | tuple) and isinstance(row.get("completions"), list | tuple)


def read_steps(row: Mapping[str, Any], where: Where, prompt: str | Messages, separator: str, last_only: bool) -> Record:
    """The steps joined to one answer; ``step_labels`` says where each ends in the text and whether it is right.

    Args:
      row: the row.
      where: its place.
      prompt: of the row.
      separator: stands between two steps.
      last_only: only the last step keeps its label.

    Raises:
      RowProblem: the row breaks the contract.
    """
    steps, labels = row["completions"], row["labels"]
    if len(steps) != len(labels):
        raise RowProblem("label invalid", f"'labels' has {len(labels)} values for {len(steps)} 'completions'")
    if not steps:
        raise RowProblem("empty answer", "'completions' is an empty list (expected at least one step)")
    ends: list[tuple[int, int]] = []
    text = ""
    for i, (step, label) in enumerate(zip(steps, labels, strict=True)):
        if not isinstance(label, bool | int) or label not in (0, 1):
            shown = repr(label) if isinstance(label, int | float | str) else kind_of(label)
            raise RowProblem("label invalid", f"'labels' holds {shown} (expected true/false or 1/0)")
        if not text_of(step, "completions").strip():
            raise RowProblem("empty answer", "'completions' holds an empty step")
        text += (separator if i else "") + step
        ends.append((len(text.rstrip()), int(label)))
    shape = "prompt, steps, labels"
    answer: str | Messages = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    columns = {"step_labels": tuple(ends[-1:] if last_only else ends)}
    return Record(where, shape, prompt, (answer,), columns=columns)
