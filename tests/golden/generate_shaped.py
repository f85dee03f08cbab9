"""Writes the golden values of the reshaped log-ratios: ``python tests/golden/generate_shaped.py [method ...]``."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from generate import add_pair, columns, log_sigmoid, paired_inputs, product, sigmoid, smoothed, start_pairs, write
from generate_margins import margins, near_inputs

FOLDER = Path(__file__).parent


def h_dpo(inputs: dict, options: dict) -> dict:
    beta, alpha, e = options["beta"], options["alpha"], options["label_smoothing"]
    out = start_pairs()
    for c, r, ref_c, ref_r in zip(*columns(inputs, "policy"), *columns(inputs, "reference"), strict=True):
        rewards = alpha * beta * c - beta * ref_c, alpha * beta * r - beta * ref_r
        loss, slope = smoothed(rewards[0] - rewards[1], e)
        add_pair(out, loss, (alpha * beta * slope, -alpha * beta * slope), rewards, (c, r))
    return out


def dpop(inputs: dict, options: dict) -> dict:
    beta, weight, e = options["beta"], options["penalty"], options["label_smoothing"]
    out = start_pairs("penalty")
    for rho_w, rho_l, c, r in margins(inputs):
        lost = weight * max(0.0, -rho_w)
        loss, slope = smoothed(beta * (rho_w - rho_l - lost), e)
        chosen = 1 + (weight if rho_w < 0 else 0.0)
        add_pair(out, loss, (beta * slope * chosen, -beta * slope), (beta * rho_w, beta * rho_l), (c, r))
        out["metrics"]["penalty"].append((beta * lost, 1.0))
    return out


def r_dpo(inputs: dict, options: dict) -> dict:
    beta, alpha, e = options["beta"], options["alpha"], options["label_smoothing"]
    out = start_pairs()
    for (rho_w, rho_l, c, r), n_w, n_l in zip(margins(inputs), *columns(inputs, "lengths"), strict=True):
        loss, slope = smoothed(beta * (rho_w - rho_l) + alpha * n_w - alpha * n_l, e)
        add_pair(out, loss, (beta * slope, -beta * slope), (beta * rho_w, beta * rho_l), (c, r))
    return out


def chi_po(inputs: dict, options: dict) -> dict:
    beta, bound, clip, e = options["beta"], 2 * options["r_max"], options["exponent_clip"], options["label_smoothing"]
    out = start_pairs()
    for rho_w, rho_l, c, r in margins(inputs):
        links, slopes = [], []
        for rho in (rho_w, rho_l):
            links.append(math.exp(min(rho, clip)) + rho)
            slopes.append(1 + (math.exp(rho) if rho < clip else 0.0))
        h = beta * (links[0] - links[1])
        loss, slope = smoothed(min(max(h, -bound), bound), e)
        if abs(h) > bound:
            slope = 0.0
        add_pair(
            out,
            loss,
            (beta * slope * slopes[0], -beta * slope * slopes[1]),
            (beta * links[0], beta * links[1]),
            (c, r),
        )
    return out


def f_dpo(inputs: dict, options: dict) -> dict:
    beta, e = options["beta"], options["label_smoothing"]
    out = start_pairs()
    for rho_w, rho_l, c, r in margins(inputs):
        chosen, rejected = linked(rho_w, options), linked(rho_l, options)
        loss, slope = smoothed(beta * (chosen[0] - rejected[0]), e)
        slopes = (beta * slope * chosen[1], -beta * slope * rejected[1])
        add_pair(out, loss, slopes, (beta * chosen[0], beta * rejected[0]), (c, r))
    return out


def linked(rho: float, options: dict) -> tuple[float, float]:
    """``g(rho)`` and its derivative."""
    kind, clip = options["divergence"], options["exponent_clip"]
    if kind == "reverse_kl":
        return rho, 1.0
    if kind == "js":
        return math.log(2) + log_sigmoid(rho), sigmoid(-rho)
    a = 1.0 if kind == "forward_kl" else options["alpha"]
    if -a * rho > clip:
        return (1 - math.exp(clip)) / a, 0.0
    return (1 - math.exp(-a * rho)) / a, math.exp(-a * rho)


FORMULAS: dict[str, Callable] = {function.__name__: function for function in (h_dpo, dpop, r_dpo, chi_po, f_dpo)}

F_DPO = {"beta": 0.1, "divergence": "forward_kl", "alpha": 0.5, "exponent_clip": 80.0, "label_smoothing": 0.0}

GRIDS: dict[str, list[dict]] = {
    "h_dpo": [
        {"beta": 0.1, "alpha": 0.95, "label_smoothing": 0.0},
        {"beta": 0.5, "alpha": 1.25, "label_smoothing": 0.125},
    ],
    "dpop": [
        {"beta": 0.3, "penalty": 50.0, "label_smoothing": 0.0},
        {"beta": 0.1, "penalty": 0.5, "label_smoothing": 0.125},
    ],
    "r_dpo": [
        {"beta": 0.1, "alpha": 0.01, "label_smoothing": 0.0},
        {"beta": 0.5, "alpha": 0.25, "label_smoothing": 0.125},
    ],
    "chi_po": [
        {"beta": 0.1, "r_max": 5.0, "exponent_clip": 20.0, "label_smoothing": 0.0},
        {"beta": 0.01, "r_max": 50.0, "exponent_clip": 2.5, "label_smoothing": 0.125},
    ],
    "f_dpo": [
        F_DPO,
        F_DPO | {"divergence": "reverse_kl", "beta": 0.5},
        F_DPO | {"divergence": "js", "beta": 2.0, "label_smoothing": 0.125},
        F_DPO | {"divergence": "alpha"},
        F_DPO | {"divergence": "alpha", "alpha": 0.25, "exponent_clip": 2.0, "label_smoothing": 0.125},
    ],
}

AT_THE_KINK = "tied, at the kink of the penalty"
HUGE = "extreme, up to exp(80)"


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    # Where log-ratios are exponents, one of 80 nats would drown all other pairs of its batch.
    inputs = paired_inputs(rng, -4, -1) if method in ("chi_po", "f_dpo") else paired_inputs(rng, -90, -10)
    inputs["short"] = paired_inputs(rng, -4, -0.25)["random"]
    inputs["near"] = near_inputs(rng, 6)
    if method == "dpop":
        inputs[AT_THE_KINK] = inputs.pop("tied")
    if method == "f_dpo":
        inputs[HUGE] = inputs.pop("extreme")
    if method == "r_dpo":
        for given in inputs.values():
            count = len(given["policy"]["chosen"])
            given["lengths"] = {
                side: [float(rng.randint(1, 200)) for _ in range(count)] for side in ("chosen", "rejected")
            }
    return product(inputs, GRIDS[method])


def main(names: Sequence[str]) -> None:
    write(FOLDER, FORMULAS, cases, names, kinks=(AT_THE_KINK, HUGE))


if __name__ == "__main__":
    main(sys.argv[1:])
