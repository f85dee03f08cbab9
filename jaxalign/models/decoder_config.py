"""Every architectural fact of a decoder as one field.

Families differ in these fields only; nothing below `families.py` asks which family a model is of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxalign.errors import ModelError, did_you_mean

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
ROPE_KINDS = ("linear", "llama3")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the pretraining.

    Attributes:
      kind: ``"linear"`` (every frequency divided by `factor`; Chen et al., 2023) or ``"llama3"`` (long wavelengths
        divided by `factor`, short ones kept, between the two interpolated; Llama 3.1).
      factor: the stretch, >= 1.
      low_frequency_factor: llama3: wavelengths above ``original_positions / low_frequency_factor`` are divided.
      high_frequency_factor: llama3: wavelengths below ``original_positions / high_frequency_factor`` are kept.
      original_positions: llama3: context length of the pretraining, in tokens.
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class Source:
    """The files a configuration was read from, kept to be written back at export. No part of the architecture."""

    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The architecture of a decoder-only language model.

    Attributes:
      family: the row of `families.FAMILIES` whose names are used on export; nothing else reads it.
      vocab_size: V, rows of the embedding.
      width: D, width of the residual stream.
      layers: L, number of blocks.
      heads: H, query heads.
      kv_heads: G, key/value heads; divides H (grouped-query attention).
      head_dim: C, width of a head; need not be D / H.
      mlp_width: F, width of the gated MLP.
      max_positions: longest sequence the model is meant for, in tokens.
      norm_epsilon: added to the mean square in every RMS norm.
      rope_theta: base of the rotary wavelengths.
      rope_scaling: how they are stretched, or None.
      activation: of the MLP's gate, one of `ACTIVATIONS`.
      qkv_bias: query, key and value projections have biases.
      output_bias: the attention's output projection has one.
      mlp_bias: the MLP's projections have them.
      qk_norm: an RMS norm over C on each query and key head, before the rotation (Qwen3).
      tied_embeddings: the output head is the embedding transposed; there is no head parameter.
      windows: sliding window of each layer, in positions, None = sees everything; ``()`` = no layer has one.
        A query at position p sees keys at positions > p - window.
      soft_cap: logits become ``soft_cap * tanh(logits / soft_cap)``, or None.
      source: the files it was read from.

    Raises:
      ModelError: the fields contradict each other; all contradictions at once.
    """

    family: str = "llama"
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    norm_epsilon: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    windows: tuple[int | None, ...] = ()
    soft_cap: float | None = None
    source: Source = field(default_factory=Source, compare=False, repr=False)

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ModelError(problems)

    @property
    def uniform_window(self) -> bool:
        """True when every layer has the same window (or none has one)."""
        return len(set(self.windows)) <= 1

    def facts(self) -> dict[str, Any]:
        """The architecture as plain JSON values, without names and sources: equal facts, equal function."""
        facts = dataclasses.asdict(self)
        for name in ("family", "source", "max_positions"):
            del facts[name]
        for name in ("norm_epsilon", "rope_theta"):
            facts[name] = float(facts[name])  # 10000 and 10000.0 are one fact.
        facts["windows"] = list(self.windows)
        return facts


def decoder_config(values: Mapping[str, Any]) -> DecoderConfig:
    """A `DecoderConfig` from plain values under its own field names, for models made from scratch.

    ``kv_heads`` defaults to ``heads``, ``head_dim`` to ``width / heads``, ``windows`` may be one number for all layers.

    Raises:
      ModelError: unknown or missing fields, or contradictions, all at once.
    """
    known = {f.name: f for f in dataclasses.fields(DecoderConfig) if f.name != "source"}
    values = dict(values)
    problems = [
        f"model configuration: unknown field {name!r}.{did_you_mean(name, known)} Fields: {', '.join(known)}."
        for name in values
        if name not in known
    ]
    if isinstance(values.get("heads"), int) and values["heads"] > 0:
        values.setdefault("kv_heads", values["heads"])
        if isinstance(values.get("width"), int | float):
            values.setdefault("head_dim", values["width"] // values["heads"])
    scaling = values.get("rope_scaling")
    if isinstance(scaling, Mapping):
        names = [f.name for f in dataclasses.fields(RopeScaling)]
        unknown = [name for name in scaling if name not in names]
        problems += [f"rope_scaling: unknown field {name!r}.{did_you_mean(name, names)}" for name in unknown]
        problems += [f"rope_scaling: {name!r} is missing." for name in ("kind", "factor") if name not in scaling]
        if not problems:
            values["rope_scaling"] = RopeScaling(**scaling)
    windows = values.get("windows")
    if isinstance(windows, int) and isinstance(values.get("layers"), int):
        values["windows"] = (windows,) * values["layers"]
    elif isinstance(windows, list):
        values["windows"] = tuple(windows)
    problems += [
        f"model configuration: {name!r} is missing."
        for name, f in known.items()
        if f.default is dataclasses.MISSING and name not in values
    ]
    if problems:
        raise ModelError(problems)
    return DecoderConfig(**values)


def _problems(config: DecoderConfig) -> list[str]:
    problems = []
    sizes = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "max_positions")
    for name in sizes:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"{name} is {value!r}, expected an integer >= 1.")
    for name in ("norm_epsilon", "rope_theta"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            problems.append(f"{name} is {value!r}, expected a finite number > 0.")
    if config.activation not in ACTIVATIONS:
        near = did_you_mean(str(config.activation), ACTIVATIONS)
        problems.append(f"activation {config.activation!r} is not modelled, expected one of {ACTIVATIONS}.{near}")
    if problems:
        return problems
    if config.heads % config.kv_heads:
        problems.append(f"heads = {config.heads} is not a multiple of kv_heads = {config.kv_heads}.")
    if config.head_dim % 2:
        problems.append(f"head_dim is {config.head_dim}, expected an even number: rotary positions turn pairs.")
    if config.windows and len(config.windows) != config.layers:
        problems.append(f"windows has {len(config.windows)} entries, expected one for each of {config.layers} layers.")
    for window in set(config.windows):
        if window is not None and (not isinstance(window, int) or window < 1):
            problems.append(f"windows has the entry {window!r}, expected an integer >= 1 or None.")
    scaling = config.rope_scaling
    if scaling is not None:
        if scaling.kind not in ROPE_KINDS:
            near = did_you_mean(scaling.kind, ROPE_KINDS)
            problems.append(f"rotary scaling {scaling.kind!r} is not modelled, expected one of {ROPE_KINDS}.{near}")
        if not scaling.factor >= 1:
            problems.append(f"rotary scaling factor is {scaling.factor!r}, expected >= 1.")
        if scaling.kind == "llama3" and not 0 < scaling.low_frequency_factor < scaling.high_frequency_factor:
            problems.append(
                f"rotary scaling: low frequency factor {scaling.low_frequency_factor!r} and high frequency factor "
                f"{scaling.high_frequency_factor!r}, expected 0 < low < high."
            )
    if config.soft_cap is not None and not config.soft_cap > 0:
        problems.append(f"soft_cap is {config.soft_cap!r}, expected a number > 0 or None.")
    return problems
