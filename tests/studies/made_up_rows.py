"""Rows of a made-up study of 40 rows: methods x betas x starts x seeds, with everything a report draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("dpo", "ipo", "kto")
BETAS = (0.01, 0.1, 1.0)
STARTS = ("sft", "base")
TASKS = ("sort", "reverse", "count", "last")
QUESTIONS = 120
PROMPTS = [f"{task.title()}: fox cat hen {animal}" for task in TASKS for animal in ("owl", "bee")]


def study() -> dict[str, Any]:
    return {
        "name": "made_up",
        "question": "Which loss gains most from the same pairs, and does it need a start that has been fine-tuned?",
        "headline": "answers/exact",
        "compare": "method",
        "notes": ["All numbers are made up.", "KTO reads each pair as two examples."],
        "published": [
            {
                "labels": {"method": "dpo", "beta": 0.1, "start": "sft"},
                "metric": "win rate",
                "value": 14.03,
                "source": "A Paper (2024), Table 1",
                "ours": "answers/exact",
            },
            {
                "labels": {"method": "dpo", "beta": 0.01, "start": "base"},
                "metric": "win rate",
                "value": None,
                "source": "A Paper (2024), Table 1",
                "ours": "answers/exact",
            },
        ],
    }


def ability(method: str, beta: float | None, start: str) -> float:
    """The true share of right answers."""
    floor = {"sft": 0.42, "base": 0.18}[start]
    if beta is None:
        return floor
    peak = {"dpo": 0.24, "ipo": 0.15, "kto": 0.2}[method] * {"sft": 1.0, "base": 1.3 if method == "kto" else 0.6}[start]
    return floor + peak * float(np.exp(-((np.log10(beta) + 1.2) ** 2)))


def rows(questions: int = QUESTIONS) -> list[dict[str, Any]]:
    made = []
    for start in STARTS:
        for method, beta in [("none", None), *((method, beta) for method in METHODS for beta in BETAS)]:
            for seed in (0, 1):
                made.append(_row(len(made), method, beta, start, seed, questions))
    lost = {"method": "dpo", "beta": 0.01, "start": "base"}
    for row in made:
        if lost.items() <= row["labels"].items():
            row["results"]["generations"]["degenerate"] = "of 64 answers 91 % repeat themselves"
    failed = made[-1]
    failed |= {"status": "failed", "results": {}, "stages": failed["stages"][:1]}
    failed["error"] = {
        "stage": "align",
        "type": "NumericsError",
        "message": "loss is nan at step 37, expected a number",
    }
    other = next(row for row in made if row["labels"] == {"start": "sft", "method": "ipo", "beta": 1.0, "seed": 1})
    other["results"]["answers"]["protocol"]["world"] = "b71f"
    return made


def _row(place: int, method: str, beta: float | None, start: str, seed: int, questions: int) -> dict[str, Any]:
    rng = np.random.default_rng((7, place))
    labels = {"start": start, "method": method} | ({} if beta is None else {"beta": beta}) | {"seed": seed}
    share = ability(method, beta, start) + rng.normal(0, 0.015)
    hard = np.random.default_rng(3).normal(0, 0.25, questions)  # the questions are the same for all rows
    right = (rng.random(questions) < np.clip(share + hard, 0.02, 0.98)).astype(float)
    kl = 0.0 if beta is None else 18 * 0.12 ** np.log10(beta * 10) * rng.uniform(0.9, 1.1) + 1.0
    kls = rng.gamma(4.0, max(kl, 1e-9) / 4, 64) if kl else np.zeros(64)
    tasks = {f"exact/{task}": _metric(right[i :: len(TASKS)].tolist(), better=True) for i, task in enumerate(TASKS)}
    exact = _metric(right.tolist(), better=True)
    lengths = rng.poisson(9 + 2 * kl**0.5, 64).astype(float)
    accuracy = 0.5 if beta is None else 0.62 + 0.05 * rng.random() + 0.1 * (beta < 0.5)
    results = {
        "answers": {
            "metrics": {"exact": exact, **tasks},
            "protocol": {"world": "a90c", "questions": questions, "temperature": 0.0},
            "seconds": 2.0,
        },
        "held_out": {
            "metrics": {
                "ranking/accuracy": {
                    "value": accuracy,
                    "n": 200,
                    "stderr": 0.034,
                    "higher_is_better": True,
                    "unit": "share",
                },
                "kl/sequence": {"value": kl * 0.7, "n": 200, "unit": "nats"},
                "lengths/chosen": {"value": 11.0, "n": 200, "unit": "tokens"},
                "lengths/rejected": {"value": 14.0, "n": 200, "unit": "tokens"},
            },
            "protocol": {"data_hash": "c0ffee", "method": method},
            "seconds": 1.0,
        },
        "generations": {
            "metrics": {
                "length": _metric(lengths.tolist(), unit="tokens"),
                "ended": _metric([1.0] * 60 + [0.0] * 4, better=True),
                "repetition": _metric(rng.beta(1, 12, 64).tolist(), better=False),
                "kl/sequence": _metric(kls.tolist(), unit="nats"),
                "kl/token": {"value": kl / 11, "n": 64, "stderr": kl / 90, "unit": "nats/token"},
            },
            "protocol": {"prompts": 64, "temperature": 1.0, "seed": seed},
            "samples": [
                {"prompt": prompt, "completion": _say(prompt, share, rng), "ended": True} for prompt in PROMPTS
            ],
            "details": {"lengths": _histogram(lengths, 12)},
            "seconds": 9.0,
        },
    }
    if beta is not None:
        moved = rng.laplace(-0.3 * kl**0.5, 0.5 + 0.15 * kl, 900)
        results["token_shift"] = {
            "metrics": {
                "shift/chosen": _metric((rng.normal(-kl / 30, 0.1, 64)).tolist(), unit="nats/token"),
                "end/chosen": {"value": -0.4 - kl / 20, "n": 64, "unit": "nats"},
            },
            "protocol": {"examples": 64},
            "details": {
                "histogram": _histogram(moved, 30),
                "top_tokens": [
                    {"id": i, "token": token, "count": 120 + i, "mean": -kl / (3 + i)}
                    for i, token in enumerate(("</s>", " Sure", " the", "\n", "fox"))
                ],
            },
        }
    row = {
        "study": study(),
        "row": f"{place:02d}-{method}",
        "labels": labels,
        "status": "done",
        "error": None,
        "stages": _stages(method, beta, start, seed, kl, rng),
        "model": f"stages/align-{place:016x}/export" if beta is not None else f"stages/{start}-{seed:016x}/export",
        "results": results,
        "started": 1760000000.0 + place,
        "finished": 1760000060.0 + place,
        "seconds": 60.0 + place,
    }
    return row


def _stages(method: str, beta: float | None, start: str, seed: int, kl: float, rng: np.random.Generator) -> list[dict]:
    first = {
        "name": start,
        "key": f"{STARTS.index(start)}{seed}aaaa",
        "folder": f"stages/{start}-{seed}",
        "config": {
            "method": {"name": "sft"},
            "train": {"steps": 400, "seed": seed},
            "optimizer": {"learning_rate": 3e-3},
        },
        "seconds": 31.0,
        "steps": 400,
        "metrics": {"eval_loss": 0.71},
        "curves": {"train/step": [0, 200, 400], "train/loss": [3.1, 1.0, 0.7]},
    }
    if beta is None:
        return [first]
    steps = np.linspace(5, 200, 40).round().astype(int)
    fall = 1 - np.exp(-steps / 60)
    chosen = -22.0 - (0.1 * kl + 1.5) * fall + rng.normal(0, 0.25, 40)
    rejected = -31.0 - (0.3 * kl + 4.0) * fall + rng.normal(0, 0.3, 40)
    if method == "ipo":  # its log-probabilities are means over tokens
        chosen, rejected = chosen / 11, rejected / 14
    config = {
        "method": {"name": method, "options": {"beta": beta}},
        "train": {"steps": 200, "seed": seed, "batch_size": 32},
        "optimizer": {"learning_rate": 5e-4},
        "model": {"path": f"stages/{start}-{seed}/export"},
    }
    return [
        first,
        {
            "name": "align",
            "key": f"{METHODS.index(method)}{BETAS.index(beta)}{STARTS.index(start)}{seed}bbbb",
            "folder": f"stages/align-{method}-{beta}-{start}-{seed}",
            "config": config,
            "seconds": 24.0,
            "steps": 200,
            "metrics": {"eval_loss": 0.6, "eval_lengths/chosen": 11.0, "eval_lengths/rejected": 14.0},
            "curves": {
                "train/step": steps.tolist(),
                "train/logps/chosen": chosen.round(3).tolist(),
                "train/logps/rejected": rejected.round(3).tolist(),
            },
        },
    ]


def _metric(values: list[float], *, unit: str = "share", better: bool | None = None) -> dict[str, Any]:
    metric = {"value": sum(values) / len(values), "n": len(values), "values": values, "unit": unit}
    return metric if better is None else metric | {"higher_is_better": better}


def _histogram(values: np.ndarray, bins: int) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, bins=bins)
    return {"edges": edges.round(4).tolist(), "counts": counts.tolist()}


def _say(prompt: str, share: float, rng: np.random.Generator) -> str:
    words = prompt.partition(": ")[2].split()
    said = " ".join(sorted(words)) if rng.random() < share else " ".join(words)
    return said if rng.random() < 0.5 else f"Well, that is a nice question! {said}"


def write(folder: Path, made: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return folder
