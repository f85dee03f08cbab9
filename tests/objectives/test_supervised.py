"""SFT counts every token of the batch the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives import sft


def test_by_hand():
    """6 nats over 2 tokens and 2 nats over 8: 3 and 0.25 a token, 8 nats over 10 tokens in all."""
    output = sft(jnp.array([-6.0, -2.0]), jnp.array([2.0, 8.0]))
    assert output.losses.tolist() == [3.0, 0.25]
    assert output.weights.tolist() == [2.0, 8.0]
    assert ((output.losses * output.weights).sum() / output.weights.sum()).item() == pytest.approx(0.8)
    assert output.metrics["nll_loss"].values.tolist() == [3.0, 0.25]
    assert output.metrics["nll_loss"].weights.tolist() == [2.0, 8.0]


def test_every_token_has_the_same_gradient():
    """d loss / d lp is -1 over the tokens of the batch, whatever the length."""

    def loss(policy):
        output = sft(policy, jnp.array([2.0, 8.0]))
        return (output.losses * output.weights).sum() / output.weights.sum()

    np.testing.assert_allclose(jax.grad(loss)(jnp.array([-6.0, -2.0])), [-0.1, -0.1], rtol=1e-6)


def test_a_completion_without_tokens_counts_nothing():
    output = sft(jnp.array([-6.0, 0.0]), jnp.array([2.0, 0.0]))
    assert output.losses.tolist() == [3.0, 0.0]
    assert output.weights.tolist() == [2.0, 0.0]
