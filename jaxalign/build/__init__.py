"""Assembly: the only floor that reads a `RunConfig`. Everything below takes plain arguments.

Each function is what a verb of the command does, and can be called from Python just so.
"""

from jaxalign.build.analyse import token_credit, token_shift
from jaxalign.build.data import CheckedData, check_data
from jaxalign.build.evaluate import evaluate, evaluate_examples
from jaxalign.build.export import convert
from jaxalign.build.generate import generate
from jaxalign.build.generations import Sampling, generations
from jaxalign.build.judged import alpaca_eval, mt_bench
from jaxalign.build.reference import cache_reference
from jaxalign.build.train import train

__all__ = [
    "CheckedData",
    "Sampling",
    "alpaca_eval",
    "cache_reference",
    "check_data",
    "convert",
    "evaluate",
    "evaluate_examples",
    "generate",
    "generations",
    "mt_bench",
    "token_credit",
    "token_shift",
    "train",
]
