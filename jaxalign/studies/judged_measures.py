"""The measures that ask a judge: MT-Bench and AlpacaEval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import DataError
from jaxalign.evaluation.judge_settings import JudgeSettings
from jaxalign.evaluation.outcome import Outcome
from jaxalign.studies import measure_checks as check
from jaxalign.studies import measure_work as work
from jaxalign.studies.measure_settings import Settings
from jaxalign.studies.study import Measure, Subject


def mt_bench(
    folder: str | Path,
    judge: JudgeSettings | None = None,
    *,
    pairwise: str | Path | None = None,
    chat_template: str | None = None,
    max_new_tokens: int = 1024,
    repeats: int = 1,
    reference: str = "gpt-4",
    limit: int | None = None,
    batch_size: int = 16,
    dtype: str = "bfloat16",
    name: str = "mt_bench",
) -> Measure:
    """MT-Bench. The arguments are those of `jaxalign.build.judged.mt_bench`.

    Args:
      folder: FastChat's files.
      judge: who scores; None = answers only.
      pairwise: FastChat's file of another model's answers to compare with.
      chat_template: path, text, or ``chatml``; None = each model's own.
      max_new_tokens: most tokens of an answer.
      repeats: how often each judgment is asked.
      reference: whose reference answers.
      limit: only so many questions of each category.
      batch_size: conversations decoded together.
      dtype: of the arithmetic.
      name: of the measure, where a study has several of these.
    """
    options = {
        "chat_template": chat_template,
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
        "reference": reference,
        "limit": limit,
        "dtype": dtype,
    }

    def run(subject: Subject) -> Outcome:
        from jaxalign.build import judged

        return judged.mt_bench(
            subject.model,
            folder,
            subject.out,
            judge=judge,
            pairwise=pairwise,
            seed=subject.seed,
            batch_size=batch_size,
            **options,
        )

    def problems() -> list[str]:
        from jaxalign.evaluation.mt_bench_files import read_answers, read_mt_bench

        def read() -> None:
            bench = read_mt_bench(folder, reference=reference, limit=limit)
            if pairwise is not None:
                read_answers(pairwise, bench.questions)

        return check.checks(
            check.of_files("folder", read),
            check.of_judge(judge, pairwise=pairwise),
            check.of_template("chat_template", chat_template),
        )

    files = {"folder": folder, "pairwise": pairwise}
    questions = 80 if limit is None else min(80, 8 * limit)
    return Measure(
        name=name,
        run=run,
        settings=_judged_settings(options, judge, files),
        check=problems,
        work=work.of_dialogue(2 * questions, 500, max_new_tokens, batch_size, f"{questions} questions of two turns"),
    )


def alpaca_eval(
    data: str | Path,
    judge: JudgeSettings | None = None,
    *,
    judge_prompt: str | Path | None = None,
    weights: str | Path | None = None,
    chat_template: str | None = None,
    max_new_tokens: int = 2048,
    temperature: float = 0.7,
    limit: int | None = None,
    batch_size: int = 16,
    dtype: str = "bfloat16",
    name: str = "alpaca_eval",
) -> Measure:
    """AlpacaEval 2. The arguments are those of `jaxalign.build.judged.alpaca_eval`.

    Args:
      data: the evaluation set with the baseline's outputs.
      judge: who compares; None = outputs only.
      judge_prompt: what it is asked.
      weights: alpaca_eval's ``df_gamed.csv`` for the length-controlled win rate; None = it is not computed.
      chat_template: path, text, or ``chatml``; None = each model's own.
      max_new_tokens: most tokens of an output.
      temperature: of sampling.
      limit: only the first instructions.
      batch_size: conversations decoded together.
      dtype: of the arithmetic.
      name: of the measure, where a study has several of these.
    """
    options = {
        "chat_template": chat_template,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "limit": limit,
        "dtype": dtype,
    }

    def run(subject: Subject) -> Outcome:
        from jaxalign.build import judged

        return judged.alpaca_eval(
            subject.model,
            data,
            subject.out,
            judge=judge,
            judge_prompt=judge_prompt,
            weights=weights,
            seed=subject.seed,
            batch_size=batch_size,
            **options,
        )

    def problems() -> list[str]:
        from jaxalign.evaluation import alpaca_eval_files as kinds
        from jaxalign.evaluation.length_control import read_length_control

        readers = {
            "data": kinds.read_evaluation_set,
            "judge_prompt": kinds.read_judge_prompt,
            "weights": read_length_control,
        }
        given = {key: Path(path) for key, path in files.items() if path is not None}
        try:
            found = {**kinds.find_files(data), **{key: path for key, path in given.items() if key != "data"}}
        except DataError as error:
            return list(error.problems)
        missing = judge is not None and "judge_prompt" not in found
        return check.checks(
            *(check.of_files(key, lambda key=key: readers[key](found[key])) for key in found),
            ["judge_prompt: missing, expected a file, such as alpaca_eval's alpaca_eval_clf.txt."] if missing else [],
            check.of_judge(judge, judge_prompt=judge_prompt),
            check.of_template("chat_template", chat_template),
        )

    files = {"data": data, "judge_prompt": judge_prompt, "weights": weights}
    questions = min(805, limit or 805)
    return Measure(
        name=name,
        run=run,
        settings=_judged_settings(options, judge, files),
        check=problems,
        work=work.of_dialogue(questions, 60, max_new_tokens, batch_size, f"{questions} instructions"),
    )


def _judged_settings(
    options: Mapping[str, Any], judge: JudgeSettings | None, files: Mapping[str, str | Path | None]
) -> Settings:
    """The settings of a measure with a judge: who it is and where, not how hard it is pressed."""
    who = None if judge is None else {"model": judge.model, "url": judge.url}
    values = {key: value for key, value in options.items() if key != "chat_template"}
    named = {key: None if path is None else str(path) for key, path in files.items()}
    return Settings({**values, "judge": who}, {**named, "chat_template": options["chat_template"]})
