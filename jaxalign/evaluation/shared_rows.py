"""Rows for scoring many continuations: each token that several requests share stands in its row once.

A request is a context and a continuation to be scored. Requests with the same context are one family, a prompt with
branches, and families that begin alike (the few-shot examples of a task) become one family with a shorter prompt::

  row:  | few-shot examples | question a | question b, choice 1 | question b, choice 2 | few-shot ... | pad |

A continuation's last token is predicted, but predicts nothing: it takes no place in the row. The choices ``A`` to ``D``
of a question cost four scored slots and not one token.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxalign.data.row_plans import RowShape
from jaxalign.data.rows import empty_rows
from jaxalign.types import Rows

SHORTEST_ROW = 64
FEWEST_SCORED = 16
MOST_GROWTH = 4
"""A family of questions behind common examples grows to so many times the examples' length."""
STEPS = 8
"""Row lengths from a power of two to the next, once they are apart enough."""


class Score(NamedTuple):
    """Where one request is scored: `count` tokens from `first` on, of the branch or of the prompt before it."""

    request: int
    branch: int
    first: int  # index of the first scored token in prompt + branch (+ the last token, which has no place)


class Family(NamedTuple):
    """A prompt, what follows it in several ways, and the requests that are answered there.

    Attributes:
      prompt: shared token ids, at least one.
      branches: token ids behind the prompt; empty ones take no place.
      scores: the requests.
      tokens: places in a row.
      scored: scored tokens.
    """

    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    scores: tuple[Score, ...]
    tokens: int
    scored: int


class Request(NamedTuple):
    """A continuation to be scored behind a context, token ids, at least one each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Place(NamedTuple):
    """The scored slots of a request: ``[row, start : start + count]``."""

    request: int
    row: int
    start: int
    count: int


def make_families(requests: Sequence[Request], attention_length: float = math.inf) -> list[Family]:
    """Groups requests so that together they cost little: few tokens, in rows that are not long for their sake.

    Args:
      requests: what to score.
      attention_length: the row length at which attention costs as much as all the rest.
    """

    def price(tokens: int) -> float:
        return tokens * (1 + tokens / attention_length)

    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        by_context.setdefault(request.context, []).append(index)
    families: list[Family] = []
    contexts = sorted(by_context)
    members: list[tuple[int, ...]] = []
    common = cost = branches = flat = 0  # of the members: their common length, and the places they take
    for context in contexts:
        indices = by_context[context]
        ways, tails = _ways([requests[i].continuation for i in indices])
        alone = len(context) + tails
        if members:
            shared = _common_length(members[-1], context, common)
            joined = shared * (1 - branches - ways) + flat + ways * len(context) + tails
            # Questions of q tokens behind s shared ones: price(s + n * q) / n is least at this length, whatever q.
            least = shared + math.sqrt(shared * (shared + attention_length))
            limit = max(min(MOST_GROWTH * shared, least), cost, alone)
            if shared > 0 and price(joined) < price(cost) + price(alone) and joined <= limit:
                members.append(context)
                common, cost, branches, flat = shared, joined, branches + ways, flat + ways * len(context) + tails
                continue
            families.append(_family(members, common, by_context, requests))
        members, common, cost, branches, flat = [context], len(context), alone, ways, ways * len(context) + tails
    if members:
        families.append(_family(members, common, by_context, requests))
    return families


def _ways(continuations: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Branches that continuations of one context need when the context is part of each, and their own tokens."""
    tails = {continuation[:-1] for continuation in continuations} - {()}
    return max(1, len(tails)), sum(map(len, tails))


def _common_length(first: tuple[int, ...], second: tuple[int, ...], most: int) -> int:
    length = min(most, len(first), len(second))
    if first[:length] == second[:length]:
        return length
    low, high = 0, length  # the first `low` agree, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _family(
    members: Sequence[tuple[int, ...]],
    common: int,
    by_context: dict[tuple[int, ...], list[int]],
    requests: Sequence[Request],
) -> Family:
    places: dict[tuple[int, ...], int] = {}
    scores = []
    for context in members:
        rest, indices = context[common:], by_context[context]
        # One-token continuations read the context's last state, which any branch of the context holds.
        longest = max((requests[i].continuation[:-1] for i in indices), key=len)
        for i in indices:
            tail = requests[i].continuation[:-1] or longest
            branch = places.setdefault(rest + tail, len(places))
            scores.append(Score(i, branch, len(context)))
    branches = tuple(places)
    tokens = common + sum(map(len, branches))
    scored = sum(len(requests[score.request].continuation) for score in scores)
    return Family(members[0][:common], branches, tuple(scores), tokens, scored)


class RowGroup(NamedTuple):
    """Rows of one length: for each its families."""

    length: int
    rows: list[list[Family]]

    @property
    def scored(self) -> int:
        """Scored slots that its fullest row needs, as a power of two: few programs, and slots are cheap."""
        most = max(sum(family.scored for family in row) for row in self.rows)
        scored = FEWEST_SCORED
        while scored < most:
            scored *= 2
        return scored


def row_lengths(families: Sequence[Family]) -> tuple[int, ...]:
    """The lengths that rows may have, up to one that holds the longest family: the longer, the further apart."""
    longest = max(family.tokens for family in families)
    lengths = [SHORTEST_ROW]
    while lengths[-1] < longest:
        power = 1 << (lengths[-1].bit_length() - 1)
        lengths.append(lengths[-1] + max(SHORTEST_ROW // 2, power // STEPS))
    return tuple(lengths)


def plan_rows(families: Sequence[Family], lengths: Sequence[int]) -> list[RowGroup]:
    """Fits families into rows by best-fit decreasing: longest first, each into the fullest row that takes it.

    Args:
      families: what to place.
      lengths: that rows may have, ascending; a row is opened with the shortest that holds its first family.
    """
    rows: list[tuple[int, list[Family]]] = []
    free: list[tuple[int, int]] = []  # (places left, row), sorted
    for family in sorted(families, key=lambda family: -family.tokens):
        at = bisect.bisect_left(free, (family.tokens, -1))
        if at < len(free):
            left, row = free.pop(at)
            rows[row][1].append(family)
        else:
            left, row = lengths[bisect.bisect_left(lengths, family.tokens)], len(rows)
            rows.append((left, [family]))
        if left > family.tokens:
            bisect.insort(free, (left - family.tokens, row))
    groups: dict[int, list[list[Family]]] = {}
    for length, content in rows:
        groups.setdefault(length, []).append(content)
    return [RowGroup(length, groups[length]) for length in sorted(groups)]


def build_rows(
    content: Sequence[Sequence[Family]], requests: Sequence[Request], count: int, length: int, scored: int
) -> tuple[Rows, list[Place]]:
    """Writes planned rows as NumPy arrays.

    Args:
      content: for each row its families.
      requests: that the families' scores name.
      count: R; rows without content are padding.
      length: T.
      scored: S.
    """
    index = np.arange(length, dtype=np.int32)
    rows = empty_rows(count, RowShape(length, scored, examples=1, completions=1))
    tokens, positions, own_start = rows.tokens, rows.positions, rows.own_start
    prefix_start, prefix_end = rows.prefix_start, rows.prefix_end
    source, target = rows.score_source, rows.score_target
    places = []
    for r, row in enumerate(content):
        cursor = slot = 0
        for family in row:
            start, size = cursor, len(family.prompt)
            end = start + size
            tokens[r, start:end] = family.prompt
            positions[r, start:end] = index[:size]
            own_start[r, start:end] = start
            cursor, starts = end, []
            for branch in family.branches:
                stop = cursor + len(branch)
                starts.append(cursor)
                if branch:
                    tokens[r, cursor:stop] = branch
                    positions[r, cursor:stop] = index[: len(branch)] + size
                    own_start[r, cursor:stop] = cursor
                    prefix_start[r, cursor:stop] = start
                    prefix_end[r, cursor:stop] = end
                cursor = stop
            for score in family.scores:
                continuation = requests[score.request].continuation
                number = len(continuation)
                behind = score.first - 1 - size  # place in the branch that predicts the first token; -1 = the prompt
                first = starts[score.branch] + behind
                source[r, slot : slot + number] = np.arange(first, first + number)
                if behind < 0:
                    source[r, slot] = end - 1
                target[r, slot : slot + number] = continuation
                places.append(Place(score.request, r, slot, number))
                slot += number
    rows.example_mask[: len(content)] = True
    return rows, places
