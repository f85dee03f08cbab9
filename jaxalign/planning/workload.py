"""What a run reads, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

FILL = 0.93
"""Share of the token places of full rows that hold tokens, where the lengths are not known; packing reaches 0.9 to
0.97 on the pairs it was measured with."""
AS_LONG = 0.95
"""From this mean length on, over the longest, examples count as equally long."""


def batch_rows(batch: int, tokens: float, longest: int, multiple: int, *, fixed: bool = False) -> tuple[int, float]:
    """Rows of a batch, and their length before it is rounded, where only a mean length is known.

    The rule of `jaxalign.data.row_shapes`: a number of rows that the devices share, over which the examples are
    levelled, and a length that follows.

    Args:
      batch: examples.
      tokens: of an example on average.
      longest: tokens of the longest, or of a row of fixed length.
      multiple: row counts are multiples of it.
      fixed: whether rows have that length; their number then follows.
    """
    equal = tokens >= AS_LONG * longest
    if fixed:
        needed = batch / max(1, longest // tokens) if equal else batch * tokens / (FILL * longest)
        return math.ceil(max(1.0, needed) / multiple) * multiple, longest
    if equal:
        rows = multiple * max(1, batch // multiple)
        return rows, math.ceil(batch / rows) * longest
    rows = multiple * max(1, int(batch * tokens // (multiple * longest)))
    return rows, max(longest, batch * tokens / rows / FILL)


@dataclass(frozen=True)
class Workload:
    """What a stage computes with.

    Attributes:
      examples: that it trains on: pairs, or for unpaired methods labelled answers.
      held_out: examples to evaluate with.
      tokens: in an example on average, the prompt once.
      scored: of these, tokens of completions that are scored.
      attended: keys that its tokens look at, together, on average.
      row: tokens of a row: the longest example fits.
      assumed: what was not counted but taken from `PublishedData`, for a footnote; None = counted.
    """

    examples: int
    held_out: int
    tokens: float
    scored: float
    attended: float
    row: int
    assumed: str | None
