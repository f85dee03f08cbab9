"""Machines by name, and the times that follow from their rates."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.planning.roofline import rate, roofline, torus_dimensions
from jaxalign.planning.targets import GIB, TARGETS, target


@pytest.mark.parametrize(
    ("name", "devices", "memory", "wrapped"),
    [
        ("v5e:4x4", 16, 15.75 * GIB, (False, False)),
        ("v5e:8x16", 128, 15.75 * GIB, (False, True)),
        ("v5litepod:2x4", 8, 15.75 * GIB, (False, False)),
        ("v4:2x2x4", 16, 30.75 * GIB, (False, False, False)),
        ("v5p:4x4x8", 128, 95.73 * GIB, (True, True, True)),
        ("v6e:16x16", 256, 31.24 * GIB, (True, True)),
        ("8xh200", 8, 0.9 * 141e9, ()),
    ],
)
def test_names_say_devices_memory_and_rings(name, devices, memory, wrapped):
    found = target(name)
    assert (found.devices, found.memory, found.wrapped) == (devices, memory, wrapped)
    assert found.kind == ("gpu" if name.startswith("8x") else "tpu")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v5:8x8", "Did you mean 'v5e:8x8'?"),
        ("v5e", "expected the chips along each of its 2 dimensions, such as v5e:4x4"),
        ("v5e:4x4x4", "each of its 2 dimensions"),
        ("v5p:4x4", "each of its 3 dimensions"),
        ("v5e:32x32", "expected at most 256"),
        ("8xH10", "Did you mean 'H100'?"),
        ("64xH100", "networks between hosts are not modelled"),
        ("tpu", "expected a TPU topology"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(name, told):
    with pytest.raises(ConfigError) as error:
        target(name)
    assert told in str(error.value)


def test_the_studies_machines_are_among_them():
    assert [(each.name, each.devices) for each in TARGETS] == [("v5e-64", 64), ("v4-32", 16), ("8xH100", 8)]


def test_a_step_takes_what_its_slowest_part_takes():
    machine = target("v5e:16x16")
    sent = {"fsdp": {"all-gather": 4e9, "reduce-scatter": 2e9}}
    times = roofline(machine, operations=197e12, moved=819e9 / 2, sent=sent)
    assert (times.compute, times.memory) == (1.0, 0.5)
    # Two closed rings of 50 GB/s in each direction.
    assert times.network == {"fsdp": pytest.approx(6 / 200)}
    assert (times.hidden, times.exposed, times.bound) == (1.0, pytest.approx(1.03), "compute")
    assert rate(machine, (0,)) == 100e9
    assert rate(target("v5e:8x8"), (0, 1)) == 100e9
    assert rate(target("8xH100"), ()) == 450e9


def test_mesh_axes_run_along_dimensions_of_the_torus():
    chips = [SimpleNamespace(coords=[x, y, 0]) for x in range(2) for y in range(4)]
    devices = np.array(chips, object).reshape(1, 2, 4)
    assert torus_dimensions(devices, ("data", "fsdp", "tensor")) == {"data": (), "fsdp": (0,), "tensor": (1,)}
    both = np.array(chips, object).reshape(1, 8, 1)
    assert torus_dimensions(both, ("data", "fsdp", "tensor"))["fsdp"] == (0, 1)
