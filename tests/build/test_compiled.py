"""After the first step nothing is compiled any more, and the compiled step never talks to the host."""

from __future__ import annotations

import importlib
import re

import jax
import pytest

from jaxalign.training.compiled import CompiledStep
from jaxalign.training.mesh import make_mesh
from jaxalign.training.metrics import MetricSinks
from tests.build.conftest import assert_same_run, write_lines, written_pairs

HOST = re.compile(r"infeed|outfeed|\bsend(-done)?\(|\brecv(-done)?\(|callback|is_host_transfer=true")


@pytest.fixture
def steps_made(monkeypatch):
    """The compiled steps that runs make."""
    made: list[CompiledStep] = []

    class Recorded(CompiledStep):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(importlib.import_module("jaxalign.build.train"), "CompiledStep", Recorded)
    return made


@pytest.fixture
def compilations(monkeypatch):
    """Programs compiled (or taken from the compilation cache) so far, noted when each step is logged."""
    count = 0
    seen: dict[int, int] = {}

    def listen(event: str, seconds: float, **_) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    def advance(self, step: int) -> None:
        seen[step] = count

    jax.monitoring.register_event_duration_secs_listener(listen)
    monkeypatch.setattr(MetricSinks, "advance", advance)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def uneven_pairs(path):
    """Pairs of which some are much longer, so that batches need different numbers of rows."""
    pairs = written_pairs()
    for pair in pairs[::3]:
        pair |= {name: " and also ".join([pair[name]] * 5) for name in ("chosen", "rejected")}
    return str(write_lines(path, pairs))


def test_nothing_is_compiled_after_warm_up(start_run, compilations, steps_made, tmp_path, monkeypatch):
    """Three epochs, each with other mismatched completions, with evaluations and checkpoints inside."""
    monkeypatch.setattr("jaxalign.data.row_shapes.PROGRAM_STEPS", 0)  # even this run gets several sizes
    monkeypatch.setattr("jaxalign.build.row_layout.MOST_PROGRAMS", 2)  # and not more to compile
    run = start_run(
        method__name="kto", reference__mode="moving", reference__update_every=3,
        data__train=[uneven_pairs(tmp_path / "pairs.jsonl")],
        train__batch_size=4, train__epochs=3, train__eval_every=4, train__checkpoint_every=4,
    )  # fmt: skip
    steps = run.manifest["steps"]
    assert steps >= 18
    assert compilations[1] > 0
    later = {compilations[step] for step in range(5, steps + 1)}
    assert len(later) == 1, compilations
    facts = run.manifest["compiled"]
    assert facts["unexpected"] == 0
    assert facts["row_counts"] == run.manifest["rows"]["row_counts"]
    assert facts["programs"] == sorted(run.manifest["rows"]["programs"])
    assert len(facts["programs"]) == 2
    (step,) = steps_made
    assert not HOST.search("\n".join(program.as_text() for program in step._programs.values()))


def test_all_devices_give_the_run_of_one_and_never_talk_to_the_host(finished, start_run, steps_made, monkeypatch):
    """2 data x 2 fsdp x 2 tensor, with micro-batches and a cached reference."""
    alone = finished()
    steps_made.clear()
    monkeypatch.setattr("jaxalign.build.model.make_mesh", make_mesh)
    run = start_run(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__microbatches=2, reference__mode="cached")
    assert run.manifest["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert_same_run(run, alone)
    (step,) = steps_made
    for program in step._programs.values():
        text = program.as_text()
        assert "all-reduce" in text  # it is the text of the program over all devices
        assert not HOST.search(text)


def test_the_search_finds_a_callback():
    def told(x):
        jax.debug.print("{}", x)
        return x + 1

    assert HOST.search(jax.jit(told).lower(1.0).compile().as_text())
