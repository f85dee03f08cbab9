"""Prompts for generation: the same ids that training puts before an answer, and the tokens that end one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data.chat import load_chat_template, render_record
from jaxalign.data.contract import RowProblem
from jaxalign.data.conversations import to_messages
from jaxalign.data.encoding import open_prompt
from jaxalign.data.records import Record, Where
from jaxalign.data.sources import Source, read_rows
from jaxalign.data.tokenization import Ids, TokenizerView
from jaxalign.errors import DataError

Prompt = str | Sequence[Mapping[str, Any]]
"""Plain text, or a conversation that ends with a turn to answer."""


def read_prompts(
    source: Source, *, column: str = "prompt", split: str = "train", count: int | None = None
) -> list[Prompt]:
    """The prompts of some data, in its order.

    Args:
      source: as for `load_examples`. A row is a text, or has its prompt in a column: a text, or a conversation.
      column: its name.
      split: of a ``datasets`` name.
      count: how many, the first ones; None = all.

    Raises:
      DataError: the source cannot be read, or rows have no prompt; with all of them.
    """
    prompts: list[Prompt] = []
    problems: list[str] = []
    for where, value in read_rows(source, split=split).rows[:count]:
        prompt = value.get(column) if isinstance(value, Mapping) else value
        if isinstance(value, RowProblem):
            problems.append(f"{where}: {value.detail}.")
        elif isinstance(prompt, str | list) and prompt:
            prompts.append(prompt)
        else:
            names = f", got {', '.join(map(repr, value))}" if isinstance(value, Mapping) else ""
            problems.append(f"{where}: expected a text, or an object with a {column!r} that is not empty{names}.")
    if problems:
        raise DataError(problems if len(problems) <= 20 else [*problems[:20], f"and {len(problems) - 20} more."])
    return prompts


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any, *, chat_template: str | Path | None = None) -> list[Ids]:
    """Ids of prompts, as `load_examples` makes them.

    Args:
      prompts: plain texts, or conversations for the chat template.
      tokenizer: a Hugging Face tokenizer.
      chat_template: path, text, or ``chatml``; None = the tokenizer's own.

    Raises:
      DataError: a prompt is empty, or a conversation has no template or is refused by it.
    """
    view, problems = TokenizerView.of(tokenizer), []
    template = load_chat_template(tokenizer, chat_template)
    texts, chats = [], []
    for i, prompt in enumerate(prompts, 1):
        try:
            if not isinstance(prompt, str) and template is None:
                raise RowProblem("no chat template", "it is a conversation, and the tokenizer has no chat template")
            if isinstance(prompt, str) or template is None:
                texts.append(str(prompt))
            else:
                texts.append(template.render(to_messages(prompt, "prompt"), generation=True))
            chats.append(not isinstance(prompt, str))
        except RowProblem as problem:
            problems.append(f"prompt {i}: {problem.detail}.")
    if problems:
        raise DataError(problems)
    result = [open_prompt(ids, view, chat=chat)[0] for ids, chat in zip(view.encode(texts), chats, strict=True)]
    if empty := [f"prompt {i}: has no token." for i, ids in enumerate(result, 1) if not ids]:
        raise DataError(empty)
    return result


def end_token_ids(tokenizer: Any, *, chat_template: str | Path | None = None) -> tuple[int, ...]:
    """Ids at which generation stops: the end-of-sequence token, and the token with which the template ends a turn.

    Raises:
      DataError: the tokenizer has no end-of-sequence token, or the template cannot be read.
    """
    view = TokenizerView.of(tokenizer)
    template = load_chat_template(tokenizer, chat_template)
    if template is None:
        return (view.eos,)
    question, answer = {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}
    record = Record(Where("probe", 1), "probe", [question], ([answer],))
    try:
        rendered = render_record(record, template, view.end_tokens)
    except RowProblem:
        return (view.eos,)  # what training would refuse has no end of its own
    last = view.encode(rendered.completions)[0][-1]
    return tuple(dict.fromkeys((view.eos, last))) if rendered.ended[0] else (view.eos,)
