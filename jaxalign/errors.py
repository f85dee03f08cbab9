"""What can go wrong, each kind with its exit code, and with all its problems told at once.

A message says what was got, what was expected, where, and what to do. `did_you_mean` adds the nearest name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class JaxalignError(Exception):
    """An error of the user's input or run that the command reports without a traceback.

    Attributes:
      exit_code: the process's exit status when this error ends it.
      problems: every problem found, one line each.
    """

    exit_code = 1

    def __init__(self, problems: str | Sequence[str]):
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(JaxalignError):
    """The configuration is wrong: raised before any data or weights are read."""

    exit_code = 2


class DataError(JaxalignError):
    """The data, its tokenizer or its chat template is wrong: raised before any weights are read."""

    exit_code = 3


class NumericsError(JaxalignError):
    """A value is not finite, or a closed form does not hold. The last good checkpoint is kept."""

    exit_code = 4


class ModelError(JaxalignError):
    """A checkpoint folder cannot be read as a model: missing file, unknown architecture, unmodelled field."""

    exit_code = 2


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to a message, ``" Did you mean 'beta'?"``, or ``""`` when nothing is near, whatever its case."""
    by_letters = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), by_letters, n=1, cutoff=0.6)
    return f" Did you mean {by_letters[near[0]]!r}?" if near else ""


def some(names: Iterable[object], most: int) -> str:
    """The first names of a list for a message, ``"17, 40 and 12 more"``."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number: int, noun: str) -> str:
    """``"1 row"``, ``"2 rows"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
