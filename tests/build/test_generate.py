"""Prompts and stop tokens of `build.generate`, which are those of training, also after an export."""

from __future__ import annotations

import functools
import importlib

import jax
import pytest
from transformers import GenerationConfig

from jaxalign import build
from jaxalign.build.data import export_tokenizer
from jaxalign.build.generate import stop_tokens
from jaxalign.data.prompts import encode_prompts, end_token_ids
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import DataError
from jaxalign.models.huggingface import load_policy, save_pretrained
from jaxalign.training.mesh import make_mesh
from tests.build.conftest import make_tokenizer, write_model

module = importlib.import_module("jaxalign.build.generate")  # the package holds the function of that name
QUESTION = [{"role": "user", "content": "What about the river?"}]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(module, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))


@pytest.fixture
def sampled(monkeypatch):
    """What the engine was given; nothing is sampled, and no weights are read."""
    calls = []

    def sample(policy, variables, prompts, **options):
        calls.append((prompts, options))
        return [[] for _ in prompts]

    monkeypatch.setattr(module, "sample_tokens", sample)
    return calls


def test_texts_and_conversations_start_as_in_training(world, sampled):
    tokenizer = load_tokenizer(world.chat)
    build.generate(str(world.chat), ["The river", QUESTION], dtype="float32")
    build.generate(str(world.chat), [QUESTION[0]["content"], QUESTION], chat=True, dtype="float32")
    chat = tokenizer.encode(f"<s><|user|>\n{QUESTION[0]['content']}<|assistant|>\n", add_special_tokens=False)
    plain = [tokenizer.bos_token_id, *tokenizer.encode("The river", add_special_tokens=False)]
    assert [prompts for prompts, _ in sampled] == [[plain, chat], [chat, chat]]


def test_a_refused_prompt_is_told_by_its_place(world, monkeypatch):
    def strict(folder):
        tokenizer = load_tokenizer(folder)
        tokenizer.chat_template = "{{ raise_exception('no system role') }}"
        return tokenizer

    with pytest.raises(DataError, match="prompt 2: it is a conversation, and the tokenizer has no chat template"):
        build.generate(str(world.model), ["The river", QUESTION])
    monkeypatch.setattr(module, "load_tokenizer", strict)
    with pytest.raises(DataError, match=r"prompt 2: the chat template of the tokenizer refuses .* no system role"):
        build.generate(str(world.model), ["The river", QUESTION])


def test_stop_tokens_are_those_of_tokenizer_template_and_generation_config(world):
    tokenizer = load_tokenizer(world.chat)
    end = tokenizer.eos_token_id
    assert stop_tokens(tokenizer, {}) == (end,)
    assert stop_tokens(tokenizer, {"eos_token_id": 7}) == (end, 7)
    tokenizer.add_tokens(["<turn>"])
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}<turn>{% endfor %}"
    assert stop_tokens(tokenizer, {"eos_token_id": [7, 9]}) == (end, 7, 9, tokenizer.convert_tokens_to_ids("<turn>"))


def test_a_template_of_the_run_is_exported_with_its_end_token(configure, sampled, tmp_path):
    tokenizer = make_tokenizer(280)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    start = write_model(tmp_path / "start", tokenizer, seed=1, width=16)
    given = load_tokenizer(start)
    ends = (given.eos_token_id, given.convert_tokens_to_ids("<|im_end|>"))
    exported = export_tokenizer(configure(model__path=start, model__chat_template="chatml"), given)
    assert given.chat_template is None
    assert export_tokenizer(configure(model__path=start), given) is given
    policy, variables = load_policy(start, dtype="float32")
    save_pretrained(policy, variables, tmp_path / "out", tokenizer=exported, end_tokens=end_token_ids(exported))
    build.generate(str(tmp_path / "out"), [QUESTION], dtype="float32")
    ((prompts, options),) = sampled
    assert prompts == encode_prompts([QUESTION], given, chat_template="chatml")
    assert options["stop_tokens"] == ends
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == list(ends)
