"""Writes the golden values of the batch-coupled objectives: ``python generate_batch_coupled.py [method ...]``.

What carries no gradient (running statistics, the draw, the batch's beta) is taken from the inputs ``at``, so that the
central differences hold it fixed. Random draws have no golden values: in these cases either every pair is kept, or
those to drop are so unlikely that no key keeps them.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from generate import add_pair, columns, log_sigmoid, pair, paired_inputs, sigmoid, smoothed, start_pairs, write

FOLDER = Path(__file__).parent
GARBAGE = -777.0  # what an absent example holds
SURE = 40.0  # nats between the log-weights of kept and dropped pairs: more than any Gumbel noise in float32


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def ratios(inputs: dict) -> tuple[list[float], list[float]]:
    """The chosen and the rejected log-ratios."""
    policy, reference = columns(inputs, "policy"), columns(inputs, "reference")
    chosen, rejected = ([p - r for p, r in zip(*side, strict=True)] for side in zip(policy, reference, strict=True))
    return chosen, rejected


def valid(inputs: dict) -> list[int]:
    return [i for i, present in enumerate(inputs["example_mask"]) if present]


def finish(inputs: dict, scale: float, losses: dict, slopes: dict, **metrics: Sequence[float]) -> dict:
    """Losses and slopes by example (chosen, rejected); an absent example weighs nothing, whatever its loss."""
    out = start_pairs(*metrics)
    chosen, rejected = ratios(inputs)
    for i, logps in enumerate(zip(*columns(inputs, "policy"), strict=True)):
        add_pair(out, losses[i], slopes[i], (scale * chosen[i], scale * rejected[i]), logps)
        out["weights"][-1] = 1.0 if inputs["example_mask"][i] else 0.0
        for name, values in metrics.items():
            out["metrics"][name].append((values[i], 1.0))
    return out


def aot(inputs: dict, options: dict) -> dict:
    beta, e = options["beta"], options["label_smoothing"]
    margins, others = ([w - r for w, r in zip(*columns(inputs, name), strict=True)] for name in ("policy", "reference"))
    losses, slopes = absent(inputs, math.log(2))
    order = sorted(valid(inputs), key=lambda i: margins[i])
    for i, other in zip(order, sorted(others[i] for i in order), strict=True):
        losses[i], slope = smoothed(beta * (margins[i] - other), e)
        slopes[i] = (beta * slope, -beta * slope)
    return finish(inputs, beta, losses, slopes)


def aot_unpaired(inputs: dict, options: dict) -> dict:
    beta, e = options["beta"], options["label_smoothing"]
    chosen, rejected = ratios(inputs)
    losses, slopes = absent(inputs, math.log(2))
    falls = dict.fromkeys(range(len(chosen)), 0.0)
    first, second = (sorted(valid(inputs), key=lambda i: side[i]) for side in (chosen, rejected))
    for i, j in zip(first, second, strict=True):
        losses[i], slope = smoothed(beta * (chosen[i] - rejected[j]), e)
        slopes[i] = (beta * slope, 0.0)
        falls[j] = -beta * slope
    return finish(inputs, beta, losses, {i: (up, falls[i]) for i, (up, _) in slopes.items()})


def beta_dpo(inputs: dict, options: dict, at: dict | None = None) -> dict:
    beta, momentum = options["beta"], options["momentum"]
    held_chosen, held_rejected = ratios(at or inputs)
    examples = valid(inputs)
    held = {i: held_chosen[i] - held_rejected[i] for i in examples}
    centre = mean(list(held.values()))
    variance = sum((value - centre) ** 2 for value in held.values()) / (len(held) - 1)
    m = momentum * inputs["state"]["mean"] + (1 - momentum) * centre
    s = momentum * inputs["state"]["std"] + (1 - momentum) * math.sqrt(variance)
    logs = {i: -0.5 * ((value - m) / s) ** 2 if s > 0 else 0.0 for i, value in held.items()}
    likely = sorted(examples, key=lambda i: -logs[i])
    count = max(1, math.floor(len(examples) * (1 - options["filtering_ratio"]) + 1e-9))
    kept, dropped = likely[:count], likely[count:]
    if dropped and logs[kept[-1]] - logs[dropped[0]] < SURE:
        raise AssertionError("The draw depends on the keys.")
    batch_beta = max(1e-3, beta * (1 + options["scaling_factor"] * (mean([held[i] for i in kept]) - m)))

    losses, slopes = absent(inputs, math.log(2))
    chosen, rejected = ratios(inputs)
    for i in examples:
        z = batch_beta * (chosen[i] - rejected[i])
        losses[i], slopes[i] = -log_sigmoid(z), (-batch_beta * sigmoid(-z), batch_beta * sigmoid(-z))
    weights = [float(i in kept) for i in range(len(chosen))]
    out = finish(inputs, beta, losses, slopes, beta=[batch_beta] * len(chosen), kept=weights)
    return out | {"weights": weights, "state": {"mean": m, "std": s}}


def bco_pair(inputs: dict, options: dict, at: dict | None = None) -> dict:
    beta, state, examples = options["beta"], inputs["state"], valid(inputs)
    held_chosen, held_rejected = ratios(at or inputs)
    total = state["count"] + len(examples)
    seen = sum(beta * (held_chosen[i] + held_rejected[i]) / 2 for i in examples)
    delta = (state["mean"] * state["count"] + seen) / total
    chosen, rejected = ratios(inputs)
    losses, slopes = absent(inputs, -log_sigmoid(delta) - log_sigmoid(-delta))
    for i in examples:
        w, r = beta * chosen[i] - delta, beta * rejected[i] - delta
        losses[i] = -log_sigmoid(w) - log_sigmoid(-r)
        slopes[i] = (-beta * sigmoid(-w), beta * sigmoid(r))
    out = finish(inputs, beta, losses, slopes, delta=[delta] * len(chosen))
    return out | {"state": {"mean": delta, "count": total}}


def kto_pair(inputs: dict, options: dict) -> dict:
    beta, examples = options["beta"], valid(inputs)
    chosen, rejected = ratios(inputs)
    mean_w, mean_l = (mean([side[i] for i in examples]) for side in (chosen, rejected))
    z_w, z_l = max(0.0, mean_w), max(0.0, mean_l)

    def slope(z: float) -> float:
        return beta * sigmoid(z) * sigmoid(-z) / 2

    own_w = {i: -slope(beta * (chosen[i] - z_l)) for i in examples}
    own_l = {i: slope(beta * (z_w - rejected[i])) for i in examples}
    # Each reference point moves with every completion of its kind; it is held at 0 where the mean is negative.
    through_w = -mean(list(own_l.values())) if mean_w >= 0 else 0.0
    through_l = -mean(list(own_w.values())) if mean_l >= 0 else 0.0
    losses, slopes = absent(inputs, (sigmoid(beta * z_l) + sigmoid(-beta * z_w)) / 2)
    for i in examples:
        losses[i] = (sigmoid(-beta * (chosen[i] - z_l)) + sigmoid(-beta * (z_w - rejected[i]))) / 2
        slopes[i] = (own_w[i] + through_w, own_l[i] + through_l)
    points = {"kl/chosen": [z_w] * len(chosen), "kl/rejected": [z_l] * len(chosen)}
    return finish(inputs, beta, losses, slopes, **points)


def absent(inputs: dict, loss: float) -> tuple[dict[int, float], dict[int, tuple[float, float]]]:
    """What every example starts with: the loss at log-ratios of 0, and no slope."""
    count = range(len(inputs["example_mask"]))
    return dict.fromkeys(count, loss), dict.fromkeys(count, (0.0, 0.0))


FORMULAS: dict[str, Callable] = {
    function.__name__: function for function in (aot, aot_unpaired, beta_dpo, bco_pair, kto_pair)
}
GRIDS: dict[str, list[dict]] = {
    "aot": [{"beta": 0.01, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.125}],
    "aot_unpaired": [{"beta": 0.01, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.125}],
    "beta_dpo": [
        {"beta": 0.1, "scaling_factor": 0.6, "filtering_ratio": 0.0, "momentum": 0.9},
        {"beta": 0.25, "scaling_factor": 0.0, "filtering_ratio": 0.0, "momentum": 0.5},
    ],
    "bco_pair": [{"beta": 0.1}, {"beta": 0.5}],
    "kto_pair": [{"beta": 0.1}, {"beta": 0.5}],
}
# Two rejected completions of one rank meet different chosen ones; a mean that is just at its clamp.
KINKS = {("aot_unpaired", "extreme"), ("kto_pair", "tied"), ("kto_pair", "extreme")}


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    inputs = paired_inputs(rng, -90, -10)
    inputs["short"] = {"policy": pair(rng, 4, -4, -0.25), "reference": pair(rng, 4, -4, -0.25)}
    for given in inputs.values():
        given["example_mask"] = [True] * len(given["policy"]["chosen"])
    inputs["masked"] = masked(pair(rng, 6, -90, -10), pair(rng, 6, -90, -10), [1, 4])
    if method == "beta_dpo":
        return with_draws(rng, inputs, GRIDS[method])
    if method == "bco_pair":
        for given in inputs.values():
            given["state"] = {"mean": rng.randint(-64, 64) / 64, "count": float(rng.choice([0, 6, 1000]))}
    return [(name, given, options) for name, given in inputs.items() for options in GRIDS[method]]


def masked(policy: dict, reference: dict, missing: Sequence[int]) -> dict:
    """The inputs with garbage in place of the examples at `missing`."""
    for side in ("chosen", "rejected"):
        for i in missing:
            policy[side][i] = GARBAGE
    count = len(policy["chosen"])
    return {"policy": policy, "reference": reference, "example_mask": [i not in missing for i in range(count)]}


def with_draws(rng: random.Random, inputs: dict, grid: Sequence[dict]) -> list[tuple[str, dict, dict]]:
    """Every pair kept; then outliers at 1 and 4, once with an absent example at 2."""
    near = pair(rng, 6, -90, -10)
    far = {side: [value + rng.randint(-96, 96) / 64 for value in near[side]] for side in near}
    far["chosen"][1], far["rejected"][4] = far["chosen"][1] + 800, far["rejected"][4] + 700
    outliers = {"policy": far, "reference": near, "example_mask": [True] * 6}
    copy = {side: list(values) for side, values in far.items()}
    for given in (*inputs.values(), outliers):
        given["state"] = {"mean": rng.randint(-64, 64) / 64, "std": rng.randint(32, 640) / 64}
    inputs["tied"]["state"] = {"mean": 0.0, "std": 0.0}
    gap = masked(copy, near, [2]) | {"state": {"mean": 0.25, "std": 2.0}}
    found = [(name, given, options) for name, given in inputs.items() for options in grid]
    quarter = {"beta": 0.1, "scaling_factor": 0.6, "filtering_ratio": 0.25, "momentum": 0.9}
    found += [
        ("outliers", outliers, quarter),
        ("outliers", outliers, quarter | {"filtering_ratio": 0.2, "momentum": 0.96875}),
        ("masked outliers", gap, quarter | {"filtering_ratio": 0.4}),
    ]
    for _, given, _ in found:
        given["keys"] = list(range(len(given["example_mask"])))
    return found


def main(names: Sequence[str]) -> None:
    write(FOLDER, FORMULAS, cases, names, KINKS)


if __name__ == "__main__":
    main(sys.argv[1:])
