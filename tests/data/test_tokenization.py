from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.examples import load_examples
from jaxalign.data.tokenization import (
    Limits,
    TokenizerView,
    count_boundary_differences,
    tokenize_jointly,
    tokenize_separately,
    truncate,
)

BOS, EOS = 1, 2


def cut(prompt, completions, *limits, **options):
    return truncate(prompt, completions, Limits(*limits), bos=BOS, **options)


LONG = [BOS, *range(10, 19)]  # 10 tokens

CASES = {
    "fits": ((LONG, [[20, EOS]], 12), (LONG, ([20, EOS],), 0, (0,), (False,), None)),
    "completion on the right": (
        (LONG[:3], [[20, 21, 22, EOS], [30, EOS]], 6),
        (LONG[:3], ([20, 21, 22], [30, EOS]), 0, (1, 0), (True, False), None),
    ),
    "prompt on the left, behind its BOS": (
        (LONG, [[20, EOS]], 8),
        ([BOS, *LONG[5:]], ([20, EOS],), 4, (0,), (False,), None),
    ),
    "both, half of the room for the prompt": (
        (LONG, [[20, 21, 22, 23, EOS]], 6),
        ([BOS, 17, 18], ([20, 21, 22],), 7, (2,), (True,), None),
    ),
    "prompt limit": ((LONG, [[20, EOS]], 100, 4), ([BOS, 16, 17, 18], ([20, EOS],), 6, (0,), (False,), None)),
    "completion limit": ((LONG, [[20, 21, EOS]], None, None, 2), (LONG, ([20, 21],), 0, (1,), (True,), None)),
    "no limits": ((LONG, [[20, EOS]]), (LONG, ([20, EOS],), 0, (0,), (False,), None)),
}


@pytest.mark.parametrize("name", CASES)
def test_truncate(name):
    given_, expected = CASES[name]
    got = cut(*given_)
    assert (got.prompt, got.completions, got.prompt_cut, got.completion_cut, got.eos_lost, got.reason) == expected


REASONS = {
    "too long": (cut, (LONG, [[20, EOS]], 8), {"cut": False}),
    "prompt too long": (cut, (LONG, [[20, EOS]], 8, 9), {}),
    "answer fully truncated": (cut, (LONG, [[20, EOS]], 10, 10), {}),
    "identical after truncation": (cut, (LONG[:3], [[20, 21, 22, EOS], [20, 21, 23, EOS]], 5, 3), {}),
}


@pytest.mark.parametrize("reason", REASONS)
def test_truncate_gives_the_reason(reason):
    function, arguments, options = REASONS[reason]
    got = function(*arguments, **options)
    assert got.dropped
    assert got.reason == reason


IDS = st.lists(st.integers(10, 15), min_size=1, max_size=12)


@given(
    IDS, IDS, IDS, st.integers(2, 20), st.one_of(st.none(), st.integers(1, 8)), st.one_of(st.none(), st.integers(1, 8))
)
def test_truncate_keeps_its_promises(prompt, first, second, total, most_prompt, most_completion):
    prompt, completions = [BOS, *prompt], [[*first, EOS], [*second, EOS]]
    got = cut(prompt, completions, total, most_prompt, most_completion)
    if got.dropped:
        assert got.reason in ("prompt too long", "answer fully truncated", "identical after truncation")
        assert most_prompt is not None or got.reason == "identical after truncation"
        return
    assert got.prompt[-1] == prompt[-1] or got.prompt == [BOS]
    assert got.prompt[0] == BOS or len(got.prompt) == 1
    assert len(got.prompt) + got.prompt_cut == len(prompt)
    for kept, whole, removed, lost in zip(got.completions, completions, got.completion_cut, got.eos_lost, strict=True):
        assert kept
        assert kept == whole[: len(kept)]
        assert len(kept) + removed == len(whole)
        assert lost == (kept[-1] != EOS)
        assert len(got.prompt) + len(kept) <= total
        assert len(kept) <= (most_completion or 99)
    assert len(got.prompt) <= (most_prompt or 99)
    if len(prompt) + max(map(len, completions)) <= total and not most_prompt and not most_completion:
        assert got.prompt_cut == sum(got.completion_cut) == 0


TEXTS = [
    ("The sky is", " blue."),
    ("Q: colour?\nA:", " blue"),
    ("### Response:\n", "The sky is blue."),
    ("one", "two"),
    ("end ", "start"),
    ("ok", "\n\nnew line"),
    ("wide", "  two spaces"),
    ("naïve", " café ☺"),
    ("x", "1"),
]


@pytest.mark.parametrize("name", ["tiny", "stories", "gpt2", "mistral", "deepseek"])
@pytest.mark.parametrize("policy", [tokenize_separately, tokenize_jointly])
def test_prompt_and_completion_say_the_text(name, policy, request):
    """Nothing is added or lost at the boundary, also by tokenizers that write a space before any text."""
    tokenizer = request.getfixturevalue(name)
    view = TokenizerView.of(tokenizer)
    prompts, completions = policy(view, [p for p, _ in TEXTS], [[c] for _, c in TEXTS])
    for (prompt, completion), ids, (answer,) in zip(TEXTS, prompts, completions, strict=True):
        # A leading token keeps decoders from removing a first space.
        head = view.encode(["."])[0]
        said = tokenizer.decode(head + ids + answer).removeprefix(tokenizer.decode(head))
        assert said.removeprefix(" ") == prompt + completion


def test_separate_is_what_generation_sees(tiny):
    view = TokenizerView.of(tiny)
    ((prompt,), ((answer,),)) = tokenize_separately(view, ["The sky is b"], [["lue"]])
    assert prompt == view.encode(["The sky is b"])[0]
    assert answer == view.encode(["lue"])[0]


def test_joint_cuts_where_the_ids_part(tiny):
    view = TokenizerView.of(tiny)
    whole = view.encode(["The sky is blue", "The sky is b"])
    ((prompt,), (answers,)) = tokenize_jointly(view, ["The sky is b"], [["lue", "."]])
    assert [prompt + a for a in answers] == whole[:1] + view.encode(["The sky is b."])
    assert tiny.decode(prompt) == "The sky is"
    assert tiny.decode(answers[0]) == " blue"


def test_boundary_differences_are_counted(tiny):
    view = TokenizerView.of(tiny)
    prompts, completions = ["The sky is b", "The sky is", "two"], [["lue", "."], [" blue", " two"], ["x"]]
    separate = tokenize_separately(view, prompts, completions)
    joint = tokenize_jointly(view, prompts, completions)
    differ = sum(
        (p, c) != (q, d)
        for p, cs, q, ds in zip(separate[0], separate[1], joint[0], joint[1], strict=True)
        for c, d in zip(cs, ds, strict=True)
    )
    assert count_boundary_differences(view, prompts, completions) == 1
    assert differ == 2  # both completions of the first pair: they share one prompt
    for policy in ("separate", "joint"):
        row = {"prompt": prompts[0], "chosen": "lue", "rejected": "."}
        _, report = load_examples([row], tiny, tokenization=policy)
        assert report.boundary == {"policy": policy, "differ": 1, "completions": 2}


def test_one_bos_and_one_scored_terminator(tiny, gpt2, stories):
    row = {"prompt": "The sky is", "chosen": " blue", "rejected": " green"}
    for tokenizer, bos in ((tiny, 1), (gpt2, 0), (stories, 1)):
        examples, report = load_examples([row], tokenizer)
        example = examples[0]
        assert example.prompt.tolist().count(tokenizer.bos_token_id) == bos
        assert all(c[-1] == tokenizer.eos_token_id for c in example.completions)
        assert all((c == tokenizer.eos_token_id).sum() == 1 for c in example.completions)
        assert report.terminators == {tokenizer.eos_token: 2}


def test_control_tokens_that_are_meant_are_not_doubled(tiny):
    row = {"prompt": "<s>The sky is", "chosen": " blue</s>", "rejected": " green"}
    plain = {"prompt": "The sky is", "chosen": " blue", "rejected": " green"}
    meant, report = load_examples([row], tiny, special_tokens="allow")
    expected, _ = load_examples([plain], tiny)
    assert meant.content_hash == expected.content_hash
    assert report.notes == {"doubled BOS, one removed": 1}


def test_plain_text_is_scored_from_its_first_token_that_can_be(tiny, gpt2, deepseek):
    for tokenizer in (tiny, gpt2, deepseek):
        examples, _ = load_examples([{"text": "The sky is blue"}], tokenizer, layout="single")
        assert examples[0].prompt.tolist() == [tokenizer.bos_token_id]
        assert tokenizer.decode(examples[0].completions[0][:-1]) == "The sky is blue"
    tokenizer = type(tiny)(tokenizer_object=tiny.backend_tokenizer, eos_token="</s>")
    tokenizer.backend_tokenizer.post_processor = None
    examples, _ = load_examples([{"text": "The sky is blue"}], tokenizer, layout="single")
    assert tokenizer.decode([*examples[0].prompt, *examples[0].completions[0][:-1]]) == "The sky is blue"
    assert len(examples[0].prompt) == 1
