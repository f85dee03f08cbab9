"""The examples through a reference's eyes: what it reads in place of what the policy reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from jaxalign.build.data import CheckedData, ordered, read_examples, shuffled
from jaxalign.config import RunConfig
from jaxalign.data.contract import DataReport
from jaxalign.data.pipeline import ShuffledBatches
from jaxalign.data.records import Example, ExampleSet
from jaxalign.data.tokenization import TokenizerView
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError, DataError
from jaxalign.methods import get_method
from jaxalign.models.config_json import read_config
from jaxalign.models.huggingface import resolve


@dataclass(frozen=True)
class View:
    """One set of examples as the reference reads it.

    Attributes:
      examples: the set, in the policy's order.
      shown: every different example that the run will show, all epochs one after another.
      per_epoch: how many of them an epoch has; 0 when all epochs are alike.
      token_level: the completions have the policy's tokens, so each token has a log-probability of its own.
      template_hash: of the chat template and the tokenizer that made the tokens.
    """

    examples: ExampleSet
    shown: Sequence[Example]
    per_epoch: int
    token_level: bool
    template_hash: str

    def index(self, epoch: int, identity: int) -> int:
        """Where in `shown` an example of an epoch is."""
        return epoch * self.per_epoch + identity


def reference_views(config: RunConfig, data: CheckedData, steps: int) -> dict[str, View]:
    """Each set of the run as its reference reads it.

    * the policy before training reads the same tokens;
    * the prior reads ``reference.prior_prefix`` in place of the prompt;
    * another model reads the text in its own tokens and chat template, unless both are the policy's.

    Args:
      config: the run, resolved.
      data: its examples.
      steps: optimizer steps, which decide how many epochs show other mismatched completions.

    Raises:
      ConfigError: the examples were cut, so that another tokenizer would read other text.
      DataError: the other model's tokenizer or template refuses the data.
    """
    source = config.reference.source
    names = tuple(data.sets)
    token_level = True
    sets = {name: data.sets[name][0] for name in names}
    reports = {name: data.sets[name][1] for name in names}
    if source == "prior":
        prefix = _prior_prefix(data.tokenizer, config.reference.prior_prefix)
        sets = {name: _with_prompt(examples, prefix) for name, examples in sets.items()}
    elif source != "policy":
        others = _other_tokens(config, data)
        if others is not None:
            token_level = False
            sets = {name: others[name][0] for name in names}
            reports = {name: others[name][1] for name in names}
    return {name: _view(config, name, sets[name], reports[name], steps, token_level) for name in names}


def _view(
    config: RunConfig, name: str, examples: ExampleSet, report: DataReport, steps: int, token_level: bool
) -> View:
    method = get_method(config.method.name)
    shown: Sequence[Example] = examples
    per_epoch = 0
    if method.mismatched and name == "train":
        epochs = -(-steps * config.train.batch_size // len(examples))
        shown, per_epoch = _Epochs(shuffled(examples, method, config), epochs), len(examples)
    elif method.mismatched:
        batches = ordered(examples, method, 1, config.data.seed)
        shown = [batches.example(i) for i in range(len(examples))]
    identity = f"{report.template_hash or 'plain text'}/{report.tokenizer_hash}"
    return View(examples, shown, per_epoch, token_level, identity)


class _Epochs(Sequence[Example]):
    """The examples of several epochs, one epoch after another."""

    def __init__(self, batches: ShuffledBatches, epochs: int):
        self._batches = batches
        self._epochs = epochs

    def __len__(self) -> int:
        return self._epochs * len(self._batches.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._batches.example(*divmod(index, len(self._batches.examples)))

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))


def _prior_prefix(tokenizer, text: str) -> list[int]:
    """The tokens that stand for no prompt: BOS (or the end token, where there is no BOS), then the prefix's text."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [start, *tokenizer.encode(text, add_special_tokens=False)]


def _with_prompt(examples: ExampleSet, prompt: list[int]) -> ExampleSet:
    return ExampleSet.from_segments(
        [segment for example in examples for segment in (prompt, *example.completions)],
        completions=examples.completions,
        columns=examples.columns,
        sources=examples.sources,
    )


def _other_tokens(config: RunConfig, data: CheckedData) -> dict[str, tuple[ExampleSet, DataReport]] | None:
    """The data in another model's tokens, example by example; None where these are the policy's."""
    folder = resolve(config.reference.source, option="reference.source")
    tokenizer = load_tokenizer(folder)
    same_vocabulary = TokenizerView.of(tokenizer).content_hash == TokenizerView.of(data.tokenizer).content_hash
    if same_vocabulary and data.sets["train"][1].template_hash is None:
        return None
    decoder = read_config(folder)
    result: dict[str, tuple[ExampleSet, DataReport]] = {}
    for name, (examples, report) in data.sets.items():
        cut = {kind: count for kind, count in report.truncation.items() if count}
        from_train = name == "train" or not config.data.eval
        theirs, their_report = read_examples(
            config,
            tokenizer,
            config.data.train if from_train else config.data.eval,
            config.data.train_split if from_train else config.data.eval_split,
            chat_template=config.reference.chat_template,
            max_length=None,
            vocabulary=decoder.vocab_size,
            max_positions=decoder.max_positions,
        )
        if same_vocabulary and their_report.template_hash == report.template_hash:
            return None
        if cut:
            raise ConfigError(
                f"reference.source: {config.reference.source!r} reads the {name} data in its own tokens, but "
                f"{max(cut.values())} examples were cut to data.max_length in the policy's; the two would score "
                "different text. Use data.truncation=drop, or a larger data.max_length."
            )
        result[name] = (_aligned(examples, theirs, config.reference.source), their_report)
    return result


def _aligned(examples: ExampleSet, theirs: ExampleSet, reference: str) -> ExampleSet:
    """Their examples in our order, matched by the row and the answer that they come from: either may lack some."""
    places = {source: i for i, source in enumerate(theirs.sources)}
    missing = [source for source in examples.sources if source not in places]
    if missing:
        raise DataError(
            f"{missing[0]}: the reference {reference!r} cannot read this example, which the policy reads. "
            f"{len(missing)} examples have this problem."
        )
    aligned = theirs.select([places[source] for source in examples.sources])
    for name, values in examples.columns.items():
        if name not in aligned.columns:
            continue  # made of the policy's set as a whole, not read from its rows
        other = np.flatnonzero((values != aligned.columns[name]).reshape(len(examples), -1).any(axis=1))
        if len(other):
            raise DataError(
                f"{examples.sources[other[0]]}: {name} differs between the policy's reading of the data and that "
                f"of the reference {reference!r}. {len(other)} examples have this problem. Do the files change while "
                "they are read?"
            )
    return aligned
