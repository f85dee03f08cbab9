"""Checkpoints of a run: its state, its place in the data, and what the host counts. The only file that knows Orbax.

The place in the data is the same on every process (each works out the whole plan and writes its own rows), so it is
one small JSON and a run may go on with another number of processes or another mesh.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxalign.errors import ConfigError
from jaxalign.training.state import TrainState


class Restored(NamedTuple):
    """
    Attributes:
      step: optimizer steps that the state has taken.
      state: on the mesh that was asked for.
      iterator: for the data iterator's ``set_state``.
      run: what `Checkpoints.save` was given.
    """

    step: int
    state: TrainState
    iterator: dict[str, Any]
    run: dict[str, Any]


def lower_is_better(metric: str) -> bool:
    """Whether a held-out metric is a loss (also of one term, ``eval_loss/nll``) or a KL divergence."""
    return not {"loss", "kl"}.isdisjoint(re.split("[_/]", metric))


class Checkpoints:
    """The checkpoints under one folder. Saving is asynchronous and atomic: a killed process leaves the last whole one.

    Args:
      folder: ``WORKDIR/checkpoints``.
      keep: latest checkpoints kept.
      best_metric: also keep the best by this held-out metric. Losses and KL are better when lower, all else when
        higher.
    """

    def __init__(self, folder: str | Path, *, keep: int = 1, best_metric: str | None = None):
        self.best_metric = best_metric
        policies: list[Any] = [LatestN(keep)]
        read = None
        lower = best_metric is not None and lower_is_better(best_metric)
        if best_metric is not None:
            read = operator.itemgetter(best_metric)
            policies.append(BestN(get_metric_fn=read, reverse=lower, n=1, keep_checkpoints_without_metrics=False))
        self._lower_is_better = lower
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                best_fn=read,  # without it, Orbax keeps the metrics in memory only
                best_mode="min" if lower else "max",
                cleanup_tmp_directories=True,
                step_prefix=None,
            ),
        )

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: Mapping[str, Any],
        run: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts writing a checkpoint and returns once the device arrays are copied.

        Args:
          step: optimizer steps taken.
          state: the train state.
          iterator: the data iterator's state.
          run: host counters (JSON).
          metrics: held-out metrics of this step, for the best-by-metric rule.
        """
        chosen = None
        if self.best_metric is not None and metrics is not None:
            if self.best_metric not in metrics:
                raise ConfigError(
                    f"train.best_metric: got {self.best_metric!r}, expected one of {', '.join(sorted(metrics))}."
                )
            chosen = {self.best_metric: float(metrics[self.best_metric])}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                iterator=ocp.args.JsonSave(dict(iterator)),
                run=ocp.args.JsonSave(dict(run)),
            ),
            metrics=chosen,
            force=True,
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step kept as the best, or None without a metric."""
        if self.best_metric is None:
            return None
        scored = {}
        for step in self._manager.all_steps():
            metrics = self._manager.metrics(step)
            if metrics:
                scored[step] = metrics[self.best_metric]
        if not scored:
            return None
        return (min if self._lower_is_better else max)(scored, key=lambda step: scored[step])

    def restore(self, abstract: TrainState, step: int | None = None) -> Restored:
        """Reads a checkpoint straight onto the devices.

        Args:
          abstract: shapes, dtypes and shardings of the state (`jax.ShapeDtypeStruct` leaves); the mesh may differ
            from the one that wrote it.
          step: which one; the latest by default.
        """
        step = self._manager.latest_step() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no checkpoint under {self._manager.directory}")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                iterator=ocp.args.JsonRestore(),
                run=ocp.args.JsonRestore(),
            ),
        )
        return Restored(step, restored["state"], restored["iterator"], restored["run"])

    def restore_trained(self, abstract: Any, step: int | None = None) -> Any:
        """Reads only the trained variables of a checkpoint, without the optimizer's state.

        Args:
          abstract: their shapes, dtypes and shardings.
          step: which one; the latest by default.
        """
        return self.restore_parts({"trainable": abstract}, step)["trainable"]

    def restore_parts(self, abstract: Mapping[str, Any], step: int | None = None) -> dict[str, Any]:
        """Reads only these parts of a checkpoint's state.

        Args:
          abstract: attribute of `TrainState` -> shapes, dtypes and shardings.
          step: which checkpoint; the latest by default.
        """
        step = self._manager.latest_step() if step is None else step
        wanted = ocp.args.PyTreeRestore(
            item=dict(abstract),
            restore_args=ocp.checkpoint_utils.construct_restore_args(dict(abstract)),
            partial_restore=True,
        )
        # A reader of its own: a manager that has saved or restored whole states takes no other arguments for them.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(self._manager.directory / str(step) / "state", args=wanted)

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the threads."""
        self._manager.close()


def abstract_state(state: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a state, or of a part of one, with the shardings it shall have."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )
