"""Packing: several examples in a row, each example one prompt segment and its K completions.

`build_rows` writes the arrays that `jaxalign.types.Rows` describes, from a plan of `jaxalign.data.row_plans`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxalign.data.records import Example, no_token, token_column
from jaxalign.data.row_plans import RowShape
from jaxalign.types import Rows

DERIVED_COLUMNS = ("ends", "score_index")
"""Columns that `build_rows` knows by itself: places in the row."""


def build_rows(
    rows: Sequence[Sequence[tuple[int, Example]]],
    shape: RowShape,
    column_names: Sequence[str] = (),
    local: slice = slice(None),
    *,
    like: Example | None = None,
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
      like: an example of the set, where there may be none in the rows.

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
    first = like or next(example for row in rows for _, example in row)
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
