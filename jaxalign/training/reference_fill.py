"""Filling the reference store from examples, and reading it back example by example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.data.records import Example
from jaxalign.errors import DataError
from jaxalign.training.reference_store import ReferenceStore

Score = Callable[[list[Example]], Sequence[tuple[np.ndarray, ...]]]
"""The log-probabilities (nats) of each example's completions: per example K arrays, one value a scored token."""


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
    batch_size: int = 64,
    part_entries: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> FillReport:
    """Computes the log-probabilities that the store lacks, and no others.

    Parts reach the disk while the work goes on, so after a kill at most ``part_entries`` entries are computed twice.

    In a run of several processes every process calls this with the same examples, ``score`` is called with the same
    batches in all of them (it may compute on the whole mesh) and returns the same values in all of them; each process
    writes its share. They must see one file system.

    Args:
      store: where to look and write.
      examples: token ids as the reference reads them: its own tokenizer and template, if it has its own.
      score: the reference. Called with at most ``batch_size`` examples that lack at least one completion.
      batch_size: examples a call.
      part_entries: completions a part.
      progress: called with (examples done, examples to do) after each batch.

    Raises:
      DataError: ``score`` returned another number of values than there are tokens, or what was written cannot be read.
      NumericsError: a log-probability is not finite.
    """
    if batch_size < 1 or part_entries < 1:
        raise ValueError(f"batch_size and part_entries must be at least 1, got {batch_size} and {part_entries}")
    keys, lengths, first = _entries(store, examples)
    unique, where = _unique(keys)
    unique_lengths = lengths[where]
    corrupted = store.stats.corrupted
    lacking = np.zeros(len(unique), bool)
    lacking[store.missing(unique, unique_lengths)] = True
    process, processes = jax.process_index(), jax.process_count()
    if processes > 1:  # all must walk the same list, whatever each can see
        lacking = np.asarray(multihost_utils.process_allgather(lacking)).any(axis=0)
    to_do = {unique[i] for i in np.flatnonzero(lacking)}

    # An example is scored whole, since its completions share their prompt; only what was lacking is kept.
    work: list[int] = []
    claimed: set[bytes] = set()
    for i in range(len(examples)):
        fresh = {key for key in keys[first[i] : first[i + 1]] if key in to_do and key not in claimed}
        if fresh:
            claimed |= fresh
            work.append(i)

    pending: dict[bytes, np.ndarray] = {}
    written = 0
    for start in range(0, len(work), batch_size):
        batch = work[start : start + batch_size]
        chosen = [examples[i] for i in batch]
        for i, example, values in zip(batch, chosen, score(chosen), strict=True):
            for c, array in zip(range(first[i], first[i + 1]), values, strict=True):
                if len(array) != lengths[c]:
                    raise DataError(
                        f"{example.source}: the reference scored {len(array)} tokens of a completion of {lengths[c]}"
                    )
                if keys[c] in to_do:
                    to_do.remove(keys[c])
                    if written % processes == process:
                        pending[keys[c]] = np.asarray(array, np.float32)
                    written += 1
        if len(pending) >= part_entries:
            store.put(list(pending), list(pending.values()))
            pending.clear()
        if progress is not None:
            progress(start + len(batch), len(work))
    store.put(list(pending), list(pending.values()))

    if processes > 1:
        multihost_utils.sync_global_devices("reference store filled")
        store.refresh()
    if written:
        absent = store.missing(unique, unique_lengths)
        if len(absent):
            raise DataError(
                f"{len(absent)} of {len(unique)} reference log-probabilities were computed but cannot be read back "
                f"from {store.folder}. With several hosts, cache_dir must be on a file system that all of them see"
            )
    return FillReport(len(unique), len(unique) - written, written, store.stats.corrupted - corrupted)


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
