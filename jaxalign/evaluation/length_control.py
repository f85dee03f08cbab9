"""AlpacaEval 2's length-controlled win rate: what the win rate would be if both answers were equally long.

Dubois et al., 2024, "Length-Controlled AlpacaEval"; ``length_controlled_v1`` in alpaca_eval's ``glm_winrate.py``: a
logistic regression of the preferences on the difference of lengths, the instruction's difficulty and a constant, with
an L1 penalty whose strength is found by cross-validation. The difficulties, and answers of baselines that were made
longer and shorter on purpose, come from a file of alpaca_eval's (``df_gamed.csv``).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxalign.errors import DataError

STRENGTHS = np.logspace(-4, 4, 10)
"""Inverse strengths of the penalty that are tried; scikit-learn's own."""

FOLDS = 5
GAMED_WEIGHT = 0.2 / 2
"""Weight of an example of the two gamed baselines."""
REFITS = 200
"""Resamples of the instructions behind a standard error, which is then within some 5 % of its limit."""

_COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


@dataclass(frozen=True)
class LengthControl:
    """What is known of the instructions.

    Attributes:
      difficulty: of each instruction, ``[n]``.
      features: of the gamed baselines' examples, ``[g, 3]``: tanh of the length difference, difficulty, constant.
      preferences: theirs, 0 to 1, ``[g]``.
      instructions: which instruction each of them is of, ``[g]``.
    """

    difficulty: np.ndarray
    features: np.ndarray
    preferences: np.ndarray
    instructions: np.ndarray


class Controlled(NamedTuple):
    """A length-controlled win rate.

    Attributes:
      value: 0 to 1.
      stderr: by drawing instructions anew and fitting the regression to each draw; None for one instruction.
      fitted: the regression's probability that the model's answer is preferred at equal lengths, by instruction,
        ``[n]``. They are no data: they vary as little as the difficulties do, whatever the error of the fit.
    """

    value: float
    stderr: float | None
    fitted: np.ndarray


def read_length_control(path: str | Path) -> LengthControl:
    """Reads alpaca_eval's ``df_gamed.csv``.

    Raises:
      DataError: it cannot be read, or columns are missing or hold no numbers.
    """
    try:
        with open(path, encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error
    missing = [name for name in _COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; expected alpaca_eval's df_gamed.csv.")
    try:
        index = np.array([int(float(row["index"])) for row in rows])
        preferences = np.array([float(row["preference"] or "nan") for row in rows])
        lengths = np.array([float(row["std_delta_len"]) for row in rows])
        difficulty = np.array([float(row["instruction_difficulty"]) for row in rows])
        honest = np.array([row["not_gamed_baseline"].strip().lower() in ("true", "1", "1.0") for row in rows])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}; expected alpaca_eval's df_gamed.csv.") from error
    first = {int(i): value for i, value in reversed(list(zip(index, difficulty, strict=True)))}
    if sorted(first) != list(range(len(first))):
        raise DataError(f"{path}: the instructions are not numbered 0 to {len(first) - 1}.")
    known = ~np.isnan(preferences)
    return LengthControl(
        difficulty=np.array([first[i] for i in range(len(first))]),
        features=np.stack([np.tanh(lengths), difficulty, honest.astype(float)], axis=1)[known],
        preferences=preferences[known],
        instructions=index[known],
    )


def length_controlled(
    control: LengthControl,
    preferences: Sequence[float] | np.ndarray,
    baseline_lengths: Sequence[int],
    model_lengths: Sequence[int],
    *,
    refits: int = REFITS,
    seed: int = 0,
) -> Controlled:
    """The win rate at equal lengths.

    The spread of the fitted probabilities over the instructions, which alpaca_eval calls a standard error, leaves out
    that the regression was fitted to these preferences. Here it is the bootstrap's (Efron, 1979). It is of fits with
    next to no penalty: one that keeps the coefficients at 0 in every resample would tell no spread at all.

    Args:
      control: from `read_length_control`.
      preferences: for the model, 0 to 1, NaN where there is none, ``[n]``, in the order of the evaluation set.
      baseline_lengths: characters, ``[n]``.
      model_lengths: characters, ``[n]``.
      refits: resamples for the standard error.
      seed: of the resampling.

    Raises:
      DataError: the instructions are not those of the evaluation set.
    """
    given = np.asarray(preferences, np.float64)
    count = len(given)
    if count != len(control.difficulty):
        raise DataError(
            f"length control: got {count} instructions, expected the {len(control.difficulty)} of the weights."
        )
    delta = np.asarray(baseline_lengths, np.float64) - np.asarray(model_lengths, np.float64)
    spread = delta.std(ddof=1) if count > 1 else 0.0
    delta = delta / spread if spread > 0 else np.zeros_like(delta)
    own = np.stack([np.tanh(delta), control.difficulty, np.ones_like(delta)], axis=1)
    known = ~np.isnan(given)
    features = np.concatenate([control.features, own[known]])
    targets = np.concatenate([control.preferences, given[known]])
    weights = np.concatenate([np.where(control.features[:, 2] > 0, 1.0, GAMED_WEIGHT), np.ones(known.sum())])
    coefficients = fit_l1(features, targets, weights, _choose_strength(features, targets, weights))
    equal = own * (0.0, 1.0, 1.0)
    fitted = _sigmoid(equal @ coefficients)
    if count < 2:
        return Controlled(float(fitted.mean()), None, fitted)
    # All that is known of an instruction, the gamed answers to it included, is drawn together.
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=refits).astype(np.float64)
    instructions = np.concatenate([control.instructions, np.flatnonzero(known)])
    drawn = weights * draws[:, instructions]
    again = fit_l1(features, targets, drawn, STRENGTHS[-1], start=coefficients, tolerance=1e-8)
    values = (draws * _sigmoid(again @ equal.T)).mean(axis=1)
    return Controlled(float(fitted.mean()), float(values.std(ddof=1)), fitted)


def _choose_strength(features: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """The strength that predicts left-out examples best, as scikit-learn's LogisticRegressionCV chooses it."""
    fold = _folds(len(targets))
    parts = [part for part in range(FOLDS) if (fold == part).any()]
    train = np.array([fold != part for part in parts])
    scores = np.zeros(len(STRENGTHS))
    start = None
    for i, strength in enumerate(STRENGTHS):
        start = fit_l1(features, targets, weights * train, strength, start=start)
        probability = np.clip(_sigmoid(start @ features.T), 1e-15, 1 - 1e-15)
        loss = weights * (targets * np.log(probability) + (1 - targets) * np.log(1 - probability))
        scores[i] = ((loss * ~train).sum(axis=1) / (~train).sum(axis=1)).sum() / FOLDS
    return float(STRENGTHS[scores.argmax()])


def _folds(count: int) -> np.ndarray:
    """The fold of each example: scikit-learn's GroupKFold for groups of equal size."""
    order = np.argsort(np.full(count, 2))[::-1]
    fold = np.empty(count, int)
    fold[order] = np.arange(count) % FOLDS
    return fold


def fit_l1(
    features: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    strength: float,
    *,
    start: np.ndarray | None = None,
    tolerance: float = 1e-13,
) -> np.ndarray:
    """Minimises ``|w|_1 + strength * sum_i weight_i * H(target_i, sigmoid(x_i w))``, H the cross-entropy.

    By Newton's method, all fits side by side: each step minimises the quadratic approximation with the penalty, by
    coordinate descent, and is halved until the objective falls.

    Args:
      features: ``[n, d]``, few columns.
      targets: probabilities, ``[n]``.
      weights: ``[n]``, or ``[fits, n]`` for several fits.
      strength: inverse strength of the penalty.
      start: where to begin, ``[d]`` or ``[fits, d]``; None = at 0.
      tolerance: relative fall of the objective in a step at which a fit is done.

    Returns:
      The coefficients, ``[d]`` or ``[fits, d]``.
    """
    every = np.atleast_2d(weights)
    width = features.shape[1]
    found = np.zeros((len(every), width)) if start is None else np.broadcast_to(start, (len(every), width)).copy()
    products = (features[:, :, None] * features[:, None, :]).reshape(len(features), width * width)

    def objective(w: np.ndarray, weights: np.ndarray) -> np.ndarray:
        logits = w @ features.T
        losses = np.logaddexp(0.0, logits) - targets * logits
        return np.abs(w).sum(axis=1) + strength * (weights * losses).sum(axis=1)

    values = objective(found, every)
    left = np.arange(len(every))  # fits that still move
    for _ in range(200):
        at, own, before = found[left], every[left], values[left]
        probability = _sigmoid(at @ features.T)
        gradient = strength * ((own * (probability - targets)) @ features)
        curvature = own * np.maximum(probability * (1 - probability), 1e-10)
        hessian = strength * (curvature @ products).reshape(-1, width, width) + 1e-12 * np.eye(width)
        step = _penalised_quadratic(gradient, hessian, at, tolerance) - at
        moved, value = at + step, objective(at + step, own)
        scale = 1.0
        while scale > 1e-10 and (worse := np.flatnonzero(value > before)).size:
            scale /= 2
            moved[worse] = at[worse] + scale * step[worse]
            value[worse] = objective(moved[worse], own[worse])
        better = value <= before
        found[left[better]], values[left[better]] = moved[better], value[better]
        left = left[before - values[left] > tolerance * np.maximum(np.abs(before), 1.0)]
        if not left.size:
            break
    return found if np.ndim(weights) > 1 else found[0]


def _penalised_quadratic(gradient: np.ndarray, hessian: np.ndarray, at: np.ndarray, tolerance: float) -> np.ndarray:
    """Minimises ``gradient (w - at) + (w - at) hessian (w - at) / 2 + |w|_1``, ``[fits, d]``."""
    w = at.copy()
    for _ in range(100):
        before = w.copy()
        for j in range(w.shape[1]):
            own = hessian[:, j, j]
            slope = gradient[:, j] + ((w - at) * hessian[:, j]).sum(axis=1) - own * w[:, j]
            w[:, j] = -np.sign(slope) * np.maximum(np.abs(slope) - 1.0, 0.0) / own
        if (np.abs(w - before).max(axis=1) <= tolerance * np.maximum(np.abs(w).max(axis=1), 1.0)).all():
            break
    return w


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))
