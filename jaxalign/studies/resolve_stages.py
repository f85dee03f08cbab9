"""From the stages that a study writes down to runs with keys, and to the reference caches that several runs share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxalign.config import RunConfig, from_dict, resolve, schema
from jaxalign.config_aliases import ALIASES
from jaxalign.config_fields import nearest
from jaxalign.errors import ConfigError
from jaxalign.studies.folders import Folders
from jaxalign.studies.hub import Commits
from jaxalign.studies.identity import digest, reference_identity, stage_identity
from jaxalign.studies.study import Stage

REFERENCE = "reference"
"""The name of the fill of a reference cache."""


@dataclass
class Resolved:
    """A run with its key.

    Attributes:
      name: of the stage.
      key: see `jaxalign.studies.identity`.
      config: resolved, with inputs as paths.
      inputs: options that are another stage's model, with its key.
      identity: what the key was made of.
      rows: that need it.
      of: of a fill: keys of the runs that read it.
    """

    name: str
    key: str
    config: RunConfig
    inputs: Mapping[str, str]
    identity: Mapping[str, Any] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    of: list[str] = field(default_factory=list)


class Resolver:
    """Resolves stages, once each, and collects what is wrong with them.

    Args:
      folders: where the stages' models will be.
      commits: of the hub's repositories.
    """

    def __init__(self, folders: Folders, commits: Commits):
        self._folders, self._commits = folders, commits
        self._seen: dict[int, tuple[Stage, str | None]] = {}  # by id; the stage itself keeps its id taken
        self._rows: dict[int, list[str]] = {}
        self._wrong: list[tuple[int, str, str]] = []  # (id of the stage, its name, problem)
        self.stages: dict[str, Resolved] = {}
        """By key, each after its inputs."""

    def add(self, stage: Stage, row: str) -> str | None:
        """Resolves a stage and its inputs for a row. Returns its key; None if something is wrong with it."""
        keys = {option: self.add(source, row) for option, source in stage.inputs.items()}
        self._rows.setdefault(id(stage), []).append(row)
        if id(stage) not in self._seen:
            self._seen[id(stage)] = stage, self._resolve(stage, keys)
        key = self._seen[id(stage)][1]
        if key is not None:
            self.stages[key].rows.append(row)
        return key

    def problems(self) -> list[str]:
        """Everything found, each problem once with the rows that it concerns."""
        rows: dict[tuple[str, str], dict[str, None]] = {}
        for stage, name, problem in self._wrong:
            rows.setdefault((name, problem), {}).update(dict.fromkeys(self._rows[stage]))
        found = []
        for (name, problem), of in rows.items():
            more = f" and {len(of) - 1} more" if len(of) > 1 else ""
            found.append(f"stage {name} of row {next(iter(of))}{more}: {problem}")
        return found

    def differing(self, one: str, other: str) -> list[str]:
        """The options in which two runs, or the runs before them, differ."""
        first, second = self.stages.get(one), self.stages.get(other)
        if first is None or second is None or one == other:
            return []
        found = []
        for path in {**first.identity, **second.identity}:
            a, b = first.identity.get(path), second.identity.get(path)
            if a == b:
                continue
            if path in first.inputs and path in second.inputs:
                found += self.differing(first.inputs[path], second.inputs[path]) or [path]
            else:
                found.append(path)
        return list(dict.fromkeys(found))

    def fills(self) -> dict[str, Resolved]:
        """For each run with a cached reference: the fill that computes what it will read.

        Runs that differ in the method's options, in what is trained how, or in the number of examples share one: the
        examples of a smaller size are among those of a larger one, if the seed of their order is the same.
        """
        cached = {
            key: run
            for key, run in self.stages.items()
            if run.config.reference.mode == "cached" and run.config.reference.source != "columns"
        }
        groups: dict[str, list[Resolved]] = {}
        for run in cached.values():
            groups.setdefault(digest(reference_identity(run.identity, run.config, seeded=False)), []).append(run)
        fills: dict[str, Resolved] = {}
        for group in groups.values():
            seeded = not any(_size(run) == math.inf for run in group)
            parts: dict[str, list[Resolved]] = {}
            for run in group:
                parts.setdefault(digest(reference_identity(run.identity, run.config, seeded=seeded)), []).append(run)
            for part in parts.values():
                largest = max(part, key=_size)
                identity = reference_identity(largest.identity, largest.config, seeded=seeded)
                key = digest([REFERENCE, identity, largest.config.data.size])
                rows = [row for run in part for row in run.rows]
                of = [run.key for run in part]
                fill = Resolved(REFERENCE, key, largest.config, largest.inputs, identity, rows, of)
                fills |= {run.key: fill for run in part}
        return fills

    def _resolve(self, stage: Stage, keys: Mapping[str, str | None]) -> str | None:
        problems = _input_problems(stage)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]*", stage.name) or stage.name == REFERENCE:
            problems.append(
                f"name: got {stage.name!r}, expected letters, digits, _ and ., and not {REFERENCE!r}: it is part of a "
                "folder's name."
            )
        inputs = {option: key for option, key in keys.items() if key is not None}
        tree: dict[str, Any] = {
            section: dict(values) if isinstance(values, Mapping) else values for section, values in stage.config.items()
        }
        for option in keys:
            if option not in schema():
                continue
            section, _, name = option.partition(".")
            key = inputs.get(option)
            # Of an input that is wrong itself only the place matters: the rest of this stage is checked with it.
            path = str(self._folders.stage(self.stages[key].name, key) / "export") if key else "/to/be/made"
            _set(tree, section, name, path)
        _set(tree, "reference", "cache_dir", str(self._folders.cache))
        try:
            config = resolve(from_dict(tree))
        except ConfigError as error:
            problems += error.problems
            config = None
        if config is not None:
            if not config.train.export:
                problems.append(
                    "train.export: got False, expected True: the next stage and the measures read the model."
                )
            identity, missing = stage_identity(config, {option: key or "" for option, key in keys.items()})
            problems += missing
            if not problems and len(inputs) == len(keys):
                identity = self._commits.settle(identity)
                key = digest(identity)
                # Two spellings of one run: the first is the one that runs.
                self.stages.setdefault(key, Resolved(stage.name, key, config, inputs, identity))
                return key
        self._wrong += [(id(stage), stage.name, problem) for problem in problems]
        return None


def _set(tree: dict[str, Any], section: str, name: str, value: Any) -> None:
    values = tree.setdefault(section, {})
    if isinstance(values, dict):  # or it is wrong, and reported
        values[name] = value


def _input_problems(stage: Stage) -> list[str]:
    problems = []
    for option in stage.inputs:
        if option not in schema():
            near = nearest(option, list(schema()), ALIASES)
            hint = f" Did you mean {near!r}?" if near else ""
            problems.append(f"inputs: got {option!r}, expected an option such as 'model.path'.{hint}")
            continue
        section, _, name = option.partition(".")
        values = stage.config.get(section, {})
        if isinstance(values, Mapping) and values.get(name) is not None:
            problems.append(
                f"inputs: {option} is there twice, as {values[name]!r} in the configuration and as the "
                f"model of stage {stage.inputs[option].name!r}; expected one of the two."
            )
    return problems


def _size(run: Resolved) -> float:
    size = run.config.data.size
    return math.inf if size is None else size
