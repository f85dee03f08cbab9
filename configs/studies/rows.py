"""Rows that the studies have in common."""

from collections.abc import Callable

from jaxalign.studies.study import Stage, Trial


def unaligned(start: str, model: Callable[[str, int], Stage | str], seeds: int) -> list[Trial]:
    """A start as it is: one row, or one for each seed where each seed has a start of its own."""
    models = [model(start, seed) for seed in range(seeds)]
    labels = {"start": start, "method": "none"}
    if all(other == models[0] for other in models):
        return [Trial(labels=labels, model=models[0])]
    return [Trial(labels={**labels, "seed": seed}, model=model) for seed, model in enumerate(models)]
