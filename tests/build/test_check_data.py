"""What `check_data` refuses before any weights are read, each with the setting to change."""

from __future__ import annotations

import re

import pytest

from jaxalign import build
from jaxalign.build import data as build_data
from jaxalign.build.model import settled
from jaxalign.errors import ConfigError, DataError, ModelError
from jaxalign.methods import get_method
from tests.build.conftest import write_lines


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"model__path": "./nowhere"}, "model.path"),
        ({"model__tokenizer": "./nowhere"}, "model.tokenizer"),
    ],
)
def test_a_missing_folder_is_told_with_its_setting(changes, option, configure):
    with pytest.raises(ModelError, match=f"^{option}: './nowhere' does not exist"):
        build.check_data(settled(configure(**changes)))


def test_a_row_must_hold_the_longest_example(configure):
    for method in ("dpo", "kto"):
        changes = {"method__name": method, "data__max_length": 40}
        longest = build_data.lay_out(batches(configure(**changes)), 1).shape.tokens
        with pytest.raises(ConfigError) as error:
            build.check_data(settled(configure(**changes, data__row_length=40)))
        told = re.match(r"data\.row_length: got 40, expected at least (\d+), the tokens", str(error.value))
        assert told
        enough = int(told[1])
        assert enough <= longest
        config = configure(**changes, data__row_length=enough)
        assert build_data.lay_out(batches(config), 1, enough).shape.tokens == enough
        with pytest.raises(ConfigError, match=f"expected at least {enough}"):
            build.check_data(settled(configure(**changes, data__row_length=enough - 1)))


def batches(config):
    config = settled(config)
    return build_data.shuffled(build.check_data(config).train, get_method(config.method.name), config)


def test_a_single_example_has_no_partner(configure, tmp_path):
    one = write_lines(tmp_path / "one.jsonl", [{"prompt": "Why?\n", "completion": "So.", "label": True}])
    alone = {"method__name": "kto", "data__one_class": "allow"}
    with pytest.raises(DataError) as error:
        build.check_data(settled(configure(**alone, data__train=[str(one)], data__eval_size=0)))
    (problem,) = error.value.problems
    assert problem.startswith("data.train: got 1 training example, expected at least 2: method kto")
    with pytest.raises(DataError, match=r"^data\.eval: got 1 held-out example, expected at least 2"):
        build.check_data(settled(configure(**alone, data__eval=[str(one)], data__eval_size=0)))
