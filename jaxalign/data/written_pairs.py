"""Pairs with their reference log-probabilities as files: the columns of ``yale-nlp/RefDPO``.

A row is ``{"prompt", "chosen", "rejected", "chosen_logprob", "rejected_logprob"}``: texts, or lists of messages, and
the sum of the log-probabilities of each answer's tokens, its end token included, in nats. What else the row said of the
pair and a method reads stands beside them. `load_examples` reads such files, and ``reference.source=columns`` the
numbers.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.contract import NoExample, RowProblem
from jaxalign.data.formats import normalise
from jaxalign.data.layouts import LayoutRules, PairsPerPrompt, to_layout
from jaxalign.data.records import Record
from jaxalign.data.sources import Source, read_rows
from jaxalign.errors import DataError


def pair_records(
    source: Source,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    pairs_per_prompt: PairsPerPrompt = "extremes",
    wanted: Collection[str] = (),
) -> dict[str, Record]:
    """The pairs of a source as texts, by the name that `Example.source` has for them.

    Args:
      source: as for `load_examples`.
      split: likewise.
      config: likewise.
      columns: likewise.
      pairs_per_prompt: likewise.
      wanted: columns that the method reads. Rows without one of them, and rows that hold no pair, are left out.
    """
    needs = tuple(name for name in wanted if name in _COLUMNS)
    rules = LayoutRules(layout="paired", needs=needs, pairs_per_prompt=pairs_per_prompt)
    found: dict[str, Record] = {}
    for where, row in read_rows(source, split=split, config=config).rows:
        try:
            records = normalise(row, where, columns=columns, wanted=rules.wanted)
            parts = [part for record in records for part in _split(record, rules)]
        except (RowProblem, NoExample):
            continue
        for i, part in enumerate(parts, 1):
            found[str(part.where) if len(parts) == 1 else f"{part.where}, answer {i}"] = part
    return found


def write_pairs(target: Path, sources: Sequence[str], sums: np.ndarray, records: Mapping[str, Record]) -> None:
    """Writes pairs with the reference's log-probabilities; the file appears when it is complete.

    Args:
      target: the JSONL file.
      sources: the pairs to write, by name, in order.
      sums: log-probabilities of the chosen and the rejected answer of each, ``[pairs, 2]``, nats.
      records: from `pair_records`.

    Raises:
      DataError: a pair is not among the records, because the files changed since they were read.
    """
    missing = [source for source in sources if source not in records]
    if missing:
        raise DataError(f"{missing[0]}: is no longer there. {len(missing)} pairs changed since they were read.")
    temporary = target.with_name(f".{target.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for source, (chosen, rejected) in zip(sources, sums.tolist(), strict=True):
            row = {**_row(records[source]), "chosen_logprob": chosen, "rejected_logprob": rejected}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, target)


def _split(record: Record, rules: LayoutRules) -> list[Record]:
    try:
        return to_layout(record, rules, Counter())
    except NoExample:
        return []


def _row(record: Record) -> dict[str, Any]:
    chosen, rejected = record.completions[:2]
    row: dict[str, Any] = {"prompt": record.prompt, "chosen": chosen, "rejected": rejected}
    if record.where.id is not None:
        row["id"] = record.where.id
    if record.tools:
        row["tools"] = record.tools
    if record.template_arguments:
        row["chat_template_kwargs"] = dict(record.template_arguments)
    return row | dict(pair for name, value in record.columns.items() for pair in _COLUMNS[name](value))


def _sides(name: str, value: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return zip((f"chosen_{name}", f"rejected_{name}"), value, strict=True)


_COLUMNS = {
    "scores": lambda value: _sides("score", value),
    "win_probabilities": lambda value: _sides("win_probability", value),
    "token_weights": lambda value: _sides("token_weights", value),
    "preference": lambda value: [("preference", value)],
    "absolute": lambda value: [("absolute", value)],
}
"""How each column of a pair is spelled in its row."""
