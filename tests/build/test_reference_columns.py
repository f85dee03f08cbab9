"""Reference log-probabilities that come with the pairs: written, read back, and refused where they are not enough."""

from __future__ import annotations

import dataclasses
import json
import logging
import math

import numpy as np
import pytest

from jaxalign import build
from jaxalign.config import from_dict, resolve, to_dict
from jaxalign.errors import ConfigError, DataError
from tests.build.conftest import HELD_OUT, ROWS, as_chat, assert_same_run, write_lines, written_pairs


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def reading(out, **changes):
    """Settings of a run that reads the written files and no reference model."""
    return {
        **changes, "data__train": [str(out)], "data__eval": [str(out.with_name(f"{out.stem}-eval.jsonl"))],
        "data__eval_size": 0, "reference__source": "columns", "reference__mode": "auto",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_written_columns_train_as_the_cache_that_they_are_of(kind, configure, finished, start_run, world, tmp_path):
    chat = {"model__path": world.chat, "data__train": [str(world.conversations)]}
    settings = {
        "own": {"reference__mode": "cached"},
        "foreign": {**chat, "reference__source": str(world.foreign_chat), "method__beta": 1.0},
    }[kind]
    out = tmp_path / "pairs.jsonl"
    found = build.cache_reference(configure(**settings), out)
    written = {str(out): ROWS - HELD_OUT, str(tmp_path / "pairs-eval.jsonl"): HELD_OUT}
    assert found["written"] == written
    rows = read_lines(out)
    assert set(rows[0]) == {"prompt", "chosen", "rejected", "chosen_logprob", "rejected_logprob"}
    texts = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    pairs = [as_chat(pair) if kind == "foreign" else pair for pair in written_pairs()]
    assert all(text in pairs for text in texts)

    run, before = start_run(**reading(out, **settings)), dataclasses.replace(finished(**settings))
    if kind == "foreign":  # the one thing that asks how many tokens the reference read, which the columns do not say
        for row in (*run.rows, *before.rows):
            row.pop("eval_ranking/reference_accuracy_per_token", None)
    assert_same_run(before, run)
    assert run.manifest["reference"] == {"source": "columns", "mode": "cached"}
    assert abs(run.steps[-1]["rewards/margins"]) > 0.02
    # What a step measures of the policy it began with: of the start itself dpo's closed form, of others not.
    assert (run.steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)) is (kind == "own")
    again = build.evaluate(run.config, run.workdir)
    assert again["eval_loss"] == pytest.approx(before.evaluations[-1]["eval_loss"], rel=1e-5)


def test_a_pair_that_becomes_two_examples_keeps_both_numbers(configure, world, tmp_path):
    rows = [{**p, "chosen_logprob": -i - 1.0, "rejected_logprob": -i - 0.5} for i, p in enumerate(written_pairs())]
    data = write_lines(tmp_path / "pairs.jsonl", rows)
    settings = {"method__name": "bco", "reference__source": "columns", "data__train": [str(data)]}
    examples = build.check_data(configure(**settings, data__eval_size=0)).train
    expected = np.array([[row["chosen_logprob"], row["rejected_logprob"]] for row in rows])
    np.testing.assert_array_equal(examples.columns["reference_sums"].reshape(-1, 2), expected)
    np.testing.assert_array_equal(examples.columns["desirable"].reshape(-1, 2), [[True, False]] * ROWS)
    config = configure(**settings)
    assert resolve(config).reference.mode == "cached"
    assert from_dict(to_dict(resolve(config))) == resolve(config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen_logprob": None}, "row 3: reference.source is 'columns'"),
        ({"rejected_logprob": 0.5}, "row 3: 'rejected_logprob' is 0.5"),
        ({"chosen_logprob": "many"}, "row 3: 'chosen_logprob' is 'many'"),
    ],
    ids=str,
)
def test_rows_without_sound_numbers_are_named(change, said, configure, tmp_path):
    rows = [{**p, "chosen_logprob": -9.0, "rejected_logprob": -8.0} for p in written_pairs()]
    rows[2] |= change
    data = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match=said):
        build.check_data(configure(reference__source="columns", data__train=[str(data)]))


def test_other_names_for_the_columns(configure, tmp_path):
    trl = [{**p, "ref_chosen_logps": -3.0, "ref_rejected_logps": -4.0} for p in written_pairs()]
    own = [{**p, "a": -3.0, "b": -4.0} for p in written_pairs()]
    found = []
    for name, rows, columns in (("trl", trl, {}), ("own", own, {"chosen_logprob": "a", "rejected_logprob": "b"})):
        data = write_lines(tmp_path / f"{name}.jsonl", rows)
        config = configure(reference__source="columns", data__train=[str(data)], data__columns=columns)
        found.append(build.check_data(config).train.columns["reference_sums"])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0][0], [-3.0, -4.0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method__name": "kto"}, "puts another example's answer behind each prompt"),
        ({"method__name": "tdpo2"}, "log-probability of each token"),
        ({"method__name": "cpo"}, "cpo uses no reference"),
        ({"reference__mode": "live"}, "reference.mode: got 'live' with reference.source 'columns'"),
        ({"reference__mode": "moving"}, "only a copy of the policy can follow it"),
        ({"reference__chat_template": "chatml"}, "only another model has a template of its own"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_read_columns_is_told_from_the_configuration_alone(changes, said, configure):
    with pytest.raises(ConfigError, match=said) as caught:
        configure(**{"reference__source": "columns", **changes})
    assert len(caught.value.problems) == 1


def test_nothing_to_cache_and_nowhere_to_write(configure, tmp_path):
    with pytest.raises(ConfigError, match="the data hold the numbers"):
        build.cache_reference(configure(reference__source="columns"))
    with pytest.raises(ConfigError) as caught:
        build.cache_reference(configure(method__name="kto"), tmp_path / "no" / "pairs.csv")
    assert [problem.partition(",")[0] for problem in caught.value.problems] == [
        f"--out: got '{tmp_path}/no/pairs.csv' with method kto",
        f"--out: got '{tmp_path}/no/pairs.csv'",
        f"--out: there is no folder '{tmp_path}/no'.",
    ]


def test_cut_answers_are_told(configure, tmp_path, caplog):
    rows = [{**p, "chosen_logprob": -9.0, "rejected_logprob": -8.0} for p in written_pairs()]
    data = write_lines(tmp_path / "pairs.jsonl", rows)
    config = configure(reference__source="columns", data__train=[str(data)], data__max_length=24)
    checked = build.check_data(config)
    with caplog.at_level(logging.WARNING, "jaxalign"):
        from jaxalign.build.reference import plan_reference

        assert plan_reference(config, checked) == {}
    assert "are cut to data.max_length" in caplog.text
