"""Properties of the shared pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.objectives import Range
from jaxalign.objectives.terms import at_least_float32, logistic_loss, masked_mean, negative_log_likelihood

nats = st.floats(-1000, 1000, width=32)


@settings(deadline=None, max_examples=60)
@given(nats, st.floats(0, 0.5, exclude_max=True, width=32))
def test_logistic_loss_is_the_smoothed_log_sigmoid(margin, smoothing):
    """Against numpy's logaddexp in float64: -log sigmoid(z) = log(e^0 + e^-z)."""
    expected = (1 - smoothing) * np.logaddexp(0.0, -margin) + smoothing * np.logaddexp(0.0, margin)
    actual = logistic_loss(jnp.array([margin], jnp.float32), smoothing)[0].item()
    assert actual == pytest.approx(expected, rel=2e-6, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(nats)
def test_logistic_loss_falls_as_the_margin_grows(margin):
    """The slope is -sigmoid(-margin): between -1 and 0, finite everywhere."""
    slope = jax.grad(lambda z: logistic_loss(z).sum())(jnp.array([margin], jnp.float32))[0].item()
    assert -1.0 <= slope <= 0.0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=4, max_size=4))
def test_masked_mean_is_the_mean_of_the_rest(rows):
    values, mask = (np.array(column) for column in zip(*rows, strict=True))
    expected = values[mask].mean() if mask.any() else 0.0
    poisoned = jnp.asarray(np.where(mask, values, np.nan), jnp.float32)
    assert masked_mean(poisoned, jnp.asarray(mask)).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_half_precision_is_lifted_and_float32_kept():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        assert at_least_float32(jnp.zeros(1, dtype)).dtype == jnp.float32


def test_nll_of_an_unknown_normalization():
    one = jnp.ones(1)
    with pytest.raises(Exception, match=r"nll_normalization|normalization"):
        negative_log_likelihood(one, one, None, "mean")


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (Range(gt=0.0), [1e-9, 1.0, 1e9], [0.0, -1.0, float("nan")]),
        (Range(ge=0.0, lt=0.5), [0.0, 0.49], [0.5, -0.1, float("nan")]),
        (Range(le=3.0), [3.0, -5.0], [3.1]),
    ],
)
def test_range(bounds, inside, outside):
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in outside)
