"""A tiny model with its tokenizer, and pairs, for studies that train."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.export import save_pretrained
from jaxalign.models.policy import build_policy


def write_world(folder: Path, rows: int = 16) -> Path:
    """Writes ``model/`` and ``pairs.jsonl``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", add_bos_token=True)
    config = DecoderConfig(
        vocab_size=len(tokenizer), width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=24,
        max_positions=64, tied_embeddings=True,
    )  # fmt: skip
    policy = build_policy(config, dtype="float32")
    generator = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: generator.normal(0.1, 0.25, leaf.shape).astype(leaf.dtype), policy.abstract())
    save_pretrained(policy, variables, folder / "model", tokenizer=tokenizer)
    pairs = [{"prompt": f"Question {i}: ", "chosen": f"yes, {i}", "rejected": f"no {i * i}"} for i in range(rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder
