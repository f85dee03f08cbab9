"""Which example goes into which row: a plan, from the sizes of a batch's examples alone.

An example takes up three things in a row: tokens, scored slots, and one of the places for examples. Every plan here is
a pure function of the sizes, in exact integers, so that all processes make the same one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

SEARCHED = 24
"""Batches of at most so many examples are searched when every quick way fails."""
SEARCH_NODES = 2_000
"""Placements that a search tries before it gives up."""
EXCHANGES = 64
"""Exchanges between rows that levelling makes, at most and per call."""

PARTNERS = 8
"""The emptiest rows, with which the fullest may exchange."""


class RowShape(NamedTuple):
    """What one row can hold: tokens T, scored tokens S, examples E, and completions per example K."""

    tokens: int
    scored: int
    examples: int
    completions: int


class RowProgram(NamedTuple):
    """The size of a batch that a step is compiled for: R rows of one shape."""

    rows: int
    shape: RowShape


class RowPlan(NamedTuple):
    """Which examples of a batch share a row, as indices into the batch, and the tokens and slots that they fill."""

    rows: tuple[tuple[int, ...], ...]
    tokens: int
    scored: int


def plan_rows(tokens: Sequence[int], scored: Sequence[int], shape: RowShape) -> RowPlan:
    """Fits examples into few rows, never more than first-fit decreasing needs.

    Best-fit decreasing comes first. Where it needs more rows than the sum of the sizes calls for, first-fit decreasing,
    levelled rows and, for small batches, a search try to do with fewer.

    Args:
      tokens: tokens that each example fills of a row.
      scored: scored tokens of each example.
      shape: the bounds of a row.

    Raises:
      ValueError: an example is larger than a row.
    """
    for i, (size, slots) in enumerate(zip(tokens, scored, strict=True)):
        if size > shape.tokens or slots > shape.scored:
            raise ValueError(
                f"example {i} has {size} tokens, {slots} of them scored; a row holds {shape.tokens} and {shape.scored}"
            )
    best = _decreasing(tokens, scored, shape, _fullest)
    fewest = fewest_rows(tokens, scored, shape)
    if len(best) > fewest:
        other = _decreasing(tokens, scored, shape, _first)
        best = other if len(other) < len(best) else best
        while len(best) > fewest:
            program = RowProgram(len(best) - 1, shape)
            fewer = _levelled(tokens, scored, program) or _search(tokens, scored, program)
            if fewer is None:
                break
            best = fewer
    return _plan(best, tokens, scored)


def fewest_rows(tokens: Sequence[int], scored: Sequence[int], shape: RowShape) -> int:
    """A bound from below: rows that the sum of the sizes calls for."""
    totals = sum(tokens), sum(scored), len(tokens)
    return max(-(-total // max(bound, 1)) for total, bound in zip(totals, shape[:3], strict=True))


def fit_rows(tokens: Sequence[int], scored: Sequence[int], program: RowProgram) -> RowPlan | None:
    """Fits a batch into the rows of a program, or gives None where no way was found.

    It finds one wherever best-fit or first-fit decreasing does, and where what `level_rows` gives is within the bounds.
    """
    count, shape = program
    if max(tokens) > shape.tokens or max(scored) > shape.scored or fewest_rows(tokens, scored, shape) > count:
        return None
    if count == 1:
        return _plan([list(range(len(tokens)))], tokens, scored)
    rows = _levelled(tokens, scored, program)
    if rows is None:
        level = level_rows(tokens, scored, count)
        rows = [list(row) for row in level.rows if row] if _within(level, tokens, scored, shape) else None
    for choose in (_fullest, _first):
        if rows is None:
            found = _decreasing(tokens, scored, shape, choose, count)
            rows = found if len(found) <= count else None
    rows = rows or _search(tokens, scored, program)
    return None if rows is None else _plan(rows, tokens, scored)


def _within(plan: RowPlan, tokens: Sequence[int], scored: Sequence[int], shape: RowShape) -> bool:
    most = fullest(plan, tokens, scored)
    return all(size <= bound for size, bound in zip(most, shape[:3], strict=True))


def fullest(plan: RowPlan, tokens: Sequence[int], scored: Sequence[int]) -> tuple[int, int, int]:
    """The most tokens, scored tokens and examples of any row."""
    return (
        max(sum(tokens[i] for i in row) for row in plan.rows),
        max(sum(scored[i] for i in row) for row in plan.rows),
        max(map(len, plan.rows)),
    )


def level_rows(tokens: Sequence[int], scored: Sequence[int], count: int) -> RowPlan:
    """Spreads a batch over `count` rows so that the fullest holds little more than the mean, tokens and slots alike."""
    even = [max(sum(sizes) / count, max(sizes), 1.0) for sizes in (tokens, scored)]
    rows, _ = _level(tokens, scored, count, (*even, float(len(tokens))), within=1.0)
    return _plan(rows, tokens, scored)


def place(
    tokens: Sequence[int], scored: Sequence[int], programs: Sequence[RowProgram], multiple: int
) -> tuple[RowProgram, RowPlan]:
    """The first program that a batch fits into, and how.

    Args:
      tokens: tokens that each example fills of a row.
      scored: scored tokens of each example.
      programs: cheapest first.
      multiple: where none of them will do, each bound of a row is the largest of theirs, and the rows are as many as
        needed, rounded up to this.

    Raises:
      ValueError: an example is larger than any row.
    """
    for program in programs:
        plan = fit_rows(tokens, scored, program)
        if plan is not None:
            return program, plan
    shape = hull(programs).shape
    plan = plan_rows(tokens, scored, shape)
    return RowProgram(-(-len(plan.rows) // multiple) * multiple, shape), plan


def hull(programs: Sequence[RowProgram]) -> RowProgram:
    """The smallest size that holds each of them."""
    shape = RowShape(*(max(bounds) for bounds in zip(*(program.shape for program in programs), strict=True)))
    return RowProgram(max(program.rows for program in programs), shape)


def _plan(rows: Sequence[Sequence[int]], tokens: Sequence[int], scored: Sequence[int]) -> RowPlan:
    return RowPlan(tuple(map(tuple, rows)), int(sum(tokens)), int(sum(scored)))


def _fullest(free: np.ndarray, fits: np.ndarray) -> int:
    return int(np.where(fits, free[:, 0], np.iinfo(np.int64).max).argmin())


def _first(free: np.ndarray, fits: np.ndarray) -> int:
    return int(fits.argmax())


def _decreasing(
    tokens: Sequence[int],
    scored: Sequence[int],
    shape: RowShape,
    choose: Callable[[np.ndarray, np.ndarray], int],
    most: int | None = None,
) -> list[list[int]]:
    """Longest first, each into the row that `choose` names, else into a new one. Stops behind `most` rows.

    `choose` gets what is free, ``[R, 3]``: tokens, scored slots and examples, and in which of the rows there is room.
    """
    rows: list[list[int]] = []
    free = np.tile(np.array(shape[:3], np.int64), (len(tokens), 1))
    sizes = np.stack([tokens, scored, np.ones(len(tokens), np.int64)], axis=1)
    for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        opened = free[: len(rows)]
        fits = (opened >= sizes[i]).all(axis=1)
        if fits.any():
            row = choose(opened, fits)
        elif len(rows) == most:
            return [*rows, []]
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(i)
        free[row] -= sizes[i]
    return rows


def _levelled(tokens: Sequence[int], scored: Sequence[int], program: RowProgram) -> list[list[int]] | None:
    count, shape = program
    rows, load = _level(tokens, scored, count, shape[:3], within=1.0)
    return [row for row in rows if row] if load <= 1.0 else None


def _level(
    tokens: Sequence[int], scored: Sequence[int], count: int, bounds: Sequence[float], within: float
) -> tuple[list[list[int]], float]:
    """Largest first into the emptiest row, then exchanges that ease the fullest row.

    Args:
      tokens: of each example.
      scored: of each example.
      count: rows.
      bounds: tokens, scored slots and examples that make a row full.
      within: a load of the fullest row that is good enough.

    Returns:
      the rows, some of them perhaps empty, and the load of the fullest.
    """
    sizes = np.stack([np.asarray(tokens), np.asarray(scored), np.ones(len(tokens), int)], axis=1)
    bound = np.maximum(np.asarray(bounds, np.float64), 1e-9)
    share = (sizes[:, :2] / bound[:2]).max(axis=1)
    order = np.lexsort((np.arange(len(share)), -share))
    owner = np.zeros(len(share), np.int64)
    heap = [(0.0, row) for row in range(count)]
    loads = [[0, 0, 0] for _ in range(count)]
    listed, limits = sizes.tolist(), bound.tolist()
    for i in order.tolist():
        _, row = heapq.heappop(heap)
        owner[i] = row
        load, size = loads[row], listed[i]
        load[0] += size[0]
        load[1] += size[1]
        load[2] += 1
        heapq.heappush(heap, (max(load[0] / limits[0], load[1] / limits[1], load[2] / limits[2]), row))
    taken = np.asarray(loads)
    for _ in range(EXCHANGES):
        full = (taken / bound).max(axis=1)
        worst = int(full.argmax())
        if full[worst] <= within or count == 1:
            break
        partners = np.argsort(full, kind="stable")[:PARTNERS]
        partners = partners[partners != worst]
        mine, others = np.flatnonzero(owner == worst), np.flatnonzero(np.isin(owner, partners))
        # Give one of mine for one of another row's, or for nothing (the last columns: one a row).
        target = np.concatenate([owner[others], partners])
        theirs = np.concatenate([sizes[others], np.zeros((len(partners), 3), int)])
        change = sizes[mine][:, None] - theirs[None]
        after = ((taken[worst] - change) / bound).max(axis=2)
        after = np.maximum(after, ((taken[target] + change) / bound).max(axis=2))
        best = int(after.argmin())
        give, get = divmod(best, len(target))
        if after[give, get] >= full[worst]:
            break
        other = int(target[get])
        taken[worst] -= change[give, get]
        taken[other] += change[give, get]
        owner[mine[give]] = other
        if get < len(others):
            owner[others[get]] = worst
    rows: list[list[int]] = [[] for _ in range(count)]
    for i in order.tolist():
        rows[owner[i]].append(i)
    return rows, float((taken / bound).max())


def _search(tokens: Sequence[int], scored: Sequence[int], program: RowProgram) -> list[list[int]] | None:
    """Places examples one by one, longest first, and takes back what leads nowhere.

    None where there is no way, where it gave up, and for large batches.
    """
    if len(tokens) > SEARCHED:
        return None
    count, shape = program
    order = sorted(range(len(tokens)), key=lambda i: (-tokens[i], -scored[i], i))
    free = [list(shape[:3]) for _ in range(count)]
    slack = count * shape.tokens - sum(tokens)
    smallest = min(tokens)
    rows: list[list[int]] = [[] for _ in range(count)]
    nodes = 0

    def wasted() -> int:
        return sum(left[0] for left in free if left[0] < smallest)

    def go(at: int) -> bool:
        nonlocal nodes
        if at == len(order):
            return True
        i = order[at]
        seen = set()
        for row in sorted(range(count), key=lambda row: free[row][0]):
            left = free[row]
            if left[0] < tokens[i] or left[1] < scored[i] or not left[2] or tuple(left) in seen:
                continue
            seen.add(tuple(left))
            nodes += 1
            if nodes > SEARCH_NODES:
                return False
            left[0] -= tokens[i]
            left[1] -= scored[i]
            left[2] -= 1
            rows[row].append(i)
            if wasted() <= slack and go(at + 1):
                return True
            rows[row].pop()
            left[0] += tokens[i]
            left[1] += scored[i]
            left[2] += 1
        return False

    return [row for row in rows if row] if go(0) else None
