"""Damaged answers: more and more key phrases are gone, and nothing else is."""

from __future__ import annotations

import builtins

import pytest

from jaxalign.data.examples import load_examples
from jaxalign.data.key_phrases import KeyPhrases, without
from jaxalign.errors import ConfigError

TEXT = "The capital of France is Paris. It lies on the river Seine, and old stone bridges cross the river."


def test_key_phrases_are_ranked_by_rake():
    """RAKE by hand: a word's score is the words of its phrases over its occurrences, a phrase's the sum of its words'.

    Phrases: capital | France | Paris | lies | river Seine | old stone bridges cross | river. The four words of the
    longest score 4 each: 16. "river" occurs in phrases of 2 and 1 words: 3 / 2; "seine" scores 2: 3.5. The others 1.
    """
    phrases = KeyPhrases().phrases(TEXT)
    assert phrases[:3] == ["old stone bridges cross", "river seine", "river"]
    assert sorted(phrases[3:]) == ["capital", "france", "lies", "paris"]


def test_each_degree_removes_its_share():
    """Seven phrases, four degrees: 7/4, 14/4 and 21/4 of them are 2, 4 (3.5 rounded up) and 5."""
    first, second, third = KeyPhrases(degrees=4).damage(TEXT)
    assert first == "The capital of France is Paris. It lies on the, and the river."
    rest = KeyPhrases().phrases(TEXT)[2:]
    assert second == without(first, rest[:2])
    assert third == without(first, rest[:3])


REMOVALS = {
    "in the middle": ("the red fox runs", ["red fox"], "the runs"),
    "at the start": ("Red fox runs.", ["red fox"], "runs."),
    "at the end": ("see the red fox", ["red fox"], "see the"),
    "before punctuation": ("a red fox, a dog", ["red fox"], "a, a dog"),
    "over a line end": ("the red\nfox runs", ["red fox"], "the runs"),
    "at the start of a line": ("One.\nRed fox runs", ["red fox"], "One.\nruns"),
    "not inside words": ("foxes and a fox", ["fox"], "foxes and a"),
    "the longest first": ("red fox and red", ["red", "red fox"], "and"),
    "all occurrences": ("fox, Fox and FOX", ["fox"], ", and"),
    "symbols are no patterns": ("use c++ now", ["c++"], "use now"),
    "an indent stays": ("if x:\n    fox = 1", ["fox"], "if x:\n    = 1"),
    "nothing": ("  two  spaces ", [], "  two  spaces "),
}


@pytest.mark.parametrize("name", REMOVALS)
def test_removals(name):
    text, phrases, expected = REMOVALS[name]
    assert without(text, phrases) == expected


def test_what_cannot_be_damaged_is_not():
    assert KeyPhrases(degrees=3).damage("It is.") == [None, None]  # no key phrase
    assert KeyPhrases(degrees=3).damage("Paris") == [None, None]  # nothing would be left
    assert KeyPhrases(degrees=4).damage("It is Paris.") == [None, "It is.", None]  # 1/4, 2/4 and 3/4 of one phrase


ROWS = [
    {"prompt": "Q? ", "chosen": TEXT, "rejected": "It is Rome."},
    {"prompt": "Q? ", "chosen": "It is.", "rejected": "They say that Rome is large"},
]


@pytest.mark.parametrize(
    ("sides", "degrees"),
    [
        ("both", [[0, 0, 1, 2, -1, 2], [-1, 0, -1, -1, 1, 2]]),
        ("chosen", [[0, -1, 1, 2], [-1, -1, -1, -1]]),
        ("rejected", [[-1, 0, -1, 2], [-1, 0, 1, 2]]),
    ],
)
def test_damaged_copies_stand_behind_the_pair_and_are_not_scored(tiny, sides, degrees):
    examples, report = load_examples(ROWS, tiny, needs=("degrees",), damaged=sides)
    plain, plain_report = load_examples(ROWS, tiny)
    assert examples.columns["degrees"].tolist() == degrees
    assert examples.unscored == len(degrees[0]) - 2
    assert (examples.completion_lengths == plain.completion_lengths).all()
    assert report.terminators == plain_report.terminators
    assert report.notes["damaged copy of an answer"] == sum(degree > 0 for given in degrees for degree in given)
    undamaged = (2 if sides == "both" else 1) * len(ROWS) - sum(degree == 0 for given in degrees for degree in given)
    assert report.notes.get("answer that cannot be damaged", 0) == undamaged
    for row, example, given in zip(ROWS, examples, degrees, strict=True):
        damage = KeyPhrases(degrees=3).damage
        copies = [copy for side in ("chosen", "rejected") if sides in (side, "both") for copy in damage(row[side])]
        assert [tiny.decode(ids).removesuffix("</s>") for ids in example.unscored] == [copy or "" for copy in copies]
        assert [len(ids) > 0 for ids in example.unscored] == [degree > 0 for degree in given[2:]]


def test_conversations_are_damaged_in_their_last_turn(tiny):
    turns = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", TEXT), ("rejected", "No."))}
    row = {"prompt": [{"role": "user", "content": "Q?"}], **turns}
    examples, _ = load_examples([row], tiny, needs=("degrees",), degrees=2, chat_template="chatml")
    assert examples.columns["degrees"].tolist() == [[0, -1, 1, -1]]
    (copy,) = KeyPhrases(degrees=2).damage(TEXT)
    assert tiny.decode(examples[0].unscored[0]) == f"{copy}<|im_end|>"


def test_a_copy_that_is_cut_before_its_damage_is_none(tiny):
    row = {"prompt": "Q? ", "chosen": "It is what they say of the grass", "rejected": "no"}
    whole, _ = load_examples([row], tiny, needs=("degrees",), degrees=2, damaged="chosen")
    short, _ = load_examples([row], tiny, needs=("degrees",), degrees=2, damaged="chosen", max_completion_length=3)
    assert whole.columns["degrees"].tolist() == [[0, -1, 1]]
    assert short.columns["degrees"].tolist() == [[-1, -1, -1]]
    assert len(short[0].unscored[0]) == 0


def test_a_missing_package_is_named(tiny, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "rake_nltk":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install 'jaxalign\[rake\]'"):
        load_examples(ROWS, tiny, needs=("degrees",))
