"""The reference store: what is in a key, what a damaged file does, and that each entry is computed once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.records import Example
from jaxalign.errors import ConfigError, DataError, NumericsError
from jaxalign.training.reference_fill import fill, read
from jaxalign.training.reference_store import ReferenceStore, StoreStats

IDENTITY = ("weights-0123", "template-0123", "float32/forward-1")


def open_store(folder, **changes) -> ReferenceStore:
    return ReferenceStore(folder, *IDENTITY, **changes)


def make_entries(store: ReferenceStore, count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    keys, values = [], []
    for i in range(count):
        completion = rng.integers(0, 1000, 1 + i % 9)
        keys.append(store.key([seed, i], completion))
        values.append(rng.normal(size=len(completion)).astype(np.float32))
    return keys, values


def lengths_of(values) -> list[int]:
    return [len(value) for value in values]


def the_part(store: ReferenceStore) -> Path:
    (path,) = store.folder.glob("*.parquet")
    return path


def rewrite(path: Path, change) -> None:
    """Writes a part again with one column changed: a well-formed file with wrong content."""
    table = pq.ParquetFile(path).read()
    columns = change({name: table.column(name).to_pylist() for name in table.column_names})
    pq.write_table(pa.table(columns, schema=table.schema), path)


# --- keys


def test_key_is_sha256_of_length_prefixed_fields(tmp_path):
    def field(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    expected = b"".join(map(field, [b"jaxalign-reference-1", *(value.encode() for value in IDENTITY)]))
    expected += struct.pack("<Q3i3B", 3, 7, 8, 9, 0, 1, 1)
    assert open_store(tmp_path).key([7], [8, 9]) == hashlib.sha256(expected).digest()


def test_everything_the_values_depend_on_changes_the_key(tmp_path):
    def key(reference="r", template="t", precision="p", prompt=(1, 2), completion=(3, 4), scored=None):
        return ReferenceStore(tmp_path, reference, template, precision).key(prompt, completion, scored)

    variants = [
        key(),
        key(reference="r2"),
        key(template="t2"),
        key(precision="p2"),
        key(reference="rt", template="x"),
        key(prompt=(1, 9)),
        key(completion=(3, 9)),
        key(prompt=(1,), completion=(2, 3, 4)),
        key(prompt=(1, 2, 3), completion=(4,)),
        key(scored=(True, False)),
    ]
    assert len(set(variants)) == len(variants)
    assert key(scored=(True, True)) == key()
    # The same tokens with the same ones scored are the same computation, wherever the prompt is said to end.
    assert key(scored=(False, True)) == key(prompt=(1, 2, 3), completion=(4,))
    assert key(prompt=np.array([1, 2], np.int32), completion=np.array([3, 4], np.int64)) == key()


def test_fields_cannot_be_shifted_into_each_other(tmp_path):
    first = ReferenceStore(tmp_path, "ab", "c", "d").key([1], [2])
    second = ReferenceStore(tmp_path, "a", "bc", "d").key([1], [2])
    assert first != second


@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_empty_identity_is_refused(tmp_path, position):
    identity: list[str] = list(IDENTITY)
    identity[position] = ""
    with pytest.raises(ConfigError, match="is empty"):
        ReferenceStore(tmp_path, *identity)


def test_a_folder_that_cannot_be_made_is_told_with_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"^reference\.cache_dir: .*file.* cannot be used"):
            ReferenceStore(folder, *IDENTITY)


def test_a_folder_that_cannot_be_written_is_told_with_its_setting(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ConfigError, match=r"^reference\.cache_dir: .* cannot be used \(no permission to write\)"):
        ReferenceStore(tmp_path, *IDENTITY)


# --- reading and writing


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(-200, 0, width=32), min_size=0, max_size=30), min_size=1, max_size=40))
def test_round_trip_is_exact(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("store")
    store = open_store(folder)
    values = [np.array(array, np.float32) for array in arrays]
    keys = [store.key([i], range(len(value))) for i, value in enumerate(values)]
    store.put(keys, values)
    for reader in (store, open_store(folder), open_store(folder, read_only=True)):
        for got, expected in zip(reader.get(keys, lengths_of(values)), values, strict=True):
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, expected)


def test_many_parts_and_row_groups_in_any_order(tmp_path):
    store = open_store(tmp_path)
    keys, values = make_entries(store, 5000)
    for start in range(0, 5000, 1700):
        store.put(keys[start : start + 1700], values[start : start + 1700])
    order = np.random.default_rng(1).permutation(5000)
    reader = open_store(tmp_path)
    got = reader.get([keys[i] for i in order], [len(values[i]) for i in order])
    for i, array in zip(order, got, strict=True):
        np.testing.assert_array_equal(array, values[i])
    assert len(reader) == 5000
    assert reader.stats == StoreStats(hits=5000)


def test_keys_that_share_their_first_bytes_are_told_apart(tmp_path):
    store = open_store(tmp_path)
    keys = [b"\0" * 31 + bytes([i]) for i in range(50)]
    values = [np.array([-float(i)], np.float32) for i in range(50)]
    store.put(keys[:30], values[:30])
    store.put(keys[30:], values[30:])
    for reader in (store, open_store(tmp_path)):
        np.testing.assert_array_equal(np.concatenate(reader.get(keys, [1] * 50)), np.concatenate(values))
        assert reader.missing([b"\0" * 31 + b"\xff", keys[0]], [1, 1]).tolist() == [0]


def test_missing_and_get_of_unknown_keys(tmp_path):
    store = open_store(tmp_path)
    keys, values = make_entries(store, 6)
    store.put(keys[:4], values[:4])
    assert store.missing(keys, lengths_of(values)).tolist() == [4, 5]
    with pytest.raises(KeyError, match="2 of 6"):
        store.get(keys, lengths_of(values))
    assert store.missing([], []).size == 0
    assert store.get([], []) == []


def test_entries_of_other_references_are_not_found(tmp_path):
    store = open_store(tmp_path)
    store.put([store.key([1], [2])], [np.array([-1.0])])
    for other in (("other", *IDENTITY[1:]), (IDENTITY[0], "other", IDENTITY[2]), (*IDENTITY[:2], "other")):
        reader = ReferenceStore(tmp_path, *other)
        assert reader.missing([reader.key([1], [2])], [1]).tolist() == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_written(tmp_path, value):
    store = open_store(tmp_path)
    keys, values = make_entries(store, 3)
    values[1] = np.array([0.0, value], np.float32)
    with pytest.raises(NumericsError, match="entry 1"):
        store.put(keys, values)
    assert list(store.folder.iterdir()) == []


def test_a_read_only_store_writes_nothing(tmp_path):
    reader = open_store(tmp_path / "none", read_only=True)
    assert reader.missing([reader.key([1], [2])], [1]).tolist() == [0]
    with pytest.raises(ConfigError, match="read-only"):
        reader.put([reader.key([1], [2])], [np.zeros(1)])
    assert not (tmp_path / "none").exists()


# --- copies


def test_the_oldest_copy_is_read_and_copies_are_counted(tmp_path):
    store = open_store(tmp_path)
    key = store.key([1], [2])
    store.put([key], [np.array([-1.0], np.float32)])
    open_store(tmp_path).put([key], [np.array([-1.0], np.float32)])
    open_store(tmp_path).put([key], [np.array([-2.0], np.float32)])
    reader = open_store(tmp_path)
    assert reader.get([key], [1])[0].tolist() == [-1.0]
    assert (reader.stats.duplicates, reader.stats.conflicts) == (1, 1)


def test_a_damaged_copy_gives_way_to_a_good_one(tmp_path, caplog):
    store = open_store(tmp_path)
    key = store.key([1], [2])
    store.put([key], [np.array([-1.0], np.float32)])
    rewrite(the_part(store), lambda columns: {**columns, "logps": [[-9.0]]})
    open_store(tmp_path).put([key], [np.array([-1.0], np.float32)])
    reader = open_store(tmp_path)
    assert reader.get([key], [1])[0].tolist() == [-1.0]
    assert reader.stats.corrupted == 1
    assert "damaged" in caplog.text


# --- damage


def swap(columns):
    return {**columns, "logps": [columns["logps"][1], columns["logps"][0], *columns["logps"][2:]]}


def change_value(columns):
    return {**columns, "logps": [[v - 1 for v in columns["logps"][0]], *columns["logps"][1:]]}


def not_finite(columns):
    values = np.full(len(columns["logps"][0]), np.nan, np.float32)
    check = hashlib.blake2b(columns["key"][0] + values.tobytes(), digest_size=8).digest()
    return {**columns, "logps": [values.tolist(), *columns["logps"][1:]], "checksum": [check, *columns["checksum"][1:]]}


@pytest.mark.parametrize(("change", "damaged"), [(swap, [0, 1]), (change_value, [0]), (not_finite, [0])])
def test_wrong_content_counts_as_missing(tmp_path, caplog, change, damaged):
    store = open_store(tmp_path)
    keys = [store.key([i], [1, 2]) for i in range(4)]
    values = [np.array([-i, -1.0], np.float32) for i in range(4)]
    store.put(keys, values)
    rewrite(the_part(store), change)
    reader = open_store(tmp_path)
    assert reader.missing(keys, [2] * 4).tolist() == damaged
    assert reader.stats.corrupted == len(damaged)
    assert "damaged entries" in caplog.text
    reader.put([keys[i] for i in damaged], [values[i] for i in damaged])
    for got, expected in zip(open_store(tmp_path).get(keys, [2] * 4), values, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_another_number_of_tokens_counts_as_missing(tmp_path):
    store = open_store(tmp_path)
    keys, values = make_entries(store, 3)
    store.put(keys, values)
    wrong = lengths_of(values)
    wrong[2] += 1
    assert store.missing(keys, wrong).tolist() == [2]
    assert store.stats.corrupted == 1


def test_no_byte_flip_or_cut_is_ever_read_as_another_value(tmp_path):
    store = open_store(tmp_path)
    keys, values = make_entries(store, 40)
    store.put(keys, values)
    path = the_part(store)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    changed = [bytearray(whole) for _ in range(300)]
    for i, content in enumerate(changed):
        # Every region of the file, and its footer more closely.
        at = i * len(whole) // 200 if i < 200 else len(whole) - 1 - (i - 200) * 12
        content[at] ^= 1 << int(rng.integers(8))
    changed += [bytearray(whole[:cut]) for cut in (0, 3, 100, len(whole) // 2, len(whole) - 1)]
    found = 0
    for content in changed:
        path.write_bytes(content)
        reader = open_store(tmp_path)
        missing = set(reader.missing(keys, lengths_of(values)).tolist())
        kept = [i for i in range(40) if i not in missing]
        for i, got in zip(kept, reader.get([keys[i] for i in kept], [len(values[i]) for i in kept]), strict=True):
            np.testing.assert_array_equal(got, values[i])
        # Bytes that no reader uses (statistics, names) may change unseen; what was lost is counted.
        assert bool(missing) == (reader.stats.corrupted > 0) or len(reader) < 40
        found += bool(missing)
    assert found > 150


def test_a_part_that_vanishes_counts_as_missing(tmp_path):
    store = open_store(tmp_path)
    keys, values = make_entries(store, 3)
    store.put(keys, values)
    the_part(store).unlink()
    assert store.missing(keys, lengths_of(values)).tolist() == [0, 1, 2]


def test_temporary_files_are_ignored_and_cleaned(tmp_path):
    store = open_store(tmp_path)
    keys, values = make_entries(store, 3)
    store.put(keys, values)
    host = socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {f".tmp-{host}-{dead.pid}-aa": False, f".tmp-{host}-{os.getpid()}-bb": True, ".tmp-elsewhere-7-cc": True}
    for name in names:
        (store.folder / name).write_bytes(b"PAR1 half a file")
    old = store.folder / ".tmp-elsewhere-8-dd"
    old.write_bytes(b"")
    os.utime(old, (0.0, time.time() - 2e5))
    reader = open_store(tmp_path)
    assert reader.missing(keys, lengths_of(values)).size == 0
    assert {path.name for path in store.folder.glob(".tmp-*")} == {name for name, kept in names.items() if kept}


# --- several processes

WRITER = textwrap.dedent(
    """
    import sys, numpy as np
    from jaxalign.training.reference_store import ReferenceStore, StoreStats
    folder, process, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store = ReferenceStore(folder, "weights-0123", "template-0123", "float32/forward-1", process_index=process)
    for i in range(count):
        # Every second entry is also written by the next process.
        number = i * 2 + process % 2 if i % 2 else i * 2
        store.put([store.key([number], [1, 2])], [np.array([-number, -1.5], np.float32)])
        print("put", flush=True)
    """
)


@pytest.mark.multiprocess
def test_processes_write_at_once(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(p), "20"], stdout=subprocess.DEVNULL)
        for p in range(3)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    store = open_store(tmp_path)
    numbers = [i for i in range(40) if i % 4 != 1]
    keys = [store.key([n], [1, 2]) for n in numbers]
    for n, got in zip(numbers, store.get(keys, [2] * len(keys)), strict=True):
        assert got.tolist() == [-n, -1.5]
    assert len(store) == 60
    assert (store.stats.duplicates, store.stats.conflicts) == (30, 0)


@pytest.mark.multiprocess
def test_kill_at_any_moment_leaves_whole_parts(tmp_path):
    rng = np.random.default_rng(0)
    for parts, wait in zip((1, 4, 9), rng.uniform(0.0, 0.01, 3), strict=True):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, "0", "100000"], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(parts):
            writer.stdout.readline()
        time.sleep(wait)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    store = open_store(tmp_path)
    assert not list(store.folder.glob(".tmp-*"))
    keys = [store.key([n], [1, 2]) for n in range(4000)]
    missing = set(store.missing(keys, [2] * len(keys)).tolist())
    kept = [n for n in range(4000) if n not in missing]
    assert store.stats.corrupted == 0
    assert len(kept) >= 9
    for n, got in zip(kept, store.get([keys[n] for n in kept], [2] * len(kept)), strict=True):
        assert got.tolist() == [-n, -1.5]


# --- fill


class Scorer:
    """A reference whose log-probability of a token is a function of prompt and token.

    It notes the examples of each call, counts completions, and begins with the last example.
    """

    def __init__(self, stop_after: int | None = None):
        self.completions = 0
        self.calls: list[int] = []
        self.stop_after = stop_after

    def __call__(self, examples):
        self.calls.append(len(examples))
        for done, i in enumerate(reversed(range(len(examples)))):
            if done == self.stop_after:
                raise KeyboardInterrupt
            self.completions += len(examples[i].completions)
            yield i, tuple(self.truth(examples[i], c) for c in examples[i].completions)

    @staticmethod
    def truth(example, completion):
        return (-np.asarray(completion) / 7 - example.prompt.sum()).astype(np.float32)


def make_examples(count: int, repeated: bool = False) -> list[Example]:
    rng = np.random.default_rng(5)
    examples = []
    for i in range(count):
        completions = tuple(rng.integers(0, 50, rng.integers(1, 8)).astype(np.int32) for _ in range(2))
        examples.append(Example(np.array([2, i], np.int32), completions, {}, f"pairs.jsonl row {i}"))
    return [*examples, *examples[: count // 2]] if repeated else examples


def check_read(folder, examples) -> None:
    cached = read(open_store(folder), examples)
    assert len(cached) == len(examples)
    for i, example in enumerate(examples):
        for got, completion in zip(cached.tokens(i), example.completions, strict=True):
            np.testing.assert_array_equal(got, Scorer.truth(example, completion))
        np.testing.assert_array_equal(cached.lengths(i), [len(c) for c in example.completions])
        expected = [Scorer.truth(example, c).astype(np.float64).sum() for c in example.completions]
        np.testing.assert_allclose(cached.sums(i), expected, rtol=1e-7)


def test_fill_computes_each_completion_once(tmp_path):
    examples = make_examples(21, repeated=True)
    scorer, seen = Scorer(), []
    report = fill(open_store(tmp_path), examples, scorer, part_entries=10, progress=lambda *at: seen.append(at))
    assert report == (42, 0, 42, 0)
    assert scorer.calls == [21]
    assert seen == [(done, 21) for done in range(1, 22)]
    check_read(tmp_path, examples)
    # A sweep: other runs, a subset, a superset. Only what is new is computed.
    for beta in range(5):
        del beta
        assert fill(open_store(tmp_path), examples, scorer) == (42, 42, 0, 0)
    assert fill(open_store(tmp_path), examples[5:9], scorer) == (8, 8, 0, 0)
    assert scorer.completions == 42
    assert fill(open_store(tmp_path), make_examples(23), scorer) == (46, 42, 4, 0)
    assert scorer.completions == 46


def test_fill_goes_on_where_it_was_stopped(tmp_path):
    examples = make_examples(20)
    with pytest.raises(KeyboardInterrupt):
        fill(open_store(tmp_path), examples, Scorer(stop_after=11), part_entries=4)
    scorer = Scorer()
    assert fill(open_store(tmp_path), examples, scorer) == (40, 20, 20, 0)  # but for the part that was not whole
    assert (scorer.calls, scorer.completions) == ([10], 20)
    check_read(tmp_path, examples)


def test_parts_are_written_while_the_work_goes_on(tmp_path):
    """A slow disk holds up nothing but what must wait for it, and a full one is noticed."""
    store, examples, seen = open_store(tmp_path), make_examples(12), []

    class Watched(Scorer):
        def __call__(self, examples):
            for each in super().__call__(examples):
                seen.append(len(list(store.folder.glob("part-*"))))
                yield each

    put, slow = store.put, threading.Event()

    def late(keys, values):
        slow.wait(10)
        put(keys, values)

    store.put = late
    threading.Timer(0.2, slow.set).start()
    fill(store, examples, Watched(), part_entries=2)
    assert seen[:3] == [0, 0, 0]  # two parts wait, the third is being collected
    assert seen[-1] >= 8
    check_read(tmp_path, examples)

    def full(keys, values):
        raise OSError("no space left")

    store.put = full
    with pytest.raises(OSError, match="no space"):
        fill(store, make_examples(20), Scorer(), part_entries=2)


def test_a_part_that_took_long_is_written_before_it_is_full(tmp_path):
    fill(open_store(tmp_path), make_examples(3), Scorer(), part_seconds=0.0)
    assert len(list(open_store(tmp_path).folder.glob("part-*"))) == 6


def test_fill_computes_damaged_entries_again(tmp_path):
    examples = make_examples(6)
    store = open_store(tmp_path)
    fill(store, examples, Scorer())
    rewrite(the_part(store), change_value)
    scorer = Scorer()
    assert fill(open_store(tmp_path), examples, scorer) == (12, 11, 1, 1)
    assert (scorer.calls, scorer.completions) == ([1], 1)  # the other completion is known
    check_read(tmp_path, examples)


def test_fill_takes_the_lacking_half_of_a_known_example(tmp_path):
    (example,) = make_examples(1)
    first = dataclasses.replace(example, completions=example.completions[:1])
    fill(open_store(tmp_path), [first], Scorer())
    assert fill(open_store(tmp_path), [example], Scorer()) == (2, 1, 1, 0)
    check_read(tmp_path, [example, first])


def test_fill_refuses_another_number_of_values(tmp_path):
    def score(examples):
        return [(i, tuple(np.zeros(len(c) + 1) for c in example.completions)) for i, example in enumerate(examples)]

    with pytest.raises(DataError, match=r"pairs.jsonl row 0: the reference scored \d+ tokens of a completion of \d+"):
        fill(open_store(tmp_path), make_examples(2), score)


def test_fill_refuses_values_that_are_not_finite(tmp_path):
    def score(examples):
        return [(i, tuple(np.full(len(c), np.nan) for c in e.completions)) for i, e in enumerate(examples)]

    with pytest.raises(NumericsError, match="not finite"):
        fill(open_store(tmp_path), make_examples(2), score)


def test_fill_of_nothing(tmp_path):
    assert fill(open_store(tmp_path), [], Scorer()) == (0, 0, 0, 0)
    assert len(read(open_store(tmp_path), [])) == 0


@pytest.mark.multiprocess
def test_fill_survives_kills(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        sys.path.insert(0, sys.argv[2])
        from test_reference_store import Scorer, fill, make_examples, open_store
        class Slow(Scorer):
            def __call__(self, examples):
                for each in super().__call__(examples):
                    time.sleep(0.01)
                    print("example", flush=True)
                    yield each
        fill(open_store(sys.argv[1]), make_examples(300), Slow(), part_entries=2)
        """
    )
    here = str(Path(__file__).parent)
    for batches in (7, 12):
        child = subprocess.Popen([sys.executable, "-c", script, tmp_path, here], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(batches):
            child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()
    examples = make_examples(300)
    report = fill(open_store(tmp_path), examples, Scorer())
    assert report.entries == 600
    assert report.hits >= 2 * (4 + 9)  # the example that was told last, and two parts that waited for the disk
    assert report.corrupted == 0
    check_read(tmp_path, examples)
