"""Answers damaged by degrees: copies from which more and more of the key phrases are removed (SPO, arXiv 2409.17791).

RAKE (Rose et al. 2010) ranks the phrases of an answer. With C degrees, copy k of C - 1 lacks the best ``k / C`` of
them. The paper has no public code: the shares and which answers are damaged are ours.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from jaxalign.data.records import Messages, Record
from jaxalign.data.stop_words import STOP_WORDS
from jaxalign.errors import ConfigError

Damaged = Literal["chosen", "rejected", "both"]

_SENTENCE = re.compile(r"[.!?\n]+")
_WORD = re.compile("\\w+(?:['\u2019-]\\w+)*|[^\\w\\s]")
_PUNCTUATION = {*string.punctuation, *"\u2018\u2019\u201c\u201d\u2013\u2014\u2026"}


@dataclass(frozen=True, kw_only=True)
class KeyPhrases:
    """Adds damaged copies to pairs.

    Attributes:
      degrees: C; a whole answer has degree 0, its copies 1 to C - 1.
      sides: which answers are damaged.

    Raises:
      ConfigError: on the first use, if the package ``rake-nltk`` is not installed.
    """

    degrees: int = 3
    sides: Damaged = "both"

    def __call__(self, record: Record) -> Record:
        """The pair with its damaged copies behind it, which are not scored, and the column ``degrees``.

        ``degrees`` holds one number for the chosen and one for the rejected answer (0, or -1 where that side is not to
        be damaged), and then one for each of the C - 1 copies of each damaged side (-1 where there is nothing more to
        remove; such a copy is not among the record's completions).
        """
        sides = {"chosen": (0,), "rejected": (1,), "both": (0, 1)}[self.sides]
        degrees = [0 if side in sides else -1 for side in range(2)]
        copies: list[str | Messages] = []
        for side in sides:
            for degree, copy in enumerate(self.damage(_said(record.completions[side])), 1):
                degrees.append(-1 if copy is None else degree)
                if copy is not None:
                    copies.append(_saying(record.completions[side], copy))
        return replace(
            record,
            completions=(*record.completions, *copies),
            columns={**record.columns, "degrees": tuple(degrees)},
            unscored=len(copies),
        )

    def damage(self, text: str) -> list[str | None]:
        """The C - 1 damaged copies, None where a copy would not differ from the one before or would say nothing."""
        phrases = self.phrases(text)
        copies: list[str | None] = []
        last = text
        for degree in range(1, self.degrees):
            removed = (2 * len(phrases) * degree + self.degrees) // (2 * self.degrees)  # rounded half up
            copy = without(text, phrases[:removed])
            copies.append(copy if copy != last and re.search(r"\w", copy) else None)
            last = copy
        return copies

    def phrases(self, text: str) -> list[str]:
        """The key phrases of the text, the highest score first; in lower case, their words joined by spaces."""
        self._rake.extract_keywords_from_text(text)
        return self._rake.get_ranked_phrases()

    @cached_property
    def _rake(self) -> Any:
        try:
            from rake_nltk import Rake
        except ImportError as error:
            raise ConfigError(
                "the method's damaged answers need the package rake-nltk. Install it with: pip install 'jaxalign[rake]'"
            ) from error
        return Rake(  # everything given, so that NLTK downloads nothing
            stopwords=set(STOP_WORDS),
            punctuations=_PUNCTUATION,
            sentence_tokenizer=lambda text: [s for s in _SENTENCE.split(text) if s.strip()],
            word_tokenizer=_WORD.findall,
            include_repeated_phrases=False,
        )


def without(text: str, phrases: Sequence[str]) -> str:
    """The text without these phrases wherever they stand as whole words, and without the space that each leaves."""
    if not phrases:
        return text
    longest_first = sorted(phrases, key=lambda p: (-len(p), p))
    forms = [r"\s+".join(map(re.escape, phrase.split())) for phrase in longest_first]
    pattern = re.compile(rf"(?<![\w])(?:{'|'.join(forms)})(?![\w])", re.IGNORECASE)
    parts, end = [], 0
    for found in pattern.finditer(text):
        start = found.start()
        before = text[end:start]
        kept = before.rstrip(" \t")
        at_line_start = not kept or kept.endswith("\n")
        at_line_start = at_line_start and (end == 0 or bool(kept) or parts[-1].endswith("\n"))
        parts.append(before if at_line_start else kept)
        end = found.end()
        if at_line_start:
            end += len(text[end:]) - len(text[end:].lstrip(" \t"))
    parts.append(text[end:])
    return "".join(parts)


def _said(answer: str | Messages) -> str:
    return answer if isinstance(answer, str) else answer[-1]["content"]


def _saying(answer: str | Messages, text: str) -> str | Messages:
    return text if isinstance(answer, str) else [*answer[:-1], {**answer[-1], "content": text}]
