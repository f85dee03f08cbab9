"""Reading a dataclass as a schema: what each field means, what it may hold, and what is wrong with a value.

A field says everything about itself in its annotation::

  learning_rate: Annotated[float, "Peak step size.", Range(gt=0)] = 1e-6

The string is its documentation (with the unit), `Range` its bounds; ``Literal`` lists the allowed names and ``| None``
allows an absent value. `fields_of` reads them, `convert` checks a JSON value, `from_text` reads a string of the
command line. Nothing here knows the run configuration itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.errors import did_you_mean
from jaxalign.ranges import Range


@dataclass(frozen=True)
class Field:
    """One leaf of the schema.

    Attributes:
      path: dotted name, ``optimizer.learning_rate``.
      kind: ``bool``, ``int``, ``float``, ``str``, ``list`` (of strings) or ``dict`` (of strings).
      optional: whether ``None`` is allowed.
      choices: the allowed names, empty if any string is allowed.
      bounds: the allowed range of a number.
      default: its default value.
      doc: what it means, with the unit.
    """

    path: str
    kind: type
    optional: bool
    choices: tuple[str, ...]
    bounds: Range
    default: Any
    doc: str

    @property
    def expected(self) -> str:
        """What the field accepts, in words: ``a number > 0 or none``."""
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        else:
            text = {
                bool: "true or false",
                int: "a whole number",
                float: "a finite number",
                str: "a text",
                list: "a text, or a list of texts",
                dict: "a table of names to names",
            }[self.kind]
            text += f" {self.bounds}" if str(self.bounds) else ""
        return f"{text}, or none" if self.optional else text

    def problem(self, value: Any) -> str:
        """What to say of a value that the field does not accept."""
        hint = did_you_mean(value, self.choices) if self.choices and isinstance(value, str) else ""
        return f"{self.path}: got {value!r}, expected {self.expected}.{hint}"


class Rejected(ValueError):
    """A value that its field does not accept; the message is the problem as the user reads it."""


def fields_of(schema: type, prefix: str = "") -> dict[str, Field]:
    """The leaves of a dataclass and of the dataclasses in it, by dotted path, in order of declaration."""
    hints = typing.get_type_hints(schema, include_extras=True)
    leaves: dict[str, Field] = {}
    for field in dataclasses.fields(schema):
        path = f"{prefix}{field.name}"
        hint, notes = _split_annotated(hints[field.name])
        if dataclasses.is_dataclass(hint):
            leaves |= fields_of(typing.cast(type, hint), f"{path}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        kind, optional, choices = _read_hint(hint)
        leaves[path] = Field(
            path=path,
            kind=kind,
            optional=optional,
            choices=choices,
            bounds=next((note for note in notes if isinstance(note, Range)), Range()),
            default=default,
            doc=next((note for note in notes if isinstance(note, str)), ""),
        )
    return leaves


def _split_annotated(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(hint) is typing.Annotated:
        inner, *notes = typing.get_args(hint)
        return inner, tuple(notes)
    return hint, ()


def _read_hint(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [member for member in typing.get_args(hint) if member is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"A field is one type, or one type and None: got {hint}.")
        hint, optional = inner[0], True
    if typing.get_origin(hint) is typing.Literal:
        return str, optional, typing.get_args(hint)
    origin = typing.get_origin(hint) or hint
    kind = {tuple: list, list: list, Mapping: dict, dict: dict}.get(origin, origin)
    return kind, optional, ()


def convert(field: Field, value: Any) -> Any:
    """The value as its field stores it. Whole numbers become floats where a float is meant; nothing else is guessed.

    Raises:
      Rejected: the value has another type, is not finite, out of bounds, or no known name.
    """
    if value is None:
        if field.optional:
            return None
        raise Rejected(field.problem(value))
    if field.kind in (int, float):
        numeric = isinstance(value, (int, float) if field.kind is float else int) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or value not in field.bounds:
            raise Rejected(field.problem(value))
        return field.kind(value)
    if field.kind is list:
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise Rejected(field.problem(value))
        return tuple(value)
    if field.kind is dict:
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for pair in value.items() for v in pair):
            raise Rejected(field.problem(value))
        return dict(value)
    if not isinstance(value, field.kind) or (field.choices and value not in field.choices):
        raise Rejected(field.problem(value))
    return value


_WORDS = {"true": True, "false": False, "none": None, "null": None}


def literal(text: str) -> Any:
    """A string of the command line without a schema: what it is as JSON (``0.1``, ``true``, ``[1, 2]``), or itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return float(text)  # 1e-4 is JSON; .5 and nan are not
    except ValueError:
        return text


def from_text(field: Field, text: str) -> Any:
    """The value a string of the command line stands for in a field: ``5e-7``, ``true``, ``none``, ``a,b``.

    It is not checked; `convert` says what is wrong with it.
    """
    if field.kind is str:
        absent = field.optional and text.lower() in ("none", "null", "")
        return None if absent else text
    value = literal(text)
    if field.kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3 steps
    if field.kind is list and isinstance(value, str):
        return [part for part in text.split(",") if part]
    return value


def nearest(path: str, known: Sequence[str], aliases: Mapping[str, str]) -> str | None:
    """The known dotted path that an unknown one most likely means: an alias, a near name beside it, or elsewhere."""
    section, _, name = path.rpartition(".")
    for candidate in (path, name):
        if candidate in aliases:
            return aliases[candidate]
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    anywhere = {other.rpartition(".")[2]: other for other in reversed(known)}
    for names in (beside, anywhere):
        near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
        if near:
            return names[near[0]]
    return None
