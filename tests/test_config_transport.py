"""The door: files and command lines become configurations, or a list of what is wrong with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jaxalign.config import from_dict, resolve, schema, to_dict, validate
from jaxalign.config_transport import load, parse_arg, take_overrides
from jaxalign.errors import ConfigError
from jaxalign.methods import METHODS, Layout

NEEDED = [("model.path", "model"), ("data.train", "pairs.jsonl")]


@pytest.fixture
def config_file(tmp_path: Path):
    def write(body: str, name: str = "run.py") -> str:
        path = tmp_path / name
        path.write_text(body)
        return str(path)

    return write


GET_CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=None):
    return ConfigDict({"model": {"path": "m"}, "data": {"train": "x"}, "method": {"name": arg or "dpo"}})
"""


def problems_of(spec, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(spec, overrides)
    return list(caught.value.problems)


def test_a_file_gives_a_configuration_and_takes_its_argument(config_file):
    path = config_file(GET_CONFIG)
    assert load(path).method.name == "dpo"
    assert load(f"{path}:ipo").method.name == "ipo"


def test_the_saved_json_is_a_configuration_file(tmp_path):
    config = resolve(load(None, NEEDED))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert load(str(path)) == config
    assert load(str(path), [("train.steps", "3"), ("train.epochs", "none")]).train.steps == 3


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("optimizer.learning_rate", "5e-7", 5e-7),
        ("optimizer.learning_rate", ".5", 0.5),
        ("optimizer.clip_norm", "none", None),
        ("optimizer.clip_norm", "1", 1.0),
        ("train.steps", "1e3", 1000),
        ("train.export", "false", False),
        ("train.export", "True", True),
        ("model.path", "123", "123"),
        ("model.chat_template", "none", None),
        ("data.train", "a.jsonl,b.jsonl", ("a.jsonl", "b.jsonl")),
        ("data.train", '["a,b.jsonl"]', ("a,b.jsonl",)),
        ("data.columns", '{"prompt": "question"}', {"prompt": "question"}),
        ("data.columns.prompt", "question", {"prompt": "question"}),
        ("mesh.fsdp", "-1", -1),
    ],
)
def test_values_are_read_as_the_type_of_their_field(path: str, text: str, value):
    config = load(None, [*NEEDED, (path, text)])
    section, name = path.split(".")[:2]
    got = getattr(getattr(config, section), name)
    assert got == value
    assert type(got) is type(value)


def test_options_of_the_method_stand_beside_its_name():
    config = load(None, [*NEEDED, ("method.beta", "0.2"), ("method.label_smoothing", "0")])
    assert config.method.options == {"beta": 0.2, "label_smoothing": 0}
    config = load(None, [*NEEDED, ("method.name", "cpo"), ("method.nll_normalization", "sum")])
    assert resolve(config).method.options["nll_normalization"] == "sum"


def test_the_last_of_two_values_counts():
    assert load(None, [*NEEDED, ("train.seed", "1"), ("train.seed", "2")]).train.seed == 2


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate: got 'fast', expected a finite number > 0."),
        ("optimizer.learning_rate", "nan", "optimizer.learning_rate: got nan"),
        ("train.batch_size", "2.5", "train.batch_size: got 2.5, expected a whole number >= 1."),
        ("train.batch_size", "", "train.batch_size: got ''"),
        ("train.export", "1", "train.export: got 1, expected true or false."),
        ("optimizer.learning_rate.x", "1", "optimizer.learning_rate.x: unknown name"),
        ("lr", "1", "lr: unknown name, expected one of model, adapter"),
        ("train", "3", "train: got 3, expected a section"),
        ("data.columns", "[1]", "data.columns: got [1], expected a table of names to names."),
        ("method.beta", "nan", "method.beta: got nan, expected a finite number > 0."),
        ("method.beta", "high", "method.beta: got 'high', expected a finite number > 0."),
    ],
)
def test_wrong_overrides_are_told(path: str, text: str, message: str):
    problems = problems_of(None, [*NEEDED, (path, text)])
    assert len(problems) == 1
    assert problems[0].startswith(message)


@pytest.mark.parametrize("path", [p for p in schema() if p not in ("model.path", "data.train")])
def test_a_typo_in_any_option_is_found_with_all_others(path: str):
    problems = problems_of(None, [*NEEDED, (path + "x", "1"), ("foo", "1"), ("train.batch_size", "0")])
    assert len(problems) == 3
    assert any(problem.startswith(f"{path}x:") for problem in problems)


def test_overrides_are_taken_out_of_a_command_line():
    words = ["train", "--config=a.py:b", "--config.x.y=1", "--workdir", "w", "--config.z", "two words", "--config.q="]
    rest, overrides, problems = take_overrides(words)
    assert rest == ["train", "--config=a.py:b", "--workdir", "w"]
    assert overrides == [("x.y", "1"), ("z", "two words"), ("q", "")]
    assert problems == []
    for words in (["--config.a"], ["--config.a", "--workdir=x"]):
        _, overrides, problems = take_overrides(words)
        assert problems == ["--config.a: got no value, expected --config.a=VALUE."]
        assert overrides == []


BAD_FILES = [
    ("x = 1", "has no function get_config(arg)."),
    ("def get_confg(arg): ...", "Did you mean 'get_confg'?"),
    ("def get_config(arg):\n    return 3", "gave a int, expected a ConfigDict"),
    ("def get_config(arg):\n    return", "gave a NoneType, expected a ConfigDict"),
    ("def get_config(arg):\n    return {}['a']", "run.py line 2: KeyError: 'a'"),
    ("def get_config(arg):\n    return (", "run.py line 2: SyntaxError"),
    ("import nosuchmodule", "run.py line 1: ModuleNotFoundError"),
]


@pytest.mark.parametrize(("body", "text"), BAD_FILES)
def test_wrong_files_are_told_with_the_line(config_file, body: str, text: str):
    problems = problems_of(config_file(body))
    assert len(problems) == 1
    assert text in problems[0]


def test_missing_files_are_told_with_those_that_exist(config_file, tmp_path):
    config_file(GET_CONFIG, "paired.py")
    config_file("{", "broken.json")
    (problem,) = problems_of(str(tmp_path / "pared.py:dpo"))
    assert "no file" in problem
    assert "There are broken.json, paired.py." in problem
    assert "Did you mean 'paired.py'?" in problem
    (problem,) = problems_of(str(tmp_path / "nowhere" / "paired.py"))
    assert "no folder" in problem
    (problem,) = problems_of(str(tmp_path))
    assert "is a folder" in problem
    (problem,) = problems_of(str(tmp_path / "broken.json"))
    assert "is not JSON" in problem
    (problem,) = problems_of(config_file("def get_config():\n    return {}", "plain.py") + ":x")
    assert "takes none" in problem


def test_a_file_may_import_those_beside_it_and_leaves_nothing_behind(config_file):
    config_file("VALUE = 'm1'", "common.py")
    body = (
        "from common import VALUE\ndef get_config(arg):\n    return {'model': {'path': VALUE}, 'data': {'train': 'x'}}"
    )
    path = config_file(body)
    before = list(sys.path)
    assert load(path).model.path == "m1"
    assert sys.path == before
    assert "common" not in sys.modules
    config_file("VALUE = 'm2_'", "common.py")
    assert load(path).model.path == "m2_"


def test_parse_arg_reads_typed_values():
    defaults = {"method": ("dpo", "ipo"), "size": 3, "rate": 0.5, "fast": False, "name": "x"}
    assert parse_arg(None, **defaults).to_dict() == {
        "method": "dpo",
        "size": 3,
        "rate": 0.5,
        "fast": False,
        "name": "x",
    }
    args = parse_arg("ipo,size=4,rate=1,fast,name=5", **defaults)
    assert (args.method, args.size, args.rate, args.fast, args.name) == ("ipo", 4, 1.0, True, "5")
    assert parse_arg("fast=true,method=ipo", **defaults).fast is True


def test_parse_arg_tells_all_problems():
    with pytest.raises(ConfigError) as caught:
        parse_arg("ipp,siz=4,rate=quick,3", method=("dpo", "ipo"), size=3, rate=0.5)
    texts = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for text in (
        "got 'ipp', expected one of dpo, ipo. Did you mean 'ipo'?",
        "Did you mean 'size'?",
        "got 'quick'",
        "'3'",
    ):
        assert text in texts


def arguments() -> list[str]:
    layouts = {"paired": Layout.PAIRED, "unpaired": Layout.UNPAIRED}
    pairs = [f"{file}.py:{name}" for file, lay in layouts.items() for name in METHODS if METHODS[name].layout is lay]
    with_models = [f"{pair},model={model}" for pair in pairs for model in ("any", "tiny", "mistral_7b")]
    quickstart = ["quickstart.py", "quickstart.py:ipo,world=x", "quickstart.py:sft,seed=1"]
    return [
        *pairs,
        *with_models,
        *quickstart,
        "sft.py",
        *(f"sft.py:{model}" for model in ("any", "tiny", "zephyr_sft")),
    ]


@pytest.mark.parametrize("spec", arguments())
def test_the_shipped_configurations_are_valid(repository: Path, spec: str):
    needed = [] if spec.startswith("quickstart") else NEEDED
    config = resolve(load(str(repository / "configs" / spec), needed))
    assert validate(config) == []
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_shipped_configurations_name_their_choices(repository: Path):
    problems = problems_of(str(repository / "configs" / "paired.py:sft,model=tny"))
    assert any("method: got 'sft', expected one of dpo" in problem for problem in problems)
    assert any("Did you mean 'tiny'?" in problem for problem in problems)
    for spec, hint in {
        "unpaired.py:dpo": "dpo reads pairs: configs/paired.py:dpo.",
        "paired.py:dft": "dft reads single answers: configs/sft.py:method=dft.",
        "paired.py:nca": "nca reads rankings: configs/ranked.py:nca.",
        "ranked.py:bco": "bco reads labelled answers: configs/unpaired.py:bco.",
        "sft.py:method=process_reward_model": "process_reward_model reads labelled steps: configs/steps.py.",
    }.items():
        assert problems_of(f"{repository}/configs/{spec}")[0].endswith(hint)
