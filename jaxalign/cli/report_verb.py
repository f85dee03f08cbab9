"""``jaxalign report``: a study's rows as a page, Markdown, CSV and LaTeX."""

from __future__ import annotations

import argparse
import webbrowser
from argparse import Namespace

from jaxalign.errors import ConfigError


def report_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    parser.add_argument("folder", metavar="DIR", help="folder of a study, with its rows.jsonl")
    text = "the page; report.md, rows.csv and table.tex stand beside it (default: DIR/report.html)"
    parser.add_argument("--out", metavar="FILE", help=text)
    parser.add_argument("--open", action="store_true", help="show the page in the browser")


def report_study(args: Namespace) -> int:
    """Writes the report."""
    if args.problems:
        raise ConfigError(args.problems)
    from jaxalign.studies.report import write_report

    written = write_report(args.folder, args.out)
    for note in written.notes:
        print(note)
    for path in written[:4]:
        print(f"wrote {path}")
    if args.open:
        webbrowser.open(written.html.resolve().as_uri())
    return 0
