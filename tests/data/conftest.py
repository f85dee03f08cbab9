"""Tokenizers: one made here, and those of the shared data."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CORPUS = ["The sky is blue and the grass is green.", "What is two and two? Two and two is four, they say."] * 4


def fast(tokenizer: Tokenizer, **special) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


@pytest.fixture(scope="session")
def tiny() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ``<s>`` before every text, ``</s>`` as end, and ChatML's tokens. No pad, no template."""
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return fast(tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def stories(shared_data: Path):
    """512 pieces, byte fallback, a space before every text: the SentencePiece kind."""
    return AutoTokenizer.from_pretrained(shared_data / "lm-stories260k" / "hf")


@pytest.fixture(scope="session")
def gpt2(shared_data: Path, tmp_path_factory) -> PreTrainedTokenizerFast:
    """GPT-2: BOS, EOS and unknown are one token, and no BOS is written."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("vocab.json", "merges.txt"):
        with gzip.open(shared_data / "tok-gpt2" / f"{name}.gz") as source, open(folder / name, "wb") as target:
            shutil.copyfileobj(source, target)
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return fast(tokenizer, bos_token=end, eos_token=end, unk_token=end)


@pytest.fixture(scope="session")
def deepseek(shared_data: Path, tmp_path_factory):
    """DeepSeek R1: a template that removes what stands before ``</think>``, and hundreds of added tokens."""
    folder = tmp_path_factory.mktemp("deepseek")
    shutil.copyfile(shared_data / "tok-deepseek-r1" / "tokenizer_config.json", folder / "tokenizer_config.json")
    with gzip.open(shared_data / "tok-deepseek-r1" / "tokenizer.json.gz") as source:
        (folder / "tokenizer.json").write_bytes(source.read())
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def mistral(shared_data: Path) -> PreTrainedTokenizerFast:
    """Mistral v1, from its SentencePiece model: the Llama 2 kind of tokenizer."""
    pieces, kinds = sentencepiece_pieces((shared_data / "tok-mistral" / "mistral-v1.model").read_bytes())
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:  # in the order of their scores; pieces of one merge in the order of their parts
        parts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(a, b) for a, b in parts if a in vocabulary and b in vocabulary]
        merges += sorted(known, key=lambda parts: (vocabulary[parts[0]], vocabulary[parts[1]]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    control = [p for p, kind in zip(pieces, kinds, strict=True) if kind in (2, 3)]
    tokenizer.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in control])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sentencepiece_pieces(data: bytes) -> tuple[list[str], list[int]]:
    """The pieces and their kinds (2 unknown, 3 control) of a SentencePiece model, read from the protobuf's bytes."""
    pieces, kinds = [], []
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            inner = dict(fields(value))
            pieces.append(inner[1].decode())
            kinds.append(inner.get(3, 1))
    return pieces, kinds


def fields(data: bytes):
    """``(number, value)`` of the fields of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        yield number, data[at : at + size]
        at += size
