"""A study as data: the question, the models that answer it, how each is made, and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxalign.config import RunConfig
from jaxalign.evaluation.outcome import Outcome

Label = str | int | float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run. Equal stages of several trials are one run.

    Attributes:
      name: ``"sft"``, ``"align"``: what it does, in folders and tables.
      config: the sections of its `RunConfig`, as ``{"method": {"name": "dpo", "beta": 0.1}, ...}``.
      inputs: options that are the exported model of another stage:
        ``{"model.path": sft, "reference.source": other}``.
    """

    name: str
    config: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, Stage] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model as a measure gets it.

    Attributes:
      model: Hugging Face folder or hub id.
      reference: that of the model its last stage was compared with; None where there was none.
      start: that of the model its last stage began from; None for a model that the study did not train.
      config: the last stage's configuration; None for a model that the study did not train.
      run: the last stage's folder (metrics.jsonl, manifest.json); None as above.
      out: a folder of this measurement's own, for files that people want to keep (answers, judgments).
      seed: of what is drawn at random.
    """

    model: str
    reference: str | None = None
    start: str | None = None
    config: RunConfig | None = None
    run: Path | None = None
    out: Path
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one measurement of one model reads and writes, for estimates of cost.

    Attributes:
      why: the assumptions, for people.
      items: questions, prompts or examples; None = all rows of `data`.
      data: files or data sets that they are from; empty where that does not matter.
      split: of a data set's name.
      read: tokens of each that are read in parallel, besides its own text.
      passes: how many models read its own text, the prompt and its answers.
      written: tokens of each that are generated, one after another.
      together: items generated at once.
    """

    why: str
    items: int | None
    data: tuple[str, ...] = ()
    split: str = "train"
    read: float = 0.0
    passes: int = 0
    written: float = 0.0
    together: int = 1


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measurement of a model.

    Attributes:
      name: of the column of results: ``"answers"``, ``"study1"``.
      run: measures.
      settings: everything that its result depends on besides the model, as JSON values. Results are kept by it.
      check: tells what is wrong with it before anything is trained: files that are not there, extras that are not
        installed. None = nothing can be known.
      work: what it reads and writes; None = unknown.
    """

    name: str
    run: Callable[[Subject], Outcome]
    settings: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[], list[str]] | None = None
    work: Work | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of a study.

    Attributes:
      labels: what the row is, ``{"start": "sft", "method": "dpo", "beta": 0.1, "seed": 0}``. A label that says nothing
        of a row (the beta of a model that is not aligned) is left out of it.
      model: the last stage of its making, or the folder or hub id of a model that is measured as it is.
    """

    labels: Mapping[str, Label]
    model: Stage | str


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number of a paper, to stand beside ours.

    Attributes:
      labels: the row's, as far as the number depends on them.
      metric: what it is, in the paper's words.
      value: the number; None where the paper says degenerate.
      source: paper and table.
      ours: ``"MEASURE/METRIC"``, our measurement of the same quantity; None where the study has none.
      unit: of the value, as `jaxalign.evaluation.outcome.Metric` has it: ``"%"``, ``"share"`` (of 1), ``"tokens"``.
    """

    labels: Mapping[str, Label]
    metric: str
    value: float | None
    source: str
    ours: str | None = None
    unit: str = "%"


@dataclass(frozen=True, kw_only=True)
class PublishedData:
    """What is known of a data set that is not at hand, for estimates of cost.

    Attributes:
      examples: rows of each split.
      prompt: mean tokens of a prompt, its template included.
      completion: mean tokens of an answer, its end token included.
      size: of its files, bytes.
      source: where the numbers come from, and which of them are guesses.
    """

    examples: Mapping[str, int]
    prompt: float
    completion: float
    size: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A controlled comparison.

    Attributes:
      name: short, for folders.
      question: one or two sentences.
      trials: the rows.
      measures: what is measured of every row.
      headline: ``"MEASURE/METRIC"``, the number that answers the question.
      compare: the label whose values are compared with one another, all else equal: ``"method"``.
      notes: what a reader must know: deviations from a paper, what is unknown, one line each.
      published: numbers of the paper that is reproduced. Only verified ones.
      prepare: called before anything else, in every process; writes data that the study generates. Called again it
        must find its files and return at once.
      architectures: the config.json of hub models, for estimates of cost where they are not on disk.
      datasets: the same for data sets, by name.
    """

    name: str
    question: str
    trials: tuple[Trial, ...]
    measures: tuple[Measure, ...]
    headline: str
    compare: str = "method"
    notes: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    prepare: Callable[[], None] | None = None
    architectures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    datasets: Mapping[str, PublishedData] = field(default_factory=dict)
