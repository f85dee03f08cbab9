"""What a study will do, before any of it is done: rows, the stages behind them, and everything that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxalign.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One piece of work that rows need: a training run, or a fill of the reference cache.

    Attributes:
      name: the stage's name; ``"reference"`` for a fill.
      key: its identity: what it depends on, and nothing else. Stages with equal keys are one.
      config: the run, resolved; inputs are the paths where their models will be. For a fill: of the training run that
        reads the most examples of it.
      inputs: options that are the model of another stage, with its key.
      rows: the rows that need it.
      kind: ``"train"``, or ``"reference"`` for a fill of the cache.
      done: nothing is left to do.
    """

    name: str
    key: str
    config: RunConfig
    inputs: Mapping[str, str]
    rows: tuple[str, ...]
    kind: Literal["train", "reference"]
    done: bool
