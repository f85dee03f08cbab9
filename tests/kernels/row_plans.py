"""Random rows for attention: ranges as a packer writes them, and the dense definition on them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jaxalign.models.attention import Ranges, visible

Example = tuple[int, Sequence[int]]
"""Tokens of a prompt, and of each of its completions."""


def plan_rows(rows: Sequence[Sequence[Example]], length: int, *, full: bool) -> Ranges:
    """The ranges of rows of examples; what does not fit is cut. `full`: the last segment goes on to the row's end."""
    index = np.arange(length, dtype=np.int32)
    positions, start, end = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    own = np.tile(index, (len(rows), 1))
    for row, examples in enumerate(rows):
        at = 0
        for place, (prompt, completions) in enumerate(examples):
            first, behind = at, min(at + prompt, length)
            own[row, first:behind] = first
            positions[row, first:behind] = index[: behind - first]
            at = behind
            for number, size in enumerate(completions):
                last = place == len(examples) - 1 and number == len(completions) - 1
                stop = length if full and last else min(at + size, length)
                own[row, at:stop], start[row, at:stop], end[row, at:stop] = at, first, behind
                positions[row, at:stop] = behind - first + index[: stop - at]
                at = stop
    return Ranges(*(jnp.asarray(x) for x in (positions, own, start, end)))


def plans(rows: int, length: int) -> st.SearchStrategy[Ranges]:
    """Rows of examples with prompts of any length, also none, and 1 to 8 completions of 1 token or more."""
    sizes = st.one_of(st.just(1), st.integers(1, length))
    example = st.tuples(st.integers(0, length), st.lists(sizes, min_size=1, max_size=8))
    row = st.lists(example, max_size=6)
    return st.builds(
        lambda examples, full: plan_rows(examples, length, full=full),
        st.lists(row, min_size=rows, max_size=rows),
        st.booleans(),
    )


def definition(query, key, value, ranges: Ranges, window, *, scale: float, soft_cap: float | None):
    """Softmax attention under the rows' mask, in float32, and the log-sum-exp of its scores, ``[R, H, T]``."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    mask = visible(ranges, jnp.arange(query.shape[1], dtype=jnp.int32), ranges.positions, window)
    scores = jnp.einsum("rqhc,rkhc->rhqk", query, key, precision="highest") * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(mask[:, None], scores, -jnp.inf)
    out = jnp.einsum("rhqk,rkhc->rqhc", jax.nn.softmax(scores, axis=-1), value, precision="highest")
    return out, jax.nn.logsumexp(scores, axis=-1)


def apart(found, expected) -> float:
    """The largest difference, relative to the largest value, or to 1: a softmax over one key has no gradient at all."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1.0))
