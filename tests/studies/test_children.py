"""Rows in processes of their own: who runs beside whom, and what becomes of those that die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxalign.errors import ConfigError
from jaxalign.evaluation.outcome import Outcome
from jaxalign.studies import children, rows
from jaxalign.studies.devices import gpus, split_devices
from jaxalign.studies.folders import write_json
from jaxalign.studies.plan import Plan, make_plan
from jaxalign.studies.runner import begin, run_in_processes, shared_in_processes
from jaxalign.studies.study import Measure, Stage, Study, Trial
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.multiprocess
FAKE = Path(__file__).with_name("fake_child.py")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(children, "POLL", 0.02)
    monkeypatch.setattr(children, "GATHERED", 0.02)


@pytest.fixture
def plan(tmp_path) -> Plan:
    """Two SFT runs that two rows each need."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    data = {"train": [str(tmp_path / "pairs.jsonl")]}

    def stage(name, method, start=None, **more):
        model = {} if start else {"model": {"path": str(tmp_path / "model")}}
        inputs = {"model.path": start} if start else {}
        return Stage(name=name, config={"data": data, "method": {"name": method}, **model, **more}, inputs=inputs)

    trials = [
        Trial(
            labels={"seed": seed, "method": method},
            # Live, so that no fill of the reference cache is a stage of its own.
            model=stage("align", method, stage("sft", "sft", train={"seed": seed}), reference={"mode": "live"}),
        )
        for seed in (0, 1)
        for method in ("dpo", "ipo")
    ]
    measures = (Measure(name="m", run=lambda subject: Outcome(metrics={})),)
    study = Study(name="s", question="q", trials=tuple(trials), measures=measures, headline="m/x")
    made = make_plan(study, tmp_path / "w")
    begin(made)
    return made


class Shown:
    def __init__(self):
        self.lines: list[tuple[str, str, bool]] = []

    def __call__(self, job, line, last):
        self.lines.append((job, line, last))

    def last(self, job) -> list[str]:
        return [line for name, line, last in self.lines if name == job and last]


def run(plan: Plan, jobs=1, environments=None, **behaviour) -> tuple[bool, Shown]:
    """Runs all rows with stand-ins that behave as told, by row."""
    root, shown = plan.folders.root, Shown()
    told = {"all": behaviour.pop("everyone", {})}
    for row in plan.rows:
        stages = [(plan.stages[key].name, key) for key in row.stages]
        told[row.id] = {"stages": stages, "key": row.key, **behaviour.get(row.id.replace("-", "_"), {})}
    write_json(root / "behaviour.json", told)
    command = [sys.executable, str(FAKE), f"--workdir={root}"]
    chosen = [row for row in plan.rows if rows.read_row(plan.folders.row(row.id)) is None]
    return run_in_processes(plan, chosen, command, environments or [{}] * jobs, shown), shown


def seen(plan: Plan) -> list[dict]:
    return [json.loads(line) for line in (plan.folders.root / "seen.jsonl").read_text().splitlines()]


def started(plan: Plan) -> list[str]:
    return [each["key"] for each in seen(plan) if each["event"] == "stage started"]


def made(plan: Plan) -> dict[str, dict]:
    return {row["row"]: row for row in rows.read(plan.folders.all_rows)}


def test_rows_that_need_the_same_stage_wait_for_it(plan):
    done, shown = run(plan, jobs=4, everyone={"seconds": 1})
    assert done
    assert len(started(plan)) == len(set(started(plan))) == 6
    assert [row["status"] for row in made(plan).values()] == ["done"] * 4
    assert list(made(plan)) == [row.id for row in plan.rows]
    # The rows of the two seeds share nothing: their first stages run side by side.
    times = {(e["event"], e.get("key")): e["time"] for e in seen(plan) if e["event"] != "started"}
    one, two = (row.stages[0] for row in (plan.rows[0], plan.rows[2]))
    assert times["stage started", two] < times["stage done", one]
    # The second row begins when the stage that it shares is done, not when the first row is.
    second = next(e["time"] for e in seen(plan) if e["event"] == "started" and e["row"] == plan.rows[1].id)
    assert times["stage done", one] < second < times["stage done", plan.rows[0].stages[1]]
    assert re.search(r"done \([1-9] s\)$", shown.last(plan.rows[0].id)[0])


def test_places_get_their_devices(plan):
    run(
        plan, environments=[{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}], everyone={"seconds": 0.1}
    )
    found = [each for each in seen(plan) if each["event"] == "started"]
    assert {each["gpus"] for each in found} == {"0,1", "2,3"}
    assert all(each["job"] == each["row"] for each in found)


def test_a_process_that_is_killed_is_a_failed_row_and_its_stage_is_not_tried_again(plan):
    done, shown = run(plan, seed0_dpo={"dies": "sft"})
    assert done
    row = made(plan)["seed0-dpo"]
    assert row["status"] == "failed"
    assert (row["error"]["stage"], row["error"]["type"]) == ("sft", "Killed")
    assert "was ended by SIGKILL. Out of memory is the usual reason" in row["error"]["message"]
    assert row["error"]["stderr"] == ["a last line"]
    assert (row["labels"], row["stages"], row["results"]) == ({"seed": 0, "method": "dpo"}, [], {})
    assert shown.last("seed0-dpo")[0].startswith("FAILED: its process was ended by SIGKILL")
    failures = list((plan.folders.root / "stages").glob("*.failed.json"))
    assert [file.name for file in failures] == [f"sft-{plan.rows[0].stages[0]}.failed.json"]
    assert started(plan).count(plan.rows[0].stages[0]) == 1


def test_a_process_that_ends_before_it_can_say_why(plan):
    run(plan, seed0_dpo={"exits": "align"})
    error = made(plan)["seed0-dpo"]["error"]
    assert error["message"] == "its process ended with exit code 1: something is wrong"
    assert error["stage"] == "align"
    assert made(plan)["seed0-ipo"]["status"] == "done"


def test_a_process_that_dies_with_its_row_written(plan):
    run(plan, seed0_dpo={"dies": "after"})
    assert made(plan)["seed0-dpo"]["status"] == "done"


def test_a_process_that_somebody_stops_goes_on(plan):
    run(plan, seed0_dpo={"stopped": "sft", "times": 2}, seed1_dpo={"stopped": "sft", "times": 9})
    assert made(plan)["seed0-dpo"]["status"] == "done"
    assert "exit code 143" in made(plan)["seed1-dpo"]["error"]["message"]
    assert started(plan).count(plan.rows[2].stages[0]) == children.TRIES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_and_writes_no_row(plan, number):
    def interrupt():
        while not (plan.folders.root / "seed1-dpo.waits").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=interrupt)
    sender.start()
    before = signal.getsignal(number)
    done, shown = run(plan, jobs=2, seed0_dpo={"waits": "sft"}, seed1_dpo={"waits": "sft"})
    sender.join()
    assert not done
    assert signal.getsignal(number) is before
    assert made(plan) == {}
    assert "the same command goes on" in shown.last("seed0-dpo")[0]
    assert not list((plan.folders.root / "stages").glob("*.failed.json"))


def test_shared_stages_in_processes(plan):
    shared = [(stage.name, stage.key) for stage in plan.shared]
    write_json(plan.folders.root / "behaviour.json", {"all": {"stages": shared}})
    command = [sys.executable, str(FAKE), f"--workdir={plan.folders.root}"]
    assert shared_in_processes(plan, (0, 1), command, [{}], Shown())
    assert started(plan) == [stage.key for stage in plan.shared]
    assert [each["job"] for each in seen(plan) if each["event"] == "started"] == ["shared-0", "shared-1"]


def test_an_orphan_stops(tmp_path):
    """A process that trains stops when the one that started it is killed, and gives its locks back."""
    child = (
        "import pathlib, sys, time\nfrom jaxalign.studies.folders import locked\n"
        "from jaxalign.studies.signals import Stopped, stop_on_signals, stop_with_parent\n"
        "stop_with_parent()\nroot = pathlib.Path(sys.argv[1])\n"
        "try:\n    with stop_on_signals(), locked(root / 'lock'):\n        (root / 'held').touch()\n"
        "        time.sleep(60)\n"
        "except Stopped:\n    (root / 'saved').touch()\n"
    )
    parent = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]], stdin=subprocess.PIPE)\ntime.sleep(60)"
    )
    started = subprocess.Popen([sys.executable, "-c", parent, child, str(tmp_path)], cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while not (tmp_path / "held").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started.kill()
    started.wait()
    while not (tmp_path / "saved").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "3,5"}, ["3", "5"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": "GPU-8f"}, ["GPU-8f"]),
    ],
)
def test_gpus_of_an_environment(environment, found):
    assert gpus(environment) == found


def test_devices_are_split():
    four = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert split_devices(1, four) == [{}]
    assert split_devices(3, {"JAX_PLATFORMS": "cpu"}) == [{}, {}, {}]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in split_devices(2, four)] == ["0,1", "2,3"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in split_devices(3, four)] == ["0", "1", "2,3"]
    with pytest.raises(ConfigError, match="--jobs: got 5, expected at most 4, the GPUs here"):
        split_devices(5, four)
    with pytest.raises(ConfigError, match="--jobs: got 0"):
        split_devices(0, four)
    with pytest.raises(ConfigError, match="on a TPU host, expected 1"):
        split_devices(2, {"TPU_ACCELERATOR_TYPE": "v5litepod-8"})
