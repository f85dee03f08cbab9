"""Rows in processes of their own: started when what they need is free, watched, and written off when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from jaxalign.files import compiled_folder
from jaxalign.studies import rows
from jaxalign.studies.folders import Folders, note_event, read_json
from jaxalign.studies.make_row import STDERR_LINES, failure, finished, note_failure, row_of
from jaxalign.studies.plan import Plan, PlannedRow
from jaxalign.studies.signals import CHILD, FAILED_ROWS, STOPPED

POLL = 0.25
TRIES = 3
"""How often a process is started again that somebody else has stopped."""
GATHERED = 2.0
"""Seconds in which the signal that a child got reaches us too, if it was meant for all."""

Show = Callable[[str, str, bool], None]
"""``(job, line, last)``: what a job is doing, or, at last, what came of it."""


@dataclass
class Job:
    """What one process does.

    Attributes:
      id: the row's, or a name of our own.
      title: for people.
      arguments: behind the command.
      stages: keys of the stages that it may run.
      row: the row that it makes, if it makes one.
      tries: how often it was started.
    """

    id: str
    title: str
    arguments: tuple[str, ...]
    stages: tuple[str, ...]
    row: PlannedRow | None = None
    tries: int = 0


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    log: IO[bytes]
    log_start: int
    slot: int
    line: str = ""


class Children:
    """Runs jobs in processes. Two jobs that would have to run the same stage never run at once.

    Args:
      plan: the study.
      command: that a job's arguments are appended to.
      environments: what the environment of each place gets; as many jobs run at once.
      show: told of progress.
    """

    def __init__(self, plan: Plan, command: Sequence[str], environments: Sequence[Mapping[str, str]], show: Show):
        self._plan, self._folders = plan, plan.folders
        self._command, self._environments, self._show = list(command), environments, show
        self._running: list[_Running] = []
        self._finished: set[str] = set()
        self._stopping = 0

    def run(self, jobs: Sequence[Job]) -> bool:
        """Runs all jobs. Returns False if a signal stopped it; then all processes have saved and ended."""
        waiting = list(jobs)
        previous = {n: signal.signal(n, self._on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
        told = 0
        try:
            while self._running or (waiting and not self._stopping):
                if self._stopping > told:
                    self._send(signal.SIGTERM if self._stopping == 1 else signal.SIGKILL)
                    told = self._stopping
                if not self._stopping:
                    self._start(waiting)
                time.sleep(POLL)
                for running in list(self._running):
                    self._watch(running, waiting)
        finally:
            self._send(signal.SIGKILL)  # none is left but after an error of our own
            for number, handler in previous.items():
                signal.signal(number, handler)
        return not self._stopping

    def _on_signal(self, number, frame) -> None:
        again = self._stopping and number == signal.SIGINT  # who asks twice does not want to wait
        self._stopping = 2 if again else max(self._stopping, 1)

    def _send(self, number: int) -> None:
        for running in self._running:
            if running.process.poll() is None:
                running.process.send_signal(number)

    def _busy(self) -> set[str]:
        """Stages that running jobs may still have to run."""
        keys = {key for running in self._running for key in running.job.stages} - self._finished
        self._finished |= {key for key in keys if finished(self._plan, self._plan.stages[key])}
        return keys - self._finished

    def _start(self, waiting: list[Job]) -> None:
        free = sorted(set(range(len(self._environments))) - {running.slot for running in self._running})
        if not free or not waiting:
            return
        busy = self._busy()
        for job in list(waiting):
            if busy & set(job.stages):
                continue
            waiting.remove(job)
            self._running.append(self._launch(job, free.pop(0)))
            if not free:
                return
            busy = self._busy()

    def _launch(self, job: Job, slot: int) -> _Running:
        job.tries += 1
        file = self._folders.log(job.id)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._folders.doing(job.id).unlink(missing_ok=True)
        log = open(file, "ab")  # noqa: SIM115 - closed when the process has ended
        start = log.tell()
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(compiled_folder())}  # rows of a study share most programs
        environment = {**compiled, **os.environ, **self._environments[slot]}
        process = subprocess.Popen(
            [*self._command, *job.arguments],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, CHILD: job.id},
        )
        return _Running(job, process, log, start, slot)

    def _watch(self, running: _Running, waiting: list[Job]) -> None:
        code = running.process.poll()
        if code is None:
            line = (read_json(self._folders.doing(running.job.id)) or {}).get("line", "")
            if line and line != running.line:
                running.line = line
                self._show(running.job.id, line, False)
            return
        if code in (STOPPED, -signal.SIGTERM) and not self._stopping:
            time.sleep(GATHERED)
        running.log.close()
        if running.process.stdin is not None:
            running.process.stdin.close()
        self._running.remove(running)
        self._ended(running, code, waiting)
        self._folders.doing(running.job.id).unlink(missing_ok=True)

    def _ended(self, running: _Running, code: int, waiting: list[Job]) -> None:
        job = running.job
        if self._stopping and code != 0:
            self._show(job.id, "stopped; the same command goes on from here", True)
        elif self._over(job, code):
            self._show(job.id, self._outcome(job, running.line), True)
        elif code in (STOPPED, -signal.SIGTERM) and job.tries < TRIES:
            waiting.insert(0, job)  # somebody stopped this process alone; it has saved
        else:
            self._died(running, code, waiting)
        if job.row is not None:
            rows.collect(self._folders, self._plan.keys, self._plan.study)

    def _over(self, job: Job, code: int) -> bool:
        """Whether a job did what it should. With a row that is done it may have died on its way out."""
        said = code in (0, FAILED_ROWS)
        return said if job.row is None else self._made(job.row, *(() if said else ("done",)))

    def _made(self, row: PlannedRow, *status: str) -> bool:
        made = rows.read_row(self._folders.row(row.id))
        return made is not None and made.get("key") == row.key and made["status"] in (status or ("done", "failed"))

    def _outcome(self, job: Job, line: str) -> str:
        if job.row is None:
            return line or "done"
        made = rows.read_row(self._folders.row(job.row.id)) or {}
        return outcome_line(made)

    def _died(self, running: _Running, code: int, waiting: list[Job]) -> None:
        """A process that could not say itself what went wrong: killed, out of memory, or of another mind than we."""
        job, plan = running.job, self._plan
        doing = read_json(self._folders.doing(job.id)) or {}
        printed = _tail(self._folders, job.id, running.log_start)
        error: dict[str, Any] = {
            "stage": doing.get("what"),
            "type": "Killed" if code < 0 else "Exit",
            "message": _how(code, printed),
            "stderr": printed,
        }
        note_event(self._folders, "process died", job=job.id, code=code)
        stage = plan.stages.get(doing.get("key") or "")
        if stage is not None and not finished(plan, stage) and failure(plan, stage) is None:
            error["stage"] = stage.name
            note_failure(plan, stage, error)
        if job.row is not None:
            rows.write_row(self._folders, row_of(plan, job.row, error))
        elif stage is not None:
            waiting.insert(0, job)  # for the stages that are left; this one is recorded as failed
        self._show(job.id, f"FAILED: {error['message']}", True)


def outcome_line(row: Mapping[str, Any]) -> str:
    """What came of a row: its headline number, or its error."""
    if row.get("status") == "failed":
        error = row.get("error") or {}
        first = str(error.get("message", "")).splitlines() or [""]
        where = f" in {error['stage']}" if error.get("stage") else ""
        return f"FAILED{where}: {error.get('type')}: {first[0]}"
    headline = row["study"]["headline"]
    measure, _, metric = headline.partition("/")
    outcome = row["results"].get(measure, {})
    value = outcome.get("metrics", {}).get(metric, {}).get("value")
    shown = f"{headline} {value:.4g}" if value is not None else "done"
    if outcome.get("degenerate"):
        shown = f"degenerate: {outcome['degenerate']}"
    return f"{shown} ({row['seconds']:.0f} s)"


def _how(code: int, printed: Sequence[str]) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}: {printed[-1] if printed else 'nothing was printed'}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
    hint = " Out of memory is the usual reason: the kernel kills then." if code == -signal.SIGKILL else ""
    return f"its process was ended by {name}.{hint}"


def _tail(folders: Folders, job: str, start: int) -> list[str]:
    """The last lines that the process printed."""
    with open(folders.log(job), "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(start, file.tell() - 2**16))
        text = file.read().decode("utf-8", "replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-STDERR_LINES:]
