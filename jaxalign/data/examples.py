"""The whole way from the user's data to checked, tokenised examples, before any weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxalign.data.chat import ChatTemplate, RenderedRecord, load_chat_template, render_record
from jaxalign.data.columns import check_needs
from jaxalign.data.contract import DataReport, NoExample, OnBad, Problems, RowProblem, row_list
from jaxalign.data.encoding import BOS_INSIDE, PER_COMPLETION, Encoded, Encoder, Progress, terminator_names
from jaxalign.data.formats import check_columns, normalise
from jaxalign.data.key_phrases import Damaged, KeyPhrases
from jaxalign.data.layouts import COMPLETIONS, LayoutRules, PairsPerPrompt, to_layout
from jaxalign.data.records import Example, ExampleSet, Record, Where
from jaxalign.data.sources import Source, SourceRows, read_rows
from jaxalign.data.token_diff import token_marks
from jaxalign.data.tokenization import Limits, Tokenization, TokenizerView, Truncation
from jaxalign.errors import ConfigError, DataError

__all__ = ["DataReport", "Example", "ExampleSet", "load_examples"]

SILENT_SHARE = 0.05
"""Share of sound rows without an example (ties, say) from which the report warns of them."""


def load_examples(
    source: Source,
    tokenizer: Any,
    *,
    layout: str = "paired",
    needs: Collection[str] = (),
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    turns: Literal["last", "all"] = "last",
    pairs_per_prompt: PairsPerPrompt = "extremes",
    max_completions: int | None = None,
    step_separator: str = "\n",
    last_step_only: bool = False,
    degrees: int = 3,
    damaged: Damaged = "both",
    mark_stop_words: bool = False,
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
      layout: ``paired`` (chosen, rejected), ``single`` (supervised; the chosen or the best answer), ``unpaired``
        (one answer with the column ``desirable``; a pair becomes two examples), or ``ranked`` (K answers, the best
        first, with the column ``scores``; empty answers fill up where there are fewer).
      needs: columns that the method reads, see `jaxalign.data.columns`. Others are not carried.
      split: of a ``datasets`` name.
      config: of a ``datasets`` name.
      columns: our column name -> the user's: ``{"prompt": "question"}``.
      turns: which assistant turns of supervised conversations become examples.
      pairs_per_prompt: which pairs a ranking gives: ``extremes``, the best and the worst answer, or ``all`` with
        different scores.
      max_completions: of a ranking; of more, the best and the worst are kept. None = all.
      step_separator: what stands between two steps of an answer that is given in steps.
      last_step_only: of the labels of steps, keep that of the last.
      degrees: C, into how many degrees of damage answers are told apart, see `jaxalign.data.key_phrases`.
      damaged: which answers of a pair are damaged: ``chosen``, ``rejected``, or ``both``.
      mark_stop_words: whether the column ``marked`` also marks tokens that are stop words.
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
        layout=(layout, COMPLETIONS),
        turns=(turns, ("last", "all")),
        pairs_per_prompt=(pairs_per_prompt, ("extremes", "all")),
        damaged=(damaged, ("chosen", "rejected", "both")),
        tokenization=(tokenization, ("separate", "joint")),
        special_tokens=(special_tokens, ("reject", "allow")),
        truncation=(truncation, ("cut", "error", "drop")),
        on_bad=(on_bad, ("strict", "drop")),
        one_class=(one_class, ("reject", "allow")),
    )
    _check_numbers(max_completions=(max_completions, 2), degrees=(degrees, 2))
    check_columns(columns or {})
    check_needs(needs, layout)
    rules = LayoutRules(
        layout=layout, needs=tuple(needs), pairs_per_prompt=pairs_per_prompt, max_completions=max_completions
    )
    damage = KeyPhrases(degrees=degrees, sides=damaged) if "degrees" in needs else None
    view = TokenizerView.of(tokenizer)
    template = load_chat_template(tokenizer, chat_template)
    read = read_rows(source, split=split, config=config)
    progress = Progress(Problems(on_bad, tolerance))

    texts = []
    for where, row in read.rows:
        try:
            records = normalise(
                row,
                where,
                columns=columns,
                turns=turns,
                wanted=rules.wanted,
                step_separator=step_separator,
                last_step_only=last_step_only,
            )
            progress.shapes[records[0].shape] += 1
            nothing: list[str] = []
            parts = _numbered([part for record in records for part in _split(record, rules, progress.notes, nothing)])
            progress.silent.update(nothing[:1] if not parts else ())
            if damage is not None:
                parts = [damage(part) for part in parts]
            texts += [(part, _render(part, template, view, special_tokens, progress)) for part in parts]
            progress.notes.update(note for record in records for note in record.notes)
        except RowProblem as problem:
            progress.problems.add(where, problem)
        except NoExample as found:
            progress.shapes[found.shape] += 1
            progress.notes[found.note] += 1
            progress.silent[found.note] += 1
    encoder = Encoder(
        view=view,
        tokenization=tokenization,
        limits=Limits(max_length, max_prompt_length, max_completion_length),
        truncation=truncation,
        vocabulary=vocabulary,
        max_positions=max_positions,
        marks=token_marks(view, stop_words=mark_stop_words) if "marked" in needs else None,
    )
    examples = list(encoder(texts, progress))
    return _finish(
        examples, read, layout, one_class, tokenization, template if _any_chat(texts) else None, view, progress
    )


def _check_options(**options: tuple[str, Any]) -> None:
    problems = [
        f"data.{name}: {value!r} (expected one of {', '.join(known)})"
        for name, (value, known) in options.items()
        if value not in known
    ]
    if problems:
        raise ConfigError(problems)


def _check_numbers(**options: tuple[int | None, int]) -> None:
    problems = [
        f"data.{name}: got {value}, expected at least {least}"
        for name, (value, least) in options.items()
        if value is not None and value < least
    ]
    if problems:
        raise ConfigError(problems)


def _split(record: Record, rules: LayoutRules, notes: Counter[str], nothing: list[str]) -> list[Record]:
    """The record's examples; none where it holds none for this layout, which is noted, with why in `nothing`."""
    try:
        return to_layout(record, rules, notes)
    except NoExample as found:
        notes[found.note] += 1
        nothing.append(found.note)
        return []


def _numbered(parts: list[Record]) -> list[Record]:
    """The examples of one row, told apart before any of them can be dropped."""
    if len(parts) < 2:
        return parts
    return [replace(part, where=replace(part.where, answer=i)) for i, part in enumerate(parts, 1)]


def _any_chat(texts: Sequence[tuple[Record, RenderedRecord]]) -> bool:
    return any(rendered.chat for _, rendered in texts)


def _render(
    record: Record, template: ChatTemplate | None, view: TokenizerView, special_tokens: str, progress: Progress
) -> RenderedRecord:
    if special_tokens == "reject":
        for text in (record.prompt, *record.completions):
            for said in [text] if isinstance(text, str) else [m["content"] for m in text]:
                if found := view.find_special(said):
                    raise RowProblem("special token in text", f"the text holds the control token {found!r}")
    rendered = render_record(record, template, view.end_tokens)
    progress.notes["tools that the chat template does not show"] += rendered.dropped_tools
    if not rendered.chat and rendered.prompt and not rendered.prompt[-1].isspace():
        joined = not any(c[:1].isspace() for c in rendered.completions)
        progress.notes["prompt and answer joined without white space"] += joined
    return rendered


def _finish(
    examples: list[Encoded],
    read: SourceRows,
    layout: str,
    one_class: str,
    tokenization: str,
    template: ChatTemplate | None,
    view: TokenizerView,
    progress: Progress,
) -> tuple[ExampleSet, DataReport]:
    files, rows, problems = read.files, len(read.rows), progress.problems
    problems.check(rows)
    by_reason = problems.by_reason()
    if progress.too_long:
        by_reason["too long"] = by_reason.get("too long", []) + progress.too_long
    dropped = {reason: len(found) for reason, found in by_reason.items()}
    name = ", ".join(files)
    if not examples:
        counts = ", ".join(f"{reason} {n}" for reason, n in dropped.items()) or "no row holds one for this layout"
        raise DataError(f"{name}: no example is left of {rows} rows: {counts}")
    result = ExampleSet.from_examples(_padded(examples))
    labels = label_counts(result)
    if not all(labels.values()) and one_class == "reject":
        raise DataError(
            f"{name}: one class only: {labels['desirable']} desirable and {labels['undesirable']} undesirable "
            "answers (expected both). Use data.one_class=allow if this is meant"
        )
    progress.notes["duplicate row"] += len(progress.duplicates)
    notes = {note: n for note, n in sorted(progress.notes.items()) if n}
    report = DataReport(
        files=files,
        rows=rows,
        examples=len(result),
        layout=layout,
        shapes=dict(progress.shapes),
        dropped=dropped,
        dropped_rows={reason: [str(w) for w in found[:10]] for reason, found in by_reason.items()},
        notes=notes,
        labels=labels,
        truncation={k: int(progress.truncation[k]) for k in ("prompt_cut", "completion_cut", "eos_lost", "tokens_cut")},
        boundary={"policy": tokenization, **progress.boundary},
        lengths=length_facts(result),
        terminators=terminator_names(progress, view.tokenizer),
        template_hash=template.content_hash if template else None,
        tokenizer_hash=view.content_hash,
        data_hash=result.content_hash,
        warnings=tuple(_warnings(by_reason, rows, len(result), progress, view, template)),
    )
    return result, report


def _padded(examples: list[Encoded]) -> Iterator[Example]:
    """The examples with as many completions as the largest has: the missing ones are empty."""
    most = max(len(e.completions) for e in examples)
    empty = np.zeros(0, np.int32)
    for e in examples:
        lacking = most - len(e.completions)
        columns = dict(e.columns)
        for name, value in columns.items():
            if isinstance(value, tuple):
                columns[name] = (*value, *[value[0][:0]] * lacking)
            elif name in PER_COMPLETION:
                columns[name] = np.pad(value, (0, lacking))
        yield Example(e.prompt, (*e.completions, *[empty] * lacking), columns, str(e.where), e.unscored)


def label_counts(examples: ExampleSet) -> dict[str, int]:
    """Examples by label; empty where they have none."""
    if "desirable" not in examples.columns:
        return {}
    desirable = int(examples.columns["desirable"].sum())
    return {"desirable": desirable, "undesirable": len(examples) - desirable}


def length_facts(examples: ExampleSet) -> dict[str, float]:
    """Means and maxima of the lengths, in tokens."""
    prompt, completion = examples.prompt_lengths, examples.completion_lengths
    return {
        "prompt mean": round(float(prompt.mean()), 2),
        "prompt max": int(prompt.max()),
        "completion mean": round(float(completion[completion > 0].mean()), 2),
        "completion max": int(completion.max()),
        "longest sequence": int((prompt + completion.max(axis=1)).max()),
    }


def _warnings(
    by_reason: Mapping[str, list[Where]],
    rows: int,
    examples: int,
    progress: Progress,
    view: TokenizerView,
    template: ChatTemplate | None,
) -> list[str]:
    """Sentences about what should not go unread."""
    lines = [f"{len(f)} of {rows} rows left out: {reason} (rows {row_list(f)})" for reason, f in by_reason.items()]
    lines += [
        f"{n} of {rows} rows make no example ({n / rows:.1%}): {note}"
        for note, n in progress.silent.items()
        if n > SILENT_SHARE * rows
    ]
    if progress.duplicates:
        lines.append(
            f"duplicates kept: {len(progress.duplicates)} (rows {row_list(dict.fromkeys(progress.duplicates))})"
        )
    for count, what in (("prompt_cut", "lose the start of their prompt"), ("eos_lost", "lose the end of an answer")):
        if n := progress.truncation[count]:
            lines.append(f"{n} of {examples} examples {what} to data.max_length ({n / examples:.1%})")
    if template and "strftime_now" in template.text:
        lines.append(
            "the chat template writes today's date, so the same rows give other tokens tomorrow: set it with a "
            "template of your own, or with chat_template_kwargs in the rows"
        )
    eos = str(view.tokenizer.eos_token)
    if others := [t for t in terminator_names(progress, view.tokenizer) if t != eos]:
        lines.append(
            f"answers end with {', '.join(others)}, not with the tokenizer's {eos}: generation must stop there"
        )
    if n := progress.notes[BOS_INSIDE]:
        lines.append(f"{n} examples hold {view.tokenizer.bos_token} after their first token")
    return lines
