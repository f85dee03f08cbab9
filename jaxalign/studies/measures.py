"""The measures that studies are made of: each function gives a `Measure` with its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign import build
from jaxalign.config import from_dict, to_dict
from jaxalign.errors import ConfigError
from jaxalign.evaluation.degeneration import MOST_UNENDED
from jaxalign.evaluation.outcome import Outcome
from jaxalign.evaluation.suites import get_suite
from jaxalign.evaluation.token_shift import MIN_COUNT, TOP
from jaxalign.studies import measure_checks as check
from jaxalign.studies import measure_work as work
from jaxalign.studies.held_out import held_out
from jaxalign.studies.judged_measures import alpaca_eval, mt_bench
from jaxalign.studies.measure_settings import Settings
from jaxalign.studies.study import Measure, Subject

__all__ = ["alpaca_eval", "generations", "held_out", "mt_bench", "suite", "token_shift"]

ROLES = (None, "reference", "start")
"""Of the model that a model is compared with; anything else is its folder or hub id."""
Data = str | Path | Sequence[str | Path]
"""A file, folder, glob or data set's name, or several."""


def generations(
    prompts: Data,
    *,
    column: str = "prompt",
    split: str = "train",
    count: int | None = 256,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    chat: bool = False,
    chat_template: str | None = None,
    against: str | None = "reference",
    most_unended: float = MOST_UNENDED,
    batch_size: int = 16,
    dtype: str = "bfloat16",
    name: str = "generations",
) -> Measure:
    """Sampled answers: length, repetition, end tokens, degeneration, and their divergence from another model.

    Args:
      prompts: data with a prompt (a text, or a conversation) in each row.
      column: of the rows that has it.
      split: of a data set's name.
      count: prompts, the first ones; None = all.
      max_new_tokens: most tokens of an answer.
      temperature: 0 = the most probable token each time. A divergence can be estimated at 1 only.
      top_p: draw from the fewest tokens whose probabilities sum to this.
      top_k: draw from the k most probable tokens; 0 = all.
      chat: treat a text as a user's message.
      chat_template: path, text, or ``chatml``; None = each model's own.
      against: from what the divergence is measured: ``reference``, that of the last stage; ``start``, the model that
        the stage began from; or a folder or hub id. Each of the two stands in where there is no other. None = from
        nothing.
      most_unended: share of answers without an end token from which on a model counts as degenerate; 1 = never.
      batch_size: prompts decoded together.
      dtype: of the arithmetic.
      name: of the measure, where a study has several of these.
    """
    settings = {
        "column": column,
        "split": split,
        "count": count,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "chat": chat,
        "most_unended": most_unended,
        "dtype": dtype,
    }

    def run(subject: Subject) -> Outcome:
        outcome = build.generations(
            subject.model,
            _texts(prompts),
            reference=_other(subject, against),
            column=column,
            split=split,
            count=count,
            sampling=build.Sampling(
                max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=subject.seed
            ),
            chat=chat,
            chat_template=chat_template,
            most_unended=most_unended,
            batch_size=batch_size,
            dtype=dtype,
            out=subject.out,
        )
        return dataclasses.replace(outcome, protocol={**outcome.protocol, "against": against})

    files = {"prompts": _texts(prompts), "chat_template": chat_template}
    named = None if against in ROLES else against
    return Measure(
        name=name,
        run=run,
        settings=_settings(settings, against, files),
        check=lambda: check.checks(
            check.of_data("prompts", _texts(prompts)),
            check.of_template("chat_template", chat_template),
            check.of_model("against", named),
        ),
        work=work.of_answers(_texts(prompts), split, count, max_new_tokens, batch_size, 0 if against is None else 2),
    )


def token_shift(
    data: Data | Mapping[str, Any] | None = None,
    *,
    against: str = "start",
    count: int | None = None,
    min_count: int = MIN_COUNT,
    top: int = TOP,
    chat_template: str | None = None,
    batch_size: int = 8,
    dtype: str = "bfloat16",
    name: str = "token_shift",
) -> Measure:
    """How far tokens moved on given completions, by vocabulary id, and how likely the end token is at their ends.

    Args:
      data: preference pairs, or the section ``data`` of a configuration, ``{"eval": [...], "max_length": 2048}``, of
        which the held-out part is read. None = each model's own, which a model that the study did not train lacks.
      against: as in `generations`. It must have the model's tokenizer.
      count: examples, the first ones; None = all.
      min_count: places where a token must stand to be ranked.
      top: tokens listed.
      chat_template: path, text, or ``chatml``; None = that of the run, or of the model.
      batch_size: examples scored together.
      dtype: of the arithmetic.
      name: of the measure, where a study has several of these.
    """
    section = data if data is None or isinstance(data, Mapping) else {"train": _texts(data)}
    if section is not None and section.get("eval"):  # only these are scored, so only these are read
        kept = {key: value for key, value in section.items() if key not in ("eval", "eval_split", "eval_size")}
        section = {**kept, "train": section["eval"], "train_split": section.get("eval_split", "test")}
    settings = {
        "count": count,
        "min_count": min_count,
        "top": top,
        "dtype": dtype,
    }

    def run(subject: Subject) -> Outcome:
        if section is None and subject.config is None:
            raise ConfigError(
                f"{name}: {subject.model} was not trained in this study, so it has no held-out data of its own, "
                "expected some: token_shift(data=FILE)."
            )
        tree = {} if section is not None or subject.config is None else to_dict(subject.config)
        if section is not None:
            tree = {"data": dict(section), "method": {"name": "dpo"}}
        model = {"path": subject.model, "dtype": dtype}
        template = chat_template or (subject.config.model.chat_template if subject.config else None)
        other = _other(subject, against) or subject.model
        tree["model"] = model if template is None else {**model, "chat_template": template}
        # A live reference reads the model's own tokens, so its folder's format does not matter.
        tree["reference"] = {"source": other, "mode": "live"}
        tree["evaluation"] = {"batch_size": batch_size}
        found = build.token_shift(from_dict(tree), model=subject.model, count=count, min_count=min_count, top=top)
        notes = [] if other != subject.model else ["there is no other model, so the shifts are 0"]
        return dataclasses.replace(found, protocol={**found.protocol, "against": against}, notes=[*found.notes, *notes])

    own = {} if section is None else {f"data.{key}": value for key, value in section.items()}
    files = {"data.train": own.pop("data.train", None), "chat_template": chat_template}
    return Measure(
        name=name,
        run=run,
        settings=_settings({**settings, **own}, against, files),
        check=lambda: check.checks(
            check.of_configuration({"data": section or {}}),
            check.of_template("chat_template", chat_template),
            check.of_model("against", None if against in ROLES else against),
        ),
        work=work.of_examples(section or {}, 2, count),
    )


def suite(
    suite: str,
    folder: str | Path | None = None,
    *,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    system: str | None = None,
    overlong: str = "error",
    dtype: str = "bfloat16",
    batch_tokens: int = 8192,
    batch_size: int = 16,
    name: str | None = None,
) -> Measure:
    """Benchmarks through lm-eval. The arguments are those of `jaxalign.build.benchmarks.run_benchmarks`.

    Args:
      suite: ``"study1"``, ``"quick"``, or ``"tasks:arc_easy,piqa"``.
      folder: the benchmarks' data; None = the hub's.
      limit: the first so many documents of each task.
      shots: examples in each prompt instead of the suite's own numbers.
      chat: use the model's chat template.
      system: the system's message.
      overlong: ``"error"``, or ``"cut"`` contexts that are longer than the model.
      dtype: of weights and arithmetic.
      batch_tokens: places in the rows that are scored at once.
      batch_size: texts generated at once.
      name: of the measure; None = the suite's.
    """
    chosen = dataclasses.asdict(get_suite(suite))
    benchmarks = [{key: value for key, value in each.items() if key != "why"} for each in chosen["benchmarks"]]

    def run(subject: Subject) -> Outcome:
        from jaxalign.build.benchmarks import run_benchmarks

        return run_benchmarks(
            subject.model,
            suite,
            benchmarks=folder,
            limit=limit,
            shots=shots,
            chat=chat,
            system=system,
            overlong=overlong,
            dtype=dtype,
            batch_tokens=batch_tokens,
            batch_size=batch_size,
            seed=subject.seed,
            out=subject.out,
        )

    settings = {
        "benchmarks": benchmarks,
        "limit": limit,
        "shots": shots,
        "chat": chat,
        "system": system,
        "overlong": overlong,
        "dtype": dtype,
    }
    files = {"folder": None if folder is None else str(folder)}
    tasks = [each["task"] for each in benchmarks]
    return Measure(
        name=name or suite,
        run=run,
        settings=Settings(settings, files),
        check=lambda: check.checks(check.of_benchmarks(files["folder"], tasks)),
        work=work.of_suite(suite, limit, shots, batch_size),
    )


def _other(subject: Subject, against: str | None) -> str | None:
    """The model that a model is compared with, if there is one."""
    if against == "reference":
        return subject.reference or subject.start
    if against == "start":
        return subject.start or subject.reference
    return against


def _settings(values: Mapping[str, Any], against: str | None, files: Mapping[str, Any]) -> Settings:
    """The settings of a measure that compares models: a role stands for itself, a model for its content."""
    if against in ROLES:
        return Settings({**values, "against": against}, files)
    return Settings(values, files, {"against": against})


def _texts(data: Data) -> list[str]:
    return [str(data)] if isinstance(data, str | Path) else [str(each) for each in data]
