"""The held-out split: nested, deterministic, and no prompt on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.data.holdout import nested_subset, shared_prompts, split_by_prompt
from jaxalign.data.records import ExampleSet
from jaxalign.errors import DataError


@pytest.fixture
def examples():
    """60 examples of 40 prompts."""
    segments = [s for i in range(60) for s in ([1, i % 40], [2, i])]
    return ExampleSet.from_segments(segments, completions=1)


def test_no_prompt_is_on_both_sides(examples):
    for seed in range(5):
        train, held = split_by_prompt(examples, 20, seed)
        assert len(held) == 20
        assert sorted([*train, *held]) == list(range(60))
        assert not shared_prompts(examples.select(train), examples.select(held))


def test_larger_splits_of_a_seed_hold_out_the_same_and_more(examples):
    small, large = (set(split_by_prompt(examples, size, 3)[1].tolist()) for size in (8, 16))
    again = set(split_by_prompt(examples, 16, 3)[1].tolist())
    other = set(split_by_prompt(examples, 16, 4)[1].tolist())
    assert large == again != other
    assert len(small - large) <= 1  # what fills the last place of the smaller one


@pytest.mark.parametrize("size", [60, 61, 1000])
def test_something_must_be_left_to_train_on(examples, size):
    with pytest.raises(DataError, match=rf"data.eval_size: got {size}, but of 60 examples with 40 different prompts"):
        split_by_prompt(examples, size, 0)


def test_shared_prompts_name_both_sides(examples):
    assert shared_prompts(examples[:10], examples[40:45]) == [(i, i) for i in range(5)]
    assert shared_prompts(examples[:5], examples[10:20]) == []
    assert np.all([i < 5 for i, _ in shared_prompts(examples[:10], examples[40:45])])


def test_prompts_of_one_token_are_told_apart_by_their_completions():
    """Plain text behind a BOS: nothing but the whole example says what is the same."""
    texts = ExampleSet.from_segments([s for i in range(10) for s in ([1], [2, i // 2])], completions=1)
    train, held = split_by_prompt(texts, 4, 0)
    assert len(held) == 4
    assert not shared_prompts(texts.select(train), texts.select(held))


def ids(examples):
    return [(e.prompt.tolist(), e.completions[0].tolist()) for e in examples]


def test_subsets_are_nested(examples):
    whole = ids(nested_subset(examples, 60, 1))
    assert sorted(whole) == sorted(ids(examples))
    assert whole != ids(examples)
    for size in (1, 7, 59):
        assert ids(nested_subset(examples, size, 1)) == whole[:size]
    assert ids(nested_subset(examples, 60, 2)) != whole


def test_rows_added_elsewhere_leave_the_order(examples):
    more = ExampleSet.from_segments([s for i in range(100, 120) for s in ([1, i], [2, i])], completions=1)
    both = ExampleSet.from_examples([*more, *examples])
    before, after = ids(nested_subset(examples, 60, 1)), ids(nested_subset(both, 80, 1))
    assert [e for e in after if e in before] == before


def test_copies_of_an_example_have_places_of_their_own():
    copies = ExampleSet.from_segments([s for i in range(40) for s in ([1, 5], [2, i % 2])], completions=1)
    first = ids(nested_subset(copies, 10, 0))
    assert 0 < sum(completion == [2, 0] for _, completion in first) < 10


@pytest.mark.parametrize("size", [0, 61])
def test_a_subset_is_not_larger_than_the_data(examples, size):
    with pytest.raises(DataError, match=f"data.size: got {size}, expected at most the 60 examples"):
        nested_subset(examples, size, 0)


def test_answers_of_a_pair_are_taken_as_the_pair_is():
    prompts = [[1, i, i + 1] for i in range(30)]
    pairs = ExampleSet.from_segments([s for p in prompts for s in (p, [2, p[1]], [3, p[1]])], completions=2)
    answers = ExampleSet.from_segments([s for p in prompts for a in (2, 3) for s in (p, [a, p[1]])], completions=1)
    for size in (1, 8, 30):
        taken = nested_subset(pairs, size, 3)
        apart = nested_subset(answers, size, 3, answers_apart=True)
        both = [(e.prompt.tolist(), c.tolist()) for e in taken for c in e.completions]
        assert ids(apart) == both
    with pytest.raises(DataError, match="at most the 30 examples"):
        nested_subset(answers, 31, 3, answers_apart=True)
