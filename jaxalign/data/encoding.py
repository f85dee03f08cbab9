"""From rendered texts to the checked, cut token ids of examples, a few thousand rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxalign.data.chat import RenderedRecord
from jaxalign.data.contract import Problems, RowProblem
from jaxalign.data.records import Record, Where
from jaxalign.data.tokenization import (
    Ids,
    Limits,
    Tokenization,
    TokenizerView,
    Truncated,
    Truncation,
    count_boundary_differences,
    tokenize_jointly,
    tokenize_separately,
    truncate,
)

_CHUNK = 2048  # Python ids are nine times as large as int32 ones: never hold them for the whole set.


@dataclass(eq=False)
class Progress:
    """What was met on the way from rows to examples.

    Attributes:
      problems: rows that break the contract.
      shapes: rows by recognised shape.
      notes: what was changed or noticed without dropping.
      truncation: examples and tokens cut.
      terminators: completions by their last token.
      boundary: ``differ`` and ``completions``, see `count_boundary_differences`.
      too_long: rows dropped by ``truncation="drop"``.
      duplicates: rows equal to an earlier one.
    """

    problems: Problems
    shapes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    truncation: Counter[str] = field(default_factory=Counter)
    terminators: Counter[int] = field(default_factory=Counter)
    boundary: Counter[str] = field(default_factory=Counter)
    too_long: list[Where] = field(default_factory=list)
    duplicates: list[Where] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Encoded:
    """An example's ids, and the record they are of.

    Attributes:
      where: the row.
      label: of an unpaired example.
      segments: prompt and completions, int32 each.
    """

    where: Where
    label: bool | None
    segments: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """How texts become ids; the arguments are those of `load_examples`."""

    view: TokenizerView
    tokenization: Tokenization
    limits: Limits
    truncation: Truncation
    vocabulary: int | None
    max_positions: int | None

    def __call__(self, texts: Sequence[tuple[Record, RenderedRecord]], progress: Progress) -> Iterator[Encoded]:
        """The examples that satisfy the contract; the others are noted in `progress`."""
        seen: set[int] = set()
        for start in range(0, len(texts), _CHUNK):
            yield from self._chunk(texts[start : start + _CHUNK], progress, seen)

    def _chunk(
        self, texts: Sequence[tuple[Record, RenderedRecord]], progress: Progress, seen: set[int]
    ) -> Iterator[Encoded]:
        prompts = [r.prompt for _, r in texts]
        completions = [r.completions for _, r in texts]
        make = tokenize_separately if self.tokenization == "separate" else tokenize_jointly
        prompt_ids, completion_ids = make(self.view, prompts, completions)
        progress.boundary["differ"] += count_boundary_differences(self.view, prompts, completions)
        progress.boundary["completions"] += sum(map(len, completions))
        for (record, rendered), prompt, answers in zip(texts, prompt_ids, completion_ids, strict=True):
            try:
                encoded = self._example(record, rendered, prompt, answers, progress, seen)
            except RowProblem as problem:
                progress.problems.add(record.where, problem)
                continue
            if encoded is not None:
                yield encoded

    def _example(
        self,
        record: Record,
        rendered: RenderedRecord,
        prompt: Ids,
        answers: list[Ids],
        progress: Progress,
        seen: set[int],
    ) -> Encoded | None:
        notes: Counter[str] = Counter()
        prompt = _complete_prompt(prompt, answers, record, rendered, self.view, notes)
        answers = [_terminate(a, e, self.view) for a, e in zip(answers, rendered.ended, strict=True)]
        if len(answers) == 2 and answers[0] == answers[1]:
            raise RowProblem("identical pair", "'chosen' and 'rejected' have the same tokens")
        key = hash((tuple(prompt), *map(tuple, answers), record.label))
        short = truncate(prompt, answers, self.limits, bos=self.view.bos, cut=self.truncation == "cut")
        if short.reason == "too long" and self.truncation == "drop":
            progress.too_long.append(record.where)
            return None
        self._check(short)
        if key in seen:
            progress.duplicates.append(record.where)
        seen.add(key)
        progress.notes.update(notes)
        progress.terminators.update([answer[-1] for answer in answers])
        progress.truncation["prompt_cut"] += short.prompt_cut > 0
        progress.truncation["completion_cut"] += any(short.completion_cut)
        progress.truncation["eos_lost"] += any(short.eos_lost)
        progress.truncation["tokens_cut"] += short.prompt_cut + sum(short.completion_cut)
        segments = tuple(np.asarray(s, np.int32) for s in (short.prompt, *short.completions))
        return Encoded(record.where, record.label, segments)

    def _check(self, short: Truncated) -> None:
        if short.reason is not None:
            raise RowProblem(short.reason, f"{_TRUNCATION[short.reason]} ({_describe(self.limits)})")
        if self.vocabulary is not None and max(map(max, (short.prompt, *short.completions))) >= self.vocabulary:
            raise RowProblem(
                "token id outside the vocabulary",
                f"a token id is not below the model's vocabulary size {self.vocabulary}",
            )
        longest = len(short.prompt) + max(map(len, short.completions))
        if self.max_positions is not None and longest > self.max_positions:
            raise RowProblem(
                "longer than the model's positions",
                f"prompt and answer are longer than the model's {self.max_positions} positions",
            )


_TRUNCATION = {
    "too long": "prompt and answer do not fit",
    "prompt too long": "the prompt is longer than prompt and answer may be",
    "answer fully truncated": "the prompt leaves no token to an answer",
    "identical after truncation": "'chosen' and 'rejected' are the same after cutting",
}


def _describe(limits: Limits) -> str:
    return ", ".join(f"data.{name} {value}" for name, value in vars(limits).items() if value is not None)


def open_prompt(prompt: Ids, view: TokenizerView, *, chat: bool) -> tuple[Ids, bool]:
    """The prompt with one BOS where there is one, and whether there were more at its start.

    Before plain text a BOS stands if the tokenizer writes one; in a conversation, if the template does.
    """
    if view.adds_bos and not chat and view.bos is not None:
        prompt = [view.bos, *prompt]
    copies = next((i for i, token in enumerate(prompt) if token != view.bos), len(prompt))
    return prompt[max(copies - 1, 0) :], copies > 1


def _complete_prompt(
    prompt: Ids,
    answers: list[Ids],
    record: Record,
    rendered: RenderedRecord,
    view: TokenizerView,
    notes: Counter[str],
) -> Ids:
    """The prompt with its one BOS. Moves a text's first token into the prompt where there is no BOS."""
    bos = view.bos
    prompt, doubled = open_prompt(prompt, view, chat=rendered.chat)
    notes["doubled BOS, one removed"] += doubled
    if bos is not None and bos != view.eos and (bos in prompt[1:] or any(bos in a for a in answers)):
        notes[BOS_INSIDE] += 1
    if prompt:
        if not rendered.chat and not rendered.prompt and record.shape != "text":
            notes["empty prompt, BOS alone"] += 1
        return prompt
    if record.shape == "text" and bos is not None:
        return [bos]
    if record.shape == "text" and len(answers[0]) > 1:
        return [answers[0].pop(0)]
    raise RowProblem("empty prompt", "the prompt has no token (expected text: this tokenizer writes no BOS before it)")


BOS_INSIDE = "BOS after the first token"


def _terminate(answer: Ids, ended: bool, view: TokenizerView) -> Ids:
    if not answer:
        raise RowProblem("empty answer", "an answer has no token")
    return answer if ended or answer[-1] == view.eos else [*answer, view.eos]


def terminator_names(progress: Progress, tokenizer: Any) -> dict[str, int]:
    """Completions by the text of the token that ends them, before cutting."""
    return {str(tokenizer.convert_ids_to_tokens(int(t))): n for t, n in progress.terminators.items()}
