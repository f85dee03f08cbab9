"""Runs a verb and turns its errors into an exit code and a list on the standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jaxalign.errors import JaxalignError

MIN_COMPILE_SECONDS = "0.2"
"""Programs that take less to compile are not kept; JAX's own choice is 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code; see ``jaxalign --help`` for their meanings."""
    from jaxalign.cli.help import VERBS as KNOWN
    from jaxalign.cli.parser import parse

    # transformers warns in every process that torch is absent, which here it always may be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    keep_compiled()
    argv = sys.argv[1:] if argv is None else list(argv)
    verb = next((f"jaxalign {word}" for word in argv[:1] if word in KNOWN), "jaxalign")
    try:
        args = parse(argv)
        from jaxalign.cli.verbs import VERBS

        return VERBS[args.verb](args)
    except JaxalignError as error:
        report(verb, error)
        return error.exit_code
    except SystemExit as stop:  # --help and --version, and a verb that was told to stop
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        print(f"{verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `jaxalign methods | head`
        sys.stderr.close()
        return 0


def keep_compiled() -> None:
    """Keeps compiled programs on disk, so that a second start of a run, or of one like it, reads them from there.

    What the user says in JAX's own variables stays. Call it before JAX is imported.
    """
    from jaxalign.files import compiled_folder

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_folder()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", MIN_COMPILE_SECONDS)


def report(verb: str, error: JaxalignError) -> None:
    """Lists an error's problems on the standard error."""
    kind = {2: "in the configuration", 3: "in the data", 4: "in the numbers"}.get(error.exit_code, "")
    count = len(error.problems)
    if count == 1:
        print(f"{verb}: {error.problems[0]}", file=sys.stderr)
        return
    print(f"{verb}: {count} problems {kind}".rstrip(), file=sys.stderr)
    for problem in error.problems:
        print("  - " + problem.replace("\n", "\n    "), file=sys.stderr)
