"""How many rows, how long: the few sizes that a step is compiled for, chosen so that a run pads as little as it can.

A batch's examples cannot be cut, so with few examples a row the fill of rows of one fixed length is poor. What helps is
to fix the number of rows instead (as many as devices share them), to level the examples over them, and to let the
length follow the batch, in a few steps that are each compiled once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxalign.data.row_plans import RowProgram, RowShape, fullest, hull, level_rows, plan_rows

MOST_PROGRAMS = 6
"""Sizes that a step is compiled for, at most."""
PROGRAM_STEPS = 10
"""A further program must save the work of so many steps: about what its compilation takes."""
SHORTEST_MULTIPLE = 16
LONGEST_MULTIPLE = 128
"""Lengths are multiples of a power of two between these, as fine as a 32nd of the length allows."""
SAMPLED = 48
"""Batches that the choice of the number of rows looks at: it compares means, which so many tell apart."""
LEVELLED = 512
"""Batches that the sizes are read off, spread over the run; each takes some milliseconds of every process's start."""
HEAVIEST = 16
"""And of all batches those with the most tokens, the most scored ones and the longest examples, so many of each."""
GROUPS = 128
"""Sizes that the choice of programs tells apart, at most: its time and memory grow with their square."""
ROWS_PER_PART = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of rows that are tried, times `multiple`."""


class Work(NamedTuple):
    """What a place in a row costs, the products of one token with the weights of all layers being 1.

    Attributes:
      scored: of a scored slot: the output head. The head's weights over those of the layers. Where the architecture is
        not known, 0.1: Mistral-7B has 0.02, Qwen3-0.6B 0.35.
      length: added to every token for each 1,024 tokens of its row: attention that visits more keys in longer rows,
        sums over completions. 0 = attention visits only what its query sees, at no cost for the rest. 0.01 is not
        measured: it makes the shorter of two rows that are equally full the better one, and hardly more.
    """

    scored: float = 0.1
    length: float = 0.01

    def of(self, program: RowProgram) -> float:
        """The work of a batch of that size, padding included, in tokens."""
        rows, (tokens, scored, *_) = program
        return rows * (tokens * (1 + self.length * tokens / 1024) + self.scored * scored)


Sizes = tuple[Sequence[int], Sequence[int]]
"""Of a batch: tokens of each example, and scored tokens of each."""


def choose_programs(
    batches: Sequence[Sizes],
    completions: int,
    multiple: int = 1,
    *,
    steps: int | None = None,
    most: int = MOST_PROGRAMS,
    row_tokens: int | None = None,
    least: tuple[int, int] = (0, 0),
    work: Work | None = None,
) -> tuple[RowProgram, ...]:
    """Reads off the batches which sizes to compile for, cheapest first.

    Up to `LEVELLED` batches are all looked at, and each fits one of the sizes. Of more of them some may not: those need
    a size more (`jaxalign.data.row_plans.place`).

    Args:
      batches: those that will come, or a sample of them.
      completions: K.
      multiple: row counts are multiples of this (devices along the batch axes times micro-batches).
      steps: how many batches will come; None = these.
      most: programs. Fewer are chosen where a further one saves less than its compilation takes.
      row_tokens: a fixed T; must hold the longest example. Then the number of rows follows the batch.
      least: tokens and scored tokens that a row of the last program must hold in any case.
      work: what places cost.

    Raises:
      ValueError: `row_tokens` is shorter than the longest example.
    """
    work = work or Work()
    longest = max(least[0], max(max(tokens) for tokens, _ in batches))
    if row_tokens is not None:
        if row_tokens < longest:
            raise ValueError(f"rows of {row_tokens} tokens cannot hold the longest example, {longest} tokens")
        needs = [
            (_need_of_fixed(sizes, row_tokens, completions, multiple), number) for sizes, number in _spread(batches)
        ]
    else:
        stride = max(1, len(batches) // SAMPLED)
        mean = sum(sum(tokens) for tokens, _ in batches) / len(batches)
        # Rows shorter than the longest example are filled by it alone.
        counts = [n * multiple for n in ROWS_PER_PART if n == 1 or n * multiple * longest <= mean]

        def expected(count: int) -> float:
            needs = [(_need(sizes, count, completions), 1) for sizes in batches[::stride]]
            return _cover(needs, most, work, steps or len(batches))[1]

        count = min(counts, key=lambda count: (expected(count), count)) if len(counts) > 1 else counts[0]
        needs = [(_need(sizes, count, completions), number) for sizes, number in _spread(batches)]
    chosen, _ = _cover(needs, most, work, steps or len(batches))
    rows, shape = chosen[-1]
    last = shape._replace(
        tokens=max(shape.tokens, row_tokens or round_length(least[0])),
        scored=max(shape.scored, round_length(least[1])),
    )
    return (*chosen[:-1], RowProgram(rows, last))


def _spread(batches: Sequence[Sizes]) -> list[tuple[Sizes, int]]:
    """The batches to look at, and how many each of them stands for."""
    count = len(batches)
    if count <= LEVELLED:
        return [(sizes, 1) for sizes in batches]
    number = dict.fromkeys(np.linspace(0, count - 1, LEVELLED).astype(int).tolist(), count // LEVELLED)
    weights = np.array([(sum(tokens), sum(scored), max(tokens), max(scored)) for tokens, scored in batches])
    for weight in weights.T:
        for heavy in np.argsort(-weight, kind="stable")[:HEAVIEST].tolist():
            number.setdefault(heavy, 1)
    return [(batches[i], number[i]) for i in sorted(number)]


def round_length(value: int) -> int:
    """The next length that a row may have, in tokens or scored slots."""
    multiple = SHORTEST_MULTIPLE
    while multiple < LONGEST_MULTIPLE and multiple * 64 <= value:
        multiple *= 2
    return max(1, -(-value // multiple)) * multiple


def _need(sizes: Sizes, count: int, completions: int) -> RowProgram:
    """The smallest program of so many rows that was found for a batch."""
    tokens, scored = sizes
    if count == 1:
        need = sum(tokens), sum(scored), len(tokens)
    else:
        need = fullest(level_rows(tokens, scored, count), tokens, scored)
    return RowProgram(count, RowShape(round_length(need[0]), round_length(need[1]), need[2], completions))


def _need_of_fixed(sizes: Sizes, row_tokens: int, completions: int, multiple: int) -> RowProgram:
    tokens, scored = sizes
    plan = plan_rows(tokens, scored, RowShape(row_tokens, max(1, sum(scored)), len(tokens), completions))
    count = -(-len(plan.rows) // multiple) * multiple
    level = level_rows(tokens, scored, count)
    most = fullest(level, tokens, scored)
    _, slots, examples = most if most[0] <= row_tokens else fullest(plan, tokens, scored)
    return RowProgram(count, RowShape(row_tokens, round_length(slots), examples, completions))


Need = tuple[RowProgram, int]
"""What so many batches need."""


def _cover(needs: Sequence[Need], most: int, work: Work, steps: int) -> tuple[tuple[RowProgram, ...], float]:
    """Few programs that hold all that is needed, and the work of a mean batch, compilation spread over the steps."""
    found: list[tuple[float, tuple[RowProgram, ...]]] = []
    for key in (work.of, _by_tokens, _by_scored):
        groups = _groups(sorted(needs, key=lambda need: (key(need[0]), need)))
        found += _partitions(groups, most, work)
    one = min(value for value, programs in found if len(programs) == 1)
    spent = [(value + len(programs) * PROGRAM_STEPS * one / steps, len(programs)) for value, programs in found]
    value, best = min(zip(spent, range(len(found)), strict=True))
    return found[best][1], value[0]


def _by_tokens(need: RowProgram) -> float:
    return need.rows * need.shape.tokens


def _by_scored(need: RowProgram) -> float:
    return need.rows * need.shape.scored


def _groups(needs: Sequence[Need]) -> list[Need]:
    """Neighbours put together until at most `GROUPS` are left: what holds them, and how many they are."""
    size = -(-len(needs) // GROUPS)
    parts = (needs[i : i + size] for i in range(0, len(needs), size))
    return [(hull([need for need, _ in part]), sum(number for _, number in part)) for part in parts]


def _partitions(groups: Sequence[Need], most: int, work: Work) -> list[tuple[float, tuple[RowProgram, ...]]]:
    """The best ways to cut the ordered groups into 1, 2, ... `most` runs, each under its hull.

    Returns:
      the work of a mean batch, and the hulls.
    """
    count = len(groups)
    sizes = np.array([(need.rows, *need.shape[:3]) for need, _ in groups])
    numbers = np.cumsum([0, *(number for _, number in groups)])
    completions = groups[0][0].shape.completions
    # run[i, j]: the work of groups i .. j under their hull.
    run = np.full((count, count), np.inf)
    hulls = {}
    for i in range(count):
        hulls[i] = np.maximum.accumulate(sizes[i:], axis=0)
        rows, tokens, scored, _ = hulls[i].T
        each = rows * (tokens * (1 + work.length * tokens / 1024) + work.scored * scored)
        run[i, i:] = each * (numbers[i + 1 :] - numbers[i])
    best = [run[0]]
    cuts: list[np.ndarray] = []
    for _ in range(1, min(most, count)):
        options = np.full((count, count), np.inf)  # [cut, end]: the last run starts at cut
        options[1:] = best[-1][:-1, None] + run[1:]
        cuts.append(options.argmin(axis=0))
        best.append(options.min(axis=0))
    found = []
    for parts in range(len(best)):
        end, programs = count - 1, []
        for level in range(parts, -1, -1):
            start = int(cuts[level - 1][end]) if level else 0
            rows, tokens, scored, examples = hulls[start][end - start].tolist()
            programs.append(RowProgram(rows, RowShape(tokens, scored, examples, completions)))
            end = start - 1
        if np.isfinite(best[parts][-1]):
            found.append((float(best[parts][-1] / numbers[-1]), tuple(sorted(set(programs), key=work.of))))
    return found
