"""What a planned step computes with: from the run's data where they are named, otherwise from numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxalign.build.abstract import RowSizes
from jaxalign.build.data import CheckedData, architecture, check_data, shuffled, training_steps
from jaxalign.build.row_layout import lay_out, row_work, scoring_layout
from jaxalign.config import RunConfig
from jaxalign.config_checks import DEFAULT_MAX_LENGTH
from jaxalign.data.row_plans import RowProgram
from jaxalign.data.row_shapes import round_length
from jaxalign.data.rows import attended_keys
from jaxalign.data.sources import expand
from jaxalign.errors import ConfigError, DataError
from jaxalign.methods import Layout, get_method
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.planning.architectures import ARCHITECTURES, hub_architecture
from jaxalign.planning.references import other_model
from jaxalign.planning.workload import Workload, batch_rows

RANKED = 4
"""Completions of a ranking, where neither data nor data.max_completions tell."""


@dataclass(frozen=True)
class Load:
    """What a run reads, for a plan.

    Attributes:
      work: its examples; `examples` is 0 where nobody says how many there are.
      longest: tokens of the longest example, its prompt once.
      completions: K.
      told: where the numbers come from, for people.
      largest: ``(decoder, multiple, batch) -> program``: the largest rows that the data need with the model at work;
        `batch` None = a training step's, else examples of a call of the reference pass. None where the data are not
        here.
    """

    work: Workload
    longest: int
    completions: int
    told: str
    largest: Callable[[DecoderConfig, int, int | None], RowProgram] | None = None

    def sizes(
        self, config: RunConfig, decoder: DecoderConfig, split: int, *, batch: int | None = None, parts: int = 1
    ) -> RowSizes:
        """A batch's rows.

        Args:
          config: the run.
          decoder: the model that is trained, or that scores.
          split: devices that share the rows.
          batch: examples; None = a training step's.
          parts: micro-batches.
        """
        if self.largest is not None:
            rows, shape = self.largest(decoder, split * parts, batch)
            return RowSizes(rows, *shape)
        batch = config.train.batch_size if batch is None else batch
        work = self.work
        fixed = config.data.row_length is not None
        rows, length = batch_rows(batch, work.tokens, work.row, split * parts, fixed=fixed)
        row = round_length(math.ceil(length))
        scored = min(row, round_length(math.ceil(row * work.scored / work.tokens)))
        return RowSizes(rows, row, scored, max(1, math.ceil(batch / rows), int(row // work.tokens)), self.completions)


def planned_architecture(config: RunConfig, name: str | None = None) -> DecoderConfig:
    """The architecture of the run's policy, or of another model: from a file, a folder, or what is known of a hub id.

    Raises:
      ConfigError: it is known from nowhere.
    """
    if name is None and config.model.config is not None:
        return architecture(config)
    source = name or str(config.model.path)
    found = hub_architecture(source)
    if found is None:
        option = "reference.source" if name else "model.path"
        raise ConfigError(
            f"{option}: got {source!r}, whose architecture is not known here: it is neither a folder with a "
            f"config.json, nor in the hub's cache, nor one of {', '.join(ARCHITECTURES)}. Give its config.json with "
            "--config.model.config=FILE in place of model.path."
        )
    return found


def load_of(
    config: RunConfig,
    *,
    tokens: int | None = None,
    mean_tokens: float | None = None,
    examples: int | None = None,
    positions: int = DEFAULT_MAX_LENGTH,
) -> Load:
    """What the run reads.

    Args:
      config: the run, resolved.
      tokens: of the longest example, its prompt once; None = from the data, or from data.row_length, or
        data.max_length for the prompt with each completion.
      mean_tokens: of an example on average; None = from the data, or every example is the longest.
      examples: of the training data; None = from the data, or nobody knows.
      positions: of the model, which bound the default of data.max_length.

    Raises:
      ConfigError: the numbers contradict each other.
    """
    data = None if tokens is not None else _data(config)
    if data is not None:
        return _counted(config, data, mean_tokens, examples)
    method = get_method(config.method.name)
    completions = {Layout.SINGLE: 1, Layout.UNPAIRED: 1, Layout.PAIRED: 2}.get(
        method.layout, config.data.max_completions or RANKED
    )
    completions += method.mismatched
    length = config.data.max_length or min(DEFAULT_MAX_LENGTH, positions)
    told = f"up to {tokens} tokens an example, as told"
    if tokens is None:
        tokens = config.data.row_length or completions * length
        told = (
            f"up to {tokens} tokens an example, from data.row_length"
            if config.data.row_length
            else f"up to {tokens} tokens an example: {completions} completions of data.max_length {length} "
            "(--tokens says it better)"
        )
    elif tokens > completions * length:
        told += f" (training cuts at data.max_length {length}: {completions} completions have {completions * length})"
    row = config.data.row_length or round_length(tokens)
    if row < tokens:
        raise ConfigError(f"--tokens: got {tokens}, expected at most data.row_length, {config.data.row_length}.")
    mean = float(tokens if mean_tokens is None else mean_tokens)
    if not 1 <= mean <= tokens:
        raise ConfigError(f"--mean-tokens: got {mean:g}, expected 1 to {tokens}, the longest example.")
    told += ", all as long" if mean == tokens else f", {mean:.0f} on average"
    count = config.data.size if examples is None else examples
    # A third of an example is prompt, unless a limit says less.
    prompt = min(mean / 3, config.data.max_prompt_length or mean)
    each = (mean - prompt) / completions
    work = Workload(
        examples=count or 0,
        held_out=config.data.eval_size,
        tokens=mean,
        scored=mean if config.data.loss_on == "all" else mean - prompt,
        attended=prompt**2 / 2 + completions * (each**2 / 2 + each * prompt),
        row=row,
        assumed=None,
    )
    share = "a third" if prompt == mean / 3 else f"{prompt:.0f}"
    return Load(work, tokens, completions, f"{told}, {share} of it prompt")


def _data(config: RunConfig) -> CheckedData | None:
    """The run's data, if they and a tokenizer are on this machine."""
    tokenizer = config.model.tokenizer or config.model.path
    if not config.data.train or tokenizer is None or not Path(tokenizer).expanduser().is_dir():
        return None
    try:
        local = all(isinstance(part, Path) for name in (*config.data.train, *config.data.eval) for part in expand(name))
    except DataError:
        return None
    return check_data(config) if local else None


def _counted(config: RunConfig, data: CheckedData, mean: float | None, examples: int | None) -> Load:
    method = get_method(config.method.name)
    lengths = np.asarray(data.train.lengths, np.float64)
    prompt, rest = lengths[:, 0], lengths[:, 1:]
    if method.mismatched:
        rest = np.concatenate([rest, np.roll(rest[:, :1], 1, axis=0)], axis=1)
    total = prompt + rest.sum(axis=1)
    longest = int(total.max())
    row = config.data.row_length or round_length(longest)
    scale = 1.0 if mean is None else mean / float(total.mean())
    work = Workload(
        examples=len(total) if examples is None else examples,
        held_out=0 if data.held_out is None else len(data.held_out),
        tokens=float(total.mean()) * scale,
        scored=float((total if config.data.loss_on == "all" else rest.sum(axis=1)).mean()) * scale,
        attended=float(attended_keys(np.column_stack([prompt, rest])).mean()) * scale**2,
        row=row,
        assumed=None,
    )
    where = f"{len(total)} examples of {' '.join(config.data.train)}"
    told = f"{where}: {total.mean():.0f} tokens on average, {longest} the longest"
    other = other_model(config)
    if other is not None:
        told += f", counted with the policy's tokenizer, not with that of {other}"
    # Other lengths than the data's leave nothing to lay out.
    largest = _largest(config, data) if mean is None else None
    return Load(work, longest, rest.shape[1], told, largest)


def _largest(config: RunConfig, data: CheckedData) -> Callable[[DecoderConfig, int, int | None], RowProgram]:
    """The rows of the data as training and the reference pass lay them out."""
    method = get_method(config.method.name)

    @functools.cache
    def largest(decoder: DecoderConfig, multiple: int, batch: int | None) -> RowProgram:
        if batch is None:
            batches = shuffled(data.train, method, config)
            steps, work = training_steps(config, data), row_work(decoder, config.model.attention)
            return lay_out(batches, multiple, config.data.row_length, steps, work=work).programs[-1]
        sets = [data.train] if data.held_out is None else [data.train, data.held_out]
        shape, rows = scoring_layout(sets, method.mismatched, batch_size=batch, multiple=multiple, width=decoder.width)
        return RowProgram(rows, shape)

    return largest


def planned_steps(config: RunConfig, load: Load) -> int | None:
    """Optimizer steps of the run; None where nobody says how many examples there are."""
    if config.train.steps is not None:
        return config.train.steps
    if not load.work.examples:
        return None
    return max(1, round((config.train.epochs or 1.0) * load.work.examples / config.train.batch_size))
