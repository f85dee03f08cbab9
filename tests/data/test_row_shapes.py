"""The sizes to compile for: they hold every batch, are few, and pad less than rows of one fixed length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import row_shapes
from jaxalign.data.row_plans import RowProgram, RowShape, level_rows, place, plan_rows
from jaxalign.data.row_shapes import MOST_PROGRAMS, Work, choose_programs, round_length


def batches_of(seed, batch_size, number=12, longest=200):
    generator = np.random.default_rng(seed)
    scored = generator.integers(0, longest, (number, batch_size))
    tokens = scored + generator.integers(1, longest, (number, batch_size))
    return [(t.tolist(), s.tolist()) for t, s in zip(tokens, scored, strict=True)]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 24), st.sampled_from([1, 3, 8]), st.sampled_from([None, 400, 1000]))
def test_every_batch_fits_one_of_few_programs(seed, batch_size, multiple, row_tokens):
    batches = batches_of(seed, batch_size)
    programs = choose_programs(batches, 2, multiple, steps=10_000, row_tokens=row_tokens, least=(380, 190))
    assert 1 <= len(programs) <= MOST_PROGRAMS
    assert list(programs) == sorted(programs, key=Work().of)
    assert programs == choose_programs(batches, 2, multiple, steps=10_000, row_tokens=row_tokens, least=(380, 190))
    for rows, shape in programs:
        assert rows % multiple == 0
        assert shape.completions == 2
        assert shape.tokens == (row_tokens or round_length(shape.tokens))
        assert shape.scored == round_length(shape.scored)
    assert programs[-1].shape.tokens >= 380
    assert programs[-1].shape.scored >= 190
    for tokens, scored in batches:
        program, _ = place(tokens, scored, programs, multiple)
        assert program in programs


@pytest.mark.parametrize("row_tokens", [None, 700])
def test_large_batches_too_fit_what_was_chosen_for_them(row_tokens):
    batches = batches_of(3, 128, number=30)
    programs = choose_programs(batches, 2, steps=10_000, row_tokens=row_tokens)
    assert {place(*sizes, programs, 1)[0] for sizes in batches} <= set(programs)


def old_rule(batches, multiple) -> int:
    """Tokens of rows of one length, a multiple of the longest example, filled by best fit; two counts of rows."""
    longest = max(max(tokens) for tokens, _ in batches)
    totals = []
    for factor in (1, 1.25, 1.5, 2, 3):
        length = -(-int(longest * factor) // 16) * 16
        needs = [
            -(-len(plan_rows(t, s, RowShape(length, sum(s), len(t), 2)).rows) // multiple) * multiple
            for t, s in batches
        ]
        median = int(np.quantile(needs, 0.5, method="higher"))
        totals.append(length * sum(median if need <= median else max(needs) for need in needs))
    return min(totals)


@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("multiple", [1, 4])
def test_less_is_padded_than_in_rows_of_one_length(batch_size, multiple):
    batches = batches_of(0, batch_size, number=100)
    programs = choose_programs(batches, 2, multiple, steps=10_000)
    found = [place(*sizes, programs, multiple)[0] for sizes in batches]
    places = sum(program.rows * program.shape.tokens for program in found)
    assert places < 0.95 * old_rule(batches, multiple)


def test_one_row_on_one_device_follows_the_batch():
    """Eight pairs a step, as short as 64 + 2 x 32 tokens: rows of one length would be three quarters full."""
    generator = np.random.default_rng(1)
    scored = generator.integers(32, 129, (2, 300, 8)).sum(axis=0)
    tokens = scored + generator.integers(64, 129, (300, 8))
    batches = [(t.tolist(), s.tolist()) for t, s in zip(tokens, scored, strict=True)]
    programs = choose_programs(batches, 2, steps=2_000, work=Work(scored=0.65, length=0.01))
    found = [place(*sizes, programs, 1)[0] for sizes in batches]
    assert tokens.sum() / sum(rows * shape.tokens for rows, shape in found) > 0.9
    assert scored.sum() / sum(rows * shape.scored for rows, shape in found) > 0.9
    assert 3 <= len(programs) <= MOST_PROGRAMS


def test_a_short_run_compiles_once():
    batches = batches_of(0, 8, number=200)
    assert len(choose_programs(batches[:10], 2)) == 1
    assert len(choose_programs(batches, 2, steps=100_000)) == MOST_PROGRAMS
    assert len(choose_programs(batches, 2, steps=100_000, most=2)) == 2


def test_of_a_long_run_a_sample_is_levelled(monkeypatch):
    """It and the heaviest batches: nearly every batch fits, and what does not has a size of its own."""
    batches = batches_of(5, 12, number=600)
    whole = choose_programs(batches, 2, 4, steps=10_000)
    levelled = []
    monkeypatch.setattr(row_shapes, "level_rows", lambda *args: levelled.append(args) or level_rows(*args))
    monkeypatch.setattr(row_shapes, "LEVELLED", 60)
    monkeypatch.setattr(row_shapes, "HEAVIEST", 4)
    programs = choose_programs(batches, 2, 4, steps=10_000)
    assert len(levelled) <= 3 * row_shapes.SAMPLED + 60 + 4 * 4
    assert programs == choose_programs(batches, 2, 4, steps=10_000)
    assert programs[0].rows == whole[0].rows
    found = [place(*sizes, programs, 4)[0] for sizes in batches]
    assert sum(program not in programs for program in found) <= 0.02 * len(batches)
    heaviest = max(batches, key=lambda sizes: sum(sizes[0]))
    assert place(*heaviest, programs, 4)[0] in programs


def test_costly_attention_makes_rows_short_and_a_costly_head_saves_slots():
    batches = batches_of(0, 64)
    (free,), (dear,) = (choose_programs(batches, 2, most=1, work=Work(length=each)) for each in (0.0, 1.0))
    assert dear.shape.tokens < 0.5 * free.shape.tokens
    head = choose_programs(batches, 2, most=1, work=Work(scored=10.0, length=0.0))[0]
    assert head.rows * head.shape.scored <= free.rows * free.shape.scored


def test_a_fixed_row_length_must_hold_the_longest_example():
    with pytest.raises(ValueError, match="rows of 64 tokens cannot hold the longest example, 70 tokens"):
        choose_programs([([70, 20], [10, 10])], 1, row_tokens=64)


def test_examples_without_scored_tokens():
    (program,) = choose_programs([([5, 3], [0, 0])], 1)
    assert program == RowProgram(1, RowShape(16, 16, 2, 1))
