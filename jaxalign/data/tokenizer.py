"""Opening a tokenizer."""

from __future__ import annotations

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
