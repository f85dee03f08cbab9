"""What a model answers to the held-out questions, and how good that is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxalign.data.prompts import encode_prompts, end_token_ids
from jaxalign.data.synthetic import TASK_NAMES, check
from jaxalign.evaluation.statistics import Interval, bootstrap_mean, wilson
from jaxalign.models.policy import Policy
from jaxalign.sampling.engine import Completion, sample
from jaxalign.types import Variables

MAX_NEW_TOKENS = 12
BATCH_SIZE = 128


@dataclass(frozen=True)
class Question:
    """A held-out question as the model sees it."""

    task: str
    prompt: str
    answer: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """A model's answer to every question.

    Attributes:
      texts: the answers.
      lengths: their tokens, ``[n]``, the end token included.
      right: ``[n]`` bool, the right answer, perhaps after a chatty opening.
      exact: ``[n]`` bool, the right answer and nothing else.
      drift: ``[n]`` log-probability of the answer under the model minus that under the SFT model, in nats.
    """

    texts: Sequence[str]
    lengths: np.ndarray
    right: np.ndarray
    exact: np.ndarray
    drift: np.ndarray


def read_questions(path: str | Path, tokenizer: Any) -> list[Question]:
    """The questions of a world's file, in the tokenizer's chat template."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    prompts = encode_prompts([[{"role": "user", "content": row["prompt"]}] for row in rows], tokenizer)
    return [
        Question(row["task"], row["prompt"], row["answer"], tuple(tokens))
        for row, tokens in zip(rows, prompts, strict=True)
    ]


def ask(
    policy: Policy,
    variables: Variables,
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    temperature: float,
    reference: Variables,
    seed: int = 0,
) -> Answers:
    """The model's answer to every question.

    Args:
      policy: the model's functions.
      variables: its weights.
      questions: what to ask.
      tokenizer: turns answers into text.
      temperature: 0 takes the most probable token, 1 samples from the model as it is.
      reference: weights of the SFT model, of the same policy, for `Answers.drift`.
      seed: of the sampling.
    """
    completions = sample(
        policy,
        variables,
        [question.tokens for question in questions],
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=temperature,
        stop_tokens=end_token_ids(tokenizer),
        seed=seed,
        batch_size=BATCH_SIZE,
    )
    texts = [tokenizer.decode(completion.tokens, skip_special_tokens=True) for completion in completions]
    # An answer that never ended is none, whatever its words are.
    grades = [
        check(question.prompt, text if completion.stopped else "")
        for question, text, completion in zip(questions, texts, completions, strict=True)
    ]
    own = np.array([sum(completion.logps) for completion in completions])
    return Answers(
        texts=texts,
        lengths=np.array([len(completion.tokens) for completion in completions]),
        right=np.array([grade.right for grade in grades]),
        exact=np.array([grade.exact for grade in grades]),
        drift=own - _sums(policy, reference, questions, completions),
    )


def summarise(greedy: Answers, sampled: Answers, questions: Sequence[Question]) -> dict[str, Any]:
    """The numbers of a model for ``results.json``: each an `Interval` as a list."""
    tasks = np.array([question.task for question in questions])
    return {
        "greedy": _summary(greedy),
        "sampled": _summary(sampled),
        "kl": bootstrap_mean(sampled.drift),
        "tasks": {
            task: {"n": int((tasks == task).sum()), "exact": _share(greedy.exact[tasks == task])}
            for task in TASK_NAMES
            if (tasks == task).any()
        },
        "lengths": {
            str(length): count / len(questions) for length, count in sorted(Counter(sampled.lengths.tolist()).items())
        },
    }


def difference(before: Answers, after: Answers) -> Interval:
    """How much more of the same questions are answered exactly, with its paired bootstrap interval."""
    return bootstrap_mean(after.exact.astype(float) - before.exact.astype(float))


def examples(questions: Sequence[Question], answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """The first question of each task, with every model's answer: not selected by how they went."""
    rows = []
    for task in TASK_NAMES:
        for index, question in enumerate(questions):
            if question.task == task:
                given = {
                    name: {
                        "text": said.texts[index],
                        "right": bool(said.right[index]),
                        "exact": bool(said.exact[index]),
                    }
                    for name, said in answers.items()
                }
                rows.append({"task": task, "prompt": question.prompt, "answer": question.answer, "models": given})
                break
    return rows


def _summary(answers: Answers) -> dict[str, Interval]:
    return {
        "exact": _share(answers.exact),
        "right": _share(answers.right),
        "length": bootstrap_mean(answers.lengths),
    }


def _share(flags: np.ndarray) -> Interval:
    return wilson(int(flags.sum()), flags.size)


def _sums(
    policy: Policy, variables: Variables, questions: Sequence[Question], completions: Sequence[Completion]
) -> np.ndarray:
    """Log-probability of each completion after its question, in nats, ``[B]``."""
    width = max(len(question.tokens) for question in questions) + MAX_NEW_TOKENS
    tokens = np.zeros((len(questions), width), np.int32)
    scored = np.zeros((len(questions), width), bool)
    for row, (question, completion) in enumerate(zip(questions, completions, strict=True)):
        start, end = len(question.tokens), len(question.tokens) + len(completion.tokens)
        tokens[row, :end] = (*question.tokens, *completion.tokens)
        scored[row, start:end] = True

    @jax.jit
    def sums(variables: Variables, tokens: Array, scored: Array) -> Array:
        logps = jax.nn.log_softmax(policy.logits(variables, tokens)[:, :-1])
        logps = jnp.take_along_axis(logps, tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.where(scored[:, 1:], logps, 0.0).sum(axis=-1)

    # Every slice has the same shape: absent rows are filled up and cut off again.
    missing = -len(questions) % BATCH_SIZE
    tokens, scored = (np.pad(array, ((0, missing), (0, 0))) for array in (tokens, scored))
    parts = [
        sums(variables, tokens[start : start + BATCH_SIZE], scored[start : start + BATCH_SIZE])
        for start in range(0, len(tokens), BATCH_SIZE)
    ]
    return np.concatenate([np.asarray(part) for part in parts])[: len(questions)].astype(np.float64)
