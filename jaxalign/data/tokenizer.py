"""Opening a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError


def load_tokenizer(folder: str | Path) -> Any:
    """The Hugging Face tokenizer in a folder.

    Raises:
      DataError: there is none, it cannot be read, or it has no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"tokenizer: {str(folder)!r} holds none that can be read ({reason}). Expected a folder with "
            "tokenizer.json, or set model.tokenizer."
        ) from error
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"tokenizer: the one in {str(folder)!r} has no eos_token, but every completion ends with one. Set it in "
            "tokenizer_config.json."
        )
    return tokenizer


def token_texts(ids: Sequence[int], tokenizer: Any) -> Iterator[str]:
    """What each token adds to the text before it: alone, many a token would lose the space that it starts with.

    Of a character that several tokens share, the last one shows it and those before have their name in the vocabulary.
    """
    for i, token in enumerate(ids):
        before = list(ids[max(0, i - 4) : i])
        text, whole = tokenizer.decode(before), tokenizer.decode([*before, token])
        # What is no whole character yet, or was cut off on the left, is decoded as U+FFFD.
        text, whole = text.lstrip("\ufffd").rstrip("\ufffd"), whole.lstrip("\ufffd")
        if whole and whole.startswith(text) and "\ufffd" not in whole:
            yield whole.removeprefix(text)
        else:
            yield str(tokenizer.convert_ids_to_tokens(token))
