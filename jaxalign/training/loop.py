"""The loop: the one impure file of training. It feeds compiled steps, watches their numbers, and saves.

The host never waits for the step it just started: metrics are read a few steps late, and only a log point, an
evaluation or a checkpoint catches up.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.data.pipeline import PackedBatch
from jaxalign.errors import NumericsError
from jaxalign.training.checkpoint import Checkpoints
from jaxalign.training.mesh import programs_in_flight
from jaxalign.training.metrics import Averages, MetricSinks
from jaxalign.training.state import Frozen, TrainState
from jaxalign.training.step import StepOutput
from jaxalign.training.throughput import Throughput
from jaxalign.types import Rows


class Interrupted(Exception):
    """SIGTERM or SIGINT arrived; the run is saved up to `step` and can be resumed."""

    def __init__(self, step: int):
        self.step = step
        super().__init__(f"interrupted after step {step}; run the same command again to go on from there")


@dataclass
class Progress:
    """What the host counts; saved with every checkpoint.

    Attributes:
      tokens: unique tokens trained on so far.
      averages: metrics of the steps since the last log point, so that a resumed run logs the same means.
      step: optimizer steps taken.
    """

    step: int = 0
    tokens: int = 0
    averages: Averages = field(default_factory=Averages)

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"tokens": self.tokens, "averages": self.averages.as_dict()}

    @classmethod
    def from_dict(cls, step: int, saved: Mapping[str, Any]) -> Progress:
        """From a checkpoint."""
        return cls(step, saved["tokens"], Averages.from_dict(saved["averages"]))


@dataclass(frozen=True)
class Schedule:
    """When the loop does what, in optimizer steps. None = only after the last step."""

    steps: int
    steps_per_epoch: float
    log_every: int
    eval_every: int | None
    checkpoint_every: int | None

    def due(self, every: int | None, step: int) -> bool:
        """Whether something that happens every so many steps happens after this one."""
        return step == self.steps or (every is not None and step % every == 0)


def run(
    state: TrainState,
    frozen: Frozen,
    *,
    step_for: Callable[[Rows], Callable[..., tuple[TrainState, StepOutput]]],
    iterator: Any,
    put_rows: Callable[[PackedBatch], Rows],
    schedule: Schedule,
    progress: Progress,
    sinks: MetricSinks,
    checkpoints: Checkpoints | None,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    check_first: Callable[[PackedBatch, StepOutput], None] | None = None,
    check_weights: Callable[[TrainState, Frozen, Rows], jax.Array] | None = None,
    describe: Callable[[int], str] = str,
    throughput: Throughput | None = None,
) -> TrainState:
    """Trains from `progress.step` to `schedule.steps`.

    Args:
      state: donated to the first step.
      frozen: read by every step.
      step_for: the compiled step for rows of this shape.
      iterator: a grain iterator of `PackedBatch`, at `progress.step`.
      put_rows: moves a batch's rows to the devices.
      schedule: when to log, evaluate and save.
      progress: where to start; updated in place.
      sinks: where metrics go.
      checkpoints: where states go, or None to keep none.
      evaluate: held-out metrics of a state, without the ``eval_`` prefix.
      check_first: called with the first step's batch and output when starting from step 0.
      check_weights: whether a state gives finite log-probabilities; asked before it is saved without evaluation.
      describe: an example's id -> how to name it in messages.
      throughput: measures tokens and pairs per second.

    Raises:
      NumericsError: a loss or gradient is not finite, or `check_first` objects.
      Interrupted: after a signal, once everything is saved.
    """
    pending: deque[tuple[int, PackedBatch, StepOutput]] = deque()

    def read(limit: int) -> None:
        """Reads outputs until at most `limit` are unread."""
        while len(pending) > limit:
            step, batch, output = pending.popleft()
            metrics, finite = jax.device_get((output.metrics, output.finite))
            if not finite:
                raise _not_finite(step, batch, output, metrics, describe)
            if step == 1 and check_first is not None:
                check_first(batch, output)
            progress.averages.add(metrics)

    def save(metrics: Mapping[str, float] | None) -> None:
        read(0)  # a state that has seen a NaN is never written
        # The last update has been seen by no forward pass yet. An evaluation is one, and stops at a NaN itself.
        if metrics is None and check_weights is not None and not check_weights(state, frozen, rows):
            raise NumericsError(
                f"step {progress.step}: the weights after this step give log-probabilities that are not finite. They "
                "are not saved; the last good checkpoint is kept. Try a smaller learning rate."
            )
        if checkpoints is not None and checkpoints.latest_step != progress.step:
            checkpoints.save(progress.step, state, iterator.get_state(), progress.as_dict(), metrics)

    in_flight = programs_in_flight()
    best_rule = checkpoints is not None and checkpoints.best_metric is not None
    with _stop_signal() as stopped, _saved(checkpoints):
        while progress.step < schedule.steps:
            waited = time.perf_counter()
            batch = next(iterator)
            rows = put_rows(batch)
            waited = time.perf_counter() - waited
            state, output = step_for(rows)(state, frozen, rows)
            progress.step += 1
            progress.tokens += batch.tokens
            pending.append((progress.step, batch, output))
            read(in_flight)
            if throughput is not None:
                sizes = batch.places, batch.scored, batch.slots
                throughput.add(batch.tokens, len(batch.example_ids), waited, *sizes)

            step = progress.step
            sinks.advance(step)
            if schedule.due(schedule.log_every, step) or step == 1:
                read(0)
                row = progress.averages.means()
                progress.averages.clear()
                extra = throughput.rates() if throughput is not None else {}
                sinks.write(
                    step, {**row, "epoch": step / schedule.steps_per_epoch, "num_tokens": progress.tokens, **extra}
                )
            evaluated = None
            if evaluate is not None and schedule.due(schedule.eval_every, step):
                read(0)
                evaluated = {f"eval_{name}": value for name, value in evaluate(state).items()}
                sinks.write(step, evaluated)
                if throughput is not None:
                    throughput.restart()
            if schedule.due(schedule.checkpoint_every, step) or (best_rule and evaluated is not None):
                save(evaluated)
            if _should_stop(stopped, step):
                save(evaluated)
                raise Interrupted(step)
    return state


@contextmanager
def _saved(checkpoints: Checkpoints | None) -> Iterator[None]:
    """On leaving, also with an error, waits until every checkpoint that was started is on disk.

    Not for KeyboardInterrupt: who asks twice does not want to wait.
    """
    try:
        yield
    except Exception:
        if checkpoints is not None:
            checkpoints.wait()
        raise
    if checkpoints is not None:
        checkpoints.wait()


def _should_stop(stopped: threading.Event, step: int) -> bool:
    """Whether every process should stop after this step.

    Several processes must agree, so JAX's preemption service decides there: it hears SIGTERM on any host.
    """
    if jax.process_count() == 1:
        return stopped.is_set()
    return multihost_utils.reached_preemption_sync_point(step)


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets. A second SIGINT interrupts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield stopped
        return

    def stop(number, frame):
        if number == signal.SIGINT and stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _not_finite(step, batch: PackedBatch, output: StepOutput, metrics, describe) -> NumericsError:
    """Says which number went wrong first, and in which examples."""
    problems = []
    total, weight = metrics["loss"]
    broken = [name for name, (value, _) in metrics.items() if not np.isfinite(value)]
    problems.append(
        f"step {step}: the loss is {float(total / weight)} and the gradient's norm is "
        f"{float(metrics['grad_norm'][0])}, expected finite numbers. Not finite: "
        f"{', '.join(broken) or 'the update that the optimizer made of it'}."
    )
    for name, sums in (("policy", output.policy_sums), ("reference", output.reference_sums)):
        if not sums.is_fully_replicated and not sums.is_fully_addressable:
            continue
        bad = ~np.isfinite(np.asarray(sums)).all(axis=-1)
        ids = batch.rows.columns["example_id"]
        if bad.shape == ids.shape and bad.any():
            rows = ", ".join(describe(int(i)) for i in ids[bad][:5] if i >= 0)
            problems.append(f"The {name}'s log-probabilities are not finite for {int(bad.sum())} examples: {rows}.")
    if len(problems) == 1:
        ids, more = batch.example_ids[:5], ", ..." if len(batch.example_ids) > 5 else ""
        problems.append(f"The step's examples: {', '.join(map(describe, ids))}{more}.")
    problems.append(
        "No checkpoint was written after this step; the last good one is kept. Try a smaller learning rate, "
        "gradient clipping (optimizer.clip_norm), or model.dtype=float32."
    )
    return NumericsError(problems)
