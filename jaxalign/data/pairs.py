"""Preference pairs, in each of the forms that `jaxalign.data.formats` lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.data.contract import RowProblem
from jaxalign.data.conversations import implicit_prompt, implicit_text_prompt, strip_prompt
from jaxalign.data.records import Messages, Record, Where
from jaxalign.data.texts import alpaca_prompt, conversation_of, text_or_conversation, with_system
from jaxalign.data.values import TEXT_OR_CHAT, kind_of, required, tools_of


def read_openai(row: Mapping[str, Any], where: Where, extras: dict[str, Any]) -> Record:
    """A row with ``input.messages``, ``preferred_output`` and ``non_preferred_output`` in normal form."""
    given = required(row, "input", "object with messages")
    if not isinstance(given, Mapping) or "messages" not in given:
        raise RowProblem("wrong type", f"'input' is {kind_of(given)} (expected an object with messages)")
    prompt = conversation_of(given["messages"], "input.messages")
    answers = [
        strip_prompt(prompt, conversation_of(required(row, name), name), name)
        for name in ("preferred_output", "non_preferred_output")
    ]
    if extras["tools"] is None:
        extras = {**extras, "tools": tools_of(given.get("tools"))}
    notes = tuple({note for _, ns in answers for note in ns})
    return Record(where, "pairs (OpenAI)", prompt, tuple(a for a, _ in answers), notes=notes, **extras)


def read_pair(row: Mapping[str, Any], where: Where, extras: dict[str, Any]) -> Record:
    """A row with ``chosen`` and ``rejected`` in normal form; the prompt may be what they share."""
    chosen, rejected = (text_or_conversation(required(row, name), name) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        kinds = ("a string", "a conversation") if isinstance(chosen, str) else ("a conversation", "a string")
        raise RowProblem("wrong type", f"'chosen' is {kinds[0]} and 'rejected' is {kinds[1]} (expected the same)")
    given = row.get("prompt")
    shape = "prompt, chosen, rejected"
    if given is None and "prompt" in row and not any(row.get(n) for n in ("conversations", "messages", "instruction")):
        raise RowProblem("null", f"'prompt' is null (expected {TEXT_OR_CHAT})")
    if given is None and row.get("conversations") is not None:
        given, shape = with_system(conversation_of(row["conversations"], "conversations"), row), "pairs (ShareGPT)"
    elif given is None and row.get("instruction") is not None:
        given, shape = alpaca_prompt(row), "pairs (Alpaca)"
    if isinstance(chosen, str):
        assert isinstance(rejected, str)
        if given is None:
            prompt, *answers = implicit_text_prompt(chosen, rejected)
            return Record(where, "chosen, rejected (text)", prompt, tuple(answers))
        prompt = text_or_conversation(given, "prompt")
        if isinstance(prompt, str):
            return Record(where, shape if "(" in shape else f"{shape} (text)", prompt, (chosen, rejected))
        answers = tuple([{"role": "assistant", "content": a}] for a in (chosen, rejected))
        return Record(where, f"{shape}, chat prompt and text answers", prompt, answers, **extras)
    assert not isinstance(rejected, str)
    if given is None:
        prompt, first, second, notes = implicit_prompt(chosen, rejected)
        return Record(
            where, "chosen, rejected (chat)", with_system(prompt, row), (first, second), notes=notes, **extras
        )
    prompt = text_or_conversation(given, "prompt")
    if isinstance(prompt, str):
        return _repeated_prompt(prompt, chosen, rejected, row, where, extras)
    answers = [strip_prompt(prompt, a, n) for a, n in ((chosen, "chosen"), (rejected, "rejected"))]
    notes = tuple({note for _, ns in answers for note in ns})
    shape = shape if "(" in shape else f"{shape} (chat)"
    return Record(where, shape, prompt, tuple(a for a, _ in answers), notes=notes, **extras)


def _repeated_prompt(
    prompt: str, chosen: Messages, rejected: Messages, row: Mapping[str, Any], where: Where, extras: dict[str, Any]
) -> Record:
    """UltraFeedback's shape: a prompt as a string, and conversations that say it again."""
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        messages = with_system([{"role": "user", "content": prompt}], row)
        return Record(where, "text prompt, chat answers", messages, (chosen, rejected), **extras)
    messages, first, second, notes = implicit_prompt(chosen, rejected)
    said = {" ".join(m["content"].split()) for m in messages if m["role"] == "user"}
    if " ".join(prompt.split()) not in said:
        raise RowProblem(
            "prompt not repeated",
            "'prompt' is not a user turn of 'chosen' and 'rejected' (expected the answers alone, or conversations "
            "that begin with the prompt)",
        )
    notes = (*notes, "prompt repeated in the answers, taken out")
    return Record(
        where,
        "text prompt, full conversations (UltraFeedback)",
        with_system(messages, row),
        (first, second),
        notes=notes,
        **extras,
    )
