"""Rates under a clock of our own, and a measured peak that is possible."""

import time

import pytest

from jaxalign.training.throughput import Throughput, measure_matmul_peak, training_flops_per_token


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_rates_by_hand():
    """The first step starts the clock. Then two steps in 4 s: 600 tokens, 8 pairs, 1 s of waiting, 800 places.

    120 tokens are scored, in 160 slots.
    150 tokens/s of 6 * 1000 FLOPs each are 0.9 MFLOP/s, of a peak of 9: a tenth.
    """
    clock = Clock()
    throughput = Throughput(training_flops_per_token(1000), 9e6, clock=clock)
    assert throughput.rates() == {}
    throughput.add(999, 99, 50.0, 999, 9, 9)
    for _ in range(2):
        clock.now += 2.0
        throughput.add(300, 4, 0.5, 400, 60, 80)
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


def test_a_live_reference_costs_a_forward_pass():
    assert training_flops_per_token(10) == 60
    assert training_flops_per_token(10, live_reference=True) == 80


def test_the_measured_peak_is_possible():
    """More than a slow core's scalar arithmetic, less than any computer's."""
    start = time.perf_counter()
    peak = measure_matmul_peak("float32", seconds=0.001)
    assert 1e7 < peak < 1e17
    assert time.perf_counter() - start < 60
