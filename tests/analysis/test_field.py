"""Gradient fields: against closed forms, and for every method that has one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxalign.analysis.field import Field, gradient_field
from jaxalign.errors import ConfigError
from jaxalign.method import Layout, Logps, Method
from jaxalign.methods import METHODS

WITH_FIELD = ("dpo", "ipo")


def close(one, other, tolerance: float = 1e-5) -> None:
    scale = np.maximum(np.abs(other), 1e-3 * np.abs(other).max())
    assert (np.abs(np.asarray(one) - other) <= tolerance * scale).all()


def plane(field: Field) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.asarray(axis, np.float64) for axis in np.meshgrid(field.chosen, field.rejected))


@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_dpo_has_its_closed_form(beta: float):
    """With b = beta: L = -log(x1^b / (x1^b + x2^b)), dL/dx1 = -b x2^b / (x1 (x1^b + x2^b)) and
    dL/dx2 = b x2^(b-1) / (x1^b + x2^b), so |dL/dx1| / |dL/dx2| = x2 / x1."""
    field = gradient_field(METHODS["dpo"], {"beta": beta}, extent=3.0, points=13)
    rho1, rho2 = plane(field)
    x1, x2 = np.exp(rho1), np.exp(rho2)
    whole = x1**beta + x2**beta
    close(field.loss, -np.log(x1**beta / whole))
    close(field.chosen_slope / x1, -beta * x2**beta / (x1 * whole))
    close(field.rejected_slope / x2, beta * x2 ** (beta - 1) / whole)
    assert np.abs(field.log_push_ratio - (rho2 - rho1)).max() < 1e-5


def test_ipo_has_its_closed_form():
    """L = (D - 1 / (2 beta))^2 with slopes +-2 (D - 1 / (2 beta)); at beta = 0.25 the target is 2."""
    field = gradient_field(METHODS["ipo"], {"beta": 0.25}, extent=4.0, points=9)
    rho1, rho2 = plane(field)
    close(field.loss + 1, (rho1 - rho2 - 2) ** 2 + 1)
    close(field.chosen_slope + 50, 2 * (rho1 - rho2 - 2) + 50)
    close(field.rejected_slope + 50, -2 * (rho1 - rho2 - 2) + 50)
    assert field.per_token
    assert field.loss[2, 4] == 0.0  # at log x1 = 0, log x2 = -2: on target, where no push is harder than the other
    assert math.isnan(field.log_push_ratio[2, 4])


def test_rows_are_the_rejected_completion():
    field = gradient_field(METHODS["dpo"], extent=2.0, points=5)
    assert field.chosen.tolist() == field.rejected.tolist() == [-2, -1, 0, 1, 2]
    assert field.loss[0, -1] == field.loss.min()  # rejected down, chosen up
    assert field.loss[2, 2] == pytest.approx(math.log(2))


def test_a_likelihood_term_needs_a_place():
    """CPO's term is -lp_w / |y_w| for lengths of one pair: at lp_w = -40 and 20 tokens 2 nats, with slope -1/20."""
    cpo = METHODS["cpo"]
    with pytest.raises(ConfigError, match=r"depends on the log-probabilities themselves.*--origin=-40,-50"):
        gradient_field(cpo)
    field = gradient_field(cpo, {"beta": 0.1}, points=5, origin=(-40.0, -50.0), lengths=(20.0, 25.0))
    h = 0.1 * (-40.0 + 50.0)
    assert field.loss[2, 2] == pytest.approx(math.log1p(math.exp(-h)) + 2.0, rel=1e-5)
    assert field.chosen_slope[2, 2] == pytest.approx(-0.1 / (1 + math.exp(h)) - 1 / 20, rel=1e-5)
    assert field.rejected_slope[2, 2] == pytest.approx(0.1 / (1 + math.exp(h)), rel=1e-5)
    assert field.origin == (-40.0, -50.0)


def test_no_reference_is_a_place_too():
    simpo = METHODS["simpo"]
    with pytest.raises(ConfigError, match=r"--origin=-1,-1\.2"):
        gradient_field(simpo)
    field = gradient_field(simpo, {"beta": 2.0, "gamma_beta_ratio": 0.5}, points=5, origin=(-1.0, -1.5))
    assert field.loss[2, 2] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_method_has_a_field_or_says_why_not(method: Method):
    try:
        field = gradient_field(method, points=5)
    except ConfigError as error:
        (problem,) = error.problems
        assert method.name in problem
        assert method.name not in WITH_FIELD
        if "--origin" not in problem:
            return
        origin = (-1.0, -1.2) if method.logps is Logps.MEAN else (-40.0, -50.0)
        field = gradient_field(method, points=5, origin=origin)
    for values in (field.loss, field.chosen_slope, field.rejected_slope):
        assert np.isfinite(values).all()
    assert set(field.options) == set(method.options)


def test_a_fixed_preference():
    """At preference p the loss is p L(h) + (1 - p) L(-h), least where sigmoid(h) = p."""
    field = gradient_field(METHODS["soft_dpo"], {"beta": 1.0}, extent=2.0, points=9, preference=0.8)
    rho1, rho2 = plane(field)
    h = rho1 - rho2
    close(field.loss, 0.8 * np.logaddexp(0, -h) + 0.2 * np.logaddexp(0, h))
    assert field.options["preference"] == 0.8


def test_reasons():
    """Layout, tokens, other inputs, and a coupled batch."""

    def tokens(policy, reference, token_mask): ...
    def soft(policy, reference, preference): ...
    def coupled(policy, reference): ...

    for method, reason in (
        (METHODS["kto"], "learns from unpaired data"),
        (Method("m", tokens, Layout.PAIRED, Logps.TOKEN), "sees single tokens"),
        (Method("m", soft, Layout.PAIRED), "also reads preference"),
        (Method("m", coupled, Layout.PAIRED, batch_coupled=True), "depends on the other pairs of the batch"),
    ):
        with pytest.raises(ConfigError, match=reason):
            gradient_field(method)


def test_options_are_checked():
    with pytest.raises(ConfigError, match=r"method\.bta: dpo has no such option.*Did you mean 'beta'"):
        gradient_field(METHODS["dpo"], {"bta": 0.2})


def test_infinite_and_missing_values_can_be_written():
    field = Field("m", {}, False, None, *(np.zeros(1, np.float32),) * 2, *(np.full((1, 1), v) for v in (np.inf, 0, 0)))
    numbers = field.as_dict()
    assert numbers["loss"] == [[None]]
    assert numbers["log_push_ratio"] == [[None]]
