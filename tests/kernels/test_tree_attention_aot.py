"""The TPU kernel compiled for chips that are not at hand: no array is T x T, and a mesh gathers nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra: plan)"),
    pytest.mark.slow,
]
LIBTPU = {
    # Without these libtpu asks a metadata server that is not there, and wants to be the machine's only one.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@pytest.fixture(scope="module")
def compiled(repository):
    paths = [str(repository), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, **LIBTPU, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "tests.kernels.compile_ahead"]
    done = subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_memory_is_linear_in_the_length(compiled, chip):
    """Below twice the arguments, also where one array [T, T] of a byte an entry would be more than all of that."""
    for length in (2048, 8192):
        one = compiled[f"{chip} {length}"]
        assert set(one["vector_memory"]) == {"forward", "dquery", "dkey"}
        assert not one["squares"]
        # All in HBM: transposed copies of inputs and results, and a few numbers a token.
        assert one["temporaries"] < 2 * one["arguments"]
    assert 2 * one["arguments"] < 8192**2


@pytest.mark.parametrize("name", ["wide", "wide, float32"])
def test_default_blocks_fit_the_widest_heads(compiled, name):
    assert max(compiled[name]["vector_memory"].values()) < 16 * 2**20


def test_a_mesh_gathers_nothing(compiled):
    assert compiled["mesh"]["kernels"] >= 3
    assert compiled["mesh"]["moves"] == []
