"""Whether a model still writes language. Where it does not, its scores mean nothing and are not told.

A beta that is too small drives a policy so far from its reference that its answers never end or say one thing over and
over; arXiv 2407.13709 writes "degenerate" in its tables there. How that was decided is not told, so the rule here is
our own.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxalign.evaluation.text_statistics import NGRAM, Answer, repetition

MOST_REPETITION = 0.5
"""Of an answer's 4-grams: people repeat a few in a hundred, so one that repeats every second of them is caught."""
FEWEST_TOKENS = 16
"""Of an answer whose repetition is looked at: short ones (lists, counts) repeat without harm."""
MOST_BROKEN = 0.5
"""Of the answers: when every second one is empty or repeats itself, any score is about the others."""
MOST_UNENDED = 0.95
"""Of the answers: a model that knows when to stop does so within the limit in more than one of twenty."""


def is_repetitive(
    tokens: Sequence[int], *, most_repetition: float = MOST_REPETITION, fewest_tokens: int = FEWEST_TOKENS
) -> bool:
    """Whether an answer says the same over and over."""
    return len(tokens) >= fewest_tokens and repetition(tokens, NGRAM) > most_repetition


def degeneration(
    answers: Sequence[Answer],
    *,
    most_broken: float = MOST_BROKEN,
    most_unended: float = MOST_UNENDED,
    most_repetition: float = MOST_REPETITION,
    fewest_tokens: int = FEWEST_TOKENS,
) -> str | None:
    """Why a model's answers are no language any more, for readers; None if they are fine.

    A model that was never taught to end an answer (a base model) counts as degenerate by the second rule. Raise
    `most_unended` to 1 where it shall not, or where the limit of tokens is shorter than a usual answer.

    Args:
      answers: sampled, at least one.
      most_broken: share of answers that may be empty or repetitive.
      most_unended: share of answers that may lack an end token.
      most_repetition: share of an answer's 4-grams that may be repeated.
      fewest_tokens: of an answer whose repetition is looked at.
    """
    count = len(answers)
    empty = sum(answer.empty for answer in answers)
    repetitive = sum(
        is_repetitive(answer.tokens, most_repetition=most_repetition, fewest_tokens=fewest_tokens)
        for answer in answers
        if not answer.empty
    )
    unended = sum(not answer.ended for answer in answers)
    reasons = []
    if empty + repetitive > most_broken * count:
        kinds = {"empty": empty, "repeat themselves": repetitive}
        reasons.append(" and ".join(f"{_share(n, count)} {kind}" for kind, n in kinds.items() if n))
    if unended > most_unended * count:
        longest = max(len(answer.tokens) for answer in answers)
        reasons.append(f"{_share(unended, count)} without an end within {longest} tokens")
    return f"of {count} answers " + "; ".join(reasons) if reasons else None


def _share(number: int, count: int) -> str:
    return f"{100 * number / count:.0f} %"
