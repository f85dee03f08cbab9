"""The verb: what it writes, says, and refuses."""

from __future__ import annotations

import webbrowser

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
    assert "2 problems" in capsys.readouterr().err


def test_it_refuses_a_page_that_is_none(tmp_path, capsys):
    folder = made_up_rows.write(tmp_path / "study", made_up_rows.rows(questions=8)[:1])
    assert main(["report", str(folder), "--out=report.pdf"]) == 2
    assert "ends in .html" in capsys.readouterr().err
