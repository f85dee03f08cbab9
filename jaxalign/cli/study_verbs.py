"""The verb for studies: ``jaxalign study``."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxalign.config_transport import load_study
from jaxalign.errors import ConfigError, counted, some
from jaxalign.studies.signals import CHILD, FAILED_ROWS, STOPPED

QUIET = 10.0
"""Seconds between two lines of a row where the output is no terminal."""


def study_flags(parser: ArgumentParser) -> None:
    """Adds the verb's flags."""
    add = parser.add_argument
    add("--config", metavar="FILE[:ARG]", help="the study file: Python with get_study(ARG)")
    add("--workdir", metavar="FOLDER", help="folder of the study (default: studies/NAME)")
    add("--dry-run", action="store_true", help="print the plan and stop")
    add("--jobs", type=int, metavar="N", default=1, help="rows made at once, each in a process (default: %(default)s)")
    add("--in-process", action="store_true", help="make all rows in this process, one after another")
    add("--row", metavar="ID", help="make this row only, in this process")
    add("--shared", action="store_true", help="run the stages that several rows need, and no row")
    add("--shard", metavar="I/N", help="of the rows, or with --shared of those stages, part I of N; I counts from 0")
    add("--retry-failed", action="store_true", help="make rows again that have failed")
    add("--distributed", action="store_true", help="each row on several hosts (see launch/README.md)")
    add("--emit", choices=("slurm", "gke"), help="write jobs for a scheduler instead of running anything")
    add("--out", metavar="FILE", help="file for --emit (default: the standard output)")


def study(args: Namespace) -> int:
    """Runs a study, or a part of it."""
    shard = _check(args)
    child = os.environ.pop(CHILD, None)
    alone = args.row is not None or args.in_process or child is not None
    from jaxalign.studies.signals import Stopped, stop_on_signals, stop_with_parent

    if child is not None:
        stop_with_parent()
    if alone and args.distributed:
        from jaxalign.cli.distributed import connect

        connect()
    if not alone:
        import jax

        jax.config.update("jax_platforms", "cpu")  # the devices are for the processes that we start
    from jaxalign.studies import runner
    from jaxalign.studies.plan_text import plan_lines
    from jaxalign.training.loop import Interrupted

    asked = load_study(args.config)
    workdir = args.workdir or f"studies/{asked.name}"
    plan = runner.prepared(asked, workdir)
    if args.emit:
        return _emit(args, plan, workdir)
    chosen = runner.part(plan.rows, shard) if args.row is None else [plan.row(args.row)]
    todo = [row for row in chosen if row in runner.unfinished(plan, retry_failed=args.retry_failed)]
    if child is None and args.row is None:
        print("\n".join(plan_lines(plan, None if args.shared else todo)), flush=True)
    if args.dry_run:
        return 0
    if child is None:
        runner.begin(plan, retry_failed=args.retry_failed)
    if not alone:
        return _parent(args, plan, shard, chosen, todo, workdir)
    try:
        with stop_on_signals():
            if args.shared:
                failed = runner.run_shared(plan, shard, print, plan.folders.doing(child) if child else None)
                return 0 if child or args.shard or not failed else FAILED_ROWS
            # Asked for by name, a failed row is made again: its failed stages are not, without --retry-failed.
            for row in chosen if args.row is not None else todo:
                title = runner.place(plan, row)
                runner.run_row(
                    plan, row, lambda line, title=title: print(f"{title}: {line}", flush=True), watched=bool(child)
                )
    except Interrupted as stop:
        print(f"jaxalign study: {stop}", file=sys.stderr)
        return STOPPED
    except Stopped:
        print("jaxalign study: stopped; run the same command again to go on from there", file=sys.stderr)
        return STOPPED
    from jaxalign.studies.processes import agree

    # The first process alone knows that its files are written; the others end as it does.
    return FAILED_ROWS if agree(lambda: _end(args, plan, chosen) != 0) else 0


def _check(args: Namespace) -> tuple[int, int]:
    """The shard, after everything that can be wrong with the flags together."""
    problems = list(args.problems)
    if args.config is None:
        problems.append("--config: missing, expected a study file, such as --config=configs/studies/dpo_variants.py.")
    if args.row is not None:
        for flag, given in (
            ("--shard", args.shard is not None),
            ("--shared", args.shared),
            ("--jobs", args.jobs != 1),
            ("--in-process", args.in_process),
        ):
            if given:
                problems.append(f"{flag}: got it beside --row, expected only one of the two.")
    if args.jobs < 1:
        problems.append(f"--jobs: got {args.jobs}, expected 1 or more.")
    if args.emit is not None:
        for flag, given in (
            ("--row", args.row is not None),
            ("--shard", args.shard is not None),
            ("--shared", args.shared),
            ("--jobs", args.jobs != 1),
            ("--in-process", args.in_process),
            ("--dry-run", args.dry_run),
            ("--retry-failed", args.retry_failed),
        ):
            if given:
                problems.append(
                    f"{flag}: got it beside --emit, which only writes jobs, for all rows; expected one of them."
                )
    if args.in_process and args.jobs != 1:
        problems.append("--jobs: got it beside --in-process, which makes one row after another.")
    if args.out is not None and args.emit is None:
        problems.append("--out: got a file without --emit, expected --emit=slurm or --emit=gke.")
    if args.distributed and args.jobs != 1:
        problems.append(
            f"--jobs: got {args.jobs} with --distributed, expected 1: a row takes all devices of all hosts."
        )
    shard = (0, 1)
    if args.shard is not None:
        from jaxalign.studies.runner import read_shard

        try:
            shard = read_shard(args.shard)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return shard


def _parent(args: Namespace, plan, shard, chosen, todo, workdir) -> int:
    from jaxalign.studies import runner
    from jaxalign.studies.devices import split_devices

    environments = split_devices(args.jobs)
    command = [sys.executable, "-m", "jaxalign", "study", f"--config={args.config}", f"--workdir={workdir}"]
    command += ["--distributed"] if args.distributed else []
    if args.shared:
        groups = {f"shared-{i}": _group_title(i, group) for i, group in enumerate(runner.groups(plan))}
        done = runner.shared_in_processes(plan, shard, command, environments, Console(groups))
        return 0 if done else STOPPED
    titles = {row.id: runner.place(plan, row) for row in todo}
    if not runner.run_in_processes(plan, todo, command, environments, Console(titles)):
        print("jaxalign study: stopped; run the same command again to go on from there", file=sys.stderr)
        return STOPPED
    return _end(args, plan, chosen)


def _group_title(i: int, group: Sequence) -> str:
    return f"shared stages {i + 1} ({', '.join(dict.fromkeys(stage.name for stage in group))})"


def _end(args: Namespace, plan, chosen: Sequence) -> int:
    """Tells what there is now. A part of an array succeeds also with failed rows: the scheduler should go on."""
    from jaxalign.studies import rows
    from jaxalign.studies.plan_text import outside

    status = {row["row"]: row["status"] for row in rows.read(plan.folders.all_rows)}
    failed = [row.id for row in chosen if status.get(row.id) == "failed"]
    done = sum(status.get(row.id) == "done" for row in plan.rows)
    more = f", and {outside(plan.outside)}" if plan.outside else ""
    print(f"{done} of {counted(len(plan.rows), 'row')} done{more}: {plan.folders.all_rows}")
    if not failed:
        return 0
    told = f"{counted(len(failed), 'row')} failed: {some(failed, 5)}"
    print(f"jaxalign study: {told}. Their errors are in their rows and", file=sys.stderr)
    print(f"{plan.folders.log('ROW')}; --retry-failed makes them again.", file=sys.stderr)
    return 0 if args.shard else FAILED_ROWS


def _emit(args: Namespace, plan, workdir: str) -> int:
    from jaxalign.studies.schedulers import EMITTERS

    text = EMITTERS[args.emit](plan, config=args.config, workdir=workdir, distributed=args.distributed)
    if args.out is None:
        print(text, end="")
        return 0
    target = Path(args.out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target}")
    return 0


class Console:
    """Shows the progress of rows: one line that changes on a terminal, few lines elsewhere.

    Args:
      titles: of the jobs, by name.
    """

    def __init__(self, titles: Mapping[str, str]):
        self._titles = titles
        self._live = sys.stdout.isatty()
        self._last: dict[str, float] = {}

    def __call__(self, job: str, line: str, last: bool) -> None:
        """See `jaxalign.studies.children.Show`."""
        text = f"{self._titles.get(job, job)}: {line}"
        if self._live:
            print(f"\r\033[K{text}", end="\n" if last else "", flush=True)
        elif last or time.monotonic() - self._last.get(job, -QUIET) >= QUIET:
            self._last[job] = time.monotonic()
            print(text, flush=True)
