"""Writes the golden values of objectives that see tokens: ``python tests/golden/generate_token_level.py [method ...]``.

A completion is a list of N tokens, 0 behind its last one. What carries no gradient is a parameter of the formulas, so
that the central differences hold it fixed. `sampo` draws with Threefry, written here from its definition (Salmon et
al. 2011), as JAX applies it.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generate import STEP, log_sigmoid, sigmoid, smoothed, start_pairs

FOLDER = Path(__file__).parent
N = 6
SIDES = ("chosen", "rejected")

# Threefry-2x32 with 20 rounds, and what JAX makes of it.

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
WORD = 0xFFFFFFFF


def threefry(key: tuple[int, int], x: int, y: int) -> tuple[int, int]:
    keys = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (x + keys[0]) & WORD, (y + keys[1]) & WORD
    for round_ in range(5):
        for rotation in ROTATIONS[round_ % 2]:
            x = (x + y) & WORD
            y = ((y << rotation | y >> (32 - rotation)) & WORD) ^ x
        x = (x + keys[(round_ + 1) % 3]) & WORD
        y = (y + keys[(round_ + 2) % 3] + round_ + 1) & WORD
    return x, y


def number(seed: int, side: int, place: int) -> int:
    """``bits(fold_in(fold_in(key(seed), side), place))``."""
    high, low = threefry(threefry(threefry((0, seed), 0, side), 0, place), 0, 0)
    return high ^ low


def draw(length: int, count: int, seed: int, side: int) -> list[float]:
    chosen = sorted(range(length), key=lambda place: (number(seed, side, place), place))[:count]
    return [1.0 if place in chosen else 0.0 for place in range(N)]


# One function a method: (inputs, options, at) -> losses, slopes by token, metrics. What is detached is taken of `at`.


def sums(weights: Sequence[float], values: Sequence[float]) -> float:
    return math.fsum(w * v for w, v in zip(weights, values, strict=True))


def length(inputs: dict, side: str, i: int) -> int:
    return sum(inputs["token_mask"][side][i])


def add(out: dict, loss: float, slopes: tuple, rewards: tuple, logps: tuple, **further: float) -> None:
    out["losses"].append(loss)
    out["weights"].append(1.0)
    out["slopes"].append(slopes)
    values = {
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": rewards[0] - rewards[1],
        "rewards/accuracies": float(rewards[0] > rewards[1]),
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
        "policy/accuracies": float(logps[0] > logps[1]),
    }
    for name, value in (values | {name.replace("_of_", "/"): value for name, value in further.items()}).items():
        out["metrics"][name].append((value, 1.0))


def tdpo(inputs: dict, options: dict, at: dict, alpha: float, detached: bool) -> dict:
    beta, out = options["beta"], start_pairs("kl/chosen", "kl/rejected")
    for i in range(len(inputs["policy"]["chosen"])):
        lp, lr, kl = (
            [math.fsum(inputs[name][side][i]) for side in SIDES] for name in ("policy", "reference", "token_kl")
        )
        measure = math.fsum(at["token_kl"]["chosen"][i]) if detached else kl[0]
        h = beta * ((lp[0] - lr[0]) - (lp[1] - lr[1]) - alpha * (kl[1] - measure))
        slope = -beta * sigmoid(-h)
        rewards = tuple(beta * (p - r + d) for p, r, d in zip(lp, lr, kl, strict=True))
        drift = {"kl_of_chosen": kl[0], "kl_of_rejected": kl[1]}
        add(out, -log_sigmoid(h), ([slope] * N, [-slope] * N), rewards, (lp[0], lp[1]), **drift)
    return out


def tdpo1(inputs: dict, options: dict, at: dict) -> dict:
    return tdpo(inputs, options, at, 1.0, False)


def tdpo2(inputs: dict, options: dict, at: dict) -> dict:
    return tdpo(inputs, options, at, options["alpha"], True)


def dpo_of(inputs: dict, options: dict, weights: Any, further: Any = None) -> dict:
    """The loss of dpo on sums with these token weights, times a factor of each pair (called ``pair_weights``)."""
    beta, out = options["beta"], start_pairs(*(["pair_weights"] if further else []))
    for i in range(len(inputs["policy"]["chosen"])):
        w = weights(i)
        lp, lr = ([sums(w[k], inputs[name][SIDES[k]][i]) for k in (0, 1)] for name in ("policy", "reference"))
        loss, slope = smoothed(beta * (lp[0] - lr[0] - lp[1] + lr[1]), options["label_smoothing"])
        factor = further(i) if further else 1.0
        slopes = [factor * beta * slope * x for x in w[0]], [-factor * beta * slope * x for x in w[1]]
        rewards = beta * (lp[0] - lr[0]), beta * (lp[1] - lr[1])
        named = {"pair_weights": factor} if further else {}
        add(out, factor * loss, slopes, rewards, (lp[0], lp[1]), **named)
    return out


def wpo(inputs: dict, options: dict, at: dict) -> dict:
    def factor(i: int) -> float:
        total = 0.0
        for side in SIDES:
            gaps = [p - c for p, c in zip(at["policy"][side][i], at["token_collision"][side][i], strict=True)]
            total += sums(inputs["token_mask"][side][i], gaps) / length(inputs, side, i)
        return min(1.0, math.exp(total)) if options["clamp"] else math.exp(total)

    return dpo_of(inputs, options, lambda i: ([1.0] * N, [1.0] * N), factor)


def bmc(inputs: dict, options: dict, at: dict) -> dict:
    beta, out = options["beta"], start_pairs()

    def weights(name: str, side: str, i: int) -> list[float]:
        found = []
        for logp, marked in zip(at[name][side][i], inputs["marked"][side][i], strict=True):
            inverse = math.exp(-logp) if logp > -700 else math.inf
            found.append(1.0 + (min(inverse, options["delta"]) if marked else 0.0))
        return found

    for i in range(len(inputs["policy"]["chosen"])):
        w = [weights("policy", side, i) for side in SIDES]
        v = w if options["reference_weights"] == "policy" else [weights("reference", side, i) for side in SIDES]
        rho = [
            sums(w[k], inputs["policy"][side][i]) - sums(v[k], inputs["reference"][side][i])
            for k, side in enumerate(SIDES)
        ]
        h = beta * (rho[0] - rho[1])
        slope = -beta * sigmoid(-h)
        slopes = [slope * x for x in w[0]], [-slope * x for x in w[1]]
        logps = tuple(math.fsum(inputs["policy"][side][i]) for side in SIDES)
        add(out, -log_sigmoid(h), slopes, (beta * rho[0], beta * rho[1]), logps)
    return out


def ld_dpo(inputs: dict, options: dict, at: dict) -> dict:
    def weights(i: int) -> list[list[float]]:
        shared = min(length(inputs, side, i) for side in SIDES)
        return [
            [(1.0 if t < shared else options["alpha"]) if t < length(inputs, side, i) else 0.0 for t in range(N)]
            for side in SIDES
        ]

    return dpo_of(inputs, options, weights)


def sampo(inputs: dict, options: dict, at: dict) -> dict:
    def weights(i: int) -> list[list[float]]:
        counts = [length(inputs, side, i) for side in SIDES]
        return [draw(count, min(counts), inputs["keys"][i], side) for side, count in enumerate(counts)]

    return dpo_of(inputs, options, weights)


def weighted_dpo(inputs: dict, options: dict, at: dict) -> dict:
    return dpo_of(inputs, options, lambda i: [inputs["token_weights"][side][i] for side in SIDES])


def dft(inputs: dict, options: dict, at: dict) -> dict:
    out: dict[str, Any] = {"losses": [], "weights": [], "slopes": [], "metrics": {"nll_loss": [], "logps/chosen": []}}
    for tokens, before, size in zip(inputs["policy"], at["policy"], inputs["lengths"], strict=True):
        out["losses"].append(-math.fsum(math.exp(b) * p for b, p in zip(before, tokens, strict=True)) / size)
        out["slopes"].append([-math.exp(b) / size for b in before])
        out["weights"].append(size)
        out["metrics"]["nll_loss"].append((-math.fsum(tokens) / size, size))
        out["metrics"]["logps/chosen"].append((math.fsum(tokens), 1.0))
    return out


FORMULAS = {function.__name__: function for function in (tdpo1, tdpo2, wpo, bmc, ld_dpo, sampo, weighted_dpo, dft)}

# Inputs.

LENGTHS = {"chosen": (6, 3, 4, 1, 5), "rejected": (2, 3, 6, 1, 4)}


def tokens(rng: random.Random, lengths: Sequence[int], low: float, high: float) -> list[list[float]]:
    """Multiples of 1/64, 0 behind the last token."""
    return [[round(rng.uniform(low, high) * 64) / 64 if t < size else 0.0 for t in range(N)] for size in lengths]


def pairs(rng: random.Random, low: float, high: float) -> dict[str, list]:
    return {side: tokens(rng, LENGTHS[side], low, high) for side in SIDES}


def flags(rng: random.Random, share: float) -> dict[str, list]:
    return {side: [[t < size and rng.random() < share for t in range(N)] for size in LENGTHS[side]] for side in SIDES}


def cases(method: str) -> list[tuple[str, dict, dict]]:
    rng = random.Random(f"jaxalign {method}")
    if method == "dft":
        lengths = [6.0, 3.0, 1.0, 4.0]
        likely = {"policy": tokens(rng, [6, 3, 1, 4], -2.0, -0.03125), "lengths": lengths}
        unlikely = {"policy": [[-1000.0] + [0.0] * 5, [0.0] * 6, [-40.0, -0.5] + [0.0] * 4], "lengths": [1.0, 1.0, 2.0]}
        return [("random", likely, {}), ("extreme", unlikely, {})]
    policy = pairs(rng, -3.0, -0.015625)
    far = {"chosen": [[-1000.0] + [0.0] * 5, [0.0] * 6], "rejected": [[0.0] * 6, [-500.0, -500.0] + [0.0] * 4]}
    near = {
        "chosen": [[-0.5] + [0.0] * 5, [-600.0] + [0.0] * 5],
        "rejected": [[-400.0, -2.0] + [0.0] * 4, [-1.0] * 2 + [0.0] * 4],
    }
    extra = {
        "tdpo1": lambda: {"token_kl": pairs(rng, 0.0, 1.5)},
        "tdpo2": lambda: {"token_kl": pairs(rng, 0.0, 1.5)},
        "wpo": lambda: {"token_collision": pairs(rng, -1.5, -0.25), "token_mask": flags(rng, 1.0)},
        "bmc": lambda: {"marked": flags(rng, 0.5)},
        "ld_dpo": lambda: {"token_mask": flags(rng, 1.0)},
        "sampo": lambda: {"token_mask": flags(rng, 1.0), "keys": [rng.randrange(2**31) for _ in range(5)]},
        "weighted_dpo": lambda: {"token_weights": pairs(rng, 0.0, 2.0)},
    }[method]()
    small = {
        name: {side: [values[side][3 if side == "chosen" else 0], values[side][3]] for side in SIDES}
        if isinstance(values, dict)
        else values[:2]
        for name, values in extra.items()
    }
    if "token_mask" in small:
        small["token_mask"] = {
            "chosen": [[t < 1 for t in range(N)] for _ in range(2)],
            "rejected": [[t < 2 for t in range(N)] for _ in range(2)],
        }
    inputs = {
        "random": {"policy": policy, "reference": pairs(rng, -3.0, -0.015625)} | extra,
        "tied": {"policy": policy, "reference": policy} | extra,
        "extreme": {"policy": far, "reference": near} | small,
    }
    grid: list[dict] = {
        "tdpo1": [{"beta": 0.1}, {"beta": 0.5}],
        "tdpo2": [{"beta": 0.1, "alpha": 0.5}, {"beta": 0.5, "alpha": 1.25}, {"beta": 0.1, "alpha": 0.0}],
        "wpo": [
            {"beta": 0.01, "label_smoothing": 0.0, "clamp": True},
            {"beta": 0.5, "label_smoothing": 0.125, "clamp": False},
        ],
        "bmc": [
            {"beta": 0.01, "delta": 2.0, "reference_weights": "policy"},
            {"beta": 0.25, "delta": 1.5, "reference_weights": "own"},
            {"beta": 0.1, "delta": 0.0, "reference_weights": "policy"},
        ],
        "ld_dpo": [
            {"beta": 0.1, "alpha": 0.5, "label_smoothing": 0.0},
            {"beta": 0.5, "alpha": 0.0, "label_smoothing": 0.125},
            {"beta": 0.1, "alpha": 1.0, "label_smoothing": 0.0},
        ],
        "sampo": [{"beta": 0.1, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.125}],
        "weighted_dpo": [{"beta": 0.1, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.125}],
    }[method]
    return [(name, arrays, options) for name, arrays in inputs.items() for options in grid]


# From the per-example values to a case.


def mean_loss(out: dict) -> float:
    return math.fsum(w * loss for w, loss in zip(out["weights"], out["losses"], strict=True)) / sum(out["weights"])


def gradient(out: dict) -> Any:
    total = sum(out["weights"])
    scaled = [
        [[weight * slope / total for slope in side] for side in (slopes if isinstance(slopes, tuple) else (slopes,))]
        for weight, slopes in zip(out["weights"], out["slopes"], strict=True)
    ]
    columns = [list(column) for column in zip(*scaled, strict=True)]
    return columns[0] if len(columns) == 1 else dict(zip(SIDES, columns, strict=True))


def check_gradient(method: str, inputs: dict, options: dict) -> None:
    """Compares the derivative by hand with a central difference, token by token."""
    by_hand = gradient(FORMULAS[method](inputs, options, inputs))
    for side in SIDES if isinstance(by_hand, dict) else (None,):
        for i, row in enumerate(by_hand if side is None else by_hand[side]):
            for t, expected in enumerate(row):
                values = []
                for sign in (1, -1):
                    moved = json.loads(json.dumps(inputs))
                    (moved["policy"] if side is None else moved["policy"][side])[i][t] += sign * STEP
                    values.append(mean_loss(FORMULAS[method](moved, options, inputs)))
                numeric = (values[0] - values[1]) / (2 * STEP)
                if abs(numeric - expected) > 1e-6 * max(1.0, abs(numeric)):
                    raise AssertionError(f"{method}, {side} {i} {t}: by hand {expected}, numeric {numeric}")


def main(names: Sequence[str]) -> None:
    for method in names or FORMULAS:
        written = []
        for name, inputs, options in cases(method):
            out = FORMULAS[method](inputs, options, inputs)
            check_gradient(method, inputs, options)
            case = {"name": name, "options": options, "inputs": inputs, "losses": out["losses"]}
            metrics = {
                key: [list(column) for column in zip(*values, strict=True)] for key, values in out["metrics"].items()
            }
            case |= {"weights": out["weights"], "loss": mean_loss(out), "gradient": gradient(out), "metrics": metrics}
            written.append(case)
        lines = ",\n".join(json.dumps(case) for case in written)
        (FOLDER / f"{method}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1:])
