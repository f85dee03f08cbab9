"""Texts, conversations and prompts out of a row. Each raises a `RowProblem` where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.data.contract import RowProblem
from jaxalign.data.conversations import to_messages
from jaxalign.data.records import Messages
from jaxalign.data.values import TEXT_OR_CHAT, check_encoding, required, text_of

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def conversation_of(value: Any, name: str) -> Messages:
    """Messages whose text can be encoded."""
    messages = to_messages(value, name)
    for message in messages:
        check_encoding(message["content"], name)
    return messages


def text_or_conversation(value: Any, name: str) -> str | Messages:
    """Plain text, or messages."""
    if isinstance(value, list | tuple | Mapping):
        return conversation_of(value, name)
    return text_of(value, name, TEXT_OR_CHAT)


def alpaca_prompt(row: Mapping[str, Any]) -> str:
    """The prompt that Alpaca makes of an instruction and its input."""
    instruction = text_of(required(row, "instruction", "str"), "instruction")
    if row.get("history"):
        raise RowProblem("wrong type", "'history' of Alpaca rows is not read (expected conversations or messages)")
    given = text_of(row["input"], "input") if row.get("input") is not None else ""
    template = ALPACA_INPUT if given.strip() else ALPACA
    return template.format(instruction=instruction, input=given)


def with_system(messages: Messages, row: Mapping[str, Any]) -> Messages:
    """The messages behind the row's system prompt, if it has one and they do not."""
    system = row.get("system")
    if isinstance(system, str) and system.strip() and (not messages or messages[0]["role"] != "system"):
        check_encoding(system, "system")
        return [{"role": "system", "content": system}, *messages]
    return messages
