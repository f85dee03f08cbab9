"""Answers that a model gives when it is left to itself: how long, how repetitive, how far from its reference."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.build.generate import as_messages, stop_tokens
from jaxalign.build.row_layout import lay_out
from jaxalign.data.chat import load_chat_template
from jaxalign.data.pipeline import OrderedBatches, ordered_iterator
from jaxalign.data.prompts import encode_prompts, end_token_ids, read_prompts
from jaxalign.data.records import ExampleSet
from jaxalign.data.rows import scored_values
from jaxalign.data.tokenization import TokenizerView
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.evaluation.degeneration import MOST_UNENDED, degeneration
from jaxalign.evaluation.divergence import Divergence, divergence_metrics, make_divergence_step
from jaxalign.evaluation.outcome import Outcome
from jaxalign.evaluation.text_statistics import Answer, text_metrics
from jaxalign.models.config_json import read_config
from jaxalign.models.huggingface import load_policy, load_variables, resolve
from jaxalign.models.policy import Policy
from jaxalign.sampling.engine import sample
from jaxalign.training.mesh import MeshPlan, make_mesh
from jaxalign.types import Variables

SHOWN = 8
"""Answers that an outcome shows, the first ones; all of them are in the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn.

    Attributes:
      max_new_tokens: most tokens of an answer.
      temperature: 0 = the most probable token each time, 1 = the model as it is.
      top_p: draw from the fewest tokens whose probabilities sum to this.
      top_k: draw from the k most probable tokens; 0 = all.
      seed: of the draws.
    """

    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    @property
    def is_model(self) -> bool:
        """Whether answers come from the model as it is, so that a divergence can be estimated from them."""
        return (self.temperature, self.top_p, self.top_k) == (1.0, 1.0, 0)


def generations(
    model: str,
    prompts: str | Sequence[Any],
    *,
    reference: str | None = None,
    column: str = "prompt",
    split: str = "train",
    count: int | None = None,
    sampling: Sampling | None = None,
    chat: bool = False,
    chat_template: str | None = None,
    most_unended: float = MOST_UNENDED,
    batch_size: int = 16,
    dtype: str = "bfloat16",
    out: str | Path | None = None,
) -> Outcome:
    """Samples an answer to each prompt and describes the answers: length, repetition, end, degeneration, divergence.

    Args:
      model: Hugging Face folder or hub id.
      prompts: file (JSON lines of texts, or of objects with a ``prompt``), data set, or the rows themselves.
      reference: the model to measure the divergence from; None = none is measured.
      column: of the rows that has the prompt.
      split: of a data set's name.
      count: how many prompts, the first ones; None = all.
      sampling: how answers are drawn; None = `Sampling()`.
      chat: treat a text as a user's message.
      chat_template: path, text, or ``chatml``; None = the model's own.
      most_unended: see `jaxalign.evaluation.degeneration.degeneration`.
      batch_size: prompts decoded together.
      dtype: of the arithmetic.
      out: a folder to write ``answers.jsonl`` to.

    Returns:
      the metrics of `text_metrics` and `divergence_metrics`. Comparable are those of the same prompts, in the same chat
      format and tokens: the protocol has a hash of each.

    Raises:
      DataError: prompts cannot be read or rendered.
      ConfigError: settings out of range, or prompts too long.
    """
    sampling = sampling or Sampling()
    asked = [as_messages(p) if chat else p for p in read_prompts(prompts, column=column, split=split, count=count)]
    folder = resolve(model)
    tokenizer = load_tokenizer(folder)
    ids = encode_prompts(asked, tokenizer, chat_template=chat_template)
    plan = make_mesh()
    notes: list[str] = []
    with jax.set_mesh(plan.mesh):
        policy, variables = _load(folder, plan, dtype)
        ends = {
            *stop_tokens(tokenizer, policy.config.source.generation),
            *end_token_ids(tokenizer, chat_template=chat_template),
        }
        rounded = -(-batch_size // plan.batch_size) * plan.batch_size
        drawn = sample(
            policy,
            variables,
            ids,
            stop_tokens=sorted(ends),
            batch_size=rounded,
            **dataclasses.asdict(sampling),
        )
        answers = [
            Answer(
                tokens=each.tokens[:-1] if each.stopped else each.tokens,
                text=tokenizer.decode(each.tokens, skip_special_tokens=True),
                ended=each.stopped,
            )
            for each in drawn
        ]
        metrics = text_metrics(answers)
        reason = _no_divergence(model, reference, sampling, tokenizer, policy)
        if reason:
            notes.append(reason)
        elif reference is not None:
            found = _divergences(
                policy, variables, resolve(reference), ids, [each.tokens for each in drawn], plan, dtype, rounded
            )
            metrics |= divergence_metrics(found)
    samples = [
        {"prompt": prompt, "completion": answer.text, "ended": answer.ended}
        for prompt, answer in zip(asked, answers, strict=True)
    ]
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in samples)
        (Path(out) / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    if most_unended >= 1:
        notes.append("answers without an end do not make this model degenerate: it was not taught to end them")
    return Outcome(
        metrics=metrics,
        protocol={
            "prompts": len(asked),
            "prompts_hash": _hash(asked),
            "template_hash": _template_hash(tokenizer, chat_template, asked),
            "tokenizer_hash": TokenizerView.of(tokenizer).content_hash,
            "dtype": dtype,
            **dataclasses.asdict(sampling),
        },
        samples=samples[:SHOWN],
        details={"lengths": _histogram([len(answer.tokens) for answer in answers])},
        degenerate=degeneration(answers, most_unended=most_unended),
        notes=notes,
    )


def _hash(prompts: Sequence[Any]) -> str:
    """Of what was asked, before any template: so also of the data's column and split, and of `chat`."""
    return hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()[:16]


def _template_hash(tokenizer: Any, chat_template: str | None, prompts: Sequence[Any]) -> str | None:
    """Of the chat template; None where no prompt is a conversation, so that none was used."""
    template = load_chat_template(tokenizer, chat_template)
    return None if template is None or all(isinstance(prompt, str) for prompt in prompts) else template.content_hash


def _load(folder: Path, plan: MeshPlan, dtype: str) -> tuple[Policy, Variables]:
    return load_policy(folder, dtype=dtype, param_dtype=dtype, shardings=plan.sharding, constrain=plan.constrain)


def _no_divergence(model: str, reference: str | None, sampling: Sampling, tokenizer: Any, policy: Policy) -> str | None:
    """Why no divergence is told, as a note; None where it is."""
    if reference is None:
        return "no divergence: there is no reference to measure it from"
    if not sampling.is_model:
        return (
            "no divergence: answers were not drawn from the model as it is (temperature "
            f"{sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k})"
        )
    folder = resolve(reference)
    ours, theirs = (TokenizerView.of(each).content_hash for each in (tokenizer, load_tokenizer(folder)))
    if ours != theirs or read_config(folder).vocab_size != policy.config.vocab_size:
        return f"no divergence: the reference {reference} has another vocabulary than {model}"
    return None


def _divergences(
    policy: Policy,
    variables: Variables,
    reference: Path,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    plan: MeshPlan,
    dtype: str,
    batch_size: int,
) -> list[Divergence]:
    """Every answer, its end token included, under policy and reference."""
    if read_config(reference).facts() == policy.config.facts():
        # The same functions: the two sides are then the same computation, and equal weights diverge by exactly 0.
        theirs, their_variables = policy, load_variables(reference, policy, shardings=plan.sharding)
    else:
        theirs, their_variables = _load(reference, plan, dtype)
    segments = [part for pair in zip(prompts, answers, strict=True) for part in pair]
    examples = ExampleSet.from_segments(segments, completions=1)
    batches = OrderedBatches(examples, batch_size=min(batch_size, len(examples)))
    layout = lay_out(batches, plan.batch_size)
    packer = layout.packer((), plan.local_rows)
    step = jax.jit(make_divergence_step(policy, theirs), out_shardings=plan.replicated)
    found: dict[int, Divergence] = {}
    for batch in ordered_iterator(batches, packer):
        rows = plan.put_rows(batch.rows, batch.global_rows, batch.first_row)
        scored = jax.device_get(step(variables, their_variables, rows))
        for identity, (values,) in scored_values(batch.rows, *map(np.asarray, scored)):
            found[identity] = Divergence(*values)
    return [found[identity] for identity in range(len(examples))]


def _histogram(values: Sequence[int], bins: int = 20) -> Mapping[str, list[float]]:
    counts, edges = np.histogram(values, bins=min(bins, max(values) + 1), range=(0, max(values) + 1))
    return {"edges": edges.tolist(), "counts": counts.tolist()}
