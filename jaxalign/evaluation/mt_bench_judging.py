"""MT-Bench's judgments: FastChat's prompts byte for byte, its way to read verdicts, its files.

Zheng et al., 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena"; FastChat's ``llm_judge/common.py``. The
prompts are filled in as they are, misspellings included: scores depend on them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.errors import DataError
from jaxalign.evaluation.judge import Judge, Request
from jaxalign.evaluation.mt_bench_files import NEEDS_REFERENCE, Answer, MtBench, Question

Answers = Mapping[int, Answer]

UNREAD = -1
"""FastChat's score of a judgment in which no score was found."""

_SCORE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_SCORE_IN_SINGLE_BRACKETS = re.compile(r"\[(\d+\.?\d*)\]")
_SINGLE = {False: "single-v1", True: "single-math-v1"}
_PAIR = {False: "pair-v2", True: "pair-math-v1"}
_OUTPUT_FORMATS = {"single": "[[rating]]", "pairwise": "[[A]]"}


@dataclass(frozen=True)
class Judgment:
    """One judged turn.

    Attributes:
      question: what was asked.
      turn: 1 or 2.
      row: as FastChat writes it.
    """

    question: Question
    turn: int
    row: Mapping[str, Any]


def single_request(bench: MtBench, question: Question, turn: int, answer: Answer) -> tuple[str, Request]:
    """The prompt's name, and what the judge is asked to score one turn."""
    fields = {"question": question.turns[0], "answer": answer.turns[0]}
    if turn == 2:
        fields = {f"question_{i + 1}": question.turns[i] for i in range(2)}
        fields |= {f"answer_{i + 1}": answer.turns[i] for i in range(2)}
    return _request(bench, "single", _SINGLE, question, turn, fields)


def pair_request(bench: MtBench, question: Question, turn: int, a: Answer, b: Answer) -> tuple[str, Request]:
    """The prompt's name, and what the judge is asked to compare two answers."""
    fields = {"question": question.turns[0], "answer_a": a.turns[0], "answer_b": b.turns[0]}
    if turn == 2:
        fields = {f"question_{i + 1}": question.turns[i] for i in range(2)}
        fields |= {f"answer_a_{i + 1}": a.turns[i] for i in range(2)}
        fields |= {f"answer_b_{i + 1}": b.turns[i] for i in range(2)}
    return _request(bench, "pairwise", _PAIR, question, turn, fields)


def _request(
    bench: MtBench, kind: str, names: Mapping[bool, str], question: Question, turn: int, fields: dict[str, str]
) -> tuple[str, Request]:
    with_reference = question.category in NEEDS_REFERENCE
    name = names[with_reference] + ("-multi-turn" if turn == 2 else "")
    prompt = bench.prompts.get(name)
    if prompt is None or prompt.get("output_format") != _OUTPUT_FORMATS[kind]:
        raise DataError(f"the judge prompts hold no {name!r} with the output format {_OUTPUT_FORMATS[kind]}.")
    if with_reference:
        fields |= {f"ref_answer_{i + 1}": bench.references[question.id][i] for i in range(turn)}
    messages = [
        {"role": "system", "content": prompt["system_prompt"]},
        {"role": "user", "content": prompt["prompt_template"].format(**fields)},
    ]
    # A message without text is none: FastChat sends none either.
    return name, Request(messages=[message for message in messages if message["content"]])


def read_score(judgment: str) -> int | float:
    """The score in a judgment: the first number in double brackets, else in single ones, else -1."""
    match = _SCORE.search(judgment) or _SCORE_IN_SINGLE_BRACKETS.search(judgment)
    if match is None:
        return UNREAD
    try:
        return ast.literal_eval(match[1])
    except (SyntaxError, ValueError):  # [[07]]
        return float(match[1])


def read_winner(judgment: str) -> str:
    """``"A"``, ``"B"``, ``"tie"``, or ``"error"`` where no verdict was found."""
    for verdict, winner in (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie")):
        if verdict in judgment:
            return winner
    return "error"


def grade(bench: MtBench, model: str, answers: Answers, judge: Judge, *, repeats: int = 1) -> list[list[Judgment]]:
    """Scores of each turn by itself, ``repeats`` times over. Turns that were not answered are left out."""
    turns = list(_turns(bench, answers))
    asked = [single_request(bench, question, turn, answers[question.id]) for question, turn in turns]
    rounds = _ask(judge, [request for _, request in asked], repeats)
    result = []
    for replies in rounds:
        judgments = []
        for (question, turn), (name, request), reply in zip(turns, asked, replies, strict=True):
            row = {
                "question_id": question.id,
                "model": model,
                "judge": [judge.settings.model, name],
                "user_prompt": request.messages[-1]["content"],
                "judgment": _text(reply),
                "score": read_score(_text(reply)),
                "turn": turn,
                "tstamp": reply.time,
            }
            judgments.append(Judgment(question, turn, row))
        result.append(judgments)
    return result


def compare(
    bench: MtBench, models: tuple[str, str], answers: tuple[Answers, Answers], judge: Judge, *, repeats: int = 1
) -> list[list[Judgment]]:
    """Comparisons of two models' answers, each in both orders, ``repeats`` times over.

    In the first game the first model is A, in the second B. Turns that either has not answered are left out.
    """
    first, second = answers
    turns = [pair for pair in _turns(bench, first) if pair[1] not in second[pair[0].id].too_long]
    asked = []
    for question, turn in turns:
        mine, other = first[question.id], second[question.id]
        asked.append(pair_request(bench, question, turn, mine, other))
        asked.append(pair_request(bench, question, turn, other, mine))
    result = []
    for replies in _ask(judge, [request for _, request in asked], repeats):
        judgments = []
        for i, (question, turn) in enumerate(turns):
            (name, one), (_, two) = asked[2 * i], asked[2 * i + 1]
            g1, g2 = _text(replies[2 * i]), _text(replies[2 * i + 1])
            winner_1, winner_2 = read_winner(g1), read_winner(g2)
            row = {
                "question_id": question.id,
                "model_1": models[0],
                "model_2": models[1],
                "g1_winner": {"A": "model_1", "B": "model_2"}.get(winner_1, winner_1),
                "g2_winner": {"A": "model_2", "B": "model_1"}.get(winner_2, winner_2),
                "judge": [judge.settings.model, name],
                "g1_user_prompt": one.messages[-1]["content"],
                "g1_judgment": g1,
                "g2_user_prompt": two.messages[-1]["content"],
                "g2_judgment": g2,
                "turn": turn,
                "tstamp": replies[2 * i + 1].time,
            }
            judgments.append(Judgment(question, turn, row))
        result.append(judgments)
    return result


def won(row: Mapping[str, Any]) -> float | None:
    """1 if the first model won both games, 0 if it lost both, 1/2 otherwise; None if a verdict was not found."""
    games = (row["g1_winner"], row["g2_winner"])
    if "error" in games:
        return None
    return {("model_1", "model_1"): 1.0, ("model_2", "model_2"): 0.0}.get(games, 0.5)


def _turns(bench: MtBench, answers: Answers) -> Iterator[tuple[Question, int]]:
    """FastChat's order: first turns, then second ones, each time those without a reference first."""
    for turn in (1, 2):
        for with_reference in (False, True):
            for question in bench.questions:
                wanted = (question.category in NEEDS_REFERENCE) == with_reference and len(question.turns) >= turn
                if wanted and turn not in answers[question.id].too_long:
                    yield question, turn


def _ask(judge: Judge, requests: Sequence[Request], repeats: int) -> list[list[Any]]:
    """Replies of each round. Rounds are asked together, so that limits are used well."""
    every = [
        Request(messages=request.messages, max_tokens=request.max_tokens, repeat=k)
        for k in range(repeats)
        for request in requests
    ]
    replies = judge.ask(every)
    return [replies[k * len(requests) : (k + 1) * len(requests)] for k in range(repeats)]


def _text(reply: Any) -> str:
    """The judgment; FastChat's word where the endpoint refused to give one."""
    return "$ERROR$" if reply.error is not None else reply.text
