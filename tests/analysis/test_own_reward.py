"""Whose reward is DPO's."""

from __future__ import annotations

import pytest

from jaxalign.analysis.own_reward import is_dpo_reward
from jaxalign.methods import get_method


def asked(name: str, **options) -> bool:
    method = get_method(name)
    settings = method.resolve_options(options)
    beta = next((float(value) for option, value in settings.items() if option.endswith("beta")), 1.0)
    return is_dpo_reward(method, settings, beta)


@pytest.mark.parametrize("name", ["dpo", "robust_dpo", "bco_pair", "mpo", "iterative_rpo", "dpo + 0.1*nll"])
def test_rewards_of_dpo(name: str):
    assert asked(name)


OTHERS = "dpo_norm ipo simpo cal_dpo f_dpo chi_po h_dpo orpo probability cpo tdpo1 kto sft"
COMBINED = ("ld(simpo) + 0.1*nll", "nll + dpo", "f_dpo + nll")


@pytest.mark.parametrize("name", [*OTHERS.split(), *COMBINED])
def test_other_rewards(name: str):
    assert not asked(name)


def test_options_decide_too():
    assert asked("f_dpo", divergence="reverse_kl")
