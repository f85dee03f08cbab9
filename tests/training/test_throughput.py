"""Rates under a clock of our own, and a measured peak that is possible."""

import time
from pathlib import Path

import pytest

from jaxalign.training.matmul_peak import matmul_peak, measure_matmul_peak
from jaxalign.training.throughput import Throughput


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_rates_by_hand():
    """The first step starts the clock. Then two steps in 4 s: 600 tokens, 8 pairs, 1 s of waiting, 800 places.

    120 tokens are scored, in 160 slots.
    150 tokens/s of 6,000 FLOPs each, 30 scored ones of 5,000 more and 1,500 keys of 100 are 1.2 MFLOP/s, of a peak of
    12: a tenth.
    """
    clock = Clock()
    throughput = Throughput((6000.0, 5000.0, 100.0), 12e6, clock=clock)
    assert throughput.rates() == {}
    throughput.add(999, 99, 50.0, places=999, scored=9, slots=9, attended=999)
    for _ in range(2):
        clock.now += 2.0
        throughput.add(300, 4, 0.5, places=400, scored=60, slots=80, attended=3000)
    assert throughput.rates() == pytest.approx(
        {
            "perf/tokens_per_second": 150.0,
            "perf/pairs_per_second": 2.0,
            "perf/seconds_per_step": 2.0,
            "perf/data_wait": 0.25,
            "perf/fill": 0.75,
            "perf/padding": 0.25,
            "perf/scored_fill": 0.75,
            "perf/mfu": 0.1,
        }
    )


def test_every_rate_is_documented():
    throughput = Throughput((1.0, 1.0, 1.0), 1.0)
    throughput.add(1, 1)
    throughput.add(1, 1, places=1, scored=1, slots=1)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert all(f"| `{name}` |" in page for name in throughput.rates())


def test_each_look_starts_anew():
    clock = Clock()
    throughput = Throughput(clock=clock)
    throughput.add(1, 1)
    for seconds, tokens in ((1.0, 10), (2.0, 60)):
        clock.now += seconds
        throughput.add(tokens, 1)
        rates = throughput.rates()
        assert rates["perf/tokens_per_second"] == tokens / seconds
        assert "perf/mfu" not in rates
        assert not {"perf/padding", "perf/fill", "perf/scored_fill"} & rates.keys()
    assert throughput.rates() == {}


def test_other_work_does_not_count():
    clock = Clock()
    throughput = Throughput(clock=clock)
    throughput.add(1, 1)
    clock.now += 1000.0  # an evaluation
    throughput.restart()
    clock.now += 1.0
    throughput.add(10, 1)
    assert throughput.rates()["perf/tokens_per_second"] == 10.0


def test_the_measured_peak_is_possible():
    """More than a slow core's scalar arithmetic, less than any computer's."""
    start = time.perf_counter()
    peak = measure_matmul_peak("float32", seconds=0.001)
    assert 1e7 < peak < 1e17
    assert time.perf_counter() - start < 60


def test_the_peak_is_measured_once_on_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path))
    measured = []
    monkeypatch.setattr(
        "jaxalign.training.matmul_peak.measure_matmul_peak", lambda dtype: measured.append(dtype) or 7.0
    )
    assert [matmul_peak(dtype) for dtype in ("float32", "float32", "bfloat16")] == [7.0] * 3
    assert measured == ["float32", "bfloat16"]
    for kept in (tmp_path / "peaks").iterdir():
        kept.write_text("{")
    assert matmul_peak("float32") == 7.0
    assert len(measured) == 3
