"""Held-out examples that the training data also holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxalign.data.contract import OnBad
from jaxalign.data.records import Example, ExampleSet
from jaxalign.errors import DataError


@dataclass(frozen=True)
class Overlap:
    """What two sets share, by token ids.

    Attributes:
      examples: ``(held-out index, training index)`` of equal examples.
      prompts: held-out indices whose prompt is a training prompt, equal examples included.
    """

    examples: tuple[tuple[int, int], ...]
    prompts: tuple[int, ...]

    def as_dict(self) -> dict[str, int]:
        """Counts for the manifest."""
        return {"equal examples": len(self.examples), "equal prompts": len(self.prompts)}


def find_overlap(train: ExampleSet, held_out: ExampleSet) -> Overlap:
    """The held-out examples, and prompts, that are also in `train`."""
    examples: dict[tuple[bytes, ...], int] = {}
    prompts = set()
    for i, example in enumerate(train):
        examples.setdefault(_key(example), i)
        prompts.add(example.prompt.tobytes())
    equal = tuple((i, examples[key]) for i, e in enumerate(held_out) if (key := _key(e)) in examples)
    return Overlap(equal, tuple(i for i, e in enumerate(held_out) if e.prompt.tobytes() in prompts))


def check_overlap(train: ExampleSet, held_out: ExampleSet, *, on_bad: OnBad = "strict") -> tuple[ExampleSet, Overlap]:
    """The held-out set without the examples that are in `train`, and the overlap that was found.

    Examples that share only their prompt stay; they are counted.

    Raises:
      DataError: in strict mode, if an example is in both; else if none is left.
    """
    overlap = find_overlap(train, held_out)
    if not overlap.examples:
        return held_out, overlap
    rows = [held_out.sources[i] for i, _ in overlap.examples]
    first = train.sources[overlap.examples[0][1]]
    count = f"{len(rows)} rows have" if len(rows) > 1 else "1 row has"
    shown = ", ".join(rows[:10]) + (", ..." if len(rows) > 10 else "")
    if on_bad == "strict":
        raise DataError(
            f"{rows[0]}: the same example is in the training data ({first}). {count} this problem: {shown}. "
            "Use data.on_bad=drop to take them out of the held-out data."
        )
    shared = np.array([i for i, _ in overlap.examples])
    kept = np.setdiff1d(np.arange(len(held_out)), shared)
    if not len(kept):
        raise DataError(f"all {len(held_out)} held-out examples are in the training data ({rows[0]} = {first})")
    return held_out.select(kept), overlap


def _key(example: Example) -> tuple[bytes, ...]:
    return (example.prompt.tobytes(), *(c.tobytes() for c in example.completions))
