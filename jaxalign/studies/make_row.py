"""Makes one row in this process: trains the stages that are missing, measures the model, writes the row."""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from jaxalign.config import RunConfig, read_json, to_dict
from jaxalign.config_checks import differences
from jaxalign.errors import ConfigError, JaxalignError
from jaxalign.evaluation.outcome import Outcome
from jaxalign.studies import rows
from jaxalign.studies.folders import note_event, now, write_json
from jaxalign.studies.folders import read_json as read_file
from jaxalign.studies.hub import commits_now
from jaxalign.studies.identity import DATA, FILES, MODELS
from jaxalign.studies.plan import Plan, PlannedRow, PlannedStage
from jaxalign.studies.processes import agree, alone, is_first
from jaxalign.studies.signals import stop_here
from jaxalign.studies.stages import facts, is_done, is_filled
from jaxalign.studies.study import Subject

Tell = Callable[[str, str | None, float | None], None]
"""``(what, key of the stage, seconds)``: with seconds, what took them; else what begins. A measure has no key."""

STDERR_LINES = 20


class StageFailed(Exception):
    """A stage that the row needs has failed, now or for an earlier row.

    Attributes:
      error: what the row says of it.
    """

    def __init__(self, error: Mapping[str, Any]):
        self.error = dict(error)
        super().__init__(f"{error.get('stage')}: {error.get('message')}")


def make_row(plan: Plan, row: PlannedRow, tell: Tell) -> rows.Row:
    """Makes a row and writes its file, unless it is done. A stage or measure that fails makes it a failed row.

    Args:
      plan: the study.
      row: which row.
      tell: what it is doing.

    Returns:
      The row.

    Raises:
      Interrupted, Stopped: a signal came; everything is saved, and no row is written.
    """
    file = plan.folders.row(row.id)

    def waiting() -> None:
        tell("waiting for another process that makes this row", None, None)

    def made() -> bool:
        found = rows.read_row(file)
        return found is not None and found["status"] == "done" and found.get("key") == row.key

    with alone(plan.folders.lock(f"row-{row.id}"), waiting):
        if agree(made):
            return rows.read_row(file) or {}
        return _make(plan, row, tell)


def _make(plan: Plan, row: PlannedRow, tell: Tell) -> rows.Row:
    started, clock = now(), time.perf_counter()
    error: Mapping[str, Any] | None = None
    results: dict[str, Any] = {}
    try:
        for key in row.stages:
            ensure_stage(plan, plan.stages[key], tell)
    except StageFailed as failed:
        error = failed.error
    if error is None:
        for name in row.measures:
            stop_here()
            try:
                results[name] = ensure_measured(plan, row, name, tell)
            except Exception as failure:
                error = error or error_of(failure, f"measure {name}")
    made = row_of(plan, row, error, results) | {
        "started": started,
        "finished": now(),
        "seconds": round(time.perf_counter() - clock, 3),
    }
    if is_first():
        rows.write_row(plan.folders, made)
    return plan.folders.relative(made)


def row_of(
    plan: Plan, row: PlannedRow, error: Mapping[str, Any] | None, results: Mapping[str, Any] | None = None
) -> rows.Row:
    """A row with what is there of its stages."""
    study, folders = plan.study, plan.folders
    stages = [plan.stages[key] for key in row.stages if plan.stages[key].kind == "train"]
    told = []
    for stage in stages:
        folder = folders.stage(stage.name, stage.key)
        if is_done(folder):
            head = {"name": stage.name, "key": stage.key, "folder": str(folder), "config": to_dict(stage.config)}
            told.append({**head, **facts(folder)})
    model = str(folders.stage(plan.stages[row.model].name, row.model) / "export") if row.trained else row.model
    return {
        "study": rows.study_header(study),
        "row": row.id,
        "key": row.key,
        "labels": dict(row.labels),
        "status": "done" if error is None else "failed",
        "error": None if error is None else dict(error),
        "stages": told,
        "model": model,
        **({"commits": commits_now(plan.commits)} if plan.commits else {}),
        "results": dict(results or {}),
    }


def error_of(error: BaseException, stage: str) -> dict[str, Any]:
    """What a row tells of an error: where, what, and the last lines that it printed."""
    lines = traceback.format_exception(error)
    tail = "" if isinstance(error, JaxalignError) else "".join(lines)
    return {
        "stage": stage,
        "type": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "stderr": tail.splitlines()[-STDERR_LINES:],
    }


def ensure_stage(plan: Plan, stage: PlannedStage, tell: Tell) -> None:
    """Runs a stage unless it is finished, after those that it needs. Only one process at a time runs it.

    Raises:
      StageFailed: it failed now, or before; the record of that is removed by `forget_failures`.
      Interrupted, Stopped: see `make_row`.
    """
    stop_here()
    for key in stage.inputs.values():
        ensure_stage(plan, plan.stages[key], tell)
    if agree(lambda: finished(plan, stage)):
        _check_same(plan, stage)
        return

    def waiting() -> None:
        tell(f"waiting for another process that makes {stage.name}", stage.key, None)

    with alone(plan.folders.lock(f"{stage.name}-{stage.key}"), waiting):
        if agree(lambda: finished(plan, stage)):
            _check_same(plan, stage)
            return
        if agree(lambda: failure(plan, stage) is not None):
            raise StageFailed(failure(plan, stage) or {"stage": stage.name, "type": "", "message": "failed"})
        _run(plan, stage, tell)


def finished(plan: Plan, stage: PlannedStage) -> bool:
    """Whether nothing is left to do for a stage."""
    if stage.kind == "reference":
        return stage.done or is_filled(plan.folders, stage.key)
    return is_done(plan.folders.stage(stage.name, stage.key))


def failure(plan: Plan, stage: PlannedStage) -> dict[str, Any] | None:
    """What is recorded of a stage that failed."""
    return read_file(plan.folders.failure(stage.name, stage.key))


def note_failure(plan: Plan, stage: PlannedStage, error: Mapping[str, Any]) -> None:
    """Records that a stage failed, for all rows that need it."""
    write_json(plan.folders.failure(stage.name, stage.key), dict(error))
    note_event(plan.folders, "stage failed", stage=stage.name, key=stage.key, error=error.get("type"))


def forget_failures(plan: Plan) -> None:
    """Lets stages that failed be tried again."""
    for stage in plan.stages.values():
        plan.folders.failure(stage.name, stage.key).unlink(missing_ok=True)


def _run(plan: Plan, stage: PlannedStage, tell: Tell) -> None:
    from jaxalign import build
    from jaxalign.training.loop import Interrupted

    folder = plan.folders.stage(stage.name, stage.key)
    first = is_first()
    if first:
        note_event(plan.folders, "stage started", stage=stage.name, key=stage.key)
        for left in folder.glob(".export.writing-*"):  # by a process that was killed; it held the lock we hold now
            shutil.rmtree(left, ignore_errors=True)
    tell("filling the reference cache" if stage.kind == "reference" else f"training {stage.name}", stage.key, None)
    clock = time.perf_counter()
    try:
        if stage.kind == "reference":
            counts = build.cache_reference(stage.config)
            if first:
                write_json(plan.folders.filled(stage.key), {"counts": counts, "rows": list(stage.rows)})
        else:
            build.train(stage.config, folder)
    except Interrupted:
        raise
    except Exception as error:
        told = error_of(error, stage.name)
        if first:
            note_failure(plan, stage, told)
        raise StageFailed(told) from error
    _make_room()
    tell(stage.name, stage.key, time.perf_counter() - clock)
    if first:
        note_event(plan.folders, "stage done", stage=stage.name, key=stage.key)


def _make_room() -> None:
    """Frees the weights that were just trained or measured; where memory is the host's, Python will in time."""
    import jax

    if jax.default_backend() != "cpu":
        gc.collect()


def _check_same(plan: Plan, stage: PlannedStage) -> None:
    """A finished run must be of this configuration: its folder's name holds only a short hash of it."""
    if stage.kind == "reference":
        return
    folder = plan.folders.stage(stage.name, stage.key)
    try:
        saved = read_json(folder / "config.json")
    except ConfigError as error:
        raise StageFailed(error_of(error, stage.name)) from error
    paths = (*MODELS, *FILES, *DATA)  # what lies there is in the key; where it lies may change
    changed = [line for line in differences(saved, stage.config) if line.partition(":")[0] not in paths]
    if changed:
        error = ConfigError(
            f"{folder} holds a run of another configuration, perhaps of another version of jaxalign. Remove it, or give"
            " another --workdir. What differs:" + "".join(f"\n  {line}" for line in changed)
        )
        raise StageFailed(error_of(error, stage.name))


def ensure_measured(plan: Plan, row: PlannedRow, name: str, tell: Tell) -> dict[str, Any]:
    """The outcome of a measure as a row holds it; measured now unless the same model was already."""
    folder = plan.folders.measure(name, row.measures[name])
    file = folder / "outcome.json"

    def known() -> bool:
        return (read_file(file) or {}).get("outcome") is not None

    def waiting() -> None:
        tell(f"waiting for another process that measures {name}", None, None)

    with alone(plan.folders.lock(folder.name), waiting):
        if not agree(known):
            tell(f"measuring {name}", None, None)
            clock = time.perf_counter()
            folder.mkdir(parents=True, exist_ok=True)
            outcome = plan.measure(name).run(subject(plan, row, name))
            if not isinstance(outcome, Outcome):
                raise TypeError(f"measure {name!r} gave a {type(outcome).__name__}, expected an Outcome.")
            seconds = round(time.perf_counter() - clock, 3)
            _make_room()
            if not is_first():
                return {}
            settings = dict(plan.measure(name).settings)
            tree = {"measure": name, "settings": settings, "model": row.model, "seed": row.seed, "seconds": seconds}
            write_json(file, tree | {"outcome": outcome.as_dict()})
            note_event(plan.folders, "measured", measure=name, key=row.measures[name])
            tell(name, None, seconds)
    if not is_first():
        return {}
    found = read_file(file) or {}  # through the file also when it was measured now: one form of every number
    return {**found["outcome"], "seconds": found["seconds"]}


def subject(plan: Plan, row: PlannedRow, measure: str) -> Subject:
    """The row's model as a measure gets it."""
    out = plan.folders.measure(measure, row.measures[measure])
    if not row.trained:
        return Subject(model=row.model, out=out, seed=row.seed)
    stage = plan.stages[row.model]
    folder = plan.folders.stage(stage.name, stage.key)
    config = stage.config
    return Subject(
        model=str(folder / "export"),
        reference=reference_of(config),
        start=config.model.path,
        config=config,
        run=folder,
        out=out,
        seed=row.seed,
    )


def reference_of(config: RunConfig) -> str | None:
    """The model that a run is compared with. A moving reference is not kept: it is the model that it starts as."""
    source = config.reference.source
    return {"none": None, "policy": config.model.path, "prior": config.model.path, "columns": None}.get(source, source)
