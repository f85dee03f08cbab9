"""Held-out metrics of a policy."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.build.data import (
    CheckedData,
    architecture,
    check_data,
    column_names,
    ordered,
)
from jaxalign.build.model import load_folder, make_policy, mesh_plan, settled, start_variables
from jaxalign.build.reference import RunReference, make_reference, plan_reference
from jaxalign.build.row_layout import lay_out
from jaxalign.config import RunConfig
from jaxalign.data.pipeline import ordered_iterator
from jaxalign.errors import ConfigError, DataError, did_you_mean
from jaxalign.evaluation.preferences import (
    Summary,
    evaluate_preferences,
    make_eval_step,
    metric_names,
    preference_metrics,
    preference_values,
)
from jaxalign.methods import Method, get_method
from jaxalign.models.config_json import checkpoint_kind, read_config
from jaxalign.models.huggingface import resolve as resolve_model
from jaxalign.models.policy import Policy
from jaxalign.training.mesh import MeshPlan
from jaxalign.types import Variables

_log = logging.getLogger("jaxalign")

Evaluator = Callable[[Variables, Any, Mapping[str, Any], Mapping[str, Any] | None], Mapping[str, Any]]
"""``(variables, reference_state, frozen, method_state) -> metrics``."""


def make_evaluator(
    config: RunConfig,
    data: CheckedData,
    policy: Policy,
    method: Method,
    reference: RunReference,
    plan: MeshPlan,
    summary: Summary = preference_metrics,
) -> Evaluator:
    """Held-out evaluation of a run, compiled at its first use."""
    step = jax.jit(make_eval_step(policy, method, reference.reference), out_shardings=plan.replicated)
    held_out = data.held_out
    if held_out is None:
        return lambda variables, reference_state, frozen, method_state: {}
    # The last batch is smaller than the others, but takes as many rows: one program serves them all.
    batch_size = min(config.evaluation.batch_size, len(held_out))
    batches = ordered(held_out, method, batch_size, config.data.seed, reference.attach["eval"])
    layout = lay_out(batches, plan.batch_size)
    columns = column_names(method, reference.reference.columns)
    packer = layout.packer(columns, plan.local_rows)
    options = method.resolve_options(config.method.options)

    def evaluate(
        variables: Variables,
        reference_state: Any,
        frozen: Mapping[str, Any],
        method_state: Mapping[str, Any] | None,
    ) -> Mapping[str, Any]:
        rows = (plan.put_rows(b.rows, b.global_rows, b.first_row) for b in ordered_iterator(batches, packer))
        return evaluate_preferences(
            step,
            rows,
            method=method,
            options=options,
            variables=variables,
            reference_state=reference_state,
            frozen=frozen,
            method_state=method_state,
            summary=summary,
        )

    return evaluate


def check_best_metric(config: RunConfig, method: Method) -> None:
    """Whether ``train.best_metric`` is a metric that evaluation gives, told before anything is trained.

    Raises:
      ConfigError: it is none.
    """
    best = config.train.best_metric
    if best is None:
        return
    options = method.resolve_options(config.method.options)
    found = metric_names(method, options, config.reference.source != "none")
    known = sorted(f"eval_{name}" for name in found)
    if best not in known:
        raise ConfigError(
            f"train.best_metric: got {best!r}, expected one of {', '.join(known)}.{did_you_mean(best, known)}"
        )


def evaluate(config: RunConfig, workdir: str | Path | None = None, model: str | None = None) -> dict[str, float]:
    """Held-out metrics of a model under a run's data, method and reference.

    Args:
      config: the run. Its ``model.path`` is the reference's start, as in training.
      workdir: of the run; its export is evaluated, and the result written to ``WORKDIR/evaluation.json``.
      model: another Hugging Face folder or hub id to evaluate.

    Returns:
      ``eval_loss``, ``eval_rewards/accuracies``, ...

    Raises:
      DataError: the run has no held-out data.
      ConfigError: the configuration is wrong, or a moving reference cannot be had any more.
    """
    found, count = _held_out(config, workdir, model, preference_metrics)
    metrics = {f"eval_{name}": value for name, value in found.items()}
    if workdir and jax.process_index() == 0:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        folder = model or str(Path(workdir) / "export")
        record = {"model": folder, "examples": count, "metrics": metrics}
        (Path(workdir) / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return metrics


def evaluate_examples(
    config: RunConfig, workdir: str | Path | None = None, model: str | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """`evaluate`, with the examples' own values. Nothing is written.

    The arguments, and what is raised, are those of `evaluate`.

    Returns:
      the metrics; and of those that are plain means over examples the values, ``[N]`` each, by the same names.
    """

    def summary(*scored: Any) -> dict[str, Any]:
        return {"metrics": preference_metrics(*scored), "values": preference_values(*scored)}

    found, _ = _held_out(config, workdir, model, summary)
    metrics, values = ({f"eval_{name}": each for name, each in found[part].items()} for part in ("metrics", "values"))
    return metrics, values


def _held_out(
    config: RunConfig, workdir: str | Path | None, model: str | None, summary: Summary
) -> tuple[Mapping[str, Any], int]:
    """What is told of a model's scores of the held-out examples, and how many these are."""
    config = settled(config)
    if config.reference.mode == "moving":
        raise ConfigError(
            "reference.mode: got 'moving', whose reference is not exported. Evaluate with live: the policy before "
            "training is then the reference."
        )
    data = check_data(config)
    if data.held_out is None:
        raise DataError("evaluation: there are no held-out examples; set data.eval or data.eval_size.")
    folder = model or (str(Path(workdir) / "export") if workdir else None)
    if folder is not None and model is None and not Path(folder).is_dir():
        raise ConfigError(f"--workdir: {workdir} has no export/ to evaluate. Train first, or give --model.")
    plan, method = mesh_plan(config), get_method(config.method.name)
    views = plan_reference(config, data, sets=("eval",))
    with jax.set_mesh(plan.mesh):
        policy = make_policy(config, architecture(config), plan, method)
        start = functools.cache(lambda: start_variables(config, policy, plan))
        reference = make_reference(config, views, policy, start, plan, donated=False)
        variables = start() if folder is None else load_folder(resolve_model(folder), policy, plan)
        if folder is not None:
            _warn_of_random_head(resolve_model(folder), policy, method)
        evaluator = make_evaluator(config, data, policy, method, reference, plan, summary)
        found = evaluator(
            variables,
            reference.reference.init(variables),
            {"reference": reference.variables},
            _method_state(workdir) if model is None else None,
        )
    return found, len(data.held_out)


def _warn_of_random_head(folder: Path, policy: Policy, method: Method) -> None:
    """An auxiliary head is dropped at export, and a language model never had one."""
    if policy.head_outputs and checkpoint_kind(read_config(folder)) == "causal_lm":
        _log.warning(
            "%s has no head such as %s trains. One drawn at random takes its place: what depends on it, the loss "
            "included, tells nothing of the model. What a run measured of its own head is in its metrics.jsonl.",
            folder,
            method.name,
        )


def _method_state(workdir: str | Path | None) -> dict[str, jax.Array] | None:
    """The method's running statistics at the end of the run in this folder, if there is one."""
    path = Path(workdir) / "manifest.json" if workdir else None
    if path is None or not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8")).get("method_state") or {}
    return {name: jnp.float32(value) for name, value in saved.items()} or None
