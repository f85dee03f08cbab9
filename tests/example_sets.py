"""Random tokenised examples with whatever a method reads from its data."""

from __future__ import annotations

import numpy as np

from jaxalign.data.records import Example, ExampleSet
from jaxalign.methods import Layout, Method

RANKED = 3  # completions of a ranking
DAMAGED = 2  # completions without a score behind a pair


def examples_for(method: Method, *, vocabulary: int, count: int = 16, longest: int = 12, seed: int = 7) -> ExampleSet:
    """Prompts, completions of 1 to `longest` tokens, the same for all methods of a layout. Some rankings have gaps."""
    generator = np.random.default_rng(seed)
    own = {Layout.PAIRED: 2, Layout.RANKED: RANKED}.get(method.layout, 1)

    def tokens():
        return generator.integers(3, vocabulary, generator.integers(1, longest + 1)).astype(np.int32)

    drawn = [(tokens(), tuple(tokens() for _ in range(own))) for _ in range(count)]
    return ExampleSet.from_examples(
        _example(method, i, prompt, completions, vocabulary) for i, (prompt, completions) in enumerate(drawn)
    )


def _example(method: Method, i: int, prompt, completions, vocabulary: int) -> Example:
    rng = np.random.default_rng([13, i])
    scores = rng.permutation(len(completions)).astype(np.float32) + 0.5
    if method.layout is Layout.RANKED and i % 4 == 1:
        completions, scores[-1] = (*completions[:-1], completions[-1][:0]), 0.0
    damaged = tuple(rng.integers(3, vocabulary, rng.integers(1, 6)).astype(np.int32) for _ in range(DAMAGED))
    some = {
        "desirable": lambda: bool(i % 3),
        "scores": lambda: scores,
        "win_probabilities": lambda: rng.uniform(0.1, 0.9, len(completions)).astype(np.float32),
        "preference": lambda: np.float32(rng.uniform(0.55, 1.0)),
        "absolute": lambda: bool(i % 2),
        "density_ratios": lambda: np.float32(rng.uniform(0.5, 2.0)),
        "marked": lambda: tuple(rng.random(len(c)) < 0.5 for c in completions),
        "token_weights": lambda: tuple(rng.uniform(0.2, 1.5, len(c)).astype(np.float32) for c in completions),
        "step_labels": lambda: tuple(rng.integers(-1, 2, len(c)).astype(np.int32) for c in completions),
        "degrees": lambda: np.array([0, -1, *range(1, DAMAGED + 1)], np.int32),
    }
    return Example(
        prompt,
        completions,
        {name: some[name]() for name in method.columns},
        f"row {i}",
        damaged if "degrees" in method.columns else (),
    )
