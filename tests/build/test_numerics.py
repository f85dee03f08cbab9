"""What is not finite stops a run before anything broken is saved."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import build
from jaxalign.errors import NumericsError
from jaxalign.training.metrics import read_metrics


@pytest.fixture(scope="module")
def broken_model(world, tmp_path_factory):
    """The model with one NaN among its weights."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(world.model, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def saved_steps(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


@pytest.mark.parametrize(
    "settings",
    [
        {"reference__mode": "live"},
        {"reference__mode": "cached"},
        {"method__name": "sft"},
    ],
    ids=["live", "cached", "sft"],
)
def test_nan_weights_stop_at_the_first_step(settings, broken_model, configure, tmp_path):
    config = configure(
        model__path=broken_model, train__checkpoint_every=1, data__eval_size=4, train__eval_every=1,
        **settings, reference__cache_dir=tmp_path / "cache",
    )  # fmt: skip
    with pytest.raises(NumericsError, match="not finite") as caught:
        build.train(config, tmp_path / "run")
    if settings != {"reference__mode": "cached"}:  # whose cache refuses them before there is a step
        assert "step 1:" in str(caught.value)
        assert "pairs.jsonl row " in str(caught.value)
    assert saved_steps(tmp_path / "run") == []
    assert not (tmp_path / "run" / "export").exists()
    assert not [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert not list((tmp_path / "cache").glob("*/part-*"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "not finite" in manifest["error"]


def test_an_exploding_step_keeps_the_last_good_checkpoint(configure, tmp_path):
    """The rate is 0 in the first step of the warm-up, and 1e30 / 2 in the second."""
    config = configure(
        optimizer__learning_rate=1e30, optimizer__warmup_ratio=0.5, train__steps=4, train__checkpoint_every=1
    )
    with pytest.raises(NumericsError, match="step 2: ") as caught:
        build.train(config, tmp_path)
    assert "update" in str(caught.value)
    assert "pairs.jsonl row " in str(caught.value)
    assert "last good one is kept" in str(caught.value)
    assert saved_steps(tmp_path) == [1]
    assert not (tmp_path / "export").exists()
    build.convert(tmp_path, tmp_path / "good")
    for name, tensor in load_file(tmp_path / "good" / "model.safetensors").items():
        assert np.isfinite(tensor).all(), name


def test_an_exploding_last_step_exports_nothing(configure, tmp_path):
    """No further step would see what the last one made of the weights."""
    config = configure(optimizer__learning_rate=1e30, train__steps=1, data__eval_size=0)
    with pytest.raises(NumericsError, match=r"step 1: .*update"):
        build.train(config, tmp_path)
    assert saved_steps(tmp_path) == []
    assert not (tmp_path / "export").exists()


def test_weights_that_only_the_last_update_broke_are_not_saved(configure, tmp_path):
    """The update is finite, but what it leads to is not, and no forward pass of a step comes after it."""
    config = configure(
        optimizer__learning_rate=1e30, optimizer__warmup_ratio=0.0, optimizer__name="sgd",
        train__steps=1, data__eval_size=0, train__check_first_step=False,
    )  # fmt: skip
    with pytest.raises(NumericsError, match="step 1: "):
        build.train(config, tmp_path)
    assert saved_steps(tmp_path) == []
    assert not (tmp_path / "export").exists()
