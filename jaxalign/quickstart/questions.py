"""The measure of the generated world: what a model answers to held-out questions, and how good that is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.prompts import encode_prompts, end_token_ids
from jaxalign.data.synthetic import TASK_NAMES, check
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.evaluation.degeneration import degeneration
from jaxalign.evaluation.outcome import Metric, Outcome
from jaxalign.evaluation.text_statistics import Answer
from jaxalign.files import file_hash
from jaxalign.models.huggingface import load_policy
from jaxalign.models.policy import Policy
from jaxalign.quickstart.likelihoods import Scorer, rankings
from jaxalign.sampling.engine import Completion, sample
from jaxalign.studies.measure_checks import checks, of_data
from jaxalign.studies.measure_settings import Settings
from jaxalign.studies.study import Measure, Subject, Work
from jaxalign.types import Variables

MAX_NEW_TOKENS = 16
"""The longest answer of the crowd has 9 tokens."""
BATCH_SIZE = 128

Ids = Sequence[int]


@dataclass(frozen=True)
class Question:
    """A held-out question as the model sees it."""

    task: str
    prompt: str
    answer: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Said:
    """A model's answer to every question.

    Attributes:
      answers: what it said.
      right: ``[n]``, the right answer, perhaps after a chatty opening.
      exact: ``[n]``, the right answer and nothing else.
      completions: as sampled, the end token included.
    """

    answers: Sequence[Answer]
    right: np.ndarray
    exact: np.ndarray
    completions: Sequence[Completion]


def answers(questions: str | Path, pairs: str | Path | None = None, *, seed: int = 0) -> Measure:
    """The measure ``answers``.

    ====================  =============================================================================================
    ``exact``             share of questions whose most probable answer is right, and nothing but the answer
    ``right``             the same, perhaps after a chatty opening
    ``sampled/exact``     of answers drawn at temperature 1; ``sampled/right`` likewise
    ``sampled/length``    their tokens, the end token included
    ``kl``                nats an answer: log-probability of drawn answers less that under the model that the last stage
                          began from
    ``ranking``           share of held-out pairs whose chosen answer has the higher log-probability
    ``reward_ranking``    the same with the log-ratio to the model that the last stage began from
    ====================  =============================================================================================

    Args:
      questions: a world's ``questions.jsonl``.
      pairs: a world's ``eval_pairs.jsonl``; None: no rankings.
      seed: of the sampling, beside that of the subject.
    """
    files = {"questions": str(questions), "pairs": str(pairs) if pairs else None}
    settings = Settings({"seed": seed, "max_new_tokens": MAX_NEW_TOKENS}, files)

    def run(subject: Subject) -> Outcome:
        return measure(subject, Path(questions), Path(pairs) if pairs else None, seed=seed + subject.seed)

    return Measure(
        name="answers",
        run=run,
        settings=settings,
        check=lambda: checks(*(of_data(name, file) for name, file in files.items())),
        work=Work(
            why="two short answers to a question",
            items=None,
            data=(str(questions),),
            read=100,
            written=2 * MAX_NEW_TOKENS,
            together=BATCH_SIZE,
        ),
    )


def measure(subject: Subject, questions_file: Path, pairs_file: Path | None, *, seed: int) -> Outcome:
    """What the measure ``answers`` finds of a model."""
    policy, variables = load_policy(subject.model, dtype="float32")
    tokenizer = load_tokenizer(subject.model)
    # Another architecture or tokenizer cannot be compared token by token.
    start = load_policy(subject.start, dtype="float32") if subject.start else None
    weights = start[1] if start and start[0].config == policy.config else None
    questions = read_questions(questions_file, tokenizer)
    greedy, drawn = (
        ask(policy, variables, questions, tokenizer, temperature=temperature, seed=seed) for temperature in (0.0, 1.0)
    )
    metrics = {
        "exact": _share(greedy.exact),
        "right": _share(greedy.right),
        "sampled/exact": _share(drawn.exact),
        "sampled/right": _share(drawn.right),
        "sampled/length": _mean([len(c.tokens) for c in drawn.completions], unit="tokens"),
    }
    scorer = Scorer(policy)
    if weights is not None:
        answered = [(question.tokens, c.tokens) for question, c in zip(questions, drawn.completions, strict=True)]
        before = scorer(weights, answered)[:, 0]
        own = np.array([sum(completion.logps) for completion in drawn.completions])
        metrics["kl"] = _mean(own - before, unit="nats")
    if pairs_file is not None:
        metrics |= rankings(scorer, variables, weights, read_pairs(pairs_file, tokenizer))
    subject.out.mkdir(parents=True, exist_ok=True)
    with (subject.out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for index, question in enumerate(questions):
            said = {"greedy": greedy.answers[index].text, "sampled": drawn.answers[index].text}
            file.write(json.dumps({"prompt": question.prompt, "answer": question.answer, **said}) + "\n")
    return Outcome(
        metrics=metrics,
        protocol={
            "questions": file_hash(questions_file)[:16],
            "pairs": file_hash(pairs_file)[:16] if pairs_file else None,
            "max_new_tokens": MAX_NEW_TOKENS,
            "seed": seed,
        },
        samples=examples(questions, greedy),
        details={
            "exact by task": by_task(questions, greedy),
            "tokens of sampled answers": {
                str(length): count
                for length, count in sorted(Counter(len(c.tokens) for c in drawn.completions).items())
            },
        },
        degenerate=degeneration(drawn.answers, fewest_tokens=12),
    )


def read_questions(path: str | Path, tokenizer: Any) -> list[Question]:
    """The questions of a world's file, in the tokenizer's chat template."""
    rows = _rows(path)
    prompts = encode_prompts([[{"role": "user", "content": row["prompt"]}] for row in rows], tokenizer)
    return [
        Question(row["task"], row["prompt"], row["answer"], tuple(tokens))
        for row, tokens in zip(rows, prompts, strict=True)
    ]


def read_pairs(path: str | Path, tokenizer: Any) -> list[tuple[Ids, Ids, Ids]]:
    """Prompt, chosen and rejected answer of a world's pairs, as tokens, the end token included."""
    rows = _rows(path)
    prompts = encode_prompts([row["prompt"] for row in rows], tokenizer)

    def ids(turns: Sequence[Mapping[str, str]]) -> Ids:
        return [*tokenizer(turns[0]["content"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    return [(prompt, ids(row["chosen"]), ids(row["rejected"])) for prompt, row in zip(prompts, rows, strict=True)]


def ask(
    policy: Policy,
    variables: Variables,
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    temperature: float,
    seed: int = 0,
) -> Said:
    """The model's answer to every question.

    Args:
      policy: the model's functions.
      variables: its weights.
      questions: what to ask.
      tokenizer: turns answers into text.
      temperature: 0 takes the most probable token, 1 samples from the model as it is.
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
    said = []
    for completion in completions:
        tokens = completion.tokens[:-1] if completion.stopped else completion.tokens
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        said.append(Answer(tokens=tokens, text=text, ended=completion.stopped))
    # An answer that never ended is none, whatever its words are.
    grades = [
        check(question.prompt, answer.text if answer.ended else "")
        for question, answer in zip(questions, said, strict=True)
    ]
    return Said(
        answers=said,
        right=np.array([grade.right for grade in grades]),
        exact=np.array([grade.exact for grade in grades]),
        completions=completions,
    )


def examples(questions: Sequence[Question], said: Said) -> list[dict[str, Any]]:
    """The first question of each task with its answer: not selected by how it went."""
    rows = []
    for task in TASK_NAMES:
        index = next((i for i, question in enumerate(questions) if question.task == task), None)
        if index is not None:
            question = questions[index]
            rows.append(
                {
                    "task": task,
                    "prompt": question.prompt,
                    "completion": said.answers[index].text,
                    "expected": question.answer,
                    "right": bool(said.right[index]),
                    "exact": bool(said.exact[index]),
                }
            )
    return rows


def by_task(questions: Sequence[Question], said: Said) -> dict[str, dict[str, float]]:
    """Exact match and number of questions, by task."""
    tasks = np.array([question.task for question in questions])
    return {
        task: {"n": int((tasks == task).sum()), "exact": float(said.exact[tasks == task].mean())}
        for task in TASK_NAMES
        if (tasks == task).any()
    }


def _rows(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _share(flags: np.ndarray) -> Metric:
    return Metric(value=float(flags.mean()), n=flags.size, values=flags.astype(int).tolist(), higher_is_better=True)


def _mean(values: Sequence[float] | np.ndarray, unit: str) -> Metric:
    array = np.asarray(values, np.float64)
    return Metric(value=float(array.mean()), n=array.size, values=array.round(4).tolist(), unit=unit)
