"""Conversations: reading their dialects, and finding where the prompt ends and the answer begins.

A prompt is cut at a turn, or at a word boundary in plain text, never inside a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.data.contract import RowProblem
from jaxalign.data.records import Messages
from jaxalign.errors import did_you_mean

_ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}

HH_MARKER = "\n\nAssistant:"
"""Opens an answer in Anthropic's HH dialogues."""

STRIPPED = "prompt repeated in the answers, taken out"
SEVERAL_TURNS = "answer of several turns, all scored"


def to_messages(value: Any, name: str) -> Messages:
    """``{role, content}`` messages out of these or ShareGPT's ``{from, value}``; a single message is a list of one.

    Raises:
      RowProblem: empty, or something in it is not a message.
    """
    value = [value] if isinstance(value, Mapping) else value
    if not value:
        raise RowProblem(
            "empty prompt" if "prompt" in name or "messages" in name else "empty answer",
            f"{name!r} is an empty list (expected at least one message)",
        )
    return [_message(m, name) for m in value]


def _message(message: Any, name: str) -> dict[str, Any]:
    expected = "expected {role, content} or {from, value}"
    if not isinstance(message, Mapping):
        kind = "null" if message is None else f"a {type(message).__name__}"
        raise RowProblem("wrong type", f"{name!r} holds {kind} ({expected})")
    role_key = "role" if message.get("role") is not None else "from"
    content_key = "content" if "content" in message else "value"
    if message.get(role_key) is None:
        shown = ", ".join(repr(str(k)) for k in message)
        raise RowProblem("wrong type", f"{name!r} holds a message with the keys {shown} ({expected})")
    said = message[role_key]
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        near = did_you_mean(str(said), _ROLES).rstrip("?")
        raise RowProblem("wrong type", f"{name!r} has the role {said!r} (expected user, assistant, system, tool){near}")
    extra = {k: v for k, v in message.items() if k not in ("role", "from", "content", "value") and v is not None}
    return {"role": role, "content": _content(message.get(content_key), extra, name, said), **extra}


def _content(value: Any, extra: Mapping[str, Any], name: str, role: str) -> str:
    if value is None:
        if extra.get("tool_calls"):
            return ""
        raise RowProblem("null", f"{name!r} holds a message of {role} whose content is null (expected str)")
    if isinstance(value, list | tuple):
        parts = [p.get("text") for p in value if isinstance(p, Mapping) and p.get("type") == "text"]
        if len(parts) != len(value) or not all(isinstance(p, str) for p in parts):
            raise RowProblem("wrong type", f"{name!r} has content parts that are not text (images are not read)")
        return "".join(str(p) for p in parts)
    if not isinstance(value, str):
        raise RowProblem("wrong type", f"{name!r} has content of type {type(value).__name__} (expected str)")
    return value


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a["role"] == b["role"] and a["content"] == b["content"] and a.get("tool_calls") == b.get("tool_calls")


def _notes(*answers: Messages) -> tuple[str, ...]:
    return (SEVERAL_TURNS,) if any(len(a) > 1 for a in answers) else ()


def implicit_prompt(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages, tuple[str, ...]]:
    """Two whole conversations as ``(prompt, chosen, rejected, notes)``: the prompt is the turns they share.

    Raises:
      RowProblem: they share no turn before an answer.
    """
    shortest = min(len(chosen), len(rejected))
    cut = 0
    while cut < shortest and _same(chosen[cut], rejected[cut]):
        cut += 1
    cut = min(cut, shortest - 1)
    while cut > 0 and not chosen[cut]["role"] == rejected[cut]["role"] == "assistant":
        cut -= 1
    if cut == 0:
        raise RowProblem(
            "no common prompt", "'chosen' and 'rejected' share no turn before an answer (expected the same beginning)"
        )
    return chosen[:cut], chosen[cut:], rejected[cut:], _notes(chosen[cut:], rejected[cut:])


def implicit_text_prompt(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Two whole texts as ``(prompt, chosen, rejected)``.

    In dialogues of Anthropic's form the prompt ends with the last `HH_MARKER` that both share. Otherwise it
    ends at the last word boundary of the common beginning: before a space, which then begins the answers, or after
    another white space.

    Raises:
      RowProblem: both are empty, or they share no beginning.
    """
    if not chosen.strip() or not rejected.strip():
        raise RowProblem("empty answer", f"{'chosen' if not chosen.strip() else 'rejected'!r} is empty")
    if chosen == rejected:
        raise RowProblem("identical pair", "'chosen' and 'rejected' are the same")
    common = _common_beginning(chosen, rejected)
    marker = common.rfind(HH_MARKER)
    if marker >= 0:
        cut = marker + len(HH_MARKER)
    else:
        cut = _word_boundary(common, chosen, rejected)
    if not common[:cut].strip():
        raise RowProblem(
            "no common prompt", "there is no 'prompt', and 'chosen' and 'rejected' share no beginning to take as one"
        )
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _common_beginning(a: str, b: str) -> str:
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return a[:n]
    return a[: next(i for i in range(n) if a[i] != b[i])]


def _word_boundary(common: str, chosen: str, rejected: str) -> int:
    """The last index of `common` that is not inside a word of either text and leaves words of both; 0 if none is."""
    for cut in range(len(common), 0, -1):
        rests = chosen[cut:], rejected[cut:]
        if not all(rest.strip() for rest in rests):
            continue
        if common[cut - 1] == " ":
            return cut - 1
        if common[cut - 1].isspace() or all(rest[0].isspace() for rest in rests):
            return cut
    return 0


def strip_prompt(prompt: Messages, answer: Messages, name: str) -> tuple[Messages, tuple[str, ...]]:
    """``(answer, notes)`` without the turns of the prompt that it repeats, with or without the system turn.

    Raises:
      RowProblem: the answer does not begin with an assistant turn, nor with the prompt.
    """
    if answer[0]["role"] == "assistant" and not (prompt and _same(prompt[0], answer[0])):
        return answer, _notes(answer)
    for skipped in range(len(prompt)):
        tail = prompt[skipped:]
        if skipped and prompt[skipped - 1]["role"] != "system":
            break
        if len(answer) > len(tail) and all(_same(a, b) for a, b in zip(tail, answer, strict=False)):
            rest = answer[len(tail) :]
            if rest[0]["role"] == "assistant":
                return rest, (STRIPPED, *_notes(rest))
    if len(answer) <= len(prompt) and all(_same(a, b) for a, b in zip(prompt, answer, strict=False)):
        raise RowProblem("empty answer", f"{name!r} repeats the prompt and holds no answer")
    raise RowProblem(
        "prompt not repeated",
        f"{name!r} begins with a {answer[0]['role']} turn that is not the prompt (expected an assistant turn, or the "
        "whole prompt again)",
    )


def split_last_answer(messages: Messages, name: str) -> tuple[Messages, Messages]:
    """``(prompt, answer)``: the last turn is the answer.

    Raises:
      RowProblem: it is not an assistant's, or nothing stands before it.
    """
    if messages[-1]["role"] != "assistant":
        raise RowProblem(
            "empty answer", f"{name!r} ends with a {messages[-1]['role']} turn (expected an assistant turn)"
        )
    if len(messages) == 1:
        raise RowProblem("empty prompt", f"{name!r} holds only an assistant turn (expected a user turn before it)")
    return messages[:-1], messages[-1:]


def split_turns(messages: Messages, name: str) -> list[tuple[Messages, Messages]]:
    """``(prompt, answer)`` for each assistant turn that has a turn to answer before it."""
    split_last_answer(messages, name)
    return [
        (messages[:i], messages[i : i + 1])
        for i, m in enumerate(messages)
        if m["role"] == "assistant" and i > 0 and messages[i - 1]["role"] not in ("assistant", "system", "developer")
    ]
