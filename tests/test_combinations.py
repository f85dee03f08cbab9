"""Expressions of methods: what they mean, and what is said of those that mean nothing."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.combinations import is_expression, parse
from jaxalign.errors import ConfigError
from jaxalign.method import Layout, Logps
from jaxalign.method_text import describe
from jaxalign.methods import METHODS, get_method
from jaxalign.transforms import TRANSFORMS
from tests.method_inputs import make_inputs


def defaults(method):
    return {name: option.default for name, option in method.options.items()}


def test_a_weighted_sum():
    method = get_method("0.8*dpo + 0.2*bco_pair + 1.0*nll")
    assert method.layout is Layout.PAIRED
    assert set(method.inputs) == {"policy", "reference", "state", "example_mask", "lengths", "mean_lengths"}
    weights = {name: value for name, value in defaults(method).items() if name.endswith("weight")}
    assert weights == {"dpo_weight": 0.8, "bco_pair_weight": 0.2, "nll_weight": 1.0}
    assert method.resolve_options({"dpo_beta": 0.3})["dpo_beta"] == 0.3
    mpo = METHODS["mpo"]
    inputs = make_inputs(mpo)
    np.testing.assert_array_equal(method.loss(inputs).losses, mpo.loss(inputs).losses)


def test_a_single_term_keeps_its_options():
    assert defaults(get_method("ld(simpo)")) == defaults(METHODS["simpo"]) | {"ld_alpha": 0.5}
    assert defaults(get_method("2*dpo")) == defaults(METHODS["dpo"]) | {"weight": 2.0}
    assert defaults(get_method("smoothed(ipo)")) == {"beta": 0.1, "smoothing": 0.1}


def test_terms_mark_their_options():
    method = get_method("js(dpo) + 0.1*nll")
    assert list(method.options) == [
        *("js_dpo_beta", "js_dpo_label_smoothing", "js_dpo_weight", "nll_normalization", "nll_weight")
    ]


def test_sums_within_transforms_and_transforms_within_transforms():
    inner = get_method("ld(dpo + 0.1*nll)")
    assert inner.logps is Logps.TOKEN
    assert {"dpo_beta", "nll_weight", "ld_alpha"} <= set(inner.options)
    assert get_method("ld(js(ipo)) + nll").logps is Logps.TOKEN
    assert get_method("smoothed(ld(dpo)) + ld(dpo)").options.keys() >= {"smoothed_ld_dpo_smoothing", "ld_dpo_ld_alpha"}


@pytest.mark.parametrize("weight", ["0.5", ".5", "5e-1", "0.05E+1", "5.e-1"])
def test_numbers(weight):
    assert get_method(f"  {weight} *dpo+nll ").options["dpo_weight"].default == 0.5


def test_the_same_expression_is_the_same_method():
    """So that what is compiled for one is not compiled again."""
    assert get_method("dpo + 0.1*nll") is get_method("dpo + 0.1*nll")
    assert not is_expression("package.module:NAME") and not is_expression("dpo")  # noqa: PT018


def test_methods_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "my_terms.py").write_text(
        "from jaxalign.methods import Layout, Method\nfrom jaxalign.objectives import dpo\n"
        "MINE = Method('mine', dpo, Layout.PAIRED)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    method = get_method("0.5*my_terms:MINE + nll")
    assert "MINE_beta" in method.options
    with pytest.raises(ConfigError, match="my_terms has no 'MINES'"):
        get_method("my_terms:MINES + nll")
    sys.modules.pop("my_terms")


@pytest.mark.parametrize(
    "expression", ["0.8*dpo + 0.2*bco_pair + nll", "ld(simpo)", "js(dpo) + 0.1*nll", "on_policy(ipo)"]
)
def test_descriptions(expression):
    method = get_method(expression)
    text = describe(method)
    for word in (method.name, *method.inputs, *method.options, "loss "):
        assert word in text


@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_transform_is_named_like_a_method(name):
    assert name not in METHODS
    method = get_method(f"{name}({'ipo' if name == 'summed' else 'dpo'})")
    assert jnp.isfinite(method.loss(make_inputs(method)).losses).all()


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("dpo + nlll", "column 7: got 'nlll', expected a method. Did you mean 'nll'?"),
        ("dpo +", "column 6: got the end, expected a method such as dpo, or a transform such as ld(dpo)."),
        ("dpo + + nll", "column 7: got '+', expected a method such as dpo, or a transform such as ld(dpo)."),
        ("0.8dpo + nll", "column 4: got 'dpo', expected '*' between a weight and its method."),
        ("0.8 + nll", "column 5: got '+', expected '*' between a weight and its method."),
        ("dpo*0.2 + nll", "column 4: got '*', expected '+' and another term, or the end."),
        ("-1*dpo + nll", "column 1: got '-', expected a term; a weight is a number >= 0."),
        ("1e999*dpo + nll", "column 1: got 1e999, expected a finite weight."),
        ("dpo nll + ipo", "column 5: got 'nll', expected '+' and another term, or the end."),
        ("dpo $ + nll", "column 5: got '$', expected '+' and another term, or the end."),
        ("dpo - nll", "column 5: got '-', expected '+' and another term, or the end."),
        ("dpo nll", "column 5: got 'nll', expected '+' and another term, or the end."),
        ("dpo/2", "column 4: got '/', expected '+' and another term, or the end."),
        ("ld(dpo", "column 7: got the end, expected ')' that ends ld(."),
        ("(dpo + nll)", "column 1: got '(', expected a method such as dpo, or a transform such as ld(dpo)."),
        ("ld + dpo", "column 1: ld is a transform, expected ld(METHOD)."),
        (
            "smooth(dpo)",
            f"column 1: got 'smooth', expected a transform: one of {', '.join(TRANSFORMS)}. Did you mean 'smoothed'?",
        ),
        ("dpo + 2*dpo", "column 7: dpo is there twice; its options would share their names. Add the weights."),
        (
            "dpo + kto",
            "column 1: dpo reads paired data and kto unpaired data, but the terms of a sum see the same examples.",
        ),
        (
            "nll + ld(kto)",
            "column 7: kto reads unpaired data, expected paired: the tail is what the other completion has"
            " no room for.",
        ),
        (
            "dpo + 0.1*sft",
            "column 1: dpo reads paired data and sft single data, but the terms of a sum see the same"
            " examples. On pairs, nll takes the place of sft.",
        ),
    ],
)
def test_problems(expression, problem):
    with pytest.raises(ConfigError) as error:
        get_method(expression)
    assert error.value.problems == (f"method.name: got {expression!r}; {problem}",)


def test_parsing_asks_for_nothing_else():
    """It takes the rows as an argument: the table itself is made with it."""
    row = METHODS["dpo"]
    assert parse("dpo", {"dpo": row}.__getitem__, ["dpo"]) is row
