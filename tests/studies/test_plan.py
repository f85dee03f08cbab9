"""Keys, shared work, and everything that is wrong with a study, before anything runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jaxalign.errors import ConfigError
from jaxalign.evaluation.judge_settings import JudgeSettings
from jaxalign.evaluation.outcome import Outcome
from jaxalign.studies import measures, plan_text, rows
from jaxalign.studies.folders import write_json
from jaxalign.studies.held_out import held_out
from jaxalign.studies.hub import commits_now
from jaxalign.studies.identity import row_ids
from jaxalign.studies.plan import make_plan, unfinished
from jaxalign.studies.plan_text import plan_lines
from jaxalign.studies.runner import begin, groups, part, read_shard
from jaxalign.studies.study import Measure, Published, Stage, Study, Trial


@pytest.fixture
def files(tmp_path) -> Path:
    """Files that a plan reads: it looks at their bytes only."""
    folder = tmp_path / "files"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return folder


def sft(files, **changes) -> Stage:
    tree = {"model": {"path": str(files / "model")}, "data": {"train": [str(files / "pairs.jsonl")]}}
    return Stage(name="sft", config={**tree, "method": {"name": "sft"}, **changes})


def align(files, start=None, method="dpo", data=None, reference=None, inputs=None, train=None, **options) -> Stage:
    config = {
        "data": {"train": [str(files / "pairs.jsonl")], **(data or {})},
        "method": {"name": method, **options},
        "reference": {"mode": "live"} if reference is None else reference,  # a cached one would be filled first
        "train": train or {},
    }
    if start is None:
        config["model"] = {"path": str(files / "model")}
    return Stage(name="align", config=config, inputs={**({"model.path": start} if start else {}), **(inputs or {})})


def measure(name="m", **settings) -> Measure:
    return Measure(name=name, run=lambda subject: Outcome(metrics={}), settings=settings)


def study_of(*trials: Trial, **changes) -> Study:
    return Study(
        **{
            "name": "s",
            "question": "q?",
            "trials": trials,
            "measures": (measure(),),
            "headline": "m/x",
            "compare": next(iter(trials[0].labels)),
            **changes,
        }
    )


def plan_of(tmp_path, *models: Stage | str):
    return make_plan(study_of(*(Trial(labels={"n": i}, model=m) for i, m in enumerate(models))), tmp_path / "w")


def keys(plan) -> list[str]:
    return [row.model for row in plan.rows]


def problems_of(study: Study, tmp_path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make_plan(study, tmp_path / "w")
    return list(caught.value.problems)


def test_equal_stages_are_one_run_however_they_are_written(files, tmp_path):
    plan = plan_of(
        tmp_path,
        align(files, sft(files), beta=0.1),
        align(files, sft(files, mesh={"data": 4, "fsdp": 1}, logging={"progress": False}), beta=0.1),
        align(files, sft(files, train={"log_every": 3}), beta=0.2),
        align(files, sft(files, train={"epochs": 1}), beta=0.2, label_smoothing=0),
    )
    one, two, three, four = keys(plan)
    assert one == two
    assert three == four != one
    assert [(stage.name, len(stage.rows)) for stage in plan.stages.values()] == [("sft", 4), ("align", 2), ("align", 2)]
    assert [stage.name for stage in plan.shared] == ["sft", "align", "align"]


def test_what_decides_a_run_decides_its_key(files, tmp_path):
    changes = [
        {},
        {"beta": 0.2},
        {"method": "ipo"},
        {"data": {"seed": 1}},
        {"data": {"size": 1}},
        {"train": {"seed": 1}},
    ]
    changes += [{"start": sft(files)}, {"start": sft(files, train={"steps": 3})}, {"reference": {"source": "prior"}}]
    found = keys(plan_of(tmp_path, *(align(files, **change) for change in changes)))
    assert len(set(found)) == len(changes)


def test_a_key_is_of_contents_not_of_places(files, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(files, moved)
    before = keys(plan_of(tmp_path / "one", align(files, sft(files)), str(files / "model")))
    assert keys(plan_of(tmp_path / "two", align(moved, sft(moved)), str(moved / "model")))[0] == before[0]
    (moved / "model" / "README.md").write_text("says nothing of the weights")
    assert keys(plan_of(tmp_path / "two", align(moved, sft(moved))))[0] == before[0]
    for file, text in (("pairs.jsonl", '{"prompt": "other"}\n'), ("model/model.safetensors", "other")):
        (moved / file).write_text(text)
        after = keys(plan_of(tmp_path / "three", align(moved, sft(moved))))[0]
        assert after != before[0]
        before = [after]


def test_a_change_of_large_weights_is_seen_wherever_it_is(files, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxalign.files.LARGE", 2**16)
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    path = files / "model" / "model.safetensors"
    found = []
    for place in (None, 0, 70_001, 2**18 - 1):
        content = bytearray(2**18)
        if place is not None:
            content[place] = 1
        path.write_bytes(content)
        found.append(keys(plan_of(tmp_path, align(files)))[0])
    assert len(set(found)) == 4


def test_a_method_of_ones_own_is_known_by_its_source(files, tmp_path, monkeypatch):
    source = """
from jaxalign.methods import METHODS
import dataclasses
MINE = dataclasses.replace(METHODS["dpo"], name="mine")
"""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "my_methods_of_a_plan.py"
    file.write_text(source)

    def key():
        name = "my_methods_of_a_plan:MINE"
        held = held_out({"data": {"train": [str(files / "pairs.jsonl")]}, "method": {"name": name}})
        study = study_of(
            Trial(labels={"n": 0}, model=align(files, method=name)), measures=(held,), headline="held_out/x"
        )
        (row,) = make_plan(study, tmp_path / "w").rows
        return row.model, dict(held.settings)["method.name"]

    before = key()
    assert key() == before
    file.write_text(source + "# changed\n")
    after = key()
    assert after[0] != before[0]
    assert after[1] != before[1]
    assert list(after[1]["sources"]) == ["my_methods_of_a_plan"]


def test_a_name_of_the_hub_stands_for_the_first_commit_that_was_seen(files, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)

    def download(kind, name, commit):
        refs = tmp_path / "hub" / f"{kind}s--{name.replace('/', '--')}" / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        (refs / "main").write_text(commit)

    def plan():
        stage = Stage(
            name="align",
            config={"model": {"path": "some/model"}, "data": {"train": ["some/pairs"]}, "method": {"name": "dpo"}},
        )
        trials = [Trial(labels={"n": 0}, model=stage), Trial(labels={"n": 1}, model="some/model")]
        shift = measures.generations("some/pairs", against="other/model")
        made = make_plan(study_of(*trials, measures=(shift,), headline="generations/x"), tmp_path / "w")
        return made, [row.key for row in made.rows]

    one, two = "1" * 40, "2" * 40
    made, before = plan()
    assert made.commits == dict.fromkeys(("model some/model", "dataset some/pairs", "model other/model"))
    assert "hub, by name, for no commit is in the cache: some/model, some/pairs, other/model" in "\n".join(
        plan_text._commits(made)
    )
    # Downloading changes no key, before and after it is on record.
    download("model", "some/model", one)
    (tmp_path / "datasets" / "some___pairs" / "default" / "0.0.0" / one).mkdir(parents=True)
    assert plan()[1] == before
    begin(plan()[0])
    made, again = plan()
    assert again == before
    assert made.commits["dataset some/pairs"] == made.commits["model some/model"] == one
    assert commits_now(made.commits) == made.commits
    # Another commit does, and only of what reads it.
    download("model", "other/model", one)
    begin(made)
    download("model", "other/model", two)
    assert all(a != b for a, b in zip(plan()[1], before, strict=True))
    download("model", "other/model", one)
    download("dataset", "some/pairs", two)
    changed = plan()[0]
    assert changed.rows[0].model != made.rows[0].model
    assert changed.rows[1].model == made.rows[1].model


def test_inputs_are_paths_of_the_models_to_be_made(files, tmp_path):
    other = sft(files, train={"seed": 5})
    plan = plan_of(tmp_path, align(files, sft(files), reference={}, inputs={"reference.source": other}))
    first, second, fill, last = plan.stages.values()
    assert last.inputs == {"model.path": first.key, "reference.source": second.key} == fill.inputs
    assert last.config.model.path == str(tmp_path / "w" / "stages" / f"sft-{first.key}" / "export")
    assert last.config.reference.mode == "cached"
    assert last.config.reference.cache_dir == str(tmp_path / "w" / "cache")
    assert plan.rows[0].stages == tuple(plan.stages)
    assert (fill.name, fill.kind) == ("reference", "reference")


def test_one_fill_serves_all_betas_methods_and_smaller_sizes(files, tmp_path):
    cached = {"mode": "cached"}
    stages = [
        align(files, method=method, beta=beta, reference=cached, data={"size": size})
        for method in ("dpo", "ipo")
        for beta in (0.1, 0.2)
        for size in (3, 9)
    ]
    (fill,) = (s for s in plan_of(tmp_path, *stages).stages.values() if s.kind == "reference")
    assert fill.config.data.size == 9
    assert len(fill.rows) == 8


def test_a_seed_needs_a_fill_of_its_own_only_where_it_chooses_the_examples(files, tmp_path):
    def fills(sizes, seeds, **more):
        stages = [
            align(files, reference={"mode": "cached"}, data={"size": size, "seed": seed}, **more)
            for size in sizes
            for seed in seeds
        ]
        return [s.config.data.size for s in plan_of(tmp_path, *stages).stages.values() if s.kind == "reference"]

    assert fills([4, 7], [0, 1]) == [7, 7]
    assert fills([4, None], [0, 1]) == [None]
    # kto puts other completions behind the prompts in every epoch.
    assert len(fills([4, 7], [0, 1], method="kto")) == 4


def test_live_references_and_columns_need_no_fill(files, tmp_path):
    plan = plan_of(tmp_path, align(files), align(files, reference={"source": "none"}), align(files, method="simpo"))
    assert {stage.kind for stage in plan.stages.values()} == {"train"}


def test_all_problems_of_all_rows_at_once(files, tmp_path):
    bad = align(files, sft(files, method={"name": "sftt"}), beta="much", inputs={"model.pth": sft(files)})
    nowhere = align(files, data={"train": ["nope.jsonl"]}, train={"export": False})
    twice = Stage(
        name="align", config={"model": {"path": "a/b"}, "data": {"train": ["c/d"]}}, inputs={"model.path": sft(files)}
    )
    study = study_of(
        Trial(labels={"start": "a", "seed": 0}, model=bad),
        Trial(labels={"start": "b", "seed": 0}, model=bad),
        Trial(labels={"start": "c", "seed": 0}, model=nowhere),
        Trial(labels={"start": "d", "seed": 0}, model=twice),
        Trial(labels={"start": "e", "seed": 0}, model=dataclasses.replace(twice, name="my stage")),
        Trial(labels={"start": "f", "seed": 0}, model="./no/such/model"),
        measures=(measure("m", lines={1}), measure("m")),
        headline="n/x",
        compare="strat",
        published=(Published(labels={"sed": 1}, metric="MMLU", value=1.0, source="table 1"),),
    )
    found = "\n".join(problems_of(study, tmp_path))
    for text in (
        "stage sft of row a-seed0 and 1 more: method.name: got 'sftt'",
        "stage align of row a-seed0 and 1 more: inputs: got 'model.pth', expected an option such as 'model.path'. Did "
        "you mean 'model.path'?",
        "stage align of row a-seed0 and 1 more: method.beta: got 'much'",
        "stage align of row c-seed0: data.train: nope.jsonl: no such file",
        "stage align of row c-seed0: train.export: got False",
        "stage align of row d-seed0: inputs: model.path is there twice, as 'a/b'",
        "stage my stage of row e-seed0: name: got 'my stage'",
        "row f-seed0: model: got './no/such/model', and there is no such folder",
        "measures: 'm' is there twice",
        "measures: settings of 'm' are no JSON values",
        "headline: got 'n/x', expected m/METRIC",
        "compare: got 'strat', expected a label of the rows: start, seed. Did you mean 'start'?",
        "published: 'MMLU' of table 1 has the label 'sed', expected start, seed. Did you mean 'seed'?",
    ):
        assert text in found, text


def test_what_measures_lack_is_told_before_anything_runs(files, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = JudgeSettings(model="gpt")
    (tmp_path / "alpaca").mkdir()
    (tmp_path / "alpaca" / "data.json").write_text(
        json.dumps([{"instruction": "i", "output": "o", "generator": "g", "dataset": "d"}])
    )
    (tmp_path / "benchmarks" / "arc-easy").mkdir(parents=True)
    data = str(tmp_path / "alpaca" / "data.json")
    found = "\n".join(
        problems_of(
            study_of(
                Trial(labels={"n": 0}, model=str(files / "model")),
                measures=(
                    measures.generations("nope.jsonl", against="./no/model", chat_template="no.jinja"),
                    measures.token_shift({"eval": ["nope2.jsonl"]}),
                    measures.held_out({"data": {"eval": ["nope3.jsonl"]}, "model": {"chat_template": "no.jinja"}}),
                    measures.suite("study1", folder="/nope"),
                    measures.suite("tasks:arc_easy,piqa", folder=tmp_path / "benchmarks"),
                    measures.mt_bench("/nope2", judge),
                    measures.alpaca_eval("/nope.json", name="a1"),
                    measures.alpaca_eval(data, judge, weights="no.csv", name="a2"),
                    measures.alpaca_eval(data, judge_prompt="prompt.txt", name="a3"),
                ),
                headline="a1/x",
            ),
            tmp_path,
        )
    )
    for text in (
        "measure generations: prompts: nope.jsonl: no such file",
        "measure generations: chat_template: got 'no.jinja', and there is no such file",
        "measure generations: against: got './no/model', and there is no such folder",
        "measure token_shift: data.train: nope2.jsonl: no such file",
        "measure held_out: data.eval: nope3.jsonl: no such file",
        "measure held_out: model.chat_template: got 'no.jinja'",
        "measure study1: --benchmarks: /nope is not a folder",
        "measure tasks:arc_easy,piqa: piqa: ",
        "measure mt_bench: folder: ",
        "measure mt_bench: judge: no key in the environment variable OPENAI_API_KEY",
        "measure a1: data: /nope.json",
        "measure a2: weights: no.csv cannot be read",
        "measure a2: judge_prompt: missing",
        "measure a3: judge_prompt: got 'prompt.txt' without a judge",
    ):
        assert text in found, (text, found)
    assert "arc_easy: " not in found
    monkeypatch.setattr("jaxalign.studies.measure_checks.find_spec", lambda name: None)
    assert [measure.check() for measure in (measures.suite("ifeval"),) if measure.check] == [
        [
            "a suite of benchmarks needs lm_eval, which is not installed; install it: pip install "
            "'jaxalign[benchmarks]'.",
            "IFEval needs langdetect, which is not installed; install it: pip install 'jaxalign[ifeval]'.",
        ]
    ]
    with pytest.raises(ConfigError, match="suite: got 'study11'"):
        measures.suite("study11")


def test_rows_that_cannot_be_told_apart(files, tmp_path):
    study = study_of(
        Trial(labels={"method": "dpo", "seed": 0}, model=align(files, sft(files))),
        Trial(labels={"method": "dpo", "seed": 0}, model=align(files, sft(files), beta=0.3)),
        Trial(labels={"seed": 0, "method": "dpo"}, model=align(files, sft(files))),
        Trial(labels={"method": "dpo", "seed": 1}, model=align(files, sft(files))),
        Trial(labels={"method": "dpo", "seed": 0}, model=align(files, sft(files, optimizer={"b1": 0.5}))),
    )
    assert problems_of(study, tmp_path) == [
        "rows 1 and 2 have the same labels (method=dpo seed=0). Their models differ in method.beta. Did you mean to "
        "give them the label 'beta'?",
        "rows 1 and 3 have the same labels (seed=0 method=dpo). They are the same model: leave one out.",
        "rows 1 and 5 have the same labels (method=dpo seed=0). Their models differ in optimizer.b1. Did you mean to "
        "give them the label 'b1'?",
    ]


def test_a_study_without_rows(tmp_path):
    study = Study(name="s", question="q", trials=(), measures=(), headline="")
    assert problems_of(study, tmp_path) == [
        "trials: got none, expected at least one.",
        "measures: got none, expected at least one.",
    ]


def test_a_tuple_without_its_comma(tmp_path):
    one = Measure(name="m", run=lambda subject: Outcome(metrics={}))
    study = Study(name="s", question="q", trials=(), measures=one, headline="m/x")  # pyright: ignore[reportArgumentType]
    assert problems_of(study, tmp_path) == ["measures: got a Measure, expected a tuple of them: (measure,)."]


def test_a_label_with_one_value_compares_nothing(files, tmp_path):
    study = study_of(
        *(
            Trial(labels={"method": "dpo", "beta": beta}, model=align(files, sft(files), beta=beta))
            for beta in (0.1, 0.3)
        )
    )
    (problem,) = problems_of(study, tmp_path)
    assert problem.startswith("compare: 'method' is 'dpo' in every row, so nothing is compared")
    assert problem.endswith("expected a label with several values: beta.")


def test_names_of_rows():
    assert row_ids([{"start": "sft", "method": "dpo", "beta": 0.1, "seed": 0}, {"model": "owner/Name 7B"}, {}]) == [
        "sft-dpo-beta0.1-seed0",
        "owner_Name_7B",
        "row",
    ]
    one, two, again = row_ids([{"a": "x", "b": "y"}, {"c": "x", "d": "y"}, {"a": "x", "b": "y"}])
    assert one == again != two
    assert one.startswith("x-y-")
    (long,) = row_ids([{"a": "x" * 300}])
    assert len(long) == 100
    assert row_ids([{"a": "../../etc"}]) == ["etc"] or row_ids([{"a": "../../etc"}]) == ["_.._etc"]


def test_rows_that_are_there(files, tmp_path):
    trials = [Trial(labels={"beta": beta}, model=align(files, beta=beta)) for beta in (0.1, 0.2, 0.3, 0.4)]
    plan = make_plan(study_of(*trials), tmp_path / "w")
    for row, status in zip(plan.rows, ("done", "failed", "done"), strict=False):
        key = "older" if row is plan.rows[2] else row.key
        write_json(plan.folders.row(row.id), {"row": row.id, "key": key, "labels": {}, "status": status})
    again = make_plan(study_of(*trials), tmp_path / "w")
    assert [row.status for row in again.rows] == ["done", "failed", "missing", "missing"]
    assert [row.stale for row in again.rows] == [False, False, True, False]
    assert [row.id for row in unfinished(again)] == ["beta0.3", "beta0.4"]
    assert [row.id for row in unfinished(again, retry_failed=True)] == ["beta0.2", "beta0.3", "beta0.4"]
    assert [row["row"] for row in rows.collect(again.folders, again.keys)] == [
        "beta0.1",
        "beta0.2",
    ]
    # A measure with other settings, or one more of them, is another row; one that is gone as well.
    changed = make_plan(study_of(*trials, measures=(measure(limit=3),)), tmp_path / "w")
    assert [row.status for row in changed.rows] == ["missing"] * 4


def test_stages_that_are_there(files, tmp_path):
    plan = plan_of(tmp_path, align(files, sft(files), reference={"mode": "cached"}))
    first, fill, last = plan.stages.values()

    def done():
        return [
            stage.done
            for stage in plan_of(tmp_path, align(files, sft(files), reference={"mode": "cached"})).stages.values()
        ]

    def finish(stage, status="done", shards=("model.safetensors",)):
        folder = plan.folders.stage(stage.name, stage.key)
        write_json(folder / "manifest.json", {"status": status})
        write_json(folder / "export" / "config.json", {})
        for shard in shards:
            (folder / "export" / shard).write_bytes(b"")
        return folder

    assert done() == [False, False, False]
    folder = finish(first)
    assert done() == [True, False, False]
    for status in ("running", "failed", "interrupted"):
        finish(first, status)
        assert done() == [False, False, False]
    finish(first)
    (folder / "export" / "model.safetensors").unlink()
    assert done() == [False, False, False]
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    write_json(folder / "export" / "model.safetensors.index.json", index)
    finish(first, shards=("model-1.safetensors",))
    assert done() == [False, False, False]
    finish(first, shards=("model-2.safetensors",))
    assert done() == [True, False, False]
    finish(last)
    assert done() == [True, True, True]  # nobody needs the cache any more
    (folder / "manifest.json").write_text("{")
    shutil.rmtree(plan.folders.stage(last.name, last.key))
    write_json(plan.folders.filled(fill.key), {})
    assert done() == [False, True, False]


def test_parts_of_shared_work_need_nothing_of_one_another(files, tmp_path):
    base, other = sft(files), sft(files, train={"seed": 1})
    middle = Stage(name="more", config=sft(files).config | {"model": {}}, inputs={"model.path": base})
    models = [align(files, start, beta=beta) for start in (middle, other) for beta in (0.1, 0.2)] + [
        str(files / "model")
    ]
    plan = plan_of(tmp_path, *models)
    assert [[stage.name for stage in group] for group in groups(plan)] == [["sft", "more"], ["sft"]]
    everything = list(range(7))
    assert sorted(part(everything, (0, 3)) + part(everything, (1, 3)) + part(everything, (2, 3))) == everything
    assert read_shard("2/3") == (2, 3)
    for wrong, hint in (("3/3", "did you mean 2/3"), ("a/3", ""), ("3", ""), ("-1/3", ""), ("0/0", ""), ("9/3", "")):
        with pytest.raises(ConfigError, match=rf"--shard: got '{wrong}', expected I/N.*{hint}"):
            read_shard(wrong)


def test_the_plan_as_text(files, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxalign.studies.plan_text.cost_lines", lambda stages, study: ["much"])
    plan = plan_of(
        tmp_path, *(align(files, sft(files), beta=beta, reference={"mode": "cached"}) for beta in (0.1, 0.2))
    )
    text = "\n".join(plan_lines(plan, plan.rows))
    assert "study s: 2 rows" in text
    assert "1  n0  -       sft* -> reference* -> align" in text
    assert "3 training runs, 0 of them done; without sharing they would be 4" in text
    assert "once for 2 rows (sft from" in text
    assert "2 of 2 rows to make now" in text
    assert "\nmuch\n" in text
