"""Packing: the arrays say what the row layout's docstring says."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.pipeline import OrderedBatches, Packer
from jaxalign.data.records import Example, ExampleSet
from jaxalign.data.row_plans import RowProgram, RowShape
from jaxalign.data.rows import build_rows


def example(prompt, *completions, unscored=(), **columns):
    arrays = [tuple(np.array(c, np.int32) for c in group) for group in (completions, unscored)]
    return Example(np.array(prompt, np.int32), arrays[0], columns, "", arrays[1])


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


def test_empty_and_unscored_completions_by_hand():
    a = example(
        [5, 6],
        [7, 8],
        [],
        [9],
        unscored=([3, 4], []),
        scores=np.array([2.0, 0.0, 1.0]),
        step_labels=(np.array([-1, 1]), np.array([], np.int32), np.array([0])),
        marked=(np.array([True, False]), np.array([], bool), np.array([True])),
    )
    names = ("scores", "step_labels", "marked", "ends", "score_index")
    rows = build_rows([[(10, a)], []], RowShape(9, 4, 2, 3), names)
    assert rows.tokens[0].tolist() == [5, 6, 7, 8, 9, 3, 4, 0, 0]
    assert rows.positions[0].tolist() == [0, 1, 2, 3, 2, 2, 3, 0, 0]
    assert rows.own_start[0].tolist() == [0, 0, 2, 2, 4, 5, 5, 7, 8]
    assert rows.prefix_end[0].tolist() == [0, 0, 2, 2, 2, 2, 2, 0, 0]
    assert rows.score_source[0].tolist() == [1, 2, 1, 0]
    assert rows.score_target[0].tolist() == [7, 8, 9, 0]
    assert rows.score_slot[0].tolist() == [0, 0, 2, 6]
    assert rows.columns["scores"].tolist() == [[[2.0, 0.0, 1.0], [0.0] * 3], [[0.0] * 3] * 2]
    assert rows.columns["step_labels"].tolist() == [[-1, 1, 0, -1], [-1] * 4]
    assert rows.columns["step_labels"].dtype == np.int32
    assert rows.columns["marked"].tolist() == [[True, False, True, False], [False] * 4]
    assert rows.columns["ends"].tolist() == [[[3, 0, 4, 6, 0], [0] * 5], [[0] * 5] * 2]
    assert rows.columns["score_index"].tolist() == [[2, 3, 4, 0], [0] * 4]


segment = st.lists(st.integers(1, 99), max_size=6)
ragged = st.lists(
    st.tuples(segment.filter(len), st.tuples(segment, segment, segment), st.tuples(segment, segment)),
    min_size=1,
    max_size=12,
)


@given(ragged, st.integers(1, 4))
def test_packing_gives_back_every_completion(drawn, most):
    """Unpacks rows by their arrays alone, and finds the examples that were put in, whatever is empty or unscored."""
    labels = iter(range(10**6))
    examples = ExampleSet.from_examples(
        example(
            p,
            *cs,
            unscored=us,
            label=(tuple(np.array([next(labels) for _ in c], np.int32) for c in cs)),
            number=i,
        )
        for i, (p, cs, us) in enumerate([([1], ([1], [], []), ([], [])), *drawn])
    )
    shape = RowShape(64, 40, most, 3)
    packer = Packer([RowProgram(1, shape)], 1, column_names=("label", "number", "ends", "score_index"))
    rows = packer(OrderedBatches(examples, batch_size=len(examples))(0)).rows
    found = {}
    for r, e in np.argwhere(rows.example_mask):
        put = examples[int(rows.columns["example_id"][r, e])]
        segments = []
        for end in rows.columns["ends"][r, e]:
            start = rows.own_start[r, end]
            segments.append(rows.tokens[r, start : end + 1].tolist() if rows.prefix_end[r, end] else [])
            if segments[-1]:
                first, last = rows.prefix_start[r, end], rows.prefix_end[r, end]
                assert rows.tokens[r, first:last].tolist() == put.prompt.tolist()
                np.testing.assert_array_equal(
                    rows.positions[r, start : end + 1], len(put.prompt) + np.arange(end + 1 - start)
                )
        assert segments == [c.tolist() for c in (*put.completions, *put.unscored)]
        for k, completion in enumerate(put.completions):
            slots = rows.score_slot[r] == e * 3 + k
            np.testing.assert_array_equal(rows.score_target[r][slots], completion)
            np.testing.assert_array_equal(rows.tokens[r][rows.columns["score_index"][r][slots]], completion)
            np.testing.assert_array_equal(rows.columns["label"][r][slots], put.columns["label"][k])
            before = [*put.prompt[-1:], *completion[:-1]] if len(completion) else []
            np.testing.assert_array_equal(rows.tokens[r][rows.score_source[r][slots]], before)
        found[int(rows.columns["number"][r, e])] = put
    assert sorted(found) == list(range(len(examples)))
    assert (rows.score_slot < most * 3).sum() == examples.scored_tokens.sum()
    assert (rows.columns["label"][rows.score_slot == most * 3] == -1).all()
