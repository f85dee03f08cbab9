"""Packing: several examples in a row, each example one prompt segment and its K completions.

`plan_rows` decides which example goes into which row, `build_rows` writes the arrays that `jaxalign.types.Rows`
describes, and `choose_shape` reads off the data how long rows should be. All three are deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.records import Example, no_token, token_column
from jaxalign.types import Rows

TOKEN_MULTIPLE = 16
SCORED_MULTIPLE = 16
DERIVED_COLUMNS = ("ends", "score_index")
"""Columns that `build_rows` knows by itself: places in the row."""


class RowShape(NamedTuple):
    """What one row can hold: tokens T, scored tokens S, examples E, and completions per example K."""

    tokens: int
    scored: int
    examples: int
    completions: int


class RowPlan(NamedTuple):
    """Which examples of a batch share a row, as indices into the batch, and the tokens they fill."""

    rows: tuple[tuple[int, ...], ...]
    tokens: int


def plan_rows(tokens: Sequence[int], scored: Sequence[int], shape: RowShape) -> RowPlan:
    """Fits examples into few rows by best-fit decreasing: longest first, each into the fullest row that takes it.

    Args:
      tokens: tokens that each example fills of a row.
      scored: scored tokens of each example.
      shape: the bounds of a row.

    Raises:
      ValueError: an example is larger than a row.
    """
    order = sorted(range(len(tokens)), key=lambda i: (-tokens[i], i))
    rows: list[list[int]] = []
    free: list[list[int]] = []  # per row: tokens, scored slots and examples still free
    for i in order:
        if tokens[i] > shape.tokens or scored[i] > shape.scored:
            raise ValueError(
                f"example {i} has {tokens[i]} tokens, {scored[i]} of them scored; "
                f"a row holds {shape.tokens} and {shape.scored}"
            )
        best = None
        for row, (free_tokens, free_scored, free_examples) in enumerate(free):
            fits = free_tokens >= tokens[i] and free_scored >= scored[i] and free_examples > 0
            if fits and (best is None or free_tokens < free[best][0]):
                best = row
        if best is None:
            best = len(rows)
            rows.append([])
            free.append([shape.tokens, shape.scored, shape.examples])
        rows[best].append(i)
        free[best][0] -= tokens[i]
        free[best][1] -= scored[i]
        free[best][2] -= 1
    return RowPlan(tuple(map(tuple, rows)), int(sum(tokens)))


def build_rows(
    rows: Sequence[Sequence[tuple[int, Example]]],
    shape: RowShape,
    column_names: Sequence[str] = (),
    local: slice = slice(None),
) -> Rows:
    """Writes planned rows as NumPy arrays.

    Args:
      rows: for each row its examples, each with the identity that ``columns["example_id"]`` shall hold.
        An empty row is all padding.
      shape: T, S, E and K.
      column_names: columns of the examples to carry. A scalar becomes ``[R, E]``, an array ``[K]`` becomes
        ``[R, E, K]``, and a tuple of K arrays, one value a scored token, becomes ``[R, S]``: float32 with 0 where no
        token is scored, bool with False, or int32 with -1.
        Two more names ask for places in the row: ``ends``, the last token of each completion, unscored ones behind
        the others, ``[R, E, K + M]``, 0 where there is none; and ``score_index``, the scored token, ``[R, S]``.
      local: which of the rows to write; the others belong to other processes.

    Returns:
      `Rows` of NumPy arrays. ``example_id`` is -1 where there is no example.
    """
    local_rows = rows[local]
    count, (length, scored, examples, completions) = len(local_rows), shape
    index = np.arange(length, dtype=np.int32)
    tokens = np.zeros((count, length), np.int32)
    positions = np.zeros((count, length), np.int32)
    own_start = np.broadcast_to(index, (count, length)).copy()  # padding sees itself: no empty softmax
    prefix_start = np.zeros((count, length), np.int32)
    prefix_end = np.zeros((count, length), np.int32)
    score_source = np.zeros((count, scored), np.int32)
    score_target = np.zeros((count, scored), np.int32)
    score_slot = np.full((count, scored), examples * completions, np.int32)
    example_id = np.full((count, examples), -1, np.int32)
    first = next(example for row in rows for _, example in row)
    columns = {n: _empty_column(first.columns[n], shape, count) for n in column_names if n not in DERIVED_COLUMNS}
    ends = np.zeros((count, examples, completions + len(first.unscored)), np.int32)
    score_index = np.zeros((count, scored), np.int32)

    for r, row in enumerate(local_rows):
        cursor = score_cursor = 0
        for e, (identity, example) in enumerate(row):
            example_id[r, e] = identity
            prompt_start, prompt_end = cursor, cursor + len(example.prompt)
            tokens[r, prompt_start:prompt_end] = example.prompt
            positions[r, prompt_start:prompt_end] = index[: prompt_end - prompt_start]
            own_start[r, prompt_start:prompt_end] = prompt_start
            cursor = prompt_end
            spans = []
            for k, completion in enumerate((*example.completions, *example.unscored)):
                size = len(completion)
                start, stop = cursor, cursor + size
                tokens[r, start:stop] = completion
                positions[r, start:stop] = len(example.prompt) + index[:size]
                own_start[r, start:stop] = start
                prefix_start[r, start:stop] = prompt_start
                prefix_end[r, start:stop] = prompt_end
                if size:
                    ends[r, e, k] = stop - 1
                cursor = stop
                if k >= len(example.completions):
                    continue
                span = slice(score_cursor, score_cursor + size)
                # The prompt's last state predicts the first token, then each token's state predicts the next.
                score_source[r, span] = index[start - 1 : stop - 1] if size else 0
                score_source[r, span][:1] = prompt_end - 1
                score_index[r, span] = index[start:stop]
                score_target[r, span] = completion
                score_slot[r, span] = e * completions + k
                spans.append(span)
                score_cursor += size
            for name, values in columns.items():
                value = example.columns[name]
                if isinstance(value, tuple):
                    for span, part in zip(spans, value, strict=True):
                        values[r, span] = part
                else:
                    values[r, e] = value
    columns |= {
        name: {"ends": ends, "score_index": score_index}[name] for name in DERIVED_COLUMNS if name in column_names
    }
    columns["example_id"] = example_id
    # Host arrays until the batch is put on its devices.
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "positions": positions,
        "own_start": own_start,
        "prefix_start": prefix_start,
        "prefix_end": prefix_end,
        "score_source": score_source,
        "score_target": score_target,
        "score_slot": score_slot,
        "example_mask": example_id >= 0,
        "columns": columns,
    }
    return Rows(**arrays, completions=completions)


def scored_values(rows: Rows, *values: np.ndarray) -> Iterator[tuple[int, list[tuple[np.ndarray, ...]]]]:
    """What was computed of each scored token, given back example by example: the inverse of packing.

    Args:
      rows: from `build_rows`.
      values: each ``[R, S]``.

    Returns:
      of each example its id, and of each of its completions every value's part, ``[C_k]``.
    """
    slots, identities = np.asarray(rows.score_slot), np.asarray(rows.columns["example_id"])
    for row, example in np.argwhere(identities >= 0):
        first = example * rows.completions
        places = [slots[row] == first + completion for completion in range(rows.completions)]
        yield int(identities[row, example]), [tuple(value[row, place] for value in values) for place in places]


def _empty_column(value, shape, count):
    if isinstance(value, tuple):
        values = token_column(next((part for part in value if len(part)), value[0]))
        return np.full((count, shape.scored), no_token(values.dtype), values.dtype)
    value = np.asarray(value)
    return np.zeros((count, shape.examples, *value.shape), np.float32 if value.dtype.kind == "f" else value.dtype)


def choose_shape(
    tokens: np.ndarray,
    scored: np.ndarray,
    completions: int,
    batch_size: int,
    *,
    row_tokens: int | None = None,
    least: tuple[int, int] = (0, 0),
) -> RowShape:
    """Reads a row shape off the data.

    Tries a few row lengths from the longest example up, packs sample batches, and takes the shortest row whose padded
    size is within 3 % of the smallest: short rows keep attention cheap, long ones fill better. S and E are then what
    those rows were seen to need, so that they bound memory without costing rows.

    Args:
      tokens: tokens that every example fills of a row, ``[n]``.
      scored: scored tokens of every example, ``[n]``.
      completions: K.
      batch_size: examples of an optimizer step.
      row_tokens: a fixed T instead of the choice; must hold the longest example.
      least: tokens and scored tokens that a row must hold in any case (examples that these are only a sample of).

    Raises:
      ValueError: `row_tokens` is shorter than the longest example.
    """
    longest = max(int(tokens.max()), least[0])
    if row_tokens is not None:
        if row_tokens < longest:
            raise ValueError(f"rows of {row_tokens} tokens cannot hold the longest example, {longest} tokens")
        candidates = [row_tokens]
    else:
        longest = _round_up(longest, TOKEN_MULTIPLE)
        candidates = sorted({_round_up(int(longest * factor), TOKEN_MULTIPLE) for factor in (1, 1.25, 1.5, 2, 3)})
    samples = _sample_batches(len(tokens), batch_size)
    trials = []
    for length in candidates:
        open_shape = RowShape(length, int(scored.sum()), batch_size, completions)
        plans = [plan_rows(tokens[batch].tolist(), scored[batch].tolist(), open_shape) for batch in samples]
        padded = sum(len(plan.rows) for plan in plans) * length
        need_scored = max(
            int(scored[batch[list(row)]].sum()) for batch, plan in zip(samples, plans, strict=True) for row in plan.rows
        )
        need_examples = max(len(row) for plan in plans for row in plan.rows)
        trials.append((padded, length, need_scored, need_examples))
    smallest = min(padded for padded, *_ in trials)
    _, length, need_scored, need_examples = next(trial for trial in trials if trial[0] <= 1.03 * smallest)
    slots = _round_up(max(need_scored, int(scored.max()), least[1]), SCORED_MULTIPLE)
    return RowShape(length, slots, need_examples, completions)


def choose_row_counts(needs: Sequence[int], multiple: int, shapes: int = 2) -> tuple[int, ...]:
    """The few row counts to compile a step for: quantiles of what its batches need, rounded up.

    Args:
      needs: rows that each batch needs; the largest is always among the counts.
      multiple: row counts are multiples of this (devices along the batch axes times micro-batches).
      shapes: how many counts at most.
    """
    quantiles = np.quantile(needs, np.linspace(0, 1, shapes + 1)[1:], method="higher")
    return tuple(sorted({_round_up(int(need), multiple) for need in quantiles}))


def fit_row_count(need: int, counts: Sequence[int], multiple: int) -> int:
    """The smallest compiled row count that holds `need` rows, or the next multiple where none does."""
    return next((count for count in sorted(counts) if count >= need), _round_up(need, multiple))


def _sample_batches(examples: int, batch_size: int, batches: int = 64) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    if examples <= batch_size:
        return [np.arange(examples)[np.arange(batch_size) % examples]]
    return [generator.choice(examples, batch_size, replace=False) for _ in range(batches)]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
