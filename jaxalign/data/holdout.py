"""Held-out examples: a deterministic, nested split that no prompt crosses."""

from __future__ import annotations

import numpy as np

from jaxalign.data.records import ExampleSet
from jaxalign.errors import DataError


def split_by_prompt(examples: ExampleSet, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(train, held out)``, both ascending; all examples of a prompt fall on one side.

    Prompts are drawn in a seeded order until `size` examples are held out, so a larger `size` of the same seed holds
    out the same prompts and more, except perhaps those that fill the last places: a prompt with more examples than are
    still wanted is passed over.

    Raises:
      DataError: there are not enough examples.
    """
    prompts = [examples[i].prompt.tobytes() for i in range(len(examples))]
    groups: dict[bytes, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(i)
    members = list(groups.values())
    held: list[int] = []
    for group in np.random.default_rng([seed, 0x7E57]).permutation(len(members)):
        if len(held) + len(members[group]) <= size:
            held.extend(members[group])
        if len(held) == size:
            break
    if len(held) < size or len(held) == len(examples):
        most = min(len(held), len(examples) - 1)
        raise DataError(
            f"data.eval_size: got {size}, but of {len(examples)} examples with {len(members)} different prompts only "
            f"{most} can be held out with some left to train on."
        )
    chosen = set(held)
    return np.array([i for i in range(len(examples)) if i not in chosen], np.int64), np.array(sorted(held), np.int64)


def shared_prompts(train: ExampleSet, held_out: ExampleSet) -> list[tuple[int, int]]:
    """``(held-out index, train index)`` of every held-out example whose prompt is also trained on."""
    seen: dict[bytes, int] = {}
    for i in range(len(train)):
        seen.setdefault(train[i].prompt.tobytes(), i)
    pairs = ((i, seen.get(held_out[i].prompt.tobytes())) for i in range(len(held_out)))
    return [(i, other) for i, other in pairs if other is not None]
