"""Rows with several answers to one prompt: lists with scores, conversation trees, solutions known right or wrong.

===============================================  ================================================================
prompt, completions or responses, scores         texts or conversations; ``rewards`` and ``ratings`` are scores too
  (or ranks: the smaller, the better)
instruction, completions: [{response, ...}]      openbmb/UltraFeedback: ``overall_score``, else the mean rating
instruction, generations, ratings                Argilla's UltraFeedback
prompt: {text, replies: [{text, rank, ...}]}     OpenAssistant trees: each message with ranked answers is an example
question, NAME: {solution, is_correct}, ...      solutions of several models, right or wrong
===============================================  ================================================================
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from jaxalign.data.columns import list_columns, one_each
from jaxalign.data.contract import NoExample, RowProblem
from jaxalign.data.conversations import strip_prompt, to_messages
from jaxalign.data.records import Messages, Record, Where
from jaxalign.data.texts import text_or_conversation, with_system
from jaxalign.data.values import TEXT_OR_CHAT, kind_of, number_of, required, text_of

Text = str | Messages

ANSWERS = ("completions", "responses", "generations", "answers")
"""Columns that hold a list of answers."""
SCORES = ("scores", "rewards", "ratings", "ranks")
"""Columns that hold a number for each of them; a smaller rank is better."""
_TEXTS = ("response", "text", "content", "completion", "answer", "generation", "solution")
_OWN_SCORES = ("overall_score", "score", "reward", "rating", "fine-grained_score", "rank")

TREE = "conversation tree (OpenAssistant)"
EMPTY = "empty completion of a ranking, left out"
UNSCORED = "completion without a score, left out"
IDENTICAL = "completion equal to another of its prompt, left out"


def is_tree(row: Mapping[str, Any]) -> bool:
    """Whether the row is an OpenAssistant conversation tree."""
    return isinstance(row.get("prompt"), Mapping) and isinstance(row["prompt"].get("replies"), list)


def is_ranked(row: Mapping[str, Any]) -> bool:
    """Whether the row lists answers with scores, or objects that hold both."""
    name = next((n for n in ANSWERS if isinstance(row.get(n), list | tuple)), None)
    if name is None:
        return False
    objects = bool(row[name]) and all(isinstance(a, Mapping) and "role" not in a for a in row[name])
    return objects or any(row.get(s) is not None for s in SCORES)


def is_solutions(row: Mapping[str, Any]) -> bool:
    """Whether the row holds solutions that are known to be right or wrong."""
    return "question" in row and any(_is_solution(value) for value in row.values())


def read_ranked(
    row: Mapping[str, Any], where: Where, extras: Mapping[str, Any], wanted: Collection[str] = ()
) -> Record:
    """A row of `is_ranked` in normal form, with the wanted columns of `jaxalign.data.columns`.

    Raises:
      RowProblem: the row breaks the contract.
    """
    name = next(n for n in ANSWERS if isinstance(row.get(n), list | tuple))
    given = row[name]
    if not given:
        raise RowProblem("empty answer", f"{name!r} is an empty list (expected at least two answers)")
    if all(isinstance(a, Mapping) and "role" not in a for a in given):
        texts, scores = [_own_text(a, name) for a in given], [_own_score(a, name) for a in given]
        shape = "prompt and answers with scores of their own"
    else:
        by = next(s for s in SCORES if row.get(s) is not None)
        values = one_each(row, by, len(given), name)
        sign = -1.0 if by == "ranks" else 1.0
        texts = [text_or_conversation(a, name) for a in given]
        scores = [None if v is None else sign * number_of(v, by) for v in values]
        shape = f"prompt, {name}, {by}"
    prompt = _prompt(row)
    columns: dict[str, Any] = {"scores": scores}
    columns |= list_columns(row, wanted, len(given), name)
    return _record(where, shape, prompt, texts, columns, extras)


def read_tree(row: Mapping[str, Any], where: Where, extras: Mapping[str, Any]) -> list[Record]:
    """The examples of an OpenAssistant tree: one for each message with at least two ranked answers.

    Raises:
      NoExample: there is no such message.
    """
    records = []
    for prompt, replies in _ranked_replies(row["prompt"], []):
        texts = [[_message(reply)] for reply in replies]
        scores = [-number_of(reply["rank"], "rank") for reply in replies]
        records.append(_record(where, TREE, prompt, texts, {"scores": scores}, extras))
    if not records:
        raise NoExample("conversation tree without ranked answers", TREE)
    return records


def read_solutions(row: Mapping[str, Any], where: Where) -> Record:
    """A question with solutions that are right (score 1) or wrong (score 0)."""
    question = text_of(required(row, "question", "str"), "question")
    found = {name: value for name, value in row.items() if _is_solution(value)}
    for name, value in found.items():
        if not isinstance(value["is_correct"], bool):
            raise RowProblem(
                "label invalid", f"{name + '.is_correct'!r} is {value['is_correct']!r} (expected true/false)"
            )
    texts = [text_of(value["solution"], f"{name}.solution") for name, value in found.items()]
    right = [value["is_correct"] for value in found.values()]
    columns = {"scores": [float(r) for r in right], "labels": right}
    return _record(where, "question and solutions, right or wrong", question + "\n", texts, columns, {})


def best_and_worst(scores: Sequence[float], most: int) -> list[int]:
    """Indices of the `most` extreme completions: the best, the worst, the second best, and so on; ascending."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    best, worst = order[: (most + 1) // 2], order[len(order) - most // 2 :]
    return sorted({*best, *worst}) if most < len(order) else sorted(order)


def _record(
    where: Where,
    shape: str,
    prompt: Text,
    texts: Sequence[Text],
    columns: Mapping[str, Sequence[Any]],
    extras: Mapping[str, Any],
) -> Record:
    """The record with the answers that can be used, the best first."""
    notes: Counter[str] = Counter()
    if not isinstance(prompt, str) or not all(isinstance(t, str) for t in texts):
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answers: list[Text] = []
        for text in texts:
            given = [{"role": "assistant", "content": text}] if isinstance(text, str) else text
            answer, stripped = strip_prompt(prompt, given, "completions")
            notes.update(stripped)
            answers.append(answer)
        texts = answers
    scores = columns["scores"]
    kept: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: (scores[i] is None, -(scores[i] or 0.0), i)):
        if scores[i] is None:
            notes[UNSCORED] += 1
        elif not _words(texts[i]):
            notes[EMPTY] += 1
        elif any(texts[i] == texts[k] for k in kept):
            notes[IDENTICAL] += 1
        else:
            kept.append(i)
    if not kept:
        raise RowProblem("empty answer", "no answer holds text and has a score")
    return Record(
        where,
        shape,
        prompt,
        tuple(texts[i] for i in kept),
        notes=tuple(notes.elements()),
        ranked=True,
        columns={name: tuple(values[i] for i in kept) for name, values in columns.items()},
        **(extras if not isinstance(prompt, str) else {}),
    )


def _prompt(row: Mapping[str, Any]) -> Text:
    """The prompt; an instruction of a ranked set is a user's turn, so that it is read through the chat template."""
    if row.get("prompt") is not None:
        return text_or_conversation(row["prompt"], "prompt")
    if row.get("instruction") is not None:
        turn = {"role": "user", "content": text_of(row["instruction"], "instruction")}
        return with_system([turn], row)
    if "prompt" in row:
        raise RowProblem("null", f"'prompt' is null (expected {TEXT_OR_CHAT})")
    return text_or_conversation(required(row, "prompt"), "prompt")


def _own_text(answer: Mapping[str, Any], name: str) -> Text:
    key = next((k for k in _TEXTS if answer.get(k) is not None), None)
    if key is None:
        shown = ", ".join(repr(str(k)) for k in answer)
        raise RowProblem("missing column", f"{name!r} holds an answer with the keys {shown} (expected 'response')")
    return text_or_conversation(answer[key], f"{name}.{key}")


def _own_score(answer: Mapping[str, Any], name: str) -> float | None:
    """The answer's score; None where a known column is empty.

    Raises:
      RowProblem: it has no known column, or what is there is no number.
    """
    for key in _OWN_SCORES:
        if answer.get(key) is not None:
            return (-1.0 if key == "rank" else 1.0) * number_of(answer[key], f"{name}.{key}")
    ratings = answer.get("annotations")
    if isinstance(ratings, Mapping):
        parts = [p for r in ratings.values() for p in (r if isinstance(r, list | tuple) else [r])]
        given = [p.get("Rating") for p in parts if isinstance(p, Mapping)]
        numbers = [number_of(g, f"{name}.annotations") for g in given if g not in (None, "N/A")]
        return math.fsum(numbers) / len(numbers) if numbers else None
    if any(key in answer for key in _OWN_SCORES):
        return None
    raise RowProblem("missing column", f"{name!r} holds an answer without a score (expected {', '.join(_OWN_SCORES)})")


def _ranked_replies(node: Mapping[str, Any], before: Messages) -> Iterator[tuple[Messages, list[Mapping[str, Any]]]]:
    conversation = [*before, _message(node)]
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(r, Mapping) for r in replies):
        raise RowProblem("wrong type", f"'replies' is {kind_of(replies)} (expected a list of messages)")
    ranked = [r for r in replies if r.get("rank") is not None]
    if len(ranked) >= 2 and conversation[-1]["role"] == "user":
        yield conversation, ranked
    for reply in replies:
        yield from _ranked_replies(reply, conversation)


def _message(node: Mapping[str, Any]) -> dict[str, Any]:
    text = text_of(required(node, "text", "str"), "text")
    return to_messages([{"role": node.get("role"), "content": text}], "replies")[0]


def _words(text: Text) -> bool:
    return bool(text.strip()) if isinstance(text, str) else any(m["content"].strip() for m in text)


def _is_solution(value: Any) -> bool:
    return isinstance(value, Mapping) and "is_correct" in value and "solution" in value
