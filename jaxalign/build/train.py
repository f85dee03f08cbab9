"""A training run, from its configuration to the exported model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxalign.build.data import (
    CheckedData,
    architecture,
    check_data,
    column_names,
    lay_out,
    shuffled,
    training_steps,
)
from jaxalign.build.evaluate import make_evaluator
from jaxalign.build.manifest import Manifest
from jaxalign.build.model import make_policy, mesh_plan, settled, start_variables
from jaxalign.build.reference import RunReference, make_reference
from jaxalign.build.start_check import make_start_check
from jaxalign.config import RunConfig, to_dict
from jaxalign.data.pipeline import training_iterator
from jaxalign.methods import get_method
from jaxalign.models.export import save_pretrained
from jaxalign.models.policy import Policy
from jaxalign.training.checkpoint import Checkpoints, abstract_state
from jaxalign.training.compiled import CompiledStep
from jaxalign.training.loop import Progress, Schedule, run
from jaxalign.training.mesh import MeshPlan
from jaxalign.training.metrics import MetricSinks, read_metrics
from jaxalign.training.optimizer import make_optimizer
from jaxalign.training.state import TrainState, create_state, state_shardings
from jaxalign.training.step import make_train_step
from jaxalign.training.throughput import Throughput, measure_matmul_peak, training_flops_per_token
from jaxalign.training.trainable import full
from jaxalign.types import Variables


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
    data = check_data(config)
    plan = mesh_plan(config)
    manifest = Manifest(workdir, config, data, plan)
    with jax.set_mesh(plan.mesh), manifest:
        return _train(config, workdir, data, plan, manifest)


def _train(config: RunConfig, workdir: Path, data: CheckedData, plan: MeshPlan, manifest: Manifest) -> TrainResult:
    method = get_method(config.method.name)
    policy = make_policy(config, architecture(config), plan)
    steps = training_steps(config, data)
    variables = start_variables(config, policy, plan)
    reference = make_reference(config, data, policy, variables, plan)
    manifest.note(reference=dict(reference.facts), parameters=_count(variables))

    settings = config.optimizer
    optimizer, schedule = make_optimizer(
        settings.name,
        settings.learning_rate,
        settings.schedule,
        steps,
        settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
    )
    trainable = full()

    def start(variables: Variables) -> tuple[TrainState, Any]:
        return create_state(variables, trainable, optimizer, reference.reference, config.train.seed)

    parameter_shardings = plan.tree_shardings(policy.axes(), policy.abstract())
    shapes, untrained_shapes = jax.eval_shape(start, variables)
    shardings = state_shardings(shapes, parameter_shardings, plan.replicated)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.train.keep, best_metric=config.train.best_metric)
    batches = shuffled(data.train, method, config, reference.attach["train"])
    layout = lay_out(batches, plan.batch_size * config.train.microbatches, config.data.row_length, steps)
    columns = column_names(method, reference.reference.columns)
    packer = layout.packer(columns, plan.local_rows)
    iterator = training_iterator(batches, packer, steps)
    if checkpoints.latest_step is None:
        state, untrained = jax.jit(start, donate_argnums=0, out_shardings=(shardings, None))(variables)
        progress = Progress()
    else:
        restored = checkpoints.restore(abstract_state(shapes, shardings))
        state, untrained = restored.state, jax.tree.map(lambda _: None, untrained_shapes)
        iterator.set_state(restored.iterator)
        progress = Progress.from_dict(restored.step, restored.run)
    del variables
    frozen = {"policy": untrained, "reference": reference.variables}
    step = make_train_step(
        policy,
        method,
        reference.reference,
        trainable,
        optimizer,
        options=method.resolve_options(config.method.options),
        microbatches=config.train.microbatches,
        schedule=schedule,
        pin_gradients=lambda gradients: jax.lax.with_sharding_constraint(gradients, shardings.trainable),
    )
    compiled = CompiledStep(step, shardings, plan.replicated, layout.row_counts)
    last = _held_out(workdir, progress.step)  # of a run that is finished already
    evaluator = make_evaluator(config, data, policy, method, reference, plan)

    def evaluate(state: TrainState) -> Mapping[str, float]:
        found = evaluator(trainable.join(state.trainable, frozen["policy"]), state.reference, frozen)
        last.update({f"eval_{name}": value for name, value in found.items()})
        return found

    manifest.note(
        steps=steps,
        rows={**layout.shape._asdict(), "row_counts": list(layout.row_counts)},
        mesh=dict(plan.mesh.shape),
        resumed_at=progress.step,
    )
    with MetricSinks(
        workdir,
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
            step_for=compiled,
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
            describe=lambda identity: data.train.sources[identity],
            throughput=_throughput(config, policy, reference, plan),
        )
        manifest.note(train_seconds=time.perf_counter() - started, compiled=compiled.facts(), metrics=last)
    _export(config, workdir, data, policy, trainable, checkpoints, state, frozen, shapes, shardings)
    checkpoints.close()
    return TrainResult(policy, trainable.join(state.trainable, frozen["policy"]), last, workdir)


def _start_check(config: RunConfig, reference: RunReference, method):
    if not (config.train.check_first_step and reference.is_start and method.needs_reference):
        return None
    return make_start_check(method, config.method.options, config.model.dtype)


def _throughput(config: RunConfig, policy: Policy, reference: RunReference, plan: MeshPlan) -> Throughput:
    abstract = policy.abstract()["params"]
    used = _count(abstract) - (0 if policy.config.tied_embeddings else _count(abstract["embed"]))
    flops = training_flops_per_token(used, live_reference=bool(reference.variables))
    return Throughput(flops, measure_matmul_peak(config.model.dtype) * plan.mesh.size)


def _export(config, workdir, data, policy, trainable, checkpoints, state, frozen, shapes, shardings) -> None:
    """Writes the last state, or the best where a metric says which that is, as a Hugging Face folder."""
    if not config.train.export:
        return
    best = checkpoints.best_step
    if best is not None and best != int(state.step):
        state = checkpoints.restore(abstract_state(shapes, shardings), best).state
    save_pretrained(
        policy,
        trainable.join(state.trainable, frozen["policy"]),
        workdir / "export",
        tokenizer=data.tokenizer,
        card={
            "base_model": config.model.path if config.model.path and not Path(config.model.path).is_dir() else None,
            "method": config.method.name,
            "options": dict(config.method.options),
            "metrics": {name: round(value, 5) for name, value in _held_out(workdir, int(state.step)).items()},
            "notes": f"Trained on {len(data.train)} examples for {int(state.step)} steps of {config.train.batch_size}.",
        },
    )


def _held_out(workdir: Path, step: int) -> dict[str, float]:
    """The held-out metrics of a step, from the run's record."""
    rows = [row for row in read_metrics(workdir) if row["step"] == step]
    return {name: value for row in rows for name, value in row.items() if name.startswith("eval_")}


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
