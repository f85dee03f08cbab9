"""A training run, from its configuration to the exported model."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.build.data import (
    CheckedData,
    architecture,
    check_data,
    column_names,
    export_tokenizer,
    misgivings,
    shuffled,
    training_steps,
)
from jaxalign.build.evaluate import check_best_metric, make_evaluator
from jaxalign.build.manifest import Manifest, check_same_configuration, check_same_data
from jaxalign.build.model import make_policy, mesh_plan, settled, start_variables
from jaxalign.build.reference import RunReference, make_reference, plan_reference
from jaxalign.build.reference_views import View
from jaxalign.build.row_layout import lay_out, row_work
from jaxalign.build.start_check import make_start_check
from jaxalign.build.step_parts import step_parts
from jaxalign.config import RunConfig, to_dict
from jaxalign.data.pipeline import training_iterator
from jaxalign.data.prompts import end_token_ids
from jaxalign.errors import counted
from jaxalign.methods import Method, get_method
from jaxalign.models.export import save_pretrained
from jaxalign.models.padding import padding_token
from jaxalign.models.policy import Policy
from jaxalign.planning import flops
from jaxalign.training.checkpoint import Checkpoints, abstract_state
from jaxalign.training.compiled import CompiledStep
from jaxalign.training.loop import Progress, Schedule, run
from jaxalign.training.matmul_peak import matmul_peak
from jaxalign.training.mesh import MeshPlan
from jaxalign.training.metrics import MetricSinks, read_metrics
from jaxalign.training.readings import wants_logps
from jaxalign.training.scoring import score
from jaxalign.training.state import Frozen, TrainState
from jaxalign.training.throughput import Throughput
from jaxalign.training.trainable import Trainable
from jaxalign.types import Rows, Variables

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run leaves in memory.

    Attributes:
      policy: the policy's functions.
      variables: its weights after the last step, on the mesh.
      metrics: the last held-out metrics (``eval_loss``, ...); empty without held-out data.
      workdir: where everything else is.
    """

    policy: Policy
    variables: Variables
    metrics: Mapping[str, float]
    workdir: Path


def train(config: RunConfig, workdir: str | Path) -> TrainResult:
    """Runs, or goes on with, a training run.

    Args:
      config: the run.
      workdir: its folder: ``config.json``, ``manifest.json``, ``metrics.jsonl``, ``checkpoints/``, ``export/``. If it
        holds checkpoints of this configuration, the run goes on from the latest.

    Raises:
      ConfigError, DataError, NumericsError: see `jaxalign.errors`.
      Interrupted: after a signal, with everything saved.
    """
    config = settled(config)
    workdir = Path(workdir)
    resuming = check_same_configuration(workdir, config)
    method = get_method(config.method.name)
    check_best_metric(config, method)
    data = check_data(config)
    warnings: dict[str, list[str]] = {}
    for name, (_, report) in data.sets.items():
        for warning in report.warnings:
            warnings.setdefault(warning, []).append(f"{name} data")
    for warning, of in warnings.items():
        _log.warning("%s: %s", of[0] if len(of) == 1 else "data", warning)  # one file may be the source of both
    for doubt in misgivings(config, data):
        _log.warning("%s", doubt)
    if resuming:
        check_same_data(workdir, data)
    views = plan_reference(config, data)
    plan = mesh_plan(config)
    with jax.set_mesh(plan.mesh), Manifest(workdir, config, data, plan) as manifest:
        policy = make_policy(config, architecture(config), plan, method)
        if config.train.export and not policy.language_head and policy.head_outputs == 1:
            tokenizer = export_tokenizer(config, data.tokenizer)
            padding_token(policy.config, tokenizer, end_token_ids(tokenizer))  # or it could not be exported
        return _train(_Run(config, workdir, data, method, plan, policy), views, manifest)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all parts of a run read."""

    config: RunConfig
    workdir: Path
    data: CheckedData
    method: Method
    plan: MeshPlan
    policy: Policy


def _train(this: _Run, views: Mapping[str, View], manifest: Manifest) -> TrainResult:
    config, data, method, plan, policy = this.config, this.data, this.method, this.plan, this.policy
    steps = training_steps(config, data)
    checkpoints = Checkpoints(
        this.workdir / "checkpoints", keep=config.train.keep, best_metric=config.train.best_metric
    )
    fresh = checkpoints.latest_step is None
    start = functools.cache(lambda: start_variables(config, policy, plan))
    adapted = policy.adapter is not None
    reference = make_reference(config, views, policy, start, plan, donated=fresh, shared=adapted)
    manifest.note_reference(reference.facts)

    parts = step_parts(config, method, policy, reference.reference, plan, steps)
    trainable, shardings = parts.trainable, parts.shardings
    batches = shuffled(data.train, method, config, reference.attach["train"])
    multiple = plan.batch_size * config.train.microbatches
    work = row_work(policy.config, config.model.attention)
    layout = lay_out(batches, multiple, config.data.row_length, steps, work=work)
    packer = layout.packer(column_names(method, reference.reference.columns), plan.local_rows)
    iterator = training_iterator(batches, packer, steps)
    if fresh:
        where = (shardings, parts.untrained_shardings)
        state, untrained = jax.jit(parts.begin, donate_argnums=0, out_shardings=where)(start())
        progress = Progress()
    else:
        restored = checkpoints.restore(abstract_state(parts.shapes, shardings))
        state, untrained = restored.state, trainable.split(start())[1] if jax.tree.leaves(parts.untrained) else {}
        iterator.set_state(restored.iterator)
        progress = Progress.from_dict(restored.step, restored.run)
    start.cache_clear()  # the weights it gave are donated, or only the reference's from here on
    frozen = {"policy": untrained, "reference": reference.variables}
    compiled = CompiledStep(
        parts.step, shardings, plan.replicated, lambda: packer.sizes(batches.example(*batches.ids(0)[0]))
    )
    last = _held_out(this.workdir, progress.step)  # of a run that is finished already
    evaluator = make_evaluator(config, data, policy, method, reference, plan)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        variables = trainable.join(state.trainable, frozen["policy"])
        found = evaluator(variables, state.reference, frozen, state.method_state)
        last.update({f"eval_{name}": value for name, value in found.items()})
        return found

    @functools.partial(jax.jit, out_shardings=plan.replicated)
    def check_weights(state: TrainState, frozen: Frozen, rows: Rows) -> jax.Array:
        variables = trainable.join(state.trainable, frozen["policy"])
        hidden = policy.hidden(variables, rows)
        told = score(policy, variables, rows, hidden=hidden).sums if wants_logps(method) else hidden
        return jnp.isfinite(told).all()

    manifest.note(
        steps=steps,
        parameters=_count(policy.abstract()),
        trained=_count(parts.shapes.trainable),
        rows=layout.facts(),
        mesh=dict(plan.mesh.shape),
        resumed_at=progress.step,
    )
    with MetricSinks(
        this.workdir,
        total_steps=steps,
        step=progress.step,
        tensorboard=config.logging.tensorboard,
        wandb=config.logging.wandb,
        progress=config.logging.progress,
        config=to_dict(config),
    ) as sinks:
        started = time.perf_counter()
        state = run(
            state,
            frozen,
            step=compiled,
            iterator=iterator,
            put_rows=lambda batch: plan.put_rows(batch.rows, batch.global_rows, batch.first_row),
            schedule=Schedule(
                steps,
                len(data.train) / config.train.batch_size,
                config.train.log_every,
                config.train.eval_every,
                config.train.checkpoint_every,
            ),
            progress=progress,
            sinks=sinks,
            checkpoints=checkpoints,
            evaluate=evaluate if data.held_out is not None else None,
            check_first=_start_check(config, reference, method),
            check_weights=check_weights,
            describe=lambda identity: data.train.sources[identity],
            throughput=_throughput(this, reference),
        )
        manifest.note(train_seconds=time.perf_counter() - started, compiled=compiled.facts(), metrics=last)
    manifest.note(method_state=_exported_statistics(checkpoints, state, shardings, progress.step))
    trained = trainable.join(state.trainable, frozen["policy"])
    if config.train.export:
        step = _export(this, checkpoints, trained, trainable, shardings.trainable, progress.step)
        manifest.note(exported_step=step)
    checkpoints.close()
    return TrainResult(policy, trained, last, this.workdir)


def _start_check(config: RunConfig, reference: RunReference, method):
    if not (config.train.check_first_step and reference.is_start and method.needs_reference):
        return None
    return make_start_check(method, config.method.options, config.model.dtype)


def _throughput(this: _Run, reference: RunReference) -> Throughput:
    decoder = this.policy.config
    step = functools.partial(
        flops.step, decoder, reference.computed, factors=flops.trained_factors(this.config, decoder)
    )
    token, scored, key = (
        step(tokens=tokens, scored=scored, attended=attended)
        for tokens, scored, attended in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    costs = token, scored if this.policy.language_head else 0.0, key
    return Throughput(costs, matmul_peak(this.config.model.dtype) * this.plan.mesh.size)


def _export(
    this: _Run, checkpoints: Checkpoints, variables: Variables, trainable: Trainable, shardings: Any, step: int
) -> int:
    """Writes the last weights, or the best where a metric says which these are, as a Hugging Face folder.

    Returns:
      the step whose weights they are.
    """
    config, best = this.config, checkpoints.best_step
    if best is not None and best != step:
        step = best
        abstract = abstract_state(trainable.split(this.policy.abstract())[0], shardings)
        variables = trainable.join(checkpoints.restore_trained(abstract, best), trainable.split(variables)[1])
    path = config.model.path
    tokenizer = export_tokenizer(config, this.data.tokenizer)
    save_pretrained(
        this.policy,
        variables,
        this.workdir / "export",
        tokenizer=tokenizer,
        end_tokens=end_token_ids(tokenizer),
        card={
            "base_model": path if path and not Path(path).is_dir() else None,
            "method": config.method.name,
            "options": dict(config.method.options),
            "metrics": {name: round(value, 5) for name, value in _held_out(this.workdir, step).items()},
            "notes": f"Trained on {counted(len(this.data.train), 'example')} for {counted(step, 'step')} of "
            f"{config.train.batch_size}.",
        },
    )
    return step


def _exported_statistics(checkpoints: Checkpoints, state: TrainState, shardings: TrainState, step: int) -> dict:
    """The method's running statistics at the step whose weights are exported."""
    kept, best = state.method_state, checkpoints.best_step
    if kept and best is not None and best != step:
        kept = checkpoints.restore_parts({"method_state": abstract_state(kept, shardings.method_state)}, best)
        kept = kept["method_state"]
    return {name: float(value) for name, value in kept.items()}


def _held_out(workdir: Path, step: int) -> dict[str, float]:
    """The held-out metrics of a step, from the run's record."""
    rows = [row for row in read_metrics(workdir) if row["step"] == step]
    found = {name: value for row in rows for name, value in row.items() if name.startswith("eval_")}
    return {name: value for name, value in found.items() if value is not None}


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
