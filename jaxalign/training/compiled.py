"""The train step, compiled ahead of time for the few sizes of batches that occur, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxalign.training.state import Frozen, TrainState
from jaxalign.training.step import StepOutput
from jaxalign.types import Rows

Step = Callable[[TrainState, Frozen, Rows], tuple[TrainState, StepOutput]]

Size = tuple[int, int, int, int]
"""Rows R, tokens T, scored slots S and examples E of a batch."""


class CompiledStep:
    """Gives the compiled program for rows of a shape.

    The first call compiles for all expected sizes, so that nothing is compiled later; a batch of another size is
    compiled for when it comes, and counted.

    Args:
      step: from `make_train_step`.
      state_shardings: of the state, kept from step to step.
      replicated: sharding of what the step tells.
      expected: gives the shapes of the rows of every expected size.
    """

    def __init__(
        self,
        step: Step,
        state_shardings: Any,
        replicated: Any,
        expected: Callable[[], Sequence[Rows]] = lambda: (),
    ):
        self._jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, replicated))
        self._expected = expected
        self._programs: dict[Size, Any] = {}
        self._unexpected = 0
        self._seconds = 0.0

    def __call__(self, rows: Rows) -> Step:
        """The program for these rows; call it with (state, frozen, rows)."""
        return self._for_size

    def _for_size(self, state: TrainState, frozen: Frozen, rows: Rows) -> tuple[TrainState, StepOutput]:
        size = _size(rows)
        if size not in self._programs:
            self._unexpected += bool(self._programs)
            for each in () if self._programs else self._expected():
                self._compile(state, frozen, rows, each)
            if size not in self._programs:
                self._compile(state, frozen, rows, rows)
        return self._programs[size](state, frozen, rows)

    def _compile(self, state: TrainState, frozen: Frozen, rows: Rows, like: Rows) -> None:
        started = time.perf_counter()
        abstract = jax.tree.map(
            lambda leaf, other: jax.ShapeDtypeStruct(other.shape, leaf.dtype, sharding=leaf.sharding), rows, like
        )
        self._programs[_size(like)] = self._jitted.lower(state, frozen, abstract).compile()
        self._seconds += time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        """For the manifest: sizes ``[R, T, S, E]``, those unforeseen, seconds, and bytes of the largest on a device."""
        facts: dict[str, Any] = {
            "row_counts": sorted({size[0] for size in self._programs}),
            "programs": [list(size) for size in sorted(self._programs)],
            "unexpected": self._unexpected,
            "seconds": round(self._seconds, 2),
        }
        if self._programs:
            memory = self._programs[max(self._programs, key=_places)].memory_analysis()
            if memory is not None:
                facts["memory"] = {
                    "arguments": memory.argument_size_in_bytes,
                    "temporary": memory.temp_size_in_bytes,
                    "donated": memory.alias_size_in_bytes,
                }
        return facts


def _size(rows: Rows) -> Size:
    return (*rows.tokens.shape, rows.score_slot.shape[1], rows.example_mask.shape[1])


def _places(size: Size) -> tuple[int, Size]:
    rows, tokens, *_ = size
    return rows * tokens, size
