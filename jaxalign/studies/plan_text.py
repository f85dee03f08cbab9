"""The plan as text: what will be made, what is shared, what it will cost."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from jaxalign.errors import counted
from jaxalign.studies.cost import cost_lines
from jaxalign.studies.plan import Plan, PlannedRow, PlannedStage

WIDTH = 110


def plan_lines(plan: Plan, chosen: Sequence[PlannedRow] | None = None) -> Iterator[str]:
    """The whole plan.

    Args:
      plan: the study.
      chosen: the rows that will be made now; None = all that are not there.
    """
    study = plan.study
    yield f"study {study.name}: {counted(len(plan.rows), 'row')} in {plan.folders.root}"
    yield from textwrap.wrap(study.question, WIDTH, initial_indent="  ", subsequent_indent="  ")
    for note in study.notes:
        yield from textwrap.wrap(note, WIDTH, initial_indent="  * ", subsequent_indent="    ")
    yield ""
    yield from _rows(plan)
    if plan.outside:
        yield f"  and {outside(plan.outside)}"
    yield ""
    yield from _stages(plan)
    if study.measures:
        yield f"measures of every row: {', '.join(measure.name for measure in study.measures)}"
    yield from _seeds(plan)
    yield ""
    yield from _commits(plan)
    yield from cost_lines(plan.stages, study)
    if chosen is not None:
        yield ""
        yield f"{len(chosen)} of {counted(len(plan.rows), 'row')} to make now"


def outside(count: int) -> str:
    """Of rows that the study has but this plan has not."""
    return f"{count} row{'s' * (count > 1)} of this study with other arguments, kept in rows.jsonl"


def _seeds(plan: Plan) -> Iterator[str]:
    """A warning where each seed would be measured on other held-out examples."""
    last = [plan.stages[row.model].config.data for row in plan.rows if row.trained]
    drawn = {data.seed for data in last if data.eval_size and not data.eval}
    if len(drawn) > 1:
        text = (
            f"warning: data.seed differs between rows ({', '.join(map(str, sorted(drawn)))}) and also draws the "
            "held-out part of data.eval_size: these rows are measured on different examples, so do not compare them. "
            "Keep data.seed and let train.seed differ, or give data.eval."
        )
        yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _commits(plan: Plan) -> Iterator[str]:
    """Which version of the hub's models and data the plan means."""
    known = [f"{place.partition(' ')[2]} {commit[:12]}" for place, commit in plan.commits.items() if commit]
    unknown = [place.partition(" ")[2] for place, commit in plan.commits.items() if not commit]
    if known:
        yield from textwrap.wrap(f"hub, by commit in the cache: {', '.join(known)}", WIDTH, subsequent_indent="  ")
    if unknown:
        text = f"hub, by name, for no commit is in the cache: {', '.join(unknown)}"
        yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    if plan.commits:
        yield ""


def _rows(plan: Plan) -> Iterator[str]:
    width = max(len(row.id) for row in plan.rows)
    count = len(str(len(plan.rows)))
    for i, row in enumerate(plan.rows, 1):
        stages = [plan.stages[key] for key in row.stages]
        made = " -> ".join(_mark(stage) for stage in stages) or row.model
        status = {"done": "done", "failed": "FAILED", "missing": "changed since it was made" if row.stale else ""}
        yield f"  {i:>{count}}  {row.id:<{width}}  {status[row.status] or '-':<6}  {made}"


def _mark(stage: PlannedStage) -> str:
    shared = "*" if len(stage.rows) > 1 else ""
    return f"{stage.name}{shared}{' (done)' if stage.done else ''}"


def _stages(plan: Plan) -> Iterator[str]:
    runs = [stage for stage in plan.stages.values() if stage.kind == "train"]
    fills = [stage for stage in plan.stages.values() if stage.kind == "reference"]
    if not runs:
        yield "no training: all models are measured as they are"
        return
    uses = sum(len(stage.rows) for stage in runs)
    done = sum(stage.done for stage in runs)
    yield f"{len(runs)} training runs, {done} of them done; without sharing they would be {uses}"
    if fills:
        yield f"{len(fills)} fills of the reference cache, {sum(fill.done for fill in fills)} of them done"
    for stage in plan.shared:
        what = _what(stage)
        yield f"  {_mark(stage)} {stage.key}: once for {counted(len(stage.rows), 'row')}{what}"
    if plan.shared:
        yield "  * = shared by several rows"


def _what(stage: PlannedStage) -> str:
    config = stage.config
    source = config.model.path or config.model.config
    if stage.kind == "reference":
        of = config.reference.source
        return f" (log-probabilities of {config.model.path if of in ('policy', 'prior') else of})"
    return f" ({config.method.name} from {source})" if not stage.inputs else f" ({config.method.name})"
