"""The held-out examples of a run, token by token, under a model and under the run's reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.analysis.credit import make_credit_step
from jaxalign.build.data import architecture, check_data, ordered
from jaxalign.build.model import load_folder, make_policy, mesh_plan, settled, start_variables
from jaxalign.build.reference import make_reference, plan_reference
from jaxalign.build.row_layout import lay_out
from jaxalign.config import RunConfig
from jaxalign.data.contract import DataReport
from jaxalign.data.records import Example
from jaxalign.data.rows import scored_values
from jaxalign.errors import ConfigError
from jaxalign.methods import Layout, Method, get_method
from jaxalign.models.huggingface import resolve as resolve_model


@dataclasses.dataclass(frozen=True)
class ScoredExample:
    """An example and the log-probabilities of its completions.

    Attributes:
      example: tokens, source, columns.
      names: of its completions: ``chosen``, ``rejected``, ...
      logps: of each completion ``(policy, reference)``, nats, ``[C]`` each. There may be more than names: completions
        of other examples, which the method puts behind the prompt.
    """

    example: Example
    names: list[str]
    logps: list[tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True)
class TokenLogps:
    """Some examples of a run under two models.

    Attributes:
      examples: in the order of the data.
      model: the folder or id of the policy.
      reference: that of the model it is compared with.
      reference_is_start: it is the model before training.
      trained_against: training used this reference. If not (simpo, say), it only serves the comparison.
      method: the run's.
      options: the method's, all of them.
      report: what became of the data's rows.
      tokenizer: the run's.
    """

    examples: list[ScoredExample]
    model: str
    reference: str
    reference_is_start: bool
    trained_against: bool
    method: Method
    options: Mapping[str, Any]
    report: DataReport
    tokenizer: Any


def token_logps(
    config: RunConfig, workdir: str | Path | None = None, model: str | None = None, *, count: int | None = None
) -> TokenLogps:
    """Scores the first held-out examples (the training examples, where none are held out) under policy and reference.

    A run without a reference is compared with the policy before training.

    Args:
      config: the run. Its ``model.path`` is the reference's start, as in training.
      workdir: of the run; its exported model is looked into.
      model: another Hugging Face folder or hub id with the run's tokenizer.
      count: examples; None = all.

    Raises:
      ConfigError: there is no aligned model, the reference does not know single tokens, or the configuration is wrong.
    """
    config = settled(config)
    method = get_method(config.method.name)
    folder = _folder(config, method, workdir, model, count)
    data, plan = check_data(config), mesh_plan(config)
    trained_against = method.needs_reference and config.reference.source != "none"
    if config.reference.source == "none":  # the log-probability alone would say what is common, not what was learned
        against = dataclasses.replace(config.reference, source="policy", mode="live")
        config = dataclasses.replace(config, reference=against)
    name = "eval" if data.held_out is not None else "train"
    examples, report = data.sets[name]
    wanted = len(examples) if count is None else min(count, len(examples))
    views = plan_reference(config, data, sets=(name,), whole=True)
    options = method.resolve_options(config.method.options)
    found: dict[int, list[tuple[np.ndarray, ...]]] = {}
    with jax.set_mesh(plan.mesh):
        policy = make_policy(config, architecture(config), plan, method)
        start = functools.cache(lambda: start_variables(config, policy, plan))
        reference = make_reference(config, views, policy, start, plan, donated=False)
        step = jax.jit(make_credit_step(policy, reference.reference), out_shardings=plan.replicated)
        variables = load_folder(resolve_model(folder), policy, plan)
        state = reference.reference.init(variables)
        size = min(config.evaluation.batch_size, wanted)
        batches = ordered(examples, method, size, config.data.seed, reference.attach[name])
        layout = lay_out(batches, plan.batch_size)
        packer = layout.packer(reference.reference.columns, plan.local_rows)
        for number in range(-(-wanted // size)):
            batch = packer(batches(number))
            rows = plan.put_rows(batch.rows, batch.global_rows, batch.first_row)
            scored = jax.device_get(step(variables, state, {"reference": reference.variables}, rows))
            found |= dict(scored_values(batch.rows, *map(np.asarray, scored)))
    own = config.reference.source == "policy"
    return TokenLogps(
        examples=[
            ScoredExample(examples[i], _names(method.layout, examples[i]), found[i]) for i in sorted(found)[:wanted]
        ],
        model=folder,
        reference=str(config.model.path or "the start of the run") if own else str(config.reference.source),
        reference_is_start=own,
        trained_against=trained_against,
        method=method,
        options=options,
        report=report,
        tokenizer=data.tokenizer,
    )


def _folder(config: RunConfig, method: Method, workdir: str | Path | None, model: str | None, count: int | None) -> str:
    """The folder or id of the model to look into; raises all that is wrong with what was asked for."""
    folder = model or (str(Path(workdir) / "export") if workdir else None)
    problems = []
    if folder is None:
        problems.append("--workdir: missing, expected the folder of a run, or --model with an aligned model.")
    elif model is None and not Path(folder).is_dir():
        problems.append(f"--workdir: {workdir} has no export/ to look into. Train first, or give --model.")
    if config.reference.mode == "moving":
        problems.append(
            "reference.mode: got 'moving', whose reference is not exported. Use live: the policy before training is "
            "then the reference."
        )
    if config.reference.source == "columns":
        problems.append(
            "reference.source: got 'columns', which tell nothing of single tokens, expected policy or another model."
        )
    if "policy" not in method.inputs:
        problems.append(f"method.name: {method.name} trains no language model, so its tokens have no log-probability.")
    if count is not None and count < 1:
        problems.append(f"--count: got {count}, expected at least 1.")
    if problems or folder is None:
        raise ConfigError(problems)
    return folder


def _names(layout: Layout, example: Example) -> list[str]:
    completions = len(example.completions)
    if layout is Layout.PAIRED:
        return ["chosen", "rejected"]
    if layout is Layout.UNPAIRED:
        return ["good" if example.columns["desirable"] else "bad"]
    return ["completion"] if completions == 1 else [f"completion {number + 1}" for number in range(completions)]
