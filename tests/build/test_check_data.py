"""What `check_data` refuses before any weights are read, each with the setting to change."""

from __future__ import annotations

import importlib
import re

import pytest

from jaxalign import build
from jaxalign.build import data as build_data
from jaxalign.build.model import settled
from jaxalign.build.row_layout import lay_out
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


def test_a_batch_larger_than_the_data_and_a_run_without_a_rate_are_told(configure):
    def doubts(**changes):
        config = settled(configure(data__eval_size=0, **changes))
        return build_data.misgivings(config, build.check_data(config))

    assert doubts(train__batch_size=8) == []
    several, still = doubts(train__batch_size=640, train__epochs=1.0, optimizer__warmup_ratio=0.1)
    assert "more than the" in several
    assert "nothing is learned" in still


def test_a_row_must_hold_the_longest_example(configure):
    for method in ("dpo", "kto"):
        changes = {"method__name": method, "data__max_length": 40}
        longest = lay_out(batches(configure(**changes)), 1).shape.tokens
        with pytest.raises(ConfigError) as error:
            build.check_data(settled(configure(**changes, data__row_length=40)))
        told = re.match(r"data\.row_length: got 40, expected at least (\d+), the tokens", str(error.value))
        assert told
        enough = int(told[1])
        assert enough <= longest
        config = configure(**changes, data__row_length=enough)
        assert lay_out(batches(config), 1, enough).shape.tokens == enough
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


class Enough(Exception):
    """The data are checked."""


def test_a_warning_about_both_parts_of_a_file_is_given_once(configure, tmp_path, monkeypatch, caplog):
    def stop(*_):
        raise Enough

    monkeypatch.setattr(importlib.import_module("jaxalign.build.train"), "plan_reference", stop)
    ties = [{"prompt": f"Why {i}?\n", "a": "So.", "b": "No.", "preference": 0.5} for i in range(10)]
    pairs = [{**row, "preference": 1.0} for row in ties]
    with pytest.raises(Enough):
        build.train(configure(data__train=[str(write_lines(tmp_path / "split.jsonl", ties + pairs))]), tmp_path)
    tie = "10 of 20 rows make no example (50.0%): tie, no preferred answer"
    assert [m for m in caplog.messages if "no example" in m] == [f"data: {tie}"]
    assert len(set(caplog.messages)) == len(caplog.messages)
    caplog.clear()
    apart = {"data__eval": [str(write_lines(tmp_path / "eval.jsonl", pairs))], "data__eval_size": 0}
    apart |= {"data__train": [str(write_lines(tmp_path / "train.jsonl", other_prompt(ties + pairs)))]}
    with pytest.raises(Enough):
        build.train(configure(**apart), tmp_path)
    assert [m for m in caplog.messages if "no example" in m] == [f"train data: {tie}"]


def other_prompt(rows):
    return [{**row, "prompt": "How" + row["prompt"]} for row in rows]
