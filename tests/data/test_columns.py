"""What methods want beside texts: every spelling is read, values are checked, and what is lacking is named."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.data.columns import LAYOUT_COLUMNS
from jaxalign.data.examples import load_examples
from jaxalign.errors import ConfigError, DataError
from jaxalign.method import INPUTS, Layout


def pair(**more):
    return {"prompt": "Q? ", "chosen": "good", "rejected": "bad", **more}


SPELLED = {
    "score_": ("scores", {"score_chosen": 8.5, "score_rejected": 3}, [8.5, 3.0]),
    "_score": ("scores", {"chosen_score": "8.5", "rejected_score": 3}, [8.5, 3.0]),
    "_rating": ("scores", {"chosen_rating": 4, "rejected_rating": 5}, [4.0, 5.0]),
    "-rating": ("scores", {"chosen-rating": 4, "rejected-rating": 5}, [4.0, 5.0]),
    "metadata": ("scores", {"metadata": {"score_chosen": 8.5, "score_rejected": 3.0}}, [8.5, 3.0]),
    "margin": ("scores", {"margin": 2.5}, [2.5, 0.0]),
    "wins": ("win_probabilities", {"chosen_win_probability": 0.9, "rejected_win_probability": 0.2}, [0.9, 0.2]),
    "wins as a list": ("win_probabilities", {"win_probabilities": [0.9, 0.2]}, [0.9, 0.2]),
    "wins of a preference": ("win_probabilities", {"preference": 0.75}, [0.75, 0.25]),
    "preference": ("preference", {"preference": 0.6}, 0.6),
    "absolute": ("absolute", {"absolute": True}, True),
    "relative": ("absolute", {"absolute": 0}, False),
}


@pytest.mark.parametrize("name", SPELLED)
def test_spellings(name, tiny):
    column, given, value = SPELLED[name]
    examples, _ = load_examples([pair(**given)], tiny, needs=(column,))
    assert set(examples.columns) == {column}
    found = examples.columns[column]
    np.testing.assert_allclose(found[0], value, rtol=1e-7)
    assert found.dtype == (bool if column == "absolute" else np.float32)


def test_columns_that_nobody_asked_for_are_neither_carried_nor_checked(tiny):
    rows = [pair(score_chosen="nonsense", score_rejected=1, preference="x", absolute="y", margin=1)]
    examples, _ = load_examples(rows, tiny)
    assert not examples.columns
    assert not examples.token_columns


LACKING = {
    "scores": "score_chosen and score_rejected (or chosen_score, chosen_rating; also inside metadata), or margin",
    "win_probabilities": "win_probabilities, or chosen_win_probability and rejected_win_probability, or preference",
    "preference": "preference, from 0 to 1",
    "absolute": "absolute, true/false",
    "token_weights": "chosen_token_weights and rejected_token_weights",
}


@pytest.mark.parametrize("name", LACKING)
def test_a_lacking_column_is_named_with_its_spellings_and_rows(name, tiny):
    given = {"scores": {"margin": 1}}.get(name, {})
    with pytest.raises(DataError) as error:
        load_examples([pair(**given) if name == "scores" else pair(margin=1), pair(), pair()], tiny, needs=(name,))
    (problem,) = error.value.problems
    assert f"the method needs {name!r}" in problem
    assert LACKING[name] in problem
    assert ("rows row 2:" in problem) == (name == "scores")


WRONG = {
    "preference beyond 1": ("preference", {"preference": 1.5}, "'preference' is 1.5 (expected a number from 0 to 1)"),
    "score": ("scores", {"score_chosen": "high", "score_rejected": 1}, "'score_chosen' is 'high' (expected a number)"),
    "nan": ("scores", {"margin": float("nan")}, "'margin' is nan (expected a number)"),
    "win": (
        "win_probabilities",
        {"chosen_win_probability": -0.1, "rejected_win_probability": 0.5},
        "'chosen_win_probability' is -0.1 (expected a number from 0 to 1)",
    ),
    "absolute": ("absolute", {"absolute": "yes"}, "'absolute' is 'yes' (expected true/false)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values(name, tiny):
    column, given, message = WRONG[name]
    with pytest.raises(DataError) as error:
        load_examples([pair(**given)], tiny, needs=(column,))
    assert message in str(error.value)


def test_a_layout_has_its_columns_and_no_others(tiny):
    with pytest.raises(ConfigError, match=r"the layout paired has no column 'score' .*Did you mean 'scores'"):
        load_examples([pair()], tiny, needs=("score",))
    with pytest.raises(ConfigError, match="the layout single has no column 'preference'"):
        load_examples([pair()], tiny, layout="single", needs=("preference",))


def test_every_column_that_a_method_may_name_is_known():
    for name, known in INPUTS.items():
        for layout in known.layouts or (Layout.SINGLE, Layout.PAIRED, Layout.UNPAIRED, Layout.RANKED):
            if known.column and name != "density_ratios":  # made of the whole set
                assert name in LAYOUT_COLUMNS[layout.name.lower()]


def test_a_ranking_says_something_of_each_answer(tiny):
    row = {"prompt": "Q? ", "completions": ["two", "what", "sky"], "scores": [1, 3, 2]}
    whole, _ = load_examples([row], tiny, layout="ranked")
    sizes = dict(zip(("what", "sky", "two"), map(len, whole[0].completions), strict=True))
    weights = [[k + i / 8 for i in range(sizes[text])] for k, text in enumerate(row["completions"])]
    needs = ("win_probabilities", "token_weights")
    row |= {"win_probabilities": [0.1, 0.9, 0.5], "token_weights": weights}
    examples, _ = load_examples([row, {**row, "completions": ["two", "what", ""]}], tiny, layout="ranked", needs=needs)
    np.testing.assert_allclose(examples.columns["win_probabilities"], [[0.9, 0.5, 0.1], [0.9, 0.1, 0.0]], rtol=1e-6)
    assert [w.tolist() for w in examples[0].columns["token_weights"]] == [weights[1], weights[2], weights[0]]
    assert [w.tolist() for w in examples[1].columns["token_weights"]] == [weights[1], weights[0], []]
    for wrong, message in (
        ({"win_probabilities": [0.1, 0.9]}, "'win_probabilities' is 2 values (expected one for each of completions)"),
        ({"win_probabilities": [0.1, 0.9, 7]}, "'win_probabilities' is 7 (expected a number from 0 to 1)"),
        ({"token_weights": [1.0, 1.0, 1.0]}, "'token_weights' is a number (expected a list of numbers"),
    ):
        with pytest.raises(DataError) as error:
            load_examples([{**row, **wrong}], tiny, layout="ranked", needs=needs)
        assert message in str(error.value)
        load_examples([{**row, **wrong}], tiny, layout="ranked")  # nobody asked


JUDGED = {
    "first, two scales": ({"a": "x", "b": "y", "preference": 1.25}, ("x", "y"), 0.75),
    "second": ({"a": "x", "b": "y", "preference": 2.0}, ("y", "x"), 1.0),
    "one is the first in both scales": ({"response_a": "x", "response_b": "y", "preference": 1}, ("x", "y"), 1.0),
    "probability": ({"response_a": "x", "response_b": "y", "preference": 0.125}, ("y", "x"), 0.875),
    "votes": (
        {"response1": "x", "response2": "y", "annotator1": 2, "annotator2": 1, "annotator3": 2},
        ("y", "x"),
        2 / 3,
    ),
    "votes with a tie among them": (
        {"response1": "x", "response2": "y", "annotator1": 1, "annotator2": 0, "annotator3": 1},
        ("x", "y"),
        2.5 / 3,
    ),
    "votes that are ties but for one": (
        {"response1": "x", "response2": "y", "annotator1": 0, "annotator2": 2, "annotator3": 0},
        ("y", "x"),
        2 / 3,
    ),
}


@pytest.mark.parametrize("name", JUDGED)
def test_judged_answers(name, tiny):
    row, answers, preference = JUDGED[name]
    examples, _ = load_examples([{"prompt": "Q? ", **row}], tiny, needs=("preference", "win_probabilities"))
    assert tuple(tiny.decode(c).removesuffix("</s>") for c in examples[0].completions) == answers
    np.testing.assert_allclose(examples.columns["preference"], [preference], rtol=1e-6)
    np.testing.assert_allclose(examples.columns["win_probabilities"], [[preference, 1 - preference]], rtol=1e-6)


def test_win_probabilities_of_judged_answers_go_where_their_answers_go(tiny):
    said = {"prompt": "Q? ", "a": "x", "b": "y", "win_probabilities": [0.25, 0.75]}
    rows = [said | {"preference": preference} for preference in (0.875, 0.125)]
    examples, _ = load_examples(rows, tiny, needs=("win_probabilities",))
    assert [tiny.decode(e.completions[0]).removesuffix("</s>") for e in examples] == ["x", "y"]
    np.testing.assert_array_equal(examples.columns["win_probabilities"], [[0.25, 0.75], [0.75, 0.25]])
    with pytest.raises(DataError, match="'win_probabilities' is a number"):
        load_examples([rows[0] | {"win_probabilities": 0.5}], tiny, needs=("win_probabilities",))


def test_the_likelier_answer_of_a_pair_is_the_chosen_one(tiny):
    row = {"prompt": "Q? ", "chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": 4}
    rows = [row | {"preference": preference} for preference in (0.125, 0.5, 0.75)]
    needs = ("preference", "scores", "win_probabilities")
    examples, report = load_examples(rows, tiny, needs=needs)
    assert [tiny.decode(e.completions[0]).removesuffix("</s>") for e in examples] == ["y", "x", "x"]
    assert examples.columns["preference"].tolist() == [0.875, 0.5, 0.75]
    assert examples.columns["scores"].tolist() == [[4, 1], [1, 4], [1, 4]]
    assert examples.columns["win_probabilities"].tolist() == [[0.875, 0.125], [0.5, 0.5], [0.75, 0.25]]
    assert report.notes["preference below 0.5, chosen and rejected swapped"] == 1
    examples, report = load_examples(rows, tiny, needs=("scores",))  # nobody asked for the preference
    assert {tiny.decode(e.completions[0]).removesuffix("</s>") for e in examples} == {"x"}


def test_ties_are_counted_and_kept_where_probabilities_are_wanted(tiny):
    rows = [{"prompt": "Q? ", "a": "x", "b": "y", "preference": p} for p in (1.5, 1.0)]
    examples, report = load_examples(rows, tiny)
    assert (len(examples), report.notes) == (1, {"tie, no preferred answer": 1})
    assert report.shapes == {"two answers and a preference": 2}
    examples, report = load_examples(rows, tiny, needs=("preference",))
    assert examples.columns["preference"].tolist() == [0.5, 1.0]
    votes = [
        {"prompt": "Q? ", "response1": "x", "response2": "y", "annotator1": first, "annotator2": second}
        for first, second in ((1, 2), (0, 0))
    ]
    with pytest.raises(DataError, match="no example is left of 2 rows: no row holds one for this layout"):
        load_examples(votes, tiny)
    examples, _ = load_examples(votes, tiny, needs=("preference",))
    assert examples.columns["preference"].tolist() == [0.5, 0.5]
    with pytest.raises(DataError, match=r"'annotator1' is 3 \(expected 1, 2, or 0 for a tie\)"):
        load_examples([{**votes[0], "annotator1": 3}], tiny)


def test_a_prompt_that_is_an_id_is_refused(tiny):
    with pytest.raises(DataError, match="'prompt' is a number"):
        load_examples([{"prompt": 0, "a": "x", "b": "y", "preference": 1.0}], tiny)


def test_weights_of_tokens_are_cut_with_their_tokens(tiny):
    plain, _ = load_examples([pair(chosen="The sky is blue")], tiny)
    sizes = [len(c) for c in plain[0].completions]
    weights = [[i + k / 8 for i in range(size)] for k, size in enumerate(sizes)]
    row = pair(chosen="The sky is blue", chosen_token_weights=weights[0], rejected_token_weights=weights[1])
    whole, _ = load_examples([row], tiny, needs=("token_weights",))
    assert [w.tolist() for w in whole[0].columns["token_weights"]] == weights
    short, _ = load_examples([row], tiny, needs=("token_weights",), max_completion_length=2)
    assert [w.tolist() for w in short[0].columns["token_weights"]] == [w[:2] for w in weights]
    row["chosen_token_weights"].append(1)
    with pytest.raises(DataError, match=f"{sizes[0] + 1} weights for an answer of {sizes[0]} tokens"):
        load_examples([row], tiny, needs=("token_weights",))
    single = {"prompt": "Q? ", "completion": "bad", "token_weights": weights[1]}
    one, _ = load_examples([single], tiny, layout="single", needs=("token_weights",))
    assert one[0].columns["token_weights"][0].tolist() == weights[1]


def steps(*texts, labels, **more):
    return {"prompt": "Q? ", "completions": list(texts), "labels": labels, **more}


@pytest.mark.parametrize("tokenization", ["separate", "joint"])
def test_steps_are_labelled_where_they_end(tiny, tokenization):
    row = steps("Two and two", "is four", "they say.", labels=[True, 1, False])
    options = {"layout": "single", "needs": ("step_labels",), "tokenization": tokenization}
    examples, _ = load_examples([row], tiny, **options)
    ids, (labels,) = examples[0].completions[0], examples[0].columns["step_labels"]
    assert tiny.decode(ids).lstrip() == "Two and two\nis four\nthey say.</s>"  # joint: the prompt's space is merged
    assert labels.dtype == np.int32
    ends = {tiny.decode(ids[: i + 1]).lstrip(): int(labels[i]) for i in np.flatnonzero(labels >= 0)}
    assert ends == {"Two and two": 1, "Two and two\nis four": 1, "Two and two\nis four\nthey say.": 0}
    assert labels[-1] == -1  # the terminator
    last, _ = load_examples([row], tiny, **options, last_step_only=True)
    assert last[0].columns["step_labels"][0].tolist() == np.where(np.arange(len(ids)) == len(ids) - 2, 0, -1).tolist()
    blank, _ = load_examples([row], tiny, **options, step_separator="\n\n")
    assert tiny.decode(blank[0].completions[0]).lstrip() == "Two and two\n\nis four\n\nthey say.</s>"
    assert (blank[0].columns["step_labels"][0] >= 0).sum() == 3


def test_steps_of_a_conversation_lie_inside_the_template(tiny):
    row = {**steps("Two.", " Four.  ", labels=[1, 0]), "prompt": [{"role": "user", "content": "Q?"}]}
    examples, _ = load_examples([row], tiny, layout="single", needs=("step_labels",), chat_template="chatml")
    ids, (labels,) = examples[0].completions[0], examples[0].columns["step_labels"]
    ends = {tiny.decode(ids[: i + 1]): int(labels[i]) for i in np.flatnonzero(labels >= 0)}
    assert ends == {"Two.": 1, "Two.\n Four.": 0}
    assert tiny.decode(ids).endswith("<|im_end|>")


def test_a_merged_step_end_is_labelled_at_the_token_that_holds_it(gpt2):
    """``!\\n\\n`` may be one token: it holds the end of the step."""
    row = steps("Yes!", "No", labels=[1, 0])
    for separator in ("\n", "\n\n", "!!"):
        examples, _ = load_examples(
            [row], gpt2, layout="single", needs=("step_labels",), step_separator=separator, tokenization="joint"
        )
        ids, (labels,) = examples[0].completions[0], examples[0].columns["step_labels"]
        for place, text in zip(np.flatnonzero(labels >= 0), ("Yes!", f"Yes!{separator}No"), strict=True):
            assert gpt2.decode(ids[: place + 1]).lstrip().startswith(text)
            assert not gpt2.decode(ids[:place]).lstrip().startswith(text)


BAD_STEPS = {
    "lengths": (steps("a", labels=[1, 0]), "'labels' has 2 values for 1 'completions'"),
    "label": (steps("a", labels=["+"]), "'labels' holds '+' (expected true/false or 1/0)"),
    "empty": (steps("a", " ", labels=[1, 0]), "'completions' holds an empty step"),
    "none": (steps(labels=[]), "'completions' is an empty list"),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_bad_steps(name, tiny):
    row, message = BAD_STEPS[name]
    with pytest.raises(DataError) as error:
        load_examples([row], tiny, layout="single", needs=("step_labels",))
    assert message in str(error.value)


def test_labels_that_are_cut_off_are_gone(tiny):
    row = steps("Two", "is four, they say", labels=[1, 0])
    options = {"layout": "single", "needs": ("step_labels",)}
    whole, _ = load_examples([row], tiny, **options)
    short, report = load_examples([row], tiny, **options, max_completion_length=6)
    assert report.notes == {"label of a step that is cut off": 1}
    assert short[0].columns["step_labels"][0].tolist() == whole[0].columns["step_labels"][0][:6].tolist()
    with pytest.raises(DataError, match="no labelled step is left"):
        load_examples([row], tiny, **options, max_completion_length=6, last_step_only=True)
