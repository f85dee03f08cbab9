"""Real preferences of every kind train a real small model, by the command: the loss falls."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from jaxalign import build
from jaxalign.cli import main
from jaxalign.config import read_json
from jaxalign.training.metrics import read_metrics
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # Rankings by people, in conversation trees with different numbers of replies.
    "pref-oasst-trees/en_100_tree.jsonl.gz": (
        "ranked.py:plackett_luce",
        {"data.max_completions": 3, "data.size": 108, "optimizer.learning_rate": 5e-4},
    ),
    # Pairs with scores from 1 to 10.
    "pref-ultrafeedback/train.jsonl.gz": ("ranked.py:info_nca", {"method.temperature": 1.0}),
    # Single answers, labelled good or bad.
    "pref-demo-dpo-kto/kto_en_demo.jsonl.gz": ("unpaired.py:bco", {}),
    # Pairs about which three people disagree.
    "pref-pandalm-human/testset-v1.jsonl.gz": ("paired.py:robust_dpo", {}),
    # Pairs with a judge's probability.
    "pref-tldr-judged": ("paired.py:soft_dpo", {"data.eval_size": 21}),
    # Right over wrong solutions, for a reward model.
    "pref-gsm8k-solutions/example_model_solutions.jsonl.gz": ("paired.py:eurus_reward_model", {"method.beta": None}),
}
TRANSFERS = ("pref-oasst-trees/en_100_tree.jsonl.gz",)
"""Where some hundred examples teach a quarter of a million parameters something about others."""


@pytest.fixture(autouse=True)
def quick_compilation():
    """Not here, in place of that of all builds: the steps take longer than what it would save."""


def judged(folder: Path, path: Path) -> Path:
    """The judged summaries with the posts in the place of their numbers."""

    def rows(name):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt") as file:
            return [json.loads(line) for line in file]

    posts = {row["id"]: row["prompt"] for row in rows("prompts")}
    joined = [row | {"prompt": posts[row["prompt"]]} for row in rows("pairs")[:500]]
    path.write_text("".join(json.dumps(row) + "\n" for row in joined))
    return path


@pytest.mark.parametrize("name", CASES)
def test_real_preferences_train(name, shared_data, tmp_path):
    config, settings = CASES[name]
    source = shared_data / name
    flags = {
        "model.path": shared_data / "lm-stories260k" / "hf",
        "model.chat_template": "chatml",
        "data.train": source if source.is_file() else judged(source, tmp_path / "joined.jsonl"),
        "data.on_bad": "drop",
        "data.max_length": 128,
        "data.eval_size": 48,
        "data.size": 36,  # of which a few epochs are learned
        "method.beta": 0.01,
        "train.steps": 12,
        "train.batch_size": 12,
        "train.log_every": 4,
        "evaluation.batch_size": 48,
        "optimizer.learning_rate": 1e-3,
        "logging.progress": False,
        "logging.tensorboard": False,
    }
    flags = {key: value for key, value in (flags | settings).items() if value is not None}
    command = ["train", f"--config={REPOSITORY / 'configs' / config},model=tiny", f"--workdir={tmp_path / 'run'}"]
    assert main([*command, *(f"--config.{key}={value}" for key, value in flags.items())]) == 0
    rows = read_metrics(tmp_path / "run")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    if name in TRANSFERS:
        before = build.evaluate(read_json(tmp_path / "run" / "config.json"))
        assert rows[-1]["eval_loss"] < before["eval_loss"]
