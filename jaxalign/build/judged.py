"""MT-Bench and AlpacaEval of a model in a folder: its answers, and what a judge says of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxalign.build.progress import bar
from jaxalign.build.sampler import Sampler
from jaxalign.errors import ConfigError
from jaxalign.evaluation import alpaca_eval as alpaca
from jaxalign.evaluation import mt_bench as dialogues
from jaxalign.evaluation.alpaca_eval_files import (
    find_files,
    output_rows,
    read_annotations,
    read_evaluation_set,
    read_judge_prompt,
    read_outputs,
    write_json,
)
from jaxalign.evaluation.dialogue import Generate, answer_questions
from jaxalign.evaluation.judge import Judge
from jaxalign.evaluation.judge_settings import JudgeSettings
from jaxalign.evaluation.length_control import read_length_control
from jaxalign.evaluation.mt_bench_files import Question, file_name, read_answers, read_mt_bench
from jaxalign.evaluation.outcome import Outcome
from jaxalign.files import write_text

ANSWERED = "Not judged: the answers are in {path}. Judge them with the same command and --judge=URL --judge-model=NAME."


def mt_bench(
    model: str | None,
    folder: str | Path,
    out: str | Path,
    *,
    judge: JudgeSettings | None = None,
    pairwise: str | Path | None = None,
    answers: str | Path | None = None,
    name: str | None = None,
    chat_template: str | None = None,
    max_new_tokens: int = 1024,
    repeats: int = 1,
    reference: str = "gpt-4",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    dtype: str = "bfloat16",
    progress: bool = False,
) -> Outcome:
    """MT-Bench of a model. The same call continues where an earlier one stopped, with its answers and judgments.

    Args:
      model: Hugging Face folder or hub id; None where its answers are given.
      folder: FastChat's files, see `read_mt_bench`.
      out: a folder for answers, judgments and the judge's replies: ``mt_bench/model_answer/NAME.jsonl``,
        ``mt_bench/model_judgment/...``, ``judge.jsonl``.
      judge: who scores; None = answers only.
      pairwise: FastChat's file of another model's answers to compare with.
      answers: FastChat's file of answers to judge instead of a model's.
      name: the model's in the files; None = its folder's.
      chat_template: path, text, or ``chatml``; None = the model's own.
      max_new_tokens: most tokens of an answer.
      repeats: how often each judgment is asked, to see how much the judge wavers.
      reference: whose reference answers.
      limit: only so many questions of each category.
      seed: of sampling the answers.
      batch_size: conversations decoded together.
      dtype: of the arithmetic.
      progress: show bars.

    Returns:
      See `jaxalign.evaluation.mt_bench.mt_bench`.

    Raises:
      ConfigError: the judge cannot be asked, known before anything is generated; or answers made with other settings
        are in the folder.
      DataError: files are missing or damaged; no chat template.
      JaxalignError: the judge stopped answering.
    """
    out = Path(out)
    bench = read_mt_bench(folder, reference=reference, limit=limit)
    baseline = read_answers(pairwise, bench.questions) if pairwise is not None else None
    if pairwise is not None and judge is None:
        raise ConfigError("pairwise: a comparison needs a judge.")
    protocol: dict[str, Any] = {}
    with _judge(judge, out) as asked:
        if answers is not None:
            named, given = read_answers(answers, bench.questions)
            name = name or named
        else:
            generate, name, protocol = _model(model, name, chat_template, batch_size, dtype, asked)
            path = out / "mt_bench" / "model_answer" / f"{file_name(name)}.jsonl"
            with bar("answers", progress) as update:
                given = answer_questions(
                    bench.questions,
                    generate,
                    path,
                    model=name,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                    origin=protocol,
                    together=batch_size,
                    progress=update,
                )
            answers = path
            del protocol["weights"]  # what is measured, not how
            protocol |= {"max_new_tokens": max_new_tokens, "temperatures": "by category", "seed": seed}
        if asked is None:
            outcome = dialogues.answers_only(bench, given, protocol)
            return _with_note(outcome, ANSWERED.format(path=answers))
        return dialogues.mt_bench(
            bench, given, asked, out, model=name, baseline=baseline, repeats=repeats, protocol=protocol
        )


def alpaca_eval(
    model: str | None,
    data: str | Path,
    out: str | Path,
    *,
    judge: JudgeSettings | None = None,
    judge_prompt: str | Path | None = None,
    outputs: str | Path | None = None,
    annotations: str | Path | None = None,
    weights: str | Path | None = None,
    name: str | None = None,
    chat_template: str | None = None,
    max_new_tokens: int = 2048,
    temperature: float = 0.7,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    dtype: str = "bfloat16",
    progress: bool = False,
) -> Outcome:
    """AlpacaEval of a model. The same call continues where an earlier one stopped.

    Args:
      model: Hugging Face folder or hub id; None where its outputs or annotations are given.
      data: the evaluation set with the baseline's outputs, a JSON list of ``{"instruction", "output", "generator",
        "dataset"}``, such as alpaca_eval's ``alpaca_eval_gpt4_baseline.json``; or a folder that has this file, and
        perhaps the next two.
      out: a folder for ``alpaca_eval/NAME/model_outputs.json``, ``annotations.json``, ``leaderboard.json`` and the
        judge's replies.
      judge: who compares; None = the annotations are given, or outputs only.
      judge_prompt: what it is asked, such as alpaca_eval's ``alpaca_eval_clf.txt``; None = that of the folder.
      outputs: a model's outputs to judge instead of a model.
      annotations: alpaca_eval's annotations to take the scores of.
      weights: alpaca_eval's ``df_gamed.csv`` for the length-controlled win rate; None = that of the folder,
        or it is not computed.
      name: the model's in the files; None = its folder's.
      chat_template: path, text, or ``chatml``; None = the model's own.
      max_new_tokens: most tokens of an output.
      temperature: of sampling.
      limit: only the first instructions.
      seed: of sampling the outputs. The order in which answers are shown is alpaca_eval's.
      batch_size: conversations decoded together.
      dtype: of the arithmetic.
      progress: show bars.

    Returns:
      See `jaxalign.evaluation.alpaca_eval.alpaca_eval`.

    Raises:
      ConfigError: the judge cannot be asked, known before anything is generated; or outputs made with other settings
        are in the folder.
      DataError: files are missing or damaged, instructions do not match; no chat template.
      JaxalignError: the judge stopped answering.
    """
    out = Path(out)
    files = find_files(data)
    files |= {n: Path(p) for n, p in (("judge_prompt", judge_prompt), ("weights", weights)) if p is not None}
    if judge is not None and annotations is None and "judge_prompt" not in files:
        raise ConfigError(
            "judge_prompt: missing, expected a file, such as alpaca_eval_clf.txt in alpaca_eval's "
            "evaluators_configs/alpaca_eval_clf_gpt4_turbo."
        )
    evaluation = read_evaluation_set(files["data"]).first(limit)
    control = read_length_control(files["weights"]) if "weights" in files else None
    if annotations is not None:
        rows = read_annotations(annotations, evaluation)
        return _scored(out, alpaca.alpaca_eval(evaluation, rows, control=control), rows)
    prompt = read_judge_prompt(files["judge_prompt"]) if judge is not None else None
    protocol: dict[str, Any] = {}
    notes: list[str] = []
    with _judge(judge, out) as asked:
        if outputs is not None:
            named, texts = read_outputs(outputs, evaluation)
            name = name or named
        else:
            generate, name, protocol = _model(model, name, chat_template, batch_size, dtype, asked)
            folder = out / "alpaca_eval" / file_name(name)
            questions = [Question(i, "", (text,), temperature) for i, text in enumerate(evaluation.instructions)]
            with bar("answers", progress) as update:
                given = answer_questions(
                    questions,
                    generate,
                    folder / "answers.jsonl",
                    model=name,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                    origin={**protocol, "temperature": temperature, "data": evaluation.sha256},
                    together=batch_size,
                    progress=update,
                )
            left_out = [i for i in given if given[i].too_long]
            if left_out:
                notes.append(
                    f"{len(left_out)} instructions do not fit into the model's context together with their answer; "
                    f"their outputs are empty: {', '.join(map(str, left_out))}."
                )
            texts = ["" if given[i].too_long else given[i].turns[0] for i in range(len(questions))]
            outputs = folder / "model_outputs.json"
            write_json(outputs, output_rows(evaluation, name, texts))
            del protocol["weights"]  # what is measured, not how
            protocol |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        if asked is None or prompt is None:
            outcome = alpaca.outputs_only(evaluation, texts, protocol)
            return _with_note(outcome, ANSWERED.format(path=outputs), *notes)
        rows, how = alpaca.annotate(evaluation, texts, asked, prompt, model=name)
        costs = {"judge": asked.costs()}
    outcome = alpaca.alpaca_eval(evaluation, rows, control=control, protocol={**protocol, **how}, details=costs)
    return _with_note(_scored(out, outcome, rows), *notes)


@contextmanager
def _judge(settings: JudgeSettings | None, out: Path) -> Iterator[Judge | None]:
    """The judge, with its replies kept in the folder, and what this process asked of it written there at the end."""
    if settings is None:
        yield None
        return
    with Judge(settings, out / "judge.jsonl") as judge:
        try:
            yield judge
        finally:
            usage = {"sent": judge.usage.sent, "retries": judge.usage.retries, "kept": judge.usage.kept}
            write_text(out / "judge_usage.json", json.dumps({**usage, **judge.costs()}, indent=2) + "\n")


def _model(
    model: str | None, name: str | None, chat_template: str | None, batch_size: int, dtype: str, judge: Judge | None
) -> tuple[Generate, str, dict[str, Any]]:
    """The model's answers, its name, and what they depend on. A judge must answer before the model does."""
    if model is None:
        raise ConfigError("model: missing, expected a Hugging Face folder or hub id, or answers to judge.")
    sampler = Sampler(model, chat_template=chat_template, batch_size=batch_size, dtype=dtype)

    def generate(conversations: Sequence[Any], **options: Any) -> Sequence[str | None]:
        if judge is not None:
            judge.check()
        return sampler(conversations, **options)

    return generate, name or _name(model), dict(sampler.origin)


def _name(model: str) -> str:
    """A folder's name; that of the run where it is a run's export."""
    path = Path(model).expanduser()
    if not path.exists():
        return model
    path = path.resolve()
    return path.parent.name if path.name == "export" else path.name


def _scored(out: Path, outcome: Outcome, rows: Sequence[Mapping[str, Any]]) -> Outcome:
    """The outcome, once annotations and scores are written as alpaca_eval writes them."""
    name = str(rows[0].get("generator_2", "model"))
    folder = out / "alpaca_eval" / file_name(name)
    write_json(folder / "annotations.json", rows)
    write_text(folder / "leaderboard.json", json.dumps({name: alpaca.leaderboard(outcome)}, indent=2) + "\n")
    return outcome


def _with_note(outcome: Outcome, *notes: str) -> Outcome:
    kept = [note for note in outcome.notes if note != "Not judged."]
    return dataclasses.replace(outcome, notes=[*notes, *kept])
