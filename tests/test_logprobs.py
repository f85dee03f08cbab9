"""The chunked pass over the vocabulary against all logits at once: values in float64, gradients by autodiff."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.row_plans import RowShape
from jaxalign.data.rows import build_rows
from jaxalign.logprobs import STATISTICS, Distribution, completion_sums, token_scores
from jaxalign.training.scoring import by_completion, completion_lengths
from tests.training.conftest import examples_for

R, T, S, D, V = 2, 11, 7, 6, 50


def some(seed: int, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(scale * rng.normal(size=(R, T, D)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    return hidden, head


HIDDEN, HEAD = some(0)
THEIRS = Distribution(*some(1))
SOURCE = jnp.asarray(np.random.default_rng(2).integers(0, T, (R, S)), jnp.int32)
TARGET = jnp.asarray(np.random.default_rng(3).integers(0, V, (R, S)), jnp.int32)
SMALL = {"chunk": 3, "vocabulary_chunk": 16}  # several chunks of tokens, several blocks of the vocabulary


def dense(hidden, head, soft_cap=None):
    """Log-probabilities of the whole vocabulary at the scored places, ``[R, S, V]``, and the logits."""
    logits = jnp.take_along_axis(hidden, SOURCE[..., None], 1) @ head
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    return jax.nn.log_softmax(logits), logits


def expected(hidden, head, theirs=THEIRS, soft_cap=None):
    """Every statistic, from the definition."""
    log_p, logits = dense(hidden, head, soft_cap)
    log_q, _ = dense(theirs.hidden, theirs.head, theirs.soft_cap)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    return {
        "logps": jnp.take_along_axis(log_p, TARGET[..., None], -1)[..., 0],
        "entropy": -(p * log_p).sum(-1),
        "correct": (logits.argmax(-1) == TARGET).astype(jnp.float32),
        "mean_logit": logits.mean(-1),
        "collision": jnp.log(jnp.square(p).sum(-1)),
        "reference_logps": jnp.take_along_axis(log_q, TARGET[..., None], -1)[..., 0],
        "kl": (q * (log_q - log_p)).sum(-1),
    }


@pytest.mark.parametrize("blocks", [{}, SMALL], ids=["whole", "chunked"])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_values(blocks, soft_cap):
    scores = token_scores(
        HIDDEN, HEAD, SOURCE, TARGET, soft_cap=soft_cap, statistics=STATISTICS, reference=THEIRS, **blocks
    )
    for name, value in expected(HIDDEN, HEAD, soft_cap=soft_cap).items():
        np.testing.assert_allclose(getattr(scores, name), value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("blocks", [{}, SMALL], ids=["whole", "chunked"])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("names", [("logps",), ("kl",), ("entropy",), ("logps", "kl", "entropy")], ids="+".join)
def test_gradients(names, soft_cap, blocks):
    """Of a weighted sum, with respect to states and head."""
    weights = {name: jnp.asarray(np.random.default_rng(4).normal(size=(R, S)), jnp.float32) for name in names}

    def ours(hidden, head):
        scores = token_scores(
            hidden,
            head,
            SOURCE,
            TARGET,
            soft_cap=soft_cap,
            statistics=("entropy",),
            entropy_gradient=True,
            reference=THEIRS,
            **blocks,
        )
        return sum((weights[name] * getattr(scores, name)).sum() for name in names)

    def theirs(hidden, head):
        values = expected(hidden, head, soft_cap=soft_cap)
        return sum((weights[name] * values[name]).sum() for name in names)

    for mine, right in zip(jax.grad(ours, (0, 1))(HIDDEN, HEAD), jax.grad(theirs, (0, 1))(HIDDEN, HEAD), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-5)


def test_what_is_not_asked_for_is_not_there_and_carries_no_gradient():
    scores = token_scores(HIDDEN, HEAD, SOURCE, TARGET)
    assert [value is None for value in scores] == [False, *[True] * 6]

    def statistics(hidden):
        scores = token_scores(hidden, HEAD, SOURCE, TARGET, statistics=STATISTICS, reference=THEIRS)
        return scores.entropy.sum() + scores.collision.sum() + scores.mean_logit.sum() + scores.reference_logps.sum()

    assert (jax.grad(statistics)(HIDDEN) == 0).all()


def test_no_gradient_reaches_the_reference():
    def kl(hidden, head):
        scores = token_scores(HIDDEN, HEAD, SOURCE, TARGET, reference=Distribution(hidden, head))
        return scores.kl.sum() + scores.reference_logps.sum()

    assert all((gradient == 0).all() for gradient in jax.grad(kl, (0, 1))(*some(1)))


def test_the_divergence_of_a_model_from_itself_is_exactly_zero():
    scores = token_scores(HIDDEN, HEAD, SOURCE, TARGET, reference=Distribution(HIDDEN, HEAD), **SMALL)
    assert (scores.kl == 0).all()
    np.testing.assert_array_equal(scores.logps, scores.reference_logps)


def test_the_divergence_is_accurate_where_it_is_small():
    """Against float64, a thousandth of a nat between two sharp distributions."""
    hidden, head = some(0, scale=5.0)
    nearby = hidden + 1e-2 * jnp.asarray(np.random.default_rng(5).normal(size=hidden.shape), jnp.float32)
    found = token_scores(hidden, head, SOURCE, TARGET, reference=Distribution(nearby, head)).kl

    def log_softmax(states):
        logits = np.take_along_axis(np.asarray(states, np.float64), np.asarray(SOURCE)[..., None], 1) @ np.asarray(
            head, np.float64
        )
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(hidden), log_softmax(nearby)
    np.testing.assert_allclose(found, (np.exp(log_q) * (log_q - log_p)).sum(-1), atol=2e-6)


def test_extreme_logits_stay_finite():
    hidden, head = some(0, scale=1e3)
    theirs = Distribution(*some(1, scale=1e3))

    def total(hidden):
        scores = token_scores(
            hidden, head, SOURCE, TARGET, statistics=STATISTICS, entropy_gradient=True, reference=theirs, **SMALL
        )
        return sum(value.sum() for value in scores)

    value, gradient = jax.value_and_grad(total)(hidden)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_problems():
    with pytest.raises(ValueError, match=r"got \['entrpy'\], expected some of entropy"):
        token_scores(HIDDEN, HEAD, SOURCE, TARGET, statistics=("entrpy",))
    with pytest.raises(ValueError, match="vocabulary of 49 tokens, expected the policy's 50"):
        token_scores(HIDDEN, HEAD, SOURCE, TARGET, reference=Distribution(HIDDEN, HEAD[:, 1:]))


def test_tokens_by_completion_are_the_tokens_of_each_completion():
    examples = examples_for("dpo", count=5)
    host = build_rows([[(i, examples[i]) for i in (0, 3)], [(1, examples[1])], []], RowShape(96, 64, 3, 2))
    rows = jax.tree.map(jnp.asarray, host)
    lengths = completion_lengths(rows)
    found = by_completion(rows.score_target, lengths, empty=-7)
    assert found.shape == (3, 3, 2, 64)
    for place, identity in {(0, 0): 0, (0, 1): 3, (1, 0): 1}.items():
        for k, completion in enumerate(examples[identity].completions):
            np.testing.assert_array_equal(found[*place, k, : len(completion)], completion)
            assert (found[*place, k, len(completion) :] == -7).all()
    assert (found[2] == -7).all()
    sums = completion_sums(rows.score_target.astype(jnp.float32), rows.score_slot, 3, 2)
    np.testing.assert_array_equal(by_completion(rows.score_target, lengths).sum(-1), sums)
    pairs = jnp.stack([rows.score_target, -rows.score_target], -1)
    np.testing.assert_array_equal(by_completion(pairs, lengths)[..., 1], -by_completion(rows.score_target, lengths))
