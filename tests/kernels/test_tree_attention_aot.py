"""The TPU kernel compiled for chips that are not at hand: no array is T x T, and a mesh gathers nothing."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.plan, pytest.mark.slow]


@pytest.fixture(scope="module")
def compiled(for_tpus):
    return json.loads(for_tpus("-m", "tests.kernels.compile_ahead").splitlines()[-1])


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


@pytest.mark.parametrize("name", ["64", "96", "wide", "wide, float32"])
def test_default_blocks_fit_the_narrowest_and_the_widest_heads(compiled, name):
    assert set(compiled[name]["vector_memory"]) == {"forward", "dquery", "dkey"}
    assert max(compiled[name]["vector_memory"].values()) < 16 * 2**20


def test_a_mesh_gathers_nothing(compiled):
    assert compiled["mesh"]["kernels"] >= 3
    assert compiled["mesh"]["moves"] == []
