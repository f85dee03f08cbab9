"""Log-likelihoods of continuations behind contexts: packed, a few programs, never ``[R, T, V]`` logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxalign.evaluation.shared_rows import (
    Family,
    Place,
    Request,
    RowGroup,
    build_rows,
    make_families,
    plan_rows,
    row_lengths,
)
from jaxalign.logprobs import token_scores
from jaxalign.models.chunked_attention import BLOCK
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import Policy
from jaxalign.training.mesh import MeshPlan, programs_in_flight
from jaxalign.types import Rows, Variables

PARTS = 4
"""Of a group with few rows, batches are a quarter as large."""
PROGRAM_BATCHES = 8
"""A program must save as much as so many batches. Compiling takes longer, but other tasks use the program too."""
PLANNED = 512
"""Families that the choice of row lengths looks at."""


class LogLikelihood(NamedTuple):
    """What a continuation gets.

    Attributes:
      value: log-probability of the continuation behind its context, nats, summed over its tokens.
      greedy: every token of it is the most likely one.
    """

    value: float
    greedy: bool


@dataclass
class ScorerCounts:
    """What a scorer has done so far.

    Attributes:
      requests: continuations scored.
      request_tokens: tokens of contexts and continuations, each request by itself.
      row_tokens: tokens in rows, where what is shared stands once.
      padded_tokens: places in rows, padding included.
      calls: programs run.
      programs: shapes ``(R, T, S)`` that were compiled.
    """

    requests: int = 0
    request_tokens: int = 0
    row_tokens: int = 0
    padded_tokens: int = 0
    calls: int = 0
    programs: tuple[tuple[int, int, int], ...] = ()


class ContinuationScorer:
    """Scores continuations; the values do not depend on which requests come together, but for float rounding.

    Args:
      policy: the model.
      variables: its weights, on the mesh.
      plan: the mesh; rows are split over its batch axes. Several processes must make the same calls.
      batch_tokens: places in the rows of one call, on each part of the batch.
    """

    def __init__(self, policy: Policy, variables: Variables, plan: MeshPlan, *, batch_tokens: int = 8192):
        self._policy = policy
        self._variables = variables
        self._plan = plan
        self._batch_tokens = batch_tokens * plan.batch_size
        self._long = _attention_length(policy.config)
        self._programs: dict[tuple[int, int, int], Callable[..., Any]] = {}
        self.counts = ScorerCounts()

    def __call__(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[LogLikelihood]:
        """Scores pairs of a context and a continuation, token ids, at least one each.

        The model gets all but the continuation's last token, so both together may have one token more than it has
        positions.
        """
        own = [Request(tuple(context), tuple(continuation)) for context, continuation in requests]
        if not own:
            return []
        families = make_families(own, self._long)
        groups = plan_rows(families, self._choose_lengths(families))
        results: list[LogLikelihood | None] = [None] * len(own)
        waiting: deque[tuple[Any, list[Place]]] = deque()
        for group in groups:
            for content, count in self._batches(group):
                rows, places = build_rows(content, own, count, group.length, self._scored(group, count))
                waiting.append((self._run(rows), places))
                self.counts.row_tokens += sum(family.tokens for row in content for family in row)
                while len(waiting) > (programs_in_flight() or 0):
                    _read(*waiting.popleft(), results)
        for output, places in waiting:
            _read(output, places, results)
        self.counts.requests += len(own)
        self.counts.request_tokens += sum(len(request.context) + len(request.continuation) for request in own)
        return [result for result in results if result is not None]

    def _choose_lengths(self, families: Sequence[Family]) -> tuple[int, ...]:
        """The row lengths that are done with first: short rows keep attention cheap, each is a program to compile."""
        lengths = row_lengths(families)
        stride = -(-len(families) // PLANNED)
        longest = max(families, key=lambda family: family.tokens)
        sample = [*families[::stride], longest] if stride > 1 else families

        def cost(lengths: tuple[int, ...]) -> float:
            return self._cost(plan_rows(sample, lengths), stride)

        best = cost(lengths)
        while len(lengths) > 1:
            fewer = {shorter: cost(shorter) for shorter in _without_one(lengths)}
            shorter = min(fewer, key=lambda key: fewer[key])
            if fewer[shorter] > best:
                break
            lengths, best = shorter, fewer[shorter]
        return lengths

    def _cost(self, groups: Sequence[RowGroup], scale: int) -> float:
        """In places of a row, attention and compilation counted as if they were some."""
        total = 0.0
        for group in groups:
            rows = len(group.rows) * scale
            count = self._row_count(group.length, rows)
            total += -(-rows // count) * count * group.length * (1 + (group.length + BLOCK) / self._long)
            known = any(shape[:2] == (count, group.length) for shape in self._programs)
            total += 0 if known else PROGRAM_BATCHES * self._batch_tokens
        return total

    def _row_count(self, length: int, rows: int) -> int:
        """Rows of a batch, of a group of so many."""
        parts = self._plan.batch_size
        full = max(parts, self._batch_tokens // length // parts * parts)
        quarter = -(-full // (PARTS * parts)) * parts
        return quarter if rows <= PARTS // 2 * quarter else full

    def _batches(self, group: RowGroup) -> list[tuple[list[list[Family]], int]]:
        count = self._row_count(group.length, len(group.rows))
        return [(group.rows[start : start + count], count) for start in range(0, len(group.rows), count)]

    def _scored(self, group: RowGroup, count: int) -> int:
        """Scored slots: of a program that is there, if one has enough of them and not far too many."""
        need = group.scored
        there = [s for c, length, s in self._programs if (c, length) == (count, group.length) and need <= s <= 4 * need]
        return min(there, default=need)

    def _run(self, rows: Rows) -> Any:
        count, length = rows.tokens.shape
        scored = rows.score_source.shape[1]
        shape = (count, length, scored)
        if shape not in self._programs:
            self._programs[shape] = self._program(count, scored)
            self.counts.programs = tuple(self._programs)
        self.counts.calls += 1
        self.counts.padded_tokens += count * length
        local = self._plan.local_rows(count)
        part = jax.tree.map(lambda array: array[local], rows)
        return self._programs[shape](self._variables, self._plan.put_rows(part, count, local.start))

    def _program(self, count: int, scored: int) -> Callable[..., Any]:
        policy = self._policy

        def run(variables: Variables, rows: Rows) -> tuple[jax.Array, jax.Array]:
            scores = token_scores(
                policy.hidden(variables, rows),
                policy.head(variables),
                rows.score_source,
                rows.score_target,
                soft_cap=policy.soft_cap,
                statistics=("correct",),
            )
            assert scores.correct is not None
            return scores.logps, scores.correct

        return jax.jit(run, out_shardings=self._plan.replicated)


def _read(output: Any, places: Sequence[Place], results: list[LogLikelihood | None]) -> None:
    logps, correct = (np.asarray(array) for array in jax.device_get(output))
    for request, row, start, count in places:
        value = float(logps[row, start : start + count].sum(dtype=np.float64))
        results[request] = LogLikelihood(value, bool(correct[row, start : start + count].all()))


def _without_one(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Without each of the lengths but the longest."""
    return [lengths[:i] + lengths[i + 1 :] for i in range(len(lengths) - 1)]


def _attention_length(config: DecoderConfig) -> float:
    """The row length, in tokens, at which attention costs as much as everything else in a layer."""
    query, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
    linear = 2 * config.width * (2 * query + 2 * shared) + 6 * config.width * config.mlp_width
    # Products with half of the keys; masking and softmax of a score take as long as 120 operations of a product.
    return linear / (2 * query + 60 * config.heads)
