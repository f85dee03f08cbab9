"""The verbs that analyse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxalign.cli import main


def test_a_field_is_written(tmp_path: Path, capsys):
    for name in ("field.html", "field.json"):
        words = ["--method=dpo", "--beta=0.5", "--label-smoothing", "0.1", "--extent=2", "--points=9"]
        assert main(["analyse-field", *words, f"--out={tmp_path / 'new' / name}"]) == 0
        assert capsys.readouterr().out == f"wrote {tmp_path / 'new' / name}\n"
    assert (tmp_path / "new" / "field.html").read_text().startswith("<!doctype html>")
    numbers = json.loads((tmp_path / "new" / "field.json").read_text())
    assert numbers["options"] == {"beta": 0.5, "label_smoothing": 0.1}
    assert numbers["log_x1"] == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
    assert numbers["loss"][4][4] == pytest.approx(0.693147)


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--method=dpo"], ["required: --out"]),
        (["--out=a.html"], ["required: --method"]),
        (["--method=simpoo", "--out=a.html"], ["method.name: got 'simpoo'", "Did you mean 'simpo'?"]),
        (
            ["--method=dpo", "--bta=0.2", "--beta=-1", "--out=a.txt", "--lengths=1", "--points=2", "--extent=0"],
            [
                "6 problems",
                "unknown flag --bta",
                "Did you mean '--beta'?",
                "method.beta: got -1, expected a finite number > 0",
                "--out: got 'a.txt'",
                "--lengths: got '1', expected two numbers",
                "--points: got 2",
                "--extent: got 0.0",
            ],
        ),
        (["--method=cpo", "--out=a.html"], ["Say where the field shall be drawn: --origin=CHOSEN,REJECTED"]),
        (["--method=cpo", "--origin=-40,many", "--out=a.html"], ["--origin: got '-40,many'"]),
        (["--method=kto", "--out=a.html"], ["kto learns from unpaired data", "a gradient field needs pairs"]),
        (["--method=soft_dpo", "--out=a.html"], ["also reads preference", "--preference=0.8"]),
        (["--method=soft_dpo", "--out=a.html", "--preference=2"], ["--preference: got 2.0"]),
        (["--method=dpo", "--out=a.html", "--preference=0.8"], ["--preference: dpo reads none"]),
        (["--method=dpo", "--out=a.html", "word"], ["unexpected argument 'word'"]),
        (["--method=dpo", "--out=a.html", "--config.method.beta=1"], ["analyse-field takes no configuration"]),
    ],
)
def test_wrong_fields(words, texts, capsys):
    assert main(["analyse-field", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for text in texts:
        assert text in err


def test_credit_tells_all_problems_at_once(tmp_path: Path, capsys):
    words = [f"--workdir={tmp_path}", "--out=a.png", "--cont=3"]
    assert main(["analyse-credit", *words]) == 2
    err = capsys.readouterr().err
    for text in ("3 problems", "Did you mean '--count'?", "--out: got 'a.png'", "--config: missing"):
        assert text in err


def test_credit_is_written(tmp_path: Path, capsys, monkeypatch):
    """The verb's own part: what is computed, tests/build/test_token_credit.py tells."""
    from jaxalign import build
    from jaxalign.analysis.credit import CreditMap

    asked = {}

    def token_credit(config, workdir, model, *, count):
        asked.update(method=config.method.name, workdir=workdir, model=model, count=count)
        return CreditMap("m", "start", "dpo", 0.1, ())

    monkeypatch.setattr(build, "token_credit", token_credit)
    config = ["--config=configs/paired.py:dpo", "--config.model.path=m", "--config.data.train=d.jsonl"]
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert main(["analyse-credit", *config, "--model=other", "--count=3", f"--out={tmp_path / 'c.json'}"]) == 0
    assert asked == {"method": "dpo", "workdir": None, "model": "other", "count": 3}
    assert json.loads((tmp_path / "c.json").read_text())["examples"] == []
    assert main(["analyse-credit", *config, "--model=other", f"--out={tmp_path / 'c.html'}"]) == 0
    assert "Which tokens earn the reward" in (tmp_path / "c.html").read_text()


def test_tokens_tell_all_problems_at_once(tmp_path: Path, capsys):
    words = [f"--workdir={tmp_path}", "--out=a.png", "--min-cont=3"]
    assert main(["analyse-tokens", *words]) == 2
    err = capsys.readouterr().err
    for text in ("3 problems", "Did you mean '--min-count'?", "--out: got 'a.png'", "--config: missing"):
        assert text in err


def test_tokens_are_written(tmp_path: Path, capsys, monkeypatch):
    """The verb's own part: what is computed, tests/build/test_study_measures.py tells."""
    from jaxalign import build
    from jaxalign.evaluation.end_token import end_token_metrics
    from jaxalign.evaluation.outcome import Outcome
    from jaxalign.evaluation.token_shift import Scored, shift_details, shift_metrics

    asked = {}
    tokens = {4: "<b>", 5: "\n", 6: "</s>"}
    chosen = Scored(np.array([4, 5, 6]), np.array([-1.0, -2.0, -9.0]), np.array([-3.0, -1.0, -0.5]), True)
    rejected = Scored(np.array([4, 6]), np.array([-1.5, -4.0]), np.array([-1.0, -1.0]), True)
    pairs = [{"chosen": chosen, "rejected": rejected}]

    def token_shift(config, workdir, model, **options):
        asked.update(options, workdir=workdir, model=model, method=config.method.name)
        return Outcome(
            metrics=shift_metrics(pairs, min_count=1) | end_token_metrics(pairs),
            protocol={"min_count": 1, "examples": 1},
            details={
                **shift_details(pairs, lambda i: tokens[i], min_count=1),
                "end_tokens": ["</s>"],
                "model": "m",
                "reference": "start",
            },
            notes=["a note"],
        )

    monkeypatch.setattr(build, "token_shift", token_shift)
    config = ["--config=configs/paired.py:dpo", "--config.model.path=m", "--config.data.train=d.jsonl"]
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert main(["analyse-tokens", *config, "--model=other", "--top=3", f"--out={tmp_path / 'c.json'}"]) == 0
    assert asked == {"method": "dpo", "workdir": None, "model": "other", "count": None, "min_count": 100, "top": 3}
    numbers = json.loads((tmp_path / "c.json").read_text())
    assert [row["token"] for row in numbers["details"]["top_tokens"]] == ["</s>", "\n", "<b>"]
    assert main(["analyse-tokens", *config, "--model=other", f"--out={tmp_path / 'c.html'}"]) == 0
    page = (tmp_path / "c.html").read_text()
    for text in ("Which tokens moved", "&lt;b&gt;", "<code>\\n</code>", "a note", "-5.750", "The end token", "-5.000"):
        assert text in page, text
    assert "<b>" not in page
    assert page.count("<svg") == 3
