"""`config.json` to `DecoderConfig` and back, by the tables of `families.py`.

Nothing is skipped silently: a field that is neither modelled, nor known to have no effect, nor at its neutral value is
an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import ModelError, did_you_mean
from jaxalign.models.decoder_config import ACTIVATIONS, ROPE_KINDS, DecoderConfig, RopeScaling, Source
from jaxalign.models.families import CLASS_NAMES, COMMON_DEFAULTS, FAMILIES, IGNORED, NEUTRAL, Family, Kind

SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
}
"""Our field: the field of `config.json` that says the same in every family."""

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
ROPE_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_positions",
}
ROPE_NEEDS = {"linear": ("factor",), "llama3": tuple(ROPE_FIELDS)}
LABEL_FIELDS = ("id2label", "label2id", "num_labels", "problem_type")
LABELS: Mapping[Kind, tuple[str, ...]] = {
    "sequence_classification": ("reward",),
    "token_classification": ("wrong", "right"),
}
"""What the outputs of our own heads mean, by kind."""
BIASES = ("qkv_bias", "output_bias", "mlp_bias")


def read_config(folder: str | Path) -> DecoderConfig:
    """The architecture that a Hugging Face folder's `config.json` describes.

    Raises:
      ModelError: no such file, not JSON, an unknown architecture, or fields that are not modelled; all at once.
    """
    path = Path(folder) / "config.json"
    raw = read_json(path)
    if raw is None:
        raise ModelError(f"{path}: no such file. Expected a Hugging Face model folder.{_what_is(Path(folder))}")
    generation = read_json(Path(folder) / "generation_config.json") or {}
    return parse_config(raw, generation=generation, where=str(path))


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None when there is no file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def parse_config(
    raw: Mapping[str, Any], *, generation: Mapping[str, Any] | None = None, where: str = "config.json"
) -> DecoderConfig:
    """The architecture that the contents of a `config.json` describe; see `read_config`."""
    family = _family(raw, where)
    fields = {**COMMON_DEFAULTS, **family.defaults, **raw}
    problems = [f"{where}: {problem}" for problem in _unmodelled(raw, family)]
    theta, scaling = None, None
    try:
        theta, scaling = _rope(raw)
    except ModelError as error:
        problems += [f"{where}: {problem}" for problem in error.problems]
    values = {ours: fields[theirs] for ours, theirs in SIZES.items()}
    if isinstance(values["heads"], int) and values["heads"] > 0 and isinstance(values["width"], int):
        if values["kv_heads"] is None:
            values["kv_heads"] = values["heads"]
        if values["head_dim"] is None:
            values["head_dim"] = values["width"] // values["heads"]
    activation = fields["hidden_act"]
    if activation not in ACTIVATION_NAMES:
        near = did_you_mean(str(activation), ACTIVATION_NAMES)
        problems.append(f"{where}: hidden_act {activation!r} is not modelled, expected one of {ACTIVATIONS}.{near}")
    for ours in BIASES:
        fact = getattr(family, ours)
        values[ours] = bool(fields[fact]) if isinstance(fact, str) else fact
    if problems:
        raise ModelError(problems)
    try:
        return DecoderConfig(
            family=family.model_type,
            **values,
            rope_theta=theta or 10000.0,
            rope_scaling=scaling,
            activation=ACTIVATION_NAMES[activation],
            qk_norm=family.qk_norm,
            windows=family.windows(fields),
            source=Source(dict(raw), dict(generation or {})),
        )
    except ModelError as error:
        raise ModelError([f"{where}: {problem}" for problem in error.problems]) from error


def checkpoint_kind(config: DecoderConfig) -> Kind:
    """What the folder that a configuration was read from has on top of the decoder; a language model if from none."""
    name = str((config.source.config.get("architectures") or [""])[0])
    for kind, suffix in CLASS_NAMES.items():
        if name.endswith(suffix):
            return kind
    return "causal_lm"


def config_json(config: DecoderConfig, *, dtype: str, kind: Kind = "causal_lm", outputs: int = 0) -> dict[str, Any]:
    """The `config.json` of an architecture, on top of the fields that were read with it.

    Rotary settings are written in both forms, top-level ``rope_theta`` + ``rope_scaling`` (transformers 4) and
    ``rope_parameters`` (transformers 5).

    Args:
      config: the architecture.
      dtype: of the stored weights.
      kind: what stands on top of the decoder.
      outputs: of a classifier's head.

    Raises:
      ModelError: the family has no field for one of the architecture's facts.
    """
    family = FAMILIES.get(config.family)
    if family is None:
        raise ModelError(f"family {config.family!r} is unknown.{did_you_mean(config.family, FAMILIES)}")
    problems = []
    fields: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    said: dict[str, bool] = {}
    for ours in (*BIASES, "qk_norm"):
        fact, value = getattr(family, ours), getattr(config, ours)
        if isinstance(fact, bool) and fact != value:
            problems.append(f"{ours} = {value} cannot be said in a config.json of family {family.model_type!r}.")
        elif isinstance(fact, str) and said.setdefault(fact, value) != value:
            problems.append(f"{ours} = {value}: family {family.model_type!r} has one field, {fact!r}, for all biases.")
    window_fields = family.window_fields(config)
    if window_fields is None:
        problems.append(f"windows {config.windows} cannot be said in a config.json of family {family.model_type!r}.")
    if config.soft_cap is not None:
        problems.append(f"soft_cap = {config.soft_cap} cannot be said in a config.json of {family.model_type!r}.")
    if problems:
        raise ModelError(problems)
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope = {"rope_type": scaling.kind}
        rope |= {name: getattr(scaling, ROPE_FIELDS[name]) for name in ROPE_NEEDS[scaling.kind]}
    activation = config.source.config.get("hidden_act")
    if ACTIVATION_NAMES.get(str(activation)) != config.activation:
        activation = next(theirs for theirs, ours in ACTIVATION_NAMES.items() if ours == config.activation)
    kept = {name: value for name, value in config.source.config.items() if name not in ("dtype", "rope_parameters")}
    labels: dict[str, Any] = {}
    named = len(kept.get("id2label") or "01")  # transformers leaves out the names of two labels that have none
    if kind != checkpoint_kind(config) or (kind != "causal_lm" and named != outputs):
        kept = {name: value for name, value in kept.items() if name not in LABEL_FIELDS}
        labels = _labels(kind, outputs)
    return {
        **kept,
        **labels,
        "architectures": [family.class_name(kind)],
        "model_type": family.model_type,
        **fields,
        **said,
        **(window_fields or {}),
        "hidden_act": activation,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
        "torch_dtype": dtype,
    }


def _labels(kind: Kind, outputs: int) -> dict[str, Any]:
    """Names of a head's outputs; transformers counts them to know how many there are."""
    if kind == "causal_lm":
        return {}
    names = LABELS[kind] if outputs == len(LABELS[kind]) else tuple(f"LABEL_{i}" for i in range(outputs))
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _family(raw: Mapping[str, Any], where: str) -> Family:
    names = {family.class_name(kind): family for kind in CLASS_NAMES for family in FAMILIES.values()}
    architectures = raw.get("architectures")
    model_type = raw.get("model_type")
    if not architectures and model_type is None:
        raise ModelError(f"{where}: neither 'architectures' nor 'model_type' is there. Is this a model's config.json?")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    family = names.get(name) if name is not None else FAMILIES.get(str(model_type))
    if family is None:
        got, known = (name, names) if name is not None else (model_type, FAMILIES)
        raise ModelError(
            f"{where}: architecture {got!r} is not modelled, expected one of {', '.join(known)}."
            f"{did_you_mean(str(got), known)}"
        )
    if model_type is not None and model_type != family.model_type:
        raise ModelError(
            f"{where}: model_type {model_type!r} contradicts architecture {name or family.architecture!r}, "
            f"whose model_type is {family.model_type!r}."
        )
    return family


def _unmodelled(raw: Mapping[str, Any], family: Family) -> list[str]:
    modelled = {*SIZES.values(), *family.fields, "hidden_act", "rope_theta", "rope_scaling", "rope_parameters"}
    modelled |= {fact for name in BIASES if isinstance(fact := getattr(family, name), str)}
    problems = []
    for name, value in raw.items():
        if name in modelled or name in IGNORED:
            continue
        if name in NEUTRAL:
            if not any(value == neutral and (value is None) == (neutral is None) for neutral in NEUTRAL[name]):
                expected = " or ".join(map(repr, NEUTRAL[name]))
                problems.append(
                    f"{name} = {value!r} is not modelled for {family.architecture}, expected {expected}. "
                    "The weights would be read, but compute another function."
                )
            continue
        problems.append(
            f"unknown field {name!r} = {value!r}: it may change what the weights compute."
            f"{did_you_mean(name, sorted(modelled | set(NEUTRAL)))} Remove it if it has no effect."
        )
    kinds = raw.get("layer_types")
    if "layer_types" in family.fields and kinds is not None:
        known = ("full_attention", "sliding_attention")
        odd = sorted({str(kind) for kind in kinds if kind not in known})
        problems += [f"layer type {kind!r} is not modelled, expected one of {known}." for kind in odd]
        layers = raw.get("num_hidden_layers")
        if isinstance(layers, int) and len(kinds) != layers:
            problems.append(f"layer_types has {len(kinds)} entries, expected num_hidden_layers = {layers}.")
    return problems


def _rope(raw: Mapping[str, Any]) -> tuple[float | None, RopeScaling | None]:
    """Base and scaling from ``rope_parameters``, or from top-level ``rope_theta`` and ``rope_scaling``, or both."""
    found, problems = [], []
    if raw.get("rope_theta") is not None or raw.get("rope_scaling") is not None:
        found.append(("rope_scaling", {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or {})}))
    if raw.get("rope_parameters") is not None:
        parameters = raw["rope_parameters"]
        found.append(("rope_parameters", {"rope_theta": raw.get("rope_theta"), **parameters}))
    read = []
    for name, values in found:
        try:
            read.append(_rope_values(name, values))
        except ModelError as error:
            problems += error.problems
    if len(read) == 2 and read[0] != read[1]:
        problems.append(f"rope_theta/rope_scaling say {read[0]}, rope_parameters say {read[1]}: they must agree.")
    if problems:
        raise ModelError(problems)
    return read[-1] if read else (None, None)


def _rope_values(where: str, values: Mapping[str, Any]) -> tuple[float | None, RopeScaling | None]:
    kind = values.get("rope_type", values.get("type")) or "default"
    known = ("default", *ROPE_KINDS)
    if kind not in known:
        raise ModelError(
            f"{where}: rotary scaling {kind!r} is not modelled, expected one of {known}."
            f"{did_you_mean(str(kind), known)}"
        )
    problems = []
    for name, value in values.items():
        if name in ("rope_type", "type", "rope_theta") or name in ROPE_FIELDS:
            continue
        if name == "partial_rotary_factor" and value in (None, 1.0):
            continue
        if isinstance(value, Mapping):
            problems.append(f"{where}: {name!r} holds settings of its own; rotary settings by layer are not modelled.")
            continue
        problems.append(f"{where}: {name} = {value!r} is not modelled.{did_you_mean(name, ROPE_FIELDS)}")
    needs = ROPE_NEEDS.get(kind, ())
    problems += [f"{where}: {name!r} is missing for rotary scaling {kind!r}." for name in needs if name not in values]
    for name in (*needs, "rope_theta"):
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            problems.append(f"{where}: {name} is {value!r}, expected a number.")
    if problems:
        raise ModelError(problems)
    theta = None if values.get("rope_theta") is None else float(values["rope_theta"])
    if kind == "default":
        return theta, None
    numbers = {ROPE_FIELDS[name]: float(values[name]) for name in needs}
    if "original_positions" in numbers:
        numbers["original_positions"] = int(numbers["original_positions"])
    return theta, RopeScaling(kind=kind, **numbers)  # pyright: ignore[reportArgumentType]


def _what_is(folder: Path) -> str:
    if not folder.exists():
        return " The folder does not exist."
    if (folder / "adapter_config.json").exists():
        return " It holds a PEFT adapter, not a model."
    if list(folder.glob("*.gguf")):
        return " It holds GGUF files; convert them to a Hugging Face folder with safetensors first."
    return ""
