"""How tokens are named in tables: with the space that they begin with, in both ways to write it."""

from __future__ import annotations

from pathlib import Path

from jaxalign.build.analyse import _shown
from jaxalign.data.tokenizer import load_tokenizer
from tests.build.conftest import make_tokenizer


def test_sentencepiece(shared_data: Path):
    tokenizer = load_tokenizer(shared_data / "lm-stories260k" / "hf")
    wanted = {"▁the": " the", "k": "k", "</s>": "</s>", "<0x0A>": "<0x0A>"}
    assert {name: _shown(tokenizer.convert_tokens_to_ids(name), tokenizer) for name in wanted} == wanted


def test_bytes():
    """Half a character has the name of its byte."""
    tokenizer = make_tokenizer(320)
    ids = tokenizer(" riverk", add_special_tokens=False)["input_ids"]
    names = [_shown(i, tokenizer) for i in ids]
    assert "".join(names) == " riverk"
    assert names[0].startswith(" r")
    assert _shown(tokenizer("é", add_special_tokens=False)["input_ids"][0], tokenizer) == "Ã"
