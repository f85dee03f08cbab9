"""What the configurations share: the models to start from, and the recipes that fit their size."""

from typing import Any

MODELS = {
    # Nothing but the schema's defaults; say which model with --config.model.path.
    "any": None,
    # Up to some ten million parameters, on CPU; say which with --config.model.path.
    "tiny": None,
    # The starting points of the two studies (arXiv 2404.14723 and 2407.13709).
    "mistral_7b": "mistralai/Mistral-7B-v0.1",
    "mistral_7b_instruct": "mistralai/Mistral-7B-Instruct-v0.2",
    "zephyr_sft": "alignment-handbook/zephyr-7b-sft-full",
    "mistral_sft_beta": "HuggingFaceH4/mistral-7b-sft-beta",
    "tulu2_7b": "allenai/tulu-2-7b",
    "llama31_8b_instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen25_7b_instruct": "Qwen/Qwen2.5-7B-Instruct",
}
"""Preset -> hub id."""

Sections = dict[str, dict[str, Any]]


def is_large(model: str) -> bool:
    """Whether the preset is one of the models of 7 to 8 billion parameters."""
    return MODELS[model] is not None


def preference_sections(model: str, method: str) -> Sections:
    """The sections for preference training of a preset of `MODELS`.

    For 7 to 8 billion parameters they are the Zephyr recipe (alignment-handbook, recipes/zephyr-7b-beta/dpo): all
    weights, AdamW, learning rate 5e-7, cosine, 10 % warm-up, one epoch of 128 examples a step, 1024 tokens, 512 of them
    prompt.
    """
    sections: Sections = {"model": _model(model), "method": {"name": method}}
    if is_large(model):
        sections["data"] = {"max_length": 1024, "max_prompt_length": 512}
        sections["optimizer"] = {"learning_rate": 5e-7, "schedule": "cosine", "warmup_ratio": 0.1}
        sections["train"] = {"batch_size": 128}
    elif model == "tiny":
        sections["optimizer"] = {"learning_rate": 5e-4}
        sections["train"] = {"batch_size": 16, "log_every": 5}
    return sections


def sft_sections(model: str) -> Sections:
    """The sections for supervised fine-tuning of a preset of `MODELS`.

    For 7 to 8 billion parameters they are the Zephyr recipe (alignment-handbook, recipes/zephyr-7b-beta/sft): learning
    rate 2e-5, cosine, 10 % warm-up, one epoch of 128 examples a step, 2048 tokens.
    """
    sections: Sections = {"model": _model(model), "method": {"name": "sft"}}
    if model == "tiny":
        sections["optimizer"] = {"learning_rate": 1e-3}
        sections["train"] = {"batch_size": 16, "log_every": 5}
    else:
        sections["data"] = {"max_length": 2048}
        sections["optimizer"] = {"learning_rate": 2e-5, "schedule": "cosine", "warmup_ratio": 0.1}
        sections["train"] = {"batch_size": 128}
    return sections


def _model(model: str) -> dict[str, Any]:
    if is_large(model):
        return {"path": MODELS[model], "remat": "full"}
    return {"dtype": "float32"} if model == "tiny" else {}
