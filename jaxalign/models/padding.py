"""The padding token of an exported reward model, by which transformers finds a sequence's last token."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import ModelError
from jaxalign.models.decoder_config import DecoderConfig


def padding_token(config: DecoderConfig, tokenizer: Any, end_tokens: Sequence[int] = ()) -> int:
    """The id that pads the inputs of a reward model, one that no completion ends with.

    transformers reads a sequence's score at its rightmost token that is not padding. Where padding is the token that
    ends a completion (many tokenizers pad with end-of-sequence), that would be the token before the end, another one
    than the model was trained on. So the padding token of the configuration or of the tokenizer is kept unless it is
    such a token; otherwise another special token takes its place: unknown, beginning of sequence, or any other.

    Args:
      config: the architecture, with the special ids of the configuration that it was read from.
      tokenizer: a transformers tokenizer; None, or a folder, knows no ids.
      end_tokens: with which completions end, besides the configuration's and the tokenizer's end of sequence.

    Raises:
      ModelError: there is no such token.
    """
    own = None if tokenizer is None or isinstance(tokenizer, str | Path) else tokenizer
    ends = {*_ids(config.source.config.get("eos_token_id")), *_ids(config.source.generation.get("eos_token_id"))}
    ends |= {*map(int, end_tokens), *_ids(getattr(own, "eos_token_id", None))}
    candidates = [config.source.config.get("pad_token_id")] if own is None else []
    names = ("pad_token_id", "unk_token_id", "bos_token_id", "all_special_ids")
    candidates += [token for name in names for token in _ids(getattr(own, name, None))]
    for token in candidates:
        if token is not None and token not in ends and 0 <= token < config.vocab_size:
            return int(token)
    raise ModelError(
        "a reward model needs a padding token that ends no completion, for transformers to find a sequence's last "
        f"token, but every special token known here does ({', '.join(map(str, sorted(ends))) or 'none is known'}). "
        + ("Give save_pretrained the tokenizer." if own is None else "Add one: tokenizer.add_special_tokens.")
    )


def with_padding(tokenizer: Any, token: int) -> Any:
    """The tokenizer with that padding token; itself if it has it, else a copy."""
    if tokenizer is None or isinstance(tokenizer, str | Path) or tokenizer.pad_token_id == token:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
    return tokenizer


def _ids(value: Any) -> Iterable[int]:
    if value is None:
        return ()
    return [value] if isinstance(value, int) else [int(item) for item in value]
