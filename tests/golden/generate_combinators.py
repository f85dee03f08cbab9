"""Writes the golden values of combinations and of the term nll: ``python tests/golden/generate_combinators.py``."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from generate import (
    add_pair,
    columns,
    dpo,
    log_sigmoid,
    paired_inputs,
    product,
    sigmoid,
    start_pairs,
    with_lengths,
    write,
)

FOLDER = Path(__file__).parent


def nll(inputs: dict, options: dict) -> dict:
    out = start_pairs("nll_loss")
    for c, r, length in zip(*columns(inputs, "policy"), inputs["lengths"]["chosen"], strict=True):
        size = {"batch_tokens": inputs["mean_lengths"]["chosen"], "tokens": length, "sum": 1.0}[
            options["normalization"]
        ]
        add_pair(out, -c / size, (-1 / size, 0.0), (c, r), (c, r))
        out["metrics"]["nll_loss"].append((-c / size, 1.0))
    return out


def bco_pair(inputs: dict, options: dict, at: dict) -> dict:
    """The shift is the mean of all rewards so far; it is taken from `at`, since it carries no gradient."""
    beta, state, mask = options["beta"], inputs["state"], inputs["example_mask"]

    def rewards(of: dict) -> list[tuple[float, float]]:
        both = zip(*columns(of, "policy"), *columns(of, "reference"), strict=True)
        return [(beta * (c - ref_c), beta * (r - ref_r)) for c, r, ref_c, ref_r in both]

    seen = [(w + lose) / 2 for (w, lose), m in zip(rewards(at), mask, strict=True) if m]
    count = state["bco_pair_count"] + len(seen)
    shift = (state["bco_pair_mean"] * state["bco_pair_count"] + sum(seen)) / count
    losses, slopes = [], []
    for (w, lose), m in zip(rewards(inputs), mask, strict=True):
        losses.append(m * (-log_sigmoid(w - shift) - log_sigmoid(shift - lose)))
        slopes.append((-m * beta * sigmoid(shift - w), m * beta * sigmoid(lose - shift)))
    return {"losses": losses, "slopes": slopes, "shift": shift, "count": count}


def part(options: dict, name: str) -> dict:
    return {
        option.removeprefix(f"{name}_"): value for option, value in options.items() if option.startswith(f"{name}_")
    }


def added(options: dict, parts: dict[str, dict], weights: list[float]) -> dict:
    """The weighted sum; metrics are those of dpo, and the terms."""
    out = {"losses": [], "slopes": [], "weights": weights, "metrics": dict(parts["dpo"]["metrics"])}
    scale = {name: options[f"{name}_weight"] for name in parts}
    for i in range(len(weights)):
        out["losses"].append(sum(scale[name] * of["losses"][i] for name, of in parts.items()))
        out["slopes"].append(tuple(sum(scale[name] * of["slopes"][i][k] for name, of in parts.items()) for k in (0, 1)))
    out["metrics"] |= {f"loss/{name}": [(loss, 1.0) for loss in of["losses"]] for name, of in parts.items()}
    out["metrics"]["nll_loss"] = parts["nll"]["metrics"]["nll_loss"]
    return out


def mpo(inputs: dict, options: dict, at: dict | None = None) -> dict:
    shifted = bco_pair(inputs, part(options, "bco_pair"), at or inputs)
    parts = {"dpo": dpo(inputs, part(options, "dpo")), "bco_pair": shifted, "nll": nll(inputs, part(options, "nll"))}
    out = added(options, parts, [float(m) for m in inputs["example_mask"]])
    out["metrics"]["delta"] = [(shifted["shift"], 1.0)] * len(out["losses"])
    return out | {"state": {"bco_pair_mean": shifted["shift"], "bco_pair_count": shifted["count"]}}


def iterative_rpo(inputs: dict, options: dict) -> dict:
    parts = {"dpo": dpo(inputs, part(options, "dpo")), "nll": nll(inputs, part(options, "nll"))}
    return added(options, parts, [1.0] * len(parts["dpo"]["losses"]))


def regularized_rpo(inputs: dict, options: dict) -> dict:
    return iterative_rpo(inputs, options)


def soft_dpo(inputs: dict, options: dict) -> dict:
    out = dpo(inputs, options)
    for i, p in enumerate(inputs["preference"]):
        one = {name: {side: [values[i]] for side, values in inputs[name].items()} for name in ("policy", "reference")}
        turned = {name: {"chosen": pair["rejected"], "rejected": pair["chosen"]} for name, pair in one.items()}
        other = dpo(turned, options)
        out["losses"][i] = p * out["losses"][i] + (1 - p) * other["losses"][0]
        slopes = zip(out["slopes"][i], reversed(other["slopes"][0]), strict=True)
        out["slopes"][i] = tuple(p * mine + (1 - p) * theirs for mine, theirs in slopes)
    return out


FORMULAS = {
    "soft_dpo": soft_dpo,
    "nll": nll,
    "mpo": mpo,
    "iterative_rpo": iterative_rpo,
    "regularized_rpo": regularized_rpo,
}


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    inputs = paired_inputs(rng, -90, -10)
    if method == "nll":
        lengths = {name: with_lengths(rng, given, 1, 40) for name, given in inputs.items() if name != "tied"}
        return product(lengths, [{"normalization": name} for name in ("batch_tokens", "tokens", "sum")])
    if method == "soft_dpo":
        sure = [1.0, 0.75, 0.5, 0.625, 0.25, 0.0]
        given = {
            name: arrays | {"preference": sure[: len(arrays["policy"]["chosen"])]} for name, arrays in inputs.items()
        }
        return product(given, [{"beta": 0.1, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.125}])
    inputs = {name: given | with_lengths(rng, given, 1, 40) for name, given in inputs.items()}
    dpo_options = {"dpo_beta": 0.1, "dpo_label_smoothing": 0.0, "dpo_weight": 1.0}
    if method == "iterative_rpo":
        grid = [
            dpo_options | {"nll_normalization": "tokens", "nll_weight": 1.0},
            {"dpo_beta": 0.25, "dpo_label_smoothing": 0.125, "dpo_weight": 0.5}
            | {"nll_normalization": "sum", "nll_weight": 0.125},
        ]
        return product(inputs, grid)
    if method == "regularized_rpo":
        grid = [
            dpo_options | {"dpo_beta": 0.01, "nll_normalization": "batch_tokens", "nll_weight": 0.005},
            dpo_options | {"nll_normalization": "sum", "nll_weight": 0.25},
        ]
        return product(inputs, grid)
    start, later = ({"bco_pair_mean": mean, "bco_pair_count": count} for mean, count in ((0.0, 0.0), (-0.75, 24.0)))
    everyone = {name: [True] * len(given["policy"]["chosen"]) for name, given in inputs.items()}
    given = {name: arrays | {"state": start, "example_mask": everyone[name]} for name, arrays in inputs.items()}
    given["later, masked"] = inputs["random"] | {"state": later, "example_mask": [True, False, True, True, False, True]}
    grid = [
        dpo_options
        | {"dpo_weight": 0.8, "bco_pair_beta": 0.1, "bco_pair_weight": 0.2}
        | {"nll_normalization": "batch_tokens", "nll_weight": 1.0},
        {"dpo_beta": 0.25, "dpo_label_smoothing": 0.125, "dpo_weight": 1.5}
        | {"bco_pair_beta": 0.5, "bco_pair_weight": 0.25, "nll_normalization": "tokens", "nll_weight": 0.0},
    ]
    return product(given, grid)


def main(names: Sequence[str]) -> None:
    write(FOLDER, FORMULAS, cases, names)


if __name__ == "__main__":
    main(sys.argv[1:])
