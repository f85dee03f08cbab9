"""Methods written as expressions: ``0.8*dpo + 0.2*bco_pair + nll``, ``ld(simpo)``, ``js(dpo) + 0.1*nll``.

::

  sum    = term { "+" term }
  term   = [ number "*" ] part
  part   = method | "package.module:NAME" | transform "(" sum ")"

A transform is a name of `TRANSFORMS`. An option of a single term keeps its name (``beta``); in a sum it is marked with
its term (``dpo_beta``, ``js_dpo_beta``), and the weights are options too (``nll_weight``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple, NoReturn

from jaxalign.combinators import weighted_sum
from jaxalign.errors import ConfigError, did_you_mean
from jaxalign.method import Method
from jaxalign.transforms import TRANSFORMS

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][\w.]*(?::\w+)?)|(?P<sign>[-+*()/])|(?P<end>$)|(?P<other>\S))"
)


class Token(NamedTuple):
    """A word of an expression.

    Attributes:
      kind: number, name, sign, end, or other.
      text: itself.
      column: where it stands, from 1.
    """

    kind: str
    text: str
    column: int


def is_expression(name: str) -> bool:
    """Whether it is more than the name of a method."""
    return any(sign in name for sign in "+*()/ ")


def parse(text: str, lookup: Callable[[str], Method], known: Iterable[str]) -> Method:
    """The method that an expression describes.

    Args:
      text: the expression.
      lookup: from a name to its method; raises ConfigError where there is none.
      known: names of methods, for hints.

    Raises:
      ConfigError: it cannot be read, names no method, or combines what does not go together. The message says where.
    """
    return _Reader(text, lookup, tuple(known)).read()


class _Reader:
    """One pass over the words of an expression."""

    def __init__(self, text: str, lookup: Callable[[str], Method], known: tuple[str, ...]):
        self.text, self.lookup, self.known = text, lookup, known
        self.tokens = [
            Token(match.lastgroup or "other", match[match.lastgroup or 0], match.start(match.lastgroup or 0) + 1)
            for match in _TOKEN.finditer(text)
        ]
        self.at = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def fail(self, token: Token, message: str) -> NoReturn:
        raise ConfigError(f"method.name: got {self.text!r}; column {token.column}: {message}")

    def expect(self, text: str, why: str) -> None:
        if self.next.text != text:
            self.fail(self.next, f"got {self.word(self.next)}, expected {text!r} {why}.")
        self.take()

    @staticmethod
    def word(token: Token) -> str:
        return "the end" if token.kind == "end" else repr(token.text)

    def read(self) -> Method:
        _, method = self.sum()
        if self.next.kind != "end":
            self.fail(self.next, f"got {self.word(self.next)}, expected '+' and another term, or the end.")
        return method

    def sum(self) -> tuple[str, Method]:
        start = self.next
        terms: dict[str, tuple[float, Method]] = {}
        while True:
            token = self.next
            weight, label, method = self.term()
            if label in terms:
                self.fail(token, f"{label} is there twice; its options would share their names. Add the weights.")
            terms[label] = (weight, method)
            if self.next.text != "+":
                break
            self.take()
        label = "_and_".join(terms)
        if len(terms) == 1 and weight == 1.0:
            return label, method
        return label, self.combine(start, lambda: weighted_sum(terms))

    def term(self) -> tuple[float, str, Method]:
        weight = 1.0
        if self.next.kind == "number":
            number = self.take()
            weight = float(number.text)
            if not math.isfinite(weight):
                self.fail(number, f"got {number.text}, expected a finite weight.")
            self.expect("*", "between a weight and its method")
        elif self.next.text == "-":
            self.fail(self.next, "got '-', expected a term; a weight is a number >= 0.")
        return weight, *self.part()

    def part(self) -> tuple[str, Method]:
        token = self.take()
        if token.kind != "name":
            self.at -= 1
            self.fail(token, f"got {self.word(token)}, expected a method such as dpo, or a transform such as ld(dpo).")
        if self.next.text == "(":
            return self.transform(token)
        if token.text in TRANSFORMS and token.text not in self.known:
            self.fail(token, f"{token.text} is a transform, expected {token.text}(METHOD).")
        if ":" not in token.text and token.text not in self.known:
            self.fail(token, f"got {token.text!r}, expected a method.{did_you_mean(token.text.lower(), self.known)}")
        return re.sub(r"\W+", "_", token.text.rpartition(":")[2]), self.lookup(token.text)

    def transform(self, name: Token) -> tuple[str, Method]:
        if name.text not in TRANSFORMS:
            hint = did_you_mean(name.text.lower(), TRANSFORMS)
            self.fail(name, f"got {name.text!r}, expected a transform: one of {', '.join(TRANSFORMS)}.{hint}")
        self.take()
        label, method = self.sum()
        self.expect(")", f"that ends {name.text}(")
        return f"{name.text}_{label}", self.combine(name, lambda: TRANSFORMS[name.text](method))

    def combine(self, token: Token, make: Callable[[], Method]) -> Method:
        try:
            return make()
        except TypeError as error:
            self.fail(token, str(error))
