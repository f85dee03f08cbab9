"""Rows as files, and what they tell of a run."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from jaxalign import files
from jaxalign.errors import DataError
from jaxalign.evaluation.journal import Journal
from jaxalign.files import file_hash, write_text
from jaxalign.studies import rows
from jaxalign.studies.folders import Folders, locked, note_event, write_json
from jaxalign.studies.stages import curves
from jaxalign.studies.study import Published, Study
from tests.conftest import REPOSITORY


def row(name, key="k", **more):
    return {"row": name, "key": key, "labels": {"n": name}, "status": "done", **more}


def test_rows_come_in_the_plans_order_and_only_of_their_keys(tmp_path):
    folders = Folders.of(tmp_path)
    for each in (row("b"), row("a", value=math.nan), row("c", key="old"), row("d", status="failed")):
        rows.write_row(folders, each)
    folders.row("e").write_text('{"row": "e", "key": "k", "status": "do')  # never by us: writes are whole or absent
    found = rows.collect(folders, dict.fromkeys("dcbae", "k"))
    assert [each["row"] for each in found] == ["d", "b", "a"]
    assert rows.read(tmp_path) == rows.read(tmp_path / "rows.jsonl") == found
    assert found[2]["value"] is None
    assert not list(tmp_path.rglob("*.tmp"))


def a_study(name="s", **changes) -> Study:
    published = (Published(labels={"n": "a"}, metric="x", value=0.5, source="table 1", unit="share"),)
    tree = {"question": "q", "trials": (), "measures": (), "headline": "m/x", "published": published}
    return Study(**{"name": name, **tree, **changes})


def test_rows_of_other_parts_of_the_study_stay_with_the_study_as_it_is_now(tmp_path):
    folders = Folders.of(tmp_path)
    rows.note_study(folders, a_study(notes=("old",)), {"a": "k", "b": "k", "c": "k"})
    old = {"study": rows.study_header(a_study(notes=("old",)))}
    for each in (row("a", **old), row("b", **old), row("c", key="made by an earlier version", **old)):
        rows.write_row(folders, each)
    rows.write_row(folders, row("z", **old))  # of a plan that nobody recorded
    rows.write_row(folders, row("y", study={"name": "another"}))
    rows.write_row(folders, row("same", **old) | {"labels": {"n": "d"}})  # the same row, from before it was renamed
    rows.write_row(folders, row("d", **old))
    now = a_study(notes=("new",), compare="n")
    rows.note_study(folders, now, {"d": "k", "b": "changed"})
    found = rows.collect(folders, {"d": "k", "b": "changed"}, now)
    assert [each["row"] for each in found] == ["d", "a", "z"]
    assert all(each["study"] == rows.study_header(now) for each in found)
    assert found[0]["study"]["published"][0]["unit"] == "share"
    # The same without a plan, however little of it is left.
    (tmp_path / "rows.jsonl").write_text("")
    assert rows.collect_folder(tmp_path) == found == rows.read(tmp_path)


def test_a_folder_without_the_rows_own_files_is_read_as_it_is(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no rows can be read"):
        rows.collect_folder(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("a")) + "\n")
    assert rows.collect_folder(tmp_path) == rows.collect_folder(tmp_path / "rows.jsonl") == [row("a")]
    # Rows that nothing else is known of are taken by name, and a folder that cannot be written is read.
    for name in "cb":
        rows.write_row(Folders.of(tmp_path), row(name))
    assert [each["row"] for each in rows.collect_folder(tmp_path)] == ["b", "c"]

    def read_only(path, text):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(rows, "write_text", read_only)
    assert [each["row"] for each in rows.collect_folder(tmp_path)] == ["b", "c"]


def test_paths_into_the_study_are_relative(tmp_path):
    folders = Folders.of(tmp_path)
    outside = "/somewhere/else"
    rows.write_row(
        folders, row("a", model=str(folders.stage("sft", "1") / "export"), config={"x": [outside, str(tmp_path)]})
    )
    found = rows.read_row(folders.row("a"))
    assert found is not None
    assert found["model"] == "stages/sft-1/export"
    assert found["config"]["x"] == [outside, "."]


def test_files_that_are_no_rows(tmp_path):
    with pytest.raises(DataError, match="no rows can be read"):
        rows.read(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"row": "a"}\n{"labels": {}}\n')
    with pytest.raises(DataError) as caught:
        rows.read(tmp_path)
    assert [problem.partition(": ")[2][:15] for problem in caught.value.problems] == ["no row of a stu"] * 2
    (tmp_path / "rows.jsonl").write_text('{"row"\n3\n')
    with pytest.raises(DataError, match=r"rows.jsonl line 1: not JSON.*\n.*line 2: got int, expected an object"):
        rows.read(tmp_path)


def test_two_makings_of_a_row_compare_without_times():
    one = row("a", started="1", seconds=3, results={"m": {"seconds": 1, "metrics": {"x": {"value": 2}}}})
    two = row("a", started="2", seconds=4, results={"m": {"seconds": 5, "metrics": {"x": {"value": 2}}}})
    one["error"], two["error"] = {"message": "m", "stderr": ["x"]}, {"message": "m", "stderr": ["y"]}
    assert rows.comparable(one) == rows.comparable(two)
    two["results"]["m"]["metrics"]["x"]["value"] = 3
    assert rows.comparable(one) != rows.comparable(two)


def test_numpy_numbers_and_nan_become_json(tmp_path):
    write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": np.arange(2), "c": math.inf, "d": (1, np.bool_(True))})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 0.5, "b": [0, 1], "c": None, "d": [1, True]}


def test_a_file_is_whole_at_every_moment(tmp_path):
    file, texts = tmp_path / "x", ["a" * 200_000, "b" * 100_000]
    write_text(file, texts[0])
    stop = threading.Event()

    def write():
        for i in range(40):
            write_text(file, texts[i % 2])
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not stop.is_set():
        seen.add(file.read_text())
    writer.join()
    assert seen <= set(texts)


def test_the_hash_of_a_large_file_is_kept_while_it_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXALIGN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "LARGE", 8)
    monkeypatch.setattr(files, "SETTLED", -1.0)
    read, path = [], tmp_path / "model.safetensors"
    real = files._read_hash
    monkeypatch.setattr(files, "_read_hash", lambda path: read.append(path) or real(path))

    def change(content):
        before = path.stat().st_ctime_ns if path.exists() else 0
        path.write_bytes(content)
        os.utime(path, (1e9, 1e9))  # as archives and images do, whatever is in it
        while path.stat().st_ctime_ns == before:  # a clock of a few milliseconds
            os.utime(path, (1e9, 1e9))

    change(b"0123456789")
    assert file_hash(path) == file_hash(path) == hashlib.sha256(b"0123456789").hexdigest()
    (tmp_path / "link").symlink_to(path)
    assert file_hash(tmp_path / "link") == file_hash(path)
    assert len(read) == 1
    change(b"0123x56789")  # of the same size and time of modification
    assert file_hash(path) == hashlib.sha256(b"0123x56789").hexdigest()
    # What has just been written may be written again before the clock moves: it is not kept.
    monkeypatch.setattr(files, "SETTLED", 2.0)
    path.write_bytes(b"9876543210")
    assert file_hash(path) == hashlib.sha256(b"9876543210").hexdigest() == file_hash(path)
    assert len(read) == 4
    # A damaged note, and a cache that cannot be written, cost time only.
    change(b"0123456789")
    for note in (tmp_path / "cache" / "jaxalign" / "hashes").iterdir():
        note.write_text("{")
    assert file_hash(path) == hashlib.sha256(b"0123456789").hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    assert file_hash(path) == hashlib.sha256(b"0123456789").hexdigest()


def test_a_file_system_without_locks_is_no_lock_of_somebody_else(tmp_path, monkeypatch, caplog):
    def unsupported(file, how):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with Journal(tmp_path / "a.jsonl") as journal, locked(tmp_path / "b"):
        journal.append({"x": 1})
    assert "cannot be locked (Operation not supported)" in caplog.text
    assert len(caplog.records) == 2


@pytest.mark.multiprocess
def test_a_lock_is_held_by_one_and_given_back_by_a_dead_process(tmp_path):
    path, told = tmp_path / "locks" / "x", []
    program = (
        "import os, pathlib, sys, time\nfrom jaxalign.studies.folders import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(0.5)\n    os._exit(9)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with locked(path, lambda: told.append("waiting")):
        assert told == ["waiting"]
    assert child.wait(30) == 9
    child.stdout.close()


def test_events_are_lines(tmp_path):
    folders = Folders.of(tmp_path / "new")
    note_event(folders, "stage started", stage="sft")
    note_event(folders, "stage done", stage="sft")
    assert [json.loads(line)["event"] for line in folders.events.read_text().splitlines()] == [
        "stage started",
        "stage done",
    ]


def test_curves_are_thinned_and_keep_their_ends():
    record = []
    for step in range(1, 201):
        record.append({"step": step, "loss": 1 / step, "perf/mfu": 1.0, "epoch": 0.1, "num_tokens": 3})
        if step % 100 == 0:
            record.append({"step": step, "eval_loss": 0.123456789, "eval_kl/token": None})
    found = curves(record)
    assert list(found) == ["train/step", "train/loss", "eval/step", "eval/loss", "eval/kl/token"]
    assert len(found["train/step"]) == len(found["train/loss"]) == 60
    assert (found["train/step"][0], found["train/step"][-1]) == (1, 200)
    assert found["eval/loss"] == [0.123457, 0.123457]
    assert found["eval/kl/token"] == [None, None]
    assert curves([]) == {}
