"""A run goes on only as the run that it was."""

from __future__ import annotations

import json
import shutil

import pytest

from jaxalign import build
from jaxalign.errors import ConfigError, DataError


@pytest.fixture
def begun(world, configure, tmp_path):
    """A finished run on files of its own, and how to start it again."""
    shutil.copytree(world.model, tmp_path / "model")
    lines = world.pairs.read_text().splitlines()
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")

    def start(**changes):
        settings = {
            "model__path": tmp_path / "model", "data__train": [str(tmp_path / "pairs.jsonl")], "data__eval_size": 0,
            "train__steps": 1, "train__export": False,
        }  # fmt: skip
        return build.train(configure(**settings | changes), tmp_path / "run")

    start()
    return start, tmp_path


def test_another_configuration_is_refused(begun):
    start, _ = begun
    start()
    with pytest.raises(ConfigError, match="holds a run with another configuration") as caught:
        start(train__steps=2, method__beta=0.3)
    (problem,) = caught.value.problems
    assert problem.splitlines()[1:] == ["  method.beta: was 0.1, is 0.3.", "  train.steps: was 1, is 2."]


def test_a_run_of_the_time_when_auto_was_live_says_how_to_go_on(begun):
    start, folder = begun
    path = folder / "run" / "config.json"
    config = json.loads(path.read_text())
    assert config["reference"]["mode"] == "cached"
    config["reference"]["mode"] = "live"
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="what auto once meant, the run goes on as it began"):
        start()
    start(reference__mode="live")


def test_other_data_under_the_same_name_are_refused(begun):
    start, folder = begun
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    (folder / "pairs.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match=r"train data: the examples are not those that the run in .* began with"):
        start()


def test_another_reference_under_the_same_name_is_refused(begun):
    start, folder = begun
    manifest = folder / "run" / "manifest.json"
    facts = json.loads(manifest.read_text())
    assert len(facts["reference"]["hash"]) == 64
    facts["reference"]["hash"] = "0" * 64
    manifest.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="holds other weights"):
        start()


def test_a_folder_without_checkpoints_may_start_anew(begun):
    start, folder = begun
    shutil.rmtree(folder / "run" / "checkpoints")
    start(train__steps=2)
    assert json.loads((folder / "run" / "config.json").read_text())["train"]["steps"] == 2
