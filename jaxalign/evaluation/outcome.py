"""What a measurement found, in one form for all of them: studies keep it as a row, reports read it from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number.

    Attributes:
      value: the mean, in `unit`.
      n: items it is the mean of (questions, pairs, ...).
      values: the items' own values, in an order that is the same for every model measured in the same way, None for an
        item without one; None where they are too many or do not exist. With them, two models are compared question by
        question.
      stderr: standard error of the value over the items, where it is known without `values`.
      higher_is_better: True, False, or None for a number that is neither good nor bad (a length, a divergence).
      of_given_text: it is about text that the model was given, not about what it writes; so it stays true of a model
        that writes no language any more.
      unit: ``"share"`` (0 to 1), ``"nats"``, ``"nats/token"``, ``"tokens"``, ``"score"`` (of a judge), ...
    """

    value: float
    n: int
    values: Sequence[float | None] | None = None
    stderr: float | None = None
    higher_is_better: bool | None = None
    of_given_text: bool = False
    unit: str = "share"


SELF_MADE = ("of_given_text", False)
"""What most metrics are, so that files need not say it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one measure found of one model.

    Attributes:
      metrics: by name, ``"exact"`` or ``"arc_challenge/acc_norm"``.
      protocol: what must be equal for two outcomes to be comparable: task versions, shots, hashes of templates and
        data, the judge, sampling settings, package versions that matter. JSON values.
      samples: a few completions for readers, chosen without looking at how good they are:
        ``{"prompt", "completion", ...}``.
      details: what pictures are drawn from (histograms, lists of tokens, scores by category), JSON values.
      degenerate: why the model's text is no language any more; None if it is fine. Scores of such a model mean nothing.
      notes: what the reader must know of this outcome, one line each: items left out, contexts that were cut, ...
    """

    metrics: Mapping[str, Metric]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    degenerate: str | None = None
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types; what is None or empty is left out."""
        tree = dataclasses.asdict(self)
        tree["metrics"] = {
            name: {key: value for key, value in metric.items() if value is not None and (key, value) != SELF_MADE}
            for name, metric in tree["metrics"].items()
        }
        return {key: value for key, value in tree.items() if value or key == "metrics"}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Outcome:
        """The inverse of `as_dict`."""
        metrics = {name: Metric(**metric) for name, metric in tree["metrics"].items()}
        return cls(**{**tree, "metrics": metrics})
