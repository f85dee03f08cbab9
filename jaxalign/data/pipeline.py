"""From a tokenised set to packed batches, as a deterministic grain pipeline.

Which examples a step takes is a pure function of (seed, step), so the position in the data is one integer, resuming
costs nothing, and every process computes the same plan and writes only its own rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from jaxalign.data.records import Example, ExampleSet
from jaxalign.data.row_plans import RowPlan, RowProgram, place
from jaxalign.data.rows import attended_keys, build_rows
from jaxalign.types import Rows

Attach = Callable[[int, int], Mapping[str, Any]]
"""Further columns of an example, looked up when it is shown: ``(epoch, example_id) -> columns``."""


class PackedBatch(NamedTuple):
    """One optimizer step's examples, packed.

    Attributes:
      rows: this process's rows, NumPy.
      global_rows: R over all processes.
      first_row: index among them of this process's first row.
      example_ids: the batch's examples in order, for messages.
      tokens: unique tokens of the whole batch: every prompt once, every completion once.
      scored: scored tokens of the whole batch.
      attended: keys that the tokens of the whole batch look at, together.
    """

    rows: Rows
    global_rows: int
    first_row: int
    example_ids: tuple[int, ...]
    tokens: int
    scored: int
    attended: float

    @property
    def places(self) -> int:
        """Token places of all rows, padding included."""
        return self.global_rows * self.rows.tokens.shape[1]

    @property
    def slots(self) -> int:
        """Scored slots of all rows, those that are empty included."""
        return self.global_rows * self.rows.score_slot.shape[1]


class ShuffledBatches:
    """Random access to training batches: exactly `batch_size` examples each, reshuffled every epoch.

    Batches run across the end of an epoch, so no example is left out and none is padding.

    Args:
      examples: the tokenised set.
      batch_size: examples per optimizer step.
      seed: of the order.
      mismatched: put another example's completion behind each prompt as one more completion (KTO's estimate of the
        KL term). Partners are drawn anew every epoch. They never are the example itself and, unless the data hold
        little else, have another prompt and another completion.
      attach: further columns.

    Raises:
      ValueError: mismatched completions are asked for and there is only one example.
    """

    def __init__(
        self,
        examples: ExampleSet,
        *,
        batch_size: int,
        seed: int,
        mismatched: bool = False,
        attach: Attach | None = None,
    ):
        _check_partners(examples, mismatched)
        self.examples = examples
        self.batch_size = batch_size
        self.mismatched = mismatched
        self.attach = attach
        self._order = lru_cache(maxsize=4)(lambda epoch: _permutation(len(examples), seed, epoch, 0))
        kinds = _kinds(examples) if mismatched else None
        self._ring = lru_cache(maxsize=4)(lambda epoch: _partners(len(examples), seed, epoch, kinds))

    def order(self, epoch: int) -> np.ndarray:
        """The examples of an epoch in the order in which it shows them, ``[N]``."""
        return self._order(epoch)

    def ids(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, example id) pairs of a step."""
        count = len(self.examples)
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [(p // count, int(self._order(p // count)[p % count])) for p in places]

    def sizes(self, step: int) -> tuple[list[int], list[int]]:
        """Tokens, and scored tokens, of each example of a step."""
        ids = self.ids(step)
        partners = [int(self._ring(epoch)[identity]) for epoch, identity in ids] if self.mismatched else None
        return _sizes(self.examples, [identity for _, identity in ids], partners)

    def example(self, epoch: int, identity: int) -> Example:
        """An example as that epoch shows it."""
        partner = self.examples[int(self._ring(epoch)[identity])] if self.mismatched else None
        return _shown(self.examples[identity], partner, self.attach, epoch, identity)

    def __call__(self, step: int) -> list[tuple[int, Example]]:
        """The examples of a step, each with its id."""
        return [(identity, self.example(epoch, identity)) for epoch, identity in self.ids(step)]


class OrderedBatches:
    """The whole set once, in order; the last batch may be smaller. For evaluation and for scoring a reference.

    Args:
      examples: the tokenised set.
      batch_size: examples at a time; what is computed from them does not depend on it.
      mismatched: as in `ShuffledBatches`, with the partners of epoch 0.
      seed: of the partners.
      attach: further columns.

    Raises:
      ValueError: mismatched completions are asked for and there is only one example.
    """

    def __init__(
        self,
        examples: ExampleSet,
        *,
        batch_size: int,
        mismatched: bool = False,
        seed: int = 0,
        attach: Attach | None = None,
    ):
        _check_partners(examples, mismatched)
        self.examples = examples
        self.batch_size = batch_size
        self.mismatched = mismatched
        self.attach = attach
        self._ring = _partners(len(examples), seed, 0, _kinds(examples)) if mismatched else None

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def sizes(self, step: int) -> tuple[list[int], list[int]]:
        """Tokens, and scored tokens, of each example of a batch."""
        ids = list(self._ids(step))
        partners = None if self._ring is None else [int(self._ring[i]) for i in ids]
        return _sizes(self.examples, ids, partners)

    def example(self, identity: int) -> Example:
        """An example as the pass shows it."""
        partner = None if self._ring is None else self.examples[int(self._ring[identity])]
        return _shown(self.examples[identity], partner, self.attach, 0, identity)

    def __call__(self, step: int) -> list[tuple[int, Example]]:
        """The examples of a batch, each with its id."""
        return [(i, self.example(i)) for i in self._ids(step)]

    def _ids(self, step: int) -> range:
        return range(step * self.batch_size, min(len(self.examples), (step + 1) * self.batch_size))


def _sizes(examples: ExampleSet, ids: Sequence[int], partners: Sequence[int] | None) -> tuple[list[int], list[int]]:
    """What each example fills of a row: tokens, and scored tokens."""
    tokens = examples.lengths[ids].sum(axis=1)
    scored = examples.completion_lengths[ids].sum(axis=1)
    if partners is not None:
        partner = examples.completion_lengths[partners, 0]
        tokens, scored = tokens + partner, scored + partner
    return tokens.tolist(), scored.tolist()


def _shown(example: Example, partner: Example | None, attach: Attach | None, epoch: int, identity: int) -> Example:
    completions = example.completions if partner is None else (*example.completions, partner.completions[0])
    columns = example.columns if attach is None else {**example.columns, **attach(epoch, identity)}
    return replace(example, completions=completions, columns=columns)


class Packer:
    """Packs a step's examples into rows; the same plan on every process.

    Args:
      programs: the sizes that the step is compiled for, cheapest first; a batch takes the first that it fits into.
      multiple: of the number of rows where a batch fits none.
      column_names: columns to carry (see `build_rows`).
      local_rows: the rows of R that this process owns, as a slice.
    """

    def __init__(
        self,
        programs: Sequence[RowProgram],
        multiple: int,
        *,
        column_names: Sequence[str] = (),
        local_rows: Callable[[int], slice] = lambda rows: slice(0, rows),
    ):
        self.programs = tuple(programs)
        self.multiple = multiple
        self.column_names = tuple(column_names)
        self.local_rows = local_rows

    def plan(self, examples: Sequence[Example]) -> tuple[RowProgram, RowPlan]:
        """The size that the examples take, and which of them share a row."""
        scored = [sum(map(len, example.completions)) for example in examples]
        tokens = [len(e.prompt) + s + sum(map(len, e.unscored)) for e, s in zip(examples, scored, strict=True)]
        return place(tokens, scored, self.programs, self.multiple)

    def __call__(self, batch: Sequence[tuple[int, Example]]) -> PackedBatch:
        """Plans the whole batch and writes this process's rows of it."""
        (count, shape), plan = self.plan([example for _, example in batch])
        local = self.local_rows(count)
        rows: list[list[tuple[int, Example]]] = [[batch[i] for i in row] for row in plan.rows]
        rows.extend([] for _ in range(count - len(rows)))
        built = build_rows(rows, shape, self.column_names, local)
        segments = [[len(s) for s in (e.prompt, *e.completions, *e.unscored)] for _, e in batch]
        attended = float(attended_keys(np.array(segments)).sum())
        return PackedBatch(built, count, local.start, tuple(i for i, _ in batch), plan.tokens, plan.scored, attended)

    def sizes(self, example: Example) -> list[Rows]:
        """The shapes and types of every program's rows: what to compile for.

        Args:
          example: of the set.
        """

        def sized(count: int, array: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, *array.shape[1:]), array.dtype)

        return [
            jax.tree.map(partial(sized, count), build_rows([[]], shape, self.column_names, like=example))
            for count, shape in self.programs
        ]


def training_iterator(
    batches: ShuffledBatches, packer: Packer, steps: int, *, threads: int = 1, buffer: int = 4
) -> grain.DatasetIterator:
    """The steps' batches, packed ahead of time in background threads.

    The iterator's state is its position: orbax checkpoints it, and restoring it is exact whatever was prefetched.
    """
    dataset = grain.MapDataset.range(steps).map(lambda step: packer(batches(int(step))))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(dataset.to_iter_dataset(options))


def ordered_iterator(batches: OrderedBatches, packer: Packer) -> Iterator[PackedBatch]:
    """One pass over the set in order."""
    return (packer(batches(step)) for step in range(len(batches)))


def _permutation(count: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, stream]).permutation(count)


def _check_partners(examples: ExampleSet, mismatched: bool) -> None:
    if mismatched and len(examples) < 2:
        raise ValueError("a mismatched completion needs at least 2 examples, got 1")


def _kinds(examples: ExampleSet) -> np.ndarray:
    """Numbers of each example's prompt and completion, ``[E, 2]``: equal where the token ids are."""
    prompts: dict[bytes, int] = {}
    completions: dict[bytes, int] = {}
    return np.array(
        [
            (
                prompts.setdefault(e.prompt.tobytes(), len(prompts)),
                completions.setdefault(e.completions[0].tobytes(), len(completions)),
            )
            for e in examples
        ]
    )


def _partners(count: int, seed: int, epoch: int, kinds: np.ndarray | None = None, tries: int = 64) -> np.ndarray:
    """A random permutation without fixed points, which avoids partners with an equal prompt or completion.

    Each example's partner is its successor on a random ring. Where that one is unsuitable, it is exchanged with the
    partner of another example drawn at random, if that suits both; after `tries` draws it stays.
    """
    ring = _permutation(count, seed, epoch, 1)
    partners = np.empty(count, np.int64)
    partners[ring] = np.roll(ring, -1)
    if kinds is None:
        return partners
    alike = np.flatnonzero((kinds == kinds[partners]).any(axis=1))
    draws = np.random.default_rng([seed, epoch, 2])
    for i in alike:
        if not (kinds[i] == kinds[partners[i]]).any():
            continue  # an earlier exchange settled it
        others = draws.integers(0, count, tries)
        suits = (kinds[i] != kinds[partners[others]]).all(axis=1) & (kinds[others] != kinds[partners[i]]).all(axis=1)
        if suits.any():
            other = others[np.argmax(suits)]
            partners[[i, other]] = partners[[other, i]]
    return partners
