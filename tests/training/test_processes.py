"""Two real processes, joined over loopback, train as one does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from tests.training.test_resume import command, environment, newest_step, outcome, run

UNDECIDED = {"rewards/accuracies"}
"""Before the second step, whose learning rate is the first above 0, policy and cached reference differ by rounding
alone; which of two equal rewards is larger is then noise, and the row of step 5 is a mean over such steps too."""
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def start_two(world, workdir, *extra: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            command(world, workdir, "--distributed", *extra),
            env=environment(devices=1)  # two CPU devices a process can starve each other in XLA's thread pool
            | {
                "JAXALIGN_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAXALIGN_NUM_PROCESSES": "2",
                "JAXALIGN_PROCESS_ID": str(process),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]


def finish(processes, timeout=280) -> list[str]:
    errors = [process.communicate(timeout=timeout)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(error[-2000:] for error in errors)
    return errors


@pytest.mark.parametrize("reference", ["live", "cached"])
def test_two_processes_equal_one(reference, tiny_world, tmp_path):
    extra = [f"--config.reference.mode={reference}", "--config.train.checkpoint_every=none"]
    caches = [f"--config.reference.cache_dir={tmp_path / name}" for name in ("cache-one", "cache-two")]
    run(tiny_world, tmp_path / "one", *extra, caches[0])
    finish(start_two(tiny_world, tmp_path / "two", *extra, caches[1]))
    rows, weights = outcome(tmp_path / "one")
    rows_two, weights_two = outcome(tmp_path / "two")
    assert [row["step"] for row in rows_two] == [row["step"] for row in rows]
    for one, two in zip(rows, rows_two, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - UNDECIDED if one["step"] <= 5 else one:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-4, err_msg=f"{name} {one['step']}")
    # Step 1 has seen no update yet: what is left is the rounding of the sums.
    np.testing.assert_allclose(rows_two[0]["grad_norm"], rows[0]["grad_norm"], rtol=1e-5)
    for name, value in weights.items():
        np.testing.assert_allclose(weights_two[name], value, atol=2e-4 * np.abs(value).max(), err_msg=name)
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["device"]["processes"] == 2
    assert manifest["device"]["devices"] == 2


def test_sigterm_to_one_process_stops_both(tiny_world, tmp_path):
    processes = start_two(tiny_world, tmp_path, "--config.train.steps=100000", "--config.train.checkpoint_every=none")
    deadline = time.monotonic() + 200
    while not (tmp_path / "metrics.jsonl").is_file() or not (tmp_path / "metrics.jsonl").read_text():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], "\n".join(error[-2000:] for error in errors)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    assert newest_step(tmp_path) == manifest["step"]
