"""A run that is killed and started again goes on bit for bit as if nothing had happened.

The runs are real processes of the command, killed with SIGKILL at random moments. On another mesh the continued run
agrees to rounding.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from tests.conftest import QUICK_XLA

STEPS = 12
PATIENCE = 600
"""Seconds until a process that does not get on counts as hanging: many times what it takes, as machines may be busy."""
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(4 * PATIENCE)]


def command(world: Path, workdir: Path, *extra: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "jaxalign",
        "train",
        f"--config={Path(__file__).parents[2] / 'configs' / 'paired.py'}:dpo",
        f"--config.model.path={world / 'model'}",
        f"--config.data.train={world / 'pairs.jsonl'}",
        "--config.data.eval_size=4",
        "--config.model.dtype=float32",
        "--config.optimizer.learning_rate=0.01",
        f"--config.train.steps={STEPS}",
        "--config.train.batch_size=4",
        "--config.train.log_every=5",
        "--config.train.eval_every=6",
        "--config.train.checkpoint_every=1",
        "--config.train.keep=2",
        f"--config.reference.cache_dir={world / 'cache'}",
        f"--workdir={workdir}",
        *extra,
    ]


def environment(devices: int = 1) -> dict[str, str]:
    flags = f"{QUICK_XLA} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def run(*args, devices: int = 1) -> None:
    done = subprocess.run(command(*args), env=environment(devices), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]


def run_killed(*args, kills: int, seed: int) -> None:
    """Starts the command again and again, killing it each time after it has taken a few more steps."""
    random.seed(seed)
    workdir = args[1]
    for _ in range(kills):
        process = subprocess.Popen(
            command(*args), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before, goal = newest_step(workdir), random.randint(1, 3)
        deadline = time.monotonic() + PATIENCE
        try:
            while process.poll() is None and newest_step(workdir) < before + goal:
                assert time.monotonic() < deadline, "the run does not get on"
                time.sleep(0.02)
            time.sleep(random.random() * 0.2)  # at any moment: in a step, in a save, in an evaluation
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    run(*args)


def newest_step(workdir: Path) -> int:
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


def outcome(workdir: Path) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The metrics without what a clock measured, and the exported weights."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]
    return rows, load_file(workdir / "export" / "model.safetensors")


def manifest(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "manifest.json").read_text())


def method_state(workdir: Path) -> dict[str, float]:
    """The method's running statistics in the newest checkpoint."""
    with ocp.PyTreeCheckpointer() as reader:
        saved = reader.restore(workdir / "checkpoints" / str(newest_step(workdir)) / "state")
    return {name: float(value) for name, value in (saved["method_state"] or {}).items()}


KINDS = {
    "frozen": ["--config.reference.mode=live"],
    "cached": ["--config.reference.mode=cached"],
    "moving": [
        "--config.reference.mode=moving",
        "--config.reference.update_every=3",
        "--config.train.check_first_step=false",
    ],
    # Running statistics, and pairs dropped by draws from keys.
    "state": ["--config.method.name=beta_dpo"],
    # A head that starts random, and no reference.
    "head": ["--config.method.name=reward_model"],
}


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # one device wrote it, and one reads it
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_is_bit_equal(kind, tiny_world, tmp_path):
    extra = KINDS[kind]
    run(tiny_world, tmp_path / "whole", *extra)
    kills = 1 if kind in ("state", "head") else 2
    run_killed(tiny_world, tmp_path / "killed", *extra, kills=kills, seed=6)
    rows, weights = outcome(tmp_path / "whole")
    rows_again, weights_again = outcome(tmp_path / "killed")
    assert [row["step"] for row in rows] == [1, 5, 6, 10, 12, 12]
    assert rows_again == rows
    assert weights_again.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(weights_again[name], value, err_msg=name)
    assert manifest(tmp_path / "killed")["resumed_at"] > 0
    state = method_state(tmp_path / "killed")
    assert state == method_state(tmp_path / "whole") == manifest(tmp_path / "killed")["method_state"]
    assert all(value != 0.0 for value in state.values())
    assert state.keys() == ({"mean", "std"} if kind == "state" else set())
    assert ("score.weight" in weights) == (kind == "head")


def test_resumed_on_another_mesh_goes_on_correctly(tiny_world, tmp_path):
    run(tiny_world, tmp_path / "whole")
    process = subprocess.Popen(
        command(tiny_world, tmp_path / "moved"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while newest_step(tmp_path / "moved") < 4:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    run(tiny_world, tmp_path / "moved", *mesh, devices=8)
    rows, weights = outcome(tmp_path / "whole")
    rows_again, weights_again = outcome(tmp_path / "moved")
    assert [row["step"] for row in rows_again] == [row["step"] for row in rows]
    np.testing.assert_allclose(rows_again[-1]["eval_loss"], rows[-1]["eval_loss"], rtol=1e-4)
    for name, value in weights.items():
        np.testing.assert_allclose(weights_again[name], value, atol=2e-4 * np.abs(value).max(), err_msg=name)


def test_sigterm_saves_and_says_so(tiny_world, tmp_path):
    process = subprocess.Popen(
        command(tiny_world, tmp_path, "--config.train.checkpoint_every=none", "--config.train.steps=100000"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "metrics.jsonl").is_file() or not (tmp_path / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors[-3000:]
    assert "interrupted after step" in errors
    assert "Traceback" not in errors
    assert manifest(tmp_path)["status"] == "interrupted"
    assert newest_step(tmp_path) == manifest(tmp_path)["step"]
