"""What the studies' arguments have in common: all that is wrong with them is told at once."""

from collections.abc import Iterable, Iterator
from typing import Any

from jaxalign.errors import did_you_mean

FULL_ONLY = {"tensor": 1, "microbatches": 1}
"""Arguments, with their defaults, that say nothing of the tiny scale."""


def words(text: str) -> list[str]:
    """The parts of a list joined by +."""
    return list(dict.fromkeys(word for word in text.split("+") if word))


def unknown(name: str, text: str, known: Iterable[str]) -> Iterator[str]:
    """Problems of a list whose parts are names."""
    known = list(known)
    for word in words(text):
        if word not in known:
            yield f"{name}: got {word!r}, expected some of {'+'.join(known)}.{did_you_mean(word, known)}"


def out_of_range(args: Any) -> Iterator[str]:
    """Problems of the numbers."""
    if args.seeds < 0:
        yield f"seeds: got {args.seeds}, expected how many, at least 1."
    for name in ("tensor", "microbatches"):
        if getattr(args, name) < 1:
            yield f"{name}: got {getattr(args, name)}, expected at least 1."


def without_effect(args: Any, defaults: dict[str, Any], needs: dict[str, str]) -> Iterator[str]:
    """Problems of arguments that would be ignored.

    Args:
      args: the arguments.
      defaults: of those that only the full scale has.
      needs: argument -> another one without which it changes nothing.
    """
    changed = [name for name, default in defaults.items() if getattr(args, name) != default]
    if args.scale == "tiny":
        for name in changed:
            yield f"{name}: got {getattr(args, name)!r}, which scale=tiny does not read. Leave it out."
        return
    for name, other in needs.items():
        if name in changed and not getattr(args, other):
            got = getattr(args, name)
            yield f"{name}: got {got!r}, which changes nothing without {other}=. Give that, or leave it out."
