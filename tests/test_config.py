"""The schema: every kind of problem is found, all at once, and a configuration equals its JSON form."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.config import (
    ALIASES,
    SECTIONS,
    RunConfig,
    from_dict,
    read_dict,
    read_json,
    resolve,
    schema,
    to_dict,
    validate,
)
from jaxalign.config_checks import FREE, differences
from jaxalign.errors import ConfigError
from jaxalign.methods import METHODS

GOOD = {"model": {"path": "model"}, "data": {"train": "pairs.jsonl"}}


def with_fields(**sections: Any) -> dict:
    merged = {name: GOOD[name] | fields if name in GOOD else fields for name, fields in sections.items()}
    return {**GOOD, **merged}


def problems_of(tree: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_dict(tree)
    return list(caught.value.problems)


def test_a_minimal_configuration_is_complete_and_valid():
    config = from_dict(GOOD)
    assert validate(config) == []
    assert validate(resolve(config)) == []
    assert config.method.name == "dpo"


NAN = float("nan")

PROBLEMS = [
    # names, at every depth
    ({"optimiser": {}}, ["optimiser: unknown name", "Did you mean 'optimizer'?"]),
    ({"train": {"batchsize": 4}}, ["train.batchsize: unknown name", "Did you mean 'train.batch_size'?"]),
    ({"train": {"learning_rate": 1e-3}}, ["train.learning_rate", "Did you mean 'optimizer.learning_rate'?"]),
    ({"optimizer": {"lr": 1e-3}}, ["optimizer.lr", "Did you mean 'optimizer.learning_rate'?"]),
    ({"train": {"gradient_accumulation_steps": 2}}, ["Did you mean 'train.microbatches'?"]),
    ({"method": {"betta": 0.1}}, ["method.betta: dpo has no such option", "Did you mean 'beta'?"]),
    ({"data": {"columns": {"promt": "q"}}}, ["data.columns", "'promt'", "Did you mean 'prompt'?"]),
    # choices
    ({"method": {"name": "dpoo"}}, ["method.name: got 'dpoo'", "Did you mean 'dpo'?"]),
    ({"method": {"name": "nosuchpackage.there:NAME"}}, ["method.name", "cannot be imported"]),
    ({"optimizer": {"name": "adamww"}}, ["optimizer.name: got 'adamww'", "Did you mean 'adamw'?"]),
    ({"optimizer": {"schedule": "cosin"}}, ["optimizer.schedule: got 'cosin'", "Did you mean 'cosine'?"]),
    ({"model": {"remat": "ful"}}, ["model.remat: got 'ful'", "Did you mean 'full'?"]),
    ({"model": {"dtype": "float16"}}, ["model.dtype: got 'float16', expected one of bfloat16, float32"]),
    ({"model": {"attention": "flash"}}, ["model.attention: got 'flash', expected one of auto, dense, chunked, kernel"]),
    ({"data": {"on_bad": "skip"}}, ["data.on_bad: got 'skip', expected one of strict, drop"]),
    ({"data": {"tokenization": "jointly"}}, ["data.tokenization", "Did you mean 'joint'?"]),
    ({"reference": {"mode": "cache"}}, ["reference.mode: got 'cache'", "Did you mean 'cached'?"]),
    # numbers
    ({"optimizer": {"learning_rate": NAN}}, ["optimizer.learning_rate: got nan, expected a finite number > 0."]),
    ({"optimizer": {"learning_rate": math.inf}}, ["optimizer.learning_rate: got inf, expected a finite number > 0."]),
    ({"optimizer": {"learning_rate": 0}}, ["optimizer.learning_rate: got 0, expected a finite number > 0."]),
    ({"optimizer": {"learning_rate": -1e-4}}, ["optimizer.learning_rate: got -0.0001"]),
    ({"optimizer": {"learning_rate": "1e-4"}}, ["optimizer.learning_rate: got '1e-4', expected a finite number > 0."]),
    ({"optimizer": {"learning_rate": True}}, ["optimizer.learning_rate: got True"]),
    ({"optimizer": {"warmup_ratio": 1.0}}, ["optimizer.warmup_ratio: got 1.0, expected a finite number >= 0 and < 1."]),
    ({"optimizer": {"clip_norm": 0.0}}, ["optimizer.clip_norm: got 0.0, expected a finite number > 0, or none."]),
    ({"train": {"batch_size": 2.5}}, ["train.batch_size: got 2.5, expected a whole number >= 1."]),
    ({"train": {"batch_size": 0}}, ["train.batch_size: got 0, expected a whole number >= 1."]),
    ({"train": {"log_every": None}}, ["train.log_every: got None, expected a whole number >= 1."]),
    ({"train": {"export": "yes"}}, ["train.export: got 'yes', expected true or false."]),
    ({"data": {"train": ["a", 3]}}, ["data.train: got ['a', 3], expected a text, or a list of texts."]),
    ({"data": {"columns": ["prompt"]}}, ["data.columns: got ['prompt'], expected a table of names to names."]),
    ({"train": 3}, ["train: got 3, expected a section with the fields batch_size"]),
    ({"method": "ipo"}, ["method: got 'ipo', expected a section", "Did you mean 'method.name'?"]),
    # options of methods
    ({"method": {"beta": NAN}}, ["method.beta: got nan, expected a finite number > 0."]),
    ({"method": {"beta": -0.1}}, ["method.beta: got -0.1, expected a finite number > 0."]),
    ({"method": {"beta": 0}}, ["method.beta: got 0, expected a finite number > 0."]),
    ({"method": {"beta": "0.1"}}, ["method.beta: got '0.1', expected a finite number > 0."]),
    (
        {"method": {"label_smoothing": 0.5}},
        ["method.label_smoothing: got 0.5, expected a finite number >= 0 and < 0.5."],
    ),
    ({"method": {"name": "kto", "desirable_weight": -1}}, ["method.desirable_weight: got -1"]),
    ({"method": {"name": "ipo", "label_smoothing": 0.1}}, ["method.label_smoothing: ipo has no such option"]),
    # fields that must fit together
    ({"model": {"config": "config.json"}}, ["model.config: got a path beside model.path"]),
    ({"model": {"path": None}}, ["model.path: got none, expected a Hugging Face folder or hub id"]),
    ({"model": {"path": None, "config": "c.json"}}, ["model.tokenizer: got none"]),
    ({"data": {"train": []}}, ["data.train: got nothing, expected a file"]),
    ({"data": {"eval": "b.jsonl", "eval_size": 3}}, ["data.eval_size: got 3 beside data.eval, expected 0"]),
    (
        {"data": {"max_prompt_length": 1024}},
        ["data.max_prompt_length: got 1024, expected fewer tokens than data.max_len"],
    ),
    ({"data": {"max_length": 8, "max_completion_length": 9}}, ["data.max_completion_length: got 9, expected fewer"]),
    (
        {"data": {"row_length": 512, "max_length": 1024}},
        ["data.row_length: got 512, expected at least data.max_length (1024)"],
    ),
    ({"train": {"steps": 3, "epochs": 2.0}}, ["train.steps: got 3 beside train.epochs 2"]),
    (
        {"train": {"batch_size": 2, "microbatches": 3}},
        ["train.microbatches: got 3, expected at most train.batch_size (2)"],
    ),
    ({"train": {"batch_size": 1}, "method": {"name": "kto"}}, ["train.batch_size: got 1, expected at least 2"]),
    ({"train": {"eval_every": 5}}, ["train.eval_every: got 5 without held-out data"]),
    ({"train": {"best_metric": "eval_loss"}}, ["train.best_metric: got 'eval_loss' without held-out data"]),
    ({"train": {"best_metric": "loss"}, "data": {"eval_size": 5}}, ["Did you mean 'eval_loss'?"]),
    ({"method": {"name": "cpo"}, "reference": {"source": "policy"}}, ["reference.source: got 'policy', expected auto"]),
    ({"method": {"name": "cpo"}, "reference": {"mode": "cached"}}, ["reference.mode: got 'cached'", "cpo uses none"]),
    ({"reference": {"source": "none", "mode": "cached"}}, ["reference.mode: got 'cached'", "its source is none"]),
    ({"reference": {"source": "other", "mode": "moving"}}, ["reference.mode: got 'moving'", "expected source policy"]),
    ({"reference": {"source": "prior", "mode": "live"}}, ["reference.mode: got 'live'", "expected cached"]),
    ({"data": {"loss_on": "all"}}, ["data.loss_on: got 'all', expected 'completion': dpo compares completions"]),
    (
        {"data": {"loss_on": "all"}, "method": {"name": "process_reward_model"}},
        ["data.loss_on: got 'all', expected 'completion': process_reward_model reads a value for each token"],
    ),
    (
        {"data": {"loss_on": "all"}, "method": {"name": "weighted(sft)"}},
        ["data.loss_on: got 'all', expected 'completion': weighted(sft) reads a value for each token"],
    ),
    ({"reference": {"chat_template": "t.jinja"}}, ["reference.chat_template: got 't.jinja'", "only another"]),
    (
        {"reference": {"source": "other", "chat_template": "t.jinja", "mode": "live"}},
        ["reference.chat_template", "expected cached"],
    ),
    ({"reference": {"dtype": "bfloat16"}}, ["reference.dtype: got 'bfloat16'", "moving"]),
    ({"reference": {"mode": "moving", "dtype": "bfloat16", "update_rate": 1e-3}}, ["reference.update_rate: got 0.001"]),
    (
        {"reference": {"mode": "moving", "quantization": "int8"}},
        ["reference.quantization: got 'int8' with reference.mode 'moving', expected none"],
    ),
    ({"adapter": {"rank": 8}}, ["adapter.rank: got 8 with adapter.kind 'none'", "Did you mean adapter.kind=lora?"]),
    ({"adapter": {"kind": "lora", "targets": "("}}, ["adapter.targets: got '(', expected a regular expression"]),
    (
        {"adapter": {"kind": "lora", "targets": "q_proj"}},
        ["adapter.targets: got 'q_proj'", "Did you mean 'attention/query'?"],
    ),
    ({"adapter": {"kind": "lora", "lora_alpha": 8}}, ["adapter.lora_alpha: unknown name", "'adapter.alpha'"]),
    ({"optimizer": {"name": "adam", "weight_decay": 0.1}}, ["optimizer.weight_decay: got 0.1", "Use adamw"]),
    ({"optimizer": {"name": "sgd", "b2": 0.9}}, ["optimizer.b2: got 0.9, expected none: sgd has no such"]),
    ({"reference": {"update_rate": 1.5}}, ["reference.update_rate: got 1.5, expected a finite number > 0 and <= 1."]),
    ({"mesh": {"data": -1}}, ["mesh.data and mesh.fsdp: got -1, expected at most one axis"]),
    ({"mesh": {"tensor": 0}}, ["mesh.tensor: got 0, expected a number of devices >= 1, or -1"]),
]


@pytest.mark.parametrize(("sections", "texts"), PROBLEMS, ids=[texts[0].partition(":")[0] for _, texts in PROBLEMS])
def test_each_problem_is_told_once_with_what_to_do(sections: dict, texts: list[str]):
    problems = problems_of(with_fields(**sections))
    assert len(problems) == 1, problems
    for text in texts:
        assert text in problems[0]


def test_all_problems_come_at_once():
    wrong = {
        "modle": {},
        "data": {"train": "x", "max_legnth": 3, "eval_size": -1},
        "method": {"beta": NAN, "gama": 1},
        "optimizer": {"learning_rate": 0, "b1": 1.0},
        "train": {"steps": 1, "epochs": 1.0},
        "mesh": {"tensor": 0},
    }
    problems = problems_of(wrong)
    for start in (
        "modle:",
        "data.max_legnth:",
        "data.eval_size:",
        "method.beta:",
        "method.gama:",
        "optimizer.learning_rate:",
        "optimizer.b1:",
        "train.steps:",
        "mesh.tensor:",
    ):
        assert sum(problem.startswith(start) for problem in problems) == 1, (start, problems)
    # A misspelled section or field is one problem, not also the absence of what it meant.
    assert len(problems) == 9


def test_a_broken_field_causes_no_second_problem():
    assert len(problems_of(with_fields(train={"batch_size": 0, "microbatches": 4}))) == 1
    assert len(problems_of({"model": {"pth": "m"}, "data": {"train": "x"}})) == 1


@pytest.mark.parametrize(
    ("mesh", "devices", "text"),
    [
        ({"fsdp": 1}, 8, "mesh: got data 1 x fsdp 1 x tensor 1, expected a product of 8"),
        ({"tensor": 3}, 8, "mesh: got data 1 x fsdp -1 x tensor 3, expected a product of 8"),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 8, None),
        ({"tensor": 4}, 8, None),
    ],
)
def test_the_mesh_must_fit_the_devices(mesh, devices, text):
    problems = validate(from_dict(with_fields(mesh=mesh)), devices=devices)
    assert [problem.startswith(text) for problem in problems] == ([True] if text else [])


def test_validate_finds_what_python_lets_through():
    config = dataclasses.replace(
        from_dict(GOOD),
        optimizer=dataclasses.replace(RunConfig().optimizer, learning_rate=NAN, name="adamm"),
        method=dataclasses.replace(RunConfig().method, options={"beta": -1.0}),
    )
    problems = validate(config)
    assert [problem.partition(":")[0] for problem in problems] == [
        "optimizer.name",
        "optimizer.learning_rate",
        "method.beta",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_resolve_settles_everything_for_every_method(name: str):
    config = resolve(from_dict(with_fields(method={"name": name})))
    assert set(config.method.options) == set(METHODS[name].options)
    assert config.reference.source == ("policy" if METHODS[name].needs_reference else "none")
    live = METHODS[name].needs_live_reference or not METHODS[name].needs_reference
    assert config.reference.mode == ("live" if live else "cached")
    assert config.train.epochs == 1.0
    assert validate(config) == []
    assert resolve(config) == config


def test_resolve_caches_references_that_a_step_cannot_or_need_not_compute():
    for source in ("auto", "policy", "prior", "another/model"):
        config = resolve(from_dict(with_fields(reference={"source": source})))
        assert config.reference.mode == "cached"
    assert resolve(from_dict(with_fields(train={"steps": 3}))).train.epochs is None


def test_whole_numbers_become_floats_and_a_text_becomes_a_list():
    config = from_dict(with_fields(optimizer={"clip_norm": 1}, data={"train": "one"}))
    assert isinstance(config.optimizer.clip_norm, float)
    assert config.data.train == ("one",)


def test_every_field_is_documented_and_its_default_is_valid():
    for field in schema().values():
        assert field.doc.endswith((".", "}")), field.path
        assert field.path.partition(".")[0] in SECTIONS
    # Only what has no sensible default is missing.
    missing = [problem.partition(":")[0] for problem in validate(RunConfig())]
    assert missing == ["model.path", "data.train"]


def test_aliases_lead_to_real_fields_and_hide_none():
    leaves = {path.rpartition(".")[2] for path in schema()}
    for alias, path in ALIASES.items():
        assert path in schema()
        assert alias not in leaves
    for path in FREE:
        assert path in SECTIONS or path in schema()


def test_data_fields_are_the_arguments_of_the_reader():
    from jaxalign.data.examples import load_examples

    parameters = inspect.signature(load_examples).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    elsewhere = {"layout", "split", "config", "chat_template", "vocabulary", "max_positions"}
    elsewhere |= {"needs", "degrees"}  # the method says these
    assert set(options) - elsewhere <= {path.removeprefix("data.") for path in schema()}
    for name in ("turns", "tokenization", "special_tokens", "truncation", "on_bad", "tolerance", "one_class"):
        assert schema()[f"data.{name}"].default == options[name]


def test_names_agree_with_the_parts_they_choose():
    from jaxalign.models.attention_forms import FORMS
    from jaxalign.models.decoder import REMAT_POLICIES

    assert schema()["model.remat"].choices == ("none", *REMAT_POLICIES)
    assert set(schema()["model.attention"].choices) == set(FORMS)


def test_differences_name_what_changed_and_ignore_what_may():
    before = resolve(from_dict(GOOD))
    assert differences(before, before) == []
    free = resolve(from_dict(with_fields(mesh={"fsdp": 1}, train={"log_every": 1}, logging={"progress": False})))
    assert differences(before, free) == []
    after = resolve(from_dict(with_fields(method={"beta": 0.2}, train={"batch_size": 8})))
    assert differences(before, after) == ["method.beta: was 0.1, is 0.2.", "train.batch_size: was 64, is 8."]
    other = resolve(from_dict(with_fields(method={"name": "ipo"})))
    assert "method.label_smoothing: was 0.0, is absent." in differences(before, other)


def test_a_saved_configuration_is_read_again(tmp_path):
    config = resolve(from_dict(GOOD))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert read_json(path) == config
    path.write_text("{")
    for wrong in (path, tmp_path / "absent.json"):
        with pytest.raises(ConfigError, match="no configuration can be read"):
            read_json(wrong)


def value_of(path: str) -> st.SearchStrategy:
    """Values that the field accepts."""
    field = schema()[path]
    low = next((b for b in (field.bounds.gt, field.bounds.ge) if b is not None), -1e6)
    high = next((b for b in (field.bounds.lt, field.bounds.le) if b is not None), 1e6)
    strategy: st.SearchStrategy = {
        bool: st.booleans(),
        int: st.integers(math.ceil(low), math.floor(high)),
        float: st.floats(
            low, high, exclude_min=field.bounds.gt is not None, exclude_max=field.bounds.lt is not None, width=64
        ),
        str: st.sampled_from(field.choices) if field.choices else st.text(),
        list: st.lists(st.text()).map(tuple),
        dict: st.dictionaries(st.text(), st.text()),
    }[field.kind]
    return st.none() | strategy if field.optional else strategy


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_json_round_trip_of_any_values(data):
    sections: dict[str, Any] = {}
    for path in data.draw(st.sets(st.sampled_from(list(schema())), max_size=6)):
        section, _, name = path.partition(".")
        sections.setdefault(section, {})[name] = data.draw(value_of(path))
    config = RunConfig(**{name: SECTIONS[name](**fields) for name, fields in sections.items()})
    again, problems, _ = read_dict(json.loads(json.dumps(to_dict(config))))
    assert problems == []
    assert again == config


@given(st.sampled_from(list(schema())), st.data())
@settings(max_examples=100, deadline=None)
def test_one_letter_typos_of_any_name_are_found_with_the_name_meant(path, data):
    section, _, name = path.partition(".")
    place = data.draw(st.integers(0, len(name) - 1))
    typo = name[:place] + data.draw(st.sampled_from("xqz")) + name[place:]
    problems = problems_of(with_fields(**{section: {typo: GOOD.get(section, {}).get(name, 1)}}))
    if section == "method":
        assert any(f"method.{typo}: dpo has no such option" in problem for problem in problems)
    elif len(name) > 2:
        assert any(problem.startswith(f"{section}.{typo}: unknown name") for problem in problems)
        assert any("Did you mean" in problem for problem in problems)


def test_every_named_schedule_and_optimizer_can_be_built():
    # The names stand in the schema so that help needs no jax; here they meet the code.
    from jaxalign.training.optimizer import OPTIMIZERS, SCHEDULES

    assert set(schema()["optimizer.name"].choices) == set(OPTIMIZERS)
    assert set(schema()["optimizer.schedule"].choices) == set(SCHEDULES)
