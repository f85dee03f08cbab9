"""The command as a process: help, exit codes, and problems as lists without a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxalign.cli import main
from jaxalign.cli.help import VERBS as TEXTS
from jaxalign.cli.parser import CONFIGURED, parse
from jaxalign.cli.tables import example_lines, report_lines
from jaxalign.cli.verbs import VERBS
from jaxalign.config import resolve, schema, to_dict
from jaxalign.config_transport import load
from jaxalign.errors import DataError, NumericsError
from jaxalign.transforms import TRANSFORMS

NEEDED = ["--config.model.path=nowhere", "--config.data.train=nothing.jsonl"]


def run(*words: str, cwd: Path | None = None, stdin: str = "", python: tuple[str, ...] = ()):
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *python, "-m", "jaxalign", *words],
        cwd=cwd or root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        input=stdin,
        timeout=120,
    )


def problems_of(capsys, *words: str, code: int = 2) -> str:
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_help_is_quick_and_loads_nothing_heavy():
    started = time.perf_counter()
    done = run("train", "--help", python=("-X", "importtime"))
    seconds = time.perf_counter() - started
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"jax", "numpy", "flax", "grain", "datasets", "transformers", "ml_collections"}
    # Far above what it needs (a tenth of a second), for a busy machine.
    assert seconds < 5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches(verb: str, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert "exit codes:" in text
    assert f"jaxalign {verb} " in text
    if verb in CONFIGURED:
        for field in schema().values():
            assert f"    {field.path} = " in text


def test_help_lists_every_verb_and_exit_code(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert set(TEXTS) == set(VERBS)
    for word in (*VERBS, "143", "exit codes"):
        assert word in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_of_the_help_is_a_right_command(verb: str):
    text = TEXTS[verb].replace("\\\n", " ")
    commands = [line.split("jaxalign ", 1)[1] for line in text.splitlines() if line.strip().startswith("jaxalign ")]
    assert commands
    for command in commands:
        words = re.findall(r'"[^"]*"|\S+', re.split(r"\s{4,}|>", command)[0])
        args = parse(["" + word.strip('"') for word in words])
        assert args.problems == []
        assert args.verb == verb


def test_version():
    done = run("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"jaxalign \S.*\n", done.stdout)


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ([], ["no verb, expected one of train"]),
        (["trian"], ["unknown verb 'trian'", "Did you mean 'train'?"]),
        (["check_data"], ["Did you mean 'check-data'?"]),
        (["--versoin"], ["unrecognized arguments: --versoin"]),
        (["train"], ["--workdir: missing", "--config: missing"]),
        (["train", "--config=x.py", "--wrkdir=y"], ["unknown flag --wrkdir", "Did you mean '--workdir'?"]),
        (["train", "--lr=3"], ["unknown flag --lr", "Did you mean '--config.optimizer.learning_rate'?"]),
        (["train", "--learning-rate", "3"], ["Did you mean '--config.optimizer.learning_rate'?"]),
        (["train", "--workdir=w", "extra"], ["unexpected argument 'extra'"]),
        (["generate", "hello"], ["required: --model"]),
        (["generate", "--model=m", "--max-new-tokens=many", "hello"], ["invalid int value: 'many'"]),
        (["generate", "--model=m", "--temprature=1", "hello"], ["Did you mean '--temperature'?"]),
        (["generate", "--model=m", "--file=f", "hello"], ["--file: got a file beside prompts"]),
        (["methods", "--config.train.steps=1"], ["methods takes no configuration"]),
        (["methods", "simpoo"], ["method.name: got 'simpoo'", "Did you mean 'simpo'?"]),
        (
            ["methods", "--data=pared"],
            ["--data: got 'pared', expected one of", "Did you mean 'paired'?"],
        ),
        (["methods", "dpo", "--data=paired"], ["--data: got a layout beside a NAME"]),
        (["convert", "--from=a"], ["jaxalign convert: ", "required: --to", "See jaxalign convert --help."]),
        (
            ["convert", "--workdir=X", "--out=Y"],
            ["unknown flag --workdir", "unknown flag --out", "Did you mean '--to'?", "required: --from, --to"],
        ),
        (["train", "--config.optimizer.name=adamW"], ["Did you mean 'adamw'?"]),
        (["convert", "--from=a", "--to=b", "--dtype=half"], ["invalid choice: 'half'"]),
        (["evaluate", "--workdir=nowhere"], ["--config: missing", "is not there"]),
    ],
)
def test_wrong_commands_end_with_2_and_say_what_is_right(words, texts, capsys):
    err = problems_of(capsys, *words)
    for text in texts:
        assert text in err


def test_flags_and_configuration_are_told_at_once(tmp_path):
    """The same through a real process: code 2, nothing on the standard output, every problem once."""
    done = run(
        "train",
        "--config=configs/paired.py:dpo",
        f"--workdir={tmp_path / 'run'}",
        "--wrokdir=x",
        "--config.optimizer.lr=3",
        "--config.method.beta=nan",
        "--config.train.steps=0",
        "--config.data.onbad=drop",
        *NEEDED,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "jaxalign train: 5 problems in the configuration" in done.stderr
    for text in (
        "--wrokdir",
        "optimizer.lr",
        "method.beta: got nan",
        "train.steps: got 0",
        "Did you mean 'data.on_bad'?",
    ):
        assert text in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_bad_argument_of_a_configuration_file(capsys, repository):
    err = problems_of(capsys, "train", f"--config={repository}/configs/paired.py:dpoo", "--workdir=w", *NEEDED)
    assert "Did you mean 'dpo'?" in err


def test_another_run_in_the_folder_is_refused_with_what_differs(capsys, tmp_path, repository):
    spec = f"{repository}/configs/paired.py:dpo"
    overrides = [("model.path", "nowhere"), ("data.train", "nothing.jsonl")]
    (tmp_path / "config.json").write_text(json.dumps(to_dict(resolve(load(spec, overrides)))))
    words = ["train", f"--config={spec}", f"--workdir={tmp_path}", *NEEDED, "--config.method.beta=0.3"]
    assert "another configuration" not in problems_of(capsys, *words)  # nothing was trained there: it may start anew
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    err = problems_of(capsys, *words)
    assert "holds a run with another configuration" in err
    assert "method.beta: was 0.1, is 0.3." in err


@pytest.mark.parametrize(
    ("error", "code", "heading"),
    [(DataError(["a", "b"]), 3, "2 problems in the data"), (NumericsError("not finite"), 4, "jaxalign methods: not")],
)
def test_errors_become_exit_codes(error, code, heading, capsys, monkeypatch):
    def fail(args):
        raise error

    monkeypatch.setattr("jaxalign.cli.verbs.VERBS", {"methods": fail})
    err = problems_of(capsys, "methods", code=code)
    assert heading in err


def test_methods_prints_the_table_and_one_method(capsys):
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert "dpo" in table
    assert "simpo" in table
    assert main(["methods", "dpo"]) == 0
    assert "label_smoothing" in capsys.readouterr().out


def test_methods_tells_of_transforms(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("TRANSFORMS, which make a method of a method")
    assert [line.split("(")[0].strip() for line in lines[start + 1 :]] == list(TRANSFORMS)
    assert max(map(len, lines)) <= 120
    for name in TRANSFORMS:
        assert main(["methods", name]) == 0
        assert capsys.readouterr().out.startswith(f"{name}(METHOD): ")
    assert main(["methods", "smoothed"]) == 0
    assert "smoothing = 0.1" in capsys.readouterr().out
    assert "soft is a transform, expected soft(METHOD)" in problems_of(
        capsys, "analyse-field", "--method=soft", "--out=x"
    )


def test_data_that_no_method_learns_from(capsys):
    assert main(["methods", "--data=sampled"]) == 0
    assert capsys.readouterr().out == "No method here learns from sampled data.\n"


def test_defaults_are_readable(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert r"data.step_separator = '\n'    (str)" in text
    assert "data.train = empty    (files, separated by commas)" in text


def test_output_may_be_cut_off():
    """`jaxalign methods | head -1` is no error."""
    command = f"{sys.executable} -m jaxalign train --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


@pytest.fixture
def generated(monkeypatch):
    """`build.generate` replaced by one that shouts, to see what the verb hands over and prints."""
    import types

    calls = []

    def generate(model, prompts, **options):
        calls.append((model, list(prompts), options))
        return [str(prompt).upper() for prompt in prompts]

    module = types.ModuleType("jaxalign.build")
    module.generate = generate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jaxalign.build", module)
    monkeypatch.setattr("jaxalign.build", module, raising=False)
    return calls


def test_generate_prints_texts_for_arguments_and_json_lines_for_json_lines(generated, capsys, tmp_path, monkeypatch):
    assert main(["generate", "--model=m", "--temperature=0.5", "one", "two"]) == 0
    assert capsys.readouterr().out == "ONE\nTWO\n"
    assert generated[0][0] == "m"
    assert generated[0][2]["temperature"] == 0.5
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a"\n\n{"prompt": "b", "id": 7}\n')
    assert main(["generate", "--model=m", f"--file={file}"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{"prompt": "a", "completion": "A"}, {"prompt": "b", "id": 7, "completion": "B"}]


def test_generate_tells_all_bad_lines(generated, capsys, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a"\nplain text\n{"text": "b"}\n{"prompt": ""}\n[1]\n')
    err = problems_of(capsys, "generate", "--model=m", f"--file={file}", code=3)
    for number in (2, 3, 4, 5):
        assert f"line {number}:" in err
    assert "line 1:" not in err
    assert "cannot be read" in problems_of(capsys, "generate", "--model=m", "--file=/no/such/file", code=3)
    file.write_text("")
    assert "no prompts" in problems_of(capsys, "generate", "--model=m", f"--file={file}", code=3)
    assert generated == []


def test_reports_and_examples_as_text():
    lines = list(
        report_lines("train", {"rows": 3, "dropped": {"null": 1}, "mean": 1.23456, "none": {}, "rows_of": ["a"]})
    )
    assert lines[0] == "train"
    assert any(re.fullmatch(r"  rows +3", line) for line in lines)
    assert any(re.fullmatch(r"    null +1", line) for line in lines)
    assert any(re.fullmatch(r"  mean +1.235", line) for line in lines)

    class Tokenizer:
        """Drops the space that a text starts with, as SentencePiece does, and has a token that is half a character."""

        pieces = ("", "<s>", " a", "\n", "\ufffd")

        def decode(self, ids):
            return "".join(self.pieces[i] for i in ids).lstrip(" ")

        def convert_ids_to_tokens(self, token):
            return f"<0x{token}>"

    class Example:
        prompt = (1, 2)
        completions = ((2, 2), (3, 2, 4))
        columns: dict = {}  # noqa: RUF012
        source = "train.jsonl row 17"

    text = "\n".join(example_lines(Example(), Tokenizer()))
    assert "train.jsonl row 17" in text
    assert "<s>| a" in text
    assert "chosen (2 tokens, all scored)\n    a| a" in text
    assert "rejected (3 tokens, all scored)\n    \\n| a|<0x4>" in text


def test_convert_leaves_files_alone(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    assert "is there and not empty" in problems_of(capsys, "convert", "--from=a", f"--to={tmp_path}")
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
