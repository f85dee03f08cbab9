"""The quick start: its world, the stages of its models, what it measures, and that the whole of it runs."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.config import from_dict
from jaxalign.config_transport import load_study
from jaxalign.data.synthetic import check
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError
from jaxalign.models.huggingface import read_config, save_pretrained
from jaxalign.models.policy import build_policy
from jaxalign.quickstart import likelihoods, program, questions, settings, stages, worlds
from jaxalign.quickstart.study import quickstart_study
from jaxalign.sampling.engine import Completion
from jaxalign.studies.study import Stage, Subject
from jaxalign.training.mesh import make_mesh

SIZES = {"documents": 300, "demonstrations": 300, "pairs": 64, "eval_pairs": 24, "questions": 40}
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
TINY |= {"num_key_value_heads": 1, "head_dim": 16}


@pytest.fixture(scope="module")
def small():
    """Small data and models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "CROWD", SIZES)
        patch.setattr(settings, "OTHERS", {k: {**v, "demonstrations": 300} for k, v in settings.OTHERS.items()})
        patch.setattr(settings, "ARCHITECTURE", settings.ARCHITECTURE | TINY)
        yield patch


@pytest.fixture(scope="module")
def world(tmp_path_factory, small) -> Path:
    folder = tmp_path_factory.mktemp("world")
    worlds.prepare(folder, seed=3)
    return folder


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    """A random model of the world."""
    policy = build_policy(read_config(world / "start"), dtype="float32")
    tokenizer = load_tokenizer(world / "crowd" / "tokenizer")
    folders = [tmp_path_factory.mktemp("model") for _ in range(2)]
    for seed, folder in enumerate(folders):
        save_pretrained(policy, policy.init(jax.random.key(seed)), folder, tokenizer=tokenizer)
    return folders


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_world_is_written_once(world):
    before = stamps(world)
    worlds.prepare(world, seed=3)
    assert stamps(world) == before


def test_another_seed_does_not_overwrite_the_world_that_models_were_trained_on(world):
    before = stamps(world)
    with pytest.raises(ConfigError, match="crowd: seed was 3, is 1"):
        worlds.prepare(world, seed=1)
    assert stamps(world) == before


def test_crowds_differ_as_they_should(world):
    """Tutors are better than the crowd, experts better still; talkers know as much as experts, and chat."""
    rates = {name: json.loads((world / name / "world.json").read_text()) for name in worlds.crowds()}
    right = {name: rate["demonstrations_right"] for name, rate in rates.items()}
    exact = {name: rate["demonstrations_exact"] for name, rate in rates.items()}
    assert right["crowd"] < right["tutors"] < right["experts"]
    assert right["talkers"] == pytest.approx(right["experts"], abs=0.05)
    assert exact["talkers"] < 0.3 < exact["experts"]


def test_the_foreign_model_has_another_tokenizer_and_architecture(world):
    one, other = (load_tokenizer(world / name / "tokenizer") for name in ("crowd", "talkers"))
    assert one.get_vocab() != other.get_vocab()
    assert read_config(world / "start") != read_config(world / "foreign")


def flat(stage: Stage) -> list[Stage]:
    return [stage, *(inner for given in stage.inputs.values() for inner in flat(given))]


@pytest.mark.parametrize("method", ["dpo", "ipo", "kto", "cpo", "kto_pair", "probability"])
def test_stages_are_valid_configurations(method):
    reference = None if method in ("cpo", "probability") else stages.better("w", 2)
    top = stages.align("w", None, method, size=100, seed=2, options={"beta": 0.3}, reference=reference)
    for stage in flat(top):
        tree = {section: dict(values) for section, values in stage.config.items()}
        for path in stage.inputs:
            section, _, name = path.partition(".")
            tree.setdefault(section, {})[name] = "somewhere"
        config = from_dict(tree)
        assert config.data.seed == config.train.seed == 2
        assert config.model.dtype == "float32"
    assert top.config["method"] == {"name": method, "beta": 0.3}
    assert top.config["data"]["size"] == 100


def test_starts_share_their_base():
    for make in (stages.sft, stages.instruct, stages.better):
        assert make("w", 1).inputs["model.path"] == stages.base("w", 1)
    assert stages.align("w", seed=1).inputs["model.path"] == stages.sft("w", 1)


def test_a_section_can_be_changed():
    stage = stages.align("w", optimizer={"learning_rate": 1.0}, mesh={"data": 1})
    assert stage.config["optimizer"] == {**settings.PREFERENCES["optimizer"], "learning_rate": 1.0}
    assert stage.config["mesh"] == {"data": 1}


def test_the_study_has_every_combination_once(repository):
    study = load_study(f"{repository / 'configs' / 'studies' / 'quickstart.py'}:world=w,seed=4")
    labels = [dict(trial.labels) for trial in study.trials]
    assert all(label.pop("seed") == 4 for label in labels)
    grid = [label for label in labels if label["method"] != "none" and "reference" not in label]
    assert len({tuple(label.values()) for label in labels}) == len(labels) == 19
    assert len(grid) == 2 * 4 * 2
    starts = [trial.model for trial in study.trials[:2]]
    for trial in study.trials[2:]:
        assert isinstance(trial.model, Stage)
        assert trial.model.inputs["model.path"] in starts


def test_configurations_beside_the_quick_start_begin_from_its_model(tmp_path):
    export = tmp_path / "stages" / "sft-0123" / "export"
    assert settings.sections("dpo", tmp_path)["model"]["path"] == str(tmp_path / "sft" / "export")
    export.mkdir(parents=True)
    assert settings.sections("dpo", tmp_path)["model"]["path"] == str(export)
    assert settings.sections("sft", tmp_path)["model"]["path"] == str(tmp_path / "base" / "export")


def test_a_model_does_not_drift_from_itself_and_ranks_as_by_hand(world, model, tmp_path):
    crowd = world / "crowd"
    measure = questions.answers(crowd / "questions.jsonl", crowd / "eval_pairs.jsonl")
    same, other = (
        measure.run(Subject(model=str(model[0]), start=str(start), out=tmp_path / str(i)))
        for i, start in enumerate(model)
    )
    values = same.metrics["kl"].values
    assert values is not None
    assert np.abs(np.array(values, float)).max() < 1e-3
    assert other.metrics["kl"].value > 0.01
    assert same.metrics["exact"].n == SIZES["questions"]
    assert same.metrics["ranking"].values == other.metrics["ranking"].values
    assert same.metrics["reward_ranking"].value == 0
    # Of given text: true of a model that writes nonsense, too.
    assert {name for name, metric in same.metrics.items() if metric.of_given_text} == {"ranking", "reward_ranking"}
    assert sum(entry["n"] for entry in same.details["exact by task"].values()) == SIZES["questions"]
    assert len((tmp_path / "0" / "answers.jsonl").read_text().splitlines()) == SIZES["questions"]


def test_answers_are_scored_as_one_at_a_time(world):
    policy = build_policy(read_config(world / "start"), dtype="float32")
    variables = policy.init(jax.random.key(5))
    rng = np.random.default_rng(0)
    count = policy.config.vocab_size
    sizes = [(9, 4, 1), (3, 2, 7), (12, 5, 5)]
    examples = [tuple(rng.integers(1, count, size).tolist() for size in each) for each in sizes]
    found = likelihoods.Scorer(policy)(variables, examples)
    assert found.shape == (3, 2)
    for example, logps in zip(examples, found, strict=True):
        for completion, logp in zip(example[1:], logps, strict=True):
            tokens = np.zeros((1, 17), np.int32)
            tokens[0, : len(example[0]) + len(completion)] = [*example[0], *completion]
            scores = np.asarray(jax.nn.log_softmax(policy.logits(variables, tokens)[0]), np.float64)
            places = len(example[0]) - 1 + np.arange(len(completion))
            assert logp == pytest.approx(scores[places, completion].sum(), abs=1e-4)


def test_the_measure_is_known_by_its_files_contents(tmp_path):
    """Not by their places: another world's questions in the same place are another measure."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    early = questions.answers(one)
    one.write_text("{}\n")
    two.write_text("{}\n")
    assert dict(early.settings) == dict(questions.answers(two).settings)
    assert str(tmp_path) not in json.dumps(dict(early.settings))
    before = dict(early.settings)
    one.write_text('{"prompt": 1}\n')
    assert dict(questions.answers(one).settings) != before
    assert dict(questions.answers(two, two).settings) != dict(questions.answers(two).settings)


def test_an_answer_that_never_ends_is_not_exact(world, model, monkeypatch):
    tokenizer = load_tokenizer(model[0])
    asked = questions.read_questions(world / "crowd" / "questions.jsonl", tokenizer)

    def sample(policy, variables, prompts, **_):
        ids = [tokenizer(question.answer, add_special_tokens=False).input_ids for question in asked]
        ends = [index % 2 == 0 for index in range(len(ids))]
        tokens = [[*answer, tokenizer.eos_token_id] if end else answer for answer, end in zip(ids, ends, strict=True)]
        return [Completion(answer, [0.0] * len(answer), end) for answer, end in zip(tokens, ends, strict=True)]

    monkeypatch.setattr(questions, "sample", sample)
    policy = build_policy(read_config(model[0]), dtype="float32")
    said = questions.ask(policy, {}, asked, tokenizer, temperature=0.0)
    assert [answer.text for answer in said.answers] == [question.answer for question in asked]
    assert said.exact.tolist() == [index % 2 == 0 for index in range(len(asked))]
    assert all(check(question.prompt, answer.text).exact for question, answer in zip(asked, said.answers, strict=True))


@pytest.fixture
def quick_runs(monkeypatch):
    """Runs take one of the simulated devices, and compile quickly: they make a few steps."""
    # By import_module: the package holds the function of that name.
    monkeypatch.setattr(importlib.import_module("jaxalign.build.train"), "matmul_peak", lambda dtype: 1e9)
    alone = functools.partial(make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr("jaxalign.build.model.make_mesh", alone)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_runs")
def test_the_whole_quick_start_runs_and_goes_on(tmp_path, small, monkeypatch, capsys):
    few = {"train": {"batch_size": 8, "steps": 3, "log_every": 1}}
    for name in ("BASE", "SFT", "PREFERENCES"):
        monkeypatch.setattr(settings, name, getattr(settings, name) | few)
    monkeypatch.setattr(settings, "METHODS", ("cpo",))  # one more row is of dpo
    monkeypatch.setattr(settings, "BETAS", (0.5,))
    page = program.run(tmp_path, seed=3, jobs=1)
    printed = capsys.readouterr().out
    assert page == tmp_path / "report.html"
    assert "<html" in page.read_text()[:200]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["done"] * len(quickstart_study(tmp_path / "world", 3).trials)
    exact = rows[0]["results"]["answers"]["metrics"]["exact"]["value"]
    assert f"{100 * exact:.1f} [" in printed
    before = stamps(tmp_path / "stages")
    program.run(tmp_path, seed=3, jobs=1)
    assert stamps(tmp_path / "stages") == before
    with pytest.raises(ConfigError, match="seed was 3, is 4"):
        program.run(tmp_path, seed=4, jobs=1)
