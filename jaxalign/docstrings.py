"""What a docstring says, part by part: Google's sections, and formulas as literal blocks behind ``::``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

_SECTION = re.compile(r"^([A-Z][a-z]+):$", re.MULTILINE)
_ITEM = re.compile(r"^(\*{0,2}[A-Za-z_][\w./]*): ?(.*)$")


class Block(NamedTuple):
    """A paragraph, a list, or a literal block, whose lines must stay as they are."""

    kind: Literal["text", "list", "code"]
    text: str


@dataclass(frozen=True)
class Docstring:
    """The parts of a docstring.

    Attributes:
      summary: its first line.
      body: what stands between the summary and the first section.
      sections: the text of each section by its name, without indentation: ``Args``, ``Returns``, ``References``, ...
    """

    summary: str
    body: tuple[Block, ...]
    sections: Mapping[str, str]

    @property
    def formula(self) -> str:
        """The first literal block of the body; "" where there is none."""
        return next((block.text for block in self.body if block.kind == "code"), "")

    @property
    def meaning(self) -> tuple[Block, ...]:
        """The body without its formula."""
        first = next((i for i, block in enumerate(self.body) if block.kind == "code"), -1)
        return tuple(block for i, block in enumerate(self.body) if i != first)

    def items(self, section: str) -> dict[str, str]:
        """The entries ``name: text`` of a section, each text in one line."""
        found: dict[str, list[str]] = {}
        name = None
        for line in self.sections.get(section, "").splitlines():
            item = _ITEM.match(line)
            if item:
                name = item[1].lstrip("*")
                found[name] = [item[2]]
            elif name is not None:
                found[name].append(line.strip())
        return {name: " ".join(" ".join(lines).split()) for name, lines in found.items()}


def read_docstring(described: Any) -> Docstring:
    """The docstring of a function, class or module, in parts; empty parts where it has none."""
    text = inspect.getdoc(described) or ""
    summary, _, rest = text.partition("\n")
    pieces = _SECTION.split(rest)
    sections = {name: inspect.cleandoc(content) for name, content in zip(pieces[1::2], pieces[2::2], strict=True)}
    return Docstring(summary.strip(), blocks(pieces[0]), sections)


def blocks(text: str) -> tuple[Block, ...]:
    """Text as paragraphs, each in one line, lists and literal blocks."""
    found: list[Block] = []
    literal = False
    for paragraph in re.split(r"\n[ \t]*\n", inspect.cleandoc(text)):
        paragraph = paragraph.strip("\n")
        if not paragraph.strip():
            continue
        if literal and paragraph.startswith(" "):
            before = found.pop().text + "\n\n" if found and found[-1].kind == "code" else ""
            found.append(Block("code", before + paragraph))
            continue
        literal = paragraph.endswith("::")
        paragraph = paragraph.removesuffix("::") + (":" if literal and paragraph != "::" else "")
        if paragraph.startswith(("* ", "- ")):
            items = re.split(r"\n(?=[*-] )", paragraph)
            found.append(Block("list", "\n".join(" ".join(item.split()) for item in items)))
        elif paragraph:
            found.append(Block("text", " ".join(paragraph.split())))
    return tuple(Block(b.kind, inspect.cleandoc("\n" + b.text)) if b.kind == "code" else b for b in found)
