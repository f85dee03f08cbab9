"""Held-out examples and subsets: deterministic and nested."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import numpy as np

from jaxalign.data.records import Example, ExampleSet
from jaxalign.errors import DataError


def split_by_prompt(examples: ExampleSet, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(train, held out)``, both ascending; all examples of a prompt fall on one side.

    Prompts are drawn in a seeded order until `size` examples are held out, so a larger `size` of the same seed holds
    out the same prompts and more, except perhaps those that fill the last places: a prompt with more examples than are
    still wanted is passed over.

    Raises:
      DataError: there are not enough examples.
    """
    groups: dict[bytes, list[int]] = {}
    for i, example in enumerate(examples):
        groups.setdefault(prompt_key(example), []).append(i)
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


def prompt_key(example: Example) -> bytes:
    """What two examples of the same prompt share. A prompt of one token says nothing: then it is the whole example."""
    parts = (example.prompt,) if len(example.prompt) > 1 else (example.prompt, *example.completions)
    return b"".join(len(part).to_bytes(8, "little") + part.tobytes() for part in parts)


def shared_prompts(train: ExampleSet, held_out: ExampleSet) -> list[tuple[int, int]]:
    """``(held-out index, train index)`` of every held-out example whose prompt is also trained on."""
    seen: dict[bytes, int] = {}
    for i in range(len(train)):
        seen.setdefault(prompt_key(train[i]), i)
    pairs = ((i, seen.get(prompt_key(held_out[i]))) for i in range(len(held_out)))
    return [(i, other) for i, other in pairs if other is not None]


def nested_subset(examples: ExampleSet, size: int, seed: int, *, answers_apart: bool = False) -> ExampleSet:
    """The first `size` examples in a seeded order: each size's subset begins with those of all smaller sizes.

    An example's place depends on its own token ids and the seed, not on where it stands: rows added to the data, or
    removed, leave the others in their order.

    Args:
      examples: what to take from.
      size: how many.
      seed: of the order.
      answers_apart: each answer is an example of its own. Those of one prompt that stand side by side then count as
        one and stay together, so that a size takes the same pairs whether a method reads pairs or labelled answers.

    Raises:
      DataError: there are not enough examples.
    """
    groups = _by_prompt(examples) if answers_apart else [[i] for i in range(len(examples))]
    if not 1 <= size <= len(groups):
        raise DataError(f"data.size: got {size}, expected at most the {len(groups)} examples that there are.")
    copies: Counter[bytes] = Counter()
    keys = []
    for group in groups:
        parts = (examples[group[0]].prompt, *(part for i in group for part in examples[i].completions))
        content = hashlib.blake2b(str((seed, *map(len, parts))).encode(), digest_size=16)
        for part in parts:
            content.update(part.astype("<i4").tobytes())
        digest = content.digest()
        keys.append(hashlib.blake2b(digest + copies[digest].to_bytes(8, "little"), digest_size=16).digest())
        copies[digest] += 1
    order = sorted(range(len(groups)), key=keys.__getitem__)
    return examples.select([i for group in order[:size] for i in groups[group]])


def _by_prompt(examples: ExampleSet) -> list[list[int]]:
    """Indices of neighbours with the same prompt, as the answers of a pair are."""
    return [list(group) for _, group in itertools.groupby(range(len(examples)), lambda i: prompt_key(examples[i]))]
