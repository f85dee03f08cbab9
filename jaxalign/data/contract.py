"""The data contract: what can be wrong with a row, how it is told, and what happens then.

Every row is checked before any weights are read. ``strict`` stops with all problems at once; ``drop`` leaves bad rows
out and counts them by reason. Published data sets do hold a few rows without a signal (an empty answer, two equal
answers, a control token in the text): strict leaves those out too, counted and named in the report's warnings, as
long as they are at most `tolerance` of the rows. More of them, and every other problem, stop the run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from jaxalign.data.records import Where
from jaxalign.errors import DataError, counted, some

OnBad = Literal["strict", "drop"]


@dataclass(frozen=True)
class Reason:
    """A kind of problem: what to do about it, and whether strict mode tolerates a few such rows."""

    advice: str = ""
    tolerated: bool = False


REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "missing column": Reason("Name your columns with data.columns."),
        "null": Reason(),
        "wrong type": Reason(),
        "malformed JSON": Reason(),
        "non-UTF-8": Reason("Re-encode the file as UTF-8."),
        "lone surrogate": Reason(),
        "label invalid": Reason(),
        "score invalid": Reason(),
        "one answer only": Reason(tolerated=True),
        "step without a token": Reason(),
        "empty answer": Reason(tolerated=True),
        "empty prompt": Reason(),
        "no common prompt": Reason("Give a 'prompt' column, or name yours with data.columns.prompt."),
        "prompt not repeated": Reason(),
        "duplicated prompt in answer": Reason("Remove the prompt from the answers, or remove the 'prompt' column."),
        "identical pair": Reason(tolerated=True),
        "special token in text": Reason("Use data.special_tokens=allow if they are meant as control tokens.", True),
        "template failure": Reason("Choose another template with model.chat_template."),
        "no chat template": Reason("Set model.chat_template to a file, or to chatml."),
        "token id outside the vocabulary": Reason("The tokenizer does not belong to this model."),
        "too long": Reason("Raise data.max_length, or use data.truncation=cut."),
        "prompt too long": Reason("Raise data.max_length, or lower data.max_prompt_length to cut prompts."),
        "answer fully truncated": Reason("Raise data.max_length, or lower data.max_prompt_length to cut prompts."),
        "identical after truncation": Reason("Raise data.max_length.", True),
        "longer than the model's positions": Reason("Lower data.max_length."),
    }
)


class RowProblem(Exception):
    """A row breaks the contract.

    Args:
      reason: a name of `REASONS`.
      detail: what was got and what was expected. Rows with the same detail are told together.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class NoExample(Exception):
    """A sound row that holds no example for the layout: a tie, say.

    Args:
      note: the report counts it under this.
      shape: how the row was recognised.
    """

    def __init__(self, note: str, shape: str = ""):
        super().__init__(note)
        self.note, self.shape = note, shape


class Problems:
    """Collects problems over all rows, then either raises them together or counts them."""

    def __init__(self, on_bad: OnBad = "strict", tolerance: float = 0.01):
        self.on_bad, self.tolerance = on_bad, tolerance
        self._groups: dict[tuple[str, str], list[Where]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def add(self, where: Where, problem: RowProblem) -> None:
        """Note that the row breaks the contract."""
        self._groups.setdefault((problem.reason, problem.detail), []).append(where)

    def by_reason(self) -> dict[str, list[Where]]:
        """The rows with each reason, in the order they were met."""
        found: dict[str, list[Where]] = defaultdict(list)
        for (reason, _), rows in self._groups.items():
            found[reason] += rows
        return dict(found)

    def tolerated(self, rows: int) -> set[str]:
        """Reasons that strict mode leaves out of `rows` rows without stopping."""
        counts = {reason: len(found) for reason, found in self.by_reason().items()}
        return {r for r, n in counts.items() if REASONS[r].tolerated and n <= self.tolerance * rows}

    def check(self, rows: int) -> None:
        """Raise what stops the run.

        Raises:
          DataError: in strict mode, one line for every problem that is not tolerated.
        """
        if self.on_bad == "drop":
            return
        tolerated = self.tolerated(rows)
        lines = [
            _line(reason, detail, found, rows, self.tolerance)
            for (reason, detail), found in self._groups.items()
            if reason not in tolerated
        ]
        if lines:
            raise DataError(lines)


def _line(reason: str, detail: str, found: list[Where], rows: int, tolerance: float) -> str:
    kind = REASONS[reason]
    count = f"{counted(len(found), 'row')} {'has' if len(found) == 1 else 'have'} this problem"
    parts = [f"{found[0]}: {detail}.", f"{count}: {row_list(found)}."]
    if kind.tolerated:
        parts.append(f"Strict mode leaves out up to {tolerance:.0%} of the rows ({rows}) for this.")
    parts += [kind.advice] if kind.advice else []
    if len(found) < rows:  # or nothing would be left
        parts.append("Use data.on_bad=drop to skip them.")
    return " ".join(parts)


def row_list(found: Iterable[Where], limit: int = 10) -> str:
    """Row numbers for a message: ``17, 40 and 3 more``; with file names where there are several files."""
    found = list(found)
    several = len({w.file for w in found}) > 1
    return some((f"{w.file} {w.row}" if several else w.row for w in found), limit)


@dataclass(frozen=True)
class DataReport:
    """What became of the rows. Counts are of rows unless said otherwise; `as_dict` goes to the manifest.

    Attributes:
      files: what was read, with the SHA-256 of each file's bytes where it is a file.
      rows: rows read.
      examples: examples kept.
      layout: of the examples.
      shapes: rows by recognised shape.
      dropped: rows left out, by reason.
      dropped_rows: the first ten of them, by reason.
      notes: what was changed or noticed without dropping, by kind.
      labels: examples by label, for the unpaired layout.
      truncation: counts of examples: ``prompt_cut``, ``completion_cut``, ``eos_lost``; tokens: ``tokens_cut``.
      boundary: ``policy``, and completions whose tokens would differ under the other policy (``differ`` of
        ``completions``).
      lengths: tokens: mean and maximum of prompts and completions.
      terminators: completions by the token that ends them.
      template_hash: SHA-256 of the chat template's text, None without one.
      tokenizer_hash: SHA-256 of the tokenizer.
      data_hash: SHA-256 of the resulting token ids and columns.
      warnings: sentences to show the user.
    """

    files: Mapping[str, str | None]
    rows: int
    examples: int
    layout: str
    shapes: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    dropped_rows: Mapping[str, list[str]] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    truncation: Mapping[str, int] = field(default_factory=dict)
    boundary: Mapping[str, Any] = field(default_factory=dict)
    lengths: Mapping[str, float] = field(default_factory=dict)
    terminators: Mapping[str, int] = field(default_factory=dict)
    template_hash: str | None = None
    tokenizer_hash: str | None = None
    data_hash: str | None = None
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            name: dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    def summary(self) -> str:
        """A few lines for the terminal."""
        shapes = ", ".join(f"{n} {shape}" for shape, n in self.shapes.items())
        lines = [f"{counted(self.examples, 'example')} ({self.layout}) from {counted(self.rows, 'row')}: {shapes}"]
        for title, counts in (("left out", self.dropped), ("noted", self.notes), ("labels", self.labels)):
            if counts:
                lines.append(f"{title}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
        if self.lengths:
            lines.append("tokens: " + ", ".join(f"{name} {value:g}" for name, value in self.lengths.items()))
        cut = {name: n for name, n in self.truncation.items() if n}
        lines.append("cut: " + (", ".join(f"{name} {n}" for name, n in cut.items()) or "nothing"))
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings])
