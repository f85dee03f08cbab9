"""The command line's grammar: verbs and their flags, with problems collected instead of one exit at the first."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from jaxalign.cli import help as texts
from jaxalign.cli import plan_verb, suite_verb, token_verb
from jaxalign.cli.report_verb import report_flags
from jaxalign.cli.study_verbs import study_flags
from jaxalign.config import ALIASES, SECTIONS, schema
from jaxalign.config_fields import nearest
from jaxalign.config_transport import take_overrides
from jaxalign.errors import ConfigError, did_you_mean

CONFIGURED = ("train", "evaluate", "cache-reference", "check-data", "plan", "analyse-credit", "analyse-tokens")
"""The verbs that take a configuration."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line. ``overrides`` holds the ``--config.path=value`` changes, ``problems`` what is wrong.

    Raises:
      ConfigError: the verb is unknown, or a flag has a wrong value.
      SystemExit: with 0, after ``--help`` or ``--version``.
    """
    words, overrides, problems = take_overrides(argv)
    parser, verbs = _parsers()
    first = next((word for word in words if not word.startswith("-")), None)
    if first is None:
        parser.parse_args(words)  # --help, --version, or an unknown flag
        raise ConfigError(f"no verb, expected one of {', '.join(verbs)}. See jaxalign --help.")
    if first not in verbs:
        raise ConfigError(f"unknown verb {first!r}, expected one of {', '.join(verbs)}.{did_you_mean(first, verbs)}")
    flags = [flag for action in verbs[first]._actions for flag in action.option_strings if flag.startswith("--")]
    own = first == "analyse-field"  # its other flags are the method's options
    try:
        args, unknown = parser.parse_known_args(words)
    except ConfigError as error:
        # argparse stops here: a flag that it does not know may be the one that it misses.
        stray = [w for w in words if w.startswith("--") and w != "--" and w.partition("=")[0] not in flags and not own]
        raise ConfigError([*problems, *_unknown(stray, first, flags), *error.problems]) from error
    if own:
        args.method_options, unknown = _method_options(unknown)
    problems += _unknown(unknown, first, flags)
    if overrides and first not in CONFIGURED:
        problems.append(f"--config.{overrides[0][0]}: {first} takes no configuration.")
    args.overrides, args.problems = overrides, problems
    return args


def _unknown(words: Sequence[str], verb: str, flags: Sequence[str]) -> list[str]:
    """A problem for each word that the verb does not know."""
    problems = []
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            hint = _config_hint(name, verb) or did_you_mean(name, flags) or _config_hint(name, verb, exact=False)
            problems.append(f"unknown flag {name}, expected one of {', '.join(flags)}.{hint}")
        else:
            problems.append(f"unexpected argument {word!r}.")
    return problems


def _method_options(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """``--name=value`` and ``--name value`` as names and texts, and the words that are none of both."""
    options: list[tuple[str, str]] = []
    rest: list[str] = []
    places = iter(range(len(words)))
    for i in places:
        name, equals, text = words[i].partition("=")
        if name.startswith("--") and not equals and i + 1 < len(words) and not words[i + 1].startswith("--"):
            equals, text = "=", words[next(places)]
        if name.startswith("--") and equals:
            options.append((name.removeprefix("--").replace("-", "_"), text))
        else:
            rest.append(words[i])
    return options, rest


def _config_hint(name: str, verb: str, *, exact: bool = True) -> str:
    """For ``--optimizer.learning_rate`` and ``--lr``, which were meant for the configuration."""
    if verb not in CONFIGURED:
        return ""
    name = name.lstrip("-").replace("-", "_")
    known = [*SECTIONS, *schema()]
    near = nearest(name, known, ALIASES)
    if near is None or (exact and name not in ALIASES and name not in (near, near.rpartition(".")[2])):
        return ""
    return f" Did you mean '--config.{near}'?"


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    shape = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(prog="jaxalign", description=texts.COMMAND, epilog=texts.EXIT_CODES, **shape)
    parser.add_argument("--version", action="version", version=f"jaxalign {version()}")
    choices = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    verbs: dict[str, argparse.ArgumentParser] = {}
    for name, text in texts.VERBS.items():
        epilog = texts.EXIT_CODES
        if name in CONFIGURED:
            epilog = "\n".join((texts.CONFIGURATION, texts.config_reference(), epilog))
        summary = re.split(r"[:.](?=\s)", text, maxsplit=1)[0].replace("\n", " ")
        verbs[name] = choices.add_parser(name, help=summary, description=text, epilog=epilog, **shape)
    for name in CONFIGURED:
        verbs[name].add_argument("--config", metavar="FILE[:ARG]", help="the configuration file")
    for name, text in (
        ("train", "folder of the run (required)"),
        ("evaluate", "folder of a run: its configuration and exported model"),
        ("cache-reference", "folder of a run: its configuration"),
        ("check-data", "folder of a run: its configuration"),
        ("plan", "folder of a run: its configuration"),
        ("analyse-credit", "folder of a run: its configuration and exported model"),
        ("analyse-tokens", "folder of a run: its configuration and exported model"),
        ("quickstart", "folder for what it makes (default: %(default)s)"),
    ):
        default = "workdir/quickstart" if name == "quickstart" else None
        verbs[name].add_argument("--workdir", metavar="FOLDER", default=default, help=text)
    for name in ("train", "evaluate", "cache-reference"):
        text = "meet the other processes of the run first (several hosts; see launch/README.md)"
        verbs[name].add_argument("--distributed", action="store_true", help=text)
    text = "also write the pairs with chosen_logprob and rejected_logprob; held-out ones to NAME-eval.jsonl"
    verbs["cache-reference"].add_argument("--out", metavar="FILE.jsonl", help=text)
    verbs["evaluate"].add_argument("--model", metavar="PATH", help="evaluate this model instead: folder or hub id")
    suite_verb.add_flags(verbs["evaluate"])
    verbs["check-data"].add_argument("--show", type=int, default=0, metavar="N", help="print the first N examples")
    verbs["quickstart"].add_argument("--seed", type=int, default=0, help="seed of everything (default: %(default)s)")
    verbs["quickstart"].add_argument("--jobs", type=int, metavar="N", help="models made at once (default: 2)")
    verbs["quickstart"].add_argument("--open", action="store_true", help="show the report in a browser if there is one")
    verbs["methods"].add_argument("name", nargs="?", metavar="NAME", help="describe this one")
    verbs["methods"].add_argument("--data", metavar="LAYOUT", help="only those for single, paired, unpaired, ... data")
    _analysis_flags(verbs["analyse-field"], verbs["analyse-credit"])
    token_verb.add_flags(verbs["analyse-tokens"])
    plan_verb.add_flags(verbs["plan"])
    _generate_flags(verbs["generate"])
    study_flags(verbs["study"])
    report_flags(verbs["report"])
    convert = verbs["convert"]
    convert.add_argument(
        "--from", dest="source", required=True, metavar="PATH", help="run folder, checkpoint, or model"
    )
    convert.add_argument("--to", dest="target", required=True, metavar="FOLDER", help="folder to write")
    convert.add_argument("--dtype", choices=("bfloat16", "float32"), help="precision (default: as stored)")
    return parser, verbs


def _analysis_flags(field: argparse.ArgumentParser, credit: argparse.ArgumentParser) -> None:
    add = field.add_argument
    add("--method", required=True, metavar="NAME", help="a paired method; its options are flags too: --beta=0.2")
    add("--extent", type=float, default=4.0, metavar="X", help="draw log-ratios from -X to X (default: %(default)s)")
    add("--points", type=int, default=57, metavar="N", help="points of the grid along an axis (default: %(default)s)")
    add("--origin", metavar="CHOSEN,REJECTED", help="log-probabilities at log x = 0, if the loss depends on them")
    add("--lengths", default="1,1", metavar="CHOSEN,REJECTED", help="tokens of the completions (default: %(default)s)")
    add(
        "--preference",
        type=float,
        metavar="P",
        help="probability that the chosen one is preferred, if the loss reads it",
    )
    add = credit.add_argument
    add("--model", metavar="PATH", help="look into this model instead: folder or hub id")
    add("--count", type=int, default=8, metavar="N", help="how many examples (default: %(default)s)")
    for parser in (field, credit):
        parser.add_argument("--out", required=True, metavar="FILE", help=".html for a page, .json for the numbers")


def _generate_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="texts to continue")
    add("--model", required=True, metavar="PATH", help="Hugging Face folder or hub id")
    add("--file", metavar="PATH", help="JSON lines of prompts; - or nothing = the standard input")
    add("--chat", action="store_true", help="treat each text as a user's message")
    add(
        "--max-new-tokens", type=int, default=256, metavar="N", help="longest completion, tokens (default: %(default)s)"
    )
    add("--temperature", type=float, default=0.0, metavar="X", help="0 = the most likely token (default: %(default)s)")
    add("--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest tokens of this mass")
    add("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens; 0 = all")
    add("--seed", type=int, default=0, help="seed of sampling (default: %(default)s)")
    add("--batch-size", type=int, default=16, metavar="N", help="prompts computed at once (default: %(default)s)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="precision (default: %(default)s)")


def version() -> str:
    """The installed version."""
    import importlib.metadata

    try:
        return importlib.metadata.version("jaxalign")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"
