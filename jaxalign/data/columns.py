"""What a method may want from the data beside texts: how rows spell it, and how it is read.

A column is read only where it is wanted, so that other columns of the same names do no harm.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxalign.data.contract import RowProblem
from jaxalign.data.values import kind_of, number_of
from jaxalign.errors import ConfigError, did_you_mean

SPELLINGS: Mapping[str, str] = MappingProxyType(
    {
        "scores": "score_chosen and score_rejected (or chosen_score, chosen_rating; also inside metadata), or margin",
        "win_probabilities": "win_probabilities, or chosen_win_probability and rejected_win_probability, or preference",
        "preference": "preference, from 0 to 1, or annotators' votes (a tie is half a vote for each answer)",
        "absolute": "absolute, true/false, or solutions with is_correct",
        "token_weights": "token_weights, or chosen_token_weights and rejected_token_weights",
        "step_labels": "completions, the steps, and labels, true/false for each",
        "reference_sums": "chosen_logprob and rejected_logprob, nats (or ref_chosen_logps and ref_rejected_logps)",
    }
)
"""For each column, what rows may call it."""

MADE = ("marked", "degrees")
"""Columns that are made of the texts."""

PER_ANSWER = ("scores", "win_probabilities", "token_weights", "reference_sums")
"""Columns with a value for each answer, in their order."""

LAYOUT_COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "single": ("token_weights", "step_labels"),
        "paired": ("scores", "win_probabilities", "preference", "absolute", "token_weights", "reference_sums", *MADE),
        "unpaired": ("desirable", "token_weights", "reference_sums"),
        "ranked": ("scores", "win_probabilities", "token_weights"),
    }
)


def check_needs(needs: Collection[str], layout: str) -> None:
    """Check the columns that a method wants.

    Raises:
      ConfigError: data of this layout have no such column.
    """
    known = LAYOUT_COLUMNS[layout]
    problems = [
        f"data: the layout {layout} has no column {name!r} (expected some of {', '.join(known)})."
        f"{did_you_mean(name, known)}"
        for name in needs
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)


def missing(name: str, shape: str) -> RowProblem:
    """The problem of a row that lacks a wanted column."""
    if name == "reference_sums":
        return RowProblem(
            "missing column",
            f"reference.source is 'columns', and a row of the shape {shape} does not say the reference's "
            f"log-probability of each answer (expected {SPELLINGS[name]}; jaxalign cache-reference --out writes them)",
        )
    return RowProblem(
        "missing column",
        f"the method needs {name!r}, and a row of the shape {shape} does not say it (expected {SPELLINGS[name]})",
    )


def pair_columns(row: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """What a row with a chosen and a rejected answer says of them; without what it does not say.

    Raises:
      RowProblem: a value is not what it should be.
    """
    found: dict[str, Any] = {}
    if "scores" in wanted and (scores := _two(row, ("score", "rating"))) is not None:
        found["scores"] = scores
    elif "scores" in wanted and row.get("margin") is not None:
        found["scores"] = (number_of(row["margin"], "margin"), 0.0)
    preference = None
    if row.get("preference") is not None and {"preference", "win_probabilities"} & set(wanted):
        preference = number_of(row["preference"], "preference", 0.0, 1.0)
    if "preference" in wanted and preference is not None:
        found["preference"] = preference
    if "win_probabilities" in wanted:
        given = _two(row, ("win_probability",), 0.0, 1.0)
        if given is None and row.get("win_probabilities") is not None:
            given = _probabilities(row, 2, "chosen and rejected")
        if given is None and preference is not None:
            given = (preference, 1.0 - preference)
        if given is not None:
            found["win_probabilities"] = given
    if "absolute" in wanted and row.get("absolute") is not None:
        found["absolute"] = _flag(row["absolute"], "absolute")
    if "reference_sums" in wanted:
        given = _two(row, ("logprob",), -math.inf, 0.0)
        names = ("ref_chosen_logps", "ref_rejected_logps")
        if given is None and all(row.get(name) is not None for name in names):
            given = tuple(number_of(row[name], name, -math.inf, 0.0) for name in names)
        if given is not None:
            found["reference_sums"] = given
    if "token_weights" in wanted:
        names = ("chosen_token_weights", "rejected_token_weights")
        if all(row.get(name) is not None for name in names):
            found["token_weights"] = tuple(weights_of(row[name], name) for name in names)
    return found


def list_columns(row: Mapping[str, Any], wanted: Collection[str], count: int, answers: str) -> dict[str, Any]:
    """What a row with a list of answers says of each of them beside its score.

    Raises:
      RowProblem: a value is not what it should be, or there are more or fewer than `count`, the answers in the column
        `answers`.
    """
    found: dict[str, Any] = {}
    if "win_probabilities" in wanted and row.get("win_probabilities") is not None:
        found["win_probabilities"] = _probabilities(row, count, answers)
    if "token_weights" in wanted and row.get("token_weights") is not None:
        found["token_weights"] = [
            weights_of(value, "token_weights") for value in one_each(row, "token_weights", count, answers)
        ]
    return found


def one_each(row: Mapping[str, Any], name: str, count: int, answers: str) -> Sequence[Any]:
    """The values of a column that has one for each answer."""
    values = row[name]
    if not isinstance(values, list | tuple) or len(values) != count:
        got = f"{len(values)} values" if isinstance(values, list | tuple) else kind_of(values)
        raise RowProblem("score invalid", f"{name!r} is {got} (expected one for each of {answers})")
    return values


def _probabilities(row: Mapping[str, Any], count: int, answers: str) -> tuple[float, ...]:
    values = one_each(row, "win_probabilities", count, answers)
    return tuple(number_of(value, "win_probabilities", 0.0, 1.0) for value in values)


def weights_of(value: Any, name: str) -> list[float]:
    """A list of numbers, one for each token of an answer, its terminator included."""
    if not isinstance(value, list | tuple):
        raise RowProblem("wrong type", f"{name!r} is {kind_of(value)} (expected a list of numbers, one a token)")
    return [number_of(v, name) for v in value]


def _two(row: Mapping[str, Any], words: tuple[str, ...], *bounds: float) -> tuple[float, float] | None:
    """Numbers of the chosen and the rejected answer, whatever the order of the words in their names."""
    metadata = row.get("metadata")
    for place, values in (("", row), ("metadata.", metadata if isinstance(metadata, Mapping) else {})):
        for word in words:
            for form in (f"{word}_{{}}", f"{{}}_{word}", f"{{}}-{word}"):
                names = [form.format(side) for side in ("chosen", "rejected")]
                if all(values.get(name) is not None for name in names):
                    first, second = (number_of(values[name], place + name, *bounds) for name in names)
                    return first, second
    return None


def _flag(value: Any, name: str) -> bool:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise RowProblem("label invalid", f"{name!r} is {value!r} (expected true/false)")
