"""Operations of a run's steps, counted from the batches that it trained on, beside the `perf/mfu` that it told."""

from __future__ import annotations

import pytest

from jaxalign import build
from jaxalign.build.data import shuffled
from jaxalign.config import resolve
from jaxalign.methods import get_method
from jaxalign.planning import flops
from jaxalign.training.metrics import read_metrics

PEAK = 1e9
"""Operations a second of a device, as the fixtures of this folder have it."""


def batches_of(config):
    """A run's batches, by the number of the step, and their examples."""
    data = build.check_data(config)
    return shuffled(data.train, get_method(config.method.name), config), data


def read_by(batches, step: int) -> dict[str, float]:
    """Tokens, scored tokens and attended keys of a batch, example by example, partners of KTO included."""
    read = {"tokens": 0.0, "scored": 0.0, "attended": 0.0}
    for _, example in batches(step):
        prompt, rest = len(example.prompt), [len(tokens) for tokens in example.completions]
        read["tokens"] += prompt + sum(rest)
        read["scored"] += sum(rest)
        read["attended"] += prompt**2 / 2 + sum(n**2 / 2 + n * prompt for n in rest)
    return read


def assert_utilisation(run) -> None:
    """That each logged step tells what its own batch needed, over its time and the peak of one device."""
    config = resolve(run.config)
    batches, _ = batches_of(config)
    decoder = run.result.policy.config
    reference = decoder if (config.reference.source, config.reference.mode) == ("policy", "live") else None
    rows = [row for row in read_metrics(run.workdir) if "perf/mfu" in row]
    assert len(rows) >= 3
    for row in rows:
        needed = flops.step(decoder, reference, **read_by(batches, int(row["step"]) - 1))
        assert row["perf/mfu"] == pytest.approx(needed / row["perf/seconds_per_step"] / PEAK, rel=1e-6)
