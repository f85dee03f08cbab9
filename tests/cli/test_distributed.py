"""What the environment says of the other processes."""

import os
import re
import socket
import subprocess
import sys

import pytest

from jaxalign.cli.distributed import COORDINATOR, NUM_PROCESSES, PROCESS_ID, settings
from jaxalign.errors import ConfigError


def test_nothing_said_leaves_everything_to_jax():
    assert settings({}) == {}


def test_one_variable_overrides_one_argument():
    assert settings({COORDINATOR: "node-0:1234"}) == {"coordinator_address": "node-0:1234"}


def test_all_three_switch_detection_off():
    environment = {COORDINATOR: "[::1]:1234", NUM_PROCESSES: "2", PROCESS_ID: "1"}
    assert settings(environment) == {
        "coordinator_address": "[::1]:1234",
        "num_processes": 2,
        "process_id": 1,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({COORDINATOR: "node-0"}, f"{COORDINATOR}: got 'node-0', expected host:port"),
        ({NUM_PROCESSES: "two"}, f"{NUM_PROCESSES}: got 'two', expected a whole number >= 1"),
        ({NUM_PROCESSES: "0"}, f"{NUM_PROCESSES}: got '0', expected a whole number >= 1"),
        ({PROCESS_ID: "-1"}, f"{PROCESS_ID}: got '-1', expected a whole number >= 0"),
        ({NUM_PROCESSES: "2", PROCESS_ID: "2"}, f"{PROCESS_ID}: got 2, expected less than {NUM_PROCESSES} = 2"),
    ],
)
def test_wrong_variables(environment, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings(environment)


def test_all_problems_at_once():
    with pytest.raises(ConfigError) as caught:
        settings({COORDINATOR: "x", NUM_PROCESSES: "y", PROCESS_ID: "z"})
    assert len(caught.value.problems) == 3


@pytest.mark.multiprocess
def test_two_processes_meet():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    program = "from jaxalign.cli.distributed import connect; connect(); import jax; print(jax.process_count())"
    environment = os.environ | {COORDINATOR: f"127.0.0.1:{port}", NUM_PROCESSES: "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment | {PROCESS_ID: str(i)}, stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["2", "2"]


@pytest.mark.multiprocess
def test_no_cluster_is_said():
    program = (
        "from jaxalign.errors import ConfigError\nfrom jaxalign.cli.distributed import connect\n"
        "try:\n    connect()\nexcept ConfigError as error:\n    print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert "JAX detects no cluster here" in result.stdout
    assert PROCESS_ID in result.stdout
