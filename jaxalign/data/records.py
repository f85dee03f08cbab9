"""A row of the user's data as text, an example as token ids, and a compact store of many.

Nothing here knows files, templates or tokenizers. `Example` and `ExampleSet` are what the rest of the package reads.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
      completions: answers of the same kind: ``(chosen, rejected)``, one, or K that `ranked` says are in no order.
      label: whether the only answer is desirable; None where the data does not say.
      tools: tool descriptions for the chat template.
      template_arguments: further arguments for the chat template (``chat_template_kwargs``).
      notes: what normalising did that the report counts.
      ranked: the answers are told apart by ``columns["scores"]``, not by their places.
      columns: what else the row says: ``scores`` and ``win_probabilities`` (one a completion), ``preference``,
        ``absolute``, ``labels`` (which of a ranking's answers are right), ``token_weights`` (a list a completion),
        ``step_labels`` (where each step of the answer's text ends, and its label), ``degrees``.
      unscored: how many of the last completions are read and never scored.
    """

    where: Where
    shape: str
    prompt: str | Messages
    completions: tuple[str | Messages, ...]
    label: bool | None = None
    tools: list[Any] | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ranked: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)
    unscored: int = 0

    @property
    def is_chat(self) -> bool:
        """Whether the row is conversational, so that it needs a chat template."""
        return not isinstance(self.prompt, str)


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt and its K completions, as token ids.

    Attributes:
      prompt: int32 ``[P]``, P >= 1: at least a BOS token or the opening of the chat template.
      completions: K arrays, int32 ``[C_k]``. Every token is scored, the terminator included. Empty = a ranking has
        fewer than K completions; in other layouts C_k >= 1.
      columns: what else rides along: ``desirable`` (bool), ``scores [K]``, ... A tuple of K arrays ``[C_k]`` has one
        value a scored token.
      source: where it comes from, different for each example: ``train.jsonl row 17``, or, where a row becomes several
        examples, ``train.jsonl row 17, answer 2``.
      unscored: M further completions behind the same prompt whose tokens are read and never scored. They may be empty.
    """

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    unscored: tuple[np.ndarray, ...] = ()


def token_column(values: Any) -> np.ndarray:
    """One value a token in the type that such columns have: float32, int32 or bool."""
    values = np.asarray(values)
    return values.astype({"f": np.float32, "i": np.int32, "u": np.int32}.get(values.dtype.kind, values.dtype))


def no_token(dtype: np.dtype) -> float | int | bool:
    """What a column of one value a token holds where there is no scored token: 0, False, and -1 for integer labels."""
    return {"i": -1, "b": False}.get(dtype.kind, 0.0)


@dataclass(frozen=True, eq=False)
class ExampleSet(Sequence[Example]):
    """Examples with the same K and M in flat arrays: E examples of 1 + K + M segments, the prompt first.

    With ``W = 1 + K + M``, segment ``j`` of example ``i`` is ``tokens[offsets[i * W + j] : offsets[i * W + j + 1]]``.

    Attributes:
      tokens: all token ids, int32.
      offsets: where segments start and end, int64 ``[E * W + 1]``.
      completions: K.
      columns: arrays with leading axis E.
      sources: where each example comes from, E strings.
      unscored: M.
      token_columns: one value a token, aligned with `tokens`, float32, int32 or bool; `no_token` where it is not
        scored.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    completions: int
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    unscored: int = 0
    token_columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def from_examples(cls, examples: Iterable[Example]) -> ExampleSet:
        """The store of `examples`, which must all have the same numbers of completions and the same columns."""
        examples = list(examples)
        if not examples:
            raise ValueError("an ExampleSet needs at least one example")
        kinds = [
            (len(e.completions), len(e.unscored), {name: isinstance(v, tuple) for name, v in e.columns.items()})
            for e in examples
        ]
        for example, kind in zip(examples, kinds, strict=True):
            if kind != kinds[0]:
                raise ValueError(f"{example.source or 'an example'}: other completions or columns than the first one")
        completions, unscored, per_token = kinds[0]
        return cls.from_segments(
            [np.asarray(s, np.int32) for e in examples for s in (e.prompt, *e.completions, *e.unscored)],
            completions=completions,
            unscored=unscored,
            columns={
                name: np.stack([np.asarray(e.columns[name]) for e in examples])
                for name, each in per_token.items()
                if not each
            },
            token_columns={name: _flat_token_column(examples, name) for name, each in per_token.items() if each},
            sources=tuple(e.source for e in examples),
        )

    @classmethod
    def from_segments(
        cls,
        segments: Sequence[Sequence[int] | np.ndarray],
        *,
        completions: int,
        unscored: int = 0,
        columns: Mapping[str, np.ndarray] | None = None,
        token_columns: Mapping[str, np.ndarray] | None = None,
        sources: Sequence[str] = (),
    ) -> ExampleSet:
        """The store of E * (1 + K + M) token id lists: prompt, completions, unscored ones, next prompt, ..."""
        offsets = np.zeros(len(segments) + 1, np.int64)
        np.cumsum([len(s) for s in segments], out=offsets[1:])
        tokens = np.empty(int(offsets[-1]), np.int32)
        for start, segment in zip(offsets[:-1], segments, strict=True):
            tokens[start : start + len(segment)] = segment
        examples = len(segments) // (1 + completions + unscored)
        sources = tuple(sources) or ("",) * examples
        return cls(tokens, offsets, completions, dict(columns or {}), sources, unscored, dict(token_columns or {}))

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self._width

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
        prompt, *rest = self._segments(index)
        scored = slice(1, self.completions + 1)
        columns: dict[str, Any] = {name: values[index] for name, values in self.columns.items()}
        columns |= {name: tuple(self._segments(index, v)[scored]) for name, v in self.token_columns.items()}
        completions, unscored = tuple(rest[: self.completions]), tuple(rest[self.completions :])
        return Example(prompt, completions, columns, self.sources[index], unscored)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    @property
    def _width(self) -> int:
        return 1 + self.completions + self.unscored

    def _segments(self, index: int, values: np.ndarray | None = None) -> list[np.ndarray]:
        """The segments of an example out of `values`, which lie as the tokens do; the tokens themselves if None."""
        values = self.tokens if values is None else values
        bounds = self.offsets[index * self._width : (index + 1) * self._width + 1]
        return [values[a:b] for a, b in itertools.pairwise(bounds)]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each segment, int32 ``[E, 1 + K + M]``, the prompt first."""
        return np.diff(self.offsets).astype(np.int32).reshape(len(self), self._width)

    @property
    def prompt_lengths(self) -> np.ndarray:
        """Prompt tokens, int32 ``[E]``."""
        return self.lengths[:, 0]

    @property
    def completion_lengths(self) -> np.ndarray:
        """Scored tokens, int32 ``[E, K]``."""
        return self.lengths[:, 1 : self.completions + 1]

    @property
    def scored_tokens(self) -> np.ndarray:
        """Scored tokens of each example, int64 ``[E]``."""
        return self.completion_lengths.sum(axis=1, dtype=np.int64)

    @property
    def row_tokens(self) -> np.ndarray:
        """Tokens that each example fills of a row, its unscored completions included, int64 ``[E]``."""
        return self.lengths.sum(axis=1, dtype=np.int64)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the token ids, their segmentation and the columns. Sources do not count."""
        digest = hashlib.sha256(b"jaxalign examples 1\n")
        arrays: dict[str, np.ndarray] = {"tokens": self.tokens, "offsets": self.offsets}
        arrays |= {f"columns/{name}": np.asarray(values) for name, values in sorted(self.columns.items())}
        arrays |= {f"token_columns/{name}": values for name, values in sorted(self.token_columns.items())}
        digest.update(str(self.completions).encode())
        if self.unscored:
            digest.update(f"+{self.unscored}".encode())
        for name, values in arrays.items():
            little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
            digest.update(f"\n{name} {little.dtype.str} {little.shape}\n".encode())
            digest.update(little.tobytes())
        return digest.hexdigest()

    def select(self, indices: Iterable[int]) -> ExampleSet:
        """The examples at `indices`, in that order, as a store of their own."""
        indices = np.asarray(list(indices), np.int64)

        def chosen(values: np.ndarray | None = None) -> list[np.ndarray]:
            return [s for i in indices for s in self._segments(int(i), values)]

        return ExampleSet.from_segments(
            chosen(),
            completions=self.completions,
            unscored=self.unscored,
            columns={name: values[indices] for name, values in self.columns.items()},
            token_columns={
                name: np.concatenate([values[:0], *chosen(values)]) for name, values in self.token_columns.items()
            },
            sources=tuple(self.sources[i] for i in indices),
        )

    def scoring_all_tokens(self) -> ExampleSet:
        """The set with every token scored but the first of each example, which becomes the whole prompt.

        For supervised examples: language modelling of prompt and completion.

        Raises:
          ValueError: there are several completions, or a column has one value a token.
        """
        if self.completions != 1 or self.unscored or self.token_columns:
            raise ValueError("all tokens can be scored where one completion stands behind each prompt, without labels")
        starts = self.offsets[:-1:2]
        offsets = np.append(np.stack([starts, starts + 1], axis=1).reshape(-1), self.offsets[-1])
        return replace(self, offsets=offsets)


def _flat_token_column(examples: Sequence[Example], name: str) -> np.ndarray:
    """A column of one value a scored token, laid out as the tokens of the examples are."""
    found = token_column(np.concatenate([np.asarray(part) for e in examples for part in e.columns[name] if len(part)]))
    nothing = no_token(found.dtype)
    parts = []
    for example in examples:
        parts.append(np.full(len(example.prompt), nothing, found.dtype))
        for completion, values in zip(example.completions, example.columns[name], strict=True):
            if len(values) != len(completion):
                raise ValueError(f"{example.source}: {name} has {len(values)} values for {len(completion)} tokens")
            parts.append(np.asarray(values, found.dtype))
        parts += [np.full(len(u), nothing, found.dtype) for u in example.unscored]
    return np.concatenate(parts)
