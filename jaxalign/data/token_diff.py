"""Which tokens of a pair's answers the other answer does not have (BMC, arXiv 2408.07471)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import SequenceMatcher

import numpy as np

from jaxalign.data.encoding import Marks
from jaxalign.data.stop_words import STOP_WORDS
from jaxalign.data.tokenization import TokenizerView


def mark_differences(
    chosen: Sequence[int], rejected: Sequence[int], never: Collection[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Bool masks ``[C_0]`` and ``[C_1]``: True where ``difflib`` finds no counterpart in the other answer.

    The chosen answer's tokens are marked in its ``replace`` and ``insert`` blocks, the rejected one's in ``replace``
    and ``delete``. The rule that takes frequent tokens of long sequences for junk is off. The authors' code compares
    whole sequences; the prompt, which both share, is left out here.

    Args:
      chosen: token ids.
      rejected: token ids.
      never: ids that are not marked.
    """
    first, second = np.ones(len(chosen), bool), np.ones(len(rejected), bool)
    for block in SequenceMatcher(None, list(rejected), list(chosen), autojunk=False).get_matching_blocks():
        second[block.a : block.a + block.size] = False
        first[block.b : block.b + block.size] = False
    spared = np.fromiter(never, np.int64)
    return first & ~np.isin(chosen, spared), second & ~np.isin(rejected, spared)


def token_marks(view: TokenizerView, *, stop_words: bool = False) -> Marks:
    """`mark_differences` for a tokenizer.

    Args:
      view: of the tokenizer.
      stop_words: whether tokens that are a whole stop word are marked, too. The authors do not mark them.
    """
    never = frozenset() if stop_words else stop_word_ids(view)
    return lambda chosen, rejected: mark_differences(chosen, rejected, never)


def stop_word_ids(view: TokenizerView) -> frozenset[int]:
    """Ids of the tokens that are a stop word by themselves, with and without a space before it or a capital."""
    forms = [form for word in sorted(STOP_WORDS) for form in (word, word.capitalize())]
    alone = view.encode([*forms, *(f" {form}" for form in forms)])
    after = view.encode_after(["a"] * len(forms), forms)
    return frozenset(ids[0] for ids in (*alone, *after) if len(ids) == 1)
