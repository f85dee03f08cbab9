"""The examples through a reference's eyes: what it reads in place of what the policy reads."""

from __future__ import annotations

from collections.abc import Sequence
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
      shown: every different example that the run will show, and no other.
      places: where in `shown` each example is, ``[epochs, N]``, -1 where it is not shown; one row when all epochs are
        alike.
      token_level: the completions have the policy's tokens, so each token has a log-probability of its own.
      template_hash: of the chat template and the tokenizer that made the tokens.
    """

    examples: ExampleSet
    shown: Sequence[Example]
    places: np.ndarray
    token_level: bool
    template_hash: str

    def index(self, epoch: int, identity: int) -> int:
        """Where in `shown` an example of an epoch is."""
        place = int(self.places[epoch if len(self.places) > 1 else 0, identity])
        if place < 0:
            raise IndexError(f"example {identity} is not shown in epoch {epoch}")
        return place


def reference_views(config: RunConfig, data: CheckedData, steps: int, *, whole: bool = False) -> dict[str, View]:
    """Each set of the run as its reference reads it.

    * the policy before training reads the same tokens;
    * the prior reads ``reference.prior_prefix`` in place of the prompt;
    * another model reads the text in its own tokens and chat template, unless both are the policy's.

    Args:
      config: the run, resolved.
      data: its examples.
      steps: optimizer steps, which decide what is shown: of less than an epoch not all examples, and of several
        epochs other mismatched completions in each.
      whole: show all examples in every epoch that begins.

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
    return {name: _view(config, name, sets[name], reports[name], steps, token_level, whole) for name in names}


def _view(
    config: RunConfig, name: str, examples: ExampleSet, report: DataReport, steps: int, token_level: bool, whole: bool
) -> View:
    method = get_method(config.method.name)
    count = len(examples)
    shown: Sequence[Example] = examples
    places = np.arange(count)[None]
    taken = steps * config.train.batch_size
    if name == "train" and (method.mismatched or (taken < count and not whole)):
        batches = shuffled(examples, method, config)
        epochs = -(-taken // count) if method.mismatched else 1
        order = np.stack([batches.order(epoch) for epoch in range(epochs)])
        last = count if whole else taken - (epochs - 1) * count
        stops = [count] * (epochs - 1) + [last]
        pairs = [(e, int(i)) for e, stop in enumerate(stops) for i in np.sort(order[e][:stop])]
        places = np.full((epochs, count), -1)
        places[tuple(np.array(pairs).T)] = np.arange(len(pairs))
        shown = _Shown(batches, pairs)
    elif method.mismatched:
        batches = ordered(examples, method, 1, config.data.seed)
        shown = [batches.example(i) for i in range(count)]
    identity = f"{report.template_hash or 'plain text'}/{report.tokenizer_hash}"
    return View(examples, shown, places, token_level, identity)


class _Shown(Sequence[Example]):
    """Examples as epochs show them, each named by (epoch, example)."""

    def __init__(self, batches: ShuffledBatches, pairs: Sequence[tuple[int, int]]):
        self._batches = batches
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._batches.example(*pair) for pair in self._pairs[index]]
        return self._batches.example(*self._pairs[index])


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
