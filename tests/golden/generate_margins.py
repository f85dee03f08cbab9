"""Writes the golden values of functions of one margin: ``python tests/golden/generate_margins.py [method ...]``."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from generate import (
    add_pair,
    columns,
    dpo,
    log_sigmoid,
    logps,
    paired_inputs,
    product,
    sigmoid,
    smoothed,
    start_pairs,
    write,
)

FOLDER = Path(__file__).parent


def near_inputs(rng: random.Random, count: int) -> dict:
    """Completions of ordinary size, with log-ratios of a few nats: where losses are neither flat nor linear."""
    policy = {side: logps(rng, count, -90, -10) for side in ("chosen", "rejected")}
    reference = {side: [value + logps(rng, 1, -4, 4)[0] for value in values] for side, values in policy.items()}
    return {"policy": policy, "reference": reference}


def margins(inputs: dict) -> Iterator[tuple[float, float, float, float]]:
    """Both log-ratios and both log-probabilities of each pair; without a reference the log-ratios are ``lp``."""
    zeros = [0.0] * len(inputs["policy"]["chosen"])
    reference = columns(inputs, "reference") if "reference" in inputs else (zeros, zeros)
    for c, r, ref_c, ref_r in zip(*columns(inputs, "policy"), *reference, strict=True):
        yield c - ref_c, r - ref_r, c, r


def of_margin(loss_and_slope: Callable[[float, dict], tuple[float, float]]) -> Callable[[dict, dict], dict]:
    """A formula from the value and derivative of its loss as a function of ``h``."""

    def formula(inputs: dict, options: dict) -> dict:
        beta, out = options["beta"], start_pairs()
        for rho_w, rho_l, c, r in margins(inputs):
            loss, slope = loss_and_slope(beta * (rho_w - rho_l), options)
            add_pair(out, loss, (beta * slope, -beta * slope), (beta * rho_w, beta * rho_l), (c, r))
        return out

    formula.__name__ = loss_and_slope.__name__
    return formula


@of_margin
def robust_dpo(h: float, options: dict) -> tuple[float, float]:
    e = options["label_smoothing"]
    loss = (-(1 - e) * log_sigmoid(h) + e * log_sigmoid(-h)) / (1 - 2 * e)
    return loss, (-(1 - e) * sigmoid(-h) - e * sigmoid(h)) / (1 - 2 * e)


@of_margin
def rso(h: float, options: dict) -> tuple[float, float]:
    return (1 - h, -1.0) if h < 1 else (0.0, 0.0)


@of_margin
def exo(h: float, options: dict) -> tuple[float, float]:
    e = options["label_smoothing"]
    p, q = sigmoid(h), sigmoid(-h)
    loss = p * (log_sigmoid(h) - math.log(1 - e)) + q * (log_sigmoid(-h) - math.log(e))
    return loss, p * q * (h - math.log(1 - e) + math.log(e))


@of_margin
def discopop(h: float, options: dict) -> tuple[float, float]:
    tau = options["tau"]
    m, rest = sigmoid(h / tau), sigmoid(-h / tau)
    logistic = -log_sigmoid(h)
    exponent = log_sigmoid(h / tau) - h
    exponential = math.exp(min(exponent, 80.0))
    slope = -rest * sigmoid(-h) - m * rest / tau * logistic
    return rest * logistic + exponential, slope + (exponential * (rest / tau - 1) if exponent < 80 else 0.0)


@of_margin
def probability(h: float, options: dict) -> tuple[float, float]:
    return smoothed(h, options["label_smoothing"])


FORMULAS: dict[str, Callable] = {
    "dpo_norm": dpo,
    "robust_dpo": robust_dpo,
    "rso": rso,
    "exo": exo,
    "discopop": discopop,
    "probability": probability,
}

GRIDS: dict[str, list[dict]] = {
    "dpo_norm": [{"beta": 5.0, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.125}],
    "robust_dpo": [{"beta": 0.1, "label_smoothing": 0.1}, {"beta": 0.5, "label_smoothing": 0.25}],
    "rso": [{"beta": 0.05}, {"beta": 0.5}],
    "exo": [{"beta": 0.1, "label_smoothing": 1e-3}, {"beta": 0.5, "label_smoothing": 0.25}],
    "discopop": [{"beta": 0.05, "tau": 0.05}, {"beta": 0.25, "tau": 1.0}, {"beta": 0.1, "tau": 2.0}],
    "probability": [{"beta": 0.1, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.125}],
}


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    means = method == "dpo_norm"
    inputs = paired_inputs(rng, -4, -0.25) if means else paired_inputs(rng, -90, -10)
    inputs["short"] = paired_inputs(rng, -4, -0.25)["random"]
    if not means:
        inputs["near"] = near_inputs(rng, 6)
    if method == "probability":
        inputs = {name: {"policy": given["policy"]} for name, given in inputs.items()}
    return product(inputs, GRIDS[method])


def main(names: Sequence[str]) -> None:
    write(FOLDER, FORMULAS, cases, names)


if __name__ == "__main__":
    main(sys.argv[1:])
