"""The verb for studies: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxalign.cli import main
from jaxalign.cli.distributed import COORDINATOR, NUM_PROCESSES, PROCESS_ID
from jaxalign.config_transport import load_study
from jaxalign.errors import ConfigError
from jaxalign.studies import rows

STUDY = """\
from pathlib import Path

import neighbour
from jaxalign.config_transport import parse_arg
from jaxalign.evaluation.outcome import Metric, Outcome
from jaxalign.studies.study import Measure, Study, Trial

HERE = Path(__file__).parent


def get_study(arg):
    args = parse_arg(arg, broken=False, rows=3)

    def run(subject):
        if args.broken and subject.seed == 1:
            raise RuntimeError("the ruler is lost")
        return Outcome(metrics={"x": Metric(value=subject.seed, n=1)})

    return Study(
        name="small",
        question=neighbour.QUESTION,
        trials=tuple(Trial(labels={"seed": seed}, model=str(HERE / "model")) for seed in range(args.rows)),
        measures=(Measure(name="m", run=run),),
        headline="m/x",
        compare="seed",
    )
"""


@pytest.fixture
def spec(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxalign.studies.plan_text.cost_lines", lambda stages, study: ["It costs nothing."])
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "study.py").write_text(STUDY)
    (tmp_path / "files" / "neighbour.py").write_text('QUESTION = "Which seed is largest?"\n')
    (tmp_path / "files" / "model").mkdir()
    (tmp_path / "files" / "model" / "config.json").write_text("{}")
    return "files/study.py"


def test_a_dry_run_prints_the_plan_and_writes_nothing(spec, tmp_path, capsys):
    assert main(["study", f"--config={spec}", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "study small: 3 rows in " in printed
    assert "Which seed is largest?" in printed
    assert "  2  seed1" in printed
    assert "It costs nothing." in printed
    assert "3 of 3 rows to make now" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_a_study_in_this_process_and_again(spec, tmp_path, capsys):
    assert main(["study", f"--config={spec}:rows=2", "--workdir=w", "--in-process"]) == 0
    printed = capsys.readouterr().out
    assert "row 2/2 seed=1: m/x 1 (0 s)" in printed
    assert "2 of 2 rows done: " in printed
    assert [row["row"] for row in rows.read("w")] == ["seed0", "seed1"]
    assert main(["study", f"--config={spec}:rows=2", "--workdir=w", "--in-process"]) == 0
    assert "0 of 2 rows to make now" in capsys.readouterr().out
    # More rows of the same study: what is there stays.
    assert main(["study", f"--config={spec}", "--workdir=w", "--in-process"]) == 0
    assert "1 of 3 rows to make now" in capsys.readouterr().out
    assert json.loads((tmp_path / "w" / "study.json").read_text())["name"] == "small"


def test_failed_rows_have_an_exit_code_except_in_a_part_of_an_array(spec, capsys):
    broken = f"--config={spec}:broken"
    assert main(["study", broken, "--workdir=w", "--in-process"]) == 5
    captured = capsys.readouterr()
    assert "row 2/3 seed=1: FAILED in measure m: RuntimeError: the ruler is lost" in captured.out
    assert "1 row failed: seed1" in captured.err
    assert main(["study", broken, "--workdir=w", "--in-process"]) == 5
    assert "0 of 3 rows to make now" in capsys.readouterr().out
    assert main(["study", broken, "--workdir=w", "--in-process", "--shard=1/3"]) == 0
    assert main(["study", broken, "--workdir=w", "--in-process", "--shard=0/3"]) == 0
    assert main(["study", f"--config={spec}", "--workdir=w", "--in-process", "--retry-failed"]) == 0
    assert [row["status"] for row in rows.read("w")] == ["done"] * 3


def test_one_row(spec, capsys):
    assert main(["study", f"--config={spec}", "--workdir=w", "--row=seed2"]) == 0
    assert [row["row"] for row in rows.read("w")] == ["seed2"]
    assert "study small" not in capsys.readouterr().out
    assert main(["study", f"--config={spec}", "--workdir=w", "--row=sed2"]) == 2
    message = "--row: got 'sed2', expected one of seed0, seed1, seed2. Did you mean 'seed2'?"
    assert message in capsys.readouterr().err


@pytest.mark.multiprocess
def test_rows_in_processes(spec, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert main(["study", f"--config={spec}:rows=2,broken=true", "--workdir=w", "--jobs=2"]) == 5
    printed = capsys.readouterr().out
    assert "row 1/2 seed=0: m/x 0 (0 s)" in printed
    assert "row 2/2 seed=1: FAILED in measure m: RuntimeError: the ruler is lost" in printed
    assert "the ruler is lost" in Path("w/logs/seed1.log").read_text()
    assert [row["status"] for row in rows.read("w")] == ["done", "failed"]


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_row_in_two_processes(spec, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "jaxalign", "study", f"--config={spec}:rows=2,broken=true", "--workdir=w"]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": "", COORDINATOR: f"127.0.0.1:{port}",
        NUM_PROCESSES: "2",
    }  # fmt: skip
    processes = [
        subprocess.Popen([*command, "--distributed", "--in-process"], env=environment | {PROCESS_ID: str(i)})
        for i in range(2)
    ]
    assert [process.wait(120) for process in processes] == [5, 5]
    assert [row["status"] for row in rows.read("w")] == ["done", "failed"]
    events = [json.loads(line) for line in (tmp_path / "w" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["measured"]  # by the first process alone


def test_jobs_for_schedulers(spec, tmp_path, capsys):
    assert main(["study", f"--config={spec}", "--emit=gke"]) == 0
    assert "kind: JobSet" in capsys.readouterr().out
    assert main(["study", f"--config={spec}", "--emit=slurm", "--out=jobs/submit.sh"]) == 0
    assert "--workdir=studies/small" in (tmp_path / "jobs" / "submit.sh").read_text()


def test_parts_of_a_study_in_one_folder(spec, capsys):
    assert main(["study", f"--config={spec}:rows=3", "--workdir=w", "--in-process"]) == 0
    capsys.readouterr()
    assert main(["study", f"--config={spec}:rows=1", "--workdir=w", "--in-process"]) == 0
    printed = capsys.readouterr().out
    assert "  and 2 rows of this study with other arguments, kept in rows.jsonl" in printed
    assert "1 of 1 row done, and 2 rows of this study with other arguments, kept in rows.jsonl: " in printed
    assert [row["row"] for row in rows.read("w")] == ["seed0", "seed1", "seed2"]


def test_flags_that_do_not_fit(capsys):
    flags = ["--emit=gke", "--row=nope", "--dry-run", "--retry-failed", "--jobs=0"]
    assert main(["study", "--config=x.py", *flags]) == 2
    printed = capsys.readouterr().err
    for flag in ("--row", "--dry-run", "--retry-failed", "--jobs"):
        assert f"{flag}: got it beside --emit" in printed, flag
    assert "--jobs: got 0, expected 1 or more" in printed
    flags = ["--row=a", "--shard=3/3", "--shared", "--jobs=2", "--in-process", "--out=x", "--distributed", "--drive"]
    assert main(["study", *flags]) == 2
    printed = capsys.readouterr().err
    for text in (
        "unknown flag --drive, expected one of ", "--config: missing", "--shard: got it beside --row",
        "--shared: got it beside --row", "--jobs: got it beside --row", "--in-process: got it beside --row",
        "--jobs: got it beside --in-process", "--out: got a file without --emit", "--jobs: got 2 with --distributed",
        "--shard: got '3/3', expected I/N",
    ):  # fmt: skip
        assert text in printed, text
    assert main(["study", "--config=x.py", "--config.train.steps=3"]) == 2
    assert "study takes no configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_study(arg):\n    return 1\n", "get_study of .* gave a int, expected a Study"),
        ("\ndef get_study(arg):\n    return 1 / 0\n", "study.py line 3: ZeroDivisionError"),
        ("def get_study(arg)\n", "study.py line 1: SyntaxError"),
        ("import nothing_of_that_name\n", "study.py line 1: ModuleNotFoundError"),
        ("def get_studdy(arg): ...\n", r"has no function get_study\(arg\). Did you mean 'get_studdy'"),
        ("def get_config(arg): ...\n", r"It has get_config\(arg\): jaxalign train takes it"),
    ],
)
def test_study_files_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "study.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_study(str(tmp_path / "study.py"))


def test_other_files(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match="expected a Python file with get_study"):
        load_study(str(tmp_path / "a.json"))
    with pytest.raises(ConfigError, match=r"no file .*b\.py"):
        load_study(str(tmp_path / "b.py"))


def test_a_study_of_the_package_does_not_hide_the_standard_library(monkeypatch):
    import jaxalign
    from jaxalign.config_transport import _importable

    folder = Path(str(jaxalign.__file__)).parent
    for inside in (folder, folder / "quickstart"):
        before = list(sys.path)
        with _importable(inside):
            assert sys.path == before
