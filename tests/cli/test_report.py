"""The verb: what it writes, says, and refuses."""

from __future__ import annotations

import json
import webbrowser

import pytest

from jaxalign.cli import main
from tests.studies import made_up_rows


def test_it_writes_beside_the_rows_or_elsewhere(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    folder = made_up_rows.write(tmp_path / "study", made_up_rows.rows(questions=8)[:4])
    assert main(["report", str(folder), "--open"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "report.md",
        "rows.csv",
        "rows.jsonl",
        "table.tex",
    ]
    assert opened == [(folder / "report.html").resolve().as_uri()]
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().out
    assert main(["report", str(folder / "rows.jsonl"), f"--out={tmp_path / 'pages' / 'x.html'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["rows.csv", "table.tex", "x.html", "x.md"]


def test_it_refuses_what_is_no_study(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 3
    assert "rows" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text("")
    assert main(["report", str(tmp_path)]) == 3
    assert "no rows yet" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text('{"row": "a"}\nnonsense\n')
    assert main(["report", str(tmp_path)]) == 3
    told = capsys.readouterr().err
    assert "4 problems" in told
    assert "rows.jsonl line 1: field 'labels' is absent, expected an object." in told
    assert "rows.jsonl line 2: not JSON" in told


BROKEN = [
    (lambda r: r.update(labels="oops"), "field 'labels': got \"oops\", expected an object"),
    (lambda r: r["labels"].update(beta=[1]), "field 'labels.beta': got [1], expected a text or a finite number"),
    (lambda r: r.update(status="maybe"), "field 'status': got \"maybe\", expected 'done' or 'failed'"),
    (lambda r: r.update(results=[]), "field 'results': got [], expected an object"),
    (lambda r: r["results"].update(answers=3), "field 'results.answers': got 3, expected an object"),
    (lambda r: r["results"]["answers"]["metrics"]["exact"].update(value="high"),
     "field 'results.answers.metrics.exact.value': got \"high\", expected a finite number or null"),
    (lambda r: r["results"]["answers"]["metrics"]["exact"].pop("value"),
     "field 'results.answers.metrics.exact.value' is absent"),
    (lambda r: r["results"]["answers"]["metrics"]["exact"].update(values=["x"]), "metrics.exact.values': got"),
    (lambda r: r["results"]["answers"].update(protocol=1), "field 'results.answers.protocol': got 1"),
    (lambda r: r["results"]["answers"].update(samples=["x"]), "expected a list of objects"),
    (lambda r: r.update(stages={}), "field 'stages': got {}, expected a list of objects or null"),
    (lambda r: r["study"].update(published=[{"labels": {}}]), "field 'study.published[0].metric' is absent"),
    (lambda r: r.update(study="s"), "field 'study': got \"s\", expected an object"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "expected"), BROKEN)
def test_a_broken_row_is_told_with_line_and_field(tmp_path, capsys, harm, expected):
    rows = made_up_rows.rows(questions=8)[:3]
    harm(rows[1])
    folder = made_up_rows.write(tmp_path, rows)
    assert main(["report", str(folder)]) == 3
    told = capsys.readouterr().err
    assert "rows.jsonl line 2: field" in told
    assert expected in told


def test_all_broken_rows_are_told_at_once(tmp_path, capsys):
    rows = made_up_rows.rows(questions=8)[:3]
    rows[0]["labels"], rows[2]["status"], rows[2]["row"] = [], 1, 5
    assert main(["report", str(made_up_rows.write(tmp_path, rows))]) == 3
    told = capsys.readouterr().err
    assert "3 problems" in told
    assert all(part in told for part in ("line 1: field 'labels'", "line 3: field 'status'", "line 3: field 'row'"))


def test_a_row_that_stands_twice_is_told(tmp_path, capsys):
    rows = made_up_rows.rows(questions=8)[:1] * 2
    assert main(["report", str(made_up_rows.write(tmp_path, rows))]) == 3
    assert "line 2: field 'row': '00-none' again" in capsys.readouterr().err


def test_rows_that_rows_jsonl_lacks_are_gathered_and_told(tmp_path, capsys):
    rows = made_up_rows.rows(questions=8)[:3]
    folder = made_up_rows.write(tmp_path, rows[:1])
    (folder / "rows").mkdir()
    for row in rows:
        (folder / "rows" / f"{row['row']}.json").write_text(json.dumps(row | {"key": row["row"]}))
    about = made_up_rows.study() | {"rows": {row["row"]: row["row"] for row in rows}}
    (folder / "study.json").write_text(json.dumps(about))
    assert main(["report", str(folder)]) == 0
    told = "2 finished rows were not in rows.jsonl and are taken from their own files in rows/: 01-none, 02-dpo."
    assert told in capsys.readouterr().out
    assert told in (folder / "report.html").read_text()
    assert "<b>3</b> rows" in (folder / "report.html").read_text()
    (folder / "rows" / "02-dpo.json").write_text("[1]")
    assert main(["report", str(folder)]) == 3
    assert "02-dpo.json: got [1], expected a row" in capsys.readouterr().err


def test_it_refuses_a_page_that_is_none(tmp_path, capsys):
    folder = made_up_rows.write(tmp_path / "study", made_up_rows.rows(questions=8)[:1])
    assert main(["report", str(folder), "--out=report.pdf"]) == 2
    assert "ends in .html" in capsys.readouterr().err


def test_it_refuses_a_place_that_cannot_be_written(tmp_path, capsys):
    folder = made_up_rows.write(tmp_path / "study", made_up_rows.rows(questions=8)[:1])
    assert main(["report", str(folder), "--out=/proc/x/y.html"]) == 2
    assert "cannot be written" in capsys.readouterr().err
