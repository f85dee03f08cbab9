"""Looking into a trained model with the parts of its run: the credit of each token, and how far tokens moved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.analysis.credit import CreditMap, credited
from jaxalign.analysis.own_reward import is_dpo_reward
from jaxalign.build.token_logps import token_logps
from jaxalign.config import RunConfig
from jaxalign.data.prompts import end_token_ids
from jaxalign.data.tokenizer import token_texts
from jaxalign.errors import ConfigError
from jaxalign.evaluation.end_token import end_token_metrics
from jaxalign.evaluation.outcome import Outcome
from jaxalign.evaluation.token_shift import MIN_COUNT, TOP, Scored, shift_details, shift_metrics


def token_credit(
    config: RunConfig, workdir: str | Path | None = None, model: str | None = None, *, count: int = 8
) -> CreditMap:
    """The credit of each token of the first held-out examples (of the training examples, where none are held out).

    A run without a reference is measured against the policy before training.

    Args:
      config: the run. Its ``model.path`` is the reference's start, as in training.
      workdir: of the run; its exported model is looked into.
      model: another Hugging Face folder or hub id with the run's tokenizer.
      count: examples.

    Raises:
      ConfigError: there is no aligned model, the reference does not know single tokens, or the configuration is wrong.
    """
    found = token_logps(config, workdir, model, count=count)
    option, beta = _beta(found.options)
    return CreditMap(
        model=found.model,
        reference=found.reference,
        method=found.method.name,
        beta=beta,
        examples=tuple(
            credited(
                each.logps,
                beta=beta,
                names=each.names,
                tokens=[list(token_texts(ids.tolist(), found.tokenizer)) for ids in each.example.completions],
                prompt=found.tokenizer.decode(each.example.prompt.tolist()),
                source=each.example.source,
            )
            for each in found.examples
        ),
        beta_option=option,
        trained_against=found.trained_against,
        reference_is_start=found.reference_is_start,
        is_method_reward=found.trained_against and is_dpo_reward(found.method, found.options, beta),
    )


def token_shift(
    config: RunConfig,
    workdir: str | Path | None = None,
    model: str | None = None,
    *,
    count: int | None = None,
    min_count: int = MIN_COUNT,
    top: int = TOP,
) -> Outcome:
    """How far tokens moved from the reference on held-out completions, by vocabulary id, and the end token apart.

    Args:
      config: the run. Its ``model.path`` is the reference's start, as in training.
      workdir: of the run; its exported model is looked into.
      model: another Hugging Face folder or hub id with the run's tokenizer.
      count: examples, the first ones; None = all.
      min_count: places where a token must stand to be ranked.
      top: tokens listed.

    Returns:
      the metrics of `shift_metrics` and `end_token_metrics`, and the details of `shift_details`.

    Raises:
      ConfigError: there is no aligned model, the reference does not know single tokens, or the configuration is wrong.
    """
    problems = [
        f"{flag}: got {value}, expected at least 1."
        for flag, value in (("--min-count", min_count), ("--top", top))
        if value < 1
    ]
    if problems:
        raise ConfigError(problems)
    found = token_logps(config, workdir, model, count=count)
    tokenizer = found.tokenizer
    ends = end_token_ids(tokenizer, chat_template=config.model.chat_template)
    examples = [
        {
            name: Scored(ids, policy, reference, int(ids[-1]) in ends)
            for name, ids, (policy, reference) in zip(each.names, each.example.completions, each.logps, strict=False)
            if len(ids)  # a ranking may have fewer completions
        }
        for each in found.examples
    ]
    details = shift_details(examples, lambda i: _shown(i, tokenizer), min_count=min_count, top=top)
    cut = sum(not scored.ended for each in examples for scored in each.values())
    notes = []
    if cut:
        notes.append(f"completions cut before their end token, which the end token's numbers leave out: {cut}")
    if not details["top_tokens"]:
        notes.append(f"no token stands in {min_count} places, so none is ranked")
    return Outcome(
        metrics=shift_metrics(examples, min_count=min_count) | end_token_metrics(examples),
        protocol={
            "examples": len(examples),
            "data_hash": found.report.data_hash,
            "tokenizer_hash": found.report.tokenizer_hash,
            "template_hash": found.report.template_hash,
            "min_count": min_count,
            "dtype": config.model.dtype,
        },
        details={
            **details,
            "end_tokens": [_shown(i, tokenizer) for i in ends],
            "model": found.model,
            "reference": found.reference,
        },
        notes=notes,
    )


def _shown(token: int, tokenizer: Any) -> str:
    """A token's text, with the space that it begins with; its name in the vocabulary where it is no whole character."""
    text, name = tokenizer.decode([token]), str(tokenizer.convert_ids_to_tokens(token))
    if not text.strip() or "\ufffd" in text:
        return name
    # SentencePiece writes the space as U+2581, and leaves it out at the start of a text.
    return f" {text}" if name.startswith("\u2581") and not text.startswith(" ") else text


def _beta(options: Mapping[str, Any]) -> tuple[str | None, float]:
    """The scale of the rewards and its option: the method's beta, a combination's first, or 1 where there is none."""
    betas = ((name, float(value)) for name, value in options.items() if re.search(r"(^|_)beta$", name))
    return next(betas, (None, 1.0))
