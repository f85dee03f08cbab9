"""Writing a model as a Hugging Face folder that transformers reads, and this project again, bit-equal in float32."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.models.adapters import merged, merged_kernels
from jaxalign.models.config_json import config_json
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.families import CLASS_NAMES, Kind
from jaxalign.models.model_card import model_card
from jaxalign.models.padding import padding_token, with_padding
from jaxalign.models.policy import Policy
from jaxalign.models.safetensors_files import write_tensors
from jaxalign.models.weights import WEIGHTS, their_shape, to_theirs
from jaxalign.types import Variables

EXPORT_DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
OWN_FILES = ("config.json", "generation_config.json", "README.md", *TOKENIZER_FILES)
GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def save_pretrained(
    policy: Policy,
    variables: Variables,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    end_tokens: Sequence[int] = (),
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    card: str | Mapping[str, Any] | None = None,
    kind: Kind | None = None,
) -> None:
    """Write a model folder: configuration, weights, tokenizer, chat template and model card.

    Everything is written beside the target and moved there at the end, so a folder of that name is whole or absent.
    In a run of several processes all must call this; the first one writes. The host holds one tensor at a time.

    Args:
      policy: says the architecture.
      variables: the weights, on any devices and in any sharding. Adapters are merged into them.
      folder: the target. An earlier export there is replaced; a folder with other files is left alone.
      tokenizer: a transformers tokenizer (written by its own ``save_pretrained``, with its chat template), or a folder
        whose tokenizer files are copied; None writes none.
      end_tokens: ids at which generation stops, which generation_config.json lists beside the configuration's own: the
        token with which the chat template ends a turn.
      dtype: of the stored weights, ``"float32"``, ``"bfloat16"`` or ``"float16"``; None = as the variables are.
      max_shard_bytes: weights beyond this many bytes go to several files with an index.
      card: facts for the model card, or its whole text; see `model_card`.
      kind: what transformers is to load: ``"causal_lm"`` (a linear head is dropped), ``"sequence_classification"`` (a
        reward model: one output, read at the last token) or ``"token_classification"`` (two outputs or more, read at
        every token), both without the language model's head. None = what the policy is: a language model if it has
        such a head, else a reward model or a token classifier by its outputs. A reward model gets a padding token
        that never ends a completion, see `padding_token`; the tokenizer written beside it has the same.

    Raises:
      ModelError: a kind that the policy is not, no padding token for a reward model, unknown dtype, a fact the
        family's config.json cannot say, or a target that holds other files.
    """
    target = Path(folder)
    config = policy.config
    kind = _kind(policy, kind)
    if dtype is None:
        dtype = str(jax.tree.leaves(variables["params"])[0].dtype)
    variables = _written(variables, kind)
    if dtype not in EXPORT_DTYPES:
        raise ModelError(
            f"dtype is {dtype!r}, expected one of {tuple(EXPORT_DTYPES)}.{did_you_mean(dtype, EXPORT_DTYPES)}"
        )
    fields = config_json(config, dtype=dtype, kind=kind, outputs=policy.head_outputs)
    ids = _special_ids(config, tokenizer)
    if kind == "sequence_classification":
        ids["pad_token_id"] = padding_token(config, tokenizer, end_tokens)
        tokenizer = with_padding(tokenizer, ids["pad_token_id"])
    _refuse_foreign(target)
    writes = jax.process_index() == 0
    staging = target.parent / f".{target.name}.writing-{os.getpid()}"
    if writes:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    try:
        scale = 0.0 if policy.adapter is None else policy.adapter.scale
        shapes = [(name, shape) for name, shape in tensors_of(variables, config, values=False)]
        arrays = (np.asarray(array, EXPORT_DTYPES[dtype]) for _, array in tensors_of(variables, config, scale=scale))
        write_tensors(staging, shapes, EXPORT_DTYPES[dtype], arrays, max_shard_bytes=max_shard_bytes, writes=writes)
        if writes:
            _write_json(staging / "config.json", {**fields, **ids})
            if kind == "causal_lm":
                generation = {**config.source.generation}
                generation |= {name: value for name, value in ids.items() if name not in generation}
                _add_end_tokens(generation, end_tokens)
                _write_json(staging / "generation_config.json", generation)
            if isinstance(tokenizer, str | Path):
                for file in TOKENIZER_FILES:
                    if (Path(tokenizer) / file).is_file():
                        shutil.copyfile(Path(tokenizer) / file, staging / file)
            elif tokenizer is not None:
                tokenizer.save_pretrained(str(staging))
            text = card if isinstance(card, str) else model_card(config, dtype=dtype, kind=kind, **dict(card or {}))
            (staging / "README.md").write_text(text, encoding="utf-8")
            _move(staging, target)
    finally:
        if writes:
            shutil.rmtree(staging, ignore_errors=True)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"save_pretrained {target}")


COLLECTIONS = {"params": "", "head": "score/"}
"""What stands in a checkpoint: collection of the variables -> how its paths in `WEIGHTS` begin."""


def tree_paths(tree: Any) -> list[str]:
    """Names in `WEIGHTS` of the leaves in the order of `jax.tree.leaves`, as ``"layers/mlp/up/kernel"``."""
    leaves, _ = jax.tree.flatten_with_path(_stored(tree))
    return [COLLECTIONS[path[0].key] + "/".join(key.key for key in path[1:]) for path, _ in leaves]


def _stored(tree: Any) -> dict[str, Any]:
    return {name: tree[name] for name in COLLECTIONS if name in tree}


def tensors_of(
    variables: Variables, config: DecoderConfig, *, values: bool = True, scale: float = 0.0
) -> Iterator[tuple[str, Any]]:
    """Checkpoint names with their tensors, in the checkpoint's layout; with their shapes if not `values`.

    One tensor at a time, layers outermost, so that a file is written and read from front to back. Adapters are merged
    into the tensors that they adapt, times `scale` (`jaxalign.models.adapters.Adapter`); 0 leaves them away.
    """
    leaves = dict(zip(tree_paths(variables), jax.tree.leaves(_stored(variables)), strict=True))
    unknown = [f"parameter {path!r} has no place in a checkpoint." for path in leaves if path not in WEIGHTS]
    if unknown:
        raise ModelError(unknown)

    factors = merged_kernels(variables) if scale else {}
    outputs = leaves["score/kernel"].shape[-1] if "score/kernel" in leaves else 0

    def item(path: str, layer: int | None) -> tuple[str, Any]:
        weight = WEIGHTS[path]
        if not values:
            return weight.name.format(layer=layer), their_shape(weight, config, outputs)
        array = leaves[path] if layer is None else leaves[path][layer]
        if path in factors:
            a, b = factors[path]
            array = merged(array, a[layer], b[layer], scale)
        return weight.name.format(layer=layer), to_theirs(_on_host(array), weight, config, outputs)

    before = [path for path in WEIGHTS if path in leaves and path == "embed/embedding"]
    layered = [path for path in WEIGHTS if path in leaves and "{layer}" in WEIGHTS[path].name]
    after = [path for path in WEIGHTS if path in leaves and path not in before and path not in layered]
    for path in before:
        yield item(path, None)
    for layer in range(config.layers):
        for path in layered:
            yield item(path, layer)
    for path in after:
        yield item(path, None)


def _on_host(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(jax.device_get(array))


def _special_ids(config: DecoderConfig, tokenizer: Any) -> dict[str, Any]:
    """Special ids of the configuration that was read, else of the tokenizer; ids that nobody knows are left out."""
    ids = {}
    for name in GENERATION_IDS:
        value = config.source.config.get(name)
        if value is None and tokenizer is not None and not isinstance(tokenizer, str | Path):
            value = getattr(tokenizer, name, None)
        if value is not None:
            ids[name] = value
    return ids


def _add_end_tokens(generation: dict[str, Any], end_tokens: Sequence[int]) -> None:
    own = generation.get("eos_token_id")
    own = [own] if isinstance(own, int) else list(own or [])
    merged = list(dict.fromkeys([*own, *map(int, end_tokens)]))
    if merged != own:
        generation["eos_token_id"] = merged if len(merged) > 1 else merged[0]


def _kind(policy: Policy, kind: Kind | None) -> Kind:
    if kind is None:
        if policy.language_head:
            return "causal_lm"
        return "sequence_classification" if policy.head_outputs == 1 else "token_classification"
    if kind not in CLASS_NAMES:
        raise ModelError(f"kind is {kind!r}, expected one of {tuple(CLASS_NAMES)}.{did_you_mean(kind, CLASS_NAMES)}")
    fits = {
        "causal_lm": policy.language_head,
        "sequence_classification": policy.head_outputs == 1,
        "token_classification": policy.head_outputs > 1,
    }
    if not fits[kind]:
        language = "with" if policy.language_head else "without"
        raise ModelError(
            f"kind is {kind!r}, but the policy has a linear head of {policy.head_outputs} output(s), {language} a "
            f"language model's head; it can be {' or '.join(name for name, fit in fits.items() if fit)}."
        )
    return kind


def _written(variables: Variables, kind: Kind) -> Variables:
    """The variables that a folder of that kind has a place for."""
    if kind == "causal_lm":
        return {name: value for name, value in variables.items() if name != "head"}
    return {**variables, "params": {name: value for name, value in variables["params"].items() if name != "head"}}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ModelError(f"{target} exists and is not a folder.")
    foreign = sorted(
        p.name
        for p in target.iterdir()
        if p.name not in OWN_FILES and not (p.name.startswith("model") and ".safetensors" in p.name)
    )
    if foreign:
        raise ModelError(
            f"{target} holds files that an export would remove: {', '.join(foreign[:8])}. Choose another folder."
        )


def _move(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = target.parent / f".{target.name}.replaced-{os.getpid()}"
    target.rename(old)
    staging.rename(target)
    shutil.rmtree(old)
