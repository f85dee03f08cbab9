"""Writes the golden values of the methods with a head: ``python tests/golden/generate_reward_model.py [method ...]``.

The gradient is with respect to the head's outputs. Derivatives are by hand; before a file is written each is compared
with a central difference.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from generate import STEP, log_sigmoid, logps, mean_loss, pair, product, sigmoid

FOLDER = Path(__file__).parent
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def start(*metrics: str) -> dict:
    return {"losses": [], "weights": [], "slopes": [], "metrics": {name: [] for name in metrics}}


def add(out: dict, loss: float, weight: float, slopes, **metrics: tuple[float, float]) -> None:
    out["losses"].append(loss)
    out["weights"].append(weight)
    out["slopes"].append(slopes)
    for name, value in metrics.items():
        out["metrics"][name.replace("__", "/")].append(value)


def of_pair(chosen: float, rejected: float) -> dict[str, tuple[float, float]]:
    return {
        "rewards__chosen": (chosen, 1.0),
        "rewards__rejected": (rejected, 1.0),
        "rewards__margins": (chosen - rejected, 1.0),
        "rewards__accuracies": (1.0 if chosen > rejected else 0.0, 1.0),
    }


# One function a method: (inputs, options) -> per example losses, weights, d losses / d outputs, metrics.


def reward_model_margin(inputs: dict, options: dict) -> dict:
    out, center = start(*REWARDS), options["center_coefficient"]
    rewards, scores = inputs["rewards"], inputs.get("scores")
    for i, (c, r) in enumerate(zip(rewards["chosen"], rewards["rejected"], strict=True)):
        margin = options["scale"] * (scores["chosen"][i] - scores["rejected"][i]) if scores else 0.0
        h = c - r - margin
        pull = 2 * center * (c + r)
        slopes = (-sigmoid(-h) + pull, sigmoid(-h) + pull)
        add(out, -log_sigmoid(h) + center * (c + r) ** 2, 1.0, slopes, **of_pair(c, r))
    return out


def reward_model(inputs: dict, options: dict) -> dict:
    return reward_model_margin({"rewards": inputs["rewards"]}, options)


def eurus_reward_model(inputs: dict, options: dict) -> dict:
    out = start(*REWARDS, "absolute/accuracies")
    rewards = inputs["rewards"]
    for c, r, absolute in zip(rewards["chosen"], rewards["rejected"], inputs["absolute"], strict=True):
        loss, slopes = -log_sigmoid(c - r), (-sigmoid(r - c), sigmoid(r - c))
        if absolute:
            loss += -log_sigmoid(c) - log_sigmoid(-r)
            slopes = (slopes[0] - sigmoid(-c), slopes[1] + sigmoid(r))
        signs = (0.5 if c > 0 else 0.0) + (0.5 if r < 0 else 0.0)
        metrics = of_pair(c, r) | {"absolute__accuracies": (signs, 1.0 if absolute else 0.0)}
        add(out, loss, 1.0, slopes, **metrics)
    return out


def reward_model_ranked(inputs: dict, options: dict) -> dict:
    out = start(*REWARDS)
    for rewards, scores, lengths in zip(inputs["rewards"], inputs["scores"], inputs["lengths"], strict=True):
        there = [k for k, length in enumerate(lengths) if length > 0]
        pairs = [(i, j) for i, j in itertools.permutations(there, 2) if scores[i] > scores[j]]
        slopes, loss = [0.0] * len(rewards), 0.0
        for i, j in pairs:
            loss -= log_sigmoid(rewards[i] - rewards[j]) / len(pairs)
            slopes[i] -= sigmoid(rewards[j] - rewards[i]) / len(pairs)
            slopes[j] += sigmoid(rewards[j] - rewards[i]) / len(pairs)
        ends = []
        for end in (max, min):
            found = [rewards[k] for k in there if scores[k] == end(scores[k] for k in there)]
            ends.append(sum(found) / len(found))
        right = sum(rewards[i] > rewards[j] for i, j in pairs) / max(1, len(pairs))
        metrics = of_pair(*ends) | {"rewards__accuracies": (right, 1.0 if pairs else 0.0)}
        add(out, loss, 1.0 if pairs else 0.0, slopes, **metrics)
    return out


def log_softmax(values: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(value - max(values)) for value in values)) + max(values)
    return [value - total for value in values]


def process_reward_model(inputs: dict, options: dict) -> dict:
    names = ("accuracies", "accuracies/right", "accuracies/wrong")
    out = start(*names)
    for logits, labels in zip(inputs["step_logits"], inputs["step_labels"], strict=True):
        steps = [t for t, label in enumerate(labels) if label >= 0]
        slopes, loss = [[0.0, 0.0] for _ in labels], 0.0
        for t in steps:
            logs = log_softmax(logits[t])
            loss -= logs[labels[t]] / len(steps)
            slopes[t] = [(math.exp(logs[c]) - (c == labels[t])) / len(steps) for c in (0, 1)]
        metrics = {}
        for name, kinds in zip(names, ((0, 1), (1,), (0,)), strict=True):
            counted = [t for t in steps if labels[t] in kinds]
            hits = sum(logits[t][labels[t]] > logits[t][1 - labels[t]] for t in counted)
            metrics[name.replace("/", "__")] = (hits / max(1, len(counted)), float(len(counted)))
        add(out, loss, float(len(steps)), slopes, **metrics)
    return out


def spo(inputs: dict, options: dict) -> dict:
    out = start("degree_loss", "degree_accuracies")
    for logits, degrees in zip(inputs["degree_logits"], inputs["degrees"], strict=True):
        given = [m for m, degree in enumerate(degrees) if degree >= 0]
        slopes, loss, hits = [[0.0] * len(row) for row in logits], 0.0, 0
        for m in given:
            logs = log_softmax(logits[m])
            loss -= logs[degrees[m]] / len(given)
            slopes[m] = [(math.exp(log) - (c == degrees[m])) / len(given) for c, log in enumerate(logs)]
            hits += logits[m].index(max(logits[m])) == degrees[m]
        weight = 1.0 if given else 0.0
        metrics = {"degree_loss": (loss, weight), "degree_accuracies": (hits / max(1, len(given)), weight)}
        add(out, loss, weight, slopes, **metrics)
    return out


FORMULAS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        reward_model,
        reward_model_margin,
        eurus_reward_model,
        reward_model_ranked,
        process_reward_model,
        spo,
    )
}
OUTPUTS = {"process_reward_model": "step_logits", "spo": "degree_logits"}
"""The input that a method's head supplies, where it is not ``rewards``."""


def rows(rng: random.Random, *shape: int) -> list:
    """Nested lists of multiples of 1/64 between -4 and 4."""
    return logps(rng, shape[0], -4, 4) if len(shape) == 1 else [rows(rng, *shape[1:]) for _ in range(shape[0])]


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    if method == "reward_model_ranked":
        inputs = {
            "random": {"rewards": rows(rng, 4, 4), "scores": rows(rng, 4, 4), "lengths": [[3.0] * 4] * 4},
            "ties and gaps": {
                "rewards": rows(rng, 5, 4),
                "scores": [[1, 2, 1, 0], [5, 5, 5, 5], [3, 3, 1, 1], [0, 9, 9, 9], [2, 1, 7, 4]],
                "lengths": [[1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 0, 1], [0, 1, 1, 0], [4, 0, 0, 4]],
            },
            "tied": {"rewards": [[1.5] * 4] * 2, "scores": rows(rng, 2, 4), "lengths": [[3.0] * 4] * 2},
            "extreme": {
                "rewards": [[1000.0, -1000.0, 0.0], [-1000.0, 1000.0, 0.0]],
                "scores": [[2.0, 1.0, 0.0]] * 2,
                "lengths": [[1.0] * 3] * 2,
            },
        }
        return product(inputs, [{}])
    if method == "process_reward_model":
        inputs = {
            "random": {"step_logits": rows(rng, 3, 5, 2), "step_labels": [[-1, 1, -1, 0, 1], [0] * 5, [-1] * 4 + [1]]},
            "none labelled": {"step_logits": rows(rng, 2, 3, 2), "step_labels": [[-1] * 3, [1, 0, -1]]},
            "tied": {"step_logits": [[[0.5, 0.5]] * 3], "step_labels": [[1, 0, -1]]},
            "extreme": {
                "step_logits": [[[1000.0, -1000.0], [1000.0, -1000.0]], [[-1000.0, 1000.0], [0.0, 0.0]]],
                "step_labels": [[0, 1], [1, -1]],
            },
        }
        return product(inputs, [{}])
    if method == "spo":
        three, four = {"classes": 3}, {"classes": 4}
        return [
            ("random", {"degree_logits": rows(rng, 3, 2, 3), "degrees": [[1, 2], [0, 2], [2, 1]]}, three),
            ("some none", {"degree_logits": rows(rng, 3, 2, 3), "degrees": [[1, -1], [-1, -1], [-1, 0]]}, three),
            ("four", {"degree_logits": rows(rng, 2, 3, 4), "degrees": [[0, 1, 3], [3, 2, 1]]}, four),
            ("extreme", {"degree_logits": [[[1000.0, 0.0, -1000.0]] * 2], "degrees": [[0, 2]]}, three),
        ]
    paired = {
        "random": {"rewards": pair(rng, 6, -4, 4)},
        "tied": {"rewards": {"chosen": [0.0, 2.5], "rejected": [0.0, 2.5]}},
        "extreme": {"rewards": {"chosen": [1000.0, -1000.0, 500.0], "rejected": [-1000.0, 1000.0, 500.0]}},
    }
    for given in paired.values():
        count = len(given["rewards"]["chosen"])
        if method == "reward_model_margin":
            given["scores"] = pair(rng, count, -4, 4)
        if method == "eurus_reward_model":
            given["absolute"] = [i % 3 != 1 for i in range(count)]
    grids: dict[str, list[dict]] = {
        "reward_model": [{"center_coefficient": 0.0}, {"center_coefficient": 0.0625}],
        "reward_model_margin": [
            {"scale": 1.0, "center_coefficient": 0.0},
            {"scale": 0.25, "center_coefficient": 0.0625},
            {"scale": 0.0, "center_coefficient": 0.0},
        ],
        "eurus_reward_model": [{}],
    }
    return product(paired, grids[method])


def numbers(tree) -> Iterator[tuple[list, int]]:
    """Each number of nested lists and pairs, as its list and its place there."""
    for place, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, list | dict):
            yield from numbers(value)
        else:
            yield tree, place


def gradient(out: dict):
    """Of the weighted mean; a pair's two columns apart."""
    scaled = []
    for weight, slopes in zip(out["weights"], out["slopes"], strict=True):
        copy = json.loads(json.dumps(slopes))
        for place, i in numbers(copy):
            place[i] *= weight / sum(out["weights"])
        scaled.append(copy)
    if isinstance(out["slopes"][0], tuple):
        return {side: [slopes[i] for slopes in scaled] for i, side in enumerate(("chosen", "rejected"))}
    return scaled


def check_gradient(method: str, inputs: dict, options: dict, by_hand) -> None:
    count = len(list(numbers(by_hand)))
    for n in range(count):
        values = []
        for sign in (1, -1):
            moved = json.loads(json.dumps(inputs))
            place, i = list(numbers(moved[OUTPUTS.get(method, "rewards")]))[n]
            place[i] += sign * STEP
            values.append(mean_loss(FORMULAS[method](moved, options)))
        numeric = (values[0] - values[1]) / (2 * STEP)
        place, i = list(numbers(by_hand))[n]
        if abs(numeric - place[i]) > 1e-6 * max(1.0, abs(numeric)):
            raise AssertionError(f"{method}, {n}: by hand {place[i]}, numeric {numeric}")


def main(names: Sequence[str]) -> None:
    for method in names or FORMULAS:
        written = []
        for name, inputs, options in cases(method):
            out = FORMULAS[method](inputs, options)
            slopes = gradient(out)
            check_gradient(method, inputs, options, slopes)
            written.append(
                {
                    "name": name,
                    "options": options,
                    "inputs": inputs,
                    "losses": out["losses"],
                    "weights": out["weights"],
                    "loss": mean_loss(out),
                    "gradient_of": OUTPUTS.get(method, "rewards"),
                    "gradient": slopes,
                    "metrics": {k: [list(c) for c in zip(*v, strict=True)] for k, v in out["metrics"].items()},
                }
            )
        lines = ",\n".join(json.dumps(case) for case in written)
        (FOLDER / f"{method}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1:])
