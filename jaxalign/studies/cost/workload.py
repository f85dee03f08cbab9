"""What a stage reads: its model's architecture and its examples, from files at hand or from what a study tells of them.

Nothing here downloads anything or reads weights.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxalign import build
from jaxalign.config import RunConfig, from_dict, to_dict
from jaxalign.data.holdout import prompt_key
from jaxalign.data.row_shapes import round_length
from jaxalign.data.rows import attended_keys
from jaxalign.data.sources import expand
from jaxalign.errors import ConfigError, DataError, ModelError
from jaxalign.methods import Layout, get_method
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning.architectures import hub_architecture, read_file
from jaxalign.planning.workload import Workload
from jaxalign.studies.plan import PlannedStage
from jaxalign.studies.study import PublishedData


def architecture_of(
    stage: PlannedStage, stages: Mapping[str, PlannedStage], known: Mapping[str, Mapping[str, Any]], option: str
) -> DecoderConfig | None:
    """The architecture of a stage's policy (``model.path``) or reference (``reference.source``).

    Returns:
      None where it can be read nowhere.
    """
    root, name = _root(stage, stages, option)
    if option == "model.path" or name != stage.config.reference.source:
        if root.model.config is not None and root.model.path is None:
            return read_file(Path(root.model.config))
        name = root.model.path if option == "model.path" else name
    return None if name is None else hub_architecture(name, known)


def workload_of(
    stage: PlannedStage, stages: Mapping[str, PlannedStage], known: Mapping[str, PublishedData]
) -> Workload | None:
    """What a stage reads; None where its data are neither at hand nor known."""
    root, _ = _root(stage, stages, "model.path")
    found = _counted(stage.config, root)
    return found if found is not None else _assumed(stage.config, known)


def _root(stage: PlannedStage, stages: Mapping[str, PlannedStage], option: str) -> tuple[RunConfig, str | None]:
    """The first run of the chain that makes a model, and the folder or hub id where there is no chain."""
    if option not in stage.inputs:
        section, _, name = option.partition(".")
        return stage.config, getattr(getattr(stage.config, section), name)
    stage = stages[stage.inputs[option]]
    while "model.path" in stage.inputs:
        stage = stages[stage.inputs["model.path"]]
    return stage.config, stage.config.model.path


def _counted(config: RunConfig, root: RunConfig) -> Workload | None:
    """From the data themselves, if they and a tokenizer are on this machine."""
    method = get_method(config.method.name)
    lengths = _lengths(_key(config, root))
    if lengths is None:
        return None
    prompt, rest, held_out = lengths.prompt, lengths.completions, lengths.held_out
    if method.mismatched:
        rest = np.concatenate([rest, np.roll(rest[:, :1], 1, axis=0)], axis=1)
    total = prompt + rest.sum(axis=1)
    factor = 2 if method.layout is Layout.UNPAIRED and lengths.pairs else 1
    return Workload(
        examples=min(len(prompt), factor * (config.data.size or len(prompt))),
        held_out=held_out,
        tokens=float(total.mean()),
        scored=float((total if config.data.loss_on == "all" else rest.sum(axis=1)).mean()),
        attended=float(attended_keys(np.column_stack([prompt, rest])).mean()),
        row=round_length(config.data.row_length or int(total.max())),
        assumed=None,
    )


def _key(config: RunConfig, root: RunConfig) -> str:
    """What the lengths of a run's examples depend on: runs of a study differ in much else."""
    method = get_method(config.method.name)
    plain = set(method.columns) <= {"desirable"} and method.layout.name in _PLAIN
    of_root = {"path": root.model.path, "config": root.model.config, "chat_template": config.model.chat_template}
    of_root["tokenizer"] = config.model.tokenizer or root.model.tokenizer
    tree = {
        "model": of_root,
        "data": {**to_dict(config)["data"], "size": None, "seed": 0, "loss_on": "completion", "row_length": None},
        "method": {"name": _PLAIN[method.layout.name]} if plain else to_dict(config)["method"],
    }
    return json.dumps(tree, sort_keys=True)


_PLAIN = {"SINGLE": "sft", "PAIRED": "dpo", "UNPAIRED": "kto"}
"""A method that reads nothing but the texts, for each layout."""


class _Lengths(NamedTuple):
    prompt: np.ndarray  # [E]
    completions: np.ndarray  # [E, K]
    held_out: int
    pairs: bool  # the first two examples are the answers of one


@functools.lru_cache(maxsize=64)
def _lengths(key: str) -> _Lengths | None:
    try:
        config = from_dict(json.loads(key))
        local = all(isinstance(part, Path) for name in (*config.data.train, *config.data.eval) for part in expand(name))
        tokenizer = config.model.tokenizer or config.model.path
        if not local or tokenizer is None or not Path(tokenizer).is_dir():
            return None
        data = build.check_data(config)
    except (ConfigError, DataError, ModelError):
        return None
    lengths = np.asarray(data.train.lengths, np.float64)
    pairs = len(data.train) > 1 and prompt_key(data.train[0]) == prompt_key(data.train[1])
    return _Lengths(lengths[:, 0], lengths[:, 1:], 0 if data.held_out is None else len(data.held_out), pairs)


def _assumed(config: RunConfig, known: Mapping[str, PublishedData]) -> Workload | None:
    """From what the study tells of published data."""
    data, method = config.data, get_method(config.method.name)
    if len(data.train) != 1 or data.train[0] not in known:
        return None
    facts = known[data.train[0]]
    rows = facts.examples.get(data.train_split)
    if rows is None:
        return None
    held_out = data.eval_size
    if data.eval:
        held_out = known[data.eval[0]].examples.get(data.eval_split, 0) if data.eval[0] in known else 0
    else:
        rows -= held_out
    factor = 2 if method.layout is Layout.UNPAIRED else 1
    answers = {"SINGLE": 1, "UNPAIRED": 1}.get(method.layout.name, 2) + method.mismatched
    length = data.max_length or 1024
    prompt = min(facts.prompt, data.max_prompt_length or length)
    completion = min(facts.completion, length - prompt)
    tokens = prompt + answers * completion
    return Workload(
        examples=factor * min(rows, data.size or rows),
        held_out=factor * held_out,
        tokens=tokens,
        scored=tokens if data.loss_on == "all" else answers * completion,
        attended=prompt**2 / 2 + answers * (completion * prompt + completion**2 / 2),
        row=round_length(data.row_length or answers * length),  # with a short prompt, all answers may be as long
        assumed=f"{data.train[0]}: {facts.source}",
    )
