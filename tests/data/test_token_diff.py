"""Marked tokens: those without a counterpart in the other answer, but no stop words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.examples import load_examples
from jaxalign.data.token_diff import mark_differences, stop_word_ids
from jaxalign.data.tokenization import TokenizerView


def test_by_hand():
    """Rejected 1 2 3 4 5, chosen 1 9 3 5 6: 2 is replaced by 9, 4 is deleted, 6 is inserted."""
    chosen, rejected = mark_differences([1, 9, 3, 5, 6], [1, 2, 3, 4, 5])
    assert chosen.tolist() == [False, True, False, False, True]
    assert rejected.tolist() == [False, True, False, True, False]
    chosen, rejected = mark_differences([1, 9, 3, 5, 6], [1, 2, 3, 4, 5], never=[9, 4])
    assert chosen.tolist() == [False, False, False, False, True]
    assert rejected.tolist() == [False, True, False, False, False]


def matched(a, b):
    """Ratcliff and Obershelp: the longest common run, the earliest in a, then in b; and so on beside it."""
    best = max(
        ((size, -i, -j) for i in range(len(a)) for j in range(len(b)) if (size := run(a[i:], b[j:]))), default=None
    )
    if best is None:
        return set(), set()
    size, i, j = best[0], -best[1], -best[2]
    left, right = matched(a[:i], b[:j]), matched(a[i + size :], b[j + size :])
    first = left[0] | set(range(i, i + size)) | {i + size + k for k in right[0]}
    return first, left[1] | set(range(j, j + size)) | {j + size + k for k in right[1]}


def run(a, b):
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def longest_common(a, b):
    """Length of the longest common subsequence, by trying all of the shorter one's."""
    short, long = sorted((a, b), key=len)
    for size in range(len(short), 0, -1):
        for part in itertools.combinations(short, size):
            rest = iter(long)
            if all(token in rest for token in part):
                return size
    return 0


ids = st.lists(st.integers(0, 3), max_size=7)


@given(ids, ids)
def test_masks_are_those_of_the_matching_and_bounded_by_the_longest_common_subsequence(chosen, rejected):
    first, second = mark_differences(chosen, rejected)
    in_rejected, in_chosen = matched(rejected, chosen)
    assert set(np.flatnonzero(~first)) == in_chosen
    assert set(np.flatnonzero(~second)) == in_rejected
    assert [t for t, m in zip(chosen, first, strict=True) if not m] == [
        t for t, m in zip(rejected, second, strict=True) if not m
    ]
    most = longest_common(chosen, rejected)
    assert (~first).sum() == (~second).sum() <= most
    assert bool((~first).sum()) == bool(most)


def test_frequent_tokens_of_long_answers_are_not_junk():
    chosen = [1, 2] * 200
    first, second = mark_differences(chosen, [*chosen, 3])
    assert not first.any()
    assert second.tolist() == [False] * 400 + [True]


@pytest.mark.parametrize("name", ["tiny", "stories", "gpt2"])
def test_stop_words_are_not_marked(name, request):
    tokenizer = request.getfixturevalue(name)
    stop = stop_word_ids(TokenizerView.of(tokenizer))
    assert {tokenizer.decode([i]).strip().lower() for i in stop} >= {"the", "is"}
    row = {"prompt": "Say it.", "chosen": " The grass is green", "rejected": " What two say"}
    marked, _ = load_examples([row], tokenizer, needs=("marked",))
    every, _ = load_examples([row], tokenizer, needs=("marked",), mark_stop_words=True)
    for k, answer in enumerate(marked[0].completions):
        with_stop, without = every[0].columns["marked"][k], marked[0].columns["marked"][k]
        assert without.dtype == bool
        assert not with_stop[-1]  # the terminator is in both
        np.testing.assert_array_equal(without, with_stop & ~np.isin(answer, list(stop)))
    assert not marked[0].columns["marked"][0].all()
    assert marked[0].columns["marked"][0].sum() < every[0].columns["marked"][0].sum()
