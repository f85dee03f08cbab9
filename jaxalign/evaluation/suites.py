"""Which benchmarks a suite runs, with how many examples in the prompt, and which number of each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxalign.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark of a suite.

    Attributes:
      task: lm-eval's task or group.
      metric: its headline number, in lm-eval's words: ``"acc_norm"``, ``"exact_match,strict-match"``; None = the first.
      shots: examples in the prompt; None = the task's own number.
      fewshot_split: split that they are from; None = the task's own.
      why: of a choice that sources do not settle.
    """

    task: str
    metric: str | None = None
    shots: int | None = None
    fewshot_split: str | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Benchmarks that are run and averaged together.

    Attributes:
      name: of the suite.
      summary: one line.
      benchmarks: in the order of the table.
    """

    name: str
    summary: str
    benchmarks: tuple[Benchmark, ...]


OPEN_LLM = (
    Benchmark(task="arc_challenge", metric="acc_norm", shots=25, fewshot_split="train"),
    Benchmark(task="hellaswag", metric="acc_norm", shots=10, fewshot_split="train"),
    Benchmark(task="mmlu", metric="acc", shots=5),
    Benchmark(task="truthfulqa_mc2", metric="acc", shots=0),
    Benchmark(task="winogrande", metric="acc", shots=5, fewshot_split="train"),
    Benchmark(task="gsm8k", metric="exact_match,strict-match", shots=5),
)
"""The Open LLM Leaderboard of 2023/24. It averaged the subjects of MMLU unweighted: that number is there too."""

_BBH = (
    "The paper's own table was not at hand. SPIN, whose extra tasks these are, reports 56.15, 96.0 and 49.6 for "
    "zephyr-7b-sft-full: 105/187, 240/250 and 124/250, so its data are BBH's (3 examples in the prompt), not "
    "BIG-bench's own (bigbench_*_multiple_choice, 0 shots, other sizes). That answers reason first (cot) is inferred "
    "from the 96.0."
)
_OPENBOOKQA = "SPIN's text states 1 shot and acc_norm for its extra tasks; lm-eval's default is 0 shots."

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="study1",
            summary="the 12 text benchmarks of the comparison of DPO, IPO, KTO and CPO (arXiv 2404.14723)",
            benchmarks=(
                *OPEN_LLM,
                Benchmark(task="bbh_cot_fewshot_causal_judgement", metric="exact_match,get-answer", shots=3, why=_BBH),
                Benchmark(
                    task="bbh_cot_fewshot_sports_understanding", metric="exact_match,get-answer", shots=3, why=_BBH
                ),
                Benchmark(task="bbh_cot_fewshot_formal_fallacies", metric="exact_match,get-answer", shots=3, why=_BBH),
                Benchmark(task="openbookqa", metric="acc_norm", shots=1, fewshot_split="train", why=_OPENBOOKQA),
                Benchmark(task="boolq", metric="acc", shots=0),
                Benchmark(task="piqa", metric="acc_norm", shots=0),
            ),
        ),
        Suite(name="openllm", summary="the six benchmarks of the Open LLM Leaderboard, version 1", benchmarks=OPEN_LLM),
        Suite(
            name="ifeval",
            summary="instructions whose following a program checks; needs pip install 'jaxalign[ifeval]'",
            benchmarks=(Benchmark(task="ifeval", metric="prompt_level_strict_acc", shots=0),),
        ),
        Suite(
            name="quick",
            summary="five multiple-choice benchmarks without examples in the prompt: minutes, and short contexts",
            benchmarks=(
                Benchmark(task="arc_easy", metric="acc_norm", shots=0),
                Benchmark(task="hellaswag", metric="acc_norm", shots=0),
                Benchmark(task="boolq", metric="acc", shots=0),
                Benchmark(task="piqa", metric="acc_norm", shots=0),
                Benchmark(task="truthfulqa_mc2", metric="acc", shots=0),
            ),
        ),
    )
}
"""The suites by name."""


def get_suite(name: str) -> Suite:
    """A suite of the table, or ``"tasks:arc_easy,piqa"``: tasks of lm-eval with their own settings.

    Raises:
      ConfigError: there is none of this name.
    """
    if name in SUITES:
        return SUITES[name]
    prefix, _, tasks = name.partition(":")
    if prefix == "tasks" and tasks:
        return Suite(
            name=name,
            summary="tasks of lm-eval with their own settings",
            benchmarks=tuple(Benchmark(task=task) for task in tasks.split(",") if task),
        )
    raise ConfigError(
        f"suite: got {name!r}, expected one of {', '.join(SUITES)}, mt_bench, alpaca_eval, or tasks:NAME,NAME with "
        f"tasks of lm-eval (tasks:{name}).{did_you_mean(name, SUITES)}"
    )
