"""How a run's examples are laid out in rows: the sizes to compile for, read off the batches that will come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.data.pipeline import OrderedBatches, Packer, ShuffledBatches
from jaxalign.data.records import ExampleSet
from jaxalign.data.row_plans import RowProgram, RowShape, hull
from jaxalign.data.row_shapes import MOST_PROGRAMS, Work, choose_programs
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.training.reference_scorer import choose_rows

SAMPLE = 1024
"""Examples of a set from which the shape of the rows of a scoring pass is read."""
MOST_PLANNED = 20_000
"""Steps of a run whose sizes are read ahead. A batch that then fits none gets one more size, which is counted."""


@dataclass(frozen=True)
class RowLayout:
    """How examples are packed.

    Attributes:
      programs: the sizes to compile for, cheapest first.
      multiple: row counts are multiples of it.
    """

    programs: tuple[RowProgram, ...]
    multiple: int

    @property
    def shape(self) -> RowShape:
        """What holds any of their rows."""
        return hull(self.programs).shape

    @property
    def row_counts(self) -> tuple[int, ...]:
        """The different numbers of rows, ascending."""
        return tuple(sorted({program.rows for program in self.programs}))

    def facts(self) -> dict[str, Any]:
        """For the manifest: the largest shape, the row counts, and every size as ``[R, T, S, E]``."""
        return {
            **self.shape._asdict(),
            "row_counts": list(self.row_counts),
            "programs": [[rows, *shape[:3]] for rows, shape in self.programs],
        }

    def packer(self, columns: Sequence[str], local_rows: Callable[[int], slice]) -> Packer:
        """A packer of this layout."""
        return Packer(self.programs, self.multiple, column_names=columns, local_rows=local_rows)


def lay_out(
    batches: ShuffledBatches | OrderedBatches,
    multiple: int,
    row_length: int | None = None,
    steps: int | None = None,
    *,
    most: int | None = None,
    work: Work | None = None,
) -> RowLayout:
    """Chooses the sizes to compile for, from the batches that will come.

    Args:
      batches: what will be packed.
      multiple: of every row count.
      row_length: a fixed number of tokens in a row, which holds the longest example (`check_data` says so first).
      steps: how many batches; None = one pass.
      most: sizes; None = `MOST_PROGRAMS` for training, one for a pass in order.
      work: what places in a row cost (`row_work`).
    """
    in_order = isinstance(batches, OrderedBatches)
    count = len(batches) if in_order else steps or -(-len(batches.examples) // batches.batch_size)
    programs = choose_programs(
        [batches.sizes(int(step)) for step in np.linspace(0, count - 1, min(count, MOST_PLANNED))],
        batches.examples.completions + batches.mismatched,
        multiple,
        steps=count,
        most=most or (1 if in_order else MOST_PROGRAMS),
        row_tokens=row_length,
        least=largest_example(batches.examples, batches.mismatched),
        work=work,
    )
    return RowLayout(programs, multiple)


def largest_example(examples: ExampleSet, mismatched: bool) -> tuple[int, int]:
    """Tokens, and scored tokens, that a row must have room for, whatever partners the examples get."""
    largest = int(examples.row_tokens.max()), int(examples.scored_tokens.max())
    if not mismatched:
        return largest
    partner = int(examples.completion_lengths[:, 0].max())
    return largest[0] + partner, largest[1] + partner


def row_work(decoder: DecoderConfig, attention: str = "auto") -> Work:
    """What the places of a row cost with this architecture, beside the products of a token with its layers' weights.

    Args:
      decoder: the architecture.
      attention: its form, `model.attention`; the dense one meets every key of its row.
    """
    query, shared = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    layer = decoder.width * (2 * query + 2 * shared) + 3 * decoder.width * decoder.mlp_width
    scored = float(np.round(decoder.width * decoder.vocab_size / (decoder.layers * layer), 3))
    return Work(scored, float(np.round(2 * query * 1024 / layer, 3))) if attention == "dense" else Work(scored)


def scoring_layout(
    sets: Iterable[ExampleSet], mismatched: bool, *, batch_size: int, multiple: int, width: int
) -> tuple[RowShape, int]:
    """A row that holds the examples of all the sets, and how many rows to score at a time.

    Args:
      sets: what is scored.
      mismatched: whether each example also gets another's completion.
      batch_size: examples of a call.
      multiple: of every row count.
      width: of the model.
    """
    tokens, scored, completions = [], [], 1
    for examples in sets:
        partner = examples.completion_lengths[:, 0] if mismatched else np.zeros(len(examples), int)
        longest = {int(each.argmax()) for each in (examples.row_tokens, examples.scored_tokens)}
        some = sorted({*np.linspace(0, len(examples) - 1, SAMPLE).astype(int).tolist(), *longest})
        # Partners are drawn anew in every epoch; the longest may meet the longest.
        others = np.where(np.isin(some, list(longest)), partner.max(), np.roll(partner[some], 1))
        tokens += (examples.row_tokens[some] + others).tolist()
        scored += (examples.scored_tokens[some] + others).tolist()
        completions = max(completions, examples.completions + mismatched)
    return choose_rows(tokens, scored, completions, batch_size=batch_size, multiple=multiple, width=width)
