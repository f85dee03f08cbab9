from __future__ import annotations

from dataclasses import replace

import pytest

from jaxalign.errors import ModelError
from jaxalign.models.decoder_config import RopeScaling, Source, decoder_config

VALUES = {"vocab_size": 10, "width": 16, "layers": 2, "heads": 4, "mlp_width": 8, "max_positions": 32}


def test_defaults_follow_from_the_heads():
    config = decoder_config(VALUES)
    assert (config.kv_heads, config.head_dim) == (4, 4)
    assert decoder_config({**VALUES, "windows": 8}).windows == (8, 8)
    scaling = {"kind": "linear", "factor": 2.0}
    assert decoder_config({**VALUES, "rope_scaling": scaling}).rope_scaling == RopeScaling(kind="linear", factor=2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_width": 3}, "unknown field 'hidden_width'"),
        ({"kv_head": 3}, "Did you mean 'kv_heads'"),
        ({"layers": 0}, "layers is 0, expected an integer >= 1"),
        ({"width": 16.0}, "width is 16.0, expected an integer"),
        ({"kv_heads": 3}, "heads = 4 is not a multiple of kv_heads = 3"),
        ({"head_dim": 5}, "head_dim is 5, expected an even number"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon is nan"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"activation": "slu"}, "activation 'slu' is not modelled.*Did you mean 'silu'"),
        ({"windows": [1]}, "windows has 1 entries, expected one for each of 2 layers"),
        ({"windows": [0, 1]}, "windows has the entry 0"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2.0}}, "rotary scaling 'yarn' is not modelled"),
        ({"rope_scaling": {"kind": "linear"}}, "rope_scaling: 'factor' is missing"),
        ({"rope_scaling": {"kind": "linear", "factors": 2}}, "Did you mean 'factor'"),
        ({"rope_scaling": {"kind": "linear", "factor": 0.5}}, "factor is 0.5, expected >= 1"),
        ({"soft_cap": 0.0}, "soft_cap is 0.0"),
    ],
)
def test_contradictions(change, message):
    with pytest.raises(ModelError, match=message):
        decoder_config({**VALUES, **change})


def test_all_missing_fields_at_once():
    with pytest.raises(ModelError) as error:
        decoder_config({"heads": 2, "wdth": 4})
    assert len(error.value.problems) == 7
    assert "Did you mean 'width'?" in error.value.problems[0]


def test_facts_are_the_function_and_nothing_else():
    config = decoder_config(VALUES)
    same = replace(config, source=Source({"x": 1}), rope_theta=10000, max_positions=99)
    assert same.facts() == config.facts()
    assert str(same.facts()) == str(config.facts())
    assert replace(config, rope_theta=500.0).facts() != config.facts()
    assert hash(replace(config, source=Source({"x": 1}))) == hash(config)
