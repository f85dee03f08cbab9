"""The quick start: a small study in a generated world, from random weights to a report."""

from __future__ import annotations

import os
import sys
import time
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.evaluation.statistics import bootstrap_mean
from jaxalign.quickstart import study as study_file
from jaxalign.quickstart.worlds import check_world
from jaxalign.studies import rows
from jaxalign.studies.report import write_report

JOBS = 2
HEADS = {
    "exact": "exact match, %",
    "sampled/exact": "sampled, %",
    "ranking": "pairs ranked right, %",
    "kl": "KL, nats",
    "sampled/length": "tokens",
}
"""Columns of the table: metrics of the measure ``answers``, with their heads."""


def run(workdir: str | Path, seed: int = 0, *, jobs: int | None = None, show: bool = False) -> Path:
    """Runs the study of the quick start and prints what it measured.

    Args:
      workdir: a study's folder: ``world/`` (data), ``stages/`` (runs as of ``jaxalign train``), ``rows.jsonl``,
        ``report.html``. What was interrupted goes on where it was.
      seed: of everything.
      jobs: models made at once, each in a process of one thread; 1 makes all in this process. None: 2, or 1 on a
        machine with one core.
      show: opens the report in a browser, where there is a display.

    Returns:
      The report.

    Raises:
      ConfigError: `workdir` holds the quick start of another seed or version, or rows failed.
    """
    from jaxalign.cli import main

    workdir = Path(workdir)
    check_world(workdir / "world", seed)
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs: got {jobs}, expected a whole number >= 1.")
    jobs = jobs or min(JOBS, os.cpu_count() or 1)
    if jobs > 1:
        # Matrices this small gain nothing from a second thread; a second process does.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    spec = f"{study_file.__file__}:world={workdir / 'world'},seed={seed}"
    started = time.perf_counter()
    code = main(["study", f"--config={spec}", f"--workdir={workdir}", f"--jobs={jobs}" if jobs > 1 else "--in-process"])
    if code:
        raise ConfigError(f"The study stopped with status {code}; see above. The same command goes on from there.")
    made = rows.read(workdir / "rows.jsonl")
    print(table(made))
    print(f"\nseed {seed}; {time.perf_counter() - started:.0f} s, {made_with(made)}")
    page = write_report(workdir).html
    print(f"The report: {page}")
    if show and has_display():
        webbrowser.open(page.resolve().as_uri())
    return page


def has_display() -> bool:
    """Whether a browser could show something: not on a server, nor in a container."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def table(made: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, a line for each model, as text for the terminal."""
    lines: list[tuple[str, ...]] = [("start", "method", "beta", "reference", *HEADS.values(), "")]
    for row in made:
        labels = row["labels"]
        cells = [str(labels.get(name, "")) for name in ("start", "method", "beta", "reference")]
        outcome = row["results"].get("answers", {}) if row["status"] == "done" else {}
        note = row["status"] if row["status"] != "done" else "degenerate" if outcome.get("degenerate") else ""
        lines.append((*cells, *(_cell(outcome.get("metrics", {}).get(name)) for name in HEADS), note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rule = "-" * max(map(len, text))
    return "\n".join(["", "in brackets the 95 % interval over the questions", rule, text[0], rule, *text[1:], rule])


def made_with(made: Sequence[Mapping[str, Any]]) -> str:
    """How long the training took, all runs added up."""
    runs = {stage["key"]: stage["seconds"] or 0.0 for row in made for stage in row.get("stages", ())}
    return f"{sum(runs.values()):.0f} s of training in {len(runs)} runs"


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "-"
    value, low, high = bootstrap_mean(metric["values"])
    if metric.get("unit", "share") == "share":
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{value:.2f}"
