"""Writes the golden values of the objectives on rankings: ``python tests/golden/generate_ranked.py [method ...]``.

Every ranking is cut to the completions that it has before anything is computed, and spread out again at the end.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from generate import log_sigmoid, logps, product, sigmoid, smoothed, write

FOLDER = Path(__file__).parent
Ranking = tuple[float, list[float], list[float], list[float], float | None]
"""Loss, slopes, rewards, the scores that order the completions, and the likelihood term if there is one."""


def softmax(values: Sequence[float]) -> list[float]:
    peak = max(values)
    total = sum(math.exp(value - peak) for value in values)
    return [math.exp(value - peak) / total for value in values]


def log_softmax(values: Sequence[float]) -> list[float]:
    peak = max(values)
    total = math.log(sum(math.exp(value - peak) for value in values))
    return [value - peak - total for value in values]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def each_ranking(of_one: Callable[[dict, dict], Ranking]) -> Callable[[dict, dict], dict]:
    """The whole output, from a function of one ranking of the completions that exist."""

    def formula(inputs: dict, options: dict) -> dict:
        out: dict = {"losses": [], "weights": [], "slopes": [], "metrics": {}}
        for b, lengths in enumerate(inputs["lengths"]):
            there = [k for k, length in enumerate(lengths) if length > 0]
            one = {name: [values[b][k] for k in there] for name, values in inputs.items()}
            loss, slopes, rewards, scores, nll = of_one(one, options)
            spread = [0.0] * len(lengths)
            for k, slope in zip(there, slopes, strict=True):
                spread[k] = slope
            out["losses"].append(loss)
            out["weights"].append(1.0)
            out["slopes"].append(spread)
            for name, value in metrics(rewards, scores, one["policy"]).items():
                out["metrics"].setdefault(name, []).append(value)
            if nll is not None:
                out["metrics"].setdefault("nll_loss", []).append((nll, 1.0))
        return out

    formula.__name__ = of_one.__name__
    return formula


def metrics(rewards: list[float], scores: list[float], policy: list[float]) -> dict[str, tuple[float, float]]:
    top = [k for k, score in enumerate(scores) if score == max(scores)]
    bottom = [k for k, score in enumerate(scores) if score == min(scores)]
    chosen, rejected = mean([rewards[k] for k in top]), mean([rewards[k] for k in bottom])
    pairs = [rewards[i] > rewards[j] for i, a in enumerate(scores) for j, b in enumerate(scores) if a > b]
    return {
        "rewards/chosen": (chosen, 1.0),
        "rewards/rejected": (rejected, 1.0),
        "rewards/margins": (chosen - rejected, 1.0),
        "rewards/accuracies": (sum(pairs) / len(pairs), 1.0) if pairs else (0.0, 0.0),
        "logps/chosen": (mean([policy[k] for k in top]), 1.0),
        "logps/rejected": (mean([policy[k] for k in bottom]), 1.0),
    }


def rewards_of(one: dict, options: dict) -> list[float]:
    return [options["beta"] * (p - r) for p, r in zip(one["policy"], one["reference"], strict=True)]


@each_ranking
def info_nca(one: dict, options: dict) -> Ranking:
    m, scores = rewards_of(one, options), one["scores"]
    q = softmax([score / options["temperature"] for score in scores])
    loss = -sum(a * b for a, b in zip(q, log_softmax(m), strict=True))
    return loss, [options["beta"] * (p - target) for p, target in zip(softmax(m), q, strict=True)], m, scores, None


@each_ranking
def nca(one: dict, options: dict) -> Ranking:
    m, scores = rewards_of(one, options), one["scores"]
    q = softmax([score / options["temperature"] for score in scores])
    loss = sum(-a * log_sigmoid(b) - log_sigmoid(-b) / len(m) for a, b in zip(q, m, strict=True))
    slopes = [options["beta"] * (sigmoid(b) / len(m) - a * sigmoid(-b)) for a, b in zip(q, m, strict=True)]
    return loss, slopes, m, scores, None


@each_ranking
def plackett_luce(one: dict, options: dict) -> Ranking:
    """Draws the places one after another; those who tie with the drawn one sit out that draw."""
    m, scores = rewards_of(one, options), one["scores"]
    loss, slopes = 0.0, [0.0] * len(m)
    for k in sorted(range(len(m)), key=lambda k: -scores[k]):
        field = [k] + [j for j in range(len(m)) if scores[j] < scores[k]]
        loss -= log_softmax([m[j] for j in field])[0]
        for j, share in zip(field, softmax([m[j] for j in field]), strict=True):
            slopes[j] += options["beta"] * (share - (j == k))
    return loss, slopes, m, scores, None


@each_ranking
def exo_list(one: dict, options: dict) -> Ranking:
    m, scores = rewards_of(one, options), one["scores"]
    log_q = log_softmax([score / options["temperature"] for score in scores])
    p = softmax(m)
    gaps = [a - b for a, b in zip(log_softmax(m), log_q, strict=True)]
    loss = sum(a * b for a, b in zip(p, gaps, strict=True))
    return loss, [options["beta"] * a * (gap - loss) for a, gap in zip(p, gaps, strict=True)], m, scores, None


@each_ranking
def sppo_ranked(one: dict, options: dict) -> Ranking:
    m, wins = rewards_of(one, options), one["win_probabilities"]
    ratios = [p - r for p, r in zip(one["policy"], one["reference"], strict=True)]
    misses = [ratio - (win - 0.5) / options["beta"] for ratio, win in zip(ratios, wins, strict=True)]
    return mean([miss**2 for miss in misses]), [2 * miss / len(m) for miss in misses], m, wins, None


@each_ranking
def rrhf(one: dict, options: dict) -> Ranking:
    avg, scores, lengths = one["policy"], one["scores"], one["lengths"]
    loss, slopes = 0.0, [0.0] * len(avg)
    for i in range(len(avg)):
        for j in range(len(avg)):
            if scores[i] < scores[j] and avg[i] > avg[j]:
                loss += avg[i] - avg[j]
                slopes[i] += 1
                slopes[j] -= 1
    shares = lengths if options["nll_normalization"] == "sum" else [1.0] * len(avg)
    top = [k for k, score in enumerate(scores) if score == max(scores)]
    for k in top:
        slopes[k] -= options["nll_coefficient"] * shares[k] / len(top)
    nll = mean([-shares[k] * avg[k] for k in top])
    return loss + options["nll_coefficient"] * nll, slopes, avg, scores, nll


def triple(one: dict, options: dict, gamma: float, shares: list[float]) -> Ranking:
    values, scores, beta, a = one["policy"], one["scores"], options["beta"], options["nll_coefficient"]
    order = sorted(range(len(values)), key=lambda k: -scores[k])  # stable: the first listed wins a tie
    gold, second, last = order[0], order[1 if len(order) > 2 else 0], order[-1]
    loss, slope = smoothed(beta * (values[second] - values[last]) - gamma, options["label_smoothing"])
    nll = -shares[gold] * values[gold]
    slopes = [0.0] * len(values)
    slopes[second] += beta * slope
    slopes[last] -= beta * slope
    slopes[gold] -= a * shares[gold]
    return loss + a * nll, slopes, [beta * value for value in values], scores, nll


@each_ranking
def tpo(one: dict, options: dict) -> Ranking:
    tokens = options["nll_normalization"] == "tokens"
    return triple(one, options, 0.0, [1 / length if tokens else 1.0 for length in one["lengths"]])


@each_ranking
def tpo_l(one: dict, options: dict) -> Ranking:
    tokens = options["nll_normalization"] == "tokens"
    gamma = options["beta"] * options["gamma_beta_ratio"]
    return triple(one, options, gamma, [1.0 if tokens else length for length in one["lengths"]])


# Inputs.

LENGTHS = [
    [12.0, 5.0, 40.0, 7.0],
    [1.0, 30.0, 0.0, 9.0],
    [2.0, 2.0, 2.0, 2.0],
    [0.0, 3.0, 1.0, 0.0],
    [6.0, 0.0, 0.0, 0.0],
]
SCORES = [[4.5, 1.0, 3.0, 5.0], [2.0, 3.5, 0.0, 3.25], [3.0, 4.0, 4.0, 3.0], [0.0, 1.0, 7.0, 0.0], [2.0, 0.0, 0.0, 0.0]]
WINS = [
    [0.75, 0.125, 0.5, 0.875],
    [0.25, 1.0, 0.0, 0.5],
    [0.5, 0.5, 0.25, 0.75],
    [0.0, 0.375, 0.25, 0.0],
    [1.0, 0.0, 0.0, 0.0],
]


def absent_are_zero(rows: list[list[float]]) -> list[list[float]]:
    return [
        [value if length else 0.0 for value, length in zip(row, lengths, strict=True)]
        for row, lengths in zip(rows, LENGTHS, strict=True)
    ]


def inputs_of(rng: random.Random, names: Sequence[str], low: float, high: float) -> dict[str, dict]:
    """By name: random, policy equal to reference, and 0 or -1000 nats. Some completions are absent, some scores tie."""
    policy = [logps(rng, 4, low, high) for _ in LENGTHS]
    near = [[value + rng.randint(-256, 256) / 64 for value in row] for row in policy]
    extremes = [
        [0.0, -1000.0, -500.0, -999.0],
        [-1000.0, 0.0, 0.0, -2.0],
        [0.0, -1000.0, -1.0, -999.0],
        [0.0, 0.0, -1000.0, 0.0],
        [-1000.0, 0.0, 0.0, 0.0],
    ]
    policies = {
        "random": (policy, near),
        "tied": (policy, policy),
        "extreme": (extremes, [[-500.0] * 4 for _ in LENGTHS]),
    }
    rows = {"scores": SCORES, "win_probabilities": WINS}
    return {
        name: {
            key: LENGTHS
            if key == "lengths"
            else absent_are_zero(({"policy": given[0], "reference": given[1]} | rows)[key])
            for key in names
        }
        for name, given in policies.items()
    }


GRIDS: dict[str, list[dict]] = {
    "info_nca": [{"beta": 0.01, "temperature": 1e-4}, {"beta": 0.5, "temperature": 2.0}],
    "nca": [{"beta": 0.01, "temperature": 1e-4}, {"beta": 0.5, "temperature": 2.0}],
    "plackett_luce": [{"beta": 0.1}, {"beta": 0.5}],
    "exo_list": [{"beta": 0.1, "temperature": 0.1}, {"beta": 0.5, "temperature": 2.0}],
    "sppo_ranked": [{"beta": 0.001}, {"beta": 0.125}],
    "rrhf": [
        {"nll_coefficient": 1.0, "nll_normalization": "sum"},
        {"nll_coefficient": 0.01, "nll_normalization": "tokens"},
    ],
    "tpo": [
        {"beta": 0.01, "nll_coefficient": 1.0, "nll_normalization": "tokens", "label_smoothing": 0.0},
        {"beta": 0.25, "nll_coefficient": 0.05, "nll_normalization": "sum", "label_smoothing": 0.125},
    ],
    "tpo_l": [
        {
            "beta": 2.0,
            "gamma_beta_ratio": 0.8,
            "nll_coefficient": 0.05,
            "nll_normalization": "tokens",
            "label_smoothing": 0.0,
        },
        {
            "beta": 10.0,
            "gamma_beta_ratio": 0.25,
            "nll_coefficient": 0.5,
            "nll_normalization": "sum",
            "label_smoothing": 0.125,
        },
    ],
}


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    if method in ("rrhf", "tpo_l"):
        inputs = inputs_of(rng, ("policy", "scores", "lengths"), -4, -0.25)
        del inputs["tied"]
    elif method == "tpo":
        inputs = inputs_of(rng, ("policy", "scores", "lengths"), -90, -10)
        del inputs["tied"]
    elif method == "sppo_ranked":
        inputs = inputs_of(rng, ("policy", "reference", "win_probabilities", "lengths"), -90, -10)
    else:
        inputs = inputs_of(rng, ("policy", "reference", "scores", "lengths"), -90, -10)
    return product(inputs, GRIDS[method])


FORMULAS = {f.__name__: f for f in (info_nca, nca, plackett_luce, exo_list, sppo_ranked, rrhf, tpo, tpo_l)}


def main(names: Sequence[str]) -> None:
    write(FOLDER, FORMULAS, cases, names)


if __name__ == "__main__":
    main(sys.argv[1:])
