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

Rankings and judged answers are told in `jaxalign.data.ranked` and `jaxalign.data.judged`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from jaxalign.data.columns import PER_ANSWER, pair_columns, weights_of
from jaxalign.data.contract import RowProblem
from jaxalign.data.conversations import split_last_answer, split_turns, strip_prompt
from jaxalign.data.judged import ANSWER_PAIRS, answer_columns, is_stepwise, read_judged, read_steps
from jaxalign.data.pairs import read_openai, read_pair
from jaxalign.data.ranked import (
    ANSWERS,
    SCORES,
    is_ranked,
    is_solutions,
    is_tree,
    read_ranked,
    read_solutions,
    read_tree,
)
from jaxalign.data.records import Messages, Record, Where
from jaxalign.data.texts import alpaca_prompt, conversation_of, text_or_conversation, with_system
from jaxalign.data.values import (
    TEXT_OR_CHAT,
    kind_of,
    label_of,
    required,
    template_arguments_of,
    text_of,
    tools_of,
)
from jaxalign.errors import ConfigError, did_you_mean

_USUAL = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "completions",
    "scores",
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

COLUMNS = tuple(
    dict.fromkeys(
        (
            *_USUAL,
            "question",
            *ANSWERS,
            *SCORES,
            *(name for pair in ANSWER_PAIRS for name in pair),
            "labels",
            "preference",
            "score_chosen",
            "score_rejected",
            "margin",
            "win_probabilities",
            "chosen_win_probability",
            "rejected_win_probability",
            "absolute",
            "token_weights",
            "chosen_token_weights",
            "rejected_token_weights",
            "chosen_logprob",
            "rejected_logprob",
        )
    )
)
"""The names that rows may give to columns, so that `data.columns` can map the user's names to them."""


TURNED = "preference below 0.5, chosen and rejected swapped"


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


def normalise(
    row: Any,
    where: Where,
    *,
    columns: Mapping[str, str] | None = None,
    turns: str = "last",
    wanted: Collection[str] = (),
    step_separator: str = "\n",
    last_step_only: bool = False,
) -> list[Record]:
    """The row in normal form: one record, or more where a row holds several examples.

    Args:
      row: what the reader gave.
      where: its place.
      columns: our column name -> the user's; ``a.b`` reaches into an object.
      turns: which assistant turns of supervised conversations become examples: ``last``, or ``all``, each with what
        comes before it as its prompt.
      wanted: columns to read, see `jaxalign.data.columns`.
      step_separator: what stands between two steps of an answer that is given in steps.
      last_step_only: of the labels of steps, keep that of the last.

    Raises:
      RowProblem: the row breaks the contract.
      NoExample: it is sound, and there is nothing to learn from it.
    """
    if isinstance(row, RowProblem):
        raise row
    if not isinstance(row, Mapping):
        raise RowProblem("wrong type", f"the row is {kind_of(row)} (expected an object with columns)")
    row = _rename(row, columns or {})
    extras: dict[str, Any] = {"tools": tools_of(row.get("tools")), "template_arguments": template_arguments_of(row)}

    def has(name: str) -> bool:
        return row.get(name) is not None

    if is_tree(row):
        return [_checked(r, _numbers(r)) for r in read_tree(row, where, extras)]
    if has("preferred_output") or has("non_preferred_output"):
        record = _checked(read_openai(row, where, extras), ("preferred_output", "non_preferred_output"))
        return [_with_columns(record, row, wanted)]
    if has("chosen") or has("rejected"):
        record = _checked(read_pair(row, where, extras), ("chosen", "rejected"))
        return [_with_columns(record, row, wanted)]
    if (answers := answer_columns(row)) is not None:
        record = read_judged(row, where, _given_prompt(row), answers, keep_ties="preference" in wanted)
        return [_with_columns(_checked(record, answers), row, wanted)]
    if is_stepwise(row):
        record = read_steps(row, where, _given_prompt(row), step_separator, last_step_only)
        return [_checked(record, ("completions",))]
    if is_ranked(row):
        record = read_ranked(row, where, extras, wanted)
        return [_checked(record, _numbers(record))]
    if is_solutions(row):
        record = read_solutions(row, where)
        return [_checked(record, _numbers(record))]
    if has("conversations") or has("messages"):
        return [_with_columns(r, row, wanted) for r in _conversation(row, where, extras, turns)]
    if has("completion"):
        record = _completion(row, where, "prompt" if "prompt" in row else None, "completion", extras)
        return [_with_columns(record, row, wanted)]
    if has("instruction") and has("instances"):
        return _instances(row, where)
    if has("output") and "instruction" in row:
        return [_with_columns(_completion(row, where, None, "output", extras), row, wanted)]
    if has("text"):
        record = Record(where, "text", "", (text_of(row["text"], "text"),))
        return [_with_columns(_checked(record, ("text",)), row, wanted)]
    raise _unrecognised(row)


def _numbers(record: Record) -> tuple[str, ...]:
    """Names of a ranking's answers, for messages."""
    return tuple(f"answer {i}" for i in range(1, len(record.completions) + 1))


def _with_columns(record: Record, row: Mapping[str, Any], wanted: Collection[str]) -> Record:
    """The record with what the row says beside the texts, as far as it is wanted."""
    if not wanted:
        return record
    if len(record.completions) == 1:
        if "token_weights" not in wanted or row.get("token_weights") is None:
            return record
        return replace(record, columns={"token_weights": (weights_of(row["token_weights"], "token_weights"),)})
    read = {**row, **record.columns}  # the record's say, which is in the order of its answers, goes first
    return _likelier_first(replace(record, columns={**record.columns, **pair_columns(read, wanted)}))


def _likelier_first(record: Record) -> Record:
    """The pair, turned round where `preference` says that the rejected answer is the likelier one."""
    if record.columns.get("preference", 1.0) >= 0.5:
        return record
    turned = {name: record.columns[name][::-1] for name in PER_ANSWER if name in record.columns}
    return replace(
        record,
        completions=record.completions[::-1],
        columns={**record.columns, **turned, "preference": 1.0 - record.columns["preference"]},
        notes=(*record.notes, TURNED),
    )


def _given_prompt(row: Mapping[str, Any]) -> str | Messages:
    """The prompt of a judged row, or its instruction in Alpaca's form."""
    if row.get("prompt") is None and row.get("instruction") is not None:
        return alpaca_prompt(row)
    return text_or_conversation(required(row, "prompt"), "prompt")


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
    for name in ANSWERS:
        if isinstance(row.get(name), list | tuple):
            return _without_scores(row, name)
    if any(all(name in row for name in pair) for pair in ANSWER_PAIRS):
        return RowProblem("missing column", "two answers, and no 'preference' or annotators' votes that is not null")
    shown = ", ".join(repr(str(name)) for name in list(row)[:12]) or "none"
    hints = [near for name in row if (near := did_you_mean(str(name), [c for c in _USUAL if c not in row]))]
    what = (
        "expected prompt, chosen, rejected; prompt, completion, label; prompt, completions, scores; messages; or text"
    )
    return RowProblem(
        "missing column", f"no known shape: the columns are {shown} ({what})" + (hints[0].rstrip("?") if hints else "")
    )


def _without_scores(row: Mapping[str, Any], name: str) -> RowProblem:
    """A list of answers that nothing is said of."""
    if not row[name]:
        return RowProblem("empty answer", f"{name!r} is an empty list (expected at least two answers)")
    null = next((score for score in SCORES if score in row), None)
    if null is not None:
        return RowProblem("null", f"{null!r} is null (expected one number for each of {name!r})")
    return RowProblem(
        "missing column",
        f"{name!r} lists answers, and nothing says how good they are (expected one of {', '.join(SCORES)}; or "
        "'labels', if 'completions' are the steps of one answer)",
    )


def _conversation(row: Mapping[str, Any], where: Where, extras: dict[str, Any], turns: str) -> list[Record]:
    name = "conversations" if row.get("conversations") is not None else "messages"
    messages = with_system(conversation_of(row[name], name), row)
    label = label_of(row)
    shape = {"conversations": "conversations (ShareGPT)", "messages": "messages"}[name]
    shape += ", label" if label is not None else ""
    parts = split_turns(messages, name) if turns == "all" and label is None else [split_last_answer(messages, name)]
    return [_checked(Record(where, shape, p, (a,), label, **extras), (name,)) for p, a in parts]


def _completion(
    row: Mapping[str, Any], where: Where, prompt_name: str | None, name: str, extras: dict[str, Any]
) -> Record:
    answer = text_or_conversation(required(row, name), name)
    if prompt_name is None and "instruction" not in row:
        raise RowProblem("missing column", "'prompt' is missing (the row has 'completion')")
    prompt = text_or_conversation(required(row, prompt_name), prompt_name) if prompt_name else alpaca_prompt(row)
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
        prompt = alpaca_prompt({"instruction": row["instruction"], "input": instance.get("input")})
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
