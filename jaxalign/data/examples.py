"""The whole way from the user's data to checked, tokenised examples, before any weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxalign.data.chat import ChatTemplate, RenderedRecord, load_chat_template, render_record
from jaxalign.data.contract import DataReport, OnBad, Problems, RowProblem, row_list
from jaxalign.data.formats import check_columns, normalise
from jaxalign.data.records import Example, ExampleSet, Record, Where, split_holdout
from jaxalign.data.sources import Source, read_rows
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
from jaxalign.errors import ConfigError, DataError

__all__ = ["DataReport", "Example", "ExampleSet", "load_examples", "split_holdout"]

LAYOUTS = {"single": 1, "paired": 2, "unpaired": 1}
"""Completions of an example, by layout."""


def load_examples(
    source: Source,
    tokenizer: Any,
    *,
    layout: str = "paired",
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    turns: Literal["last", "all"] = "last",
    chat_template: str | Path | None = None,
    tokenization: Tokenization = "separate",
    special_tokens: Literal["reject", "allow"] = "reject",
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    truncation: Truncation = "cut",
    on_bad: OnBad = "strict",
    tolerance: float = 0.01,
    one_class: Literal["reject", "allow"] = "reject",
    vocabulary: int | None = None,
    max_positions: int | None = None,
) -> tuple[ExampleSet, DataReport]:
    """Read, check, render, tokenise and cut all rows.

    Args:
      source: a path (JSONL, JSON, Parquet, also .gz), glob, folder, ``datasets`` name, several of these, or rows.
      tokenizer: a Hugging Face tokenizer.
      layout: ``paired`` (chosen, rejected), ``single`` (supervised; of pairs the chosen answer), or ``unpaired``
        (one answer with the column ``desirable``; a pair becomes two examples).
      split: of a ``datasets`` name.
      config: of a ``datasets`` name.
      columns: our column name -> the user's: ``{"prompt": "question"}``.
      turns: which assistant turns of supervised conversations become examples.
      chat_template: path, text, or ``chatml``; None = the tokenizer's own.
      tokenization: see `jaxalign.data.tokenization`.
      special_tokens: whether control tokens written out in the user's text are a problem, or meant.
      max_length: tokens of prompt plus completion. None = nothing is cut.
      max_prompt_length: tokens. None = at least half of `max_length` remains of a prompt that must be cut.
      max_completion_length: tokens.
      truncation: what happens to an example that does not fit: ``cut`` it, ``drop`` it (counted), or ``error``: it is
        a problem like the others.
      on_bad: ``strict`` stops with every problem, ``drop`` leaves bad rows out and counts them by reason.
      tolerance: share of rows that strict mode leaves out for each of the reasons that published sets hold.
      one_class: whether unpaired data in which all labels are equal is a problem.
      vocabulary: size of the model's vocabulary; ids beyond are a problem.
      max_positions: longest sequence that the model knows; longer ones after cutting are a problem.

    Returns:
      The examples in the order of the rows, and what became of the rows.

    Raises:
      DataError: with a line for every problem.
      ConfigError: an option has no such value.
    """
    _check_options(
        layout=(layout, LAYOUTS),
        turns=(turns, ("last", "all")),
        tokenization=(tokenization, ("separate", "joint")),
        special_tokens=(special_tokens, ("reject", "allow")),
        truncation=(truncation, ("cut", "error", "drop")),
        on_bad=(on_bad, ("strict", "drop")),
        one_class=(one_class, ("reject", "allow")),
    )
    check_columns(columns or {})
    view = TokenizerView.of(tokenizer)
    template = load_chat_template(tokenizer, chat_template)
    read = read_rows(source, split=split, config=config)
    state = _Progress(Problems(on_bad, tolerance))

    texts = []
    for where, row in read.rows:
        try:
            records = normalise(row, where, columns=columns, turns=turns)
            state.shapes[records[0].shape] += 1
            for record in records:
                for part in _to_layout(record, layout, state.notes):
                    texts.append((part, _render(part, template, view, special_tokens, state)))
                state.notes.update(record.notes)
        except RowProblem as problem:
            state.problems.add(where, problem)
    kept = _tokenise(texts, view, tokenization, state)
    limits = Limits(max_length, max_prompt_length, max_completion_length)
    examples = _cut(kept, view, limits, truncation, state, vocabulary, max_positions)
    return _finish(examples, read.files, len(read.rows), layout, one_class, template, view, state)


@dataclass(eq=False)
class _Progress:
    """Counts on the way."""

    problems: Problems
    shapes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    truncation: Counter[str] = field(default_factory=Counter)
    terminators: Counter[str] = field(default_factory=Counter)
    too_long: list[Where] = field(default_factory=list)
    duplicates: list[Where] = field(default_factory=list)
    boundary: dict[str, Any] = field(default_factory=dict)


def _check_options(**options: tuple[str, Any]) -> None:
    problems = [
        f"data.{name}: {value!r} (expected one of {', '.join(known)})"
        for name, (value, known) in options.items()
        if value not in known
    ]
    if problems:
        raise ConfigError(problems)


def _to_layout(record: Record, layout: str, notes: Counter[str]) -> list[Record]:
    """The record as the layout wants it; two for a pair in the unpaired layout, none for an undesirable answer."""
    pair = len(record.completions) == 2
    if layout == "paired":
        if not pair:
            raise RowProblem("missing column", f"no 'chosen' and 'rejected' in a row of the shape {record.shape}")
        return [record]
    if layout == "single":
        if pair:
            return [_with(record, record.completions[0], None)]
        if record.label is False:
            notes["undesirable answer, not used for supervised training"] += 1
            return []
        return [record]
    if pair:
        notes["pair, made two unpaired examples"] += 1
        return [_with(record, record.completions[0], True), _with(record, record.completions[1], False)]
    if record.label is None:
        raise RowProblem("missing column", f"no 'label' in a row of the shape {record.shape}")
    return [record]


def _with(record: Record, completion: Any, label: bool | None) -> Record:
    return Record(
        record.where, record.shape, record.prompt, (completion,), label, record.tools, record.template_arguments
    )


def _render(
    record: Record, template: ChatTemplate | None, view: TokenizerView, special_tokens: str, state: _Progress
) -> RenderedRecord:
    if special_tokens == "reject":
        for text in (record.prompt, *record.completions):
            for said in [text] if isinstance(text, str) else [m["content"] for m in text]:
                if found := view.find_special(said):
                    raise RowProblem("special token in text", f"the text holds the control token {found!r}")
    rendered = render_record(record, template, view.end_tokens)
    state.notes["tools that the chat template does not show"] += rendered.dropped_tools
    if not rendered.chat and rendered.prompt and not rendered.prompt[-1].isspace():
        joined = not any(c[:1].isspace() for c in rendered.completions)
        state.notes["prompt and answer joined without white space"] += joined
    return rendered


@dataclass(frozen=True, eq=False)
class _Tokenised:
    record: Record
    prompt: Ids
    completions: list[Ids]


def _tokenise(
    texts: list[tuple[Record, RenderedRecord]], view: TokenizerView, tokenization: Tokenization, state: _Progress
) -> list[_Tokenised]:
    prompts = [r.prompt for _, r in texts]
    completions = [r.completions for _, r in texts]
    make = tokenize_separately if tokenization == "separate" else tokenize_jointly
    prompt_ids, completion_ids = make(view, prompts, completions)
    differ = count_boundary_differences(view, prompts, completions)
    state.boundary = {"policy": tokenization, "differ": differ, "completions": sum(map(len, completions))}
    result, seen = [], set()
    for (record, rendered), prompt, answers in zip(texts, prompt_ids, completion_ids, strict=True):
        try:
            prompt = _complete_prompt(prompt, answers, record, rendered, view, state)
            answers = [_terminate(a, e, view, state) for a, e in zip(answers, rendered.ended, strict=True)]
            if len(answers) == 2 and answers[0] == answers[1]:
                raise RowProblem("identical pair", "'chosen' and 'rejected' have the same tokens")
        except RowProblem as problem:
            state.problems.add(record.where, problem)
            continue
        key = hash((tuple(prompt), *map(tuple, answers), record.label))
        if key in seen:
            state.duplicates.append(record.where)
        seen.add(key)
        result.append(_Tokenised(record, prompt, answers))
    return result


def _complete_prompt(
    prompt: Ids, answers: list[Ids], record: Record, rendered: RenderedRecord, view: TokenizerView, state: _Progress
) -> Ids:
    """The prompt with its one BOS. Moves a text's first token into the prompt where there is no BOS."""
    bos = view.bos
    if not rendered.chat and view.adds_bos:
        prompt = [bos, *prompt]  # type: ignore[list-item]
    while bos is not None and prompt[:2] == [bos, bos]:
        prompt = prompt[1:]
        state.notes["doubled BOS, one removed"] += 1
    inside = bos is not None and bos != view.eos and (bos in prompt[1:] or any(bos in a for a in answers))
    state.notes["BOS inside the text"] += inside
    if prompt:
        empty = not rendered.chat and not rendered.prompt and record.shape != "text"
        state.notes["empty prompt, BOS alone"] += empty
        return prompt
    if record.shape == "text" and bos is not None:
        return [bos]
    if record.shape == "text" and len(answers[0]) > 1:
        return [answers[0].pop(0)]
    raise RowProblem("empty prompt", "the prompt has no token (expected text: this tokenizer writes no BOS before it)")


def _terminate(answer: Ids, ended: bool, view: TokenizerView, state: _Progress) -> Ids:
    if not answer:
        raise RowProblem("empty answer", "an answer has no token")
    if not ended and answer[-1] != view.eos:
        answer = [*answer, view.eos]
    state.terminators[str(view.tokenizer.convert_ids_to_tokens(answer[-1]))] += 1
    return answer


def _cut(
    tokenised: list[_Tokenised],
    view: TokenizerView,
    limits: Limits,
    truncation: Truncation,
    state: _Progress,
    vocabulary: int | None,
    max_positions: int | None,
) -> list[tuple[Record, Truncated]]:
    kept, counts = [], state.truncation
    for item in tokenised:
        where = item.record.where
        short = truncate(item.prompt, item.completions, limits, bos=view.bos, cut=truncation == "cut")
        if short.reason == "too long" and truncation == "drop":
            state.too_long.append(where)
            continue
        try:
            _check_ids(short, limits, vocabulary, max_positions)
        except RowProblem as problem:
            state.problems.add(where, problem)
            continue
        counts["prompt_cut"] += short.prompt_cut > 0
        counts["completion_cut"] += any(short.completion_cut)
        counts["eos_lost"] += any(short.eos_lost)
        counts["tokens_cut"] += short.prompt_cut + sum(short.completion_cut)
        kept.append((item.record, short))
    return kept


def _check_ids(short: Truncated, limits: Limits, vocabulary: int | None, max_positions: int | None) -> None:
    if short.reason is not None:
        limit = f"data.max_length {limits.max_length}"
        if limits.max_prompt_length is not None:
            limit += f", data.max_prompt_length {limits.max_prompt_length}"
        details = {
            "too long": f"prompt and answer do not fit ({limit})",
            "prompt too long": f"the prompt leaves no room for an answer ({limit})",
            "answer fully truncated": f"the prompt leaves no token to an answer ({limit})",
            "identical after truncation": f"the two answers are the same after cutting ({limit})",
        }
        raise RowProblem(short.reason, details[short.reason])
    if vocabulary is not None and max(map(max, (short.prompt, *short.completions))) >= vocabulary:
        raise RowProblem(
            "token id outside the vocabulary", f"a token id is not below the model's vocabulary size {vocabulary}"
        )
    if max_positions is not None and len(short.prompt) + max(map(len, short.completions)) > max_positions:
        raise RowProblem(
            "longer than the model's positions",
            f"prompt and answer are longer than the model's {max_positions} positions",
        )


def _finish(
    examples: list[tuple[Record, Truncated]],
    files: Mapping[str, str | None],
    rows: int,
    layout: str,
    one_class: str,
    template: ChatTemplate | None,
    view: TokenizerView,
    state: _Progress,
) -> tuple[ExampleSet, DataReport]:
    problems = state.problems
    problems.check(rows)
    by_reason = problems.by_reason()
    if state.too_long:
        by_reason["too long"] = by_reason.get("too long", []) + state.too_long
    dropped = {reason: len(found) for reason, found in by_reason.items()}
    name = ", ".join(files)
    if not examples:
        counts = ", ".join(f"{reason} {n}" for reason, n in dropped.items()) or "all rows were undesirable answers"
        raise DataError(f"{name}: no example is left of {rows} rows: {counts}")
    columns, labels = {}, {}
    if layout == "unpaired":
        desirable = np.array([r.label for r, _ in examples], bool)
        columns = {"desirable": desirable}
        labels = {"desirable": int(desirable.sum()), "undesirable": int((~desirable).sum())}
        if not all(labels.values()) and one_class == "reject":
            raise DataError(
                f"{name}: one class only: {labels['desirable']} desirable and {labels['undesirable']} undesirable "
                "answers (expected both). Use data.one_class=allow if this is meant"
            )
    result = ExampleSet.from_segments(
        [s for _, short in examples for s in (short.prompt, *short.completions)],
        completions=LAYOUTS[layout],
        columns=columns,
        sources=[str(r.where) for r, _ in examples],
    )
    state.notes["duplicate row"] += len(state.duplicates)
    notes = {note: n for note, n in sorted(state.notes.items()) if n}
    prompt, completion = result.prompt_lengths, result.completion_lengths
    report = DataReport(
        files=files,
        rows=rows,
        examples=len(result),
        layout=layout,
        shapes=dict(state.shapes),
        dropped=dropped,
        dropped_rows={reason: [str(w) for w in found[:10]] for reason, found in by_reason.items()},
        notes=notes,
        labels=labels,
        truncation={k: int(state.truncation[k]) for k in ("prompt_cut", "completion_cut", "eos_lost", "tokens_cut")},
        boundary=state.boundary,
        lengths={
            "prompt mean": round(float(prompt.mean()), 2),
            "prompt max": int(prompt.max()),
            "completion mean": round(float(completion.mean()), 2),
            "completion max": int(completion.max()),
            "longest sequence": int((prompt + completion.max(axis=1)).max()),
        },
        terminators=dict(state.terminators),
        template_hash=template.content_hash if template and any(r.is_chat for r, _ in examples) else None,
        tokenizer_hash=view.content_hash,
        data_hash=result.content_hash,
        warnings=tuple(_warnings(by_reason, rows, len(result), state, view)),
    )
    return result, report


def _warnings(
    by_reason: Mapping[str, list[Where]], rows: int, examples: int, state: _Progress, view: TokenizerView
) -> list[str]:
    """Sentences about what should not go unread."""
    lines = [f"{len(f)} of {rows} rows left out: {reason} (rows {row_list(f)})" for reason, f in by_reason.items()]
    if state.duplicates:
        lines.append(f"{len(state.duplicates)} duplicate rows kept (rows {row_list(state.duplicates)})")
    for count, what in (("prompt_cut", "lose the start of their prompt"), ("eos_lost", "lose the end of an answer")):
        if n := state.truncation[count]:
            lines.append(f"{n} of {examples} examples {what} to data.max_length ({n / examples:.1%})")
    eos = str(view.tokenizer.eos_token)
    if others := {t: n for t, n in state.terminators.items() if t != eos}:
        lines.append(
            f"answers end with {', '.join(others)}, not with the tokenizer's {eos}: generation must stop there"
        )
    if n := state.notes["BOS inside the text"]:
        lines.append(f"{n} examples hold {view.tokenizer.bos_token} after their first token")
    return lines
