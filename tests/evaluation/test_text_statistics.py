"""Length and repetition of answers: against definitions written out, and cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.evaluation.degeneration import degeneration, is_repetitive
from jaxalign.evaluation.text_statistics import Answer, distinct, longest_loop, repetition, text_metrics


def answer(tokens, text="some words", ended=True) -> Answer:
    return Answer(tokens=list(tokens), text=text, ended=ended)


@pytest.mark.parametrize(
    ("tokens", "n", "share"),
    [
        ("abcdefgh", 4, 0),
        ("aaaaaaaa", 4, 4 / 5),
        ("abababab", 4, 3 / 5),
        ("abc", 4, 0),
        ("", 4, 0),
        ("aab", 1, 1 / 3),
    ],
)
def test_repetition_by_hand(tokens, n, share):
    assert repetition(tokens, n) == pytest.approx(share)


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        ("", 0),
        ("abcdef", 0),
        ("aa", 2),
        ("xaaay", 3),
        ("ababa", 5),
        ("abcabd", 0),
        ("xyabcabcabz", 8),
        ("aabbbbcdcdcd", 6),
    ],
)
def test_loops_by_hand(tokens, length):
    assert longest_loop(tokens) == length


def test_loops_equal_a_search_over_all_stretches():
    """A stretch loops with a period when it is at least two periods long and equals itself shifted by one period."""
    generator = np.random.default_rng(0)
    for _ in range(60):
        tokens = generator.integers(0, 3, generator.integers(0, 16)).tolist()
        longest = 0
        for start in range(len(tokens)):
            for stop in range(start + 2, len(tokens) + 1):
                part = tokens[start:stop]
                if any(part[p:] == part[:-p] for p in range(1, len(part) // 2 + 1)):
                    longest = max(longest, len(part))
        assert longest_loop(tokens) == longest
    assert longest_loop("ababab", longest_period=1) == 0


def test_distinct_counts_over_all_texts():
    texts = [["a", "b", "a"], ["a", "b"], []]
    assert distinct(texts, 1) == 2 / 5
    assert distinct(texts, 2) == 2 / 3  # a b, b a, a b
    assert distinct([["a"]], 2) == 0


def test_metrics_are_means_over_answers():
    found = text_metrics([answer("abcd", "one two three"), answer("aaaaaaaa", " \n", ended=False)])
    assert {name: metric.value for name, metric in found.items()} == {
        "length": 6.0,
        "words": 1.5,
        "ended": 0.5,
        "empty": 0.5,
        "repetition": pytest.approx(0.4),
        "loop": 0.5,
        "distinct_1": 1.0,
        "distinct_2": 1.0,
    }
    assert found["length"].values == [4.0, 8.0]
    assert found["repetition"].values == [0.0, pytest.approx(0.8)]
    assert {metric.n for metric in found.values()} == {2}


FINE, LOOP = answer(range(40)), answer([7, 8] * 20)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([FINE] * 10, None),
        ([FINE] * 5 + [LOOP] * 5, None),
        ([FINE] * 4 + [LOOP] * 6, "of 10 answers 60 % repeat themselves"),
        ([FINE] * 4 + [LOOP] * 3 + [answer([], "")] * 3, "of 10 answers 30 % empty and 30 % repeat themselves"),
        ([answer([1], " ")] * 3, "of 3 answers 100 % empty"),
        ([FINE] * 1 + [answer(range(40), ended=False)] * 19, None),
        ([answer(range(40), ended=False)] * 20, "of 20 answers 100 % without an end within 40 tokens"),
        (
            [answer([3] * 50, ended=False)] * 2,
            "of 2 answers 100 % repeat themselves; 100 % without an end within 50 tokens",
        ),
    ],
)
def test_what_counts_as_degenerate(answers, reason):
    assert degeneration(answers) == reason


def test_thresholds():
    unended = [answer(range(40), ended=False)] * 20
    assert degeneration(unended, most_unended=1.0) is None
    assert degeneration([FINE] * 9 + [LOOP], most_broken=0.05) == "of 10 answers 10 % repeat themselves"
    short = [5] * 15
    assert not is_repetitive(short)  # 5 5 5 may be the answer
    assert is_repetitive(short, fewest_tokens=15)
    assert not is_repetitive([1, 2, 3, 4] * 4, most_repetition=0.9)
