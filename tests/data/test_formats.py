"""Shapes of rows: each is recognised by itself and brought to the same normal form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.contract import RowProblem
from jaxalign.data.conversations import STRIPPED, implicit_text_prompt
from jaxalign.data.formats import check_columns, normalise
from jaxalign.data.records import Where
from jaxalign.errors import ConfigError

HERE = Where("rows", 1)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def one(row, **options):
    (record,) = normalise(row, HERE, **options)
    return record


CHAT = ([user("Q?")], ([assistant("good")], [assistant("bad")]))
TEXT = ("Q?", ("good", "bad"))

PAIRS = {
    "text": ({"prompt": "Q?", "chosen": "good", "rejected": "bad"}, TEXT),
    "chat": ({"prompt": [user("Q?")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}, CHAT),
    "single messages": ({"prompt": [user("Q?")], "chosen": assistant("good"), "rejected": assistant("bad")}, CHAT),
    "implicit chat": (
        {"chosen": [user("Q?"), assistant("good")], "rejected": [user("Q?"), assistant("bad")]},
        CHAT,
    ),
    "UltraFeedback": (
        {"prompt": "Q?", "chosen": [user("Q?"), assistant("good")], "rejected": [user("Q?"), assistant("bad")]},
        CHAT,
    ),
    "text prompt, chat answers": (
        {"prompt": "Q?", "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        CHAT,
    ),
    "chat prompt, text answers": ({"prompt": [user("Q?")], "chosen": "good", "rejected": "bad"}, CHAT),
    "chat prompt, full conversations": (
        {
            "prompt": [user("Q?")],
            "chosen": [user("Q?"), assistant("good")],
            "rejected": [user("Q?"), assistant("bad")],
        },
        CHAT,
    ),
    "system only in the prompt": (
        {
            "prompt": [system("S"), user("Q?")],
            "chosen": [user("Q?"), assistant("good")],
            "rejected": [user("Q?"), assistant("bad")],
        },
        ([system("S"), user("Q?")], CHAT[1]),
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Q?"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        CHAT,
    ),
    "ShareGPT, system column": (
        {
            "conversations": [{"from": "human", "value": "Q?"}],
            "system": "S",
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        ([system("S"), user("Q?")], CHAT[1]),
    ),
    "OpenAI": (
        {
            "input": {"messages": [system("S"), user("Q?")]},
            "preferred_output": [assistant("good")],
            "non_preferred_output": [assistant("bad")],
        },
        ([system("S"), user("Q?")], CHAT[1]),
    ),
    "content parts": (
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "text", "text": "?"}]}],
            "chosen": [assistant("good")],
            "rejected": [assistant("bad")],
        },
        CHAT,
    ),
    "columns of other rows are null": (
        {"prompt": "Q?", "chosen": "good", "rejected": "bad", "messages": None, "text": None, "label": None},
        TEXT,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    row, (prompt, completions) = PAIRS[name]
    record = one(row)
    assert (record.prompt, record.completions) == (prompt, completions)
    repeated = name in ("UltraFeedback", "chat prompt, full conversations", "system only in the prompt")
    assert (STRIPPED in record.notes) == repeated


def test_common_turns_are_the_implicit_prompt():
    start = [system("S"), user("a"), assistant("b"), user("c")]
    record = one({"chosen": [*start, assistant("good")], "rejected": [*start, assistant("bad")]})
    assert record.prompt == start
    # One conversation goes on where the other ends: the last shared turn before an answer is the prompt.
    longer = [*start, assistant("good"), user("more"), assistant("even better")]
    record = one({"chosen": longer, "rejected": [*start, assistant("good")]})
    assert record.prompt == start
    assert len(record.completions[0]) == 3
    assert record.notes


SINGLE = {
    "messages": ({"messages": [user("Q?"), assistant("yes")]}, ([user("Q?")], [assistant("yes")], None)),
    "conversations": (
        {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "yes"}]},
        ([user("Q?")], [assistant("yes")], None),
    ),
    "prompt, completion": ({"prompt": "Q?", "completion": "yes"}, ("Q?", "yes", None)),
    "chat completion": (
        {"prompt": [user("Q?")], "completion": [assistant("yes")]},
        ([user("Q?")], [assistant("yes")], None),
    ),
    "text": ({"text": "yes"}, ("", "yes", None)),
    "messages, label": (
        {"messages": [user("Q?"), assistant("yes")], "label": False},
        ([user("Q?")], [assistant("yes")], False),
    ),
    "completion, label 1": ({"prompt": "Q?", "completion": "yes", "label": 1}, ("Q?", "yes", True)),
    "completion, label 0": ({"prompt": "Q?", "completion": "yes", "label": 0}, ("Q?", "yes", False)),
    "kto_tag": (
        {"messages": [user("Q?"), assistant("yes")], "kto_tag": True},
        ([user("Q?")], [assistant("yes")], True),
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_answers(name):
    row, (prompt, answer, label) = SINGLE[name]
    record = one(row)
    assert (record.prompt, record.completions, record.label) == (prompt, (answer,), label)


def test_alpaca_text():
    row = {"instruction": "Add.", "input": "1 1", "output": "2"}
    assert one(row).prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 1\n\n"
        "### Response:\n"
    )
    pair = one({**row, "input": "", "chosen": "2", "rejected": "3"})
    assert pair.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )
    assert pair.completions == ("2", "3")
    instances = [{"input": "1 1", "output": "2"}, {"input": "", "output": "3"}]
    records = normalise({"instruction": "Add.", "instances": instances}, HERE)
    assert [r.prompt for r in records] == [one(row).prompt, pair.prompt]


def test_every_turn_on_request():
    messages = [system("S"), user("a"), assistant("b"), user("c"), assistant("d")]
    assert [r.completions[0] for r in normalise({"messages": messages}, HERE)] == [[assistant("d")]]
    records = normalise({"messages": messages}, HERE, turns="all")
    assert [(r.prompt, r.completions[0]) for r in records] == [
        (messages[:2], [assistant("b")]),
        (messages[:4], [assistant("d")]),
    ]


def test_tools_and_tool_turns():
    row = {
        "conversations": [
            {"from": "human", "value": "Q?"},
            {"from": "function_call", "value": '{"name": "f"}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "three"},
        ],
        "tools": '[{"name": "f"}]',
    }
    record = one(row)
    assert [m["role"] for m in record.prompt] == ["user", "assistant", "tool"]
    assert record.tools == [{"name": "f"}]


def test_column_map():
    row = {"question": "Q?", "response1": "good", "meta": {"worse": "bad"}, "prompt": "another thing"}
    columns = {"prompt": "question", "chosen": "response1", "rejected": "meta.worse"}
    record = one(row, columns=columns)
    assert (record.prompt, record.completions) == TEXT
    with pytest.raises(RowProblem, match=r"'questoin' is missing, which data\.columns names as 'prompt'.*'question'"):
        one(row, columns={**columns, "prompt": "questoin"})
    with pytest.raises(ConfigError, match=r"unknown column 'promt'.*Did you mean 'prompt'\?"):
        check_columns({"promt": "question"})


CUTS = [
    ("The sky is blue.", "The sky is black.", "The sky is"),
    ("The sky is blue", "The sky is blue and wide", "The sky is"),
    ("Q: sky?\nA: blue", "Q: sky?\nA: grey", "Q: sky?\nA:"),
    ("Q: sky?\nBlue", "Q: sky?\nBlack", "Q: sky?\n"),
    ("one two", "one\ntwo", "one"),
    ("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hi\n\nAssistant: Hey", "\n\nHuman: Hi\n\nAssistant:"),
    (
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: So?\n\nAssistant: Yes",
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: So?\n\nAssistant: Yesterday",
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: So?\n\nAssistant:",
    ),
    (
        "\n\nHuman: a\n\nAssistant: b",
        "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "\n\nHuman: a\n\nAssistant:",
    ),
]


@pytest.mark.parametrize(("chosen", "rejected", "prompt"), CUTS)
def test_implicit_text_prompt(chosen, rejected, prompt):
    assert implicit_text_prompt(chosen, rejected) == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])
    assert implicit_text_prompt(rejected, chosen) == (prompt, rejected[len(prompt) :], chosen[len(prompt) :])


WORDS = st.text(alphabet="abc \n", max_size=12)


@given(st.text(alphabet="abc \n", max_size=20), WORDS, WORDS)
def test_implicit_text_prompts_never_end_inside_a_word(common, first, second):
    chosen, rejected = common + first, common + second
    try:
        prompt, good, bad = implicit_text_prompt(chosen, rejected)
    except RowProblem:
        return
    assert (prompt + good, prompt + bad) == (chosen, rejected)
    assert prompt.strip()
    assert good.strip()
    assert bad.strip()
    assert prompt[-1].isspace() or (good[0].isspace() and bad[0].isspace())
