"""Measures of studies on real runs."""

from __future__ import annotations

import json

import pytest

from jaxalign import build
from jaxalign.config import to_dict
from jaxalign.errors import ConfigError
from jaxalign.evaluation.outcome import Outcome
from jaxalign.studies import measures
from jaxalign.studies.study import Subject


@pytest.fixture(scope="module")
def run(finished):
    return finished(method__beta=0.3)


def subject_of(run, world, tmp_path) -> Subject:
    start, export = str(world.model), str(run.workdir / "export")
    return Subject(model=export, reference=start, start=start, config=run.config, run=run.workdir, out=tmp_path)


def test_a_trained_model_has_what_its_stage_measured(run, world, tmp_path):
    found = measures.held_out().run(subject_of(run, world, tmp_path))
    assert run.manifest["exported_step"] == 8
    assert {f"eval_{name}": metric.value for name, metric in found.metrics.items()} == dict(run.result.metrics)
    accuracy = found.metrics["rewards/accuracies"]
    assert (accuracy.n, accuracy.unit, accuracy.higher_is_better) == (8, "share", True)
    assert accuracy.stderr == pytest.approx((accuracy.value * (1 - accuracy.value) / 8) ** 0.5)
    assert found.protocol["data_hash"] == run.manifest["data"]["eval"]["data_hash"]
    assert Outcome.from_dict(json.loads(json.dumps(found.as_dict()))).metrics["loss"] == found.metrics["loss"]


def test_always_measures_the_same_of_a_trained_model(run, world, tmp_path):
    """The stage's own data and method through the other path: the exported weights are what was measured."""
    own = measures.held_out().run(subject_of(run, world, tmp_path))
    again = measures.held_out(run.config, always=True).run(subject_of(run, world, tmp_path))
    assert again.protocol == own.protocol
    for name, metric in own.metrics.items():
        assert again.metrics[name].value == pytest.approx(metric.value, abs=1e-4), name


def test_a_start_is_measured_by_the_configuration(run, world, configure, tmp_path):
    start = Subject(model=str(world.model), out=tmp_path)
    with pytest.raises(ConfigError, match="was not trained in this study"):
        measures.held_out().run(start)
    found = measures.held_out(to_dict(configure(method__beta=0.3))).run(start)
    wanted = build.evaluate(configure(), model=str(world.model))
    assert found.metrics["ranking/accuracy"].value == pytest.approx(wanted["eval_ranking/accuracy"])
    assert found.metrics["logps/chosen"].value == pytest.approx(wanted["eval_logps/chosen"], abs=1e-3)
    assert not any(name.startswith(("rewards/", "kl/", "loss")) for name in found.metrics)
    assert found.notes


def test_settings_know_files_by_their_content(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"

    def settings(path):
        return dict(measures.generations(str(path)).settings)

    missing = measures.generations(first)
    first.write_text('"one"\n')
    second.write_text('"one"\n')
    assert settings(first) == settings(second) == dict(missing.settings)  # read late
    json.dumps(settings(first))
    second.write_text('"two"\n')
    assert settings(first) != settings(second)
    tree = {"data": {"train": [str(first)], "eval_size": 2}}
    before = dict(measures.held_out(tree).settings)
    first.write_text('"three"\n')
    assert dict(measures.held_out(tree).settings) != before
