"""Writes the golden values of the objectives: ``python tests/golden/generate.py [method ...]``.

Every value comes from float64 loops over single examples, written from the papers' formulas and sharing no code with
the package, not even its array library. Gradients are the formulas' derivatives by hand; before a file is written
they are compared with central differences. Inputs are multiples of 1/64, which float32 holds exactly, so the files
test the arithmetic and not the rounding of the inputs.

A case holds ``inputs`` by name (pairs as ``{"chosen": [...], "rejected": [...]}``), ``options``, and the expected
``losses``, ``weights``, ``loss`` (their weighted mean), ``gradient`` of that mean with respect to ``policy``, and
``metrics`` as ``[values, weights]``.
"""

from __future__ import annotations

import inspect
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
STEP = 1e-4  # of the central differences


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


def smoothed(h: float, e: float) -> tuple[float, float]:
    """Value and derivative of ``-(1 - e) log sigmoid(h) - e log sigmoid(-h)``."""
    return -(1 - e) * log_sigmoid(h) - e * log_sigmoid(-h), -(1 - e) * sigmoid(-h) + e * sigmoid(h)


# One function a method: (inputs, options) -> per example losses, weights, d losses / d policy, metrics.


def dpo(inputs: dict, options: dict) -> dict:
    beta, e = options["beta"], options["label_smoothing"]
    out = start_pairs()
    for c, r, ref_c, ref_r in zip(*columns(inputs, "policy"), *columns(inputs, "reference"), strict=True):
        loss, slope = smoothed(beta * (c - ref_c - r + ref_r), e)
        add_pair(out, loss, (beta * slope, -beta * slope), (beta * (c - ref_c), beta * (r - ref_r)), (c, r))
    return out


def ipo(inputs: dict, options: dict) -> dict:
    beta = options["beta"]
    out = start_pairs()
    for c, r, ref_c, ref_r in zip(*columns(inputs, "policy"), *columns(inputs, "reference"), strict=True):
        miss = (c - ref_c) - (r - ref_r) - 1 / (2 * beta)
        add_pair(out, miss**2, (2 * miss, -2 * miss), (beta * (c - ref_c), beta * (r - ref_r)), (c, r))
    return out


def cpo(inputs: dict, options: dict) -> dict:
    beta, e, a = options["beta"], options["label_smoothing"], options["nll_coefficient"]
    out = start_pairs("nll_loss")
    for c, r, length in zip(*columns(inputs, "policy"), inputs["lengths"]["chosen"], strict=True):
        loss, slope = smoothed(beta * (c - r), e)
        divisor = {"batch_tokens": inputs["mean_lengths"]["chosen"], "tokens": length, "sum": 1.0}
        nll = -c / divisor[options["nll_normalization"]]
        nll_slope = -1 / divisor[options["nll_normalization"]]
        add_pair(out, loss + a * nll, (beta * slope + a * nll_slope, -beta * slope), (beta * c, beta * r), (c, r))
        out["metrics"]["nll_loss"].append((nll, 1.0))
    return out


def simpo(inputs: dict, options: dict) -> dict:
    beta, e = options["beta"], options["label_smoothing"]
    gamma = beta * options["gamma_beta_ratio"]
    out = start_pairs()
    for c, r in zip(*columns(inputs, "policy"), strict=True):
        loss, slope = smoothed(beta * c - beta * r - gamma, e)
        add_pair(out, loss, (beta * slope, -beta * slope), (beta * c, beta * r), (c, r))
    return out


def kto(inputs: dict, options: dict) -> dict:
    beta, w_d, w_u = options["beta"], options["desirable_weight"], options["undesirable_weight"]
    mask = inputs["example_mask"]
    gaps = [
        p - r for p, r, m in zip(inputs["mismatched_policy"], inputs["mismatched_reference"], mask, strict=True) if m
    ]
    z0 = max(0.0, sum(gaps) / len(gaps))
    names = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl")
    out: dict[str, Any] = {"losses": [], "weights": [], "slopes": [], "metrics": {name: [] for name in names}}
    for p, r, good, m in zip(inputs["policy"], inputs["reference"], inputs["desirable"], mask, strict=True):
        z = beta * (p - r - z0)
        out["losses"].append(w_d * (1 - sigmoid(z)) if good else w_u * (1 - sigmoid(-z)))
        out["slopes"].append(-w_d * beta * sigmoid(z) * sigmoid(-z) if good else w_u * beta * sigmoid(z) * sigmoid(-z))
        out["weights"].append(1.0 if m else 0.0)
        for kind, counts in (("chosen", good and m), ("rejected", not good and m)):
            out["metrics"][f"rewards/{kind}"].append((beta * (p - r), float(counts)))
            out["metrics"][f"logps/{kind}"].append((p, float(counts)))
        out["metrics"]["kl"].append((z0, 1.0))
    return out


def sft(inputs: dict, options: dict) -> dict:
    out: dict[str, Any] = {"losses": [], "weights": [], "slopes": [], "metrics": {"nll_loss": [], "logps/chosen": []}}
    for p, length in zip(inputs["policy"], inputs["lengths"], strict=True):
        out["losses"].append(-p / length)
        out["slopes"].append(-1 / length)
        out["weights"].append(length)
        out["metrics"]["nll_loss"].append((-p / length, length))
        out["metrics"]["logps/chosen"].append((p, 1.0))
    return out


def columns(inputs: dict, name: str) -> tuple[list[float], list[float]]:
    return inputs[name]["chosen"], inputs[name]["rejected"]


def start_pairs(*further: str) -> dict:
    names = [
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected", "policy/accuracies", *further),
    ]
    return {"losses": [], "weights": [], "slopes": [], "metrics": {name: [] for name in names}}


def add_pair(out: dict, loss: float, slopes: tuple, rewards: tuple, logps: tuple) -> None:
    out["losses"].append(loss)
    out["weights"].append(1.0)
    out["slopes"].append(slopes)
    values = {
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": rewards[0] - rewards[1],
        "rewards/accuracies": 1.0 if rewards[0] > rewards[1] else 0.0,
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
        "policy/accuracies": 1.0 if logps[0] > logps[1] else 0.0,
    }
    for name, value in values.items():
        out["metrics"][name].append((value, 1.0))


# Inputs.


def logps(rng: random.Random, count: int, low: float, high: float) -> list[float]:
    """Log-probabilities that are multiples of 1/64."""
    return [round(rng.uniform(low, high) * 64) / 64 for _ in range(count)]


def pair(rng: random.Random, count: int, low: float, high: float) -> dict[str, list[float]]:
    return {"chosen": logps(rng, count, low, high), "rejected": logps(rng, count, low, high)}


EXTREMES = {"chosen": [0.0, -1000.0, -1000.0, 0.0], "rejected": [-1000.0, 0.0, -1000.0, 0.0]}
NEUTRAL = {"chosen": [-500.0, -500.0, 0.0, -1000.0], "rejected": [-500.0, -500.0, -1000.0, 0.0]}


def paired_inputs(rng: random.Random, low: float, high: float) -> dict[str, dict]:
    """By name: random, policy equal to reference, and log-ratios of up to +-1000 nats."""
    policy = pair(rng, 6, low, high)
    return {
        "random": {"policy": policy, "reference": pair(rng, 6, low, high)},
        "tied": {"policy": policy, "reference": policy},
        "extreme": {"policy": EXTREMES, "reference": NEUTRAL},
    }


def with_lengths(rng: random.Random, inputs: dict, shortest: int, longest: int) -> dict:
    count = len(inputs["policy"]["chosen"])
    lengths = {side: [float(rng.randint(shortest, longest)) for _ in range(count)] for side in ("chosen", "rejected")}
    means = {side: sum(values) / count for side, values in lengths.items()}
    return {"policy": inputs["policy"], "lengths": lengths, "mean_lengths": means}


def unpaired_inputs(rng: random.Random) -> dict[str, dict]:
    policy = logps(rng, 6, -90, -10)
    labels = [True, False, True, True, False, True]
    mismatched = logps(rng, 6, -90, -10)
    everyone = [True] * 6

    def inputs(policy, reference, labels, mismatched_policy, mismatched_reference, mask):
        return {
            "policy": policy,
            "reference": reference,
            "desirable": labels,
            "mismatched_policy": mismatched_policy,
            "mismatched_reference": mismatched_reference,
            "example_mask": mask,
        }

    near = [value + shift for value, shift in zip(policy, (3.0, -2.5, 0.25, -1.0, 4.0, 0.5), strict=True)]
    drifted = [value - 1.5 for value in mismatched]
    zeros = [0.0] * 4
    return {
        "random": inputs(near, policy, labels, mismatched, drifted, everyone),
        "negative kl": inputs(near, policy, labels, drifted, mismatched, everyone),
        "tied": inputs(policy, policy, labels, mismatched, mismatched, everyone),
        "masked": inputs(near, policy, labels, mismatched, drifted, [True, True, False, True, False, True]),
        "none desirable": inputs(near, policy, [False] * 6, mismatched, drifted, everyone),
        "extreme": inputs(
            [0.0, -1000.0, 0.0, -1000.0],
            [-1000.0, 0.0, -1000.0, 0.0],
            [True, True, False, False],
            zeros,
            [-8.0] * 4,
            [True] * 4,
        ),
    }


def cases(method: str) -> list[tuple[str, dict, dict]]:
    """(name, inputs, options) of every case of a method. A method's seed depends on nothing but its name."""
    rng = random.Random(f"jaxalign {method}")
    if method == "dpo":
        grid = [{"beta": 0.1, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.125}]
        return product(paired_inputs(rng, -90, -10), grid)
    if method == "ipo":
        return product(paired_inputs(rng, -4, -0.25), [{"beta": 0.1}, {"beta": 0.5}])
    if method == "cpo":
        long = {name: with_lengths(rng, inputs, 5, 40) for name, inputs in paired_inputs(rng, -90, -10).items()}
        short = {"short": with_lengths(rng, paired_inputs(rng, -4, -0.25)["random"], 1, 2)}
        grid = [
            {"beta": 0.1, "nll_coefficient": 1.0, "nll_normalization": "batch_tokens", "label_smoothing": 0.0},
            {"beta": 0.25, "nll_coefficient": 0.5, "nll_normalization": "tokens", "label_smoothing": 0.125},
            {"beta": 0.1, "nll_coefficient": 2.0, "nll_normalization": "sum", "label_smoothing": 0.0},
            {"beta": 0.1, "nll_coefficient": 0.0, "nll_normalization": "batch_tokens", "label_smoothing": 0.0},
        ]
        return product(long | short, grid)
    if method == "simpo":
        inputs = {name: {"policy": case["policy"]} for name, case in paired_inputs(rng, -4, -0.25).items()}
        grid = [
            {"beta": 2.0, "gamma_beta_ratio": 0.5, "label_smoothing": 0.0},
            {"beta": 10.0, "gamma_beta_ratio": 0.25, "label_smoothing": 0.125},
            {"beta": 2.5, "gamma_beta_ratio": 0.0, "label_smoothing": 0.0},
        ]
        return product({"random": inputs["random"], "extreme": inputs["extreme"]}, grid)
    if method == "kto":
        grid = [
            {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
            {"beta": 0.5, "desirable_weight": 1.25, "undesirable_weight": 0.75},
        ]
        return product(unpaired_inputs(rng), grid)
    inputs = {
        "random": {"policy": logps(rng, 6, -90, -10), "lengths": [12.0, 40.0, 7.0, 1.0, 3.0, 25.0]},
        "extreme": {"policy": [0.0, -1000.0], "lengths": [1.0, 1.0]},
    }
    return product(inputs, [{}])


def product(inputs: dict[str, dict], grid: Sequence[dict]) -> list[tuple[str, dict, dict]]:
    return [(name, arrays, options) for name, arrays in inputs.items() for options in grid]


# From the per-example values to a case.


def mean_loss(out: dict) -> float:
    return sum(w * loss for w, loss in zip(out["weights"], out["losses"], strict=True)) / sum(out["weights"])


def gradient(out: dict) -> Any:
    """Of the weighted mean; a pair's two columns (tuples) apart, a ranking's completions (lists) together."""
    total = sum(out["weights"])
    if isinstance(out["slopes"][0], list):
        rows = zip(out["weights"], out["slopes"], strict=True)
        return [[w * slope / total for slope in slopes] for w, slopes in rows]
    scaled = [
        [w * slope / total for slope in (slopes if isinstance(slopes, tuple) else (slopes,))]
        for w, slopes in zip(out["weights"], out["slopes"], strict=True)
    ]
    transposed = [list(column) for column in zip(*scaled, strict=True)]
    return transposed[0] if len(transposed) == 1 else dict(zip(("chosen", "rejected"), transposed, strict=True))


def check_gradient(formula: Callable, inputs: dict, options: dict, method: str) -> None:
    """Compares the derivative by hand with a central difference, coordinate by coordinate."""
    by_hand = gradient(formula(inputs, options))
    if isinstance(by_hand, dict):
        rows = list(by_hand.items())
    else:
        rows = list(enumerate(by_hand)) if isinstance(by_hand[0], list) else [(None, by_hand)]
    for row, expected in rows:
        for i in range(len(expected)):
            values = []
            for sign in (1, -1):
                moved = json.loads(json.dumps(inputs))
                (moved["policy"] if row is None else moved["policy"][row])[i] += sign * STEP
                values.append(mean_loss(formula(moved, options)))
            numeric = (values[0] - values[1]) / (2 * STEP)
            if abs(numeric - expected[i]) > 1e-6 * max(1.0, abs(numeric)):
                raise AssertionError(f"{method}, {row} {i}: by hand {expected[i]}, numeric {numeric}")


FORMULAS = {function.__name__: function for function in (sft, dpo, ipo, cpo, simpo, kto)}


def write(folder: Path, formulas: dict[str, Callable], cases: Callable, names: Sequence[str], kinks=()) -> None:
    """Writes the files of `names` (none = all). The generators of other modules call it with their own formulas.

    Args:
      folder: where to.
      formulas: by method. One with a parameter ``at`` takes what carries no gradient from those inputs.
      cases: method -> (name, inputs, options) of each case.
      names: the methods.
      kinks: cases, or (method, case), at a kink of the formula, where a central difference says nothing.
    """
    for method in names or formulas:
        formula = formulas[method]
        written = []
        for name, inputs, options in cases(method):
            out = formula(inputs, options)
            if name not in kinks and (method, name) not in kinks:
                detaches = "at" in inspect.signature(formula).parameters
                check_gradient(partial(formula, at=inputs) if detaches else formula, inputs, options, method)
            state = {"state": out["state"]} if "state" in out else {}
            written.append(
                {
                    "name": name,
                    "options": options,
                    "inputs": inputs,
                    "losses": out["losses"],
                    "weights": out["weights"],
                    "loss": mean_loss(out),
                    "gradient": gradient(out),
                    "metrics": {k: [list(c) for c in zip(*v, strict=True)] for k, v in out["metrics"].items()},
                }
                | state
            )
        lines = ",\n".join(json.dumps(case) for case in written)
        (folder / f"{method}.json").write_text(f"[\n{lines}\n]\n")


def main(names: Sequence[str]) -> None:
    write(FOLDER, FORMULAS, cases, names)


if __name__ == "__main__":
    main(sys.argv[1:])
