"""Held-out metrics do not depend on how they are computed, and are those of the exported model."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jaxalign import build
from jaxalign.cli import main
from jaxalign.errors import ConfigError, DataError
from tests.build.conftest import HELD_OUT, assert_close, with_evaluation

SETTINGS = {
    "dpo": {},
    "kto": {"method__name": "kto", "train__batch_size": 16, "train__steps": 9},
    "bco": {"method__name": "bco", "train__batch_size": 16, "train__steps": 9},
}


@pytest.mark.parametrize("method", SETTINGS)
def test_the_batch_size_of_evaluation_changes_nothing(method, finished):
    run = finished(**SETTINGS[method])
    reference = build.evaluate(with_evaluation(run.config, HELD_OUT), run.workdir)
    assert reference["eval_loss"] > 0
    for batch_size in (1, 3):
        metrics = build.evaluate(with_evaluation(run.config, batch_size), run.workdir)
        assert metrics.keys() == reference.keys()
        for name, value in metrics.items():
            # The row's other neighbours round differently: 1e-6 nats of a log-probability, of some 30 nats.
            assert_close(value, reference[name], 1e-5, name)


@pytest.mark.parametrize("method", SETTINGS)
def test_the_export_has_the_last_metrics_of_training(method, finished):
    run = finished(**SETTINGS[method])
    metrics = build.evaluate(run.config, run.workdir)
    last = {name: value for name, value in run.evaluations[-1].items() if name != "step"}
    assert metrics == pytest.approx(last, rel=1e-6, abs=1e-6)
    assert run.result.metrics == pytest.approx(last)
    record = json.loads((run.workdir / "evaluation.json").read_text())
    assert record["metrics"] == metrics
    assert record["examples"] == HELD_OUT


def test_the_command_evaluates_with_the_saved_state_of_the_method(finished, capsys):
    """BCO's reward shift goes on from the run's end; a model evaluated by itself begins with none."""
    run = finished(**SETTINGS["bco"])
    assert main(["evaluate", f"--workdir={run.workdir}"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    for name in ("eval_loss", "eval_delta"):
        assert metrics[name] == pytest.approx(run.evaluations[-1][name], rel=1e-6)
    saved, alone = run.manifest["method_state"], build.evaluate(run.config, model=str(run.workdir / "export"))
    assert saved["count"] == 9 * 16
    total = saved["mean"] * saved["count"] + alone["eval_delta"] * HELD_OUT
    assert metrics["eval_delta"] == pytest.approx(total / (saved["count"] + HELD_OUT), rel=1e-5)
    assert metrics["eval_delta"] != pytest.approx(alone["eval_delta"], rel=1e-3)  # or the above would say nothing


def test_the_best_checkpoint_is_evaluated_with_its_own_state(finished):
    """Unlikely answers grow unlikelier, so the checkpoint that finds the rejected ones likeliest is not the last."""
    best = {"train__best_metric": "eval_logps/rejected", "train__eval_every": 3, "optimizer__learning_rate": 5e-3}
    run = finished(**SETTINGS["bco"], **best)
    chosen = max(run.evaluations, key=lambda row: row["eval_logps/rejected"])
    assert chosen["step"] < 9
    assert run.manifest["method_state"]["count"] == chosen["step"] * 16
    metrics = build.evaluate(run.config, run.workdir)
    assert metrics == pytest.approx({name: value for name, value in chosen.items() if name != "step"}, rel=1e-5)


def test_the_start_evaluates_as_the_reference(configure, world):
    metrics = build.evaluate(configure())
    assert metrics["eval_loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert metrics["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["eval_kl/sequence"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["eval_ranking/accuracy"] == metrics["eval_ranking/reference_accuracy"]
    other = build.evaluate(configure(), model=str(world.twin))
    assert abs(other["eval_kl/sequence"]) > 0.1
    assert other["eval_ranking/reference_accuracy"] == metrics["eval_ranking/accuracy"]


def test_nothing_to_evaluate(configure, tmp_path):
    with pytest.raises(DataError, match="no held-out examples"):
        build.evaluate(configure(data__eval_size=0))
    with pytest.raises(ConfigError, match="no export"):
        build.evaluate(configure(), tmp_path)
    with pytest.raises(ConfigError, match="moving"):
        build.evaluate(configure(reference__mode="moving"))


def test_a_held_out_file_of_its_own(configure, world, finished):
    """Prompts that are also held out are refused, or left out of the training data."""
    config = configure(data__eval=[str(world.pairs)], data__eval_size=0)
    with pytest.raises(DataError, match="train/eval overlap"):
        build.evaluate(config)
    data = dataclasses.replace(config.data, on_bad="drop")
    with pytest.raises(DataError, match="every prompt is also held out"):
        build.evaluate(dataclasses.replace(config, data=data))


def test_a_head_that_the_model_does_not_have_is_told(configure, world, caplog):
    """Else the numbers of a head drawn at random would be taken for the model's."""
    config = configure(method__name="reward_model")
    build.evaluate(config, model=str(world.twin))
    assert "has no head such as reward_model trains" in caplog.text
    caplog.clear()
    build.evaluate(configure(), model=str(world.twin))
    assert not caplog.text
