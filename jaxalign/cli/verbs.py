"""What each verb does: read the configuration, hand it to `jaxalign.build`, print the result."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxalign.cli.plan_verb import plan
from jaxalign.cli.report_verb import report_study
from jaxalign.cli.study_verbs import study
from jaxalign.cli.token_verb import analyse_tokens
from jaxalign.config import RunConfig, read_dict, resolve
from jaxalign.config_fields import literal
from jaxalign.config_transport import load, override
from jaxalign.errors import ConfigError, DataError, did_you_mean

STOPPED = 128 + 15
"""The exit code of a run that a signal stopped: what a process killed by SIGTERM has."""


def configuration(args: Namespace) -> RunConfig:
    """The configuration of the command line, everything settled; all its problems at once.

    ``--config`` names it; without one it is that of the run in ``--workdir``.
    """
    problems = list(args.problems)
    saved = Path(args.workdir) / "config.json" if args.workdir else None
    if args.verb == "train" and saved is None:
        problems.append("--workdir: missing, expected a folder for the run, such as --workdir=runs/first.")
    spec = args.config
    if spec is None and saved is not None and saved.is_file():
        spec = str(saved)
    if spec is None:
        where = f"; {saved} is not there" if saved else ""
        problems.append(f"--config: missing, expected a file, such as --config=configs/paired.py:dpo{where}.")
        problems += read_dict(override({}, args.overrides))[1]
        raise ConfigError(problems)
    try:
        config = load(spec, args.overrides)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    stop_at(problems)
    if getattr(args, "distributed", False):
        from jaxalign.cli.distributed import connect

        connect()
    return resolve(config)


def stop_at(problems: list[str]) -> None:
    """Raises the problems, if any."""
    if problems:
        raise ConfigError(problems)


def train(args: Namespace) -> int:
    """Trains; the same command continues a run."""
    config = configuration(args)
    from jaxalign import build
    from jaxalign.training.loop import Interrupted

    try:
        result = build.train(config, args.workdir)
    except Interrupted as stop:
        print(f"jaxalign train: {stop}", file=sys.stderr)
        return STOPPED
    width = max(map(len, result.metrics), default=0)
    for name, value in result.metrics.items():
        print(f"{name:<{width}}  {value:.6g}")
    if config.train.export:
        print(f"The aligned model is in {Path(args.workdir) / 'export'}.")
    return 0


def evaluate(args: Namespace) -> int:
    """Prints held-out metrics as JSON, or runs a suite of benchmarks."""
    from jaxalign.cli import suite_verb

    if args.suite is not None:
        return suite_verb.run(args)
    args.problems += suite_verb.stray_flags(args)
    config = configuration(args)
    from jaxalign import build

    print(json.dumps(dict(build.evaluate(config, args.workdir, model=args.model)), indent=2))
    return 0


def cache_reference(args: Namespace) -> int:
    """Fills the reference cache."""
    config = configuration(args)
    from jaxalign import build

    print(json.dumps(dict(build.cache_reference(config, args.out)), indent=2))
    return 0


def check_data(args: Namespace) -> int:
    """Prints the data reports, and some examples."""
    config = configuration(args)
    from jaxalign import build
    from jaxalign.cli.tables import example_lines, report_lines

    checked = build.check_data(config)
    for name, (examples, report) in checked.sets.items():
        print("\n".join(report_lines(name, report.as_dict())))
        for i in range(min(args.show, len(examples))):
            print("\n".join(example_lines(examples[i], checked.tokenizer)))
    return 0


def generate(args: Namespace) -> int:
    """Continues prompts."""
    stop_at(args.problems)
    if args.prompts and args.file:
        raise ConfigError("--file: got a file beside prompts, expected only one of the two.")
    records = [{"prompt": text} for text in args.prompts] or list(_read_prompts(args.file))
    from jaxalign import build

    completions = build.generate(
        args.model,
        [record["prompt"] for record in records],
        chat=args.chat,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        batch_size=args.batch_size,
        dtype=args.dtype,
    )
    for record, completion in zip(records, completions, strict=True):
        if args.prompts:
            print(completion)
        else:
            print(json.dumps({**record, "completion": completion}, ensure_ascii=False))
    return 0


def _read_prompts(file: str | None) -> Iterator[dict[str, Any]]:
    if file in (None, "-"):
        yield from _prompt_lines(sys.stdin, "standard input")
        return
    try:
        with open(file, encoding="utf-8") as lines:
            yield from _prompt_lines(lines, file)
    except OSError as error:
        raise DataError(f"--file: {file!r} cannot be read: {error.strerror}.") from error


def _prompt_lines(lines: TextIO, where: str) -> Iterator[dict[str, Any]]:
    problems: list[str] = []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            problems.append(f"{where} line {number}: not JSON ({error}); a text needs quotes.")
            continue
        record = {"prompt": value} if isinstance(value, str) else value
        prompt = record.get("prompt") if isinstance(record, Mapping) else None
        if not isinstance(prompt, str | list) or not prompt:
            problems.append(f'{where} line {number}: expected a text, or an object with a "prompt" that is not empty.')
            continue
        records.append(dict(record))
    if problems:
        raise DataError(problems)
    if not records:
        raise DataError(f"{where}: no prompts.")
    yield from records


def convert(args: Namespace) -> int:
    """Writes a Hugging Face folder."""
    stop_at(args.problems)
    from jaxalign import build

    build.convert(args.source, args.target, dtype=args.dtype)
    print(f"wrote {args.target}")
    return 0


def methods(args: Namespace) -> int:
    """Prints the table of methods, or one of them."""
    stop_at(args.problems)
    from jaxalign.method_text import describe, describe_transform, table, transform_table, with_data
    from jaxalign.methods import METHODS, get_method
    from jaxalign.transforms import TRANSFORMS

    if args.name and args.data:
        raise ConfigError("--data: got a layout beside a NAME, expected only one of the two.")
    if args.name:
        bare = args.name in TRANSFORMS and args.name not in METHODS
        print(describe_transform(args.name) if bare else describe(get_method(args.name)))
    elif not args.data:
        print(f"{table()}\n\n{transform_table()}")
    elif found := with_data(args.data):
        print(table(found))
    else:
        print(f"No method here learns from {args.data} data.")
    return 0


def analyse_field(args: Namespace) -> int:
    """Draws a method's gradient field."""
    from jaxalign.analysis import field_page, page
    from jaxalign.analysis.field import gradient_field
    from jaxalign.docstrings import read_docstring
    from jaxalign.methods import get_method

    problems = list(args.problems)
    method = get_method(args.method)
    options: dict[str, Any] = {}
    for name, text in args.method_options:
        if name in method.options:
            options[name] = literal(text)
        else:
            names = ("method", "out", "extent", "points", "origin", "lengths", "preference", *method.options)
            flags = [f"--{known}" for known in names]
            hint = did_you_mean(f"--{name}", flags)
            problems.append(f"unknown flag --{name}, expected one of {', '.join(flags)}.{hint}")
    problems += method.check_options(options)
    origin = _two_numbers("--origin", args.origin, problems) if args.origin else None
    lengths = _two_numbers("--lengths", args.lengths, problems)
    if not 0 < args.extent < 1e6:
        problems.append(f"--extent: got {args.extent}, expected a number above 0.")
    if not 5 <= args.points <= 1001:
        problems.append(f"--points: got {args.points}, expected 5 to 1001.")
    if args.preference is not None and not 0 <= args.preference <= 1:
        problems.append(f"--preference: got {args.preference}, expected a probability.")
    target = Path(args.out)
    problems += page.target_problems(target)
    stop_at(problems)
    field = gradient_field(
        method,
        options,
        extent=args.extent,
        points=args.points,
        origin=origin,
        lengths=lengths or (1.0, 1.0),
        preference=args.preference,
    )
    formula = read_docstring(method.objective).formula
    page.write(target, field_page.render(field, formula) if target.suffix == ".html" else "", field.as_dict())
    print(f"wrote {target}")
    return 0


def _two_numbers(flag: str, text: str, problems: list[str]) -> tuple[float, float] | None:
    """Numbers for the chosen and the rejected completion; what is wrong joins the problems."""
    parts = [literal(part) for part in text.split(",")]
    numbers = [part for part in parts if isinstance(part, int | float) and math.isfinite(part)]
    if len(parts) != 2 or len(numbers) != 2:
        problems.append(f"{flag}: got {text!r}, expected two numbers, CHOSEN,REJECTED, such as {flag}=-40,-50.")
        return None
    return float(numbers[0]), float(numbers[1])


def analyse_credit(args: Namespace) -> int:
    """Shows the credit of each token."""
    from jaxalign.analysis import credit_page, page

    target = Path(args.out)
    args.problems += page.target_problems(target)
    config = configuration(args)
    from jaxalign import build

    found = build.token_credit(config, args.workdir, args.model, count=args.count)
    page.write(target, credit_page.render(found), found.as_dict())
    print(f"wrote {target}")
    return 0


def quickstart(args: Namespace) -> int:
    """Runs the demonstration."""
    stop_at(args.problems)
    from jaxalign.quickstart.program import run

    run(args.workdir, seed=args.seed, jobs=args.jobs, show=args.open)
    return 0


VERBS: Mapping[str, Callable[[Namespace], int]] = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "cache-reference": cache_reference,
    "convert": convert,
    "methods": methods,
    "analyse-field": analyse_field,
    "analyse-credit": analyse_credit,
    "analyse-tokens": analyse_tokens,
    "check-data": check_data,
    "plan": plan,
    "study": study,
    "report": report_study,
    "quickstart": quickstart,
}
