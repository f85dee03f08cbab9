"""A checkpoint of random weights, as every framework reads it: safetensors, config.json and a tokenizer. No torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def fields(setting: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a setting of `peers/world.py`."""
    qwen = setting.get("family", "llama") == "qwen2"
    found = {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        "vocab_size": setting["vocab"],
        "hidden_size": setting["hidden"],
        "intermediate_size": setting["inter"],
        "num_hidden_layers": setting["layers"],
        "num_attention_heads": setting["heads"],
        "num_key_value_heads": setting["kv_heads"],
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": setting["eps"],
        "rope_theta": float(setting["theta"]),
        "rope_scaling": None,
        "tie_word_embeddings": setting.get("tied", False),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.02,
    }
    return found if qwen else found | {"attention_bias": False, "mlp_bias": False}


def ensure_checkpoint(folder: str | Path, setting: Mapping[str, Any], dtype: str = "float32") -> Path:
    """Writes it where it is not there; the same weights every time.

    EasyDeL 0.3 wants the rotary base where transformers 5 no longer writes it, so ``FOLDER_classic`` is the same model.
    """
    target = Path(folder)
    if not (target / "config.json").is_file():
        staging = target.parent / f".{target.name}.writing-{os.getpid()}"
        staging.mkdir(parents=True)
        try:
            _write(staging, setting, dtype)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    classic = target.parent / f"{target.name}_classic"
    if not classic.exists():
        classic.symlink_to(target.name)
    return target


def _write(folder: Path, setting: Mapping[str, Any], dtype: str) -> None:
    from jaxalign.models.config_json import parse_config
    from jaxalign.models.export import EXPORT_DTYPES, tensors_of
    from jaxalign.models.policy import build_policy
    from jaxalign.models.safetensors_files import write_tensors

    raw = fields(setting) | {"torch_dtype": dtype}
    config = parse_config(raw)
    shapes = list(tensors_of(build_policy(config).abstract(), config, values=False))
    kind = EXPORT_DTYPES[dtype]
    write_tensors(folder, shapes, kind, (array.astype(kind) for array in _random(shapes)), max_shard_bytes=5e9)
    (folder / "config.json").write_text(json.dumps(raw, indent=1))
    _tokenizer(setting["vocab"]).save_pretrained(str(folder))


def _random(shapes: list[tuple[str, tuple[int, ...]]]) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(0)
    for name, shape in shapes:
        if name.endswith(("norm.weight", ".bias")):
            yield np.full(shape, float(name.endswith("weight")), np.float32)
        else:
            yield draw.standard_normal(shape, np.float32) * np.float32(0.02)


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"t{i}": i for i in range(4, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
