"""The quick start: align a tiny model in a generated world, on CPU, in minutes. See `program`."""

from jaxalign.quickstart.program import run

__all__ = ["run"]
