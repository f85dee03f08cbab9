"""The schema of a run: every option with its meaning, unit, default and bounds.

Sections are frozen and keyword-only; a `RunConfig` is plain data, equal to its JSON form (`to_dict`, `from_dict`). Only
`jaxalign.build` reads it: every constructor below takes plain keyword arguments. `validate` finds all problems before
any data or weights are read. Importing this file does not import jax.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxalign.config_aliases import ALIASES
from jaxalign.config_data import DataConfig
from jaxalign.config_fields import Field, Rejected, convert, fields_of, nearest
from jaxalign.errors import ConfigError
from jaxalign.ranges import Range

Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy: which weights it starts from and how it computes."""

    path: Annotated[str | None, "Hugging Face folder or hub id to start from; none = random weights of `config`."] = (
        None
    )
    config: Annotated[str | None, "Path of a config.json: the architecture when `path` is none."] = None
    tokenizer: Annotated[str | None, "Folder or hub id of the tokenizer; none = the one in `path`."] = None
    chat_template: Annotated[str | None, "Path of a Jinja chat template, or chatml; none = the tokenizer's own."] = None
    dtype: Annotated[Dtype, "Precision of the forward and backward computation."] = "bfloat16"
    param_dtype: Annotated[Dtype, "Precision of the trained (master) weights and the optimizer's state."] = "float32"
    remat: Annotated[
        Literal["none", "full", "dots"],
        "What the backward pass recomputes: nothing, each block, or each block except its matrix products.",
    ] = "none"
    attention: Annotated[
        Literal["auto", "dense", "chunked", "kernel"],
        "How attention is computed: dense holds all scores of a row, chunked a few blocks of them, kernel those on the"
        " chip alone; auto = the kernel on TPUs, else chunked, and dense for rows of up to 64 tokens.",
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters: train small matrices beside the frozen weights, and start from the weights exactly."""

    kind: Annotated[
        Literal["none", "lora"],
        "none = all weights are trained; lora = x W + scale * (x A) B, with W frozen and A, B trained in float32.",
    ] = "none"
    rank: Annotated[int, "Columns of A and rows of B.", Range(ge=1)] = 16
    alpha: Annotated[float, "The scale is alpha / rank.", Range(gt=0)] = 32.0
    rslora: Annotated[bool, "The scale is alpha / sqrt(rank) instead (rsLoRA), for large ranks."] = False
    targets: Annotated[
        str,
        "Regular expression searched for in the paths of the blocks' matrices: layers/attention/query, key, value,"
        " output, layers/mlp/gate, up, down. The default finds all.",
    ] = ".*"
    head: Annotated[bool, "Also train the linear head that the method adds, such as a reward model's."] = True


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The alignment method. In JSON and on the command line its options stand beside `name`: `method.beta`."""

    name: Annotated[str, "A name of `jaxalign methods`, or package.module:NAME."] = "dpo"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """The reference policy that a method compares with."""

    source: Annotated[
        str,
        "auto = policy if the method needs one, else none; policy = the policy before training; none = no reference"
        " (zero log-probabilities: the probability objective); prior = the policy before training without the prompt;"
        " columns = chosen_logprob and rejected_logprob of the data, sums in nats, and no model; else the folder or hub"
        " id of another model.",
    ] = "auto"
    mode: Annotated[
        Literal["auto", "live", "cached", "moving"],
        "live = computed in every step; cached = computed once, before training, for what the run will show, and kept"
        " on disk for other runs; moving = a copy that follows the policy; auto = cached, but live where the method"
        " compares whole next-token distributions. Cached numbers come from other rows than a step's: in bfloat16 they"
        " round differently (docs/adapters.md says by how much); live ones agree to float32's last bit at step 0.",
    ] = "auto"
    update_every: Annotated[int, "Steps between two moves of a moving reference.", Range(ge=1)] = 512
    update_rate: Annotated[
        float, "Share of the policy mixed into a moving reference at each move; 1 = replaced by it.", Range(gt=0, le=1)
    ] = 0.6
    dtype: Annotated[Dtype | None, "Precision of a moving reference's weights; none = model.param_dtype."] = None
    quantization: Annotated[
        Literal["none", "int8"],
        "int8 = the matrices of the reference's blocks and what they are multiplied with in 8 bits (needs qwix, extra"
        " `quantization`); docs/adapters.md has its measured error.",
    ] = "none"
    cache_dir: Annotated[
        str | None,
        "Folder of the cache, shared by all runs; none = `reference` in JAXALIGN_CACHE, or in ~/.cache/jaxalign.",
    ] = None
    chat_template: Annotated[str | None, "Path of the chat template of another model; none = its tokenizer's."] = None
    prior_prefix: Annotated[
        str, "Text that the prior reads in place of the prompt, behind BOS: a chat header, say. Empty = BOS alone."
    ] = ""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates (optax)."""

    name: Annotated[Literal["adamw", "adam", "lion", "adafactor", "rmsprop", "sgd"], "The optimizer."] = "adamw"
    learning_rate: Annotated[float, "Peak learning rate.", Range(gt=0)] = 1e-6
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "inverse_sqrt"],
        "Its course after the warm-up; linear and cosine end at 0.",
    ] = "linear"
    warmup_ratio: Annotated[float, "Share of all steps in which it rises from 0.", Range(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[
        float, "Decay per unit of learning rate, decoupled from the gradient; not of norms and biases.", Range(ge=0)
    ] = 0.0
    clip_norm: Annotated[float | None, "Largest global norm of the gradient; none = no clipping.", Range(gt=0)] = 1.0
    b1: Annotated[
        float | None,
        "Decay of the first moment (rmsprop, sgd: momentum); none = the optimizer's own.",
        Range(ge=0, lt=1),
    ] = None
    b2: Annotated[float | None, "Decay of the second moment; none = the optimizer's own.", Range(ge=0, lt=1)] = None
    eps: Annotated[float, "Added to the root of the second moment.", Range(gt=0)] = 1e-8


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: how much, how often."""

    batch_size: Annotated[int, "Examples in an optimizer step, over all devices.", Range(ge=1)] = 64
    microbatches: Annotated[int, "Parts a batch's rows are computed in, one after another.", Range(ge=1)] = 1
    epochs: Annotated[
        float | None, "Passes over the training data; none = `steps` decides, or 1 without steps.", Range(gt=0)
    ] = None
    steps: Annotated[int | None, "Optimizer steps; none = `epochs` decides.", Range(ge=1)] = None
    seed: Annotated[int, "Seed of random initial weights and of random methods.", Range(ge=0)] = 0
    log_every: Annotated[int, "Steps between two rows of metrics.jsonl.", Range(ge=1)] = 10
    eval_every: Annotated[int | None, "Steps between two evaluations; none = only after the last.", Range(ge=1)] = None
    checkpoint_every: Annotated[
        int | None, "Steps between two checkpoints; none = only after the last.", Range(ge=1)
    ] = None
    keep: Annotated[int, "Latest checkpoints kept.", Range(ge=1)] = 1
    best_metric: Annotated[
        str | None,
        "Held-out metric whose best checkpoint is kept and exported: the lowest of a loss or KL divergence, the "
        "highest of any other; none = the last is exported.",
    ] = None
    check_first_step: Annotated[
        bool, "Stop if the loss before training differs from its closed form (ln 2 for dpo)."
    ] = True
    export: Annotated[bool, "Write the aligned model to WORKDIR/export at the end, as a Hugging Face folder."] = True


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis. Their product is the number of devices; one axis may be -1, the rest."""

    data: Annotated[int, "Copies of the model that share the batch."] = 1
    fsdp: Annotated[int, "Devices that share the batch and hold a slice of the weights each."] = -1
    tensor: Annotated[int, "Devices that share one example's matrix products."] = 1


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How held-out examples are evaluated. The results do not depend on it."""

    batch_size: Annotated[int, "Examples computed at once.", Range(ge=1)] = 64


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where metrics go besides WORKDIR/metrics.jsonl."""

    tensorboard: Annotated[bool, "Write TensorBoard files to WORKDIR/tensorboard, where tensorboardX is installed."] = (
        True
    )
    wandb: Annotated[str | None, "Weights & Biases project; none = off."] = None
    progress: Annotated[bool, "Show a progress bar."] = True


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run, except where its files go (`--workdir`)."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


SECTIONS: Mapping[str, type] = {
    f.name: f.default_factory for f in dataclasses.fields(RunConfig) if isinstance(f.default_factory, type)
}


@functools.cache
def schema() -> dict[str, Field]:
    """Every option by dotted path (``optimizer.learning_rate``), except the method's own options."""
    leaves = fields_of(RunConfig)
    del leaves["method.options"]
    return leaves


def section_names(section: str) -> list[str]:
    """The fields of a section, in order of declaration."""
    return [path.partition(".")[2] for path in schema() if path.startswith(f"{section}.")]


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain JSON types. The method's options stand beside its name."""
    tree = dataclasses.asdict(config)
    tree["method"] |= tree["method"].pop("options")
    return tree


def read_dict(tree: Mapping[str, Any]) -> tuple[RunConfig, list[str], set[str]]:
    """A configuration from its dict form, with the problems found; a field with a problem keeps its default.

    Returns:
      the configuration, the problems, and the paths they belong to.
    """
    problems: list[str] = []
    broken: set[str] = set()
    sections: dict[str, Any] = {}

    def unknown(path: str, names: list[str]) -> None:
        near = nearest(path, [*SECTIONS, *schema()], ALIASES)
        hint = f" Did you mean {near!r}?" if near else ""
        problems.append(f"{path}: unknown name, expected one of {', '.join(names)}.{hint}")
        # What a misspelled name leaves unset is no second problem.
        broken.update(known for known in schema() if near and (known == near or known.startswith(f"{near}.")))

    for section, values in tree.items():
        if section not in SECTIONS:
            unknown(str(section), list(SECTIONS))
            continue
        names = section_names(section)
        if not isinstance(values, Mapping):
            hint = f" Did you mean '{section}.name'?" if "name" in names else ""
            problems.append(f"{section}: got {values!r}, expected a section with the fields {', '.join(names)}.{hint}")
            broken |= {f"{section}.{name}" for name in names}
            continue
        fields: dict[str, Any] = {}
        for name, value in values.items():
            path = f"{section}.{name}"
            if path in schema():
                try:
                    fields[name] = convert(schema()[path], value)
                except Rejected as rejected:
                    problems.append(str(rejected))
                    broken.add(path)
            elif section == "method":
                fields.setdefault("options", {})[name] = value
            else:
                unknown(path, names)
        sections[section] = SECTIONS[section](**fields)
    return RunConfig(**sections), problems, broken


def from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_dict`; sections and fields may be missing, then they have their defaults.

    Raises:
      ConfigError: with every problem: unknown names at any depth, wrong types, values out of bounds, and fields that
        do not fit together.
    """
    from jaxalign.config_checks import cross_checks

    config, problems, broken = read_dict(tree)
    problems += [problem for paths, problem in cross_checks(config) if not broken.intersection(paths)]
    if problems:
        raise ConfigError(problems)
    return config


def read_json(path: str | Path) -> RunConfig:
    """The configuration in a WORKDIR/config.json.

    Raises:
      ConfigError: the file is not there or not JSON, or what it holds has problems.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no configuration can be read from it ({error}).") from error
    return from_dict(tree)


def validate(config: RunConfig, *, devices: int | None = None) -> list[str]:
    """All problems of a configuration: each field's type and bounds, the method's options, and what must fit together.

    Args:
      config: the configuration.
      devices: the number of devices, if known: then the mesh must fit it.

    Returns:
      one line each: path, got, expected, nearest name. Empty if all is well.
    """
    from jaxalign.config_checks import cross_checks

    _, problems, broken = read_dict(to_dict(config))
    return problems + [text for paths, text in cross_checks(config, devices) if not broken.intersection(paths)]


def resolve(config: RunConfig) -> RunConfig:
    """The configuration with nothing left to guess, as WORKDIR/config.json holds it.

    `auto` is settled, one of epochs and steps is set, and every option of the method is written out.
    """
    from jaxalign.methods import get_method

    method = get_method(config.method.name)
    options = method.resolve_options(config.method.options)
    source, mode = config.reference.source, config.reference.mode
    if source == "auto":
        source = "policy" if method.needs_reference else "none"
    if mode == "auto":
        live = source == "none" or method.needs_live_reference
        mode = "live" if live else "cached"
    train = config.train
    if train.epochs is None and train.steps is None:
        train = dataclasses.replace(train, epochs=1.0)
    return dataclasses.replace(
        config,
        method=dataclasses.replace(config.method, options=options),
        reference=dataclasses.replace(config.reference, source=source, mode=mode),
        train=train,
    )
