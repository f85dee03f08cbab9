"""The held-out split: nested, deterministic, and no prompt on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.data.holdout import shared_prompts, split_by_prompt
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
