"""What rows of METHODS, their options, and methods from elsewhere are checked against."""

import sys
from typing import Annotated, Literal

import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.methods import METHODS, Layout, Logps, Method, Option, get_method
from jaxalign.objectives import Range, dpo

# Options.


def test_options_come_from_the_signature():
    assert METHODS["dpo"].inputs == ("policy", "reference")
    assert METHODS["dpo"].options == {
        "beta": Option(float, 0.1, Range(gt=0)),
        "label_smoothing": Option(float, 0.0, Range(ge=0, lt=0.5)),
    }
    assert METHODS["cpo"].options["nll_normalization"].choices == ("batch_tokens", "tokens", "sum")
    assert METHODS["simpo"].options["beta"].default == 2.0
    needs = {name: METHODS[name].needs_reference for name in ("sft", "dpo", "ipo", "cpo", "simpo", "kto")}
    assert {name for name, needed in needs.items() if needed} == {"dpo", "ipo", "kto"}


@pytest.mark.parametrize(
    ("method", "options", "problem"),
    [
        ("dpo", {"beta": -0.1}, "method.beta: got -0.1, expected a finite number > 0."),
        ("dpo", {"beta": 0}, "method.beta: got 0, expected a finite number > 0."),
        ("dpo", {"beta": float("nan")}, "method.beta: got nan, expected a finite number > 0."),
        ("dpo", {"beta": float("inf")}, "method.beta: got inf, expected a finite number > 0."),
        ("dpo", {"beta": "0.1"}, "method.beta: got '0.1', expected a finite number > 0."),
        ("dpo", {"beta": True}, "method.beta: got True, expected a finite number > 0."),
        ("dpo", {"beta": None}, "method.beta: got None, expected a finite number > 0."),
        (
            "dpo",
            {"label_smoothing": 0.5},
            "method.label_smoothing: got 0.5, expected a finite number >= 0 and < 0.5.",
        ),
        ("kto", {"desirable_weight": -1.0}, "method.desirable_weight: got -1.0, expected a finite number >= 0."),
        (
            "cpo",
            {"nll_normalization": "token"},
            "method.nll_normalization: got 'token', expected one of 'batch_tokens', 'tokens', 'sum'.",
        ),
        (
            "dpo",
            {"betta": 0.1},
            "method.betta: dpo has no such option; its options are beta, label_smoothing. Did you mean 'beta'?",
        ),
        ("sft", {"beta": 0.1}, "method.beta: sft has no such option; it has none."),
    ],
)
def test_option_problems(method, options, problem):
    assert METHODS[method].check_options(options) == [problem]
    with pytest.raises(ConfigError) as error:
        METHODS[method].resolve_options(options)
    assert error.value.problems == (problem,)


def test_all_problems_are_told_at_once():
    problems = METHODS["kto"].check_options({"beta": -1, "gamma": 2, "undesirable_weight": "x"}, where="study.method")
    assert [problem.split(":")[0] for problem in problems] == [
        "study.method.beta",
        "study.method.gamma",
        "study.method.undesirable_weight",
    ]


def test_resolved_options_are_complete_and_of_their_type():
    options = METHODS["kto"].resolve_options({"beta": 1, "desirable_weight": np.float32(1.5)})
    assert options == {"beta": 1.0, "desirable_weight": 1.5, "undesirable_weight": 1.0}
    assert {type(value) for value in options.values()} == {float}


# Rows.


def row(objective, layout=Layout.PAIRED):
    return Method("row", objective, layout)


def test_unknown_inputs_are_an_error_at_import():
    with pytest.raises(TypeError, match=r"unknown input 'refrence'.*Did you mean 'reference'\?"):
        row(lambda policy, refrence: None)


def test_an_option_before_the_star_is_told():
    with pytest.raises(TypeError, match=r"unknown input 'beta'.*An option belongs after the '\*'"):
        row(lambda policy, beta=0.1: None)


def test_inputs_that_the_layout_lacks():
    with pytest.raises(TypeError, match="layout PAIRED has no input 'desirable'"):
        row(lambda policy, desirable: None)


def test_a_row_without_policy():
    with pytest.raises(TypeError, match="no input that a gradient flows from"):
        row(lambda reference: None)


def test_catch_alls_are_refused():
    with pytest.raises(TypeError, match=r"\*\*options hides what is needed"):
        row(lambda policy, **options: None)


def test_options_need_a_sound_default():
    def without(policy, *, beta: float): ...
    def outside(policy, *, beta: Annotated[float, Range(gt=0)] = 0.0): ...
    def unsupported(policy, *, betas: list[float] = [0.1]): ...  # noqa: B006

    for objective, message in (
        (without, "option 'beta' needs a default"),
        (outside, r"default 0.0, which is not a finite number > 0"),
        (unsupported, "option 'betas' has the type"),
    ):
        with pytest.raises(TypeError, match=message):
            row(objective)


def test_kinds_of_options():
    def objective(
        policy,
        *,
        clip: float = 1.0,
        rounds: Annotated[int, Range(ge=1)] = 2,
        mixed: bool = False,
        form: Literal["a", "b"] = "a",
        note: str = "",
        bare=0.5,
    ): ...

    options = row(objective).options
    assert {name: option.type for name, option in options.items()} == {
        "clip": float,
        "rounds": int,
        "mixed": bool,
        "form": str,
        "note": str,
        "bare": float,
    }
    assert row(objective).check_options({"rounds": 3, "mixed": True, "form": "b", "note": "x", "bare": 1}) == []
    assert len(row(objective).check_options({"rounds": 0, "mixed": 1, "form": "c", "note": 3, "bare": "x"})) == 5
    assert len(row(objective).check_options({"rounds": 1.5})) == 1


def test_the_table_is_read_only():
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["dpo"]  # pyright: ignore[reportIndexIssue]


# Methods from elsewhere.


@pytest.fixture
def module(tmp_path, monkeypatch):
    """An importable module `my_methods` with a row, two functions and something else."""
    (tmp_path / "my_methods.py").write_text(
        """
from __future__ import annotations

from jaxalign.methods import Layout, Logps, Method
from jaxalign.objectives import simpo
from jaxalign.types import LossOutput, Pair


def paired(policy: Pair, reference: Pair, *, beta: float = 0.3) -> LossOutput:
    '''Mine.'''


def unpaired(policy, desirable): ...


def unclear(policy): ...


def wrong(policy: Pair, refrence): ...


ROW = Method("mine", simpo, Layout.PAIRED, Logps.MEAN)
NUMBER = 3
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_methods"
    sys.modules.pop("my_methods", None)


def test_get_method_by_name():
    assert get_method("dpo").objective is dpo


def test_get_method_from_a_module(module):
    assert get_method(f"{module}:ROW").logps is Logps.MEAN
    paired = get_method(f"{module}:paired")
    assert paired.layout is Layout.PAIRED
    assert paired.inputs == ("policy", "reference")
    assert paired.options == {"beta": Option(float, 0.3)}
    assert paired.summary == "Mine."
    assert get_method(f"{module}:unpaired").layout is Layout.UNPAIRED


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpoo", r"got 'dpoo', which is no method. Did you mean 'dpo'\? `jaxalign methods` lists them"),
        ("DPO", r"got 'DPO', which is no method. Did you mean 'dpo'\?"),
        ("my_methods:ROWS", r"my_methods has no 'ROWS'. Did you mean 'ROW'\?"),
        ("my_methods:NUMBER", "is a int, expected a Method or a function"),
        ("my_methods:unclear", r"layout .* cannot be told.*Method\('unclear', unclear, Layout.SINGLE\)"),
        ("my_methods:wrong", "unknown input 'refrence'"),
        ("no_such_module:x", "cannot be imported"),
        (":x", "cannot be imported"),
    ],
)
def test_get_method_problems(module, name, message):
    with pytest.raises(ConfigError, match=message):
        get_method(name)
