"""Rows in which requests share tokens: each scored token is predicted from exactly its own context."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.evaluation.shared_rows import Request, build_rows, make_families, plan_rows, row_lengths

TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=12).map(tuple)
REQUESTS = st.lists(st.builds(Request, TOKENS, TOKENS), min_size=1, max_size=20)


def seen(rows, row: int, place: int) -> list[tuple[int, int]]:
    """Position and token of everything that a token sees, itself included."""
    index = np.arange(rows.tokens.shape[1])
    own = (rows.own_start[row, place] <= index) & (index <= place)
    prefix = (rows.prefix_start[row, place] <= index) & (index < rows.prefix_end[row, place])
    where = np.flatnonzero(own | prefix)
    return sorted((int(rows.positions[row, i]), int(rows.tokens[row, i])) for i in where)


def written(requests):
    families = make_families(requests)
    for group in plan_rows(families, row_lengths(families)):
        yield build_rows(group.rows, requests, len(group.rows) + 1, group.length, group.scored)


@given(REQUESTS)
@settings(deadline=None, max_examples=60)
def test_every_scored_token_sees_what_stands_before_it(requests):
    """The reader of the layout here knows nothing of families: only of the ranges that attention reads."""
    answered = []
    for rows, places in written(requests):
        for request, row, start, count in places:
            context, continuation = requests[request]
            answered.append(request)
            assert count == len(continuation)
            whole = context + continuation
            for k in range(count):
                assert rows.score_target[row, start + k] == continuation[k]
                before = whole[: len(context) + k]
                assert seen(rows, row, rows.score_source[row, start + k]) == list(enumerate(before))
    assert sorted(answered) == list(range(len(requests)))


@given(REQUESTS)
@settings(deadline=None, max_examples=60)
def test_sharing_never_costs_tokens(requests):
    families = make_families(requests)
    contexts = {request.context for request in requests}
    tails = {(request.context, request.continuation[:-1]) for request in requests}
    assert sum(family.tokens for family in families) <= sum(map(len, contexts)) + sum(len(tail) for _, tail in tails)


def test_questions_behind_the_same_examples_share_them():
    """Five questions with four one-token choices each, behind 100 tokens of examples."""
    examples = tuple(range(10, 110))
    questions = [(*examples, 1, 2, 3, 4, 200 + q) for q in range(5)]
    requests = [Request(question, (choice,)) for question in questions for choice in range(300, 304)]
    (family,) = make_families(requests)
    assert family.prompt == (*examples, 1, 2, 3, 4)
    assert family.tokens == 104 + 5
    assert family.scored == 20


def test_choices_of_a_question_share_it():
    requests = [Request((1, 2, 3, 4), continuation) for continuation in ((5, 6, 7), (5, 6, 8), (9,), (9, 9))]
    (family,) = make_families(requests)
    # (5, 6) is computed once, the last token of each choice never, and (9,) hangs at the question's last state.
    assert family.branches == ((5, 6), (9,))
    assert family.tokens == 4 + 2 + 1


@pytest.mark.parametrize("lengths", [(64, 128, 256), (256,), (128, 256)])
def test_rows_take_all_families_and_are_not_overfull(lengths):
    generator = np.random.default_rng(0)
    requests = [
        Request(tuple(generator.integers(0, 50, generator.integers(1, 90)).tolist()), (1, 2, 3)) for _ in range(100)
    ]
    families = make_families(requests)
    groups = plan_rows(families, lengths)
    assert {group.length for group in groups} <= set(lengths)
    placed = [family for group in groups for row in group.rows for family in row]
    assert sorted(placed) == sorted(families)
    for group in groups:
        assert all(sum(family.tokens for family in row) <= group.length for row in group.rows)
        assert all(sum(family.scored for family in row) <= group.scored for row in group.rows)
