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

import numpy as np

from jaxalign.errors import DataError

STRENGTHS = np.logspace(-4, 4, 10)
"""Inverse strengths of the penalty that are tried; scikit-learn's own."""

FOLDS = 5
GAMED_WEIGHT = 0.2 / 2
"""Weight of an example of the two gamed baselines."""

_COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


@dataclass(frozen=True)
class LengthControl:
    """What is known of the instructions.

    Attributes:
      difficulty: of each instruction, ``[n]``.
      features: of the gamed baselines' examples, ``[g, 3]``: tanh of the length difference, difficulty, constant.
      preferences: theirs, 0 to 1, ``[g]``.
    """

    difficulty: np.ndarray
    features: np.ndarray
    preferences: np.ndarray


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
    )


def length_controlled(
    control: LengthControl,
    preferences: Sequence[float] | np.ndarray,
    baseline_lengths: Sequence[int],
    model_lengths: Sequence[int],
) -> np.ndarray:
    """Probability that the model's answer is preferred at equal lengths, by instruction, ``[n]``.

    Args:
      control: from `read_length_control`.
      preferences: for the model, 0 to 1, NaN where there is none, ``[n]``, in the order of the evaluation set.
      baseline_lengths: characters, ``[n]``.
      model_lengths: characters, ``[n]``.

    Raises:
      DataError: the instructions are not those of the evaluation set.
    """
    given = np.asarray(preferences, np.float64)
    if len(given) != len(control.difficulty):
        raise DataError(
            f"length control: got {len(given)} instructions, expected the {len(control.difficulty)} of the weights."
        )
    delta = np.asarray(baseline_lengths, np.float64) - np.asarray(model_lengths, np.float64)
    spread = delta.std(ddof=1)
    delta = delta / spread if spread > 0 else np.zeros_like(delta)
    own = np.stack([np.tanh(delta), control.difficulty, np.ones_like(delta)], axis=1)
    known = ~np.isnan(given)
    features = np.concatenate([control.features, own[known]])
    targets = np.concatenate([control.preferences, given[known]])
    weights = np.concatenate([np.where(control.features[:, 2] > 0, 1.0, GAMED_WEIGHT), np.ones(known.sum())])
    coefficients = _fit_cross_validated(features, targets, weights)
    own[:, 0] = 0.0
    return _sigmoid(own @ coefficients)


def _fit_cross_validated(features: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients at the strength that predicts left-out examples best, scikit-learn's LogisticRegressionCV."""
    fold = _folds(len(targets))
    scores = np.zeros(len(STRENGTHS))
    for i, strength in enumerate(STRENGTHS):
        for part in range(FOLDS):
            train, test = fold != part, fold == part
            if not test.any():
                continue
            fitted = fit_l1(features[train], targets[train], weights[train], strength)
            probability = np.clip(_sigmoid(features[test] @ fitted), 1e-15, 1 - 1e-15)
            loss = targets[test] * np.log(probability) + (1 - targets[test]) * np.log(1 - probability)
            scores[i] += (weights[test] * loss).mean() / FOLDS
    return fit_l1(features, targets, weights, STRENGTHS[scores.argmax()])


def _folds(count: int) -> np.ndarray:
    """The fold of each example: scikit-learn's GroupKFold for groups of equal size."""
    order = np.argsort(np.full(count, 2))[::-1]
    fold = np.empty(count, int)
    fold[order] = np.arange(count) % FOLDS
    return fold


def fit_l1(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """Minimises ``|w|_1 + strength * sum_i weight_i * H(target_i, sigmoid(x_i w))``, H the cross-entropy.

    By Newton's method: each step minimises the quadratic approximation with the penalty, by coordinate descent, and is
    halved until the objective falls.

    Args:
      features: ``[n, d]``, few columns.
      targets: probabilities, ``[n]``.
      weights: ``[n]``.
      strength: inverse strength of the penalty.
    """
    coefficients = np.zeros(features.shape[1])

    def objective(w: np.ndarray) -> float:
        logits = features @ w
        losses = np.logaddexp(0.0, logits) - targets * logits
        return float(np.abs(w).sum() + strength * (weights * losses).sum())

    value = objective(coefficients)
    for _ in range(200):
        probability = _sigmoid(features @ coefficients)
        gradient = strength * (features.T @ (weights * (probability - targets)))
        curvature = weights * np.maximum(probability * (1 - probability), 1e-10)
        hessian = strength * (features.T * curvature) @ features + 1e-12 * np.eye(len(coefficients))
        step = _penalised_quadratic(gradient, hessian, coefficients) - coefficients
        scale = 1.0
        while scale > 1e-10 and objective(coefficients + scale * step) > value:
            scale /= 2
        before, moved = value, coefficients + scale * step
        value = min(objective(moved), value)
        coefficients = moved if scale > 1e-10 else coefficients
        if before - value <= 1e-13 * max(abs(before), 1.0):
            break
    return coefficients


def _penalised_quadratic(gradient: np.ndarray, hessian: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Minimises ``gradient (w - at) + (w - at) hessian (w - at) / 2 + |w|_1``."""
    w = at.copy()
    for _ in range(1000):
        before = w.copy()
        for j in range(len(w)):
            slope = gradient[j] + hessian[j] @ (w - at) - hessian[j, j] * w[j]
            w[j] = -np.sign(slope) * max(abs(slope) - 1.0, 0.0) / hessian[j, j]
        if np.abs(w - before).max() <= 1e-13 * max(np.abs(w).max(), 1.0):
            break
    return w


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))
