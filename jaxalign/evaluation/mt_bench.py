"""MT-Bench: two-turn questions, answered by the model and scored by a judge, or compared with another model's answers.

Zheng et al., 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena". Scores depend on the judge, so it is part
of the protocol. With 80 questions the standard error of a score is about 0.25: look at the interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.judge import Judge
from jaxalign.evaluation.mt_bench_files import Answer, MtBench, file_name
from jaxalign.evaluation.mt_bench_judging import UNREAD, Judgment, compare, grade, won
from jaxalign.evaluation.outcome import Metric, Outcome
from jaxalign.files import write_lines

Answers = Mapping[int, Answer]

SHOWN = 8
"""Questions shown to readers: the first of each category."""


def mt_bench(
    bench: MtBench,
    answers: Answers,
    judge: Judge,
    out: str | Path,
    *,
    model: str,
    baseline: tuple[str, Answers] | None = None,
    repeats: int = 1,
    protocol: Mapping[str, Any] | None = None,
) -> Outcome:
    """Judges a model's answers: each turn by itself, and against another model's answers where these are given.

    Metrics (`values` are those of the questions, in the file's order, None where no verdict was found; one that nothing
    is known of is left out):
      score: mean over all judged turns, 1 to 10; score/turn_1, score/turn_2, score/CATEGORY: of a part.
      win_rate: share of turns won against the baseline, ties counting one half (FastChat's win_rate_adjusted);
        win_rate/turn_1, ...; wins, losses, ties: shares; a win or loss needs both orders to agree.
      first_shown: share of comparisons in which each order gave the game to the answer shown first: position bias.
      unread: share of judgments without a verdict. They are left out of everything else.
      judge_noise: standard deviation of one turn's score between repeats.
      answer_length: characters.

    Args:
      bench: the benchmark.
      answers: the model's, of every question.
      judge: who judges.
      out: folder for FastChat's files ``mt_bench/model_judgment/JUDGE_single.jsonl`` and ``JUDGE_pair.jsonl``.
      model: its name in the files.
      baseline: another model's name and answers to compare with.
      repeats: how often each judgment is asked. A score is the mean of its repeats; files of the later ones are named
        ``JUDGE_single.repeat1.jsonl``.
      protocol: how the answers were made, for the outcome.

    Raises:
      ConfigError: the judge cannot be asked, or `repeats` is not positive, or the baseline has the model's name.
      DataError: there is not one verdict.
      JaxalignError: the judge stopped answering; what it answered is kept.
    """
    if repeats < 1:
        raise ConfigError(f"repeats: got {repeats}, expected at least 1.")
    if baseline is not None and baseline[0] == model:
        raise ConfigError(f"the baseline's answers are of {model!r}, as the model's: give one of them another name.")
    folder = Path(out) / "mt_bench" / "model_judgment"
    rounds = grade(bench, model, answers, judge, repeats=repeats)
    _write(folder, judge, "single", rounds)
    if rounds[0] and all(judgment.row["score"] == UNREAD for one in rounds for judgment in one):
        raise DataError(f"not one judgment of {judge.settings.model} holds a score; read them in {folder}.")
    metrics = _score_metrics(bench, rounds)
    judged = [judgment for one in rounds for judgment in one]
    unread = [judgment.row["score"] == UNREAD for judgment in judged]
    outside = sum(not 1 <= judgment.row["score"] <= 10 for judgment in judged) - sum(unread)
    refused = sum(judgment.row["judgment"] == "$ERROR$" for judgment in judged)
    details: dict[str, Any] = {"scores": _by_turn(rounds, _score)}
    if baseline is not None:
        name, others = baseline
        games = compare(bench, (model, name), (answers, others), judge, repeats=repeats)
        _write(folder, judge, "pair", games)
        metrics |= _win_metrics(bench, games)
        every = [judgment for one in games for judgment in one]
        unread += [won(judgment.row) is None for judgment in every]
        refused += sum("$ERROR$" in (j.row["g1_judgment"], j.row["g2_judgment"]) for j in every)
        details["wins"] = _by_turn(games, lambda judgment: won(judgment.row))
    metrics["unread"] = Metric(value=float(np.mean(unread or [0])), n=len(unread), higher_is_better=False)
    metrics |= answer_metrics(bench, answers)
    notes = [*_notes(bench, answers, model), *_verdict_notes(sum(unread), len(unread), outside, refused)]
    if baseline is not None:
        notes += _too_long_notes(bench, baseline[1], baseline[0])
    return Outcome(
        metrics={name: metric for name, metric in metrics.items() if metric.n},
        protocol={
            "benchmark": "MT-Bench",
            "files": dict(bench.hashes),
            "questions": len(bench.questions),
            "references": bench.reference_name,
            "judge": judge.settings.model,
            "judge_temperature": 0.0,
            "judge_max_tokens": 2048,
            "repeats": repeats,
            **({"baseline": baseline[0]} if baseline is not None else {}),
            **(protocol or {}),
        },
        samples=samples(bench, answers, rounds[0]),
        details={**details, "judge": judge.costs()},
        notes=notes,
    )


def answers_only(bench: MtBench, answers: Answers, protocol: Mapping[str, Any] | None = None) -> Outcome:
    """What can be said of answers that nobody has judged."""
    return Outcome(
        metrics={name: metric for name, metric in answer_metrics(bench, answers).items() if metric.n},
        protocol={
            "benchmark": "MT-Bench",
            "files": dict(bench.hashes),
            "questions": len(bench.questions),
            **(protocol or {}),
        },
        samples=samples(bench, answers),
        notes=["Not judged.", *_notes(bench, answers, "the model")],
    )


def answer_metrics(bench: MtBench, answers: Answers) -> dict[str, Metric]:
    """Lengths of the answers, and the share of turns that did not fit into the model's context."""
    lengths = [
        _mean([len(text) for turn, text in enumerate(given.turns, 1) if turn not in given.too_long])
        for given in (answers[question.id] for question in bench.questions)
    ]
    turns = sum(len(question.turns) for question in bench.questions)
    left_out = sum(len(answers[question.id].too_long) for question in bench.questions)
    return {
        "answer_length": _metric(lengths, None, "characters"),
        "too_long": Metric(value=left_out / max(turns, 1), n=turns, higher_is_better=False),
    }


def samples(bench: MtBench, answers: Answers, judgments: Sequence[Judgment] = ()) -> list[dict[str, Any]]:
    """The first question of each category with its first answer, and what the judge said."""
    said = {(j.question.id, j.turn): j.row for j in judgments}
    seen: dict[str, dict[str, Any]] = {}
    for question in bench.questions:
        if question.category in seen or len(seen) == SHOWN:
            continue
        sample = {
            "id": question.id,
            "category": question.category,
            "prompt": question.turns[0],
            "completion": answers[question.id].turns[0],
        }
        row = said.get((question.id, 1))
        seen[question.category] = sample | ({"score": row["score"], "judgment": row["judgment"]} if row else {})
    return list(seen.values())


def _score_metrics(bench: MtBench, rounds: Sequence[Sequence[Judgment]]) -> dict[str, Metric]:
    scores = _values(rounds, _score)
    metrics = dict(_parts(bench, "score", scores, unit="score"))
    if len(rounds) > 1:
        spreads = [np.std(given, ddof=1) for given in scores.values() if len(given) > 1]
        if spreads:
            metrics["judge_noise"] = Metric(value=float(np.mean(spreads)), n=len(spreads), unit="score")
    return metrics


def _win_metrics(bench: MtBench, rounds: Sequence[Sequence[Judgment]]) -> dict[str, Metric]:
    metrics = dict(_parts(bench, "win_rate", _values(rounds, lambda judgment: won(judgment.row))))
    for name, result in (("wins", 1.0), ("losses", 0.0), ("ties", 0.5)):
        shares = _values(rounds, lambda judgment, result=result: _equals(won(judgment.row), result))
        metrics[name] = _over(bench, shares, None)
    first = _values(rounds, _first_shown)
    metrics["first_shown"] = _over(bench, first, False)
    return metrics


def _parts(
    bench: MtBench, name: str, values: Mapping[tuple[int, int], Sequence[float]], unit: str = "share"
) -> Iterable[tuple[str, Metric]]:
    yield name, _over(bench, values, True, unit)
    for turn in (1, 2):
        part = {key: given for key, given in values.items() if key[1] == turn}
        yield f"{name}/turn_{turn}", _over(bench, part, True, unit)
    for category in dict.fromkeys(question.category for question in bench.questions):
        yield f"{name}/{category}", _over(bench, values, True, unit, category)


def _over(
    bench: MtBench,
    values: Mapping[tuple[int, int], Sequence[float]],
    better: bool | None,
    unit: str = "share",
    category: str | None = None,
) -> Metric:
    """The mean over judged turns as FastChat takes it, with the questions' own means as values.

    A turn of which every judgment is unread counts nowhere; without such turns the mean of `values` is the value.
    """
    ids = [question.id for question in bench.questions if category in (None, question.category)]
    turns: dict[int, list[float]] = {id: [] for id in ids}
    for (id, _), given in values.items():
        if id in turns and given:
            turns[id].append(_mean(given))
    questions = [_mean(turns[id]) for id in ids]
    pooled = [value for id in ids for value in turns[id]]
    return dataclasses.replace(_metric(questions, better, unit), value=_mean(pooled))


def _metric(values: Sequence[float], better: bool | None, unit: str) -> Metric:
    known = [value for value in values if not math.isnan(value)]
    return Metric(
        value=_mean(known),
        n=len(known),
        values=[None if math.isnan(value) else value for value in values],
        stderr=float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None,
        higher_is_better=better,
        unit=unit,
    )


def _values(
    rounds: Sequence[Sequence[Judgment]], read: Callable[[Judgment], float | None]
) -> dict[tuple[int, int], list[float]]:
    """What was read of each question and turn, one for each repeat that has it."""
    values: dict[tuple[int, int], list[float]] = {}
    for judgments in rounds:
        for judgment in judgments:
            value = read(judgment)
            given = values.setdefault((judgment.question.id, judgment.turn), [])
            if value is not None:
                given.append(value)
    return values


def _by_turn(rounds: Sequence[Sequence[Judgment]], read: Callable[[Judgment], float | None]) -> list[dict[str, Any]]:
    return [
        {"question": id, "turn": turn, "values": values} for (id, turn), values in sorted(_values(rounds, read).items())
    ]


def _score(judgment: Judgment) -> float | None:
    return None if judgment.row["score"] == UNREAD else float(judgment.row["score"])


def _first_shown(judgment: Judgment) -> float | None:
    games = (judgment.row["g1_winner"], judgment.row["g2_winner"])
    return None if "error" in games else float(games == ("model_1", "model_2"))


def _equals(value: float | None, result: float) -> float | None:
    return None if value is None else float(value == result)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _write(folder: Path, judge: Judge, kind: str, rounds: Sequence[Sequence[Judgment]]) -> None:
    for k, judgments in enumerate(rounds):
        name = f"{file_name(judge.settings.model)}_{kind}{f'.repeat{k}' if k else ''}.jsonl"
        write_lines(folder / name, [judgment.row for judgment in judgments])


def _notes(bench: MtBench, answers: Answers, model: str) -> list[str]:
    """What a reader must know of the questions and answers."""
    notes = _too_long_notes(bench, answers, model)
    if bench.changed:
        notes.append(f"Not as FastChat published them: {', '.join(bench.changed)}.")
    return notes


def _too_long_notes(bench: MtBench, answers: Answers, model: str) -> list[str]:
    left_out = [f"{q.id}/{turn}" for q in bench.questions for turn in answers[q.id].too_long]
    if not left_out:
        return []
    return [
        f"{len(left_out)} turns did not fit into the context of {model} together with their answer, and are left out "
        f"(question/turn): {', '.join(left_out)}."
    ]


def _verdict_notes(unread: int, count: int, outside: int, refused: int) -> list[str]:
    notes = []
    if unread:
        notes.append(f"In {unread} of {count} judgments no verdict was found; they are left out of all means.")
    if refused:
        notes.append(f"The judge's endpoint refused {refused} of these; asking again may help.")
    if outside:
        notes.append(f"{outside} scores are not between 1 and 10; they count as they are, as in FastChat.")
    return notes
