"""Measures of studies on real runs."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest

from jaxalign import build
from jaxalign.config import to_dict
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError
from jaxalign.evaluation.judge_settings import JudgeSettings
from jaxalign.evaluation.outcome import Outcome
from jaxalign.studies import measures
from jaxalign.studies.study import Subject
from tests.build.conftest import Judge, written_pairs


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


def test_values_of_pairs_have_the_metrics_as_their_means(run, world, tmp_path):
    own = measures.held_out().run(subject_of(run, world, tmp_path))
    again = measures.held_out(values=True).run(subject_of(run, world, tmp_path))
    assert again.metrics.keys() == own.metrics.keys()
    assert again.protocol == own.protocol
    for name, metric in again.metrics.items():
        assert metric.value == pytest.approx(own.metrics[name].value, abs=1e-4), name
        if metric.values is not None:
            assert len(metric.values) == metric.n == 8
            assert np.mean(np.array(metric.values, float)) == pytest.approx(metric.value, abs=1e-6), name
    kept = {name for name, metric in again.metrics.items() if metric.values is not None}
    assert {"rewards/accuracies", "ranking/accuracy", "ranking/accuracy_per_token", "kl/sequence"} <= kept
    metrics, values = build.evaluate_examples(run.config, run.workdir)
    assert {"eval_loss", "eval_logps/chosen", "eval_rewards/margins"} <= values.keys() <= metrics.keys()
    for name, each in values.items():
        assert each.mean() == pytest.approx(metrics[name], abs=1e-5), name
    margins = values["eval_rewards/chosen"] - values["eval_rewards/rejected"]
    assert again.metrics["rewards/accuracies"].values == (margins > 0).astype(float).tolist()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "rewards"),
        ({"method__name": "cpo"}, "own_rewards"),
        ({"reference__source": "none"}, "own_rewards"),
        ({"reference__source": "prior"}, "prior_rewards"),
    ],
)
def test_rewards_are_named_by_what_they_are_measured_against(changes, name, configure, tmp_path):
    data = {"examples": 4, "data_hash": "d", "template_hash": None, "tokenizer_hash": "t"}
    manifest = {"exported_step": 2, "data": {"eval": data}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found = {"eval_rewards/accuracies": 0.75, "eval_ranking/accuracy": 0.5, "eval_rewards/chosen": 0.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 2, **found}) + "\n")
    subject = Subject(model="m", config=configure(**changes), run=tmp_path, out=tmp_path)
    metrics = measures.held_out().run(subject).metrics
    assert list(metrics) == [f"{name}/accuracies", "ranking/accuracy", f"{name}/chosen"]
    assert (metrics[f"{name}/accuracies"].unit, metrics[f"{name}/accuracies"].higher_is_better) == ("share", True)
    assert (metrics[f"{name}/chosen"].unit, metrics[f"{name}/chosen"].higher_is_better) == ("reward", None)


def test_a_reference_reads_the_format_that_it_had_in_training(configure, world, tmp_path, monkeypatch):
    """The start's folder may have another one, or none."""
    asked = []

    def stop(config, *_, **__):
        asked.append((config.model.chat_template, config.reference.source, config.reference.chat_template))
        raise InterruptedError

    monkeypatch.setattr(build, "check_data", stop)
    monkeypatch.setattr(build, "token_shift", stop)
    start, export, pairs = str(world.model), str(world.twin), str(world.pairs)
    tree = {"data": {"train": [pairs], "eval": [pairs]}, "method": {"name": "dpo"}}
    for changes, wanted in (
        ({"model__chat_template": "chatml"}, (start, "chatml")),
        ({"reference__source": str(world.twin), "reference__chat_template": "chatml"}, (str(world.twin), "chatml")),
    ):
        config = configure(**changes)
        reference = wanted[0]
        subject = Subject(model=export, start=start, reference=reference, config=config, run=tmp_path, out=tmp_path)
        with pytest.raises(InterruptedError):
            measures.held_out(tree, always=True).run(subject)
        assert asked.pop()[1:] == wanted
    subject = Subject(model=export, start=start, config=configure(model__chat_template="chatml"), out=tmp_path)
    with pytest.raises(InterruptedError):
        measures.token_shift(pairs).run(subject)
    assert asked.pop() == ("chatml", start, None)  # a live reference reads the model's own tokens


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


def test_token_shift_equals_the_plain_path(run, world, tmp_path):
    """The mean shift of each completion, and its end token, one sequence at a time."""
    subject = subject_of(run, world, tmp_path)
    found = measures.token_shift(min_count=3, top=1000, dtype="float32").run(subject)
    policy, reference = Judge.of(run.workdir / "export"), Judge.of(world.model)
    pairs = {pair["prompt"]: pair for pair in written_pairs()}
    examples = build.check_data(run.config).held_out
    assert examples is not None
    wanted = {name: [] for name in ("shift/chosen", "shift/rejected", "end/logp/chosen", "end/margin")}
    for example in examples:
        prompt = load_tokenizer(world.model).decode(example.prompt).removeprefix("<s>")
        own, theirs = policy.pair_logps(pairs[prompt]), reference.pair_logps(pairs[prompt])
        for name, k in (("shift/chosen", 0), ("shift/rejected", 1)):
            wanted[name].append((own[k] - theirs[k]).mean())
        wanted["end/logp/chosen"].append(own[0][-1])
        wanted["end/margin"].append(own[0][-1] - own[1][-1])
    for name, values in wanted.items():
        assert found.metrics[name].values == pytest.approx(values, abs=1e-4), name
    end = next(row for row in found.details["top_tokens"] if row["token"] == "</s>")
    assert end["count"] == 2 * len(examples)
    assert found.protocol["data_hash"] == run.manifest["data"]["eval"]["data_hash"]
    assert (found.protocol["against"], found.notes) == ("start", [])
    json.dumps(found.as_dict(), allow_nan=False)

    given = measures.token_shift(world.pairs, count=4, dtype="float32", min_count=1000)
    other = given.run(subject)
    assert other.metrics["shift/chosen"].n == 4
    assert other.notes == ["no token stands in 1000 places, so none is ranked"]
    section = {"train": ["unread.jsonl"], "eval": [str(world.pairs)], "max_length": 200}
    again = measures.token_shift(section, count=4, dtype="float32", min_count=1000).run(subject)
    assert again.metrics == other.metrics
    start = given.run(Subject(model=str(world.model), out=tmp_path))
    assert start.metrics["shift/chosen"].values == [0.0] * 4
    assert other.metrics["end/reference_logp/chosen"] == start.metrics["end/logp/chosen"]
    with pytest.raises(ConfigError, match="no held-out data of its own"):
        measures.token_shift().run(Subject(model=str(world.model), out=tmp_path))
    with pytest.raises(ConfigError, match="whose tokenizer is not the policy's"):
        measures.token_shift(world.pairs, against=str(world.foreign)).run(subject)


def test_generations_are_measured_from_the_reference_or_the_start(world, tmp_path, monkeypatch):
    """What the measure asks for; what comes of it, tests/build/test_generations.py tells."""
    asked = []
    monkeypatch.setattr(build, "generations", lambda *a, **k: asked.append((a, k)) or Outcome(metrics={}))
    measure = measures.generations(world.pairs, count=3, temperature=0.5, name="texts")
    both = {"model": "m", "start": "s", "out": tmp_path, "seed": 7}
    for against, subject, other in (
        ("reference", Subject(**both, reference="r"), "r"),
        ("reference", Subject(**both), "s"),
        ("start", Subject(**both, reference="r"), "s"),
        ("reference", Subject(model="m", out=tmp_path), None),
        (None, Subject(**both, reference="r"), None),
        ("twin", Subject(**both, reference="r"), "twin"),
    ):
        outcome = measures.generations(world.pairs, count=3, temperature=0.5, against=against).run(subject)
        assert outcome.protocol["against"] == against
        (arguments, options) = asked[-1]
        assert arguments == ("m", [str(world.pairs)])
        assert options["reference"] == other
        assert (options["count"], options["sampling"].temperature, options["out"]) == (3, 0.5, tmp_path)
        assert options["sampling"].seed == subject.seed
    assert measure.name == "texts"


def test_settings_know_models_by_their_content(world):
    def settings(against):
        return dict(measures.generations(world.pairs, against=against).settings)

    assert settings("start")["against"] == "start"
    assert settings(None)["against"] is None
    assert settings(str(world.twin)) != settings(str(world.model))
    assert str(world.folder) not in json.dumps(settings(str(world.twin)))


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
    assert before["data.eval_size"] == 2
    assert before != dict(measures.held_out(tree, always=True).settings)
    first.write_text('"three"\n')
    assert dict(measures.held_out(tree).settings) != before
    assert dict(measures.token_shift(first).settings) != dict(measures.token_shift(second).settings)
    (tmp_path / "folder").mkdir()
    before = dict(measures.mt_bench(tmp_path / "folder").settings)
    (tmp_path / "folder" / "question.jsonl").write_text("{}")
    assert dict(measures.mt_bench(tmp_path / "folder").settings) != before


def test_suites_and_judges_are_called_with_everything(tmp_path, monkeypatch):
    """Every setting reaches what it is a setting of, by its name there; so does the subject."""
    from jaxalign.build import benchmarks, judged

    asked = []

    def spy(module, name):
        signature = inspect.signature(getattr(module, name))

        def called(*arguments, **options):
            asked.append(signature.bind(*arguments, **options).arguments)
            return Outcome(metrics={})

        monkeypatch.setattr(module, name, called)

    spy(benchmarks, "run_benchmarks")
    spy(judged, "mt_bench")
    spy(judged, "alpaca_eval")
    judge = JudgeSettings(model="j", base_url="http://localhost:1", timeout=3)
    subject = Subject(model="m", out=tmp_path, seed=4)
    for measure, changed in (
        (measures.suite("quick", "F", limit=3), {"benchmarks": "F", "limit": 3}),
        (measures.mt_bench("F", judge, limit=2, repeats=2), {"folder": "F", "limit": 2, "repeats": 2}),
        (measures.alpaca_eval("D", judge, judge_prompt="P", weights="W"), {"data": "D", "judge_prompt": "P"}),
    ):
        measure.run(subject)
        given = asked[-1]
        assert (given["model"], given["out"], given["seed"]) == ("m", tmp_path, 4)
        assert changed.items() <= given.items()
        assert given.get("judge") == (None if measure.name == "quick" else judge)
        settings = json.loads(json.dumps(dict(measure.settings)))
        assert {name: settings[name] for name in given.keys() & settings.keys() - {"judge", "benchmarks"}} == {
            name: given[name] for name in given.keys() & settings.keys() - {"judge", "benchmarks"}
        }
        # All that it was given counts, but how fast it goes and where it goes to.
        free = {"model", "out", "seed", "batch_size", "batch_tokens", "suite"}
        assert given.keys() - free <= settings.keys() | ({"benchmarks"} if measure.name == "quick" else set())
    slower = JudgeSettings(model="j", base_url="http://localhost:1", timeout=9)
    other = JudgeSettings(model="k", base_url="http://localhost:1")
    assert dict(measures.mt_bench("F", judge).settings) == dict(measures.mt_bench("F", slower).settings)
    assert dict(measures.mt_bench("F", judge).settings) != dict(measures.mt_bench("F", other).settings)
    quick = dict(measures.suite("quick").settings)["benchmarks"]
    assert [each["task"] for each in quick][:2] == ["arc_easy", "hellaswag"]
    with pytest.raises(ConfigError, match="Did you mean 'study1'"):
        measures.suite("study")
