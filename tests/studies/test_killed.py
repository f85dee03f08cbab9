"""A study with real training: killed at random moments, stopped by SIGTERM, failing, and each time gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxalign.studies import rows
from tests.conftest import QUICK_XLA, REPOSITORY
from tests.studies.worlds import write_world

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(900)]
SPEC = REPOSITORY / "tests" / "studies" / "six_rows.py"
KILLS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def command(world: Path, workdir: Path, *flags: str, arg: str = "") -> list[str]:
    return [
        *(sys.executable, "-m", "jaxalign", "study", f"--config={SPEC}:world={world}{arg}", f"--workdir={workdir}"),
        *flags,
    ]


def settings() -> dict[str, str]:
    """One device, and compilation that takes little time."""
    quick = {
        "XLA_FLAGS": QUICK_XLA,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return os.environ | quick


def run(*arguments: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(list(arguments), env=settings(), cwd=REPOSITORY, capture_output=True, text=True, **more)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> list[rows.Row]:
    """The rows of a run that nothing disturbs, in one process."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = run(*command(world, workdir, "--in-process"), check=False)
    assert done.returncode == 0, done.stderr
    return rows.read(workdir)


def events(workdir: Path, kind: str) -> list[str]:
    file = workdir / "events.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [each["key"] for each in found if each["event"] == kind]


def exports(workdir: Path) -> dict[str, int]:
    """When the models of finished stages were written."""
    found = {}
    for manifest in (workdir / "stages").glob("*/manifest.json"):
        if json.loads(manifest.read_text())["status"] == "done":
            found[manifest.parent.name] = (manifest.parent / "export" / "model.safetensors").stat().st_mtime_ns
    return found


def test_killed_at_any_time_it_gives_the_same_rows_and_repeats_nothing(world, undisturbed, tmp_path):
    workdir, moments = tmp_path / "w", random.Random()
    finished: dict[str, int] = {}
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(world, workdir), env=settings(), cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL
        )
        before = len(events(workdir, "stage started"))
        deadline = time.monotonic() + 120
        while (
            len(events(workdir, "stage started")) == before and process.poll() is None and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 6))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        # What is there is whole, and equal to what a run gives that nothing disturbs.
        expected = {row["row"]: rows.comparable(row) for row in undisturbed}
        for file in (workdir / "rows").glob("*.json"):
            row = json.loads(file.read_text())
            assert rows.comparable(row) == expected[row["row"]]
        if (workdir / "rows.jsonl").exists():
            assert all(row["status"] == "done" for row in rows.read(workdir))
        now = exports(workdir)
        assert now.items() >= finished.items()
        finished = now
    done = run(*command(world, workdir), check=False)
    assert done.returncode == 0, done.stderr
    assert [rows.comparable(row) for row in rows.read(workdir)] == [rows.comparable(row) for row in undisturbed]
    assert exports(workdir).items() >= finished.items()
    lines = [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]
    over: set[str] = set()
    for line in lines:
        if line["event"] == "stage done":
            assert line["key"] not in over
            over.add(line["key"])
        elif line["event"] == "stage started":
            assert line["key"] not in over
    assert len(exports(workdir)) == 4
    assert not list((workdir / "rows").glob(".*"))


def test_sigterm_saves_and_the_same_command_goes_on(world, undisturbed, tmp_path):
    workdir = tmp_path / "w"
    process = subprocess.Popen(
        command(world, workdir, "--row=sft-none", arg=",steps=4000"),
        env=settings(), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(workdir.glob("stages/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "run the same command again to go on from there" in printed
    (manifest,) = workdir.glob("stages/*/manifest.json")
    facts = json.loads(manifest.read_text())
    assert facts["status"] == "interrupted"
    assert (manifest.parent / "checkpoints" / str(facts["step"])).is_dir()
    assert not (workdir / "rows").exists()
