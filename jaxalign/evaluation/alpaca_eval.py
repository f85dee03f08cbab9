"""AlpacaEval: a judge compares the model's answers with a baseline's; the win rate is the mean of its preferences.

Li et al., 2023; Dubois et al., 2024. The judge is asked as by alpaca_eval's ``weighted_alpaca_eval_gpt4_turbo``: the
answers in an order drawn from the instruction, one token, and the preference is the probability of that token.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import DataError
from jaxalign.evaluation.alpaca_eval_files import PUBLISHED_PROMPT, EvaluationSet, JudgePrompt
from jaxalign.evaluation.judge import Judge, Reply, Request
from jaxalign.evaluation.length_control import Controlled, LengthControl, length_controlled
from jaxalign.evaluation.outcome import Metric, Outcome

SHOWN = 8
MISSING = -1.0
"""alpaca_eval's mark of a comparison without a verdict, in files of its own making."""


def shown_in_other_order(instruction: str, seed: int = 0) -> bool:
    """Whether the model's answer is shown first: drawn as alpaca_eval does, from the instruction."""
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True], k=1)[0]


def read_preference(reply: Reply) -> float | None:
    """1 if the answer shown first is better, 2 if the second is, between them where the judge wavers.

    From the log-probabilities of the tokens m and M where the endpoint gives them, ``2 - p(m) / (p(m) + p(M))``, else
    from the letter it wrote. None if there is neither.
    """
    if reply.logprobs is not None:
        first, second = (reply.logprobs.get(token, -math.inf) for token in ("m", "M"))
        if max(first, second) == -math.inf:
            return None
        return 2.0 - 1.0 / (1.0 + math.exp(min(second - first, 700.0)))
    return {"m": 1.0, "M": 2.0}.get(reply.text.strip().strip("\"'`.").strip())


def annotate(
    evaluation: EvaluationSet,
    outputs: Sequence[str],
    judge: Judge,
    prompt: JudgePrompt,
    *,
    model: str,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Asks the judge for every instruction. Equal answers are a draw without asking.

    Args:
      evaluation: instructions and baseline.
      outputs: the model's, in their order.
      judge: who compares.
      prompt: what it is asked.
      model: name of the model.
      seed: of the order in which the two answers are shown.

    Returns:
      The annotations as alpaca_eval writes them (`preference` None where there is no verdict), and the protocol.

    Raises:
      ConfigError: the judge cannot be asked.
      JaxalignError: it stopped answering; what it answered is kept.
    """
    weighted = judge.has_logprobs()
    # The temperature changes no log-probability; it is alpaca_eval's. A letter alone is the likeliest one, after
    # whatever space the model begins with.
    options = {"max_tokens": 1, "temperature": 1.0, "top_logprobs": 5} if weighted else {"max_tokens": 8}
    asked: dict[int, Request] = {}
    for i, instruction in enumerate(evaluation.instructions):
        if outputs[i] != evaluation.outputs[i]:
            pair = (evaluation.outputs[i], outputs[i])
            switched = shown_in_other_order(instruction, seed)
            messages = prompt.fill(instruction, *(reversed(pair) if switched else pair))
            asked[i] = Request(messages=messages, **options)
    replies = dict(zip(asked, judge.ask(list(asked.values())), strict=True))
    rows = []
    for i, instruction in enumerate(evaluation.instructions):
        preference: float | None = 1.5
        reply = replies.get(i)
        if reply is not None:
            preference = read_preference(reply)
            if preference is not None and shown_in_other_order(instruction, seed):
                preference = 3.0 - preference
        rows.append(
            {
                "dataset": evaluation.datasets[i],
                "instruction": instruction,
                "output_1": evaluation.outputs[i],
                "generator_1": evaluation.baseline,
                "output_2": outputs[i],
                "generator_2": model,
                "annotator": judge.settings.model,
                "preference": preference,
                "preference_raw_completion": None if reply is None else reply.error or _raw(reply),
            }
        )
    protocol = {
        "judge": judge.settings.model,
        "judge_prompt": prompt.sha256,
        "preference": "log-probabilities of m and M" if weighted else "the letter written (no log-probabilities)",
        "order_seed": seed,
    }
    return rows, protocol


def alpaca_eval(
    evaluation: EvaluationSet,
    annotations: Sequence[Mapping[str, Any]],
    *,
    control: LengthControl | None = None,
    protocol: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Outcome:
    """The scores that alpaca_eval computes, of annotations in the order of the evaluation set.

    Metrics (shares, not percent; values by instruction, None where there is no verdict):
      win_rate: mean preference for the model; discrete_win_rate: with preferences rounded, draws counting one half.
      length_controlled_win_rate: at equal lengths, if `control` is given. It has no values: what a regression fitted
        is no data. Its standard error is `length_controlled`'s; alpaca_eval's own, which leaves out the error of the
        fit, is among the details as ``lc_standard_error``.
      unread: share of comparisons without a verdict. They are left out of everything else.
      answer_length, baseline_length: characters.

    Raises:
      DataError: a preference is no number from 1 to 2, or there is none at all.
    """
    names = {str(row.get("generator_2", "model")) for row in annotations}
    if len(names) != 1:
        raise DataError(f"annotations: of {sorted(names)}, expected those of one model.")
    preferences = _preferences(annotations)
    known = preferences[~np.isnan(preferences)]
    if not len(known):
        raise DataError("annotations: there is not one verdict; look at preference_raw_completion of the annotations.")
    wins, draws = int((known > 0.5).sum()), int((known == 0.5).sum())
    discrete = np.where(np.isnan(preferences), np.nan, (np.sign(preferences - 0.5) + 1) / 2)
    baseline_lengths = [len(row["output_1"]) for row in annotations]
    lengths = [len(row["output_2"]) for row in annotations]
    metrics = {
        "win_rate": _metric(preferences, True),
        "discrete_win_rate": _metric(discrete, True),
        "unread": Metric(value=float(np.isnan(preferences).mean()), n=len(preferences), higher_is_better=False),
        "answer_length": _metric(np.array(lengths, float), None, "characters"),
        "baseline_length": _metric(np.array(baseline_lengths, float), None, "characters"),
    }
    notes = []
    if control is not None and len(control.difficulty) == len(annotations):
        equal = names == {evaluation.baseline}
        controlled = (
            Controlled(0.5, 0.0, np.full(len(preferences), 0.5))
            if equal
            else length_controlled(control, preferences, baseline_lengths, lengths)
        )
        metrics["length_controlled_win_rate"] = Metric(
            value=controlled.value, n=len(preferences), stderr=controlled.stderr, higher_is_better=True
        )
        details = {"lc_standard_error": _metric(controlled.fitted, True).stderr, **(details or {})}
    elif control is not None:
        notes.append(
            f"The length-controlled win rate is not available: its weights are of {len(control.difficulty)} "
            f"instructions, and {len(annotations)} are measured."
        )
    else:
        notes.append(
            "The length-controlled win rate is not available: it needs weights (df_gamed.csv of tatsu-lab/alpaca_eval)."
        )
    if unread := int(np.isnan(preferences).sum()):
        notes.append(f"In {unread} of {len(preferences)} comparisons no verdict was found; they are left out.")
    prompt = str((protocol or {}).get("judge_prompt", PUBLISHED_PROMPT))
    if not prompt.startswith(PUBLISHED_PROMPT):
        notes.append("The judge's prompt is not alpaca_eval_clf.txt as published.")
    return Outcome(
        metrics=metrics,
        protocol={
            "benchmark": "AlpacaEval",
            "file": evaluation.sha256,
            "instructions": len(evaluation.instructions),
            "baseline": evaluation.baseline,
            "judge": "/".join(sorted({str(row.get("annotator", "unknown")) for row in annotations})),
            **(protocol or {}),
        },
        samples=[
            {
                "prompt": row["instruction"],
                "completion": row["output_2"],
                "baseline": row["output_1"],
                "preference": None if math.isnan(value) else float(value),
            }
            for row, value in list(zip(annotations, preferences, strict=True))[:SHOWN]
        ],
        details={
            "n_wins": wins,
            "n_wins_base": len(known) - wins - draws,
            "n_draws": draws,
            "n_total": len(known),
            **(details or {}),
        },
        notes=notes,
    )


def outputs_only(
    evaluation: EvaluationSet, outputs: Sequence[str], protocol: Mapping[str, Any] | None = None
) -> Outcome:
    """What can be said of outputs that nobody has judged."""
    lengths = np.array([len(output) for output in outputs], float)
    return Outcome(
        metrics={"answer_length": _metric(lengths, None, "characters")},
        protocol={
            "benchmark": "AlpacaEval",
            "file": evaluation.sha256,
            "instructions": len(outputs),
            **(protocol or {}),
        },
        samples=[
            {"prompt": prompt, "completion": output}
            for prompt, output in list(zip(evaluation.instructions, outputs, strict=True))[:SHOWN]
        ],
        notes=["Not judged."],
    )


def leaderboard(outcome: Outcome) -> dict[str, float]:
    """The numbers under alpaca_eval's names, win rates in percent."""
    names = {
        "win_rate": ("win_rate", "standard_error", outcome.metrics["win_rate"].stderr),
        "discrete_win_rate": ("discrete_win_rate", "", None),
        "length_controlled_win_rate": (
            "length_controlled_winrate",
            "lc_standard_error",
            outcome.details.get("lc_standard_error"),
        ),
    }
    row = {name: outcome.details[name] for name in ("n_wins", "n_wins_base", "n_draws", "n_total")}
    for ours, (theirs, error, stderr) in names.items():
        metric = outcome.metrics.get(ours)
        if metric is None:
            continue
        row[theirs] = 100 * metric.value
        if stderr is not None:
            row[error] = 100 * stderr
    row["avg_length"] = int(outcome.metrics["answer_length"].value)
    return row


def _preferences(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """For the model, 0 to 1; NaN where there is no verdict."""
    values, problems = [], []
    for number, row in enumerate(annotations):
        value = row.get("preference")
        if value is None or value == MISSING or value != value:
            values.append(float("nan"))
        elif value == 0:  # alpaca_eval's older mark of a draw
            values.append(0.5)
        elif isinstance(value, int | float) and 1 <= value <= 2:
            values.append(float(value) - 1.0)
        else:
            problems.append(f"annotation {number}: preference is {value!r}, expected a number from 1 to 2, or none.")
    if problems:
        raise DataError(problems)
    return np.array(values)


def _metric(values: np.ndarray, better: bool | None, unit: str = "share") -> Metric:
    known = values[~np.isnan(values)]
    stderr = float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else None
    return Metric(
        value=float(known.mean()),
        n=len(known),
        values=[None if math.isnan(value) else value for value in values.tolist()],
        stderr=stderr,
        higher_is_better=better,
        unit=unit,
    )


def _raw(reply: Reply) -> Any:
    if reply.logprobs is None:
        return reply.text
    return {"text": reply.text, "top_logprobs": dict(reply.logprobs)}
