"""The data contract: every kind of bad input, the message it gives, and what `drop` makes of it."""

from __future__ import annotations

import json

import pytest

from jaxalign.data.examples import load_examples
from jaxalign.errors import ConfigError, DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PROMPT = "What is two and two?"


def good(i: int = 0):
    return {"prompt": f"{PROMPT} ({i})", "chosen": " Four, they say.", "rejected": " The grass is green."}


def chat(i: int = 0):
    return {"prompt": [user(f"{PROMPT} ({i})")], "chosen": [assistant("Four.")], "rejected": [assistant("Five.")]}


def completion(i: int = 0):
    return {"prompt": f"{PROMPT} ({i})", "completion": " Four.", "label": bool(i % 2)}


def without(row, *names):
    return {k: v for k, v in row.items() if k not in names}


SHORT = {"max_length": 12}
CHATML = {"chat_template": "chatml"}
UNPAIRED = {"layout": "unpaired", **CHATML}

# name: (good rows, bad row, options, reason, message)
ROWS = {
    "empty chosen": (good, {**good(), "chosen": ""}, {}, "empty answer", "'chosen' is empty"),
    "blank rejected": (good, {**good(), "rejected": " \n"}, {}, "empty answer", "'rejected' is empty"),
    "both empty": (good, {**good(), "chosen": "", "rejected": ""}, {}, "empty answer", "'chosen' is empty"),
    "identical pair": (
        good,
        {**good(), "chosen": " same", "rejected": " same"},
        {},
        "identical pair",
        "'chosen' and 'rejected' are the same",
    ),
    "identical after truncation": (
        good,
        {"prompt": "The sky", "chosen": " is blue" + " and green" * 20, "rejected": " is blue" + " and green" * 21},
        {"max_length": 24},
        "identical after truncation",
        "'chosen' and 'rejected' are the same after cutting (data.max_length 24)",
    ),
    "prompt too long": (
        good,
        {**good(), "prompt": "The sky is blue. " * 40},
        {"max_length": 60, "truncation": "error"},
        "too long",
        "prompt and answer do not fit (data.max_length 60)",
    ),
    "prompt that may not be cut": (
        good,
        {**good(), "prompt": "The sky is blue. " * 40},
        {"max_length": 60, "max_prompt_length": 100},
        "prompt too long",
        "the prompt is longer than prompt and answer may be (data.max_length 60, data.max_prompt_length 100)",
    ),
    "prompt that leaves nothing": (
        good,
        {**good(), "prompt": "The sky is blue. " * 40},
        {"max_length": 60, "max_prompt_length": 60},
        "answer fully truncated",
        "the prompt leaves no token to an answer (data.max_length 60, data.max_prompt_length 60)",
    ),
    "missing rejected": (
        good,
        without(good(), "rejected"),
        {},
        "missing column",
        "'rejected' is missing (the columns are 'prompt', 'chosen')",
    ),
    "missing chosen": (
        good,
        without(good(), "chosen"),
        {},
        "missing column",
        "'chosen' is missing (the columns are 'prompt', 'rejected')",
    ),
    "wrong names": (
        good,
        {"prompt": "x", "choosen": "a", "rejectd": "b"},
        {},
        "missing column",
        "no known shape: the columns are 'prompt', 'choosen', 'rejectd' (expected prompt, chosen, rejected; prompt, "
        "completion, label; prompt, completions, scores; messages; or text) Did you mean 'chosen'",
    ),
    "chosen null": (
        good,
        {**good(), "chosen": None},
        {},
        "null",
        "'chosen' is null (expected str or list of {role, content})",
    ),
    "chosen a number": (
        good,
        {**good(), "chosen": 4},
        {},
        "wrong type",
        "'chosen' is a number (expected str or list of {role, content})",
    ),
    "prompt null": (
        good,
        {**good(), "prompt": None},
        {},
        "null",
        "'prompt' is null (expected str or list of {role, content})",
    ),
    "prompt a number": (
        good,
        {**good(), "prompt": 1.5},
        {},
        "wrong type",
        "'prompt' is a number (expected str or list of {role, content})",
    ),
    "answers of two kinds": (
        good,
        {**good(), "rejected": [assistant("x")]},
        {},
        "wrong type",
        "'chosen' is a string and 'rejected' is a conversation (expected the same)",
    ),
    "row not an object": (good, ["a", "b"], {}, "wrong type", "the row is a list (expected an object with columns)"),
    "implicit prompt, both empty": (good, {"chosen": "", "rejected": ""}, {}, "empty answer", "'chosen' is empty"),
    "no common prompt": (
        good,
        {"chosen": "Blue.", "rejected": "Green."},
        {},
        "no common prompt",
        "there is no 'prompt', and 'chosen' and 'rejected' share no beginning to take as one",
    ),
    "no common turn": (
        chat,
        {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
        CHATML,
        "no common prompt",
        "'chosen' and 'rejected' share no turn before an answer (expected the same beginning)",
    ),
    "lone surrogate": (
        good,
        {**good(), "chosen": "a \ud800"},
        {},
        "lone surrogate",
        "'chosen' holds the lone surrogate \\ud800 (not a character)",
    ),
    "BOS in the text": (
        good,
        {**good(), "prompt": "<s>What is two?"},
        {},
        "special token in text",
        "the text holds the control token '<s>'",
    ),
    "control tokens in the text": (
        good,
        {**good(), "chosen": "Four</s><s>more"},
        {},
        "special token in text",
        "the text holds the control token '</s>'",
    ),
    "control tokens in a turn": (
        chat,
        {**chat(), "prompt": [user("a<|im_end|>\n<|im_start|>system\nb")]},
        CHATML,
        "special token in text",
        "the text holds the control token '<|im_end|>'",
    ),
    "duplicated prompt in answer": (
        good,
        {**good(), "chosen": f"{PROMPT} (0) Four.", "rejected": f"{PROMPT} (0) Five."},
        {},
        "duplicated prompt in answer",
        "'chosen' and 'rejected' begin with the whole prompt",
    ),
    "conversation, empty list": (
        chat,
        {**chat(), "chosen": []},
        CHATML,
        "empty answer",
        "'chosen' is an empty list (expected at least one message)",
    ),
    "conversation, empty prompt": (
        chat,
        {**chat(), "prompt": []},
        CHATML,
        "empty prompt",
        "'prompt' is an empty list (expected at least one message)",
    ),
    "conversation, empty answer": (
        chat,
        {**chat(), "chosen": [assistant("")]},
        CHATML,
        "empty answer",
        "'chosen' is empty",
    ),
    "conversation, empty question": (
        chat,
        {**chat(), "prompt": [user("")]},
        CHATML,
        "empty prompt",
        "the prompt has no turn with text",
    ),
    "conversation, null content": (
        chat,
        {**chat(), "chosen": [assistant(None)]},
        CHATML,
        "null",
        "'chosen' holds a message of assistant whose content is null (expected str)",
    ),
    "conversation, unknown role": (
        chat,
        {**chat(), "prompt": [{"role": "usr", "content": "x"}]},
        CHATML,
        "wrong type",
        "'prompt' has the role 'usr' (expected user, assistant, system, tool) Did you mean 'user'",
    ),
    "conversation, other keys": (
        chat,
        {**chat(), "prompt": [{"speaker": "user", "text": "x"}]},
        CHATML,
        "wrong type",
        "'prompt' holds a message with the keys 'speaker', 'text' (expected {role, content} or {from, value})",
    ),
    "conversation, images": (
        chat,
        {**chat(), "prompt": [user([{"type": "image"}])]},
        CHATML,
        "wrong type",
        "'prompt' has content parts that are not text (images are not read)",
    ),
    "conversation, prompt ends with an answer": (
        chat,
        {**chat(), "prompt": [user("a"), assistant("b")]},
        CHATML,
        "wrong type",
        "the prompt ends with an assistant turn (expected a turn to answer)",
    ),
    "another prompt in the conversations": (
        chat,
        {"prompt": "other", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        CHATML,
        "prompt not repeated",
        "'prompt' is not a user turn of 'chosen' and 'rejected' (expected the answers alone, or conversations that "
        "begin with the prompt)",
    ),
    "another prompt list in the conversations": (
        chat,
        {**chat(), "chosen": [user("other"), assistant("b")]},
        CHATML,
        "prompt not repeated",
        "'chosen' begins with a user turn that is not the prompt (expected an assistant turn, or the whole prompt "
        "again)",
    ),
    "no chat template": (
        good,
        chat(),
        {},
        "no chat template",
        "the row is a conversation, and the tokenizer has no chat template",
    ),
    "label -1": (
        completion,
        {**completion(), "label": -1},
        UNPAIRED,
        "label invalid",
        "'label' is -1 (expected true/false or 1/0; write -1 as 0)",
    ),
    "label a word": (
        completion,
        {**completion(), "label": "good"},
        UNPAIRED,
        "label invalid",
        "'label' is 'good' (expected true/false or 1/0)",
    ),
    "label null": (
        completion,
        {**completion(), "label": None},
        UNPAIRED,
        "null",
        "'label' is null (expected true/false or 1/0)",
    ),
    "label missing": (
        completion,
        without(completion(), "label"),
        UNPAIRED,
        "missing column",
        "no 'label' in a row of the shape prompt, completion (text) (configs/sft.py takes such rows)",
    ),
    "pairs wanted": (
        good,
        completion(),
        {},
        "missing column",
        "no 'chosen' and 'rejected' in a row of the shape prompt, completion (text), label "
        "(configs/unpaired.py:kto takes such rows)",
    ),
    "last turn not an answer": (
        lambda i=0: {"messages": [user(f"a{i}"), assistant("b")]},
        {"messages": [user("a"), assistant("b"), user("c")]},
        {"layout": "single", **CHATML},
        "empty answer",
        "'messages' ends with a user turn (expected an assistant turn)",
    ),
    "only an answer": (
        lambda i=0: {"messages": [user(f"a{i}"), assistant("b")]},
        {"messages": [assistant("b")]},
        {"layout": "single", **CHATML},
        "empty prompt",
        "'messages' holds only an assistant turn (expected a user turn before it)",
    ),
    "token id beyond the vocabulary": (
        lambda i=0: {"prompt": f"#{i}", "chosen": "!", "rejected": "$"},
        {"prompt": "#", "chosen": " blue", "rejected": " green"},
        {"vocabulary": 200},
        "token id outside the vocabulary",
        "a token id is not below the model's vocabulary size 200",
    ),
    "beyond the model's positions": (
        good,
        {**good(), "prompt": "The sky is blue. " * 40},
        {"max_positions": 60},
        "longer than the model's positions",
        "prompt and answer are longer than the model's 60 positions",
    ),
}


@pytest.fixture
def files(tmp_path):
    def write(rows):
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return path

    return write


@pytest.mark.parametrize("name", ROWS)
def test_bad_rows(name, tiny, files):
    make, bad, options, reason, message = ROWS[name]
    path = files([make(1), make(2), bad, make(4), make(5)])
    with pytest.raises(DataError) as error:
        load_examples(path, tiny, **options)
    (line,) = error.value.problems
    assert line.startswith(f"train.jsonl row 3: {message}. 1 row has this problem: 3.")
    assert line.endswith("Use data.on_bad=drop to skip them.")
    assert error.value.exit_code == 3
    examples, report = load_examples(path, tiny, on_bad="drop", **options)
    assert len(examples) == 4
    assert report.dropped == {reason: 1}
    assert report.dropped_rows == {reason: ["train.jsonl row 3"]}
    assert report.warnings[0] == f"1 of 5 rows left out: {reason} (rows 3)"
    assert json.loads(json.dumps(report.as_dict()))["dropped"] == {reason: 1}


def test_rows_of_another_layout_name_their_configuration(tiny):
    talk = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A"}]
    steps = {"prompt": "Q?", "completions": ["a", "b"], "labels": [1, 0]}
    for row, name in (
        ({"messages": talk, "label": True}, "unpaired.py:kto"),
        ({"messages": talk}, "sft.py"),
        (steps, "steps.py"),
    ):
        for layout in ("paired", "ranked"):
            with pytest.raises(DataError) as error:
                load_examples([row] * 3, tiny, layout=layout)
            (line,) = error.value.problems
            assert f"(configs/{name} takes such rows)" in line
            assert "on_bad" not in line  # it would leave nothing


def test_many_rows_without_an_example_are_warned_of(tiny):
    def rows(ties):
        same = [{"prompt": f"Q{i}? ", "a": "x", "b": "y", "preference": 0.5} for i in range(ties)]
        return same + [good(i) for i in range(20 - ties)]

    _, report = load_examples(rows(1), tiny)
    assert not [w for w in report.warnings if "make no example" in w]
    _, report = load_examples(rows(2), tiny)
    assert "2 of 20 rows make no example (10.0%): tie, no preferred answer" in report.warnings
    equal = {"prompt": "Q? ", "completions": ["x", "y"], "scores": [1, 1]}
    _, report = load_examples([equal, *rows(0)], tiny)
    assert not [w for w in report.warnings if "make no example" in w]
    _, report = load_examples([equal, equal, *rows(0)], tiny)
    assert "2 of 22 rows make no example (9.1%): ranking in which all scores are equal, no pair" in report.warnings


def test_all_problems_are_told_together_with_all_their_rows(tiny, files):
    rows = [good(i) for i in range(1, 120)]
    for i in (17, 40, 91):
        rows[i - 1] = {**good(i), "id": f"r{i}", "chosen": None}
    rows[4] = {**good(), "rejected": 3}
    with pytest.raises(DataError) as error:
        load_examples(files(rows), tiny)
    assert error.value.problems == (
        "train.jsonl row 5: 'rejected' is a number (expected str or list of {role, content}). "
        "1 row has this problem: 5. Use data.on_bad=drop to skip them.",
        "train.jsonl row 17 (id r17): 'chosen' is null (expected str or list of {role, content}). "
        "3 rows have this problem: 17, 40, 91. Use data.on_bad=drop to skip them.",
    )


def test_unreadable_lines(tiny, tmp_path):
    path = tmp_path / "train.jsonl"
    line = json.dumps(good()).encode()
    path.write_bytes(b"\n".join([line, b'{"prompt": ', b'{"prompt": "\xff"}', line.replace(b"two", b"2")]))
    with pytest.raises(DataError) as error:
        load_examples(path, tiny)
    assert [p.split(" (")[0].split(". 1 row")[0] for p in error.value.problems] == [
        "train.jsonl row 2: not valid JSON: Expecting value",
        "train.jsonl row 3: byte 0xff is not UTF-8",
    ]
    assert load_examples(path, tiny, on_bad="drop")[1].dropped == {"malformed JSON": 1, "non-UTF-8": 1}


def test_a_mixed_data_set_works(tiny):
    rows = [good(), chat(), {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}]
    examples, report = load_examples(rows, tiny, chat_template="chatml")
    assert len(examples) == 3
    assert report.shapes == {
        "prompt, chosen, rejected (text)": 1,
        "prompt, chosen, rejected (chat)": 1,
        "chosen, rejected (chat)": 1,
    }


def test_nothing_left(tiny, files):
    with pytest.raises(DataError, match=r"train\.jsonl: the file has no rows"):
        load_examples(files([]), tiny)
    rows = [{**good(i), "chosen": None} for i in range(3)]
    with pytest.raises(DataError, match=r"train\.jsonl: no example is left of 3 rows: null 3"):
        load_examples(files(rows), tiny, on_bad="drop")
    long = [{**good(i), "prompt": "The sky is blue. " * 40} for i in range(3)]
    with pytest.raises(DataError, match=r"no example is left of 3 rows: too long 3"):
        load_examples(files(long), tiny, max_length=60, truncation="drop")


def test_rows_that_are_too_long_can_be_dropped_alone(tiny):
    rows = [good(), {**good(1), "prompt": "The sky is blue. " * 40}]
    examples, report = load_examples(rows, tiny, max_length=60, truncation="drop")
    assert len(examples) == 1
    assert report.dropped == {"too long": 1}


def test_a_prompt_without_a_token(tiny, gpt2):
    row = {**good(), "prompt": ""}
    examples, report = load_examples([row], tiny)
    assert examples[0].prompt.tolist() == [tiny.bos_token_id]
    assert report.notes == {"empty prompt, BOS alone": 1}
    with pytest.raises(DataError, match=r"rows row 1: the prompt has no token .*writes no BOS"):
        load_examples([row], gpt2)


def test_one_class(tiny):
    rows = [{**completion(i), "label": True} for i in range(3)]
    with pytest.raises(DataError, match="one class only: 3 desirable and 0 undesirable"):
        load_examples(rows, tiny, layout="unpaired")
    examples, report = load_examples(rows, tiny, layout="unpaired", one_class="allow")
    assert report.labels == {"desirable": 3, "undesirable": 0}
    assert examples.columns["desirable"].all()


def test_strict_tolerates_a_few_rows_without_a_signal_and_says_so(tiny):
    rows = [good(i) for i in range(200)]
    rows[10] = {**good(), "chosen": "same", "rejected": "same"}
    rows[20] = {**good(), "chosen": ""}
    examples, report = load_examples(rows, tiny)
    assert len(examples) == 198
    assert report.dropped == {"identical pair": 1, "empty answer": 1}
    assert "1 of 200 rows left out: identical pair (rows 11)" in report.warnings
    with pytest.raises(DataError, match=r"Strict mode leaves out up to 0% of the rows \(200\)"):
        load_examples(rows, tiny, tolerance=0.0)
    rows[30] = {**good(), "chosen": None}
    with pytest.raises(DataError) as error:
        load_examples(rows, tiny)
    assert len(error.value.problems) == 1


def test_duplicates_are_kept_and_told(tiny):
    examples, report = load_examples([good(), good(1), good()], tiny)
    assert len(examples) == 3
    assert report.notes == {"duplicate row": 1}
    assert report.warnings == ("duplicates kept: 1 (rows 3)",)


def test_layouts_of_pairs(tiny):
    rows = [good(), good(1)]
    paired, _ = load_examples(rows, tiny)
    single, _ = load_examples(rows, tiny, layout="single")
    unpaired, report = load_examples(rows, tiny, layout="unpaired")
    assert paired.completions == 2
    for i, example in enumerate(paired):
        chosen, rejected = (c.tolist() for c in example.completions)
        assert single[i].completions[0].tolist() == chosen
        assert [unpaired[2 * i + j].completions[0].tolist() for j in (0, 1)] == [chosen, rejected]
        assert example.source == f"rows row {i + 1}"
        assert [unpaired[2 * i + j].source for j in (0, 1)] == [f"{example.source}, answer {j}" for j in (1, 2)]
    assert unpaired.columns["desirable"].tolist() == [True, False, True, False]
    assert report.notes == {"pair, made two unpaired examples": 2}
    assert [bool(e.columns["desirable"]) for e in unpaired] == [True, False, True, False]


def test_supervised_data_from_labels_are_the_desirable_answers(tiny):
    rows = [completion(i) for i in range(5)]
    examples, report = load_examples(rows, tiny, layout="single")
    assert len(examples) == 2
    assert report.notes == {"undesirable answer, not used for supervised training": 3}


def test_options_are_checked_together(tiny):
    with pytest.raises(ConfigError) as error:
        load_examples([good()], tiny, layout="pairs", tokenization="seperate", truncation="keep_end")  # type: ignore[arg-type]
    assert len(error.value.problems) == 3
    assert "data.layout: 'pairs' (expected one of single, paired, unpaired, ranked)" in error.value.problems


def test_a_tokenizer_without_an_end(tiny):
    tokenizer = type(tiny)(tokenizer_object=tiny.backend_tokenizer)
    with pytest.raises(DataError, match="the tokenizer has no eos_token"):
        load_examples([good()], tokenizer)
