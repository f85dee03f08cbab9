"""From rendered texts to the checked, cut token ids of examples, a few thousand rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxalign.data.chat import RenderedRecord
from jaxalign.data.contract import Problems, RowProblem
from jaxalign.data.ranked import IDENTICAL
from jaxalign.data.records import Record, Where
from jaxalign.data.tokenization import (
    Ids,
    Limits,
    Tokenization,
    TokenizerView,
    Truncated,
    Truncation,
    common_prefix,
    count_boundary_differences,
    tokenize_jointly,
    tokenize_separately,
    truncate,
)

Marks = Callable[[Sequence[int], Sequence[int]], tuple[np.ndarray, np.ndarray]]
"""From the ids of the chosen and the rejected answer to which of their tokens the other does not have."""

PER_COMPLETION = ("scores", "win_probabilities", "reference_sums")
"""Columns with one number a completion."""

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
      silent: sound rows without an example, by the note that says why.
    """

    problems: Problems
    shapes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    truncation: Counter[str] = field(default_factory=Counter)
    terminators: Counter[int] = field(default_factory=Counter)
    boundary: Counter[str] = field(default_factory=Counter)
    too_long: list[Where] = field(default_factory=list)
    duplicates: list[Where] = field(default_factory=list)
    silent: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, eq=False)
class Encoded:
    """An example's ids, and the record they are of.

    Attributes:
      where: the row.
      prompt: int32.
      completions: int32 each.
      columns: by name; one value a token is a tuple of arrays.
      unscored: further completions, int32 each.
    """

    where: Where
    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    columns: Mapping[str, Any]
    unscored: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """How texts become ids; the arguments are those of `load_examples`.

    Attributes:
      marks: marks the tokens in which the two answers of a pair differ; None = nothing is marked.
    """

    view: TokenizerView
    tokenization: Tokenization
    limits: Limits
    truncation: Truncation
    vocabulary: int | None
    max_positions: int | None
    marks: Marks | None = None

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
        ends = self._step_ends(record, rendered, prompt, answers)
        prompt = _complete_prompt(prompt, answers, record, rendered, self.view, notes)
        answers = [_terminate(a, e, self.view) for a, e in zip(answers, rendered.ended, strict=True)]
        pair = len(answers) - record.unscored == 2 and not record.ranked
        if pair and answers[0] == answers[1]:
            raise RowProblem("identical pair", "'chosen' and 'rejected' have the same tokens")
        key = hash((tuple(prompt), *map(tuple, answers), record.label))
        short = truncate(prompt, answers, self.limits, bos=self.view.bos, cut=self.truncation == "cut", pair=pair)
        if short.reason == "too long" and self.truncation == "drop":
            progress.too_long.append(record.where)
            return None
        self._check(short)
        encoded = self._finished(record, answers, short, ends, notes)
        if key in seen:
            progress.duplicates.append(record.where)
        seen.add(key)
        scored = slice(0, len(answers) - record.unscored)
        progress.notes.update(notes)
        progress.terminators.update([answer[-1] for answer in answers[scored]])
        progress.truncation["prompt_cut"] += short.prompt_cut > 0
        progress.truncation["completion_cut"] += any(short.completion_cut[scored])
        progress.truncation["eos_lost"] += any(short.eos_lost[scored])
        progress.truncation["tokens_cut"] += short.prompt_cut + sum(short.completion_cut[scored])
        return encoded

    def _finished(
        self, record: Record, whole: list[Ids], short: Truncated, ends: dict[int, int], notes: Counter[str]
    ) -> Encoded:
        """The cut ids with their columns. A ranking loses answers that are no longer different."""
        scored = len(whole) - record.unscored
        kept = list(range(scored))
        if record.ranked:
            first = {tuple(ids): i for i, ids in reversed(list(enumerate(short.completions)))}
            kept = sorted(first.values())
            notes[IDENTICAL] += scored - len(kept)
            if len(kept) < 2:
                cut = any(short.completion_cut)
                raise RowProblem("identical after truncation" if cut else "identical pair", "all answers are the same")
        ids = [np.asarray(c, np.int32) for c in short.completions]
        columns: dict[str, Any] = {} if record.label is None else {"desirable": np.bool_(record.label)}
        for name, value in record.columns.items():
            if name == "token_weights":
                columns[name] = tuple(_weights(value[k], whole[k], len(ids[k])) for k in kept)
            elif name == "step_labels":
                columns[name] = (_step_labels(ends, len(ids[0])),)
                notes["label of a step that is cut off"] += sum(place >= len(ids[0]) for place in ends)
            elif name == "degrees":
                columns[name], unscored = _degrees(value, ids, scored)
                notes["damaged copy of an answer"] += int((columns[name] > 0).sum())
                notes["answer that cannot be damaged"] += value[:scored].count(0) - int((columns[name] == 0).sum())
            elif name in PER_COMPLETION:
                columns[name] = np.asarray([value[k] for k in kept], np.float32)
            else:
                columns[name] = np.bool_(value) if isinstance(value, bool) else np.float32(value)
        if self.marks is not None:
            columns["marked"] = self.marks(short.completions[0], short.completions[1])
        if "degrees" not in record.columns:
            unscored = tuple(ids[scored:])
        prompt = np.asarray(short.prompt, np.int32)
        return Encoded(record.where, prompt, tuple(ids[k] for k in kept), columns, unscored)

    def _step_ends(self, record: Record, rendered: RenderedRecord, prompt: Ids, answers: list[Ids]) -> dict[int, int]:
        """Index of the token of the answer in which each step ends, and the step's label."""
        steps = record.columns.get("step_labels")
        if steps is None:
            return {}
        answer, text = record.completions[0], rendered.completions[0]
        said = answer if isinstance(answer, str) else answer[-1]["content"]
        offset = text.find(said.strip()) - (len(said) - len(said.lstrip()))
        befores = [text[: end + offset] for end, _ in steps]
        if self.tokenization == "joint":
            found = [ids[len(prompt) :] for ids in self.view.encode([rendered.prompt + b for b in befores])]
        else:
            found = self.view.encode_after([rendered.prompt] * len(befores), befores)
        ends: dict[int, int] = {}
        for ids, (_, label) in zip(found, steps, strict=True):
            # Where the whole text goes on with the same tokens, the step ends with the last of them. Otherwise its
            # end is merged with what follows into the first token that differs.
            same = common_prefix(ids, answers[0])
            place = same - 1 if same == len(ids) else same
            if place in ends or place < 0:
                raise RowProblem("step without a token", "a step has no token of its own")
            ends[place] = label
        return ends

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


def _weights(values: list[float], whole: Ids, kept: int) -> np.ndarray:
    if len(values) != len(whole):
        raise RowProblem(
            "wrong type",
            f"token_weights: {len(values)} weights for an answer of {len(whole)} tokens (expected one for each token "
            "of this tokenizer, the terminator included)",
        )
    return np.asarray(values[:kept], np.float32)


def _step_labels(ends: dict[int, int], kept: int) -> np.ndarray:
    labels = np.full(kept, -1, np.int32)
    for place, label in ends.items():
        if place < kept:
            labels[place] = label
    if (labels < 0).all():
        raise RowProblem("answer fully truncated", "no labelled step is left of the answer")
    return labels


def _degrees(degrees: tuple[int, ...], ids: list[np.ndarray], scored: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Degrees of all completions, -1 where there is none, and the damaged completions, empty where there is none.

    A copy with the same tokens as an answer of the pair, or as the copy before it (cut off behind the damage, say), is
    none, and an answer without any copy is compared with nothing.
    """
    rest = iter(ids[scored:])
    found, unscored = list(degrees), []
    sides = [side for side in range(scored) if degrees[side] == 0]
    copies = (len(degrees) - scored) // len(sides)
    for n, side in enumerate(sides):
        seen = {answer.tobytes() for answer in ids[:scored]}
        places = range(scored + n * copies, scored + (n + 1) * copies)
        for i in places:
            damaged = next(rest) if degrees[i] >= 0 else ids[0][:0]
            if damaged.tobytes() in seen:
                found[i], damaged = -1, damaged[:0]
            seen.add(damaged.tobytes())
            unscored.append(damaged)
        if all(found[i] < 0 for i in places):
            found[side] = -1
    return np.asarray(found, np.int32), tuple(unscored)


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
