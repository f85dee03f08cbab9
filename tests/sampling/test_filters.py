from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.sampling.filters import top_k_filter, top_p_filter


def kept(filtered) -> list[list[int]]:
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in np.asarray(filtered)]


def test_top_k_keeps_the_largest():
    logits = jnp.array([[0.1, 3.0, -1.0, 2.0], [5.0, 4.0, 3.0, 2.0]])
    assert kept(top_k_filter(logits, 2)) == [[1, 3], [0, 1]]
    for everything in (0, 4, 9):
        np.testing.assert_array_equal(top_k_filter(logits, everything), logits)


@pytest.mark.parametrize(
    ("p", "expected"), [(0.05, [2]), (0.5, [2]), (0.51, [0, 2]), (0.8, [0, 2]), (0.81, [0, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p, expected):
    logits = jnp.log(jnp.array([[0.3, 0.05, 0.5, 0.15]])) + 7.0
    assert kept(top_p_filter(logits, p)) == [expected]


def test_top_p_against_a_plain_loop():
    logits = jax.random.normal(jax.random.key(0), (20, 50)) * 2
    filtered = kept(top_p_filter(logits, 0.7))
    for row, mine in zip(np.asarray(logits, np.float64), filtered, strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        total, expected = 0.0, []
        for token in np.argsort(-row):
            expected.append(int(token))
            total += probabilities[token]
            if total >= 0.7:
                break
        assert sorted(expected) == mine
