"""``jaxalign evaluate --suite=NAME``: benchmarks and judged dialogue of a model."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.cli import judged_verb
from jaxalign.errors import ConfigError, did_you_mean
from jaxalign.evaluation.outcome import Metric, Outcome
from jaxalign.evaluation.suites import SUITES, get_suite

DEFAULTS: Mapping[str, Any] = {
    "overlong": "error",
    "dtype": "bfloat16",
    "batch_tokens": 8192,
    "batch_size": 16,
    "seed": 0,
}
FLAGS = (*DEFAULTS, "benchmarks", "limit", "shots", "out", "chat", "system", "json")
"""Flags that say nothing without ``--suite``."""


def add_flags(parser: ArgumentParser) -> None:
    """The flags of ``evaluate`` that go with ``--suite``."""
    names = ", ".join([*SUITES, *(name for name in RUNNERS if name not in SUITES)])
    group = parser.add_argument_group("benchmarks")
    add = group.add_argument
    add("--suite", metavar="NAME", help=f"run benchmarks: {names}; tasks:NAME,NAME for any tasks of lm-eval")
    add("--benchmarks", metavar="FOLDER", help="read their data from files instead of the hub")
    add("--limit", type=int, metavar="N", help="the first N documents of each task")
    add("--shots", type=int, metavar="N", help="examples in every prompt, instead of the suite's own numbers")
    add("--out", metavar="FOLDER", help="write benchmarks.json, and lm-eval's results_*.json and samples_*.jsonl")
    add("--chat", action="store_true", help="put prompts into the model's chat template")
    add("--system", metavar="TEXT", help="the system's message")
    add("--overlong", choices=("error", "cut"), help="contexts longer than the model (default: error)")
    add("--dtype", choices=("bfloat16", "float32"), help="precision (default: bfloat16)")
    add("--batch-tokens", type=int, metavar="N", help="tokens scored at once, on each device (default: 8192)")
    add("--batch-size", type=int, metavar="N", help="texts generated at once, on each device (default: 16)")
    add("--seed", type=int, help="seed of sampled answers (default: 0)")
    add("--json", action="store_true", help="print the outcome as JSON")
    judged_verb.add_flags(parser)


def stray_flags(args: Namespace) -> list[str]:
    """Problems of flags that were given without ``--suite``."""
    given = [flag for flag in FLAGS if getattr(args, flag) not in (None, False)]
    stray = [f"--{flag.replace('_', '-')}: goes with --suite only, which is missing." for flag in given]
    return stray + judged_verb.problems(args)


def run(args: Namespace) -> int:
    """Runs the suite and prints what it found."""
    problems = list(args.problems)
    if args.config or args.overrides:
        problems.append("--config: --suite takes no configuration. Give --model, or --workdir of a run.")
    model = args.model or (str(Path(args.workdir) / "export") if args.workdir else None)
    problems += judged_verb.problems(args)
    if model is None:
        if not judged_verb.has_answers(args):
            problems.append("--model: missing, expected a Hugging Face folder or hub id, or --workdir of a run.")
    elif args.model is None and not Path(model).is_dir():
        problems.append(f"--workdir: {args.workdir} has no export/ to evaluate. Train first, or give --model.")
    runner = RUNNERS.get(args.suite, _harness)
    if runner is _harness:
        try:
            get_suite(args.suite)
        except ConfigError as error:
            near = did_you_mean(args.suite, RUNNERS)
            problems += error.problems if not near else [f"suite: got {args.suite!r}, there is no such suite.{near}"]
    if problems:
        raise ConfigError(problems)
    os.environ.setdefault("TQDM_MININTERVAL", "5")
    args.model = model
    for flag, value in DEFAULTS.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    if args.distributed:
        from jaxalign.cli.distributed import connect

        connect()
    outcome = runner(args)
    print(json.dumps(outcome.as_dict(), indent=2) if args.json else table(outcome))
    return 0


def _harness(args: Namespace) -> Outcome:
    from jaxalign.build.benchmarks import run_benchmarks

    return run_benchmarks(
        args.model,
        args.suite,
        benchmarks=args.benchmarks,
        limit=args.limit,
        shots=args.shots,
        chat=args.chat,
        system=args.system,
        overlong=args.overlong,
        dtype=args.dtype,
        batch_tokens=args.batch_tokens,
        batch_size=args.batch_size,
        seed=args.seed,
        out=args.out,
    )


RUNNERS: Mapping[str, Callable[[Namespace], Outcome]] = {**dict.fromkeys(SUITES, _harness), **judged_verb.RUNNERS}
"""What runs a suite."""


def table(outcome: Outcome) -> str:
    """Metrics with their 95 % intervals, the headline of each benchmark starred, and notes."""
    tasks = outcome.protocol.get("tasks", {})
    starred = {f"{name}/{entry['metric']}" for name, entry in tasks.items() if isinstance(entry, Mapping)}
    width = max(map(len, outcome.metrics), default=0)
    lines = []
    for name, metric in outcome.metrics.items():
        shots = tasks.get(name.partition("/")[0], {}).get("shots")
        star = "*" if name in starred else " "
        behind = "" if shots is None else f"  {shots} shots"
        lines.append(f"{star} {name:<{width}}  {_number(metric):<18}  n = {metric.n}{behind}")
    return "\n".join([*lines, *(f"- {note}" for note in outcome.notes)])


def _number(metric: Metric) -> str:
    spread = "" if metric.stderr is None else f" ± {1.96 * metric.stderr:.3f}"
    return f"{metric.value:.4g}{spread}"
