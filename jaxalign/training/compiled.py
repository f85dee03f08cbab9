"""The train step, compiled ahead of time for the few sizes of batches that occur, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.training.state import Frozen, TrainState
from jaxalign.training.step import StepOutput
from jaxalign.types import Rows

Step = Callable[[TrainState, Frozen, Rows], tuple[TrainState, StepOutput]]


@dataclass(frozen=True)
class Told:
    """What a compiled step tells, on its way to the host.

    Attributes:
      numbers: sum and weight of each metric, then whether all is finite, ``[2 * M + 1]`` float32.
      names: of the M metrics.
      policy_sums: as in `StepOutput`.
      reference_sums: likewise.
    """

    numbers: jax.Array
    names: tuple[str, ...]
    policy_sums: jax.Array
    reference_sums: jax.Array

    def send(self) -> None:
        """Lets the numbers travel as soon as they are there."""
        self.numbers.copy_to_host_async()

    @property
    def is_ready(self) -> bool:
        """Whether the step has been computed."""
        numbers: Any = self.numbers  # is_ready is missing in the stubs of jax 0.10
        return numbers.is_ready()

    def read(self) -> StepOutput:
        """Waits for the step. Its metrics are NumPy scalars."""
        numbers = np.asarray(self.numbers)
        metrics: Any = {name: (numbers[2 * i], numbers[2 * i + 1]) for i, name in enumerate(self.names)}
        finite: Any = bool(numbers[-1])
        return StepOutput(metrics, finite, self.policy_sums, self.reference_sums)


Size = tuple[int, int, int, int]
"""Rows R, tokens T, scored slots S and examples E of a batch."""


class CompiledStep:
    """The step as compiled programs, one for each size of the rows.

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
        names: list[str] = []

        def telling(state: TrainState, frozen: Frozen, rows: Rows):
            state, output = step(state, frozen, rows)
            names[:] = output.metrics
            flat = [number for pair in output.metrics.values() for number in pair]
            numbers = jnp.stack([jnp.asarray(number, jnp.float32) for number in (*flat, output.finite)])
            return state, (numbers, output.policy_sums, output.reference_sums)

        self._names = names
        self._jitted = jax.jit(telling, donate_argnums=0, out_shardings=(state_shardings, replicated))
        self._expected = expected
        self._programs: dict[Size, Any] = {}
        self._unexpected = 0
        self._seconds = 0.0

    def __call__(self, state: TrainState, frozen: Frozen, rows: Rows) -> tuple[TrainState, Told]:
        """Takes a step, with the program for these rows."""
        size = _size(rows)
        if size not in self._programs:
            self._unexpected += bool(self._programs)
            for each in () if self._programs else self._expected():
                self._compile(state, frozen, rows, each)
            if size not in self._programs:
                self._compile(state, frozen, rows, rows)
        state, (numbers, policy_sums, reference_sums) = self._programs[size](state, frozen, rows)
        return state, Told(numbers, tuple(self._names), policy_sums, reference_sums)

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
    count, tokens = rows.tokens.shape
    return count, tokens, rows.score_slot.shape[1], rows.example_mask.shape[1]


def _places(size: Size) -> tuple[int, Size]:
    rows, tokens, *_ = size
    return rows * tokens, size
