"""Metrics: sums that are divided once, and where the results go.

``metrics.jsonl`` is the record: one line a row, written at once, so that a killed process loses nothing. TensorBoard,
W&B and the progress bar are copies. Names are TRL's; what is measured with a clock starts with ``perf/`` and is the
only thing that two identical runs do not agree on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from jaxalign.errors import ConfigError
from jaxalign.files import write_text

METRICS_FILE = "metrics.jsonl"
_log = logging.getLogger(__name__)


@dataclass
class Averages:
    """Weighted means over any number of batches: sums and weights are added up, and divided once.

    The mean of batch means would depend on how examples fall into batches; this does not.
    """

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Name -> (weighted sum, weight)."""

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds a batch's ``name -> (weighted sum, weight)``, scalars."""
        for name, (total, weight) in metrics.items():
            old_total, old_weight = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (old_total + float(total), old_weight + float(weight))

    def means(self) -> dict[str, float]:
        """The means. A metric that nothing counted for is left out.

        Unpaired methods have no margin of a pair; theirs, as in TRL, is the difference of the two mean rewards.
        """
        means = {name: total / weight for name, (total, weight) in self.sums.items() if weight != 0}
        if "rewards/margins" not in means and {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means

    def clear(self) -> None:
        """Forgets everything."""
        self.sums.clear()

    def as_dict(self) -> dict[str, list[float]]:
        """For JSON, exact."""
        return {name: list(pair) for name, pair in self.sums.items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Averages:
        """From `as_dict`."""
        return cls({name: (float(total), float(weight)) for name, (total, weight) in saved.items()})


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``, oldest first; none where there is no file.

    A last line that a crash cut short is left out.
    """
    try:
        lines = (Path(workdir) / METRICS_FILE).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


class MetricsFile:
    """Appends rows to ``metrics.jsonl``; each is with the operating system before `write` returns.

    A run that goes on from an earlier checkpoint takes the rows after it again, so opening cuts off those past `step`.

    Args:
      workdir: the run's folder; created.
      step: optimizer steps already taken; 0 starts an empty file.
    """

    def __init__(self, workdir: str | os.PathLike, step: int = 0):
        path = Path(workdir) / METRICS_FILE
        kept = [row for row in read_metrics(workdir) if row["step"] <= step] if step else []
        write_text(path, "".join(map(_line, kept)))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Appends ``{"step": step, **row}``; a number that is not finite becomes null."""
        os.write(self._file, _line({"step": step, **row}).encode())

    def close(self) -> None:
        """Writes to the disk itself and closes."""
        os.fsync(self._file)
        os.close(self._file)


def _line(row: Mapping[str, Any]) -> str:
    def plain(value):
        if isinstance(value, bool | int | str | None):
            return value
        value = float(value)
        return value if math.isfinite(value) else None

    return json.dumps({name: plain(value) for name, value in row.items()}) + "\n"


class MetricSinks:
    """Everywhere that metrics go: ``metrics.jsonl``, TensorBoard, W&B, the progress bar. Only process 0 writes.

    Use as a context manager, or call `close`.

    Args:
      workdir: the run's folder.
      total_steps: optimizer steps of the whole run, for the bar.
      step: optimizer steps already taken, when the run goes on from a checkpoint; later rows are removed.
      tensorboard: write TensorBoard files to ``WORKDIR/tensorboard``; a note if tensorboardX is not installed.
      wandb: W&B project, or None.
      progress: show a progress bar where standard error is a terminal.
      config: the run's configuration, for W&B.

    Raises:
      ConfigError: W&B is asked for but not installed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        total_steps: int,
        step: int = 0,
        tensorboard: bool = True,
        wandb: str | None = None,
        progress: bool = True,
        config: Mapping[str, Any] | None = None,
    ):
        self._file = self._tensorboard = self._wandb = None
        main = jax.process_index() == 0
        self._bar = tqdm(
            total=total_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=None if progress and main else True,
        )
        if main:
            if wandb is not None:
                self._wandb = _open_wandb(workdir, wandb, step, config)
            self._file = MetricsFile(workdir, step)
            if tensorboard:
                self._tensorboard = _open_tensorboard(workdir, step)

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        if not self._bar.disable:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Writes a row of metrics everywhere.

        Args:
          step: optimizer steps taken.
          row: values by name.
        """
        if self._file is None:
            return
        self._file.write(step, row)
        if self._tensorboard is not None:
            for name, value in row.items():
                self._tensorboard.add_scalar(name, float(value), step)
        if self._wandb is not None:
            self._wandb.log(dict(row), step=step)
        if not self._bar.disable:
            shown = ("loss", "rewards/accuracies", "eval_loss", "eval_rewards/accuracies", "perf/tokens_per_second")
            short = {name.split("/")[-1] if "eval" not in name else name: row[name] for name in shown if name in row}
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in short.items()})

    def close(self) -> None:
        """Finishes every sink. Calling it twice is fine."""
        self._bar.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._file is not None:
            self._file.close()
        self._file = self._tensorboard = self._wandb = None

    def __enter__(self) -> MetricSinks:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open_tensorboard(workdir: str | os.PathLike, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        _log.info("No TensorBoard files: tensorboardX is not installed (pip install 'jaxalign[tensorboard]').")
        return None
    # Viewers drop what an interrupted run wrote at and after the purge step.
    return SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=step + 1 if step else None)


def _open_wandb(workdir: str | os.PathLike, project: str, step: int, config: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"logging.wandb: got {project!r}, but wandb is not installed. Run pip install 'jaxalign[wandb]', or set it "
            "to none."
        ) from error
    identity = Path(workdir) / "wandb_run_id"
    if not step or not identity.exists():
        identity.parent.mkdir(parents=True, exist_ok=True)
        identity.write_text(uuid.uuid4().hex[:12])
    return wandb.init(
        project=project, id=identity.read_text(), resume="allow", dir=str(workdir), config=dict(config or {})
    )
