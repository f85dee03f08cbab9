"""What one field's bounds cannot say: what fields must satisfy together, and what a run may change when it goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxalign.config import AdapterConfig, RunConfig, section_names, to_dict
from jaxalign.data.formats import check_columns
from jaxalign.errors import ConfigError

Problem = tuple[tuple[str, ...], str]
"""The paths involved, and what is wrong. A path that is broken by itself silences the problem."""


DEFAULT_MAX_LENGTH = 1024
"""Of a prompt and its completion, tokens, where `data.max_length` is none."""

FREE = (
    "mesh",
    "evaluation",
    "logging",
    "model.remat",
    "model.attention",
    "reference.cache_dir",
    "train.microbatches",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "train.export",
)
"""What a resumed run may change: it decides where and how fast things are computed, not what."""


def differences(before: RunConfig, after: RunConfig) -> list[str]:
    """What keeps a run with the configuration `after` from continuing one with `before`, a line for each path."""
    old, new = _flat(to_dict(before)), _flat(to_dict(after))
    fixed = [path for path in {**old, **new} if not path.startswith(FREE)]

    def shown(values: Mapping[str, Any], path: str) -> str:
        return repr(values[path]) if path in values else "absent"

    return [
        f"{path}: was {shown(old, path)}, is {shown(new, path)}." for path in fixed if old.get(path) != new.get(path)
    ]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, values in tree.items() for name, value in values.items()}


def cross_checks(config: RunConfig, devices: int | None = None) -> Iterator[Problem]:
    """Every problem between fields. Reads no file and loads nothing but the table of methods."""
    yield from _model(config)
    yield from _adapter(config)
    yield from _data(config)
    yield from _method(config)
    yield from _optimizer(config)
    yield from _train(config)
    yield from _mesh(config, devices)


def _model(config: RunConfig) -> Iterator[Problem]:
    model = config.model
    if model.path is None and model.config is None:
        yield (
            ("model.path", "model.config"),
            "model.path: got none, expected a Hugging Face folder or hub id (or model.config for random weights).",
        )
    if model.path is not None and model.config is not None:
        yield (
            ("model.path", "model.config"),
            "model.config: got a path beside model.path, expected only one of the two: model.path brings its own"
            " architecture.",
        )
    if model.path is None and model.config is not None and model.tokenizer is None:
        yield (
            ("model.path", "model.config", "model.tokenizer"),
            "model.tokenizer: got none, expected a folder or hub id, because model.config brings no tokenizer.",
        )


def _adapter(config: RunConfig) -> Iterator[Problem]:
    adapter = config.adapter
    if adapter.kind == "none":
        for name in section_names("adapter"):
            value, default = getattr(adapter, name), getattr(AdapterConfig(), name)
            if value != default:
                yield (
                    (f"adapter.{name}", "adapter.kind"),
                    f"adapter.{name}: got {value!r} with adapter.kind 'none', which trains all weights. Did you mean"
                    " adapter.kind=lora?",
                )
        return
    from jaxalign.models.adapters import check_targets

    for problem in check_targets(adapter.targets, "adapter.targets"):
        yield ("adapter.targets",), problem


def _data(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    if not data.train:
        yield ("data.train",), "data.train: got nothing, expected a file or a datasets name."
    try:
        check_columns(data.columns)
    except ConfigError as error:
        for problem in error.problems:
            yield ("data.columns",), problem
    if data.eval and data.eval_size > 0:
        yield (
            ("data.eval", "data.eval_size"),
            f"data.eval_size: got {data.eval_size} beside data.eval, expected 0: data.eval is the held-out data.",
        )
    longest = DEFAULT_MAX_LENGTH if data.max_length is None else data.max_length
    for name, limit in (
        ("data.max_prompt_length", data.max_prompt_length),
        ("data.max_completion_length", data.max_completion_length),
    ):
        if limit is not None and limit >= longest:
            yield (
                (name, "data.max_length"),
                f"{name}: got {limit}, expected fewer tokens than data.max_length ({longest}): prompt and"
                " completion share it.",
            )
    if data.row_length is not None and data.max_length is not None and data.row_length < data.max_length:
        yield (
            ("data.row_length", "data.max_length"),
            f"data.row_length: got {data.row_length}, expected at least data.max_length ({data.max_length}).",
        )


def _method(config: RunConfig) -> Iterator[Problem]:
    from jaxalign.methods import INPUTS, get_method

    try:
        method = get_method(config.method.name)
    except ConfigError as error:
        for problem in error.problems:
            yield ("method.name",), problem
        return
    for problem in method.check_options(config.method.options):
        yield ("method.options",), problem
    if config.data.loss_on == "all" and method.layout.name != "SINGLE":
        yield (
            ("data.loss_on", "method.name"),
            f"data.loss_on: got 'all', expected 'completion': {method.name} compares completions of a prompt, and all"
            " of them share its tokens.",
        )
    elif config.data.loss_on == "all" and any(INPUTS[name].per == "token" for name in method.columns):
        yield (
            ("data.loss_on", "method.name"),
            f"data.loss_on: got 'all', expected 'completion': {method.name} reads a value for each token of a"
            " completion, of which the prompt's tokens have none.",
        )
    if method.batch_coupled and config.train.batch_size < 2:
        yield (
            ("train.batch_size", "method.name"),
            f"train.batch_size: got 1, expected at least 2: {method.name} compares the examples of a batch.",
        )

    yield from _reference(config, method.name, method.needs_reference)
    source, mode = config.reference.source, config.reference.mode
    if method.needs_live_reference and source != "columns" and (mode == "cached" or source in ("none", "prior")):
        yield (
            ("reference.mode", "reference.source", "method.name"),
            f"reference: got source {source!r} with mode {mode!r}, expected a live or moving model: {method.name}"
            " compares whole next-token distributions, of which a cache and the prior know nothing.",
        )


def _reference(config: RunConfig, method: str, needed: bool) -> Iterator[Problem]:
    source, mode = config.reference.source, config.reference.mode
    if not needed and source not in ("auto", "none"):
        yield (
            ("reference.source", "method.name"),
            f"reference.source: got {source!r}, expected auto or none: {method} uses no reference.",
        )
        return
    involved = ("reference.mode", "reference.source", "method.name")
    if (source == "none" or not needed) and mode not in ("auto", "live"):
        why = "its source is none" if needed else f"{method} uses none"
        yield involved, f"reference.mode: got {mode!r}, expected auto: there is no reference ({why})."
    elif mode == "moving" and source not in ("auto", "policy"):
        yield (
            involved,
            f"reference.mode: got 'moving' with reference.source {source!r}, expected source policy: only a copy of the"
            " policy can follow it. Use cached.",
        )
    elif mode == "live" and source == "prior":
        yield (
            involved,
            "reference.mode: got 'live' with reference.source 'prior', expected cached: the prior reads completions"
            " without their prompts, which a step does not compute.",
        )
    elif mode == "live" and source == "columns":
        yield (
            involved,
            "reference.mode: got 'live' with reference.source 'columns', expected auto: the data's numbers are not"
            " computed in a step.",
        )
    if source == "columns":
        yield from _reference_columns(config)
    quantization = config.reference.quantization
    if quantization != "none" and (source in ("none", "columns") or mode == "moving"):
        what = f"source {source!r}" if source in ("none", "columns") else f"mode {mode!r}"
        yield (
            ("reference.quantization", "reference.source", "reference.mode"),
            f"reference.quantization: got {quantization!r} with reference.{what}, expected none: only the weights of a"
            " model that never changes are rounded.",
        )
    template = config.reference.chat_template
    if template is not None and source in ("auto", "policy", "none", "prior", "columns"):
        yield (
            ("reference.chat_template", "reference.source"),
            f"reference.chat_template: got {template!r} with reference.source {source!r}, expected none: only another"
            " model has a template of its own.",
        )
    elif template is not None and mode == "live":
        yield (
            ("reference.chat_template", "reference.mode"),
            f"reference.chat_template: got {template!r} with reference.mode 'live', expected cached: a step computes"
            " the policy's own text only.",
        )
    precision = config.reference.dtype or config.model.param_dtype
    if mode == "moving" and precision == "bfloat16" and config.reference.update_rate < 2**-7:
        yield (
            ("reference.update_rate", "reference.mode", "reference.dtype"),
            f"reference.update_rate: got {config.reference.update_rate!r} for a reference kept in bfloat16, expected at"
            " least 2**-7: smaller changes would round to nothing. Use reference.dtype=float32.",
        )
    if config.reference.dtype is not None and mode != "moving":
        yield (
            ("reference.dtype", "reference.mode"),
            f"reference.dtype: got {config.reference.dtype!r} with reference.mode {mode!r}, expected none: only a"
            " moving reference is kept in a precision of its own.",
        )


def _reference_columns(config: RunConfig) -> Iterator[Problem]:
    """Where one number for each answer of a pair is not enough."""
    from jaxalign.methods import Layout, Logps, get_method

    method = get_method(config.method.name)
    why = None
    if method.layout not in (Layout.PAIRED, Layout.UNPAIRED):
        why = f"learns from {method.layout.name.lower()} data, and only pairs have these columns"
    elif method.mismatched:
        why = "puts another example's answer behind each prompt, whose log-probability no column tells"
    elif method.logps is Logps.TOKEN:
        why = "needs the reference's log-probability of each token, and the columns have one number for an answer"
    elif method.needs_live_reference:
        why = "compares whole next-token distributions, of which the columns know nothing"
    if why is not None:
        yield (
            ("reference.source", "method.name"),
            f"reference.source: got 'columns', expected policy or a model's folder or hub id: {method.name} {why}.",
        )


def _optimizer(config: RunConfig) -> Iterator[Problem]:
    optimizer = config.optimizer
    if optimizer.name == "adam" and optimizer.weight_decay:
        yield (
            ("optimizer.name", "optimizer.weight_decay"),
            f"optimizer.weight_decay: got {optimizer.weight_decay!r}, expected 0: adam has none. Use adamw.",
        )
    if optimizer.name in ("adafactor", "sgd") and optimizer.b2 is not None:
        yield (
            ("optimizer.name", "optimizer.b2"),
            f"optimizer.b2: got {optimizer.b2!r}, expected none: {optimizer.name} has no such decay to set.",
        )


def _train(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if train.epochs is not None and train.steps is not None:
        yield (
            ("train.epochs", "train.steps"),
            f"train.steps: got {train.steps} beside train.epochs {train.epochs:g}, expected only one of the two;"
            " set the other to none.",
        )
    if train.microbatches > train.batch_size:
        yield (
            ("train.batch_size", "train.microbatches"),
            f"train.microbatches: got {train.microbatches}, expected at most train.batch_size ({train.batch_size}):"
            " a part needs an example.",
        )
    evaluates = bool(config.data.eval) or config.data.eval_size > 0
    for name, value in (("train.eval_every", train.eval_every), ("train.best_metric", train.best_metric)):
        if value is not None and not evaluates:
            yield (
                (name, "data.eval", "data.eval_size"),
                f"{name}: got {value!r} without held-out data, expected data.eval or data.eval_size > 0.",
            )
    if train.best_metric is not None and not train.best_metric.startswith("eval_"):
        yield (
            ("train.best_metric",),
            f"train.best_metric: got {train.best_metric!r}, expected the name of a held-out metric, such as eval_loss."
            f" Did you mean 'eval_{train.best_metric}'?",
        )


def _mesh(config: RunConfig, devices: int | None) -> Iterator[Problem]:
    axes = {"mesh.data": config.mesh.data, "mesh.fsdp": config.mesh.fsdp, "mesh.tensor": config.mesh.tensor}
    wrong = {name: size for name, size in axes.items() if size != -1 and size < 1}
    for name, size in wrong.items():
        yield (name,), f"{name}: got {size}, expected a number of devices >= 1, or -1 for the rest."
    rest = [name for name, size in axes.items() if size == -1]
    if len(rest) > 1:
        yield tuple(rest), f"{' and '.join(rest)}: got -1, expected at most one axis that takes the rest."
    if devices is None or wrong or len(rest) > 1:
        return
    product = math.prod(size for size in axes.values() if size != -1)
    if devices % product or (not rest and product != devices):
        shape = " x ".join(f"{name.partition('.')[2]} {size}" for name, size in axes.items())
        yield tuple(axes), f"mesh: got {shape}, expected a product of {devices}, the number of devices."
