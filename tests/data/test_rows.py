"""Packing: the plan respects its bounds, and the arrays say what the row layout's docstring says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.records import Example
from jaxalign.data.rows import RowShape, build_rows, choose_row_counts, choose_shape, fit_row_count, plan_rows


def example(prompt, *completions, **columns):
    arrays = tuple(np.array(c, np.int32) for c in completions)
    return Example(prompt=np.array(prompt, np.int32), completions=arrays, columns=columns, source="")


def test_one_row_by_hand():
    a = example(
        [5, 6], [7, 8], [9], scores=np.array([1.0, 2.0]), flag=True, logps=(np.array([-1.0, -2.0]), np.array([-3.0]))
    )
    b = example([1], [2], [3], scores=np.array([3.0, 4.0]), flag=False, logps=(np.array([-4.0]), np.array([-5.0])))
    rows = build_rows([[(10, a), (11, b)], []], RowShape(10, 6, 2, 2), ("scores", "flag", "logps"))
    assert rows.tokens.tolist() == [[5, 6, 7, 8, 9, 1, 2, 3, 0, 0], [0] * 10]
    assert rows.positions[0].tolist() == [0, 1, 2, 3, 2, 0, 1, 1, 0, 0]
    assert rows.own_start[0].tolist() == [0, 0, 2, 2, 4, 5, 6, 7, 8, 9]
    assert rows.prefix_start[0].tolist() == [0, 0, 0, 0, 0, 0, 5, 5, 0, 0]
    assert rows.prefix_end[0].tolist() == [0, 0, 2, 2, 2, 0, 6, 6, 0, 0]
    assert rows.score_source[0].tolist() == [1, 2, 1, 5, 5, 0]
    assert rows.score_target[0].tolist() == [7, 8, 9, 2, 3, 0]
    assert rows.score_slot[0].tolist() == [0, 0, 1, 2, 3, 4]
    assert rows.example_mask.tolist() == [[True, True], [False, False]]
    assert rows.columns["example_id"].tolist() == [[10, 11], [-1, -1]]
    assert rows.columns["scores"][0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert rows.columns["flag"].tolist() == [[True, False], [False, False]]
    assert rows.columns["logps"][0].tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0, 0.0]
    assert rows.own_start[1].tolist() == list(range(10))


def test_a_process_writes_the_same_rows_as_one_process_does():
    examples = [example([i + 1] * 3, [i + 2] * 2, flag=i % 2 == 0) for i in range(5)]
    rows = [[(i, e)] for i, e in enumerate(examples)] + [[]]
    shape = RowShape(8, 4, 1, 1)
    whole = build_rows(rows, shape, ("flag",))
    for local in (slice(0, 3), slice(3, 6), slice(5, 6)):
        part = build_rows(rows, shape, ("flag",), local)
        for name in ("tokens", "score_slot", "example_mask"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[local])
        np.testing.assert_array_equal(part.columns["flag"], whole.columns["flag"][local])


sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=40)


@given(sizes, st.integers(1, 6))
def test_a_plan_holds_every_example_once_within_its_bounds(sizes, most):
    tokens = [prompt + scored for prompt, scored in sizes]
    scored = [s for _, s in sizes]
    shape = RowShape(64, 30, most, 1)
    plan = plan_rows(tokens, scored, shape)
    assert sorted(i for row in plan.rows for i in row) == list(range(len(sizes)))
    assert plan.tokens == sum(tokens)
    for row in plan.rows:
        assert sum(tokens[i] for i in row) <= 64
        assert sum(scored[i] for i in row) <= 30
        assert len(row) <= most
    assert plan == plan_rows(tokens, scored, shape)


def test_an_example_larger_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="example 1 has 9 tokens, 3 of them scored; a row holds 8 and 4"):
        plan_rows([5, 9], [2, 3], RowShape(8, 4, 2, 1))


def test_best_fit_fills_rows():
    # 60 + 40, 70 + 30, 50 + 50: first-fit in the given order would open a fourth row.
    plan = plan_rows([50, 60, 70, 30, 40, 50], [1] * 6, RowShape(100, 100, 10, 1))
    assert len(plan.rows) == 3


@given(st.integers(0, 1000), st.integers(1, 64))
def test_the_chosen_shape_fits_the_data(seed, batch_size):
    generator = np.random.default_rng(seed)
    scored = generator.integers(1, 100, 50)
    tokens = scored + generator.integers(1, 200, 50)
    shape = choose_shape(tokens, scored, 2, batch_size)
    assert shape.tokens >= tokens.max()
    assert shape.scored >= scored.max()
    assert shape.examples >= 1
    batches = [generator.choice(50, min(batch_size, 50), replace=False) for _ in range(8)]
    needs = [len(plan_rows(tokens[batch].tolist(), scored[batch].tolist(), shape).rows) for batch in batches]
    counts = choose_row_counts(needs, multiple=4)
    assert 1 <= len(counts) <= 2
    assert all(count % 4 == 0 for count in counts)
    assert all(fit_row_count(need, counts, 4) >= need for need in needs)
    assert {fit_row_count(need, counts, 4) for need in needs} <= set(counts)


def test_a_fixed_row_length_must_hold_the_longest_example():
    with pytest.raises(ValueError, match="rows of 64 tokens cannot hold the longest example, 70 tokens"):
        choose_shape(np.array([70, 20]), np.array([10, 10]), 1, 2, row_tokens=64)
