"""Plans: every example in one row, no bound exceeded, never more rows than first-fit decreasing, always the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxalign.data.row_plans import RowProgram, RowShape, fewest_rows, fit_rows, level_rows, place, plan_rows

drawn = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), min_size=1, max_size=40)


def split(drawn):
    """Tokens and scored tokens of each example; scored ones count among the tokens."""
    return [prompt + scored for prompt, scored in drawn], [scored for _, scored in drawn]


def first_fit_decreasing(tokens, scored, shape) -> int:
    """Rows that the textbook's rule needs."""
    rows: list[list[int]] = []
    for i in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        for row in rows:
            if row[0] >= tokens[i] and row[1] >= scored[i] and row[2]:
                break
        else:
            row = list(shape[:3])
            rows.append(row)
        row[0] -= tokens[i]
        row[1] -= scored[i]
        row[2] -= 1
    return len(rows)


def assert_holds(plan, tokens, scored, shape):
    assert sorted(i for row in plan.rows for i in row) == list(range(len(tokens)))
    assert (plan.tokens, plan.scored) == (sum(tokens), sum(scored))
    for row in plan.rows:
        assert sum(tokens[i] for i in row) <= shape.tokens
        assert sum(scored[i] for i in row) <= shape.scored
        assert len(row) <= shape.examples


@given(drawn, st.integers(1, 6))
@example([(40, 20)], 1)
def test_a_plan_holds_every_example_once_within_its_bounds(drawn, most):
    tokens, scored = split(drawn)
    shape = RowShape(64, 30, most, 1)
    plan = plan_rows(tokens, scored, shape)
    assert_holds(plan, tokens, scored, shape)
    assert fewest_rows(tokens, scored, shape) <= len(plan.rows) <= first_fit_decreasing(tokens, scored, shape)
    assert plan == plan_rows(tokens, scored, shape)


@given(drawn, st.integers(1, 6), st.integers(1, 8))
def test_rows_are_found_wherever_first_fit_finds_them(drawn, most, count):
    tokens, scored = split(drawn)
    program = RowProgram(count, RowShape(64, 30, most, 1))
    plan = fit_rows(tokens, scored, program)
    if plan is None:
        assert first_fit_decreasing(tokens, scored, program.shape) > count
        return
    assert len(plan.rows) <= count
    assert_holds(plan, tokens, scored, program.shape)
    assert plan == fit_rows(tokens, scored, program)


@given(drawn, st.integers(1, 9))
def test_level_rows_hold_little_more_than_the_mean(drawn, count):
    tokens, scored = split(drawn)
    plan = level_rows(tokens, scored, count)
    assert len(plan.rows) == count
    assert_holds(plan, tokens, scored, RowShape(sum(tokens), sum(scored), len(tokens), 1))
    assert plan == level_rows(tokens, scored, count)
    # Longest first into the emptiest row is within a third of the best (Graham 1969), where one size counts.
    whole = level_rows(tokens, [0] * len(tokens), count)
    assert max(sum(tokens[i] for i in row) for row in whole.rows) <= 2 * max(sum(tokens) / count, max(tokens), 1)


@given(drawn, st.integers(1, 3))
def test_a_batch_that_fits_no_program_takes_more_rows(drawn, multiple):
    tokens, scored = split(drawn)
    programs = [RowProgram(multiple, RowShape(60, 24, 2, 1)), RowProgram(2 * multiple, RowShape(64, 20, 3, 1))]
    program, plan = place(tokens, scored, programs, multiple)
    assert_holds(plan, tokens, scored, program.shape)
    assert len(plan.rows) <= program.rows
    assert program.rows % multiple == 0
    if program not in programs:
        assert program.shape == RowShape(64, 24, 3, 1)
        assert all(fit_rows(tokens, scored, each) is None for each in programs)
        assert program.rows < len(plan.rows) + multiple


def test_an_example_larger_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="example 1 has 9 tokens, 3 of them scored; a row holds 8 and 4"):
        plan_rows([5, 9], [2, 3], RowShape(8, 4, 2, 1))


def test_best_fit_fills_rows():
    # 60 + 40, 70 + 30, 50 + 50: first-fit in the given order would open a fourth row.
    plan = plan_rows([50, 60, 70, 30, 40, 50], [1] * 6, RowShape(100, 100, 10, 1))
    assert len(plan.rows) == 3


def test_a_search_finds_what_both_rules_miss():
    tokens = [11, 74, 15, 37, 15, 48, 28, 28, 44]  # 74 + 15 + 11, 48 + 37 + 15, 44 + 28 + 28
    shape = RowShape(100, 100, 10, 1)
    assert first_fit_decreasing(tokens, [0] * 9, shape) == 4
    assert len(plan_rows(tokens, [0] * 9, shape).rows) == 3


def test_scored_slots_are_levelled_too():
    """Four examples with much to score and four with little: two of each in a row, whatever their tokens."""
    tokens, scored = [100] * 8, [90, 90, 90, 90, 10, 10, 10, 10]
    plan = level_rows(tokens, scored, 4)
    assert [sum(scored[i] for i in row) for row in plan.rows] == [100] * 4
    assert [len(row) for row in plan.rows] == [2] * 4


def test_plans_do_not_depend_on_the_type_of_the_sizes():
    generator = np.random.default_rng(0)
    tokens, scored = generator.integers(20, 60, 30), generator.integers(1, 20, 30)
    shape = RowShape(200, 70, 6, 1)
    assert plan_rows(tokens.tolist(), scored.tolist(), shape) == plan_rows(tokens, scored, shape)
