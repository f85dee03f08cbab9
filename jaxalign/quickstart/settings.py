"""The numbers of studies in the generated world: how large the models are and how long each stage trains.

They are chosen for two CPU cores, where a run's fixed costs (start, reading the data, compilation) are some ten seconds
of one core, so data files are small and steps few.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.methods import Layout, get_method

MAX_LENGTH = 32
"""Longest prompt plus completion, in tokens: more than any of the world's."""

PAIRS = 4096
"""Judged pairs: all that an alignment can train on."""

CROWD: dict[str, Any] = {
    "documents": 20_000,
    "demonstrations": 4000,
    "pairs": PAIRS,
    "eval_pairs": 256,
    "questions": 512,
}
"""The world's sizes; its rates are the defaults of `World`."""

OTHERS: dict[str, dict[str, Any]] = {
    "tutors": {"slip_rate": 0.1, "hard_slip_rate": 0.35, "chatty_rate": 0.1},
    "experts": {"slip_rate": 0.02, "hard_slip_rate": 0.05, "chatty_rate": 0.02},
    "talkers": {"slip_rate": 0.02, "hard_slip_rate": 0.05, "chatty_rate": 0.9, "demonstrations": 12_000},
}
"""Crowds that other models learn from: what differs from `CROWD`."""

ARCHITECTURE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rope_theta": 100.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}
"""The model's config.json, but for what the tokenizer decides."""

FOREIGN_ARCHITECTURE: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 100.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
"""Of the model that is another family's."""

Numbers = Mapping[str, Mapping[str, Any]]

BASE: Numbers = {
    "optimizer": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_ratio": 0.05, "b2": 0.98},
    "train": {"batch_size": 32, "steps": 1200, "log_every": 20},
}
SFT: Numbers = {
    "optimizer": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_ratio": 0.05, "b2": 0.98},
    "train": {"batch_size": 32, "steps": 400, "log_every": 10},
}
INSTRUCT: Numbers = SFT
FOREIGN: Numbers = {
    "optimizer": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_ratio": 0.05, "b2": 0.98},
    "train": {"batch_size": 32, "steps": 1200, "log_every": 20},
}
PREFERENCES: Numbers = {
    "optimizer": {"learning_rate": 3e-4, "schedule": "linear", "warmup_ratio": 0.1},
    "train": {"batch_size": 16, "epochs": 1.0, "log_every": 8, "eval_every": 64},
}

LOGGING: dict[str, Any] = {"tensorboard": False, "progress": False}
EVALUATION: dict[str, Any] = {"batch_size": 128}

OPTIONS: dict[str, dict[str, Any]] = {"dpo": {"beta": 0.5}}
"""A method's options where its defaults do not fit."""

LEARNING_RATES: dict[str, float] = {}
"""A method's learning rate where that of `PREFERENCES` does not fit."""


METHODS = ("dpo", "ipo", "kto", "cpo")
BETAS = (0.1, 0.5)
"""Of the quick start's study."""


def preferences(method: str) -> Numbers:
    """The sections of a method that learns from the pairs. One that reads single answers gets both of each pair."""
    optimizer, train = dict(PREFERENCES["optimizer"]), dict(PREFERENCES["train"])
    optimizer["learning_rate"] = LEARNING_RATES.get(method, optimizer["learning_rate"])
    if get_method(method).layout is Layout.UNPAIRED:
        train["batch_size"] *= 2
    return {"optimizer": optimizer, "train": train}


def sections(method: str, workdir: str | Path, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The configuration of a run beside the quick start's, by section, for `jaxalign.config.from_dict`.

    Args:
      method: ``sft`` trains random weights on the demonstrations; any other method aligns the quick start's SFT model.
      workdir: folder of the quick start.
      seed: of the initial weights and of the order of the data.
    """
    from jaxalign.quickstart import stages

    world = Path(workdir) / "world"
    if method == "sft":
        stage = stages.sft(world, seed)
        model = {"config": str(world / "start" / "config.json"), "tokenizer": str(world / "crowd" / "tokenizer")}
    else:
        stage = stages.align(world, method=method, seed=seed)
        found = sorted(Path(workdir).glob("stages/sft-*/export"))
        model = {"path": str(found[0] if found else Path(workdir) / "sft" / "export")}
    tree = {section: dict(values) for section, values in stage.config.items()}
    tree["model"] |= model
    return tree
