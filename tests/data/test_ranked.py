"""Rows with several answers: each form becomes the same ranking, and rankings become what a layout wants."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.contract import NoExample, RowProblem
from jaxalign.data.examples import load_examples
from jaxalign.data.formats import normalise
from jaxalign.data.ranked import EMPTY, IDENTICAL, UNSCORED, best_and_worst
from jaxalign.data.records import Where
from jaxalign.errors import ConfigError, DataError

HERE = Where("rows", 1)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def node(text, role="assistant", rank=None, replies=()):
    return {"text": text, "role": role, **({} if rank is None else {"rank": rank}), "replies": list(replies)}


TEXTS = ("Q? ", ("good", "fair", "bad"), (3.0, 2.0, 1.0))
CHAT = ([user("Q?")], ([assistant("good")], [assistant("fair")], [assistant("bad")]), (3.0, 2.0, 1.0))
ANNOTATED = {
    "a": {"Rating": "5", "Rationale": ""},
    "b": {"Rating": "N/A"},
    "c": [{"Rating": "1", "Type": ["1"]}],
}

RANKINGS = {
    "scores": ({"prompt": "Q? ", "completions": ["fair", "good", "bad"], "scores": [2, 3, 1]}, TEXTS),
    "rewards": ({"prompt": "Q? ", "responses": ["fair", "good", "bad"], "rewards": [2.0, 3.0, 1.0]}, TEXTS),
    "ranks": (
        {"prompt": "Q? ", "responses": ["fair", "good", "bad"], "ranks": [1, 0, 2]},
        (*TEXTS[:2], (0.0, -1.0, -2.0)),
    ),
    "chat": (
        {
            "prompt": [user("Q?")],
            "completions": [[assistant("fair")], [user("Q?"), assistant("good")], [assistant("bad")]],
            "scores": [2, 3, 1],
        },
        CHAT,
    ),
    "chat prompt, text answers": (
        {"prompt": [user("Q?")], "completions": ["fair", "good", "bad"], "scores": [2, 3, 1]},
        CHAT,
    ),
    "UltraFeedback": (
        {
            "source": "x",
            "instruction": "Q?",
            "models": ["m"],
            "completions": [
                {"model": "m", "response": "bad", "overall_score": 1.0, "fine-grained_score": 9.0},
                {"model": "m", "response": "good", "annotations": ANNOTATED},
                {"model": "m", "response": "fair", "overall_score": "2"},
            ],
        },
        CHAT,
    ),
    "Argilla": (
        {"instruction": "Q?", "generations": ["bad", "fair", "good"], "ratings": [1, 2, 3], "input": None},
        CHAT,
    ),
    "objects with ranks": (
        {"prompt": "Q? ", "answers": [{"answer": "bad", "rank": 3}, {"answer": "good", "rank": 1.0}]},
        ("Q? ", ("good", "bad"), (-1.0, -3.0)),
    ),
    "solutions": (
        {
            "question": "Q?",
            "ground_truth": "g",
            "6b": {"is_correct": False, "solution": "bad"},
            "175b": {"is_correct": True, "solution": "good"},
        },
        ("Q?\n", ("good", "bad"), (1.0, 0.0)),
    ),
}


@pytest.mark.parametrize("name", RANKINGS)
def test_rankings(name):
    row, (prompt, completions, scores) = RANKINGS[name]
    (record,) = normalise(row, HERE)
    assert record.ranked
    assert (record.prompt, record.completions) == (prompt, completions)
    assert record.columns["scores"] == scores


def test_answers_that_say_nothing_are_left_out():
    row = {"prompt": "Q?", "completions": ["a", " ", "a", "b", "c"], "scores": [1, 9, 2, 0, None]}
    (record,) = normalise(row, HERE)
    assert record.completions == ("a", "b")
    assert record.columns["scores"] == (2.0, 0.0)
    assert sorted(record.notes) == sorted([EMPTY, IDENTICAL, UNSCORED])


def test_trees_hold_an_example_for_each_ranked_message():
    """Two of the first question's three answers are ranked; one of them is answered, and that has ranked answers."""
    follow = node("And?", "prompter", 0, [node("x", rank=1), node("y", rank=0), node("z", rank=2)])
    other = node("Or?", "prompter", 1)
    tree = node("Q?", "prompter", None, [node("bad", rank=1, replies=[follow, other]), node("good", rank=0), node("?")])
    first, second = normalise({"message_tree_id": "t", "prompt": tree}, HERE)
    assert first.prompt == [user("Q?")]
    assert first.completions == ([assistant("good")], [assistant("bad")])
    assert first.columns["scores"] == (0.0, -1.0)
    assert second.prompt == [user("Q?"), assistant("bad"), user("And?")]
    assert [c[0]["content"] for c in second.completions] == ["y", "x", "z"]
    assert second.columns["scores"] == (0.0, -1.0, -2.0)
    with pytest.raises(NoExample, match="without ranked answers"):
        normalise({"prompt": node("Q?", "prompter", None, [node("only", rank=0)])}, HERE)


BAD = {
    "another length": ({"completions": ["a", "b"], "scores": [1]}, "score invalid", "'scores' is 1 values"),
    "not a number": ({"completions": ["a", "b"], "scores": [1, "x"]}, "score invalid", "'scores' is 'x' (expected a"),
    "not finite": ({"completions": ["a", "b"], "scores": [1, float("nan")]}, "score invalid", "'scores' is nan"),
    "no score": ({"completions": [{"response": "a"}]}, "missing column", "an answer without a score (expected"),
    "no text": ({"completions": [{"score": 1}]}, "missing column", "an answer with the keys 'score'"),
    "no scores": ({"completions": ["a", "b"]}, "missing column", "nothing says how good they are (expected one of sco"),
    "null scores": ({"responses": ["a", "b"], "scores": None}, "null", "'scores' is null (expected one number for"),
    "no judgement": ({"a": "x", "b": "y", "preference": None}, "missing column", "no 'preference' or annotators'"),
    "nothing at all": ({"completions": []}, "empty answer", "'completions' is an empty list"),
    "empty list": ({"completions": [], "scores": []}, "empty answer", "'completions' is an empty list"),
    "nothing said": ({"completions": ["", " "], "scores": [1, 2]}, "empty answer", "no answer holds text"),
    "not a string": ({"completions": ["a", 5], "scores": [1, 2]}, "wrong type", "'completions' is a number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rankings(name):
    row, reason, detail = BAD[name]
    with pytest.raises(RowProblem) as error:
        normalise({"prompt": "Q?", **row}, HERE)
    assert error.value.reason == reason
    assert detail in error.value.detail


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(2, 9))
def test_the_middle_of_a_ranking_is_left_out(scores, most):
    kept = best_and_worst(scores, most)
    assert len(kept) == len(set(kept)) == min(most, len(scores))
    order = sorted(scores, reverse=True)
    chosen = sorted((scores[i] for i in kept), reverse=True)
    half = (len(kept) + 1) // 2
    assert chosen[:half] == order[:half]
    assert chosen[half:] == order[len(order) - len(kept) + half :]


def ranking(*scores, **more):
    return {"prompt": "Q? ", "completions": [f"answer {i}" for i in range(len(scores))], "scores": scores, **more}


def texts(tokenizer, example):
    return [tokenizer.decode(ids).removesuffix("</s>") for ids in example.completions]


def test_ranked_examples_are_filled_up_with_empty_answers(tiny):
    rows = [ranking(1, 5, 3), ranking(2, 4), {"prompt": "P ", "chosen": "yes", "rejected": "no"}]
    rows += [{"prompt": "P ", "chosen": "sure", "rejected": "never", "score_chosen": 8.5, "score_rejected": 4}]
    examples, report = load_examples(rows, tiny, layout="ranked")
    assert (examples.completions, len(examples)) == (3, 4)
    assert [texts(tiny, e) for e in examples] == [
        ["answer 1", "answer 2", "answer 0"],
        ["answer 1", "answer 0", ""],
        ["yes", "no", ""],
        ["sure", "never", ""],
    ]
    assert (examples.completion_lengths == 0).tolist() == [[False] * 3, *[[False, False, True]] * 3]
    assert examples.columns["scores"].tolist() == [[5.0, 3.0, 1.0], [4.0, 2.0, 0.0], [1.0, 0.0, 0.0], [8.5, 4.0, 0.0]]
    assert examples.columns["scores"].dtype == np.float32
    assert report.notes == {"pair as a ranking, scores 1 and 0": 1}
    assert report.lengths["completion mean"] == round(float(examples.scored_tokens.sum() / 9), 2)


def test_a_ranking_is_cut_to_its_extremes(tiny):
    examples, report = load_examples([ranking(1, 5, 3, 2), ranking(2, 4)], tiny, layout="ranked", max_completions=3)
    assert [texts(tiny, e) for e in examples] == [["answer 1", "answer 2", "answer 0"], ["answer 1", "answer 0", ""]]
    assert report.notes == {"completion of a ranking beyond data.max_completions, left out": 1}
    with pytest.raises(ConfigError, match=r"data.max_completions: got 1, expected at least 2"):
        load_examples([ranking(1, 2)], tiny, layout="ranked", max_completions=1)


def test_answers_that_are_cut_to_the_same_tokens_are_one(tiny):
    row = {"prompt": "Q? ", "completions": ["green", "green grass", "blue"], "scores": [1, 2, 3]}
    whole, _ = load_examples([row], tiny, layout="ranked")
    short, report = load_examples([row], tiny, layout="ranked", max_completion_length=1)
    assert (whole.completions, short.completions) == (3, 2)
    assert short.columns["scores"].tolist() == [[3.0, 2.0]]
    assert report.notes[IDENTICAL] == 1
    with pytest.raises(DataError, match="all answers are the same"):
        load_examples([{**row, "completions": ["green", "green grass", "green green"]}] * 2, tiny, layout="ranked",
                      max_completion_length=1)  # fmt: skip


def test_pairs_out_of_a_ranking(tiny):
    """Five answers with scores 3 2 2 1 1: eight pairs differ, two are ties."""
    row = ranking(1, 2, 3, 2, 1)
    examples, report = load_examples([row], tiny, needs=("scores",))
    assert [texts(tiny, e) for e in examples] == [["answer 2", "answer 4"]]
    assert examples.columns["scores"].tolist() == [[3.0, 1.0]]
    assert report.notes == {"pair out of a ranking": 1}
    examples, report = load_examples([row], tiny, needs=("scores",), pairs_per_prompt="all")
    given = dict(zip(row["completions"], row["scores"], strict=True))
    expected = {(a, b) for a, b in itertools.permutations(given, 2) if given[a] > given[b]}
    assert {tuple(texts(tiny, e)) for e in examples} == expected
    assert len(examples) == len(expected) == 8
    for example in examples:
        assert example.columns["scores"].tolist() == [given[text] for text in texts(tiny, example)]
    assert report.notes == {
        "pair out of a ranking": 8,
        "two answers of a ranking with equal scores, no pair": 2,
    }
    assert len(set(examples.sources)) == 8


def test_a_ranking_of_equals_holds_no_pair(tiny):
    examples, report = load_examples([ranking(1, 1), ranking(1, 2)], tiny)
    assert len(examples) == 1
    assert report.notes["ranking in which all scores are equal, no pair"] == 1
    _, report = load_examples([ranking(1, 1), ranking(1, 2)], tiny, layout="ranked")
    assert report.notes == {"ranking in which all scores are equal": 1}


def test_supervised_examples_are_the_best_answers(tiny):
    rows = [ranking(1, 5, 3), RANKINGS["solutions"][0]]
    wrong = {"question": "W?", "6b": {"is_correct": False, "solution": "bad"}}
    examples, report = load_examples([*rows, wrong], tiny, layout="single")
    assert [texts(tiny, e) for e in examples] == [["answer 1"], ["good"]]
    assert report.notes == {"undesirable answer, not used for supervised training": 1}


def test_solutions_are_labelled_and_scores_are_not_labels(tiny):
    examples, _ = load_examples([RANKINGS["solutions"][0]], tiny, layout="unpaired")
    assert [texts(tiny, e) for e in examples] == [["good"], ["bad"]]
    assert examples.columns["desirable"].tolist() == [True, False]
    with pytest.raises(DataError, match="scores say which answer is better, not which is desirable"):
        load_examples([ranking(1, 2)], tiny, layout="unpaired")


def test_one_answer_is_no_ranking(tiny):
    for layout in ("ranked", "paired"):
        with pytest.raises(DataError, match=r"there is one answer with a score \(expected at least two"):
            load_examples([ranking(1)], tiny, layout=layout)
    with pytest.raises(DataError, match="no answers with scores in a row of the shape prompt, completion"):
        load_examples([{"prompt": "a", "completion": "b"}], tiny, layout="ranked")
