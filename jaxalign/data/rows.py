"""Packing: several examples in a row, each example one prompt segment and its K completions.

`build_rows` writes the arrays that `jaxalign.types.Rows` describes, from a plan of `jaxalign.data.row_plans`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxalign.data.records import Example, no_token, token_column
from jaxalign.data.row_plans import RowShape
from jaxalign.types import Rows

PLACES = 1 << 15
"""Places of the rows that are written at a time: what is made on the way stays small."""
DERIVED_COLUMNS = ("ends", "score_index")
"""Columns that `build_rows` knows by itself: places in the row."""


def attended_keys(lengths: np.ndarray) -> np.ndarray:
    """Keys that all tokens of each example look at, together, ``[E]``: those before it in its segment and its prompt.

    Args:
      lengths: of the prompt and each completion, ``[E, 1 + K]``.
    """
    prompt, rest = np.split(np.asarray(lengths, np.float64), [1], axis=1)
    return (prompt**2 / 2).sum(axis=1) + (rest**2 / 2 + rest * prompt).sum(axis=1)


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
    first = like or next(example for row in rows for _, example in row)
    rows = rows[local]
    columns = {
        name: _empty_column(first.columns[name], shape, len(rows))
        for name in column_names
        if name not in DERIVED_COLUMNS
    }
    derived = {
        "ends": np.zeros((len(rows), shape.examples, shape.completions + len(first.unscored)), np.int32),
        "score_index": np.zeros((len(rows), shape.scored), np.int32),
    }
    built = empty_rows(len(rows), shape, columns | derived)
    step = max(1, PLACES // shape.tokens)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        if any(rows[part]):
            _write(rows[part], jax.tree.map(lambda array, part=part: array[part], built), columns.keys())
    unasked = derived.keys() - set(column_names)
    return replace(built, columns={name: built.columns[name] for name in built.columns if name not in unasked})


def _write(rows: Sequence[Sequence[tuple[int, Example]]], built: Rows, columns: Collection[str]) -> None:
    """Writes planned rows into rows of padding."""
    places = [e for row in rows for e in range(len(row))]
    members = [example for row in rows for _, example in row]
    k = built.completions
    segments = [segment for example in members for segment in _segments(example, k)]
    lengths = np.fromiter(map(len, segments), np.int64, len(segments)).reshape(len(members), -1)
    behind = np.arange(lengths.shape[1]) > 0  # the prompt comes first
    owner = np.repeat(np.arange(len(rows)), list(map(len, rows)))

    filled = _Filled.of(lengths, owner, len(rows))
    own = filled.spread(filled.starts)
    filled.write(built.tokens, np.concatenate(segments))
    filled.write(built.positions, filled.index - own + filled.spread(lengths[:, :1] * behind))
    filled.write(built.own_start, own)
    filled.write(built.prefix_start, filled.spread(filled.starts[:, :1] * behind))
    filled.write(built.prefix_end, filled.spread(filled.ends[:, :1] * behind))
    built.columns["ends"][owner, places] = np.where(lengths, filled.ends - 1, 0)[:, 1:]

    # The scored slots hold the scored completions one after another.
    slots = _Filled.of(lengths[:, 1 : 1 + k], owner, len(rows))
    target = slots.index + slots.spread(filled.starts[:, 1 : 1 + k] - slots.starts)
    slots.write(built.columns["score_index"], target)
    # The prompt's last state predicts the first token, then each token's state predicts the next.
    first = slots.index == slots.spread(slots.starts)
    before = np.repeat(filled.ends[:, :1] - 1, k, axis=1)
    slots.write(built.score_source, np.where(first, slots.spread(before), target - 1))
    slots.write(built.score_target, np.concatenate([part for example in members for part in example.completions]))
    slots.write(built.score_slot, slots.spread(np.array(places)[:, None] * k + np.arange(k)))

    built.example_mask[owner, places] = True
    built.columns["example_id"][owner, places] = [identity for row in rows for identity, _ in row]
    for name in columns:
        given = [example.columns[name] for example in members]
        if isinstance(given[0], tuple):
            slots.write(built.columns[name], np.concatenate([part for parts in given for part in parts]))
        else:
            built.columns[name][owner, places] = given


def empty_rows(count: int, shape: RowShape, columns: Mapping[str, np.ndarray] | None = None) -> Rows:
    """Rows of padding, NumPy arrays to be written into.

    Args:
      count: R.
      shape: T, S, E and K.
      columns: to carry, beside ``example_id``.
    """
    length, scored, examples, completions = shape
    index = np.arange(length, dtype=np.int32)
    # Host arrays until the batch is put on its devices.
    arrays: dict[str, Any] = {
        "tokens": np.zeros((count, length), np.int32),
        "positions": np.zeros((count, length), np.int32),
        "own_start": np.tile(index, (count, 1)),  # padding sees itself: no empty softmax
        "prefix_start": np.zeros((count, length), np.int32),
        "prefix_end": np.zeros((count, length), np.int32),
        "score_source": np.zeros((count, scored), np.int32),
        "score_target": np.zeros((count, scored), np.int32),
        "score_slot": np.full((count, scored), examples * completions, np.int32),
        "example_mask": np.zeros((count, examples), bool),
        "columns": {**(columns or {}), "example_id": np.full((count, examples), -1, np.int32)},
    }
    return Rows(**arrays, completions=completions)


@dataclass(frozen=True)
class _Filled:
    """Segments that fill rows from the left, one after another: n examples of W segments each.

    Attributes:
      lengths: of the segments, ``[n, W]``.
      starts: where in its row each starts, ``[n, W]``.
      index: of every place that is filled, where in its row it is, ``[N]``; row after row.
      bounds: where the rows start and end in `index`.
    """

    lengths: np.ndarray
    starts: np.ndarray
    index: np.ndarray
    bounds: list[int]

    @classmethod
    def of(cls, lengths: np.ndarray, owner: np.ndarray, rows: int) -> _Filled:
        """From lengths, and the row of each example, ascending."""
        used = np.bincount(owner, lengths.sum(axis=1), rows).astype(np.int64)
        bounds = np.concatenate([[0], np.cumsum(used)])
        starts = np.cumsum(lengths).reshape(lengths.shape) - lengths - bounds[owner][:, None]
        index = np.arange(bounds[-1], dtype=np.int32) - np.repeat(bounds[:-1].astype(np.int32), used)
        return cls(lengths, starts, index, bounds.tolist())

    @property
    def ends(self) -> np.ndarray:
        """One past the last place of each segment, ``[n, W]``."""
        return self.starts + self.lengths

    def spread(self, values: np.ndarray) -> np.ndarray:
        """A value a segment, ``[n, W]``, given to each of its places, ``[N]`` int32."""
        return np.repeat(values.astype(np.int32).reshape(-1), self.lengths.reshape(-1))

    def write(self, rows: Any, values: np.ndarray) -> None:
        """Puts a value a place into rows, which are still NumPy's."""
        for row, start, stop in zip(rows, self.bounds[:-1], self.bounds[1:], strict=True):
            row[: stop - start] = values[start:stop]


def _segments(example: Example, completions: int) -> list[np.ndarray]:
    missing = completions - len(example.completions)
    return [example.prompt, *example.completions, *[example.prompt[:0]] * missing, *example.unscored]


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
