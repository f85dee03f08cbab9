"""Runs a study: in this process, or each row in one of its own. What is there already is not made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.studies import rows
from jaxalign.studies.children import Children, Job, Show, outcome_line
from jaxalign.studies.folders import Folders, locked, read_json
from jaxalign.studies.hub import note_commits
from jaxalign.studies.make_row import StageFailed, ensure_stage, forget_failures, make_row
from jaxalign.studies.plan import Plan, PlannedRow, PlannedStage, make_plan, unfinished
from jaxalign.studies.processes import is_first
from jaxalign.studies.progress import Progress
from jaxalign.studies.study import Study

Shard = tuple[int, int]
"""``(i, n)``: part i of n, from 0."""


def prepared(study: Study, workdir: str | Path) -> Plan:
    """The plan of a study, after it has written the data that it generates.

    Raises:
      ConfigError: with everything that is wrong; or the folder holds another study.
    """
    folders = Folders.of(workdir)
    known = read_json(folders.about)
    if known is not None and known.get("name") != study.name:
        raise ConfigError(
            f"--workdir: {workdir} holds the study {known.get('name')!r}, and this is {study.name!r}. Give each its own"
            " folder."
        )
    if study.prepare is not None:
        with locked(folders.lock("prepare")):
            study.prepare()
    return make_plan(study, workdir)


def run_study(
    study: Study, workdir: str | Path, *, retry_failed: bool = False, show: Callable[[str], None] | None = None
) -> list[rows.Row]:
    """Runs a whole study in this process, one row after another, and goes on where an earlier call stopped.

    Args:
      study: the study.
      workdir: its folder: ``rows.jsonl``, ``rows/``, ``stages/``, ``measures/``, ``cache/``.
      retry_failed: make rows again that have failed.
      show: gets a line for each thing that a row does, and at last what came of it, such as ``print``.

    Returns:
      all rows, as `jaxalign.studies.rows.read` reads them.

    Raises:
      ConfigError: with everything that is wrong with the study; nothing was started.
      Interrupted: a signal came while a stage trained; it is saved, and the same call goes on from there.
    """
    plan = prepared(study, workdir)
    begin(plan, retry_failed=retry_failed)
    for row in unfinished(plan, retry_failed=retry_failed):
        run_row(plan, row, None if show is None else lambda line, row=row: show(f"{place(plan, row)}: {line}"))
    return collect(plan)


def begin(plan: Plan, *, retry_failed: bool = False) -> None:
    """Writes what says whose folder it is; with `retry_failed`, lets failed stages be tried again."""
    if not is_first():
        return
    rows.note_study(plan.folders, plan.study, plan.keys)
    note_commits(plan.folders, plan.commits)
    if retry_failed:
        forget_failures(plan)


def run_row(
    plan: Plan, row: PlannedRow, show: Callable[[str], None] | None = None, *, watched: bool = False
) -> rows.Row:
    """Makes one row in this process.

    Args:
      plan: the study.
      row: the row.
      show: told what it does.
      watched: leave a note of it for the process that started this one.
    """
    made = make_row(plan, row, Progress(show, plan.folders.doing(row.id) if watched else None))
    collect(plan)
    if show is not None:
        show(outcome_line(made))
    return made


def run_shared(plan: Plan, shard: Shard = (0, 1), show: Callable[[str], None] | None = None, file: Path | None = None):
    """Runs the stages that several rows need, in this process.

    Args:
      plan: the study.
      shard: which part of them; stages that need one another are in one part.
      show: told what it does.
      file: for a note of it.

    Returns:
      Names of the stages that failed.
    """
    failed = []
    tell = Progress(show, file)
    for group in part(groups(plan), shard):
        for stage in group:
            try:
                ensure_stage(plan, stage, tell)
            except StageFailed as error:
                failed.append(f"{stage.name}-{stage.key}")
                tell(f"{stage.name} failed: {error}", None, None)
    return failed


def run_in_processes(
    plan: Plan,
    chosen: Sequence[PlannedRow],
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    show: Show,
) -> bool:
    """Makes rows, each in a process of its own. Returns False if a signal stopped it.

    Args:
      plan: the study.
      chosen: the rows.
      command: a process of ``jaxalign study`` with everything but ``--row``.
      environments: what the environment of each place gets; as many rows are made at once.
      show: told of each row's progress.
    """
    jobs = [Job(row.id, place(plan, row), (f"--row={row.id}",), row.stages, row) for row in chosen]
    done = Children(plan, command, environments, show).run(jobs)
    collect(plan)
    return done


def shared_in_processes(
    plan: Plan, shard: Shard, command: Sequence[str], environments: Sequence[Mapping[str, str]], show: Show
) -> bool:
    """Runs the stages that several rows need, each group in a process of its own. False if a signal stopped it."""
    everything = groups(plan)
    jobs = []
    for group in part(everything, shard):
        i = everything.index(group)
        names = ", ".join(dict.fromkeys(stage.name for stage in group))
        arguments = ("--shared", f"--shard={i}/{len(everything)}")
        jobs.append(Job(f"shared-{i}", f"shared {i + 1}/{len(everything)} ({names})", arguments, _keys(group)))
    return Children(plan, command, environments, show).run(jobs)


def _keys(group: Sequence[PlannedStage]) -> tuple[str, ...]:
    return tuple(stage.key for stage in group)


def groups(plan: Plan) -> list[list[PlannedStage]]:
    """The stages that several rows need, in groups that need nothing of one another, each in a possible order.

    They do not depend on what is done already, so that the parts of an array of jobs stay the same.
    """
    found: list[list[PlannedStage]] = []
    for stage in plan.shared:
        needs = set(stage.inputs.values())
        linked = [group for group in found if needs & {other.key for other in group}]
        found = [group for group in found if group not in linked]
        found.append([*(other for group in linked for other in group), stage])
    return found


def part(items: Sequence[Any], shard: Shard) -> list[Any]:
    """Every n-th item, from the i-th."""
    i, n = shard
    return list(items[i::n])


def collect(plan: Plan) -> list[rows.Row]:
    """Writes ``rows.jsonl`` from the rows that are there: those of the plan, and behind them others of the study."""
    if not is_first():
        return []
    note_commits(plan.folders, plan.commits)  # what has been downloaded by now
    return rows.collect(plan.folders, plan.keys, plan.study)


def place(plan: Plan, row: PlannedRow) -> str:
    """Which row, for people: ``row 7/40 method=dpo beta=0.1``."""
    return f"row {plan.rows.index(row) + 1}/{len(plan.rows)} {row.title}"


def read_shard(text: str) -> Shard:
    """Reads ``i/n``.

    Raises:
      ConfigError: it is no such thing.
    """
    i, slash, n = text.partition("/")
    if not slash or not i.isdecimal() or not n.isdecimal() or not 0 <= int(i) < int(n):
        hint = f" Parts are counted from 0: did you mean {int(i) - 1}/{n}?" if slash and i == n and i != "0" else ""
        raise ConfigError(f"--shard: got {text!r}, expected I/N with I from 0 to N - 1, such as 0/8.{hint}")
    return int(i), int(n)
