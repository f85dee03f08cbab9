"""The train step, compiled ahead of time for the few row counts that occur, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxalign.training.state import Frozen, TrainState
from jaxalign.training.step import StepOutput
from jaxalign.types import Rows

Step = Callable[[TrainState, Frozen, Rows], tuple[TrainState, StepOutput]]


class CompiledStep:
    """Gives the compiled program for rows of a shape.

    The first call compiles for all expected row counts, so that nothing is compiled later; a batch that needs more
    rows than expected is compiled for then, and counted.

    Args:
      step: from `make_train_step`.
      state_shardings: of the state, kept from step to step.
      replicated: sharding of what the step tells.
      row_counts: the expected numbers of rows.
    """

    def __init__(self, step: Step, state_shardings: Any, replicated: Any, row_counts: Sequence[int]):
        self._jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, replicated))
        self._row_counts = tuple(row_counts)
        self._programs: dict[int, Any] = {}
        self._unexpected = 0
        self._seconds = 0.0

    def __call__(self, rows: Rows) -> Step:
        """The program for these rows; call it with (state, frozen, rows)."""
        return self._for_count

    def _for_count(self, state: TrainState, frozen: Frozen, rows: Rows) -> tuple[TrainState, StepOutput]:
        count = rows.tokens.shape[0]
        if count not in self._programs:
            expected = not self._programs
            self._unexpected += not expected
            for each in {count, *self._row_counts} if expected else {count}:
                self._compile(state, frozen, rows, each)
        return self._programs[count](state, frozen, rows)

    def _compile(self, state: TrainState, frozen: Frozen, rows: Rows, count: int) -> None:
        started = time.perf_counter()
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding), rows
        )
        self._programs[count] = self._jitted.lower(state, frozen, abstract).compile()
        self._seconds += time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        """For the manifest: programs, those not foreseen, seconds, and bytes that the largest needs on a device."""
        facts: dict[str, Any] = {
            "row_counts": sorted(self._programs),
            "unexpected": self._unexpected,
            "seconds": round(self._seconds, 2),
        }
        if self._programs:
            memory = self._programs[max(self._programs)].memory_analysis()
            if memory is not None:
                facts["memory"] = {
                    "arguments": memory.argument_size_in_bytes,
                    "temporary": memory.temp_size_in_bytes,
                    "donated": memory.alias_size_in_bytes,
                }
        return facts
