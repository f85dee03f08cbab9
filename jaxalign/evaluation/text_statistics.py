"""How long answers are, and how much they repeat: numbers of sampled text that need no judge."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from jaxalign.evaluation.outcome import Metric

NGRAM = 4
"""Length of the n-grams whose repetition is counted: that of Welleck et al. 2019."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A sampled answer.

    Attributes:
      tokens: its ids, without the token that ended it.
      text: the same as text.
      ended: an end token ended it; False where the limit of tokens did.
    """

    tokens: Sequence[int]
    text: str
    ended: bool

    @property
    def empty(self) -> bool:
        """Nothing but white space was said."""
        return not self.text.strip()


def repetition(tokens: Sequence[Hashable], n: int = NGRAM) -> float:
    """Share of the n-grams of one text that occurred in it before: ``1 - different / all``; 0 below n tokens.

    Source: "seq-rep-n" of Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training", arXiv 1908.04319.
    """
    count = len(tokens) - n + 1
    return 1.0 - len(_ngrams(tokens, n)) / count if count > 0 else 0.0


def distinct(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams of all texts by all their n-grams; 0 where there are none.

    It falls with the amount of text, so it compares models only over answers to the same prompts.

    Source: "distinct-n" of Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models",
    arXiv 1510.03055 (there divided by the number of words).
    """
    count = sum(max(0, len(tokens) - n + 1) for tokens in texts)
    return len(set().union(*(_ngrams(tokens, n) for tokens in texts))) / count if count else 0.0


def longest_loop(tokens: Sequence[Hashable], longest_period: int = 64) -> int:
    """Tokens of the longest stretch that says the same over and over: ``a b a b a`` is 5 long; 0 where there is none.

    Args:
      tokens: the text.
      longest_period: the longest piece whose repetition is looked for, tokens.
    """
    longest = 0
    for period in range(1, min(longest_period, len(tokens) // 2) + 1):
        run = 0
        for i in range(period, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - period] else 0
            if run >= period:  # the piece stands there twice at least
                longest = max(longest, run + period)
    return longest


def text_metrics(answers: Sequence[Answer]) -> dict[str, Metric]:
    """Length and repetition of answers: descriptions, none of which is a score.

    ================  =================================================================================================
    ``length``        tokens of an answer, without the end token
    ``words``         stretches without white space of its text
    ``ended``         share that an end token ended
    ``empty``         share with no text
    ``repetition``    share of an answer's 4-grams of tokens that occurred in it before, see `repetition`
    ``loop``          share of an answer's tokens inside its longest loop, see `longest_loop`
    ``distinct_1``    different words of all answers by all words, see `distinct`; ``distinct_2`` of two words in a row
    ================  =================================================================================================

    Args:
      answers: at least one.
    """
    words = [answer.text.split() for answer in answers]
    loops = [longest_loop(answer.tokens) / max(1, len(answer.tokens)) for answer in answers]
    return {
        "length": _mean([len(answer.tokens) for answer in answers], unit="tokens"),
        "words": _mean([len(each) for each in words], unit="words"),
        "ended": _mean([answer.ended for answer in answers]),
        "empty": _mean([answer.empty for answer in answers]),
        "repetition": _mean([repetition(answer.tokens) for answer in answers]),
        "loop": _mean(loops),
        "distinct_1": Metric(value=distinct(words, 1), n=len(answers)),
        "distinct_2": Metric(value=distinct(words, 2), n=len(answers)),
    }


def _ngrams(tokens: Sequence[Hashable], n: int) -> set[tuple[Hashable, ...]]:
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def _mean(values: Sequence[float], unit: str = "share") -> Metric:
    values = [float(value) for value in values]
    return Metric(value=sum(values) / len(values), n=len(values), values=values, unit=unit)
