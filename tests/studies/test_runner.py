"""What runs, what does not run twice, and what becomes of failures: in one process, with stand-ins for training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxalign.errors import ConfigError, NumericsError
from jaxalign.evaluation.outcome import Metric, Outcome
from jaxalign.studies import rows
from jaxalign.studies.make_row import subject
from jaxalign.studies.runner import prepared, run_shared, run_study
from jaxalign.studies.study import Measure, Published, Stage, Study, Subject, Trial
from jaxalign.training.loop import Interrupted
from tests.studies.stand_ins import Trainings


@pytest.fixture
def trainings(monkeypatch) -> Trainings:
    made = Trainings()
    monkeypatch.setattr("jaxalign.build.train", made.train)
    monkeypatch.setattr("jaxalign.build.cache_reference", made.cache_reference)
    return made


@pytest.fixture
def files(tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    return tmp_path


class Ruler:
    """A measure that counts, and fails where it is told to."""

    def __init__(self):
        self.subjects: list[Subject] = []
        self.fails: dict[str, Exception] = {}

    def __call__(self, subject: Subject) -> Outcome:
        self.subjects.append(subject)
        for word, error in self.fails.items():
            if word in subject.model:
                raise error
        assert subject.out.is_dir()
        return Outcome(metrics={"x": Metric(value=0.5, n=2, values=[0.0, 1.0])}, protocol={"shots": 0})


@pytest.fixture
def ruler() -> Ruler:
    return Ruler()


def make_study(files, ruler, *, betas=(0.1, 0.2), seeds=(0,), mode="cached", **changes) -> Study:
    data = {"train": [str(files / "pairs.jsonl")]}
    sft = Stage(name="sft", config={"model": {"path": str(files / "model")}, "data": data, "method": {"name": "sft"}})

    def align(beta, seed):
        tree = {
            "data": data,
            "method": {"name": "dpo", "beta": beta},
            "train": {"seed": seed},
            "reference": {"mode": mode},
        }
        return Stage(name="align", config=tree, inputs={"model.path": sft})

    trials = [Trial(labels={"method": "none"}, model=str(files / "model"))]
    trials += [
        Trial(labels={"method": "dpo", "beta": beta, "seed": seed}, model=align(beta, seed))
        for beta in betas
        for seed in seeds
    ]
    return Study(
        **{
            "name": "small",
            "question": "q?",
            "trials": tuple(trials),
            "measures": (Measure(name="m", run=ruler),),
            "headline": "m/x",
            "notes": ("a note",),
            "published": (Published(labels={"method": "dpo"}, metric="x", value=None, source="table 1"),),
            **changes,
        }
    )


def status(found) -> list[str]:
    return [row["status"] for row in found]


def test_shared_work_is_done_once_and_nothing_is_done_twice(files, ruler, trainings):
    study, lines = make_study(files, ruler, betas=(0.1, 0.2, 0.3)), []
    found = run_study(study, files / "w", show=lines.append)
    assert status(found) == ["done"] * 4
    assert [name.partition("-")[0] for name in trainings.trained] == ["sft", "align", "align", "align"]
    assert trainings.filled == [None]
    assert len(ruler.subjects) == 4
    assert lines[-1].startswith("row 4/4 method=dpo beta=0.3 seed=0: m/x 0.5")
    before = (files / "w" / "rows.jsonl").read_text()
    assert run_study(study, files / "w") == found
    assert (len(trainings.trained), len(ruler.subjects)) == (4, 4)
    assert (files / "w" / "rows.jsonl").read_text() == before


def test_what_a_row_says(files, ruler, trainings):
    _, row, _ = run_study(make_study(files, ruler), files / "w")
    assert row == rows.read(files / "w")[1]
    assert row["study"] == {
        "name": "small", "question": "q?", "headline": "m/x", "compare": "method", "notes": ["a note"],
        "published": [
            {"labels": {"method": "dpo"}, "metric": "x", "value": None, "source": "table 1", "ours": None, "unit": "%"},
        ],
    }  # fmt: skip
    assert (row["row"], row["labels"]) == ("dpo-beta0.1-seed0", {"method": "dpo", "beta": 0.1, "seed": 0})
    assert (row["status"], row["error"]) == ("done", None)
    sft, align = row["stages"]
    assert row["model"] == f"stages/align-{align['key']}/export"
    assert align["config"]["model"]["path"] == f"stages/sft-{sft['key']}/export"
    assert align["config"]["reference"]["cache_dir"] == "cache"
    assert (align["steps"], align["examples"], align["tokens"], align["seconds"]) == (3, 4, 20, 1.5)
    assert align["curves"] == {"train/step": [1, 2, 3], "train/loss": [1.0, 0.5, 0.333333]}
    result = row["results"]["m"]
    assert result["metrics"]["x"] == {"value": 0.5, "n": 2, "values": [0.0, 1.0], "unit": "share"}
    assert result["protocol"] == {"shots": 0}
    assert {"seconds"} < result.keys()
    assert {"started", "finished", "seconds"} < row.keys()


def test_what_a_measure_gets(files, ruler, trainings):
    run_study(make_study(files, ruler, betas=(0.1,), seeds=(7,)), files / "w")
    plain, trained = ruler.subjects
    assert (plain.model, plain.reference, plain.start, plain.config, plain.run, plain.seed) == (
        str(files / "model"), None, None, None, None, 0,
    )  # fmt: skip
    assert trained.config is not None
    assert trained.start == trained.reference == trained.config.model.path
    assert trained.model == str(trained.run) + "/export"
    assert trained.seed == 7
    assert trained.out.parent == files / "w" / "measures"
    plan = prepared(make_study(files, ruler, betas=(0.1,), seeds=(7,)), files / "w")
    assert subject(plan, plan.rows[1], "m") == trained


def test_equal_models_are_measured_once(files, ruler, trainings):
    study = make_study(files, ruler, betas=(0.1,))
    (base, aligned) = study.trials
    again = Trial(labels={"method": "dpo", "beta": 0.1, "seed": 0, "set": "again"}, model=aligned.model)
    found = run_study(make_study(files, ruler, trials=(base, aligned, again)), files / "w")
    assert status(found) == ["done"] * 3
    assert len(ruler.subjects) == 2
    assert found[1]["results"] == found[2]["results"]


def test_a_failing_shared_stage_fails_its_rows_and_is_tried_once(files, ruler, trainings):
    trainings.fails["sft"] = NumericsError("step 3: the loss is nan")
    study = make_study(files, ruler)
    found = run_study(study, files / "w")
    assert status(found) == ["done", "failed", "failed"]
    assert len(trainings.trained) == 1
    for row in found[1:]:
        assert row["error"] == {
            "stage": "sft", "type": "NumericsError", "message": "step 3: the loss is nan", "stderr": [],
        }  # fmt: skip
        assert (row["stages"], row["results"]) == ([], {})
    assert run_study(study, files / "w") == found
    assert len(trainings.trained) == 1
    trainings.fails.clear()
    assert status(run_study(study, files / "w", retry_failed=True)) == ["done"] * 3
    assert [name.partition("-")[0] for name in trainings.trained] == ["sft", "sft", "align", "align"]


def test_a_row_that_fails_keeps_what_it_has(files, ruler, trainings):
    ruler.fails["align"] = RuntimeError("the ruler is lost")
    measures = (Measure(name="m", run=ruler), Measure(name="fine", run=Ruler()))
    _, row = run_study(make_study(files, ruler, betas=(0.1,), measures=measures), files / "w")
    assert (row["error"]["stage"], row["error"]["type"], row["error"]["message"]) == (
        "measure m", "RuntimeError", "the ruler is lost",
    )  # fmt: skip
    assert any("raise error" in line for line in row["error"]["stderr"])
    assert list(row["results"]) == ["fine"]
    assert [stage["name"] for stage in row["stages"]] == ["sft", "align"]


def test_a_measure_that_gives_something_else(files, trainings):
    study = make_study(files, lambda subject: {"x": 1}, betas=())
    (row,) = run_study(study, files / "w")
    assert row["error"]["message"] == "measure 'm' gave a dict, expected an Outcome."


def test_an_interruption_writes_no_row(files, ruler, trainings):
    trainings.fails["align"] = Interrupted(4)
    with pytest.raises(Interrupted):
        run_study(make_study(files, ruler), files / "w")
    assert [row["row"] for row in rows.read(files / "w")] == ["none"]
    assert not list((files / "w" / "stages").glob("*.failed.json"))
    trainings.fails.clear()
    assert status(run_study(make_study(files, ruler), files / "w")) == ["done"] * 3


def test_a_model_that_is_not_whole_is_trained_again(files, ruler, trainings):
    study = make_study(files, ruler)
    first = run_study(study, files / "w")
    (export,) = (files / "w" / "stages").glob("sft-*/export")
    (export / "model.safetensors").unlink()
    (files / "w" / "rows" / "dpo-beta0.2-seed0.json").unlink()
    half = export.parent / ".export.writing-123"
    half.mkdir()
    again = run_study(study, files / "w")
    assert [rows.comparable(row) for row in again] == [rows.comparable(row) for row in first]
    assert [name.partition("-")[0] for name in trainings.trained] == ["sft", "align", "align", "sft"]
    assert not half.exists()


def test_a_folder_that_holds_another_run_is_an_error(files, ruler, trainings):
    study = make_study(files, ruler, betas=(0.1,))
    run_study(study, files / "w")
    (config,) = (files / "w" / "stages").glob("align-*/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"optimizer": {"learning_rate": 1.0}}))
    (files / "w" / "rows" / "dpo-beta0.1-seed0.json").unlink()
    _, row = run_study(study, files / "w")
    assert row["error"]["type"] == "ConfigError"
    assert "holds a run of another configuration" in row["error"]["message"]
    assert "optimizer.learning_rate: was 1.0, is 1e-06" in row["error"]["message"]


def test_the_folder_of_another_study_is_refused(files, ruler, trainings):
    run_study(make_study(files, ruler, betas=()), files / "w")
    with pytest.raises(ConfigError, match="holds the study 'small', and this is 'large'"):
        run_study(make_study(files, ruler, name="large"), files / "w")


def test_parts_of_a_study_in_one_folder(files, ruler, trainings):
    everything = run_study(make_study(files, ruler, betas=(0.1, 0.2)), files / "w")
    part = make_study(files, ruler, betas=(0.2, 0.3), notes=("another note",))
    found = run_study(part, files / "w")
    assert [row["row"] for row in found] == [
        "none", "dpo-beta0.2-seed0", "dpo-beta0.3-seed0", "dpo-beta0.1-seed0",
    ]  # fmt: skip
    assert {row["study"]["notes"][0] for row in found} == {"another note"}
    assert len(ruler.subjects) == 4
    assert prepared(part, files / "w").outside == 1
    again = run_study(make_study(files, ruler, betas=(0.1, 0.2)), files / "w")
    assert again[:3] == everything
    assert again == rows.collect_folder(files / "w")


def test_preparation_comes_first(files, ruler, trainings):
    def prepare():
        (files / "pairs.jsonl").write_text("{}\n")

    (files / "pairs.jsonl").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        run_study(make_study(files, ruler), files / "w")
    assert status(run_study(make_study(files, ruler, prepare=prepare), files / "w")) == ["done"] * 3


def test_shared_stages_alone(files, ruler, trainings):
    plan = prepared(make_study(files, ruler), files / "w")
    assert run_shared(plan) == []
    assert [name.partition("-")[0] for name in trainings.trained] == ["sft"]
    assert trainings.filled == [None]
    assert not (files / "w" / "rows").exists()
    trainings.fails["sft"] = ValueError("no")
    plan = prepared(make_study(files, ruler), files / "other")
    assert [name.partition("-")[0] for name in run_shared(plan)] == ["sft", "reference"]
    assert len(trainings.trained) == 2
