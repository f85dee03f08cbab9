"""Writes the golden values of the pointwise objectives: ``python tests/golden/generate_pointwise.py [method ...]``."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from generate import add_pair, columns, log_sigmoid, pair, paired_inputs, product, sigmoid, start_pairs, write

FOLDER = Path(__file__).parent

# A term of a log-ratio or of a difference of log-ratios: its value and its derivative.
Term = tuple[float, float]


def sigmoid_term(z: float, slope: float) -> Term:
    return sigmoid(z), slope * sigmoid(z) * sigmoid(-z)


def logistic_term(z: float, slope: float) -> Term:
    return -log_sigmoid(z), -slope * sigmoid(-z)


def square_term(value: float, target: float) -> Term:
    return (value - target) ** 2, 2 * (value - target)


def ratios(inputs: dict) -> Iterator[tuple[float, float, float, float]]:
    """Both log-ratios and both log-probabilities of each pair."""
    for c, r, ref_c, ref_r in zip(*columns(inputs, "policy"), *columns(inputs, "reference"), strict=True):
        yield c - ref_c, r - ref_r, c, r


def apo_zero(inputs: dict, options: dict) -> dict:
    beta, out = options["beta"], start_pairs()
    for w, lose, c, r in ratios(inputs):
        up, down = sigmoid_term(-beta * w, -beta), sigmoid_term(beta * lose, beta)
        add_pair(out, up[0] + down[0], (up[1], down[1]), (beta * w, beta * lose), (c, r))
    return out


def apo_down(inputs: dict, options: dict) -> dict:
    beta, out = options["beta"], start_pairs()
    for w, lose, c, r in ratios(inputs):
        down, apart = sigmoid_term(beta * w, beta), sigmoid_term(-beta * (w - lose), -beta)
        add_pair(out, down[0] + apart[0], (down[1] + apart[1], -apart[1]), (beta * w, beta * lose), (c, r))
    return out


def nca_pair(inputs: dict, options: dict) -> dict:
    beta, share, out = options["beta"], options["noise_share"], start_pairs()
    for w, lose, c, r in ratios(inputs):
        signal, noise = logistic_term(beta * w, beta), logistic_term(-beta * w, -beta)
        other = logistic_term(-beta * lose, -beta)
        loss = signal[0] + share * noise[0] + (1 - share) * other[0]
        add_pair(out, loss, (signal[1] + share * noise[1], (1 - share) * other[1]), (beta * w, beta * lose), (c, r))
    return out


def sppo(inputs: dict, options: dict) -> dict:
    beta, out = options["beta"], start_pairs()
    for w, lose, c, r in ratios(inputs):
        first, second = square_term(w, 0.5 / beta), square_term(lose, -0.5 / beta)
        add_pair(out, first[0] + second[0], (first[1], second[1]), (beta * w, beta * lose), (c, r))
    return out


def sppo_soft(inputs: dict, options: dict) -> dict:
    beta, out = options["beta"], start_pairs()
    wins = zip(*columns(inputs, "win_probabilities"), strict=True)
    for (w, lose, c, r), (p_w, p_l) in zip(ratios(inputs), wins, strict=True):
        first, second = square_term(w, (p_w - 0.5) / beta), square_term(lose, (p_l - 0.5) / beta)
        add_pair(out, (first[0] + second[0]) / 2, (first[1] / 2, second[1] / 2), (beta * w, beta * lose), (c, r))
    return out


def cal_dpo(inputs: dict, options: dict) -> dict:
    beta, weight, out = options["beta"], options["calibration"], start_pairs("calibration_loss")
    for w, lose, c, r in ratios(inputs):
        apart = logistic_term(w - lose, 1.0)
        first, second = square_term(w, 0.5 / beta), square_term(lose, -0.5 / beta)
        slopes = (apart[1] + weight * first[1], -apart[1] + weight * second[1])
        add_pair(out, apart[0] + weight * (first[0] + second[0]), slopes, (w, lose), (c, r))
        out["metrics"]["calibration_loss"].append((first[0] + second[0], 1.0))
    return out


FORMULAS: dict[str, Callable] = {
    function.__name__: function for function in (apo_zero, apo_down, nca_pair, sppo, sppo_soft, cal_dpo)
}

GRIDS: dict[str, list[dict]] = {
    "apo_zero": [{"beta": 0.1}, {"beta": 0.5}],
    "apo_down": [{"beta": 0.1}, {"beta": 0.5}],
    "nca_pair": [{"beta": 0.01, "noise_share": 0.5}, {"beta": 0.5, "noise_share": 0.0}],
    "sppo": [{"beta": 0.001}, {"beta": 0.5}],
    "sppo_soft": [{"beta": 0.001}, {"beta": 0.5}],
    "cal_dpo": [{"beta": 0.001, "calibration": 0.5}, {"beta": 0.125, "calibration": 0.0}],
}


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    inputs = paired_inputs(rng, -90, -10)
    inputs["short"] = {"policy": pair(rng, 4, -4, -0.25), "reference": pair(rng, 4, -4, -0.25)}
    if method == "sppo_soft":
        for given in inputs.values():
            count = len(given["policy"]["chosen"])
            given["win_probabilities"] = {
                side: [rng.randint(0, 64) / 64 for _ in range(count)] for side in ("chosen", "rejected")
            }
    return product(inputs, GRIDS[method])


def main(names: Sequence[str]) -> None:
    write(FOLDER, FORMULAS, cases, names)


if __name__ == "__main__":
    main(sys.argv[1:])
