"""Single values out of a row: present, of the right type, and encodable. Each raises a `RowProblem` otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from jaxalign.data.contract import RowProblem

TEXT_OR_CHAT = "str or list of {role, content}"


def required(row: Mapping[str, Any], name: str, expected: str = TEXT_OR_CHAT) -> Any:
    """The value of a column that must be there."""
    if name not in row:
        shown = ", ".join(repr(str(c)) for c in list(row)[:12])
        raise RowProblem("missing column", f"{name!r} is missing (the columns are {shown})")
    if row[name] is None:
        raise RowProblem("null", f"{name!r} is null (expected {expected})")
    return row[name]


def kind_of(value: Any) -> str:
    """What JSON calls the value, for messages."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    if type(value) in names:
        return names[type(value)]
    return (
        "a list"
        if isinstance(value, list | tuple)
        else "an object"
        if isinstance(value, Mapping)
        else (f"of type {type(value).__name__}")
    )


def text_of(value: Any, name: str, expected: str = "str") -> str:
    """The value, if it is text that can be encoded."""
    if value is None:
        raise RowProblem("null", f"{name!r} is null (expected {expected})")
    if not isinstance(value, str):
        raise RowProblem("wrong type", f"{name!r} is {kind_of(value)} (expected {expected})")
    check_encoding(value, name)
    return value


def check_encoding(value: str, name: str) -> None:
    """Raise a `RowProblem` when the text holds half of a UTF-16 pair, which no tokenizer can encode."""
    if value.isascii():
        return
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise RowProblem(
            "lone surrogate", f"{name!r} holds the lone surrogate \\u{code:04x} (not a character)"
        ) from None


def tools_of(value: Any) -> list[Any] | None:
    """Tool descriptions: a list, or JSON of one; None where there are none."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except ValueError:
            raise RowProblem("wrong type", "'tools' is a string that is not JSON (expected a list of tools)") from None
    if not value:
        return None
    if not isinstance(value, list):
        raise RowProblem("wrong type", f"'tools' is {kind_of(value)} (expected a list of tools)")
    return value


def template_arguments_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row's own arguments for the chat template."""
    value = row.get("chat_template_kwargs")
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else {}


def label_of(row: Mapping[str, Any]) -> bool | None:
    """Whether the answer is desirable; None where the row does not say."""
    name = "label" if row.get("label") is not None or "label" in row else "kto_tag"
    if name not in row:
        return None
    value = required(row, name, "true/false or 1/0")
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    if isinstance(value, int) and value in (0, 1):
        return value == 1
    hint = "; write -1 as 0" if value == -1 else ""
    raise RowProblem("label invalid", f"{name!r} is {value!r} (expected true/false or 1/0{hint})")


def number_of(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number, also one written as text, from `low` to `high`."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high:
        within = "" if math.isinf(low) else f" from {low:g} to {high:g}"
        raise RowProblem("score invalid", f"{name!r} is {_shown(value)} (expected a number{within})")
    return number


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str) and len(str(value)) < 40 else kind_of(value)
