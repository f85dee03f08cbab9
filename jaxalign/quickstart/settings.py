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
    **ARCHITECTURE,
    "num_key_value_heads": 2,
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
    "attention_bias": True,
}
"""Of the model that is made by other people. Its model_type is the same: transformers would read the tokenizer beside a
Qwen2 model as Qwen2's, whatever it is."""

Numbers = Mapping[str, Mapping[str, Any]]

# 1,200 steps take 40 s of one core. In as many steps, models 64 wide learnt more than those 96 wide, and more at a rate
# of 2e-3 than of 4e-3 or 8e-3; steps half or twice as large were no better for the time. The tasks are then learnt in
# part: the SFT model answers every second question. Only answers are scored: the lists are random, and learning them as
# well took three times as long.
BASE: Numbers = {
    "optimizer": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_ratio": 0.05, "b2": 0.98},
    "train": {"batch_size": 32, "steps": 1200, "log_every": 20},
}
SFT: Numbers = {
    "optimizer": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_ratio": 0.05, "b2": 0.98},
    "train": {"batch_size": 32, "steps": 400, "log_every": 10},
}
"""The chat format, and some more practice."""
INSTRUCT: Numbers = SFT
"""The same work on other people's answers."""
FOREIGN: Numbers = {
    "optimizer": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_ratio": 0.05, "b2": 0.98},
    "train": {"batch_size": 32, "steps": 1200, "log_every": 20},
}
# Chosen for the range, with DPO alone and seed 0: at this rate a grid of betas shows both ends. From an SFT model with
# 54 % of the questions right, betas 0.02, 0.1, 0.5, 2 and 10 gave 41, 46, 65, 68 and 62 %; at a rate of 1e-3 beta 0.5
# was too weak already. A step has few pairs, so that 256 pairs are 16 steps.
PREFERENCES: Numbers = {
    "optimizer": {"learning_rate": 3e-4, "schedule": "linear", "warmup_ratio": 0.1},
    "train": {"batch_size": 16, "epochs": 1.0, "log_every": 8, "eval_every": 64},
}

LOGGING: dict[str, Any] = {"tensorboard": False, "progress": False}
EVALUATION: dict[str, Any] = {"batch_size": 128}

OPTIONS: dict[str, dict[str, Any]] = {name: {"beta": 0.5} for name in ("dpo", "ipo", "kto", "kto_pair")}
"""A method's options where its defaults do not fit: at beta 0.1 and this learning rate DPO goes 3.4 nats away from the
SFT model, and its most probable answers get worse. The others that are tied to a reference get what DPO gets; their own
best beta was not looked for."""

METHODS = ("dpo", "ipo", "kto", "cpo")
BETAS = (0.1, 0.5)
"""Of the quick start's study: one that is too small for DPO and one that is not, the same two for every method."""


def preferences(method: str) -> Numbers:
    """The sections of a method that learns from the pairs. One that reads single answers gets both of each pair."""
    optimizer, train = dict(PREFERENCES["optimizer"]), dict(PREFERENCES["train"])
    if get_method(method).layout is Layout.UNPAIRED:
        train["batch_size"] *= 2
    return {"optimizer": optimizer, "train": train}


def sections(method: str, workdir: str | Path, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The configuration of a run beside the quick start's, by section, for `jaxalign.config.from_dict`.

    Args:
      method: ``sft`` fine-tunes the quick start's base model; any other method aligns its SFT model with the pairs.
      workdir: folder of the quick start.
      seed: of the order of the data.
    """
    from jaxalign.quickstart import stages

    world = Path(workdir) / "world"
    name = "base" if method == "sft" else "sft"
    stage = stages.sft(world, seed) if method == "sft" else stages.align(world, method=method, seed=seed)
    found = sorted(Path(workdir).glob(f"stages/{name}-*/export"))
    tree = {section: dict(values) for section, values in stage.config.items()}
    tree["model"]["path"] = str(found[0] if found else Path(workdir) / name / "export")
    return tree
