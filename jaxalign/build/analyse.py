"""Looking into a trained model with the parts of its run: the credit of each token."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.analysis.credit import Credited, CreditMap, credited, make_credit_step
from jaxalign.analysis.own_reward import is_dpo_reward
from jaxalign.build.data import architecture, check_data, lay_out, ordered
from jaxalign.build.model import load_folder, make_policy, mesh_plan, settled, start_variables
from jaxalign.build.reference import make_reference, plan_reference
from jaxalign.config import RunConfig
from jaxalign.data.records import Example
from jaxalign.data.rows import scored_values
from jaxalign.data.tokenizer import token_texts
from jaxalign.errors import ConfigError
from jaxalign.methods import Layout, get_method
from jaxalign.models.huggingface import resolve as resolve_model


def token_credit(
    config: RunConfig, workdir: str | Path | None = None, model: str | None = None, *, count: int = 8
) -> CreditMap:
    """The credit of each token of the first held-out examples (of the training examples, where none are held out).

    A run without a reference is measured against the policy before training.

    Args:
      config: the run. Its ``model.path`` is the reference's start, as in training.
      workdir: of the run; its exported model is looked into.
      model: another Hugging Face folder or hub id with the run's tokenizer.
      count: examples.

    Raises:
      ConfigError: there is no aligned model, the reference does not know single tokens, or the configuration is wrong.
    """
    config = settled(config)
    method = get_method(config.method.name)
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
        problems.append(f"method.name: {method.name} trains no language model, so tokens have no credit.")
    if count < 1:
        problems.append(f"--count: got {count}, expected at least 1.")
    if problems or folder is None:
        raise ConfigError(problems)

    data, plan = check_data(config), mesh_plan(config)
    trained_against = method.needs_reference and config.reference.source != "none"
    if config.reference.source == "none":  # the log-probability alone would say what is common, not what was learned
        against = dataclasses.replace(config.reference, source="policy", mode="live")
        config = dataclasses.replace(config, reference=against)
    name = "eval" if data.held_out is not None else "train"
    examples = data.sets[name][0]
    views = plan_reference(config, data, sets=(name,))
    options = method.resolve_options(config.method.options)
    option, beta = _beta(options)
    found: dict[int, Credited] = {}
    with jax.set_mesh(plan.mesh):
        policy = make_policy(config, architecture(config), plan, method)
        start = functools.cache(lambda: start_variables(config, policy, plan))
        reference = make_reference(config, views, policy, start, plan, donated=False)
        step = jax.jit(make_credit_step(policy, reference.reference), out_shardings=plan.replicated)
        variables = load_folder(resolve_model(folder), policy, plan)
        state = reference.reference.init(variables)
        size = min(config.evaluation.batch_size, count, len(examples))
        batches = ordered(examples, method, size, config.data.seed, reference.attach[name])
        layout = lay_out(batches, plan.batch_size)
        packer = layout.packer(reference.reference.columns, plan.local_rows, layout.row_counts[-1:])
        for number in range(len(batches)):
            if len(found) >= count:
                break
            batch = packer(batches(number))
            rows = plan.put_rows(batch.rows, batch.global_rows, batch.first_row)
            scored = jax.device_get(step(variables, state, {"reference": reference.variables}, rows))
            for identity, logps in scored_values(batch.rows, *map(np.asarray, scored)):
                example = examples[identity]
                found[identity] = credited(
                    logps,
                    beta=beta,
                    names=_names(method.layout, example),
                    tokens=[list(token_texts(ids.tolist(), data.tokenizer)) for ids in example.completions],
                    prompt=data.tokenizer.decode(example.prompt.tolist()),
                    source=example.source,
                )
    own = config.reference.source == "policy"
    source = str(config.model.path or "the start of the run") if own else str(config.reference.source)
    return CreditMap(
        model=folder,
        reference=source,
        method=method.name,
        beta=beta,
        examples=tuple(found[identity] for identity in sorted(found)[:count]),
        beta_option=option,
        trained_against=trained_against,
        reference_is_start=own,
        is_method_reward=trained_against and is_dpo_reward(method, options, beta),
    )


def _beta(options: Mapping[str, Any]) -> tuple[str | None, float]:
    """The scale of the rewards and its option: the method's beta, a combination's first, or 1 where there is none."""
    betas = ((name, float(value)) for name, value in options.items() if re.search(r"(^|_)beta$", name))
    return next(betas, (None, 1.0))


def _names(layout: Layout, example: Example) -> list[str]:
    completions = len(example.completions)
    if layout is Layout.PAIRED:
        return ["chosen", "rejected"]
    if layout is Layout.UNPAIRED:
        return ["good" if example.columns["desirable"] else "bad"]
    return ["completion"] if completions == 1 else [f"completion {number + 1}" for number in range(completions)]
