"""A run with adapters: what its checkpoints hold, that it goes on bit for bit, and that its export is a whole model."""

from __future__ import annotations

import shutil

import pytest

from jaxalign import build
from jaxalign.models.safetensors_files import Tensors


@pytest.mark.slow
def test_a_run_with_adapters_goes_on_bit_for_bit_and_exports_a_whole_model(world, configure, tmp_path):
    settings = {
        "adapter__kind": "lora", "adapter__rank": 2, "reference__mode": "live", "train__steps": 4,
        "train__checkpoint_every": 2, "train__keep": 2, "train__log_every": 1, "optimizer__learning_rate": 1e-2,
    }  # fmt: skip
    config = configure(**settings)
    run = tmp_path / "run"
    whole = build.train(config, run)
    weights = (run / "export" / "model.safetensors").read_bytes()
    saved = (run / "checkpoints" / "4" / "state" / "_METADATA").read_text()
    assert "lora" in saved
    assert "embedding" not in saved  # nothing of the base

    # Killed after its second step, and started again.
    shutil.rmtree(run / "checkpoints" / "4")
    shutil.rmtree(run / "export")
    build.train(config, run)
    assert (run / "export" / "model.safetensors").read_bytes() == weights

    # A checkpoint alone, with the model that the run started from, is the same model.
    build.convert(run, tmp_path / "converted")
    assert (tmp_path / "converted" / "model.safetensors").read_bytes() == weights
    assert set(Tensors(run / "export").files) == set(Tensors(world.model).files)
    told = build.evaluate(config, run)
    assert told["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_reference_in_int8_is_near_and_has_keys_of_its_own(world, configure, tmp_path):
    pytest.importorskip("qwix")
    told = {}
    for name, settings in {
        "exact": {"reference__mode": "cached"},
        "cached": {"reference__mode": "cached", "reference__quantization": "int8"},
        "live": {"reference__mode": "live", "reference__quantization": "int8"},
    }.items():
        told[name] = build.evaluate(configure(reference__cache_dir=str(tmp_path / "cache"), **settings))
    # The policy is not rounded, so the log-ratios are the reference's error: none, and the same in both modes.
    assert told["exact"]["eval_kl/sequence"] == pytest.approx(0.0, abs=1e-4)
    assert 0 < abs(told["cached"]["eval_kl/sequence"]) < 2.0
    assert told["live"]["eval_kl/sequence"] == pytest.approx(told["cached"]["eval_kl/sequence"], abs=1e-3)
