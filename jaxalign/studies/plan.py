"""What a study will do, before any of it is done: rows, the stages behind them, and everything that is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxalign.config import RunConfig
from jaxalign.errors import ConfigError, DataError, JaxalignError, did_you_mean, some
from jaxalign.studies import rows
from jaxalign.studies.folders import Folders
from jaxalign.studies.hub import Commits
from jaxalign.studies.identity import digest, model_content, row_ids
from jaxalign.studies.resolve_stages import Resolved, Resolver
from jaxalign.studies.stages import is_done, is_filled
from jaxalign.studies.study import Label, Measure, Stage, Study, Trial


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


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """One row.

    Attributes:
      id: its name, for ``--row`` and files.
      labels: what it is.
      key: of everything that its numbers depend on; a row that was made with another key is made again.
      model: the key of the stage that makes its model, or the folder or hub id of a model that is measured as it is.
      trained: whether it is a stage's.
      stages: keys of the stages that it needs, in the order in which they can run.
      measures: names of the measures, with the keys under which their results are kept.
      seed: of what its measures draw at random.
      status: of its row so far: ``"done"``, ``"failed"``, or ``"missing"``.
      stale: a row of this name is there, but was made with another key.
    """

    id: str
    labels: Mapping[str, Label]
    key: str
    model: str
    trained: bool
    stages: tuple[str, ...]
    measures: Mapping[str, str]
    seed: int
    status: Literal["done", "failed", "missing"]
    stale: bool = False

    @property
    def title(self) -> str:
        """The labels in one line: ``method=dpo beta=0.1 seed=0``."""
        return " ".join(f"{name}={value}" for name, value in self.labels.items())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study, resolved.

    Attributes:
      study: what was asked for.
      folders: where everything goes.
      stages: by key, each after those that it needs.
      rows: in the study's order.
      commits: of the hub's models and data sets, by kind and name; None = not downloaded, or unknown.
    """

    study: Study
    folders: Folders
    stages: Mapping[str, PlannedStage]
    rows: tuple[PlannedRow, ...]
    commits: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def shared(self) -> tuple[PlannedStage, ...]:
        """The stages that several rows need."""
        return tuple(stage for stage in self.stages.values() if len(stage.rows) > 1)

    @property
    def outside(self) -> int:
        """How many rows of other parts of the study are in ``rows.jsonl``."""
        there = rows.read(self.folders.all_rows) if self.folders.all_rows.is_file() else []
        own = self.keys
        return sum(row["row"] not in own and row.get("study", {}).get("name") == self.study.name for row in there)

    @property
    def keys(self) -> dict[str, str]:
        """The rows' keys, by name."""
        return {row.id: row.key for row in self.rows}

    def row(self, name: str) -> PlannedRow:
        """The row of this name.

        Raises:
          ConfigError: there is none.
        """
        found = {row.id: row for row in self.rows}
        if name not in found:
            raise ConfigError(f"--row: got {name!r}, expected one of {some(found, 6)}.{did_you_mean(name, found)}")
        return found[name]

    def measure(self, name: str) -> Measure:
        """The measure of this name."""
        return next(measure for measure in self.study.measures if measure.name == name)


def make_plan(study: Study, workdir: str | Path) -> Plan:
    """Resolves a study, and looks at what is already there.

    Args:
      study: the study; its `prepare` has run.
      workdir: its folder.

    Raises:
      ConfigError: with everything that is wrong: configurations of all stages, files that are not there, rows that
        are there twice, and what the study says of itself.
    """
    folders = Folders.of(workdir)
    problems = _of_the_study(study)
    names = row_ids([trial.labels for trial in study.trials])
    commits = Commits.of(folders)
    resolver = Resolver(folders, commits)
    models: list[tuple[str, str] | None] = []  # (identity of the model, stage key or folder) of each trial
    for trial, name in zip(study.trials, names, strict=True):
        models.append(_model(trial, name, resolver, commits, problems))
    problems += resolver.problems()
    problems += _same_rows(study, names, models, resolver)
    if problems:
        raise ConfigError(problems)
    stages = _stages(resolver, folders)
    needed = {name: _needed(name, stages) for name in names}
    settings = {measure.name: commits.settle(dict(measure.settings)) for measure in study.measures}
    planned = []
    for trial, name, model in zip(study.trials, names, models, strict=True):
        assert model is not None  # or there were problems
        planned.append(_row(study, trial, name, *model, needed[name], folders, settings))
    return Plan(study=study, folders=folders, stages=stages, rows=tuple(planned), commits=commits.found)


def _model(trial: Trial, row: str, resolver: Resolver, commits: Commits, problems: list[str]) -> tuple[str, str] | None:
    if isinstance(trial.model, Stage):
        key = resolver.add(trial.model, row)
        return None if key is None else (key, key)
    try:
        return digest(commits.settle(model_content(trial.model))), trial.model
    except DataError as error:
        problems += [f"row {row}: model: {problem}" for problem in error.problems]
        return None


def _stages(resolver: Resolver, folders: Folders) -> dict[str, PlannedStage]:
    """All stages, each fill of the cache before the first run that reads it."""
    found: dict[str, PlannedStage] = {}
    done = {key: is_done(folders.stage(stage.name, key)) for key, stage in resolver.stages.items()}
    fills = resolver.fills()
    for key, stage in resolver.stages.items():
        fill = fills.get(key)
        if fill is not None and fill.key not in found:
            found[fill.key] = _planned(fill, "reference", is_filled(folders, fill.key) or all(map(done.get, fill.of)))
        found[key] = _planned(stage, "train", done[key])
    return found


def _planned(stage: Resolved, kind: Literal["train", "reference"], done: bool) -> PlannedStage:
    return PlannedStage(
        name=stage.name,
        key=stage.key,
        config=stage.config,
        inputs=dict(stage.inputs),
        rows=tuple(dict.fromkeys(stage.rows)),
        kind=kind,
        done=done,
    )


def _needed(row: str, stages: Mapping[str, PlannedStage]) -> tuple[str, ...]:
    return tuple(key for key, stage in stages.items() if row in stage.rows)


def _row(
    study: Study,
    trial: Trial,
    name: str,
    identity: str,
    model: str,
    stages: tuple[str, ...],
    folders: Folders,
    settings: Mapping[str, Any],
) -> PlannedRow:
    seed = trial.labels.get("seed", 0)
    seed = seed if isinstance(seed, int) else 0
    measures = {
        measure.name: digest([identity, measure.name, settings[measure.name], seed]) for measure in study.measures
    }
    key = digest([dict(trial.labels), identity, measures])
    before = rows.read_row(folders.row(name))
    same = before is not None and before.get("key") == key
    return PlannedRow(
        id=name,
        labels=dict(trial.labels),
        key=key,
        model=model,
        trained=isinstance(trial.model, Stage),
        stages=stages,
        measures=measures,
        seed=seed,
        status=before["status"] if before is not None and same else "missing",
        stale=before is not None and not same,
    )


def _of_the_study(study: Study) -> list[str]:
    """What is wrong with the study itself."""
    problems: list[str] = []
    for name, kind in (("trials", Trial), ("measures", Measure)):
        parts = getattr(study, name)
        if isinstance(parts, kind):
            return [f"{name}: got a {kind.__name__}, expected a tuple of them: ({kind.__name__.lower()},)."]
        if not parts:
            problems.append(f"{name}: got none, expected at least one.")
    names = [measure.name for measure in study.measures]
    problems += [f"measures: {name!r} is there twice." for name in sorted({n for n in names if names.count(n) > 1})]
    for measure in study.measures:
        wrong = measure.check() if measure.check is not None else []
        problems += [f"measure {measure.name}: {problem}" for problem in wrong]
        try:
            json.dumps(dict(measure.settings), allow_nan=False)
        except (TypeError, ValueError) as error:
            problems.append(f"measures: settings of {measure.name!r} are no JSON values: {error}.")
        except JaxalignError as error:  # a file or model that is not there, which its check has told
            problems += [] if wrong else [f"measure {measure.name}: {problem}" for problem in error.problems]
    head, _, metric = study.headline.partition("/")
    if names and (head not in names or not metric):
        expected = ", ".join(f"{name}/METRIC" for name in names)
        problems.append(f"headline: got {study.headline!r}, expected {expected}.{did_you_mean(head, names)}")
    labels = list(dict.fromkeys(name for trial in study.trials for name in trial.labels))
    if study.trials and study.compare not in labels:
        problems.append(
            f"compare: got {study.compare!r}, expected a label of the rows: {', '.join(labels)}."
            f"{did_you_mean(study.compare, labels)}"
        )
    compared = {trial.labels.get(study.compare) for trial in study.trials}
    others = [label for label in labels if label not in ("seed", study.compare)]
    if study.compare in labels and len(compared) == 1 and others:
        problems.append(
            f"compare: {study.compare!r} is {compared.pop()!r} in every row, so nothing is compared, expected a label "
            f"with several values: {', '.join(others)}."
        )
    for published in study.published:
        for name in published.labels:
            if name not in labels:
                problems.append(
                    f"published: {published.metric!r} of {published.source} has the label {name!r}, expected "
                    f"{', '.join(labels)}.{did_you_mean(name, labels)}"
                )
    return list(dict.fromkeys(problems))


def _same_rows(
    study: Study, names: Sequence[str], models: Sequence[tuple[str, str] | None], resolver: Resolver
) -> list[str]:
    """Rows with equal labels: nobody could tell them apart."""
    problems = []
    first: dict[str, int] = {}
    for i, trial in enumerate(study.trials):
        j = first.setdefault(digest(dict(trial.labels)), i)
        if j == i:
            continue
        title = " ".join(f"{name}={value}" for name, value in trial.labels.items())
        problems.append(
            f"rows {j + 1} and {i + 1} have the same labels ({title}).{_hint(models[j], models[i], resolver)}"
        )
    return problems


def _hint(one: tuple[str, str] | None, other: tuple[str, str] | None, resolver: Resolver) -> str:
    if one is None or other is None:
        return " Give them different labels."
    if one == other:
        return " They are the same model: leave one out."
    differing = resolver.differing(one[1], other[1])
    if not differing:
        return " Their models differ: give them a label that says how."
    shown = some(differing, 3)
    name = differing[0].rpartition(".")[2]
    return f" Their models differ in {shown}. Did you mean to give them the label {name!r}?"


def unfinished(plan: Plan, *, retry_failed: bool = False) -> tuple[PlannedRow, ...]:
    """The rows that are still to be made."""
    over = ("done",) if retry_failed else ("done", "failed")
    return tuple(row for row in plan.rows if row.status not in over)
