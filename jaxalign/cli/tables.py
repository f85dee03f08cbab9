"""Reports and tokenised examples as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jaxalign.data.tokenizer import token_texts


def report_lines(name: str, report: Mapping[str, Any]) -> Iterator[str]:
    """A nested report, a value a line, aligned."""
    yield name
    rows = list(_flatten(report, 1))
    width = max((len(label) for label, _ in rows), default=0)
    for label, value in rows:
        yield f"{label:<{width}}  {value}".rstrip()


def _flatten(report: Mapping[str, Any], depth: int) -> Iterator[tuple[str, str]]:
    indent = "  " * depth
    for key, value in report.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}", "" if value else "none"
            yield from _flatten(value, depth + 1)
        elif isinstance(value, list | tuple):
            yield f"{indent}{key}", "" if value else "none"
            yield from ((f"{indent}  {item}", "") for item in value)
        else:
            yield f"{indent}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)


def example_lines(example: Any, tokenizer: Any) -> Iterator[str]:
    """An example token by token; ``|`` stands between tokens, so that spaces show to which they belong."""
    yield f"\n{example.source}"
    parts = [("prompt", example.prompt)]
    names = ("chosen", "rejected") if len(example.completions) == 2 else ("completion",) * len(example.completions)
    parts += list(zip(names, example.completions, strict=True))
    for name, ids in parts:
        scored = "" if name == "prompt" else ", all scored"
        yield f"  {name} ({len(ids)} tokens{scored})"
        yield "    " + "|".join(token_texts([int(i) for i in ids], tokenizer)).replace("\n", "\\n")
    for name, value in example.columns.items():
        yield f"  {name}: {value}"
