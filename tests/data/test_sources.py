from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxalign.data.contract import RowProblem
from jaxalign.data.sources import read_rows
from jaxalign.errors import DataError

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "é", "n": 2}]


def write(folder: Path, name: str) -> Path:
    path = folder / name
    kind = name.removesuffix(".gz")
    if kind.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        data = path.read_bytes()
    elif kind.endswith(".json"):
        data = json.dumps(ROWS, indent=1).encode()
    else:
        data = "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


KINDS = ["x.jsonl", "x.json", "x.parquet", "x.ndjson"]


@pytest.mark.parametrize("name", [*KINDS, *(f"{k}.gz" for k in KINDS)])
def test_every_kind_of_file(tmp_path, name):
    read = read_rows(str(write(tmp_path, name)))
    assert [value for _, value in read.rows] == ROWS
    assert [str(where) for where, _ in read.rows] == [f"{name} row 1", f"{name} row 2"]
    assert len(next(iter(read.files.values())) or "") == 64


def test_content_decides_between_array_and_lines(tmp_path):
    lines = tmp_path / "lines.json"
    lines.write_text('{"a": 1}\n{"a": 2}\n')
    array = tmp_path / "array.jsonl"
    array.write_text('\ufeff[{"a": 1}, {"a": 2}]', encoding="utf-8")
    for path in (lines, array):
        assert [v for _, v in read_rows(path).rows] == [{"a": 1}, {"a": 2}]


def test_folder_glob_and_several_files(tmp_path):
    for name in ("a.jsonl", "b.json.gz"):
        write(tmp_path, name)
    (tmp_path / "README.md").write_text("no data")
    for source in (tmp_path, str(tmp_path / "*.json*"), [tmp_path / "a.jsonl", str(tmp_path / "b.json.gz")]):
        read = read_rows(source)
        assert [w.file for w, _ in read.rows] == ["a.jsonl"] * 2 + ["b.json.gz"] * 2
        assert len(read.files) == 2


def test_files_of_the_same_name_are_told_apart(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "a.jsonl")
    read = read_rows([tmp_path / "one" / "a.jsonl", tmp_path / "two" / "a.jsonl"])
    assert len({w.file for w, _ in read.rows}) == 2


def test_rows_in_memory():
    assert [v for _, v in read_rows(ROWS).rows] == ROWS
    with pytest.raises(DataError, match="no rows"):
        read_rows([])


def test_ids_are_shown():
    (where, _), *_ = read_rows([{"prompt_id": "abc", "prompt": "x"}]).rows
    assert str(where) == "rows row 1 (id abc)"


def test_bad_lines_keep_their_number(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n{"a": "\xff"}\n{"a": 2}\n')
    rows = read_rows(path).rows
    assert [w.row for w, _ in rows] == [1, 3, 4, 5]
    assert [v.reason for _, v in rows if isinstance(v, RowProblem)] == ["malformed JSON", "non-UTF-8"]
    assert "0xff" in rows[2][1].detail


def test_bad_strings_in_parquet_are_found_by_row(tmp_path):
    values = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(pa.table({"text": values}), tmp_path / "x.parquet")
    rows = read_rows(tmp_path / "x.parquet").rows
    assert [v if isinstance(v, dict) else v.reason for _, v in rows] == [{"text": "a"}, "non-UTF-8", {"text": "b"}]


def test_what_cannot_be_read_is_told_with_its_place(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "array.json").write_text('[{"a": 1},\n {"a" 2}]')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}')[:-12])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "x.csv").write_text("a,b")
    (tmp_path / "pretty.json").write_text('{\n "a": 1,\n "b": 2\n}')
    (tmp_path / "empty").mkdir()
    cases = {
        "trian.jsonl": r"trian\.jsonl: no such file\. Did you mean 'train\.jsonl'\?",
        "train.jsonl": r"train\.jsonl: the file has no rows",
        "array.json": r"array\.json line 2 column 7: not valid JSON",
        "cut.jsonl.gz": r"cut\.jsonl\.gz: cannot be read: Compressed file ended",
        "x.parquet": r"x\.parquet: cannot be read as Parquet",
        "x.csv": r"x\.csv: unknown kind of file \(expected \.jsonl",
        "pretty.json": r"pretty\.json: neither a JSON array of objects nor one JSON object a line",
        "empty": r"empty: the folder holds no data file",
        "*.nothing": "no file matches",
        "nowhere/train.jsonl": "there is no folder",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            read_rows(str(tmp_path / name))


def test_all_broken_files_are_told_at_once(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError) as error:
        read_rows(tmp_path)
    assert len(error.value.problems) == 2


def test_a_data_set_without_a_network():
    with pytest.raises(DataError, match="some-org/some-data: is neither a file nor a Hugging Face data set"):
        read_rows("some-org/some-data")


def test_a_data_set_with_its_splits(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train_prefs", "test_prefs"])

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    read = read_rows("org/name", config="small")
    assert [v for _, v in read.rows] == ROWS
    assert str(read.rows[1][0]) == "org/name train_prefs row 2"
    assert asked == [("org/name", "small", "train_prefs")]
    with pytest.raises(DataError, match="there is no split 'validation'; it has train_prefs, test_prefs"):
        read_rows("org/name", split="validation")
