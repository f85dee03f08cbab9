"""Two processes of one run: they fill one store without doing the work twice, and evaluate to the same numbers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUICK_XLA


@pytest.mark.multiprocess
def test_two_processes_fill_one_store_and_collect_everything(tmp_path, repository):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {
        "XLA_FLAGS": f"{QUICK_XLA} --xla_force_host_platform_device_count=1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(repository),
    }
    script = Path(__file__).with_name("two_processes.py")
    children = [
        subprocess.Popen([sys.executable, script, tmp_path, port, str(i)], stdout=subprocess.PIPE, env=environment)
        for i in range(2)
    ]
    try:
        outputs = [child.communicate(timeout=200)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0]
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert first == second
    # 9 examples have 18 different completions: none is computed twice.
    assert first["reports"] == [[8, 0, 8, 0], [18, 8, 10, 0]]
    assert first["calls"] == [[f"row {i}" for i in ids] for ids in ((0, 1, 2, 3), (4, 5, 6, 7, 8))]
    assert first["exact"]
    assert first["ids"] == [5, 7, 8, 9, 10]
    assert first["policy"] == [-5, -3, -2, -1, 0]
    names = [path.name for path in tmp_path.rglob("part-*.parquet")]
    assert len(names) == 4
    assert sum("-p00001-" in name for name in names) == 2
