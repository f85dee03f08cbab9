"""``jaxalign analyse-tokens``: how far a trained model moved each token of the vocabulary."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_flags(parser: ArgumentParser) -> None:
    """The flags of ``analyse-tokens`` beside ``--config`` and ``--workdir``."""
    add = parser.add_argument
    add("--model", metavar="PATH", help="look into this model instead: folder or hub id")
    add("--count", type=int, metavar="N", help="the first N examples (default: all)")
    add("--min-count", type=int, default=100, metavar="N", help="rank tokens in N places (default: %(default)s)")
    add("--top", type=int, default=10, metavar="N", help="tokens in the table (default: %(default)s)")
    add("--out", required=True, metavar="FILE", help=".html for a page, .json for the numbers")


def analyse_tokens(args: Namespace) -> int:
    """Writes the page, or the numbers."""
    from jaxalign.analysis import page, shift_page
    from jaxalign.cli.verbs import configuration

    target = Path(args.out)
    args.problems += page.target_problems(target)
    config = configuration(args)
    from jaxalign import build

    found = build.token_shift(
        config, args.workdir, args.model, count=args.count, min_count=args.min_count, top=args.top
    ).as_dict()
    page.write(target, shift_page.render(found) if target.suffix == ".html" else "", found)
    print(f"wrote {target}")
    return 0
