"""Generation that ends at texts: a stop string may be spelled by any tokens, so it is looked for in the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxalign.models.policy import Policy
from jaxalign.sampling.engine import sample
from jaxalign.types import Variables

FIRST_ROUND = 64
"""Tokens of the first two rounds of greedy generation; each further round doubles. Few sizes: each is a program."""


def write_until(
    policy: Policy,
    variables: Variables,
    contexts: Sequence[Sequence[int]],
    *,
    longest: int,
    stop: Sequence[str],
    decode: Callable[[Sequence[int]], str],
    stop_tokens: Sequence[int],
    drawing: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> list[list[int]]:
    """The tokens that follow each context, up to a stop token or until the text holds a stop string.

    Tokens behind the stop string may be there; cut the text. Greedy generation goes in rounds and looks for stop
    strings between them: few-shot answers end early. Sampled generation goes in one round, so that its draws depend on
    the seed alone.

    Args:
      policy: the model.
      variables: its weights.
      contexts: token ids.
      longest: most tokens to write.
      stop: the strings.
      decode: token ids to text.
      stop_tokens: ids that end a text.
      drawing: ``temperature``, ``top_p``, ``top_k``; None = greedy.
      seed: of the draws.
      batch_size: contexts that are continued together.

    Raises:
      ConfigError: see `jaxalign.sampling.engine.sample`.
    """
    written: list[list[int]] = [[] for _ in contexts]
    unfinished = list(range(len(contexts)))
    for count in _rounds(longest, bool(stop) and drawing is None):
        if not unfinished:
            break
        drawn = sample(
            policy,
            variables,
            [[*contexts[i], *written[i]] for i in unfinished],
            max_new_tokens=count,
            stop_tokens=stop_tokens,
            seed=seed,
            batch_size=batch_size,
            **(drawing or {}),
        )
        going = []
        for i, completion in zip(unfinished, drawn, strict=True):
            written[i] += completion.tokens
            text = decode(written[i])
            if not completion.stopped and not any(term in text for term in stop):
                going.append(i)
        unfinished = going
    return written


def _rounds(longest: int, several: bool) -> list[int]:
    rounds: list[int] = []
    while several and (count := max(FIRST_ROUND, sum(rounds))) < longest - sum(rounds):
        rounds.append(count)
    return [*rounds, longest - sum(rounds)]
