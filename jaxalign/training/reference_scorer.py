"""A reference's per-token log-probabilities of examples, over the whole mesh, forward only.

The pass is as fast as its forward: many examples are packed at once, so rows are full; every call has the same shape,
so one program serves all; and the host packs the next rows, and hands out the last values, while the devices compute.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.data.records import Example
from jaxalign.data.row_plans import RowShape, plan_rows
from jaxalign.data.row_shapes import round_length
from jaxalign.data.rows import build_rows
from jaxalign.training.mesh import MeshPlan, programs_in_flight
from jaxalign.training.scoring import score
from jaxalign.types import Rows, Variables

PLANNED = 512
"""Examples packed together, at least: of many, some fill every gap."""
LENGTHS = (1.0, 1.25, 1.5, 2.0, 3.0)
"""Row lengths that are tried, times the longest example: beyond three of it rows are nearly full anyway."""
ROOM = 1.1
"""Scored slots of a row over the mean: what fits them all would be empty in most."""
PLACES = 1.5
"""Examples that a row takes over the mean: a place costs next to nothing, too few of them make rows of short examples
end early."""
WITHIN = 1.02
"""Of the least cost, what counts as equal: less than a first look at some examples can tell apart."""

Members = tuple[tuple[int, ...], ...]
"""Of each row of a call, the indices of its examples."""


def choose_rows(
    tokens: Sequence[int], scored: Sequence[int], completions: int, *, batch_size: int, multiple: int, width: int
) -> tuple[RowShape, int]:
    """The shape of a row and the rows of a call, from the sizes of some examples, the largest among them.

    Long rows hold little padding, short ones keep attention cheap where it meets every pair of a row's tokens: what
    costs the least, and the shortest of what costs hardly more.

    Args:
      tokens: of each example, at least one.
      scored: of them the scored ones.
      completions: K.
      batch_size: examples that a call should take.
      multiple: the rows of a call are a multiple of it.
      width: of the model. Beside its weights' products a token costs attention's, which are ``length / (6 * width)``
        of them.
    """
    found: list[tuple[float, int, RowShape]] = []
    for times in LENGTHS:
        length = round_length(int(times * max(tokens)))
        rows = max(1, math.ceil(sum(tokens) / length))
        slots = round_length(max(max(scored), math.ceil(ROOM * sum(scored) / rows)))
        shape = RowShape(length, min(length, slots), max(1, math.ceil(PLACES * len(tokens) / rows)), completions)
        count = len(plan_rows(tokens, scored, shape).rows)
        found.append((count * length * (1 + length / (6 * width)), count, shape))
        if count == 1:
            break
    least = min(cost for cost, _, _ in found)
    _, count, shape = next(each for each in found if each[0] <= WITHIN * least)
    rows = math.ceil(count * min(batch_size, len(tokens)) / len(tokens))
    return shape, math.ceil(rows / multiple) * multiple


class RowScorer:
    """Scores examples in packed rows; the same call on every process gives the same values in the same order.

    Args:
      policy: the reference's functions.
      variables: its weights, on the mesh.
      shape: of a row.
      rows: rows of a call, a multiple of the parts that `plan` splits rows into.
      plan: the mesh.
    """

    def __init__(self, policy: Any, variables: Variables, shape: RowShape, rows: int, plan: MeshPlan):
        self._variables = variables
        self._shape = shape
        self._rows = rows
        self._plan = plan
        self.tokens = 0
        """Unique tokens scored so far."""
        self.logps = jax.jit(
            lambda variables, rows: score(policy, variables, rows).tokens.logps, out_shardings=plan.replicated
        )
        """The forward of a call: ``(variables, rows) -> [R, S]``."""

    def __call__(self, examples: Sequence[Example]) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """Each example's index and the log-probabilities of its completions, nats: K arrays, a value a scored token.

        They come in the order in which rows are computed.
        """
        pending: deque[tuple[Members, dict[int, Example], jax.Array]] = deque()
        limit = programs_in_flight()
        for members, held in self.packed(examples):
            self.tokens += sum(len(e.prompt) + sum(map(len, e.completions)) for e in held.values())
            logps = self.logps(self._variables, self.put(members, held))
            logps.copy_to_host_async()
            pending.append((members, held, logps))
            while len(pending) > limit:
                yield from _values(*pending.popleft())
        while pending:
            yield from _values(*pending.popleft())

    def packed(self, examples: Sequence[Example]) -> Iterator[tuple[Members, dict[int, Example]]]:
        """The examples in rows, so many rows at a time; what does not fill a call waits for more examples."""
        held: dict[int, Example] = {}
        at, planned = 0, PLANNED
        while at < len(examples) or held:
            stop = min(len(examples), at + max(0, planned - len(held)))
            held |= {i: examples[i] for i in range(at, stop)}
            at = stop
            order = list(held)
            scored = [sum(map(len, held[i].completions)) for i in order]
            tokens = [len(held[i].prompt) + count for i, count in zip(order, scored, strict=True)]
            rows = [tuple(order[place] for place in row) for row in plan_rows(tokens, scored, self._shape).rows]
            whole = len(rows) if at == len(examples) else len(rows) // self._rows * self._rows
            if not whole:
                planned *= 2
                continue
            for start in range(0, whole, self._rows):
                members = tuple(rows[start : min(start + self._rows, whole)])
                yield members, {i: held.pop(i) for row in members for i in row}

    def put(self, members: Members, held: dict[int, Example]) -> Rows:
        """The rows of a call on their devices; rows without an example are padding."""
        local = self._plan.local_rows(self._rows)
        filled = [[(i, held[i]) for i in row] for row in members]
        filled += [[] for _ in range(self._rows - len(filled))]
        return self._plan.put_rows(build_rows(filled, self._shape, (), local), self._rows, local.start)


def _values(
    members: Members, held: dict[int, Example], logps: jax.Array
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Cuts a call's values into those of each completion."""
    values = np.asarray(logps)
    for row, examples in zip(values, members, strict=False):
        ends = np.cumsum([len(c) for i in examples for c in held[i].completions])
        parts = iter(np.split(row, ends))
        for i in examples:
            yield i, tuple(next(parts) for _ in held[i].completions)
