"""The loop: the one impure file of training. It feeds compiled steps, watches their numbers, and saves.

The host never waits for the step it just started. The next batch is packed and on its way to the devices while they
compute; what a step tells is read, checked and logged a few steps late; only an evaluation, a checkpoint or the end
catches up.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.data.pipeline import PackedBatch
from jaxalign.errors import NumericsError, some
from jaxalign.training.checkpoint import Checkpoints
from jaxalign.training.compiled import Told
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


class _Fed(NamedTuple):
    """A batch for a step: on the host, on the devices, and the seconds that it took until it was there."""

    batch: PackedBatch
    rows: Rows
    seconds: float


class _Feed:
    """The batches in order, one of them ahead. Its state is the place of what was taken, whatever lies ahead."""

    def __init__(self, iterator: Any, put_rows: Callable[[PackedBatch], Rows]):
        self._iterator = iterator
        self._put_rows = put_rows
        self._ahead: _Fed | None = None
        self._state: Any = None

    def prepare(self) -> _Fed:
        """Packs the next batch and sends it to the devices, unless that is done already."""
        if self._ahead is None:
            self._state = self._iterator.get_state()
            started = time.perf_counter()
            batch = next(self._iterator)
            self._ahead = _Fed(batch, self._put_rows(batch), time.perf_counter() - started)
        return self._ahead

    def take(self) -> _Fed:
        """The next batch."""
        fed, self._ahead = self.prepare(), None
        return fed

    def state(self) -> Any:
        """The iterator's state behind the last batch that was taken."""
        return self._iterator.get_state() if self._ahead is None else self._state


class _Started(NamedTuple):
    """A step under way: its number and batch, the unique tokens up to it, and seconds lost."""

    step: int
    batch: PackedBatch
    told: Told
    tokens: int
    waited: float


def run(
    state: TrainState,
    frozen: Frozen,
    *,
    step: Callable[[TrainState, Frozen, Rows], tuple[TrainState, Told]],
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
      step: the compiled step, see `jaxalign.training.compiled`.
      iterator: a grain iterator of `PackedBatch`, at `progress.step`.
      put_rows: moves a batch's rows to the devices.
      schedule: when to log, evaluate and save.
      progress: where to start; updated in place.
      sinks: where metrics go.
      checkpoints: where states go, or None to keep none.
      evaluate: held-out metrics of a state, without the ``eval_`` prefix.
      check_first: called with the first step's batch and output when starting from step 0.
      check_weights: whether a state gives finite log-probabilities for some rows; asked before it is saved without
        evaluation, always with the same rows.
      describe: an example's id -> how to name it in messages.
      throughput: measures tokens and pairs per second.

    Raises:
      NumericsError: a loss or gradient is not finite, or `check_first` objects.
      Interrupted: after a signal, once everything is saved.
    """
    pending: deque[_Started] = deque()
    feed = _Feed(iterator, put_rows)

    def read(limit: int) -> None:
        """Reads what steps told until at most `limit` are unread, and logs."""
        while len(pending) > limit:
            done = pending.popleft()
            output = done.told.read()
            if not output.finite:
                raise _not_finite(done.step, done.batch, output, output.metrics, describe)
            if done.step == 1 and check_first is not None:
                check_first(done.batch, output)
            progress.averages.add(output.metrics)
            if throughput is not None:
                packed = done.batch
                throughput.add(
                    packed.tokens,
                    len(packed.example_ids),
                    done.waited,
                    places=packed.places,
                    scored=packed.scored,
                    slots=packed.slots,
                    attended=packed.attended,
                )
            if schedule.due(schedule.log_every, done.step) or done.step == 1:
                row = progress.averages.means()
                progress.averages.clear()
                row |= {"epoch": done.step / schedule.steps_per_epoch, "num_tokens": done.tokens}
                sinks.write(done.step, row | (throughput.rates() if throughput is not None else {}))

    def save(metrics: Mapping[str, float] | None) -> None:
        read(0)  # a state that has seen a NaN is never written
        # The last update has been seen by no forward pass yet. An evaluation is one, and stops at a NaN itself.
        if metrics is None and check_weights is not None and not check_weights(state, frozen, probe):
            raise NumericsError(
                f"step {progress.step}: the weights after this step give log-probabilities that are not finite. They "
                "are not saved; the last good checkpoint is kept. Try a smaller learning rate."
            )
        if checkpoints is not None and checkpoints.latest_step != progress.step:
            checkpoints.save(progress.step, state, feed.state(), progress.as_dict(), metrics)

    probe: Any = None  # the first batch serves every check of the weights: other sizes would be compiled for, too
    idle = True  # whether the devices had nothing left to compute when the next batch was there
    first, in_flight = progress.step + 1, programs_in_flight()
    best_rule = checkpoints is not None and checkpoints.best_metric is not None
    with _stop_signal() as stopped, _saved(checkpoints):
        while progress.step < schedule.steps:
            batch, rows, seconds = feed.take()
            probe = rows if probe is None else probe
            state, told = step(state, frozen, rows)
            told.send()
            progress.step += 1
            progress.tokens += batch.tokens
            number = progress.step
            pending.append(_Started(number, batch, told, progress.tokens, seconds if idle else 0.0))
            if number < schedule.steps:
                feed.prepare()
            idle = all(each.told.is_ready for each in pending)
            # What follows the first step (its check, opening files) takes the host long; the clock starts behind it,
            # and steps that ran meanwhile would seem to have taken no time.
            read(0 if number == first else in_flight)
            sinks.advance(number)
            evaluated = None
            if evaluate is not None and schedule.due(schedule.eval_every, number):
                read(0)
                evaluated = {f"eval_{name}": value for name, value in evaluate(state).items()}
                sinks.write(number, evaluated)
                if throughput is not None:
                    throughput.restart()
            if schedule.due(schedule.checkpoint_every, number) or (best_rule and evaluated is not None):
                save(evaluated)
            if _should_stop(stopped, number):
                save(evaluated)
                raise Interrupted(number)
        read(0)
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
        problems.append(f"The step's examples: {some(map(describe, batch.example_ids), 5)}.")
    problems.append(
        "No checkpoint was written after this step; the last good one is kept. Try a smaller learning rate, "
        "gradient clipping (optimizer.clip_norm), or model.dtype=float32."
    )
    return NumericsError(problems)
