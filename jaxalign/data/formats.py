"""From the rows that users have to one normal form. Every row is recognised by itself, never by the first row.

=====================================  ==========================================================================
chosen, rejected (+ prompt)            preference pairs; strings or conversations; the prompt may be implicit
prompt (str), chosen, rejected (conv)  UltraFeedback: the conversations repeat the prompt, which is taken out
conversations, chosen, rejected        ShareGPT: ``from`` and ``value``
input.messages, preferred_output, ...  OpenAI
instruction, input (+ output/chosen)   Alpaca
prompt, completion (+ label)           unpaired feedback with a label, otherwise supervised
messages or conversations (+ label)    the same, the last turn is the answer
instruction, instances                 Self-Instruct: one example for each instance
text                                   plain text
=====================================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.data.contract import RowProblem
from jaxalign.data.conversations import (
    implicit_prompt,
    implicit_text_prompt,
    split_last_answer,
    split_turns,
    strip_prompt,
    to_messages,
)
from jaxalign.data.records import Messages, Record, Where
from jaxalign.data.values import (
    TEXT_OR_CHAT,
    check_encoding,
    kind_of,
    label_of,
    required,
    template_arguments_of,
    text_of,
    tools_of,
)
from jaxalign.errors import ConfigError, did_you_mean

COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "messages",
    "conversations",
    "text",
    "instruction",
    "input",
    "output",
    "preferred_output",
    "non_preferred_output",
    "system",
    "tools",
)

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


def check_columns(columns: Mapping[str, str]) -> None:
    """Check a column map, our name -> the user's.

    Raises:
      ConfigError: one of our names does not exist.
    """
    problems = [
        f"data.columns: unknown column {ours!r} (expected one of {', '.join(COLUMNS)}).{did_you_mean(ours, COLUMNS)}"
        for ours in columns
        if ours not in COLUMNS
    ]
    if problems:
        raise ConfigError(problems)


def normalise(row: Any, where: Where, *, columns: Mapping[str, str] | None = None, turns: str = "last") -> list[Record]:
    """The row in normal form: one record, or more where a row holds several examples.

    Args:
      row: what the reader gave.
      where: its place.
      columns: our column name -> the user's; ``a.b`` reaches into an object.
      turns: which assistant turns of supervised conversations become examples: ``last``, or ``all``, each with what
        comes before it as its prompt.

    Raises:
      RowProblem: the row breaks the contract.
    """
    if isinstance(row, RowProblem):
        raise row
    if not isinstance(row, Mapping):
        raise RowProblem("wrong type", f"the row is {kind_of(row)} (expected an object with columns)")
    row = _rename(row, columns or {})
    extras: dict[str, Any] = {"tools": tools_of(row.get("tools")), "template_arguments": template_arguments_of(row)}

    def has(name: str) -> bool:
        return row.get(name) is not None

    if has("preferred_output") or has("non_preferred_output"):
        return [_openai(row, where, extras)]
    if has("chosen") or has("rejected"):
        return [_pair(row, where, extras)]
    if has("conversations") or has("messages"):
        return _conversation(row, where, extras, turns)
    if has("completion"):
        return [_completion(row, where, "prompt" if "prompt" in row else None, "completion", extras)]
    if has("instruction") and has("instances"):
        return _instances(row, where)
    if has("output") and "instruction" in row:
        return [_completion(row, where, None, "output", extras)]
    if has("text"):
        record = Record(where, "text", "", (text_of(row["text"], "text"),))
        return [_checked(record, ("text",))]
    raise _unrecognised(row)


def _rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    if not columns:
        return row
    found = {}
    for ours, yours in columns.items():
        value: Any = row
        for part in [yours] if yours in row else yours.split("."):
            if not isinstance(value, Mapping) or part not in value:
                near = did_you_mean(yours, row)
                raise RowProblem(
                    "missing column",
                    f"{yours!r} is missing, which data.columns names as {ours!r}.{near}"[:-1]
                    if near
                    else f"{yours!r} is missing, which data.columns names as {ours!r}",
                )
            value = value[part]
        found[ours] = value
    rest = {name: value for name, value in row.items() if name not in columns.values()}
    return {**rest, **found}


def _unrecognised(row: Mapping[str, Any]) -> RowProblem:
    for name in ("chosen", "rejected", "completion", "messages", "conversations", "output", "text"):
        if name in row:
            return RowProblem("null", f"{name!r} is null (expected {TEXT_OR_CHAT})")
    shown = ", ".join(repr(str(name)) for name in list(row)[:12]) or "none"
    hints = [near for name in row if (near := did_you_mean(str(name), [c for c in COLUMNS if c not in row]))]
    what = "expected prompt, chosen, rejected; prompt, completion, label; messages; or text"
    return RowProblem(
        "missing column", f"no known shape: the columns are {shown} ({what})" + (hints[0].rstrip("?") if hints else "")
    )


def _conv(value: Any, name: str) -> Messages:
    messages = to_messages(value, name)
    for message in messages:
        check_encoding(message["content"], name)
    return messages


def _text_or_conv(value: Any, name: str) -> str | Messages:
    if isinstance(value, list | tuple | Mapping):
        return _conv(value, name)
    return text_of(value, name, TEXT_OR_CHAT)


def _alpaca(row: Mapping[str, Any]) -> str:
    instruction = text_of(required(row, "instruction", "str"), "instruction")
    if row.get("history"):
        raise RowProblem("wrong type", "'history' of Alpaca rows is not read (expected conversations or messages)")
    given = text_of(row["input"], "input") if row.get("input") is not None else ""
    template = ALPACA_INPUT if given.strip() else ALPACA
    return template.format(instruction=instruction, input=given)


def _with_system(messages: Messages, row: Mapping[str, Any]) -> Messages:
    system = row.get("system")
    if isinstance(system, str) and system.strip() and (not messages or messages[0]["role"] != "system"):
        check_encoding(system, "system")
        return [{"role": "system", "content": system}, *messages]
    return messages


def _openai(row: Mapping[str, Any], where: Where, extras: dict[str, Any]) -> Record:
    given = required(row, "input", "object with messages")
    if not isinstance(given, Mapping) or "messages" not in given:
        raise RowProblem("wrong type", f"'input' is {kind_of(given)} (expected an object with messages)")
    prompt = _conv(given["messages"], "input.messages")
    answers = [
        strip_prompt(prompt, _conv(required(row, name), name), name)
        for name in ("preferred_output", "non_preferred_output")
    ]
    if extras["tools"] is None:
        extras = {**extras, "tools": tools_of(given.get("tools"))}
    notes = tuple({note for _, ns in answers for note in ns})
    record = Record(where, "pairs (OpenAI)", prompt, tuple(a for a, _ in answers), notes=notes, **extras)
    return _checked(record, ("preferred_output", "non_preferred_output"))


def _pair(row: Mapping[str, Any], where: Where, extras: dict[str, Any]) -> Record:
    chosen, rejected = (_text_or_conv(required(row, name), name) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        kinds = ("a string", "a conversation") if isinstance(chosen, str) else ("a conversation", "a string")
        raise RowProblem("wrong type", f"'chosen' is {kinds[0]} and 'rejected' is {kinds[1]} (expected the same)")
    names = ("chosen", "rejected")
    given = row.get("prompt")
    shape = "prompt, chosen, rejected"
    if given is None and "prompt" in row and not any(row.get(n) for n in ("conversations", "messages", "instruction")):
        raise RowProblem("null", f"'prompt' is null (expected {TEXT_OR_CHAT})")
    if given is None and row.get("conversations") is not None:
        given, shape = _with_system(_conv(row["conversations"], "conversations"), row), "pairs (ShareGPT)"
    elif given is None and row.get("instruction") is not None:
        given, shape = _alpaca(row), "pairs (Alpaca)"
    if isinstance(chosen, str):
        assert isinstance(rejected, str)
        if given is None:
            prompt, *answers = implicit_text_prompt(chosen, rejected)
            return _checked(Record(where, "chosen, rejected (text)", prompt, tuple(answers)), names)
        prompt = _text_or_conv(given, "prompt")
        if isinstance(prompt, str):
            record = Record(where, f"{shape}" if "(" in shape else f"{shape} (text)", prompt, (chosen, rejected))
            return _checked(record, names)
        answers = tuple([{"role": "assistant", "content": a}] for a in (chosen, rejected))
        return _checked(Record(where, f"{shape}, chat prompt and text answers", prompt, answers, **extras), names)
    assert not isinstance(rejected, str)
    if given is None:
        prompt, first, second, notes = implicit_prompt(chosen, rejected)
        record = Record(
            where, "chosen, rejected (chat)", _with_system(prompt, row), (first, second), notes=notes, **extras
        )
        return _checked(record, names)
    prompt = _text_or_conv(given, "prompt")
    if isinstance(prompt, str):
        return _checked(_repeated_prompt(prompt, chosen, rejected, row, where, extras), names)
    answers = [strip_prompt(prompt, a, n) for a, n in ((chosen, "chosen"), (rejected, "rejected"))]
    notes = tuple({note for _, ns in answers for note in ns})
    shape = shape if "(" in shape else f"{shape} (chat)"
    return _checked(Record(where, shape, prompt, tuple(a for a, _ in answers), notes=notes, **extras), names)


def _repeated_prompt(
    prompt: str, chosen: Messages, rejected: Messages, row: Mapping[str, Any], where: Where, extras: dict[str, Any]
) -> Record:
    """UltraFeedback's shape: a prompt as a string, and conversations that say it again."""
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        messages = _with_system([{"role": "user", "content": prompt}], row)
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
        _with_system(messages, row),
        (first, second),
        notes=notes,
        **extras,
    )


def _conversation(row: Mapping[str, Any], where: Where, extras: dict[str, Any], turns: str) -> list[Record]:
    name = "conversations" if row.get("conversations") is not None else "messages"
    messages = _with_system(_conv(row[name], name), row)
    label = label_of(row)
    shape = {"conversations": "conversations (ShareGPT)", "messages": "messages"}[name]
    shape += ", label" if label is not None else ""
    parts = split_turns(messages, name) if turns == "all" and label is None else [split_last_answer(messages, name)]
    return [_checked(Record(where, shape, p, (a,), label, **extras), (name,)) for p, a in parts]


def _completion(
    row: Mapping[str, Any], where: Where, prompt_name: str | None, name: str, extras: dict[str, Any]
) -> Record:
    answer = _text_or_conv(required(row, name), name)
    if prompt_name is None and "instruction" not in row:
        raise RowProblem("missing column", "'prompt' is missing (the row has 'completion')")
    prompt = _text_or_conv(required(row, prompt_name), prompt_name) if prompt_name else _alpaca(row)
    label = label_of(row)
    notes: tuple[str, ...] = ()
    if isinstance(prompt, str) != isinstance(answer, str):
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if not isinstance(prompt, str) and not isinstance(answer, str):
        answer, notes = strip_prompt(prompt, answer, name)
    shape = "instruction, output (Alpaca)" if name == "output" else f"prompt, completion ({_form(prompt)})"
    shape += ", label" if label is not None else ""
    chat = extras if not isinstance(prompt, str) else {}
    return _checked(Record(where, shape, prompt, (answer,), label, notes=notes, **chat), (name,))


def _form(prompt: str | Messages) -> str:
    return "text" if isinstance(prompt, str) else "chat"


def _instances(row: Mapping[str, Any], where: Where) -> list[Record]:
    instances = row["instances"]
    if not isinstance(instances, list | tuple) or not all(isinstance(i, Mapping) for i in instances) or not instances:
        raise RowProblem("wrong type", f"'instances' is {kind_of(instances)} (expected a list of {{input, output}})")
    records = []
    for instance in instances:
        answer = text_of(required(instance, "output", "str"), "output")
        prompt = _alpaca({"instruction": row["instruction"], "input": instance.get("input")})
        records.append(_checked(Record(where, "instances (Self-Instruct)", prompt, (answer,)), ("output",)))
    return records


def _checked(record: Record, names: tuple[str, ...]) -> Record:
    """The record, if its text holds a signal."""
    for answer, name in zip(record.completions, names, strict=True):
        if _is_empty(answer):
            raise RowProblem("empty answer", f"{name!r} is empty")
    if record.is_chat and not any(_says(m) for m in record.prompt if m["role"] != "system"):  # type: ignore[union-attr]
        raise RowProblem("empty prompt", "the prompt has no turn with text")
    if record.is_chat and record.prompt[-1]["role"] == "assistant":  # type: ignore[index]
        raise RowProblem("wrong type", "the prompt ends with an assistant turn (expected a turn to answer)")
    if isinstance(record.prompt, str) and len(record.prompt.split()) >= 4:
        prompt = record.prompt.strip()
        if all(isinstance(a, str) and a.strip().startswith(prompt) for a in record.completions):
            what = " and ".join(repr(n) for n in names)
            verb = "begin" if len(names) > 1 else "begins"
            raise RowProblem("duplicated prompt in answer", f"{what} {verb} with the whole prompt")
    return record


def _says(message: Mapping[str, Any]) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))


def _is_empty(answer: str | Messages) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    return not any(_says(m) for m in answer if m["role"] == "assistant")
