"""The numbers of the quick start: how large the model is and how long each stage trains.

They are chosen for two CPU cores: about two minutes for the demonstrations and one for the pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MAX_LENGTH = 32
"""Longest prompt plus completion, in tokens: more than any of the world's."""

ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rope_theta": 100.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}
"""The model's config.json, but for what the tokenizer decides: 1.3 million parameters."""

SFT: dict[str, dict[str, Any]] = {
    "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_ratio": 0.05, "b2": 0.98},
    "train": {"batch_size": 32, "steps": 1600, "log_every": 20, "eval_every": 400},
}
PREFERENCES: dict[str, dict[str, Any]] = {
    "optimizer": {"learning_rate": 1e-4, "schedule": "linear", "warmup_ratio": 0.1},
    "train": {"batch_size": 32, "steps": 375, "log_every": 5, "eval_every": 75},
}

OPTIONS: dict[str, dict[str, Any]] = {"dpo": {"beta": 0.5}}
"""A method's options where its defaults do not fit: at beta 0.1 the tiny model drifts far and breaks answers."""


def sections(method: str, workdir: str | Path, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The configuration of a stage, by section, for `jaxalign.config.from_dict`.

    Args:
      method: ``sft`` trains the start on the demonstrations; any other method aligns ``sft/export`` with the pairs.
      workdir: folder of the quick start.
      seed: of the initial weights and of the order of the data.
    """
    workdir = Path(workdir)
    world = workdir / "world"
    if method == "sft":
        numbers = SFT
        model = {"config": str(workdir / "start" / "config.json"), "tokenizer": str(world / "tokenizer")}
        data = {"train": [str(world / "demonstrations.jsonl")], "eval_size": 256}
    else:
        numbers = PREFERENCES
        model = {"path": str(workdir / "sft" / "export")}
        data = {"train": [str(world / "pairs.jsonl")], "eval": [str(world / "eval_pairs.jsonl")]}
    return {
        "model": {**model, "dtype": "float32"},
        "data": {**data, "max_length": MAX_LENGTH, "seed": seed},
        "method": {"name": method, **OPTIONS.get(method, {})},
        "optimizer": dict(numbers["optimizer"]),
        "train": {**numbers["train"], "seed": seed},
        "logging": {"tensorboard": False},
    }
