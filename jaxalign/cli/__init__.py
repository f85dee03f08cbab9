"""The command ``jaxalign``: one verb for each job, errors as lists, and help that teaches."""

from jaxalign.cli.main import main

__all__ = ["main"]
