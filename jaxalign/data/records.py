"""A row of the user's data as text, an example as token ids, and a compact store of many.

Nothing here knows files, templates or tokenizers. `Example` and `ExampleSet` are what the rest of the package reads.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np

Messages = list[dict[str, Any]]
"""A conversation: dicts with ``role`` and ``content``, perhaps ``tool_calls`` and the like."""


@dataclass(frozen=True)
class Where:
    """A row's place, for messages: ``train.jsonl row 17 (id abc)``.

    Attributes:
      file: the file's name as messages show it.
      row: line of a JSONL file, else position in the file; 1 is the first.
      id: what the row says of itself (``id``, ``prompt_id`` ...), if anything.
      answer: which of the row's answers, where they become examples of their own; 1 is the first.
    """

    file: str
    row: int
    id: str | None = None
    answer: int | None = None

    def __str__(self) -> str:
        named = f" (id {self.id})" if self.id is not None else ""
        return f"{self.file} row {self.row}{named}" + (f", answer {self.answer}" if self.answer is not None else "")


@dataclass(frozen=True, eq=False)
class Record:
    """One row in normal form, still text.

    Attributes:
      where: the row.
      shape: how it was recognised, for the report.
      prompt: plain text, or a conversation that ends with a turn to answer.
      completions: answers of the same kind: ``(chosen, rejected)``, or one.
      label: whether the only answer is desirable; None where the data does not say.
      tools: tool descriptions for the chat template.
      template_arguments: further arguments for the chat template (``chat_template_kwargs``).
      notes: what normalising did that the report counts.
    """

    where: Where
    shape: str
    prompt: str | Messages
    completions: tuple[str | Messages, ...]
    label: bool | None = None
    tools: list[Any] | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_chat(self) -> bool:
        """Whether the row is conversational, so that it needs a chat template."""
        return not isinstance(self.prompt, str)


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt and its K completions, as token ids.

    Attributes:
      prompt: int32 ``[P]``, P >= 1: at least a BOS token or the opening of the chat template.
      completions: K arrays, int32 ``[C_k]``, C_k >= 1. Every token is scored, the terminator included.
      columns: what else rides along: ``desirable`` (bool), ``scores [K]``, ...
      source: where it comes from, different for each example: ``train.jsonl row 17``, or, where a row becomes several
        examples, ``train.jsonl row 17, answer 2``.
    """

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, eq=False)
class ExampleSet(Sequence[Example]):
    """Examples with the same K in flat arrays: E examples of K + 1 segments, the prompt first.

    Segment ``j`` of example ``i`` is ``tokens[offsets[i * (K + 1) + j] : offsets[i * (K + 1) + j + 1]]``.

    Attributes:
      tokens: all token ids, int32.
      offsets: where segments start and end, int64 ``[E * (K + 1) + 1]``.
      completions: K.
      columns: arrays with leading axis E.
      sources: where each example comes from, E strings.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    completions: int
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    @classmethod
    def from_examples(cls, examples: Iterable[Example]) -> ExampleSet:
        """The store of `examples`, which must all have the same number of completions and the same columns."""
        examples = list(examples)
        if not examples:
            raise ValueError("an ExampleSet needs at least one example")
        first = examples[0]
        for example in examples:
            if len(example.completions) != len(first.completions) or set(example.columns) != set(first.columns):
                raise ValueError(f"{example.source or 'an example'}: other completions or columns than the first one")
        segments = [np.asarray(s, np.int32) for e in examples for s in (e.prompt, *e.completions)]
        return cls.from_segments(
            segments,
            completions=len(first.completions),
            columns={name: np.stack([np.asarray(e.columns[name]) for e in examples]) for name in first.columns},
            sources=tuple(e.source for e in examples),
        )

    @classmethod
    def from_segments(
        cls,
        segments: Sequence[Sequence[int] | np.ndarray],
        *,
        completions: int,
        columns: Mapping[str, np.ndarray] | None = None,
        sources: Sequence[str] = (),
    ) -> ExampleSet:
        """The store of E * (K + 1) token id lists: prompt, completion 0 .. K-1, next prompt, ..."""
        offsets = np.zeros(len(segments) + 1, np.int64)
        np.cumsum([len(s) for s in segments], out=offsets[1:])
        tokens = np.empty(int(offsets[-1]), np.int32)
        for start, segment in zip(offsets[:-1], segments, strict=True):
            tokens[start : start + len(segment)] = segment
        examples = len(segments) // (completions + 1)
        return cls(tokens, offsets, completions, dict(columns or {}), tuple(sources) or ("",) * examples)

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // (self.completions + 1)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> ExampleSet: ...
    def __getitem__(self, index: int | slice) -> Example | ExampleSet:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        segments = self._segments(index)
        columns = {name: values[index] for name, values in self.columns.items()}
        return Example(segments[0], tuple(segments[1:]), columns, self.sources[index])

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def _segments(self, index: int) -> list[np.ndarray]:
        width = self.completions + 1
        bounds = self.offsets[index * width : (index + 1) * width + 1]
        return [self.tokens[a:b] for a, b in itertools.pairwise(bounds)]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each segment, int32 ``[E, K + 1]``, the prompt first."""
        return np.diff(self.offsets).astype(np.int32).reshape(len(self), self.completions + 1)

    @property
    def prompt_lengths(self) -> np.ndarray:
        """Prompt tokens, int32 ``[E]``."""
        return self.lengths[:, 0]

    @property
    def completion_lengths(self) -> np.ndarray:
        """Scored tokens, int32 ``[E, K]``."""
        return self.lengths[:, 1:]

    @property
    def content_hash(self) -> str:
        """SHA-256 of the token ids, their segmentation and the columns. Sources do not count."""
        digest = hashlib.sha256(b"jaxalign examples 1\n")
        arrays: dict[str, np.ndarray] = {"tokens": self.tokens, "offsets": self.offsets}
        arrays |= {f"columns/{name}": np.asarray(values) for name, values in sorted(self.columns.items())}
        digest.update(str(self.completions).encode())
        for name, values in arrays.items():
            little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
            digest.update(f"\n{name} {little.dtype.str} {little.shape}\n".encode())
            digest.update(little.tobytes())
        return digest.hexdigest()

    def select(self, indices: Iterable[int]) -> ExampleSet:
        """The examples at `indices`, in that order, as a store of their own."""
        indices = np.asarray(list(indices), np.int64)
        return ExampleSet.from_segments(
            [s for i in indices for s in self._segments(int(i))],
            completions=self.completions,
            columns={name: values[indices] for name, values in self.columns.items()},
            sources=tuple(self.sources[i] for i in indices),
        )
