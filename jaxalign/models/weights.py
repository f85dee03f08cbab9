"""Where every parameter stands in a Hugging Face checkpoint, and how the two layouts map onto each other.

The table names both layouts by letters: ``"(H C) D"`` is a matrix whose rows run over heads and, within a head, over
its width; ``"D H C"`` is ours. From the letters follows which slice of the file a slice of ours needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.models.decoder_config import DecoderConfig


@dataclass(frozen=True)
class Weight:
    """One tensor's name in the checkpoint and both layouts. ``{layer}`` in the name: one tensor for each layer."""

    name: str
    theirs: str
    ours: str


WEIGHTS: Mapping[str, Weight] = {
    "embed/embedding": Weight("model.embed_tokens.weight", "V D", "V D"),
    "layers/attention_norm/scale": Weight("model.layers.{layer}.input_layernorm.weight", "D", "D"),
    "layers/attention/query/kernel": Weight("model.layers.{layer}.self_attn.q_proj.weight", "(H C) D", "D H C"),
    "layers/attention/query/bias": Weight("model.layers.{layer}.self_attn.q_proj.bias", "(H C)", "H C"),
    "layers/attention/key/kernel": Weight("model.layers.{layer}.self_attn.k_proj.weight", "(G C) D", "D G C"),
    "layers/attention/key/bias": Weight("model.layers.{layer}.self_attn.k_proj.bias", "(G C)", "G C"),
    "layers/attention/value/kernel": Weight("model.layers.{layer}.self_attn.v_proj.weight", "(G C) D", "D G C"),
    "layers/attention/value/bias": Weight("model.layers.{layer}.self_attn.v_proj.bias", "(G C)", "G C"),
    "layers/attention/query_norm/scale": Weight("model.layers.{layer}.self_attn.q_norm.weight", "C", "C"),
    "layers/attention/key_norm/scale": Weight("model.layers.{layer}.self_attn.k_norm.weight", "C", "C"),
    "layers/attention/output/kernel": Weight("model.layers.{layer}.self_attn.o_proj.weight", "D (H C)", "H C D"),
    "layers/attention/output/bias": Weight("model.layers.{layer}.self_attn.o_proj.bias", "D", "D"),
    "layers/mlp_norm/scale": Weight("model.layers.{layer}.post_attention_layernorm.weight", "D", "D"),
    "layers/mlp/gate/kernel": Weight("model.layers.{layer}.mlp.gate_proj.weight", "F D", "D F"),
    "layers/mlp/gate/bias": Weight("model.layers.{layer}.mlp.gate_proj.bias", "F", "F"),
    "layers/mlp/up/kernel": Weight("model.layers.{layer}.mlp.up_proj.weight", "F D", "D F"),
    "layers/mlp/up/bias": Weight("model.layers.{layer}.mlp.up_proj.bias", "F", "F"),
    "layers/mlp/down/kernel": Weight("model.layers.{layer}.mlp.down_proj.weight", "D F", "F D"),
    "layers/mlp/down/bias": Weight("model.layers.{layer}.mlp.down_proj.bias", "D", "D"),
    "final_norm/scale": Weight("model.norm.weight", "D", "D"),
    "head/kernel": Weight("lm_head.weight", "V D", "D V"),
    "score/kernel": Weight("score.weight", "O D", "D O"),
    "score/bias": Weight("score.bias", "O", "O"),
}
"""Path in ``variables["params"]``: its tensor; ``score/...`` is the collection ``variables["head"]``, the linear head
of `models/heads.py`. The names are the same in all families so far."""

PROJECTIONS = tuple(
    path.removesuffix("/kernel") for path, weight in WEIGHTS.items() if "{layer}" in weight.name and "/kernel" in path
)
"""Paths of the blocks' matrices that adapters may stand beside: ``layers/attention/query``, ..."""

IGNORED_TENSORS = re.compile(r".*\.rotary_emb\.inv_freq$|.*\.attn\.masked_bias$")
"""Buffers of old exports; they follow from the configuration."""


def sizes(config: DecoderConfig, outputs: int = 0) -> dict[str, int]:
    """The letters' sizes; `outputs` is the linear head's."""
    return {
        "V": config.vocab_size,
        "D": config.width,
        "H": config.heads,
        "G": config.kv_heads,
        "C": config.head_dim,
        "F": config.mlp_width,
        "O": outputs,
    }


def groups(layout: str) -> list[tuple[str, ...]]:
    """``"(H C) D"`` -> ``[("H", "C"), ("D",)]``."""
    return [tuple(part.strip("()").split()) for part in re.findall(r"\([^)]*\)|\w+", layout)]


def their_shape(weight: Weight, config: DecoderConfig, outputs: int = 0) -> tuple[int, ...]:
    """Shape of the tensor in the checkpoint; `outputs` is the linear head's."""
    size = sizes(config, outputs)
    return tuple(math.prod(size[letter] for letter in group) for group in groups(weight.theirs))


def read_slice(
    tensor: Any, weight: Weight, config: DecoderConfig, index: tuple[slice, ...], outputs: int = 0
) -> np.ndarray:
    """The slice `index` of our layout of one tensor, reading as little of `tensor` as contiguous ranges allow.

    Args:
      tensor: anything sliced by a tuple of ranges: a safetensors slice, a numpy array.
      weight: its row of the table.
      config: the architecture.
      index: one slice for each letter of our layout, step 1.
      outputs: of the linear head, when it is one of its tensors.
    """
    size = sizes(config, outputs)
    letters = weight.ours.split()
    wanted = {letter: piece.indices(size[letter])[:2] for letter, piece in zip(letters, index, strict=True)}
    ranges, shape, rest, order = [], [], [], []
    for group in groups(weight.theirs):
        # Only the outermost letter's range is contiguous in the file; inner ranges are cut out after reading.
        inner = math.prod(size[letter] for letter in group[1:])
        start, stop = wanted[group[0]]
        ranges.append(slice(start * inner, stop * inner))
        shape += [stop - start, *(size[letter] for letter in group[1:])]
        rest += [slice(None), *(slice(*wanted[letter]) for letter in group[1:])]
        order += list(group)
    read = np.asarray(tensor[tuple(ranges)]).reshape(shape)[tuple(rest)]
    return read.transpose([order.index(letter) for letter in letters])


def to_theirs(array: np.ndarray, weight: Weight, config: DecoderConfig, outputs: int = 0) -> np.ndarray:
    """One tensor of our layout in the checkpoint's, contiguous."""
    letters = weight.ours.split()
    order = [letter for group in groups(weight.theirs) for letter in group]
    moved = array.transpose([letters.index(letter) for letter in order])
    return np.ascontiguousarray(moved.reshape(their_shape(weight, config, outputs)))
