"""Intervals against closed forms, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.evaluation.statistics import Z95, bootstrap_mean, wilson


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (10, 10), (1, 10), (37, 50), (499, 512)])
def test_wilson_ends_solve_the_score_equation(successes, total):
    share, low, high = wilson(successes, total)
    assert share == successes / total
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            # The end is the proportion from which the share is just 1.96 standard errors away.
            assert abs(share - end) == pytest.approx(Z95 * np.sqrt(end * (1 - end) / total), rel=1e-9)


def test_wilson_published_value():
    # Newcombe (1998), Table I, method 3: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("successes", "total"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(successes, total):
    with pytest.raises(ValueError, match="expected 0 <= successes"):
        wilson(successes, total)


def test_bootstrap_of_a_large_normal_sample_is_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    mean, low, high = bootstrap_mean(values)
    half = Z95 * values.std() / np.sqrt(values.size)
    assert mean == values.mean()
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_bootstrap_of_equal_values_is_a_point():
    assert bootstrap_mean([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        _, low, high = bootstrap_mean(rng.exponential(1.0, 80), seed=trial, resamples=400)
        hits += low <= 1.0 <= high
    assert 0.89 <= hits / 300 <= 0.99


def test_bootstrap_needs_values():
    with pytest.raises(ValueError, match="n >= 1"):
        bootstrap_mean([])
