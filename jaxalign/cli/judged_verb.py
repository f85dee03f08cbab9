"""``jaxalign evaluate --suite=mt_bench`` and ``--suite=alpaca_eval``: dialogues that a judge scores."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.config_fields import literal
from jaxalign.errors import ConfigError
from jaxalign.evaluation.judge_settings import JudgeSettings
from jaxalign.evaluation.outcome import Outcome
from jaxalign.files import write_text

JUDGE = {
    "judge_model": "model",
    "judge_key_env": "api_key_env",
    "judge_concurrency": "concurrency",
    "judge_requests": "requests_per_minute",
    "judge_tokens": "tokens_per_minute",
    "judge_timeout": "timeout",
}
"""Flags and the settings of a judge that they set."""

BOTH = (*JUDGE, "judge", "judge_price", "answers", "name", "chat_template", "max_new_tokens")
ONLY: Mapping[str, tuple[str, ...]] = {
    "mt_bench": ("pairwise", "repeats"),
    "alpaca_eval": ("judge_prompt", "annotations", "weights", "temperature"),
}
"""Flags that only this suite has."""

FOREIGN = ("shots", "chat", "system", "overlong", "batch_tokens")
"""Flags of the other suites."""


def add_flags(parser: ArgumentParser) -> None:
    """The flags of ``evaluate`` for judged dialogues."""
    add = parser.add_argument_group("judged dialogues (--suite=mt_bench, --suite=alpaca_eval)").add_argument
    add("--judge", metavar="URL", help="OpenAI-compatible endpoint; openai = OpenAI's own; nothing = answers only")
    add("--judge-model", metavar="NAME", help="the judge's name at the endpoint")
    add("--judge-key-env", metavar="NAME", help="environment variable with its key (default: OPENAI_API_KEY)")
    add("--judge-concurrency", type=int, metavar="N", help="requests at once (default: 8)")
    add("--judge-requests", type=float, metavar="N", help="most requests a minute")
    add("--judge-tokens", type=float, metavar="N", help="most tokens a minute")
    add("--judge-timeout", type=float, metavar="S", help="seconds to wait for an answer (default: 120)")
    add("--judge-price", metavar="IN,OUT", help="price of a million tokens of prompts and of answers, to count costs")
    add("--judge-prompt", metavar="FILE", help="alpaca_eval: what the judge is asked (alpaca_eval_clf.txt)")
    add("--pairwise", metavar="FILE", help="mt_bench: compare with these answers too, in both orders")
    add("--repeats", type=int, metavar="N", help="mt_bench: ask for each judgment N times (default: 1)")
    add("--answers", metavar="FILE", help="judge these answers instead of a model's")
    add("--annotations", metavar="FILE", help="alpaca_eval: take the scores of these annotations")
    add("--weights", metavar="FILE", help="alpaca_eval: df_gamed.csv, for the length-controlled win rate")
    add("--name", metavar="NAME", help="the model's name in the files (default: its folder's)")
    add("--chat-template", metavar="FILE", help="instead of the model's own; chatml is built in")
    add("--max-new-tokens", type=int, metavar="N", help="longest answer (default: 1024, of alpaca_eval 2048)")
    add("--temperature", type=float, metavar="X", help="alpaca_eval: of sampling (default: 0.7)")


def problems(args: Namespace) -> list[str]:
    """Flags that do not go together with the suite. To be asked before defaults are filled in."""
    suite = args.suite
    found = [
        f"{_flag(name)}: goes with --suite={other} only."
        for other, names in ONLY.items()
        for name in names
        if other != suite and getattr(args, name) is not None
    ]
    if suite not in RUNNERS:
        given = [name for name in BOTH if getattr(args, name) is not None]
        return found + [f"{_flag(name)}: goes with --suite=mt_bench and --suite=alpaca_eval only." for name in given]
    foreign = [name for name in FOREIGN if getattr(args, name) not in (None, False)]
    found += [f"{_flag(name)}: has no meaning for --suite={suite}." for name in foreign]
    if args.benchmarks is None:
        what = "FastChat's fastchat/llm_judge/data" if suite == "mt_bench" else "alpaca_eval_gpt4_baseline.json"
        found.append(f"--benchmarks: missing, expected the folder or file of {suite}, such as {what}.")
    if args.out is None and args.workdir is None:
        found.append("--out: missing, expected a folder for answers and judgments.")
    if args.judge is None:
        asked = (*JUDGE, "judge_price", "judge_prompt", "pairwise", "repeats")
        given = [name for name in asked if getattr(args, name) is not None]
        found += [f"{_flag(name)}: needs a judge, --judge=URL." for name in given]
    elif args.judge_model is None:
        found.append("--judge-model: missing, expected the judge's name at the endpoint.")
    return found


def has_answers(args: Namespace) -> bool:
    """Whether no model is needed."""
    return args.suite in RUNNERS and (args.answers or args.annotations) is not None


def run_mt_bench(args: Namespace) -> Outcome:
    """Runs MT-Bench."""
    from jaxalign import build

    options = _options(args)
    options |= {"answers": args.answers, "pairwise": args.pairwise, "repeats": args.repeats or 1}
    return _written(args, build.mt_bench(args.model, args.benchmarks, _out(args), **options))


def run_alpaca_eval(args: Namespace) -> Outcome:
    """Runs AlpacaEval."""
    from jaxalign import build

    options = _options(args)
    options |= {name: getattr(args, name) for name in ("judge_prompt", "annotations", "weights")}
    options["outputs"] = args.answers
    if args.temperature is not None:
        options["temperature"] = args.temperature
    return _written(args, build.alpaca_eval(args.model, args.benchmarks, _out(args), **options))


RUNNERS: Mapping[str, Callable[[Namespace], Outcome]] = {"mt_bench": run_mt_bench, "alpaca_eval": run_alpaca_eval}
"""What runs a suite."""


def _options(args: Namespace) -> dict[str, Any]:
    options = {name: getattr(args, name) for name in ("name", "chat_template", "limit", "seed", "batch_size", "dtype")}
    if args.max_new_tokens is not None:
        options["max_new_tokens"] = args.max_new_tokens
    return {**options, "judge": _judge(args), "progress": True}


def _judge(args: Namespace) -> JudgeSettings | None:
    if args.judge is None:
        return None
    settings = {name: getattr(args, flag) for flag, name in JUDGE.items() if getattr(args, flag) is not None}
    if args.judge_price is not None:
        prices = [literal(part) for part in args.judge_price.split(",")]
        if len(prices) != 2 or not all(isinstance(price, int | float) and price >= 0 for price in prices):
            raise ConfigError(f"--judge-price: got {args.judge_price!r}, expected two numbers, such as 10,30.")
        settings |= {"price_in": prices[0], "price_out": prices[1]}
    return JudgeSettings(base_url=None if args.judge == "openai" else args.judge, **settings)


def _out(args: Namespace) -> Path:
    return Path(args.out) if args.out is not None else Path(args.workdir) / "judged"


def _written(args: Namespace, outcome: Outcome) -> Outcome:
    write_text(_out(args) / f"{args.suite}.json", json.dumps(outcome.as_dict(), indent=2) + "\n")
    return outcome


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
