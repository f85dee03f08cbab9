"""What a run reads, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

FILL = 0.93
"""Share of the token places of full rows that hold tokens, where the lengths are not known; packing reaches 0.9 to
0.97 on the pairs it was measured with."""


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
