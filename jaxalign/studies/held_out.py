"""The measure of held-out preference data: what a run measured of itself, or the same of any model."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign import build
from jaxalign.config import RunConfig, from_dict, to_dict
from jaxalign.errors import ConfigError
from jaxalign.evaluation.outcome import Metric, Outcome
from jaxalign.methods import Layout, get_method
from jaxalign.studies.measure_checks import checks, of_configuration
from jaxalign.studies.measure_settings import configuration_settings
from jaxalign.studies.measure_work import of_held_out
from jaxalign.studies.study import Measure, Subject
from jaxalign.training.metrics import read_metrics


def held_out(
    config: RunConfig | Mapping[str, Mapping[str, Any]] | None = None, *, always: bool = False, values: bool = False
) -> Measure:
    """Loss, rewards, ranking accuracies, log-probabilities and divergence on held-out preference data.

    Of a trained model they are those that its last stage measured of the exported weights, on its own held-out data.

    ``rewards/*`` are the change against the model's reference. What a method that has none calls its reward (cpo,
    or a reference.source of none), or has against its prior, is another quantity and so has another name:
    ``own_rewards/*`` and ``prior_rewards/*``. Ranking accuracies and log-probabilities are the same for all of them.
    With `always` all models are measured by the rewards of one method.

    Args:
      config: sections of a configuration with held-out data, for models that have no such stage: those that the study
        did not train, and those whose last stage learned no preference (SFT). The model, and the reference where the
        method has one, are filled in.
      always: measure every model with `config`, whatever its own stage measured: the same data and the same method.
      values: score the pairs once more and keep each pair's accuracies and divergence, so that models are compared pair
        by pair.
    """
    tree = to_dict(config) if isinstance(config, RunConfig) else config
    if tree is not None:  # whatever model it names, the measured one takes its place
        tree = {**tree, "model": {key: value for key, value in tree.get("model", {}).items() if key != "path"}}

    def run(subject: Subject) -> Outcome:
        own = subject.config if subject.run is not None else None
        if own is not None and not always and (tree is None or _learns_preferences(own)):
            return _scored_again(subject, own) if values else _recorded(subject, own)
        if tree is None:
            raise ConfigError(
                f"held_out: {subject.model} was not trained in this study, so it has no held-out data of its own, "
                "expected a configuration with some: held_out(config={'data': ..., 'method': ...})."
            )
        return _evaluated(subject, tree, values)

    return Measure(
        name="held_out",
        run=run,
        settings=configuration_settings(tree or {}, always=always, values=values),
        check=lambda: checks(of_configuration(tree or {})),
        work=of_held_out(tree, always=always, values=values),
    )


def _recorded(subject: Subject, config: RunConfig) -> Outcome:
    """What the last stage measured of the weights that it exported."""
    assert subject.run is not None
    manifest = json.loads((subject.run / "manifest.json").read_text(encoding="utf-8"))
    step = manifest.get("exported_step")
    rows = [row for row in read_metrics(subject.run) if row["step"] == step]
    found = {name: value for row in rows for name, value in row.items() if name.startswith("eval_")}
    found = {name: value for name, value in (found or manifest.get("metrics", {})).items() if value is not None}
    if not found:
        raise ConfigError(
            f"held_out: the run in {subject.run} has no held-out data. Set data.eval or data.eval_size of its stage."
        )
    data = manifest["data"]["eval"]
    return Outcome(
        metrics=_metrics(found, data["examples"], rewards=_rewards(config)),
        protocol={
            "data_hash": data["data_hash"],
            "template_hash": data["template_hash"],
            "tokenizer_hash": data["tokenizer_hash"],
        },
        notes=() if step is not None or not config.train.best_metric else ("of the last step, not of the best",),
    )


def _scored_again(subject: Subject, config: RunConfig) -> Outcome:
    """What the last stage measured, pair by pair."""
    recorded = _recorded(subject, config)
    found, values = build.evaluate_examples(config, subject.run)
    count = next(iter(recorded.metrics.values())).n
    return dataclasses.replace(recorded, metrics=_metrics(found, count, values, rewards=_rewards(config)))


def _evaluated(subject: Subject, tree: Mapping[str, Mapping[str, Any]], keep: bool) -> Outcome:
    """What a configuration's data and method tell of a model."""
    sections = {name: dict(section) for name, section in tree.items()}
    model, reference = sections.setdefault("model", {}), sections.setdefault("reference", {})
    model["path"] = subject.model
    against = subject.reference or subject.start
    needed = get_method(sections.get("method", {}).get("name", "dpo")).needs_reference
    chosen = reference.get("source", "auto")
    if needed and against is not None and chosen in ("auto", "policy"):
        reference["source"], reference["mode"] = against, "auto"
        if (own := subject.config) is not None and reference.get("chat_template") is None:
            # It reads what it read in training: the policy before it the policy's own format, perhaps not its folder's.
            is_start = own.reference.source != against
            reference["chat_template"] = own.model.chat_template if is_start else own.reference.chat_template
    if reference.get("cache_dir") is None:
        cache = subject.config.reference.cache_dir if subject.config else None
        reference["cache_dir"] = cache or str(subject.out / "cache")
    config = from_dict(sections)
    data = build.check_data(config)
    found, values = build.evaluate_examples(config)
    notes = []
    if needed and config.reference.source in ("auto", "policy"):
        # Against itself all rewards are 0 and no pair is ranked: no finding, so nothing is told.
        found = {name: value for name, value in found.items() if not name.startswith(("eval_rewards/", "eval_kl/"))}
        found.pop("eval_loss", None)
        notes.append("the model is its own reference: it has no rewards and no divergence")
    report = data.sets["eval"][1]
    return Outcome(
        metrics=_metrics(found, report.examples, values if keep else {}, rewards=_rewards(config)),
        protocol={
            "data_hash": report.data_hash,
            "template_hash": report.template_hash,
            "tokenizer_hash": report.tokenizer_hash,
        },
        notes=notes,
    )


def _rewards(config: RunConfig) -> str:
    """What the method's rewards are called, by what they are measured against."""
    if not get_method(config.method.name).needs_reference or config.reference.source == "none":
        return "own_rewards/"
    return "prior_rewards/" if config.reference.source == "prior" else "rewards/"


def _learns_preferences(config: RunConfig) -> bool:
    return get_method(config.method.name).layout is not Layout.SINGLE


_KINDS: tuple[tuple[str, str, bool | None], ...] = (
    ("loss", "nats", None),  # of another method, or at another beta, it is another quantity
    ("rewards/accuracies", "share", True),
    ("own_rewards/accuracies", "share", True),
    ("prior_rewards/accuracies", "share", True),
    ("rewards/", "reward", None),
    ("own_rewards/", "reward", None),
    ("prior_rewards/", "reward", None),
    ("ranking/reference", "share", None),
    ("ranking/", "share", True),
    ("kl/token", "nats/token", None),
    ("kl/", "nats", None),
    ("logps/", "nats", None),
    ("lengths/", "tokens", None),
)
"""How names begin, with the unit and whether higher is better; the first that fits."""


def _metrics(
    found: Mapping[str, float], count: int, values: Mapping[str, np.ndarray] | None = None, *, rewards: str
) -> dict[str, Metric]:
    """Held-out metrics by their names without ``eval_``. Shares of examples have a standard error, or values."""
    metrics = {}
    for full, value in found.items():
        name = full.removeprefix("eval_")
        if name.startswith("rewards/"):
            name = name.replace("rewards/", rewards, 1)
        unit, better = next((u, b) for start, u, b in (*_KINDS, ("", "", None)) if name.startswith(start))
        own = (values or {}).get(full) if unit == "share" or name == "kl/sequence" else None  # the others are many
        if own is not None:
            items = own.tolist()
            metrics[name] = Metric(
                value=float(own.mean()),
                n=len(items),
                values=items,
                higher_is_better=better,
                of_given_text=True,
                unit=unit,
            )
            continue
        is_share = unit == "share" and 0 <= value <= 1
        stderr = math.sqrt(value * (1 - value) / count) if is_share else None
        metrics[name] = Metric(
            value=value, n=count, stderr=stderr, higher_is_better=better, of_given_text=True, unit=unit
        )
    return metrics
