"""The identity of a model: a hash of its architecture and the values of its weights, however they are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from jaxalign.errors import ModelError
from jaxalign.files import file_state, kept_hash
from jaxalign.models.config_json import read_config
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.export import tensors_of
from jaxalign.models.heads import read_head
from jaxalign.models.policy import build_policy
from jaxalign.models.safetensors_files import Tensors
from jaxalign.types import Variables

VERSION = "weights-1"
"""Of the hash. Raise it when the code gives another one for the same weights."""


def weights_hash(source: str | Path | Variables, config: DecoderConfig | None = None) -> str:
    """A sha256 over the architecture's facts and every tensor's float32 values, in the order of the checkpoint names.

    The linear head of a reward model or classifier counts where there is one. A folder, its copy, its shards and the
    variables loaded from it in float32 have the same hash; names of files, tokenizers, shard sizes and stored precision
    (bfloat16 values are float32 values) do not matter.

    Args:
      source: a Hugging Face folder, or variables.
      config: of the variables; a folder has its own.

    Returns:
      64 hexadecimal digits.
    """
    if isinstance(source, str | Path):
        folder = Path(source)
        stamp = tuple(
            file_state(file)
            for file in sorted([folder / "config.json", *folder.glob("*.safetensors")])
            if file.exists()
        )
        return _folder_hash(folder, stamp)
    if config is None:
        raise ModelError("weights_hash of variables needs their DecoderConfig as its second argument.")
    return _digest(config, tensors_of(source, config))


@lru_cache(maxsize=64)
def _folder_hash(folder: Path, stamp: tuple[tuple[str, int, int, int, int], ...]) -> str:
    # The stamp is part of this cache's key, and the files' state of that on disk: a changed file is hashed again.
    config = read_config(folder)
    kind = f"{VERSION} {json.dumps(config.facts(), sort_keys=True)}"
    return kept_hash(kind, [Path(file) for file, *_ in stamp], lambda: _read_hash(folder, config))


def _read_hash(folder: Path, config: DecoderConfig) -> str:
    tensors = Tensors(folder)
    head_outputs = read_head(tensors, config)
    policy = build_policy(config, head_outputs=head_outputs, language_head=not head_outputs)
    expected = [name for name, _ in tensors_of(policy.abstract(), config, values=False)]
    missing = [f"{folder}: tensor {name!r} is missing." for name in expected if name not in tensors]
    if missing:
        raise ModelError(missing)
    return _digest(config, ((name, tensors.view(name)[:]) for name in expected))


def _digest(config: DecoderConfig, tensors: Iterator[tuple[str, np.ndarray]]) -> str:
    total = hashlib.sha256(json.dumps(config.facts(), sort_keys=True).encode())
    parts = {}
    for name, array in tensors:
        values = np.ascontiguousarray(array, dtype=np.float32)
        parts[name] = hashlib.sha256(values.reshape(-1).view(np.uint8).data).digest()
    for name in sorted(parts):
        total.update(name.encode() + b"\0" + parts[name])
    return total.hexdigest()
