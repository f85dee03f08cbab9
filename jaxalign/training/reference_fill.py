"""Filling the reference store from examples, and reading it back example by example."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.data.records import Example
from jaxalign.errors import DataError
from jaxalign.training.reference_store import ReferenceStore

Score = Callable[[Sequence[Example]], Iterable[tuple[int, Sequence[np.ndarray]]]]
"""Scores examples: gives, in any order and as they become known, an example's index and the log-probabilities (nats) of
its completions, K arrays of one value a scored token."""

UNWRITTEN = 2
"""Parts that may wait for the disk; then the computation waits."""


class FillReport(NamedTuple):
    """What `fill` found and did, in completions.

    Attributes:
      entries: different completions asked for.
      hits: those that the store had, read and checked.
      computed: those computed now.
      corrupted: damaged entries met; they are among the computed.
    """

    entries: int
    hits: int
    computed: int
    corrupted: int


@dataclass(frozen=True)
class CachedLogps:
    """The stored log-probabilities of N examples, ragged: one flat array, as compact as the token ids.

    Attributes:
      flat: every scored token of every completion, float32 nats.
      offsets: where each completion starts in ``flat``, ``[number of completions + 1]``.
      first: index of each example's first completion, ``[N + 1]``.
    """

    flat: np.ndarray
    offsets: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    def tokens(self, i: int) -> tuple[np.ndarray, ...]:
        """Per-token values of example i: K arrays (the column ``reference_logps``)."""
        return tuple(self.flat[self.offsets[c] : self.offsets[c + 1]] for c in range(self.first[i], self.first[i + 1]))

    def sums(self, i: int) -> np.ndarray:
        """Sums over the scored tokens of example i, ``[K]`` float32 nats (the column ``reference_sums``)."""
        return np.array([values.sum(dtype=np.float64) for values in self.tokens(i)], np.float32)

    def lengths(self, i: int) -> np.ndarray:
        """Scored tokens of each completion of example i, ``[K]`` (the column ``reference_lengths``)."""
        return np.diff(self.offsets[self.first[i] : self.first[i + 1] + 1])


def fill(
    store: ReferenceStore,
    examples: Sequence[Example],
    score: Score,
    *,
    part_entries: int = 4096,
    part_seconds: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> FillReport:
    """Computes the log-probabilities that the store lacks, and no others.

    Parts are written by a thread while the work goes on, so after a kill at most the last of them is computed twice:
    ``part_entries`` entries, or the work of ``part_seconds``, and those that wait for the disk.

    In a run of several processes every process calls this with the same examples, ``score`` is called with the same
    examples in all of them (it may compute on the whole mesh) and gives the same in the same order in all of them;
    each process writes its share. They must see one file system.

    Args:
      store: where to look and write.
      examples: token ids as the reference reads them: its own tokenizer and template, if it has its own.
      score: the reference. Called once, with the examples that lack a completion and of each the lacking ones only.
      part_entries: completions a part.
      part_seconds: after so long a part is written that has fewer.
      progress: called with (examples done, examples to do).

    Raises:
      DataError: ``score`` gave another number of values than there are tokens, or what was written cannot be read.
      NumericsError: a log-probability is not finite.
    """
    if part_entries < 1:
        raise ValueError(f"part_entries must be at least 1, got {part_entries}")
    keys, lengths, first = _entries(store, examples)
    unique, where = _unique(keys)
    unique_lengths = lengths[where]
    corrupted = store.stats.corrupted
    lacking = np.zeros(len(unique), bool)
    lacking[store.missing(unique, unique_lengths)] = True
    process, processes = jax.process_index(), jax.process_count()
    if processes > 1:  # all must walk the same list, whatever each can see
        lacking = np.asarray(multihost_utils.process_allgather(lacking)).any(axis=0)
    unclaimed = {unique[i] for i in np.flatnonzero(lacking)}

    work = _Work(examples, [], [])
    for i in range(len(examples)):
        chosen = []
        for c in range(first[i], first[i + 1]):
            if keys[c] in unclaimed:
                unclaimed.remove(keys[c])
                chosen.append(c - first[i])
        if chosen:
            work.example.append(i)
            work.completions.append(tuple(chosen))

    written = 0
    with _Writer(store, part_entries, part_seconds) as writer:
        for done, (place, values) in enumerate(score(work) if len(work) else (), 1):
            i = work.example[place]
            for k, array in zip(work.completions[place], values, strict=True):
                c = first[i] + k
                if len(array) != lengths[c]:
                    raise DataError(
                        f"{examples[i].source}: the reference scored {len(array)} tokens of a completion of "
                        f"{lengths[c]}"
                    )
                if written % processes == process:
                    writer.add(keys[c], np.array(array, np.float32))  # a copy: a view would keep the whole batch
                written += 1
            if progress is not None:
                progress(done, len(work))

    if processes > 1:
        multihost_utils.sync_global_devices("reference store filled")
        store.refresh()
    if written or len(work):
        absent = store.missing(unique, unique_lengths)
        if len(absent):
            raise DataError(
                f"{len(absent)} of {len(unique)} reference log-probabilities were computed but cannot be read back "
                f"from {store.folder}. With several hosts, cache_dir must be on a file system that all of them see"
            )
    return FillReport(len(unique), len(unique) - written, written, store.stats.corrupted - corrupted)


@dataclass(frozen=True)
class _Work(Sequence[Example]):
    """The examples to score, each with its lacking completions only.

    Attributes:
      examples: all of them.
      example: which to score.
      completions: and which completions of each.
    """

    examples: Sequence[Example]
    example: list[int]
    completions: list[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.example)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example = self.examples[self.example[index]]
        completions = tuple(example.completions[k] for k in self.completions[index])
        return replace(example, completions=completions, unscored=())


class _Writer:
    """Collects entries into parts, and writes them in a thread. Leaving it, also with an error, ends the writing."""

    def __init__(self, store: ReferenceStore, entries: int, seconds: float):
        self._store, self._entries, self._seconds = store, entries, seconds
        self._part: dict[bytes, np.ndarray] = {}
        self._since = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "reference store")
        self._waiting: list[Future[None]] = []

    def add(self, key: bytes, values: np.ndarray) -> None:
        """Adds an entry; raises what an earlier part raised."""
        self._part[key] = values
        if len(self._part) >= self._entries or time.monotonic() - self._since > self._seconds:
            self.flush()

    def flush(self) -> None:
        """Hands the part over to the thread."""
        part, self._part, self._since = self._part, {}, time.monotonic()
        if part:
            self._waiting.append(self._thread.submit(self._store.put, list(part), list(part.values())))
        self.finish(UNWRITTEN)

    def finish(self, unwritten: int = 0) -> None:
        """Waits until at most so many parts are not on disk."""
        while len(self._waiting) > unwritten:
            self._waiting.pop(0).result()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self.flush()
                self.finish()
        finally:
            self._thread.shutdown()


def read(store: ReferenceStore, examples: Sequence[Example]) -> CachedLogps:
    """The stored log-probabilities of the examples, all in memory (as large as their completion token ids).

    Raises:
      KeyError: some are missing; call `fill` first.
    """
    keys, lengths, first = _entries(store, examples)
    flat, offsets = store.get_flat(keys, lengths)
    return CachedLogps(flat, offsets, first)


def _entries(store: ReferenceStore, examples: Sequence[Example]) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    keys: list[bytes] = []
    lengths: list[int] = []
    first = [0]
    for i in range(len(examples)):
        example = examples[i]
        for completion in example.completions:
            keys.append(store.key(example.prompt, completion))
            lengths.append(len(completion))
        first.append(len(keys))
    return keys, np.asarray(lengths, np.int64), np.asarray(first, np.int64)


def _unique(keys: Sequence[bytes]) -> tuple[list[bytes], np.ndarray]:
    """The different keys in order of first appearance, and where each first appears."""
    place: dict[bytes, int] = {}
    for i, key in enumerate(keys):
        place.setdefault(key, i)
    return list(place), np.fromiter(place.values(), np.int64, len(place))
