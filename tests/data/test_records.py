from __future__ import annotations

import numpy as np
import pytest

from jaxalign.data.records import Example, ExampleSet


def example(prompt, *completions, unscored=(), **columns) -> Example:
    ids, others = (tuple(np.array(c, np.int32) for c in group) for group in (completions, unscored))
    return Example(np.array(prompt, np.int32), ids, columns, f"row {prompt[0]}", others)


def pairs() -> list[Example]:
    return [
        example([1, 5, 6], [7, 2], [8, 9, 2], scores=np.array([1.0, 2.0])),
        example([1], [3, 2], [4, 2], scores=np.array([0.5, 0.25])),
        example([1, 9], [3], [4, 4, 4, 2], scores=np.array([0.0, 3.0])),
    ]


def test_store_gives_back_what_was_put_in():
    examples = pairs()
    store = ExampleSet.from_examples(examples)
    assert len(store) == 3
    for got, put in zip(store, examples, strict=True):
        np.testing.assert_array_equal(got.prompt, put.prompt)
        assert [c.tolist() for c in got.completions] == [c.tolist() for c in put.completions]
        np.testing.assert_array_equal(got.columns["scores"], put.columns["scores"])
        assert got.source == put.source
    assert store.lengths.tolist() == [[3, 2, 3], [1, 2, 2], [2, 1, 4]]
    assert store.prompt_lengths.tolist() == [3, 1, 2]
    assert store.completion_lengths.tolist() == [[2, 3], [2, 2], [1, 4]]
    assert store.lengths is store.lengths  # looked up in every step, computed once
    assert store[-1].prompt.tolist() == [1, 9]
    with pytest.raises(IndexError, match="example 3 of 3"):
        store[3]


def test_selection_keeps_order_columns_and_sources():
    store = ExampleSet.from_examples(pairs())
    chosen = store.select([2, 0])
    assert [e.prompt.tolist() for e in chosen] == [[1, 9], [1, 5, 6]]
    assert chosen.columns["scores"].tolist() == [[0.0, 3.0], [1.0, 2.0]]
    assert chosen.sources == (store.sources[2], store.sources[0])
    assert [e.prompt.tolist() for e in store[1:]] == [[1], [1, 9]]
    assert chosen.content_hash == ExampleSet.from_examples([pairs()[2], pairs()[0]]).content_hash


@pytest.mark.parametrize("change", ["token", "boundary", "column", "order"])
def test_content_hash_sees_every_change(change):
    examples = pairs()
    before = ExampleSet.from_examples(examples).content_hash
    assert before == ExampleSet.from_examples(pairs()).content_hash
    first = examples[0]
    changed = {
        "token": example([1, 5, 7], [7, 2], [8, 9, 2], scores=first.columns["scores"]),
        "boundary": example([1, 5], [6, 7, 2], [8, 9, 2], scores=first.columns["scores"]),
        "column": example([1, 5, 6], [7, 2], [8, 9, 2], scores=np.array([1.0, 2.5])),
    }
    examples = examples[::-1] if change == "order" else [changed[change], *examples[1:]]
    assert ExampleSet.from_examples(examples).content_hash != before


def test_content_hash_does_not_see_sources():
    examples = pairs()
    moved = [Example(e.prompt, e.completions, e.columns, "elsewhere") for e in examples]
    assert ExampleSet.from_examples(moved).content_hash == ExampleSet.from_examples(examples).content_hash


def test_unequal_examples_are_refused():
    with pytest.raises(ValueError, match="other completions or columns"):
        ExampleSet.from_examples([example([1], [2]), example([1], [2], [3])])
    with pytest.raises(ValueError, match="at least one"):
        ExampleSet.from_examples([])


def labelled() -> list[Example]:
    return [
        example([1, 5], [7, 2], [], unscored=([8],), weight=(np.array([0.5, 2.0]), np.array([])), score=1.0),
        example([1], [3, 2], [4, 2], unscored=([],), weight=(np.array([1.0, 1.0]), np.array([0.0, 3.0])), score=2.0),
    ]


def test_values_of_tokens_and_unscored_completions_are_stored():
    store = ExampleSet.from_examples(labelled())
    assert (store.completions, store.unscored) == (2, 1)
    assert store.lengths.tolist() == [[2, 2, 0, 1], [1, 2, 2, 0]]
    assert store.completion_lengths.tolist() == [[2, 0], [2, 2]]
    assert store.scored_tokens.tolist() == [2, 4]
    assert store.row_tokens.tolist() == [5, 5]
    assert store.token_columns["weight"].dtype == np.float32
    for got, put in zip(store, labelled(), strict=True):
        assert [c.tolist() for c in got.completions] == [c.tolist() for c in put.completions]
        assert [c.tolist() for c in got.unscored] == [c.tolist() for c in put.unscored]
        assert [w.tolist() for w in got.columns["weight"]] == [w.tolist() for w in put.columns["weight"]]
        assert got.columns["score"] == put.columns["score"]
    swapped = store.select([1, 0])
    assert [w.tolist() for w in swapped[1].columns["weight"]] == [[0.5, 2.0], []]
    assert swapped.content_hash == ExampleSet.from_examples(labelled()[::-1]).content_hash


@pytest.mark.parametrize("change", ["value", "unscored"])
def test_content_hash_sees_values_of_tokens_and_unscored_completions(change):
    changed = {
        "value": example([1, 5], [7, 2], [], unscored=([8],), weight=(np.array([0.5, 1.0]), np.array([])), score=1.0),
        "unscored": example(
            [1, 5], [7, 2], [8], unscored=([],), weight=(np.array([0.5, 2.0]), np.array([0.0])), score=1.0
        ),
    }[change]
    before = ExampleSet.from_examples(labelled()).content_hash
    assert ExampleSet.from_examples([changed, labelled()[1]]).content_hash != before


def test_values_of_tokens_must_be_as_many_as_tokens():
    with pytest.raises(ValueError, match="row 1: weight has 1 values for 2 tokens"):
        ExampleSet.from_examples([example([1], [2, 3], weight=(np.array([1.0]),))])


def test_all_tokens_can_be_scored():
    store = ExampleSet.from_examples([example([1, 5], [7, 2]), example([1], [3])]).scoring_all_tokens()
    assert [(e.prompt.tolist(), e.completions[0].tolist()) for e in store] == [([1], [5, 7, 2]), ([1], [3])]
    assert store.completion_lengths.tolist() == [[3], [1]]
    with pytest.raises(ValueError, match="one completion"):
        ExampleSet.from_examples(pairs()).scoring_all_tokens()
