"""The data of a run: tokenizer, checked examples, packed batches."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.build.row_layout import largest_example
from jaxalign.config import DataConfig, RunConfig
from jaxalign.config_checks import DEFAULT_MAX_LENGTH
from jaxalign.data.chat import load_chat_template
from jaxalign.data.contract import DataReport
from jaxalign.data.density_ratio import prompt_density_ratios
from jaxalign.data.examples import label_counts, length_facts, load_examples
from jaxalign.data.holdout import nested_subset, prompt_key, shared_prompts, split_by_prompt
from jaxalign.data.pipeline import Attach, OrderedBatches, ShuffledBatches
from jaxalign.data.records import ExampleSet
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError, DataError
from jaxalign.methods import Layout, Method, get_method
from jaxalign.models.config_json import parse_config, read_config, read_json
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.huggingface import resolve


@dataclass(frozen=True)
class CheckedData:
    """Data that passed every check.

    Attributes:
      tokenizer: the policy's.
      sets: ``train`` and, if there is held-out data, ``eval``: the examples and what became of their rows.
      max_length: tokens of the longest example that was let through.
    """

    tokenizer: Any
    sets: Mapping[str, tuple[ExampleSet, DataReport]]
    max_length: int

    @property
    def train(self) -> ExampleSet:
        """The examples to train on."""
        return self.sets["train"][0]

    @property
    def held_out(self) -> ExampleSet | None:
        """The held-out examples, if any."""
        return self.sets["eval"][0] if "eval" in self.sets else None

    def as_dict(self) -> dict[str, Any]:
        """The reports, for the manifest."""
        return {name: report.as_dict() for name, (_, report) in self.sets.items()}


def architecture(config: RunConfig) -> DecoderConfig:
    """The policy's architecture. Reads a config.json and no weights."""
    if config.model.path is not None:
        return read_config(resolve(config.model.path, option="model.path"))
    path = Path(str(config.model.config))
    raw = read_json(path)
    if raw is None:
        raise ConfigError(f"model.config: got {str(path)!r}, which is no file, expected the path of a config.json.")
    return parse_config(raw, generation={}, where=str(path))


def tokenizer_folder(config: RunConfig) -> Path:
    """The folder of the run's tokenizer: the one it names, or the model's."""
    source = config.model.tokenizer or config.model.path
    assert source is not None  # config_checks says so first
    return resolve(source, option="model.tokenizer" if config.model.tokenizer else "model.path")


def export_tokenizer(config: RunConfig, tokenizer: Any) -> Any:
    """The tokenizer to write beside trained weights: its chat template is the one that the run used.

    Raises:
      DataError: the template cannot be read.
    """
    if config.model.chat_template is None:
        return tokenizer
    template = load_chat_template(tokenizer, config.model.chat_template)
    assert template is not None  # a template that is given
    exported = copy.deepcopy(tokenizer)
    exported.chat_template = template.text
    return exported


def check_data(config: RunConfig, *, tokenizer: Any = None) -> CheckedData:
    """Reads, checks and tokenises all data of a run, before any weights are read.

    Args:
      config: the run.
      tokenizer: instead of the one the configuration names.

    Raises:
      DataError: with every problem of the training and the held-out data.
      ConfigError: the data do not fit the model.
    """
    decoder = architecture(config)
    tokenizer = tokenizer or load_tokenizer(tokenizer_folder(config))
    data = config.data
    max_length = data.max_length or min(DEFAULT_MAX_LENGTH, decoder.max_positions)
    if max_length > decoder.max_positions:
        raise ConfigError(
            f"data.max_length: got {max_length}, expected at most {decoder.max_positions}, the positions that the "
            "model knows."
        )
    problems: list[str] = []
    loaded: dict[str, tuple[ExampleSet, DataReport]] = {}
    for name, source, split in (("train", data.train, data.train_split), ("eval", data.eval, data.eval_split)):
        if source:
            try:
                loaded[name] = read_examples(
                    config,
                    tokenizer,
                    source,
                    split,
                    chat_template=config.model.chat_template,
                    max_length=max_length,
                    vocabulary=decoder.vocab_size,
                    max_positions=decoder.max_positions,
                )
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(problems)
    examples, report = loaded["train"]
    if "eval" in loaded:
        examples, overlap = _without_overlap(examples, loaded["eval"][0], data)
        loaded["train"] = (examples, _amended(report, examples, overlap))
    elif data.eval_size:
        kept, held = split_by_prompt(examples, data.eval_size, data.seed)
        loaded = {
            "train": (examples.select(kept), _amended(report, examples.select(kept), 0)),
            "eval": (examples.select(held), _amended(report, examples.select(held), 0)),
        }
    if data.size is not None:
        examples, report = loaded["train"]
        apart = get_method(config.method.name).layout is Layout.UNPAIRED
        examples = nested_subset(examples, data.size, data.seed, answers_apart=apart)
        loaded["train"] = (examples, _amended(report, examples, 0))
    if "density_ratios" in get_method(config.method.name).columns:
        loaded = _with_density_ratios(loaded, data.seed)
    if data.loss_on == "all":  # only now: it leaves no prompt to tell examples apart by
        whole = {name: examples.scoring_all_tokens() for name, (examples, _) in loaded.items()}
        loaded = {name: (whole[name], _amended(report, whole[name], 0)) for name, (_, report) in loaded.items()}
    _check_partners(config, {name: examples for name, (examples, _) in loaded.items()})
    _check_row_length(config, loaded["train"][0])
    return CheckedData(tokenizer, loaded, max_length)


def read_examples(
    config: RunConfig,
    tokenizer: Any,
    source: Sequence[str],
    split: str,
    *,
    chat_template: str | None,
    max_length: int | None,
    vocabulary: int,
    max_positions: int,
) -> tuple[ExampleSet, DataReport]:
    """Reads a source of the run with a tokenizer and for a model, which need not be the policy's."""
    data, method = config.data, get_method(config.method.name)
    degrees = method.head_outputs(method.resolve_options(config.method.options)) if "degrees" in method.columns else 2
    needs = [name for name in method.columns if name != "density_ratios"]  # that one is made of the whole set
    if config.reference.source == "columns":
        needs.append("reference_sums")
    return load_examples(
        source[0] if len(source) == 1 else list(source),
        tokenizer,
        layout=method.layout.name.lower(),
        needs=needs,
        split=split,
        config=data.subset,
        columns=data.columns,
        turns=data.turns,
        pairs_per_prompt=data.pairs_per_prompt,
        max_completions=data.max_completions,
        step_separator=data.step_separator,
        last_step_only=data.last_step_only,
        degrees=degrees,
        damaged=data.damaged,
        mark_stop_words=data.mark_stop_words,
        chat_template=chat_template,
        tokenization=data.tokenization,
        special_tokens=data.special_tokens,
        max_length=max_length,
        max_prompt_length=data.max_prompt_length if max_length else None,
        max_completion_length=data.max_completion_length if max_length else None,
        truncation=data.truncation,
        on_bad=data.on_bad,
        tolerance=data.tolerance,
        one_class=data.one_class,
        vocabulary=vocabulary,
        max_positions=max_positions,
    )


def training_steps(config: RunConfig, data: CheckedData) -> int:
    """Optimizer steps of the whole run."""
    if config.train.steps is not None:
        return config.train.steps
    return max(1, round((config.train.epochs or 1.0) * len(data.train) / config.train.batch_size))


def misgivings(config: RunConfig, data: CheckedData) -> list[str]:
    """What is odd about a run's steps on this data; it would train, but hardly as meant."""
    size, count, found = config.train.batch_size, len(data.train), []
    if size > count:
        found.append(
            f"train.batch_size is {size}, more than the {count} training examples: one step sees each of them "
            f"{size / count:.3g} times. A smaller batch makes more steps of an epoch."
        )
    if training_steps(config, data) == 1 and config.optimizer.warmup_ratio > 0:
        found.append(
            "the run has one step, and its learning rate is 0, where the warm-up starts: nothing is learned. Set "
            "optimizer.warmup_ratio=0, a smaller train.batch_size or more train.epochs."
        )
    return found


def _without_overlap(train: ExampleSet, held_out: ExampleSet, data: DataConfig) -> tuple[ExampleSet, int]:
    """The training examples whose prompt is not held out, and how many had to go."""
    pairs = shared_prompts(train, held_out)
    if not pairs:
        return train, 0
    if data.on_bad == "strict":
        held, other = pairs[0]
        raise DataError(
            f"{held_out.sources[held]}: train/eval overlap: its prompt is also that of {train.sources[other]}. "
            f"{len(pairs)} held-out examples have this problem. Use data.on_bad=drop to leave such prompts out of the "
            "training data."
        )
    prompts = {prompt_key(held_out[i]) for i, _ in pairs}
    kept = [i for i in range(len(train)) if prompt_key(train[i]) not in prompts]
    if not kept:
        raise DataError("data.train: every prompt is also held out; no example is left to train on.")
    return train.select(kept), len(train) - len(kept)


def _with_density_ratios(
    loaded: Mapping[str, tuple[ExampleSet, DataReport]], seed: int
) -> dict[str, tuple[ExampleSet, DataReport]]:
    """The sets with the column ``density_ratios``, learned from the training prompts."""
    sets = [examples for examples, _ in loaded.values()]
    prompts = [[example.prompt for example in examples] for examples in sets]
    ratios = prompt_density_ratios(
        prompts[0], sets[0].columns["desirable"], others=[p for rest in prompts[1:] for p in rest], seed=seed
    )
    edges = np.cumsum([0, *map(len, sets)])
    found = {}
    for (name, (examples, report)), start, stop in zip(loaded.items(), edges[:-1], edges[1:], strict=True):
        examples = dataclasses.replace(examples, columns={**examples.columns, "density_ratios": ratios[start:stop]})
        found[name] = (examples, _amended(report, examples, 0))
    return found


def _check_partners(config: RunConfig, sets: Mapping[str, ExampleSet]) -> None:
    """Where each prompt gets another example's completion, there must be another example."""
    sources = {"train": "data.train", "eval": "data.eval" if config.data.eval else "data.eval_size"}
    method = get_method(config.method.name)
    problems = [
        f"{sources[name]}: got 1 {what} example, expected at least 2: method {method.name} puts another example's "
        "answer behind each prompt."
        for name, what in (("train", "training"), ("eval", "held-out"))
        if method.mismatched and name in sets and len(sets[name]) < 2
    ]
    if problems:
        raise DataError(problems)


def _check_row_length(config: RunConfig, examples: ExampleSet) -> None:
    """A row holds whole examples: the prompt with all its completions."""
    least, _ = largest_example(examples, get_method(config.method.name).mismatched)
    given = config.data.row_length
    if given is not None and given < least:
        raise ConfigError(
            f"data.row_length: got {given}, expected at least {least}, the tokens of the longest example with all its "
            "completions, which one row holds. Raise it, lower data.max_length, or leave data.row_length out."
        )


def _amended(report: DataReport, examples: ExampleSet, overlap: int) -> DataReport:
    dropped = {**report.dropped, "train/eval overlap": overlap} if overlap else report.dropped
    return dataclasses.replace(
        report,
        examples=len(examples),
        dropped=dropped,
        labels=label_counts(examples),
        lengths=length_facts(examples),
        data_hash=examples.content_hash,
    )


def column_names(method: Method, reference_columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that a step of this method reads: from the data, from the reference, and places in the row."""
    places = {"rewards": "ends", "degree_logits": "ends", "step_logits": "score_index"}
    derived = {places[name]: None for name in method.inputs if name in places}
    return (*method.columns, *derived, *reference_columns)


def ordered(
    examples: ExampleSet, method: Method, batch_size: int, seed: int, attach: Attach | None = None
) -> OrderedBatches:
    """One pass over examples, as the method wants them."""
    return OrderedBatches(examples, batch_size=batch_size, mismatched=method.mismatched, seed=seed, attach=attach)


def shuffled(examples: ExampleSet, method: Method, config: RunConfig, attach: Attach | None = None) -> ShuffledBatches:
    """The training order."""
    return ShuffledBatches(
        examples,
        batch_size=config.train.batch_size,
        seed=config.data.seed,
        mismatched=method.mismatched,
        attach=attach,
    )
