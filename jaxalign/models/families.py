"""The model families: which `config.json` fields say what, with the values they have when absent.

A family is one row of `FAMILIES`. To add one, write its row: every field of its configuration class in transformers
must be among the facts here, in `IGNORED`, or in `NEUTRAL`. What differs must become a field of `DecoderConfig`; code
below this file never asks for the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from jaxalign.models.decoder_config import DecoderConfig

Windows = tuple[int | None, ...]

Kind = Literal["causal_lm", "sequence_classification", "token_classification"]
"""What stands on top of the decoder: a language model's head, one value a sequence, or classes for each token."""

CLASS_NAMES: Mapping[Kind, str] = MappingProxyType(
    {
        "causal_lm": "ForCausalLM",
        "sequence_classification": "ForSequenceClassification",
        "token_classification": "ForTokenClassification",
    }
)
"""How transformers names the classes of a family."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of decoders.

    Attributes:
      model_type: ``model_type`` of its `config.json`.
      architecture: its class name in transformers, ``architectures[0]``.
      defaults: values of `config.json` fields that are absent, as transformers has them.
      qkv_bias, output_bias, mlp_bias: the fact itself, or the name of the boolean field that says it.
      qk_norm: the fact itself.
      windows: the layers' windows from the fields.
      window_fields: the fields from the layers' windows; None where the family cannot say them.
      fields: names of further fields that `windows` reads.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    qkv_bias: bool | str
    output_bias: bool | str
    mlp_bias: bool | str
    qk_norm: bool
    windows: Callable[[Mapping[str, Any]], Windows]
    window_fields: Callable[[DecoderConfig], dict[str, Any] | None]
    fields: tuple[str, ...] = field(default=())

    def class_name(self, kind: Kind) -> str:
        """Its class in transformers with that on top."""
        return self.architecture.removesuffix(CLASS_NAMES["causal_lm"]) + CLASS_NAMES[kind]


def _no_window(fields: Mapping[str, Any]) -> Windows:
    del fields
    return ()


def _no_window_fields(config: DecoderConfig) -> dict[str, Any] | None:
    return None if any(config.windows) else {}


def _every_layer(fields: Mapping[str, Any]) -> Windows:
    window = fields["sliding_window"]
    return () if window is None else (window,) * fields["num_hidden_layers"]


def _every_layer_fields(config: DecoderConfig) -> dict[str, Any] | None:
    if not config.uniform_window:
        return None
    return {"sliding_window": config.windows[0] if config.windows else None}


def _chosen_layers(fields: Mapping[str, Any]) -> Windows:
    """Qwen: the layers from ``max_window_layers`` on, or those that ``layer_types`` names."""
    layers, window = fields["num_hidden_layers"], fields["sliding_window"]
    if not fields["use_sliding_window"] or window is None:
        return ()
    types = fields.get("layer_types")
    if types is None:
        slides = [index >= fields["max_window_layers"] for index in range(layers)]
    else:
        slides = [kind == "sliding_attention" for kind in types]
    return tuple(window if slide else None for slide in slides) if any(slides) else ()


def _chosen_layers_fields(config: DecoderConfig) -> dict[str, Any] | None:
    widths = {window for window in config.windows if window is not None}
    if len(widths) > 1:
        return None
    kinds = ["full_attention" if window is None else "sliding_attention" for window in config.windows]
    kinds = kinds or ["full_attention"] * config.layers
    # Readers without layer_types go by max_window_layers, which can only say "from this layer on".
    first = next((index for index, kind in enumerate(kinds) if kind == "sliding_attention"), config.layers)
    if "full_attention" in kinds[first:]:
        first = config.layers
    return {
        "use_sliding_window": bool(widths),
        "sliding_window": next(iter(widths), None),
        "max_window_layers": first,
        "layer_types": kinds,
    }


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
    },
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    qk_norm=False,
    windows=_no_window,
    window_fields=_no_window_fields,
)

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=_every_layer,
    window_fields=_every_layer_fields,
    fields=("sliding_window",),
)

_QWEN_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_QWEN_FIELDS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    defaults=_QWEN_DEFAULTS,
    qkv_bias=True,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=_chosen_layers,
    window_fields=_chosen_layers_fields,
    fields=_QWEN_FIELDS,
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    defaults={**_QWEN_DEFAULTS, "head_dim": 128, "attention_bias": False},
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias=False,
    qk_norm=True,
    windows=_chosen_layers,
    window_fields=_chosen_layers_fields,
    fields=_QWEN_FIELDS,
)

FAMILIES: Mapping[str, Family] = MappingProxyType({f.model_type: f for f in (LLAMA, MISTRAL, QWEN2, QWEN3)})

COMMON_DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "head_dim": None,
}

# Identity and files.
_IDENTITY = """
    architectures model_type transformers_version _name_or_path name_or_path torch_dtype dtype _commit_hash
    tokenizer_class unsloth_version unsloth_fixed jaxalign_version
"""
# Training and generation of others; special ids go through to the export.
_TRAINING = """
    initializer_range use_cache bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id pretraining_tp
    keys_to_ignore_at_inference gradient_checkpointing _attn_implementation attn_implementation
    _attn_implementation_autoset _flash_attn_2_enabled
"""
# Outputs of a transformers forward.
_OUTPUTS = """
    output_attentions output_hidden_states return_dict use_return_dict torchscript
"""
# Classification heads and other leftovers of the shared base class.
_LEFTOVERS = """
    id2label label2id num_labels problem_type finetuning_task task_specific_params prefix
    chunk_size_feed_forward cross_attention_hidden_size tie_encoder_decoder pruned_heads
"""
# Old places of generation settings.
_GENERATION = """
    do_sample temperature top_k top_p typical_p repetition_penalty length_penalty max_length min_length
    num_beams num_beam_groups num_return_sequences no_repeat_ngram_size encoder_no_repeat_ngram_size
    early_stopping diversity_penalty output_scores return_dict_in_generate remove_invalid_values bad_words_ids
    begin_suppress_tokens suppress_tokens exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id decoder_start_token_id
"""
IGNORED = frozenset(" ".join((_IDENTITY, _TRAINING, _OUTPUTS, _LEFTOVERS, _GENERATION)).split())
"""Fields without an effect on the function that the weights compute."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "attention_dropout": (0, None),
    "attention_multiplier": (1.0, None),
    "add_cross_attention": (False, None),
    "auto_map": (None, {}),
    "embd_pdrop": (0, None),
    "hidden_dropout": (0, None),
    "resid_pdrop": (0, None),
    "is_decoder": (False, True, None),
    "is_encoder_decoder": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
    "sliding_window": (None,),
    "use_bfloat16": (False, True, None),
    "use_mrope": (False, None),
    "use_sliding_window": (False, None),
    "max_window_layers": (None,),
    "layer_types": (None,),
    "tf_legacy_loss": (False, True, None),
}
"""Fields that are not modelled, with the values at which they do nothing; at any other value they are an error."""
