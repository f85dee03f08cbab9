"""Writes the golden values of pairs without a reference: ``python tests/golden/generate_reference_free.py``."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from generate import EXTREMES, add_pair, columns, log_sigmoid, pair, product, sigmoid, smoothed, start_pairs, write

FOLDER = Path(__file__).parent
CLAMP = -1e-7  # log p of the odds, where they would be infinite


def nll_and_slope(mean: float, length: float, mean_length: float, normalization: str) -> tuple[float, float]:
    """Of a completion with that mean log-probability; the slope is with respect to the mean."""
    share = {"batch_tokens": length / mean_length, "tokens": 1.0, "sum": length}[normalization]
    return -share * mean, -share


def log_complement(mean: float) -> float:
    return math.log(-math.expm1(min(mean, CLAMP)))


def log_odds(mean: float) -> tuple[float, float]:
    """Value and slope; beyond the clamp it is flat."""
    return min(mean, CLAMP) - log_complement(mean), -1 / math.expm1(mean) if mean < CLAMP else 0.0


def cpo_simpo(inputs: dict, options: dict) -> dict:
    beta, a = options["beta"], options["nll_coefficient"]
    out = start_pairs("nll_loss")
    for c, r, length in zip(*columns(inputs, "policy"), inputs["lengths"]["chosen"], strict=True):
        loss, slope = smoothed(beta * c - beta * r - beta * options["gamma_beta_ratio"], options["label_smoothing"])
        nll, nll_slope = nll_and_slope(c, length, inputs["mean_lengths"]["chosen"], options["nll_normalization"])
        add_pair(out, loss + a * nll, (beta * slope + a * nll_slope, -beta * slope), (beta * c, beta * r), (c, r))
        out["metrics"]["nll_loss"].append((nll, 1.0))
    return out


def alphapo(inputs: dict, options: dict) -> dict:
    beta, alpha = options["beta"], options["alpha"]

    def reward(mean: float) -> tuple[float, float]:
        if alpha == 0:
            return mean, 1.0
        if -alpha * mean > 60:
            return (1 - math.exp(60)) / alpha, 0.0
        p = math.exp(mean)
        return (1 - p**-alpha) / alpha, p**-alpha

    out = start_pairs()
    for c, r in zip(*columns(inputs, "policy"), strict=True):
        (reward_c, slope_c), (reward_r, slope_r) = reward(c), reward(r)
        h = beta * (reward_c - reward_r) - beta * options["gamma_beta_ratio"]
        loss, slope = smoothed(h, options["label_smoothing"])
        slopes = (beta * slope * slope_c, -beta * slope * slope_r)
        add_pair(out, loss, slopes, (beta * reward_c, beta * reward_r), (c, r))
    return out


def slic_hf(inputs: dict, options: dict) -> dict:
    a = options["nll_coefficient"]
    out = start_pairs("nll_loss")
    for c, r, length in zip(*columns(inputs, "policy"), inputs["lengths"]["chosen"], strict=True):
        short = options["margin"] - (c - r)
        mean_length = inputs["mean_lengths"]["chosen"]
        nll, nll_slope = nll_and_slope(c / length, length, mean_length, options["nll_normalization"])
        active = 1.0 if short > 0 else 0.0
        add_pair(out, max(0.0, short) + a * nll, (a * nll_slope / length - active, active), (c, r), (c, r))
        out["metrics"]["nll_loss"].append((nll, 1.0))
    return out


def orpo(inputs: dict, options: dict) -> dict:
    a = options["odds_coefficient"]
    out = start_pairs("nll_loss", "log_odds_chosen", "log_odds_ratio")
    for c, r, length in zip(*columns(inputs, "policy"), inputs["lengths"]["chosen"], strict=True):
        nll, nll_slope = nll_and_slope(c, length, inputs["mean_lengths"]["chosen"], options["nll_normalization"])
        (odds_c, slope_c), (odds_r, slope_r) = log_odds(c), log_odds(r)
        ratio = odds_c - odds_r
        push = a * sigmoid(-ratio)
        slopes = (nll_slope - push * slope_c, push * slope_r)
        add_pair(out, nll - a * log_sigmoid(ratio), slopes, (a * c, a * r), (c, r))
        for name, value in (("nll_loss", nll), ("log_odds_chosen", ratio), ("log_odds_ratio", log_sigmoid(ratio))):
            out["metrics"][name].append((value, 1.0))
    return out


def asft(inputs: dict, options: dict) -> dict:
    """The form with log-odds, while the package computes the one without."""
    a = options["odds_coefficient"]
    out = start_pairs()
    for c, r in zip(*columns(inputs, "policy"), strict=True):
        (odds_c, slope_c), (odds_r, slope_r) = log_odds(c), log_odds(r)
        loss = -c - a * (log_sigmoid(odds_c) + log_sigmoid(-odds_r))
        # Where the chosen completion's odds are clamped the sum has no limit: log sigmoid(z) is log p.
        slopes = (-1 - a * (sigmoid(-odds_c) * slope_c if c < CLAMP else 1.0), a * sigmoid(odds_r) * slope_r)
        add_pair(out, loss, slopes, (a * odds_c, a * odds_r), (c, r))
    return out


def asft_tempered(inputs: dict, options: dict) -> dict:
    beta = options["beta"]
    out = start_pairs()
    for c, r in zip(*columns(inputs, "policy"), strict=True):
        (odds_c, slope_c), (odds_r, slope_r) = log_odds(c), log_odds(r)
        loss = -log_sigmoid(beta * odds_c) - log_sigmoid(-beta * odds_r)
        slopes = (-beta * sigmoid(-beta * odds_c) * slope_c, beta * sigmoid(beta * odds_r) * slope_r)
        add_pair(out, loss, slopes, (beta * odds_c, beta * odds_r), (c, r))
    return out


def inputs_of(rng: random.Random, low: float, high: float, *, lengths: bool) -> dict[str, dict]:
    """By name: random, both completions alike, few tokens, and 0 or -1000 nats."""
    random_pair = pair(rng, 6, low, high)
    policies = {
        "random": (random_pair, 5, 40),
        "tied": ({"chosen": random_pair["chosen"], "rejected": random_pair["chosen"]}, 5, 40),
        "short": (pair(rng, 6, -4, -0.25), 1, 2),
        "extreme": (EXTREMES, 5, 40),
    }
    inputs = {}
    for name, (policy, shortest, longest) in policies.items():
        inputs[name] = {"policy": policy}
        if lengths:
            count = len(policy["chosen"])
            drawn = {s: [float(rng.randint(shortest, longest)) for _ in range(count)] for s in ("chosen", "rejected")}
            inputs[name] |= {"lengths": drawn, "mean_lengths": {s: sum(v) / count for s, v in drawn.items()}}
    return inputs


GRIDS: dict[str, list[dict]] = {
    "cpo_simpo": [
        {
            "beta": 10.0,
            "gamma_beta_ratio": 0.54,
            "nll_coefficient": 0.05,
            "nll_normalization": "batch_tokens",
            "label_smoothing": 0.0,
        },
        {
            "beta": 2.5,
            "gamma_beta_ratio": 0.25,
            "nll_coefficient": 0.5,
            "nll_normalization": "tokens",
            "label_smoothing": 0.125,
        },
        {
            "beta": 2.0,
            "gamma_beta_ratio": 0.0,
            "nll_coefficient": 1.0,
            "nll_normalization": "sum",
            "label_smoothing": 0.0,
        },
    ],
    "alphapo": [
        {"alpha": 0.25, "beta": 2.5, "gamma_beta_ratio": 0.04, "label_smoothing": 0.0},
        {"alpha": -0.5, "beta": 2.0, "gamma_beta_ratio": 0.5, "label_smoothing": 0.125},
        {"alpha": 0.0, "beta": 2.0, "gamma_beta_ratio": 0.5, "label_smoothing": 0.0},
        {"alpha": 1.0, "beta": 0.5, "gamma_beta_ratio": 0.25, "label_smoothing": 0.125},
    ],
    "slic_hf": [
        {"margin": 1.0, "nll_coefficient": 0.1, "nll_normalization": "sum"},
        {"margin": 7.01, "nll_coefficient": 0.5, "nll_normalization": "tokens"},
        {"margin": 0.3, "nll_coefficient": 1.0, "nll_normalization": "batch_tokens"},
    ],
    "orpo": [
        {"odds_coefficient": 0.1, "nll_normalization": "batch_tokens"},
        {"odds_coefficient": 1.0, "nll_normalization": "tokens"},
        {"odds_coefficient": 0.25, "nll_normalization": "sum"},
    ],
    "asft": [{"odds_coefficient": 1.0}, {"odds_coefficient": 0.2}],
    "asft_tempered": [{"beta": 1.0}, {"beta": 0.1}],
}


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    low, high = (-90.0, -10.0) if method == "slic_hf" else (-4.0, -0.25)
    return product(inputs_of(rng, low, high, lengths="nll_normalization" in GRIDS[method][0]), GRIDS[method])


FORMULAS = {f.__name__: f for f in (cpo_simpo, alphapo, slic_hf, orpo, asft, asft_tempered)}


def main(names: Sequence[str]) -> None:
    write(FOLDER, FORMULAS, cases, names, kinks=("extreme",))


if __name__ == "__main__":
    main(sys.argv[1:])
