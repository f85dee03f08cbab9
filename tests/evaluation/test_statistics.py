"""Intervals against closed forms, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from jaxalign.evaluation.statistics import Z95, bootstrap_mean, holm, seeds_alone, seeds_and_items, wilson


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


def test_a_table_of_one_row_is_the_bootstrap_over_items():
    values = np.random.default_rng(0).exponential(1.0, 400)
    found = seeds_and_items(values[None])
    assert found is not None
    plain = bootstrap_mean(values)
    half = (plain.high - plain.low) / 2
    assert found.value == pytest.approx(values.mean())
    # Another draw, and Student's quantile for 399 degrees of freedom over the normal's.
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.1 * half)


def test_seeds_and_items_against_a_loop_over_resamples():
    """The same bootstrap, drawn one by one: rows, then columns, the same columns for all rows."""
    rng = np.random.default_rng(4)
    table = rng.normal(size=(5, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(5, 40))
    draws = []
    for _ in range(6000):
        rows, columns = rng.integers(0, 5, 5), rng.integers(0, 40, 40)
        mean_of_items = table[:, columns].mean(1)
        draws.append(mean_of_items.mean() + np.sqrt(5 / 4) * (mean_of_items[rows].mean() - mean_of_items.mean()))
    by_seed, by_item = table.mean(1).var(ddof=1) / 5, table.mean(0).var(ddof=1) / 40
    freedom = (by_seed + by_item) ** 2 / (by_seed**2 / 4 + by_item**2 / 39)
    widen = scipy.stats.t.ppf(0.975, freedom) / Z95
    expected = table.mean() + widen * (np.quantile(draws, [0.025, 0.975]) - table.mean())
    found = seeds_and_items(table)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.04 * (expected[1] - expected[0]))


def test_many_items_have_the_normal_limit():
    rng = np.random.default_rng(2)
    values = rng.normal(0.02, 1.0, (1, 5000))
    found = seeds_and_items(values)
    expected = scipy.stats.ttest_1samp(values[0], 0.0)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize(("seeds", "spreads"), [(2, (0.1, 1, 1)), (3, (0.3, 0.3, 1)), (5, (1, 1, 1))])
def test_seeds_and_items_cover_the_truth_and_p_agrees(seeds, spreads):
    rng = np.random.default_rng(seeds)
    by_seed, by_item, rest = spreads
    hits = 0
    for _ in range(200):
        table = by_seed * rng.normal(size=(seeds, 1)) + by_item * rng.normal(size=(1, 50))
        found = seeds_and_items(table + rest * rng.normal(size=(seeds, 50)), resamples=1000)
        assert found is not None
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        hits += found.low <= 0 <= found.high
    assert 0.90 <= hits / 200 <= 1.0


def test_items_drawn_anew_for_each_seed_would_be_too_sure():
    """What the shared draw of columns is for: questions are the same for all seeds."""
    rng = np.random.default_rng(9)
    hits = 0
    for _ in range(200):
        found = bootstrap_mean((rng.normal(size=(1, 50)) + 0.1 * rng.normal(size=(4, 50))).ravel(), resamples=400)
        hits += found.low <= 0 <= found.high
    assert hits / 200 < 0.8


def test_seeds_alone_is_students_interval():
    means = [0.31, 0.36, 0.29, 0.4]
    found = seeds_alone(means)
    expected = scipy.stats.ttest_1samp(means, 0.0)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_one_seed_with_a_standard_error_is_the_normal_interval():
    found = seeds_alone([0.5], [0.1])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.5 - 0.1 * Z95, 0.5 + 0.1 * Z95), rel=1e-6)
    assert found.p == pytest.approx(2 * scipy.stats.norm.sf(5), rel=1e-6)


def test_what_tells_no_spread_has_no_interval():
    assert seeds_alone([0.5]) is None
    assert seeds_and_items([[0.5]]) is None


def test_equal_values_are_as_sure_as_a_sign_test():
    found = seeds_and_items([[1.0] * 8])
    assert found == (1.0, 1.0, 1.0, scipy.stats.binomtest(8, 8).pvalue)
    zero = seeds_and_items([[0.0] * 8])
    assert zero is not None
    assert zero.p == 1.0


def test_holm_against_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.uniform(0, 0.1, 7)
        # Step down: reject the smallest while it is below level / (those left); the adjusted p is the least level.
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for rank, place in enumerate(np.argsort(p)):
                if p[place] >= level / (7 - rank):
                    break
                rejected.add(int(place))
            assert {i for i, adjusted in enumerate(holm(p.tolist())) if adjusted < level} == rejected


def test_holm_of_nothing_and_of_one():
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


@pytest.mark.parametrize("values", [[], [[]], [[1.0, float("nan")]]])
def test_seeds_and_items_need_finite_values(values):
    with pytest.raises(ValueError, match="expected finite"):
        seeds_and_items(np.array(values))
