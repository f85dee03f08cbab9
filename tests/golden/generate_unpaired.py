"""Writes the golden values of the unpaired objectives but KTO's: ``python generate_unpaired.py [method ...]``.

The reward shift of BCO carries no gradient: it is taken from the inputs ``at``, so that the central differences hold
it fixed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from generate import log_sigmoid, product, sigmoid, unpaired_inputs, write

FOLDER = Path(__file__).parent
NAMES = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


def ratios(inputs: dict) -> list[float]:
    return [p - r for p, r in zip(inputs["policy"], inputs["reference"], strict=True)]


def start(*further: str) -> dict[str, Any]:
    return {"losses": [], "weights": [], "slopes": [], "metrics": {name: [] for name in (*NAMES, *further)}}


def add(out: dict, loss: float, slope: float, reward: float, logp: float, good: bool, here: bool) -> None:
    out["losses"].append(loss)
    out["slopes"].append(slope)
    out["weights"].append(float(here))
    for name, value in zip(NAMES, (reward, reward, logp, logp), strict=True):
        out["metrics"][name].append((value, float(here and good == name.endswith("chosen"))))


def apo_zero_unpaired(inputs: dict, options: dict) -> dict:
    beta, out = options["beta"], start()
    for rho, p, good in zip(ratios(inputs), inputs["policy"], inputs["desirable"], strict=True):
        z = -beta * rho if good else beta * rho
        weight = options["desirable_weight"] if good else options["undesirable_weight"]
        slope = weight * beta * sigmoid(z) * sigmoid(-z)
        add(out, weight * sigmoid(z), -slope if good else slope, beta * rho, p, good, True)
    return out


def bco(inputs: dict, options: dict, at: dict | None = None) -> dict:
    beta, state, mask = options["beta"], inputs["state"], inputs["example_mask"]
    seen = [beta * rho for rho, here in zip(ratios(at or inputs), mask, strict=True) if here]
    total = state["count"] + len(seen)
    delta = (state["mean"] * state["count"] + sum(seen)) / total
    out = start("delta")
    for i, (rho, good) in enumerate(zip(ratios(inputs), inputs["desirable"], strict=True)):
        z = (beta * rho if mask[i] else 0.0) - delta  # an absent example has the loss of a log-ratio of 0
        z = z if good else -z
        weight = 1.0
        if "density_ratios" in inputs and mask[i] and not good:
            weight = min(max(inputs["density_ratios"][i], options["smallest_ratio"]), options["largest_ratio"])
        slope = -weight * beta * sigmoid(-z) if mask[i] else 0.0
        add(out, -weight * log_sigmoid(z), slope if good else -slope, beta * rho, inputs["policy"][i], good, mask[i])
        out["metrics"]["delta"].append((delta, 1.0))
    return out | {"state": {"mean": delta, "count": total}}


FORMULAS: dict[str, Callable] = {"apo_zero_unpaired": apo_zero_unpaired, "bco": bco, "bco_udm": bco}
GRIDS: dict[str, list[dict]] = {
    "apo_zero_unpaired": [
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        {"beta": 0.5, "desirable_weight": 1.25, "undesirable_weight": 0.75},
    ],
    "bco": [{"beta": 0.1}, {"beta": 0.5}],
    "bco_udm": [
        {"beta": 0.1, "smallest_ratio": 0.5, "largest_ratio": 10.0},
        {"beta": 0.5, "smallest_ratio": 0.75, "largest_ratio": 2.0},
    ],
}


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    wanted = ["policy", "reference", "desirable"]
    if method != "apo_zero_unpaired":
        wanted += ["example_mask"]
    inputs = {name: {key: given[key] for key in wanted} for name, given in unpaired_inputs(rng).items()}
    for name in ("negative kl", *(["masked"] if method == "apo_zero_unpaired" else [])):
        del inputs[name]
    for name, given in inputs.items():
        count = len(given["policy"])
        if method != "apo_zero_unpaired":
            given["state"] = {"mean": rng.randint(-64, 64) / 64, "count": float(rng.choice([0, 6, 1000]))}
        if method == "bco_udm":
            given["density_ratios"] = [rng.randint(1, 64 * 12) / 64 for _ in range(count)]
        if name == "masked":
            here = given["example_mask"]
            given["policy"] = [p if m else -777.0 for p, m in zip(given["policy"], here, strict=True)]
    return product(inputs, GRIDS[method])


def main(names: Sequence[str]) -> None:
    write(FOLDER, FORMULAS, cases, names)


if __name__ == "__main__":
    main(sys.argv[1:])
