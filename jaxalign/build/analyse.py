"""Looking into a trained model with the parts of its run: the credit of each token."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.analysis.credit import Credited, CreditMap, by_example, credited, make_credit_step
from jaxalign.build.data import architecture, check_data, lay_out, ordered
from jaxalign.build.model import load_folder, make_policy, mesh_plan, settled, start_variables
from jaxalign.build.reference import make_reference, plan_reference
from jaxalign.config import RunConfig
from jaxalign.data.tokenizer import token_texts
from jaxalign.errors import ConfigError
from jaxalign.methods import Layout, get_method
from jaxalign.models.huggingface import resolve as resolve_model


def token_credit(
    config: RunConfig, workdir: str | Path | None = None, model: str | None = None, *, count: int = 8
) -> CreditMap:
    """The credit of each token of the first held-out examples (of the training examples, where none are held out).

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
    if "policy" not in method.inputs:
        problems.append(f"method.name: {method.name} trains no language model, so tokens have no credit.")
    if count < 1:
        problems.append(f"--count: got {count}, expected at least 1.")
    if problems or folder is None:
        raise ConfigError(problems)

    data, plan = check_data(config), mesh_plan(config)
    name = "eval" if data.held_out is not None else "train"
    examples = data.sets[name][0]
    views = plan_reference(config, data, sets=(name,))
    beta = _beta(method.resolve_options(config.method.options))
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
            for identity, logps in by_example(np.asarray(scored[0]), np.asarray(scored[1]), batch.rows):
                example = examples[identity]
                found[identity] = credited(
                    logps,
                    beta=beta,
                    names=_names(method.layout, len(example.completions)),
                    tokens=[list(token_texts(ids.tolist(), data.tokenizer)) for ids in example.completions],
                    prompt=data.tokenizer.decode(example.prompt.tolist()),
                    source=example.source,
                )
    own = config.reference.source == "policy"
    source = str(config.model.path or "the start of the run") if own else str(config.reference.source)
    return CreditMap(
        model=folder,
        reference=None if reference.reference.absent else source,
        method=method.name,
        beta=beta,
        examples=tuple(found[identity] for identity in sorted(found)[:count]),
    )


def _beta(options: Mapping[str, Any]) -> float:
    """The scale of the rewards: the method's beta, that of a combination's first term, or 1 where there is none."""
    return next((float(value) for name, value in options.items() if re.search(r"(^|_)beta$", name)), 1.0)


def _names(layout: Layout, completions: int) -> list[str]:
    if layout is Layout.PAIRED:
        return ["chosen", "rejected"]
    return ["completion"] if completions == 1 else [f"completion {number + 1}" for number in range(completions)]
