"""Which of a policy's variables are trained: a pair of pure functions that split them off and join them again."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxalign.errors import ConfigError
from jaxalign.types import Variables


class Trainable(NamedTuple):
    """`split(variables) -> (trainable, frozen)` and `join(trainable, frozen) -> variables`, exact inverses."""

    split: Callable[[Variables], tuple[Any, Any]]
    join: Callable[[Any, Any], Variables]


def full() -> Trainable:
    """Every variable is trained."""
    return Trainable(split=lambda variables: (variables, {}), join=lambda trainable, frozen: trainable)


def adapters(*, head: bool = False) -> Trainable:
    """Only the low-rank factors beside the frozen weights (`jaxalign.models.adapters`), and perhaps the linear head.

    The base gets no gradient and no optimizer state, is not donated and in no checkpoint. It is what is frozen here,
    so a reference that is the model before training needs no copy of it (`jaxalign.training.references.shared`).

    Args:
      head: train the linear head of a reward model or of a method as well, which starts from random numbers.

    Raises:
      ConfigError: from `split`, when the variables have no adapters.
    """
    names = ("lora", "head") if head else ("lora",)

    def split(variables):
        if "lora" not in variables:
            raise ConfigError(f"the variables have no adapters, only {', '.join(variables)}: build the policy with one")
        trainable = {name: value for name, value in variables.items() if name in names}
        return trainable, {name: value for name, value in variables.items() if name not in names}

    def join(trainable, frozen):
        return {**frozen, **trainable}

    return Trainable(split, join)


def matching(pattern: str) -> Trainable:
    """The variables whose path, such as ``params/layers/attention/query``, has a match of the regular expression.

    The rest is frozen: no gradient, no optimizer state, not in checkpoints.

    Raises:
      ConfigError: from `split`, when nothing matches.
    """
    compiled = re.compile(pattern)

    def split(variables):
        flat, structure = jax.tree_util.tree_flatten_with_path(variables)
        paths = ["/".join(str(key.key) for key in path) for path, _ in flat]
        hits = [compiled.search(path) is not None for path in paths]
        if not any(hits):
            raise ConfigError(f"no variable matches {pattern!r}; the variables are: {', '.join(paths)}")
        leaves = [leaf for _, leaf in flat]
        # None is an empty subtree to JAX, so each half keeps the structure and drops the other's leaves.
        trainable = structure.unflatten([leaf if hit else None for leaf, hit in zip(leaves, hits, strict=True)])
        frozen = structure.unflatten([None if hit else leaf for leaf, hit in zip(leaves, hits, strict=True)])
        return trainable, frozen

    def join(trainable, frozen):
        return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None)

    return Trainable(split, join)
