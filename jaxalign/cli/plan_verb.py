"""``jaxalign plan``: what a run would need of machines that are not here."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from jaxalign.config import RunConfig, read_dict
from jaxalign.errors import ConfigError

DEFAULT_TARGETS = "v5e:4x4,v5p:2x2x4,8xH100"
WAIVED = {("data.train",), ("model.path", "model.config", "model.tokenizer")}
"""What a run needs and a plan does not: data and a tokenizer."""


def add_flags(parser: ArgumentParser) -> None:
    """The flags of ``plan`` beside ``--config`` and ``--workdir``."""
    add = parser.add_argument
    text = "machines, separated by commas: v5e:4x4, v4:2x2x4, v5p:2x2x4, v6e:4x4, 8xH100, 8xH200, 8xA100"
    add("--target", metavar="NAME", default=DEFAULT_TARGETS, help=f"{text} (default: %(default)s)")
    add("--pass", dest="run_pass", metavar="PASS", default="train", help="train or reference (default: %(default)s)")
    add("--tokens", type=int, metavar="N", help="longest example, its prompt once (default: from data or config)")
    add("--mean-tokens", type=float, metavar="N", help="an example on average (default: from data, or the longest)")
    add("--examples", type=int, metavar="N", help="training examples, for the time of the run (default: from data)")
    add("--mfu", type=float, default=0.4, metavar="X", help="utilisation for the run's time (default: %(default)s)")
    add("--price-per-chip-hour", type=float, dest="price", metavar="X", help="dollars; none = no cost is told")
    add("--no-compile", action="store_true", help="estimate from shapes alone: seconds, and libtpu is not needed")
    add("--no-search", action="store_true", help="do not look for changes that make it fit")
    add("--out", metavar="FILE.json", help="also write everything for machines")


def configuration(args: Namespace) -> RunConfig:
    """The run's configuration; a plan needs neither data nor a tokenizer."""
    from jaxalign.config_checks import cross_checks
    from jaxalign.config_transport import override, read

    problems = list(args.problems)
    spec = args.config
    saved = Path(args.workdir) / "config.json" if args.workdir else None
    if spec is None and saved is not None and saved.is_file():
        spec = str(saved)
    if spec is None:
        problems.append("--config: missing, expected a file, such as --config=configs/paired.py:dpo,model=mistral_7b.")
    config, found, broken = read_dict(override({} if spec is None else read(spec), args.overrides))
    problems += found
    if spec is not None:
        # Whatever hangs on data that a plan does without is no problem of it.
        without = WAIVED | {paths for paths, _ in cross_checks(config) if "data.eval_size" in paths}
        problems += [
            text for paths, text in cross_checks(config) if paths not in without and not broken.intersection(paths)
        ]
    if problems:
        raise ConfigError(problems)
    return config


def plan(args: Namespace) -> int:
    """Prints a plan for each target; from shapes, and an error at the end, where the compiler is missing."""
    from jaxalign.planning.targets import target

    for name, value in (
        ("--tokens", args.tokens),
        ("--examples", args.examples),
        ("--price-per-chip-hour", args.price),
    ):
        if value is not None and value <= 0:
            args.problems.append(f"{name}: got {value}, expected a number above 0.")
    names = [name for name in args.target.split(",") if name.strip()]
    targets = []
    for name in names:
        try:
            targets.append(target(name))
        except ConfigError as error:
            args.problems += error.problems
    if not names:
        args.problems.append(f"--target: got {args.target!r}, expected machines such as {DEFAULT_TARGETS}.")
    if args.out is not None and not Path(args.out).absolute().parent.is_dir():
        args.problems.append(f"--out: there is no folder {str(Path(args.out).parent)!r}.")
    config = configuration(args)
    # A plan computes nothing, so it takes no accelerator away from whoever uses it.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxalign.build.ahead import need_libtpu
    from jaxalign.build.plan import plan as make
    from jaxalign.build.plan_text import plan_lines

    missing = None
    plans = []
    for i, each in enumerate(targets):
        compiling = not args.no_compile and each.kind == "tpu"
        try:
            if compiling:
                need_libtpu(each)
        except ConfigError as error:
            compiling, missing = False, error
        found = make(
            config,
            each,
            run_pass=args.run_pass,
            tokens=args.tokens,
            mean_tokens=args.mean_tokens,
            examples=args.examples,
            compiling=compiling,
            searching=not args.no_search,
            mfu=args.mfu,
            price=args.price,
        )
        plans.append(found)
        print("\n".join([*([""] if i else []), *plan_lines(found)]), flush=True)
        if args.out is not None:  # after each, since compiling takes minutes
            Path(args.out).write_text(json.dumps([p.as_dict() for p in plans], indent=2) + "\n", encoding="utf-8")
    if missing is not None:  # what shapes tell has been printed
        raise missing
    return 0
