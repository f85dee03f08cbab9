"""The loop around steps that compute nothing: what is fed, read, logged and saved when."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxalign.errors import NumericsError
from jaxalign.training import loop
from jaxalign.training.loop import Progress, Schedule, run
from jaxalign.training.step import StepOutput


class Steps:
    """Iterator, step, sinks and checkpoints in one; notes what happens in which order."""

    def __init__(self, broken: int | None = None):
        self.notes: list[Any] = []
        self.place = 0
        self.broken = broken
        self.best_metric = self.latest_step = None

    def get_state(self) -> dict[str, int]:
        return {"next": self.place}

    def __next__(self) -> Any:
        self.place += 1
        self.notes.append(("packed", self.place))
        columns = {"example_id": np.array([[self.place]])}
        rows = SimpleNamespace(columns=columns, example_mask=np.ones((1, 1), bool))
        return SimpleNamespace(rows=rows, tokens=10, example_ids=(self.place,), places=12, scored=3, slots=4)

    def step(self, state: int, frozen: Any, rows: Any) -> tuple[int, Any]:
        number = state + 1
        self.notes.append(("started", number))
        elsewhere: Any = SimpleNamespace(is_fully_replicated=False, is_fully_addressable=False)

        def read() -> StepOutput:
            self.notes.append(("read", number))
            metrics: Any = {"loss": (float(number), 1.0), "grad_norm": (1.0, 1.0)}
            finite: Any = number != self.broken
            return StepOutput(metrics, finite, elsewhere, elsewhere)

        return number, SimpleNamespace(read=read, send=lambda: None, is_ready=False)

    def advance(self, step: int) -> None:
        pass

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self.notes.append(("logged", step, row))

    def save(self, step: int, state: int, iterator: Any, progress: Any, metrics: Any) -> None:
        self.notes.append(("saved", step, iterator["next"]))

    def check_weights(self, state: int, frozen: Any, rows: Any) -> Any:
        self.notes.append(("checked", state, rows.columns["example_id"].item()))
        return True

    def wait(self) -> None:
        pass

    def run(self, schedule: Schedule) -> list[Any]:
        state: Any = 0
        own: Any = self
        run(
            state, {}, step=own.step, iterator=own, put_rows=lambda batch: batch.rows, schedule=schedule,
            progress=Progress(), sinks=own, checkpoints=own, check_weights=own.check_weights,
        )  # fmt: skip
        return self.notes


@pytest.fixture(autouse=True)
def two_in_flight(monkeypatch):
    monkeypatch.setattr(loop, "programs_in_flight", lambda: 2)


def test_the_next_batch_is_there_before_a_step_is_waited_for():
    notes = Steps().run(Schedule(6, 2.0, 3, None, None))
    for number in range(1, 6):
        assert notes.index(("started", number)) < notes.index(("packed", number + 1))
        assert notes.index(("packed", number + 1)) < notes.index(("started", number + 1))
    # Step 4 starts before step 2 is read, also where step 3 is logged: nothing waits for what runs.
    order = [note[:2] for note in notes]
    assert order.index(("started", 4)) < order.index(("read", 2)) < order.index(("started", 5))
    # But nothing runs while the host checks the first step and opens its files: that would count as no time.
    assert order.index(("read", 1)) < order.index(("logged", 1)) < order.index(("started", 2))
    logged = {note[1]: note[2] for note in notes if note[0] == "logged"}
    assert [(step, row["loss"], row["num_tokens"], row["epoch"]) for step, row in logged.items()] == [
        (1, 1.0, 10, 0.5), (3, 2.5, 30, 1.5), (6, 5.0, 60, 3.0),
    ]  # fmt: skip


def test_what_is_saved_is_the_place_of_the_batches_that_were_taken():
    notes = Steps().run(Schedule(7, 2.0, 100, None, 3))
    assert [note for note in notes if note[0] == "saved"] == [("saved", 3, 3), ("saved", 6, 6), ("saved", 7, 7)]
    # The weights are checked with the same rows, for which one program is compiled.
    assert [note for note in notes if note[0] == "checked"] == [("checked", 3, 1), ("checked", 6, 1), ("checked", 7, 1)]
    # Everything is read, so no state is saved that has seen a number that is not finite.
    for step in (3, 6, 7):
        saved = next(i for i, note in enumerate(notes) if note[:2] == ("saved", step))
        assert notes.index(("read", step)) < saved


def test_a_number_that_is_not_finite_stops_within_two_steps():
    steps = Steps(broken=3)
    with pytest.raises(NumericsError, match="step 3: "):
        steps.run(Schedule(100, 2.0, 100, None, 4))
    assert max(note[1] for note in steps.notes if note[0] == "started") == 4  # the checkpoint after it reads all
    assert not [note for note in steps.notes if note[0] == "saved"]
