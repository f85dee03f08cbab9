from __future__ import annotations

import json

import pytest

from jaxalign.data.chat import CHATML, load_chat_template
from jaxalign.data.examples import load_examples
from jaxalign.errors import DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


STRUCTURES = {
    "one turn": [user("What is two and two?")],
    "system": [system("Be brief."), user("What is two and two?")],
    "several turns": [user("Hello"), assistant("Hello you"), user("What is two and two?")],
}


def pair(prompt, chosen="Four.", rejected="Five it is."):
    return {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}


def test_chatml(tiny):
    examples, report = load_examples([pair(STRUCTURES["system"])], tiny, chat_template="chatml")
    example = examples[0]
    assert tiny.decode(example.prompt) == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is two and two?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # The newline that ChatML writes after the end token is not kept; its own end token ends the answer.
    assert [tiny.decode(c) for c in example.completions] == ["Four.<|im_end|>", "Five it is.<|im_end|>"]
    assert report.terminators == {"<|im_end|>": 2}
    assert any("<|im_end|>, not with the tokenizer's </s>" in w for w in report.warnings)
    assert report.template_hash == load_chat_template(tiny, "chatml").content_hash


def test_the_tokenizers_own_end_token_is_not_doubled(tiny):
    template = CHATML.replace("<|im_end|>", "</s>")
    examples, report = load_examples([pair(STRUCTURES["one turn"])], tiny, chat_template=template)
    assert [tiny.decode(c) for c in examples[0].completions] == ["Four.</s>", "Five it is.</s>"]
    assert not report.warnings


def test_an_end_token_is_added_where_the_template_writes_none(tiny):
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template = turns + "{% if add_generation_prompt %}assistant:{% endif %}"
    examples, _ = load_examples([pair(STRUCTURES["one turn"])], tiny, chat_template=template)
    assert tiny.decode(examples[0].prompt) == "user: What is two and two?\nassistant:"
    assert tiny.decode(examples[0].completions[0]) == " Four.</s>"


def test_plain_text_needs_no_template_and_has_none_in_the_report(tiny):
    _, report = load_examples([{"prompt": "The", "chosen": " sky", "rejected": " grass"}], tiny, chat_template="chatml")
    assert report.template_hash is None


def test_template_sources(tiny, tmp_path):
    assert load_chat_template(tiny) is None
    path = tmp_path / "t.jinja"
    path.write_text(CHATML)
    assert load_chat_template(tiny, path).text == load_chat_template(tiny, "chatml").text
    assert load_chat_template(tiny, CHATML).text == CHATML
    with pytest.raises(DataError, match=r"model\.chat_template: chatlm cannot be read"):
        load_chat_template(tiny, "chatlm")


TRL = [
    "cohere",
    "gemma3",
    "lfm2",
    "llama3",
    "llama3_1",
    "phi3",
    "qwen2_5",
    "qwen2_5_training",
    "qwen3",
    "qwen3_training",
    "qwen3_instruct_2507",
]


@pytest.mark.parametrize("name", TRL)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_templates_of_current_families(tiny, shared_data, name, structure):
    """Prompt and completion are the beginning of the whole rendering; the rest holds no text of the answer."""
    path = shared_data / "chat-templates" / "trl" / f"{name}.jinja"
    messages = STRUCTURES[structure]
    examples, report = load_examples([pair(messages)], tiny, chat_template=path)
    template = path.read_text()
    whole = tiny.apply_chat_template([*messages, assistant("Four.")], chat_template=template, tokenize=False)
    prompt = tiny.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    example = examples[0]
    assert tiny.decode(example.prompt) == prompt
    answer = tiny.decode(example.completions[0]).removesuffix("</s>")
    assert whole.startswith(prompt + answer)
    assert "Four." in answer
    assert not whole.removeprefix(prompt + answer).strip().removeprefix("</s>")
    assert (example.prompt == tiny.bos_token_id).sum() <= 1
    assert not report.dropped


REFUSED = {
    "community/llama-3-instruct": ("one turn", r"is not prefix preserving: .*user, assistant.*indented for reading"),
    "community/vicuna": ("several turns", "is not prefix preserving: .*user, assistant, user, assistant"),
    "trl/gemma": ("system", "gemma.jinja refuses a conversation of system, user: System role not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_cannot_be_used(tiny, shared_data, name):
    structure, message = REFUSED[name]
    path = shared_data / "chat-templates" / f"{name}.jinja"
    with pytest.raises(DataError, match=message):
        load_examples([pair(STRUCTURES[structure])], tiny, chat_template=path)


def test_a_template_that_removes_the_thinking(deepseek):
    load_examples([pair(STRUCTURES["several turns"])], deepseek)
    with pytest.raises(DataError, match=r"of the tokenizer leaves out or changes part of the answer.*</think>"):
        load_examples([pair(STRUCTURES["one turn"], chosen="<think>2 + 2</think>Four.")], deepseek)


def test_a_template_that_forgets_the_system_turn(tiny):
    template = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    with pytest.raises(DataError, match="leaves out or changes a system turn"):
        load_examples([pair(STRUCTURES["system"])], tiny, chat_template=template)


def test_tools_are_shown_or_counted(tiny):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    row = {**pair(STRUCTURES["one turn"]), "tools": tools}
    _, report = load_examples([row], tiny, chat_template="chatml")
    assert report.notes == {"tools that the chat template does not show": 1}
    template = CHATML.replace("{% for", "{% if tools %}{{ tools[0].function.name }}{% endif %}{% for", 1)
    shown, report = load_examples([row], tiny, chat_template=template)
    assert tiny.decode(shown[0].prompt).startswith("<s>add<|im_start|>")
    assert not report.notes


def test_a_template_that_writes_the_date_is_told(tiny, shared_data):
    path = shared_data / "chat-templates" / "trl" / "llama3_2.jinja"
    _, report = load_examples([pair(STRUCTURES["one turn"])], tiny, chat_template=path)
    assert any("today's date" in w for w in report.warnings)


def test_mistral_ids_equal_mistral_common(mistral, shared_data):
    """Every turn's prompt and answer are the ids that Mistral's own code gives."""
    folder = shared_data / "tok-mistral"
    messages = json.loads((folder / "samples" / "no_tools" / "sample.json").read_text())["messages"]
    golden = json.loads((folder / "samples" / "no_tools" / "tokens_v1.json").read_text())["tokens"]
    template = folder / "chat_templates" / "v1_spm.jinja"
    rows = [{"messages": messages[:-1]}, {"messages": [*messages, assistant("You are welcome.")]}]
    examples, _ = load_examples(rows, mistral, layout="single", chat_template=template, turns="all")
    assert len(examples) == 7
    for example in examples[:6]:
        ids = [*example.prompt.tolist(), *example.completions[0].tolist()]
        assert ids == golden[: len(ids)]
    assert examples[6].prompt.tolist() == golden
