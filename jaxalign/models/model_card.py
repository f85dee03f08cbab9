"""The README.md of an exported model: what is known, and nothing that is not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.families import Kind

FACTS = ("title", "base_model", "license", "language", "datasets", "method", "options", "metrics", "notes", "citation")

PIPELINES: Mapping[Kind, tuple[str, str]] = {
    "causal_lm": ("text-generation", "Aligned language model"),
    "sequence_classification": ("text-classification", "Reward model"),
    "token_classification": ("token-classification", "Process reward model"),
}
"""The pipeline that the Hub offers for a kind, and the title of a card that is given none."""


def model_card(config: DecoderConfig, *, dtype: str, kind: Kind = "causal_lm", **facts: Any) -> str:
    """A model card in the Hugging Face form. Facts that are None or empty leave no trace; no licence is guessed.

    Args:
      config: the architecture.
      dtype: of the stored weights.
      kind: what stands on top of the decoder.
      **facts: `FACTS`: ``title``, ``base_model`` (hub id), ``license`` (its identifier), ``language`` and ``datasets``
        (one or several), ``method`` (name of the alignment method), ``options`` and ``metrics`` (mappings), ``notes``
        (Markdown), ``citation`` (BibTeX).

    Raises:
      ModelError: a fact of another name.
    """
    unknown = [f"model card: unknown fact {name!r}.{did_you_mean(name, FACTS)}" for name in facts if name not in FACTS]
    if unknown:
        raise ModelError(unknown)
    known = {name: value for name, value in facts.items() if value not in (None, "", [], {}, ())}
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": PIPELINES[kind][0]}
    header |= {name: known[name] for name in ("base_model", "license", "language", "datasets") if name in known}
    header["tags"] = ["jaxalign", *([str(known["method"])] if "method" in known else [])]
    lines = ["---"]
    for name, value in header.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            lines += [f"{name}:", *(f"- {json.dumps(str(item))}" for item in value)]
        else:
            lines.append(f"{name}: {json.dumps(str(value))}")
    lines += ["---", "", f"# {known.get('title', PIPELINES[kind][1])}", ""]
    if "method" in known:
        lines += [f"Trained with the method `{known['method']}` in jaxalign.", ""]
    if "base_model" in known:
        lines += [f"Starting point: `{known['base_model']}`.", ""]
    lines += [
        f"Architecture: {config.family}, {config.layers} layers, width {config.width}, {config.heads} query heads over "
        f"{config.kv_heads} key/value heads, vocabulary {config.vocab_size}, context {config.max_positions} tokens. "
        f"Weights: {dtype}.",
        "",
    ]
    for name, heading in (("options", "Training options"), ("metrics", "Metrics")):
        if name in known:
            lines += [f"## {heading}", "", "| name | value |", "| --- | --- |", *_table(known[name]), ""]
    if "notes" in known:
        lines += [str(known["notes"]), ""]
    if "citation" in known:
        lines += ["## Citation", "", "```bibtex", str(known["citation"]).strip(), "```", ""]
    return "\n".join(lines)


def _table(values: Mapping[str, Any]) -> list[str]:
    return [f"| {name} | {value} |" for name, value in values.items() if value is not None]
