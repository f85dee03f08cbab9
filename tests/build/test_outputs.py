"""What a run leaves behind: metrics, manifest, configuration, checkpoints, export; for every method alike."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import build, load_policy
from jaxalign.config import from_dict, read_json, resolve, to_dict
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError, ModelError
from jaxalign.methods import METHODS, Layout
from tests.build.conftest import HELD_OUT, ROWS, make_tokenizer, write_model
from tests.build.utilisation import assert_utilisation

LOGGED = {"step", "loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "entropy", "mean_token_accuracy"}
REWARDS = {"rewards/chosen", "rewards/rejected", "rewards/margins"}
LOGPS = {"logps/chosen", "logps/rejected"}
PAIRED = REWARDS | LOGPS | {"rewards/accuracies", "logits/chosen", "logits/rejected"}
SETTINGS = {"kto": {"train__batch_size": 16, "train__steps": 9}}


@pytest.mark.parametrize("method", ["sft", "dpo", "ipo", "cpo", "simpo", "kto"])
def test_methods_run_by_the_same_function_and_have_the_same_metrics(method, finished):
    """Those that learn from plain pairs, and have TRL's metrics; that every method trains is a test of its own."""
    run = finished(method__name=method, **SETTINGS.get(method, {}))
    steps = run.config.train.steps
    assert [row["step"] for row in run.steps] == list(range(1, steps + 1))
    assert [row["step"] for row in run.evaluations] == [steps]
    expected = {Layout.PAIRED: PAIRED, Layout.UNPAIRED: REWARDS | LOGPS, Layout.SINGLE: set()}[METHODS[method].layout]
    for row in run.steps:
        assert expected | LOGGED <= row.keys()
        assert all(np.isfinite(value) for value in row.values())
    evaluated = {f"eval_{name}" for name in (expected - {"logits/chosen", "logits/rejected"}) | {"loss"}}
    assert evaluated <= run.evaluations[0].keys()
    assert run.steps[-1]["epoch"] == pytest.approx(steps * run.config.train.batch_size / run.trained)
    assert run.manifest["status"] == "done"
    assert (run.workdir / "export" / "model.safetensors").is_file()
    assert_utilisation(run)
    if method != "kto":  # whose batches hold other examples each time
        assert np.mean([row["loss"] for row in run.steps[-2:]]) < np.mean([row["loss"] for row in run.steps[:2]])


def test_throughput_is_measured(finished):
    rows = [json.loads(line) for line in (finished().workdir / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "perf/tokens_per_second" in row]
    assert len(measured) >= len(rows) - 3
    names = {"perf/pairs_per_second", "perf/seconds_per_step", "perf/data_wait", "perf/padding", "perf/mfu"}
    names |= {"perf/fill", "perf/scored_fill"}
    assert all(names <= row.keys() for row in measured)


def test_tokens_are_counted_once_a_prompt(finished):
    run = finished()
    examples = build.check_data(run.config).train
    per_epoch = int(examples.prompt_lengths.sum() + examples.completion_lengths.sum())
    # 8 steps of 8 are two epochs of 32.
    assert run.steps[3]["num_tokens"] == per_epoch
    assert run.steps[7]["num_tokens"] == 2 * per_epoch


def test_the_manifest_says_what_the_run_was_made_of(finished, world):
    run = finished()
    manifest = run.manifest
    data = manifest["data"]
    assert (data["train"]["rows"], data["train"]["examples"], data["eval"]["examples"]) == (ROWS, ROWS - HELD_OUT, 8)
    assert data["train"]["dropped"] == {}
    assert data["train"]["template_hash"] is None
    assert data["train"]["data_hash"] != data["eval"]["data_hash"]
    assert len(data["train"]["tokenizer_hash"]) == len(manifest["reference"]["hash"]) == 64
    assert manifest["steps"] == 8
    assert manifest["resumed_at"] == 0
    assert manifest["device"]["platform"] == "cpu"
    assert {"python", "jax", "jaxlib", "flax", "optax", "grain"} <= manifest["versions"].keys()
    assert manifest["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(run.params))
    assert manifest["rows"]["row_counts"] == manifest["compiled"]["row_counts"]
    assert manifest["compiled"]["memory"]["temporary"] > 0
    assert manifest["metrics"] == pytest.approx(run.result.metrics)


def test_drops_are_in_the_manifest(configure, world, tmp_path):
    lines = world.pairs.read_text().splitlines()
    bad = [json.dumps({"prompt": "Why?\n", "chosen": "a", "rejected": "a"}), json.dumps({"prompt": "Why?\n"})]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:12], *bad]) + "\n")
    config = configure(
        data__train=[str(tmp_path / "bad.jsonl")], data__on_bad="drop", data__eval_size=0, train__steps=1,
        train__batch_size=8, train__export=False,
    )  # fmt: skip
    build.train(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["train"]
    assert (report["rows"], report["examples"], sum(report["dropped"].values())) == (14, 12, 2)
    assert report["dropped"]["identical pair"] == 1
    assert report["dropped_rows"]["identical pair"] == ["bad.jsonl row 13"]


def test_the_configuration_is_what_the_run_was(finished):
    run = finished()
    saved = read_json(run.workdir / "config.json")
    assert saved == resolve(run.config)
    assert from_dict(json.loads(json.dumps(to_dict(saved)))) == saved
    assert saved.method.options["beta"] == 0.1
    assert (saved.reference.source, saved.reference.mode) == ("policy", "cached")


def test_the_saved_configuration_gives_the_same_run_again(finished, tmp_path, start_run):
    run = finished()
    again = build.train(read_json(run.workdir / "config.json"), tmp_path)
    assert_equal(again.variables, run.params)


def test_the_export_is_the_trained_model(finished, world):
    run = finished()
    _, variables = load_policy(run.workdir / "export", dtype="float32")
    assert_equal(variables, run.params)
    theirs, ours = load_tokenizer(run.workdir / "export"), load_tokenizer(world.model)
    assert theirs.encode("what about the river?") == ours.encode("what about the river?")
    _, start = load_policy(world.model, dtype="float32")
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, run.params)
    assert all(change > 0 for change in jax.tree.leaves(moved))


def test_a_chat_template_stays_with_the_model(start_run, world):
    run = start_run(model__path=world.chat, data__train=[str(world.conversations)], data__eval_size=0, train__steps=1)
    assert run.manifest["data"]["train"]["template_hash"] is not None
    exported, start = (load_tokenizer(folder) for folder in (run.workdir / "export", world.chat))
    assert exported.chat_template == start.chat_template


def test_converting_a_run_or_a_checkpoint_gives_the_export(finished, tmp_path):
    run = finished()
    exported = load_file(run.workdir / "export" / "model.safetensors")
    for name, source in (("run", run.workdir), ("step", run.workdir / "checkpoints" / "8")):
        build.convert(source, tmp_path / name)
        for folder in (run.workdir / "export", tmp_path / name):
            assert (folder / "tokenizer.json").is_file()
        converted = load_file(tmp_path / name / "model.safetensors")
        assert_equal(converted, exported)
    build.convert(run.workdir / "export", tmp_path / "half", dtype="bfloat16")
    _, half = load_policy(tmp_path / "half", dtype="float32")
    assert_equal(half, jax.tree.map(lambda x: x.astype("bfloat16").astype(np.float32), run.params))


def test_converting_needs_a_checkpoint(finished, tmp_path):
    shutil.copy(finished().workdir / "config.json", tmp_path / "config.json")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        build.convert(tmp_path, tmp_path / "out")


def test_the_best_checkpoint_is_kept_and_exported(start_run, tmp_path):
    """With a rate so large that the last evaluation is not the best."""
    run = start_run(
        method__name="sft", optimizer__learning_rate=0.3, train__steps=4, train__eval_every=1,
        train__best_metric="eval_loss", train__checkpoint_every=4,
    )  # fmt: skip
    losses = {row["step"]: row["eval_loss"] for row in run.evaluations}
    best = min(losses, key=losses.__getitem__)
    assert best != 4, losses
    saved = sorted(int(path.name) for path in (run.workdir / "checkpoints").glob("*") if path.name.isdigit())
    assert saved == sorted({best, 4})
    metrics = build.evaluate(run.config, run.workdir)
    assert metrics["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    build.convert(run.workdir / "checkpoints" / str(best), tmp_path / "best")
    assert_equal(
        load_file(tmp_path / "best" / "model.safetensors"), load_file(run.workdir / "export" / "model.safetensors")
    )
    card = (run.workdir / "export" / "README.md").read_text()
    assert str(round(losses[best], 5)) in card
    assert f"for {best} steps" in card


def test_an_unknown_best_metric_is_refused(start_run):
    with pytest.raises(ConfigError, match=r"train.best_metric: got 'eval_los', expected one of .*eval_loss"):
        start_run(train__best_metric="eval_los", train__steps=1)


def test_a_finished_run_stays_as_it_is(finished, tmp_path):
    """The same call again takes no step: it finds the last checkpoint and writes the export anew."""
    run = finished()
    shutil.copytree(run.workdir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "export")
    again = build.train(run.config, tmp_path / "copy")
    assert_equal(again.variables, run.params)
    assert (tmp_path / "copy" / "metrics.jsonl").read_bytes() == (run.workdir / "metrics.jsonl").read_bytes()
    assert_equal(
        load_file(tmp_path / "copy" / "export" / "model.safetensors"),
        load_file(run.workdir / "export" / "model.safetensors"),
    )


def assert_equal(one, other) -> None:
    """Bit for bit."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def test_a_reward_model_that_could_not_be_exported_is_not_trained(configure, tmp_path):
    """Its tokenizer has no special token that could pad: known before the first step, not after the last."""
    tokenizer = make_tokenizer(320)
    tokenizer.bos_token = tokenizer.eos_token
    model = write_model(tmp_path / "model", tokenizer, seed=1)
    config = configure(method__name="reward_model", model__path=model)
    with pytest.raises(ModelError, match="a reward model needs a padding token"):
        build.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
