"""From a row in normal form to the examples that a layout wants: pairs out of rankings, labels out of pairs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxalign.data.columns import MADE, PER_ANSWER, missing
from jaxalign.data.contract import NoExample, RowProblem
from jaxalign.data.ranked import best_and_worst
from jaxalign.data.records import Record

COMPLETIONS = {"single": 1, "paired": 2, "unpaired": 1, "ranked": None}
"""Completions of an example, by layout; a ranked set has as many as its largest example."""

PairsPerPrompt = Literal["extremes", "all"]

_PER_COMPLETION = (*PER_ANSWER, "labels")


@dataclass(frozen=True, kw_only=True)
class LayoutRules:
    """What `to_layout` makes; the arguments are those of `load_examples`.

    Attributes:
      layout: of the examples.
      needs: columns that every example must have.
      pairs_per_prompt: of a ranking, the best against the worst, or every two with different scores.
      max_completions: of a ranking.
    """

    layout: str
    needs: tuple[str, ...] = ()
    pairs_per_prompt: PairsPerPrompt = "extremes"
    max_completions: int | None = None

    @property
    def wanted(self) -> frozenset[str]:
        """Columns to read from the rows, whether or not they must be there."""
        read = set(self.needs) - {"desirable", *MADE}
        return frozenset(read | {"scores"} if self.layout == "ranked" else read)


def to_layout(record: Record, rules: LayoutRules, notes: Counter[str]) -> list[Record]:
    """The examples of a record. Of its columns they keep those that are needed.

    Raises:
      RowProblem: it cannot be read so, or lacks a column.
      NoExample: it holds none, for example because all its answers are equally good.
    """
    made = list(_SPLIT[rules.layout](record, rules, notes))
    return [_with_needed(part, rules) for part in made]


def _paired(record: Record, rules: LayoutRules, notes: Counter[str]) -> Iterator[Record]:
    if len(record.completions) < 2 or not (record.ranked or _is_pair(record)):
        if record.ranked:
            raise _one_answer()
        raise _other_layout("'chosen' and 'rejected'", record)
    _check_different(record)
    if not record.ranked:
        yield record
        return
    scores = record.columns["scores"]  # the best first
    differ = [(i, j) for i, j in itertools.combinations(range(len(scores)), 2) if scores[i] > scores[j]]
    if not differ:
        raise NoExample("ranking in which all scores are equal, no pair")
    pairs = [(0, differ[-1][1])] if rules.pairs_per_prompt == "extremes" else differ
    notes["pair out of a ranking"] += len(pairs)
    if rules.pairs_per_prompt == "all":
        notes["two answers of a ranking with equal scores, no pair"] += len(scores) * (len(scores) - 1) // 2 - len(
            differ
        )
    for pair in pairs:
        part = _pick(record, pair)
        if "labels" in part.columns:
            right, wrong = part.columns["labels"]
            part = replace(part, columns={**part.columns, "absolute": right and not wrong})
        yield part


def _single(record: Record, rules: LayoutRules, notes: Counter[str]) -> Iterator[Record]:
    wrong = record.ranked and "labels" in record.columns and not record.columns["labels"][0]
    if record.label is False or wrong:
        raise NoExample("undesirable answer, not used for supervised training")
    yield replace(_pick(record, (0,)), label=None)


def _unpaired(record: Record, rules: LayoutRules, notes: Counter[str]) -> Iterator[Record]:
    if record.ranked:
        if "labels" not in record.columns:
            raise RowProblem(
                "missing column",
                "scores say which answer is better, not which is desirable (expected a label for each answer: set a "
                "threshold yourself and write 'label', or use a method for rankings or pairs)",
            )
        for i, label in enumerate(record.columns["labels"]):
            yield replace(_pick(record, (i,)), label=label)
    elif _is_pair(record):
        _check_different(record)
        notes["pair, made two unpaired examples"] += 1
        yield replace(_pick(record, (0,)), label=True)
        yield replace(_pick(record, (1,)), label=False)
    elif record.label is None:
        raise _other_layout("'label'", record)
    else:
        yield record


def _ranked(record: Record, rules: LayoutRules, notes: Counter[str]) -> Iterator[Record]:
    if not record.ranked:
        if not _is_pair(record):
            raise _other_layout("answers with scores", record)
        _check_different(record)
        columns = dict(record.columns)
        if "scores" not in columns:
            notes["pair as a ranking, scores 1 and 0"] += 1
            columns["scores"] = (1.0, 0.0)
        record = replace(record, ranked=True, columns=columns)
    if len(record.completions) < 2:
        raise _one_answer()
    scores = record.columns["scores"]
    notes["ranking in which all scores are equal"] += len(set(scores)) == 1
    most = rules.max_completions
    if most is not None and len(scores) > most:
        notes["completion of a ranking beyond data.max_completions, left out"] += len(scores) - most
        record = replace(_pick(record, best_and_worst(scores, most)), ranked=True)
    yield record


_SPLIT = {"paired": _paired, "single": _single, "unpaired": _unpaired, "ranked": _ranked}


def _is_pair(record: Record) -> bool:
    return len(record.completions) == 2


def _other_layout(wanted: str, record: Record) -> RowProblem:
    """One answer where others are wanted, with the configuration that takes such rows."""
    name = (
        "unpaired.py:kto" if record.label is not None else "steps.py" if "step_labels" in record.columns else "sft.py"
    )
    return RowProblem(
        "missing column", f"no {wanted} in a row of the shape {record.shape} (configs/{name} takes such rows)"
    )


def _one_answer() -> RowProblem:
    return RowProblem("one answer only", "there is one answer with a score (expected at least two different ones)")


def _check_different(record: Record) -> None:
    if len(record.completions) == 2 and record.completions[0] == record.completions[1]:
        raise RowProblem("identical pair", "'chosen' and 'rejected' are the same")


def _pick(record: Record, indices: Any) -> Record:
    """The record with some of its completions, whose places say enough, and with what is known of them."""
    columns = {
        name: tuple(value[i] for i in indices) if name in _PER_COMPLETION else value
        for name, value in record.columns.items()
    }
    return replace(record, completions=tuple(record.completions[i] for i in indices), columns=columns, ranked=False)


def _with_needed(record: Record, rules: LayoutRules) -> Record:
    needed = set(rules.wanted)
    for name in sorted(needed - record.columns.keys()):
        raise missing(name, record.shape)
    return replace(record, columns={name: record.columns[name] for name in sorted(needed)})
