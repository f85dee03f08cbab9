"""Published benchmark files become the rows that lm-eval's tasks read."""

import gzip
import json

import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.benchmark_files import BenchmarkFolder, data_of


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    opener = gzip.open if name.endswith(".gz") else open
    with opener(folder / name, "wt", encoding="utf-8") as file:
        file.write(text)


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture
def files(tmp_path):
    return lambda: BenchmarkFolder(tmp_path / "data", tmp_path / "cache")


def test_arc(tmp_path, files):
    row = {"problem": "Which is hot?\nOptions:\nthe sun\nice", "answer": "The sun", "solution": "The answer is The sun"}
    write(tmp_path / "data" / "bench-arc-easy", "test.jsonl.gz", [row])
    folder = files()
    (found,) = rows_of(folder.splits("arc_easy", ["train", "test"])["test"])
    assert found == {
        "question": "Which is hot?",
        "choices": {"text": ["the sun", "ice"], "label": ["A", "B"]},
        "answerKey": "A",
    }
    assert "lower case" in folder.notes["arc_easy"]


def test_hellaswag_becomes_the_prompt_of_the_task(tmp_path, files):
    lm_eval = pytest.importorskip("lm_eval.tasks.hellaswag.utils")
    import datasets

    texts = {
        "Roof: A man is on a roof. he": "Roof: A man is on a roof. He",
        "Baking: Mix flour and water. Wait an hour.": "Baking: Mix flour and water. Wait an hour.",
        "Run: A dog runs": "Run: A dog runs",
    }
    write(
        tmp_path / "data" / "hellaswag",
        "val.jsonl",
        [{"context": text, "label": 1, "endings": ["a", "b", "c", "d"]} for text in texts],
    )
    rows = rows_of(files().splits("hellaswag", ["validation"])["validation"])
    docs = lm_eval.process_docs(datasets.Dataset.from_list(rows))
    assert [doc["query"] for doc in docs] == list(texts.values())
    assert docs[0]["gold"] == 1


def test_mmlu_by_subject(tmp_path, files):
    rows = [
        {"subject": s, "question": "q\u2028?", "choices": list("wxyz"), "answer": a}
        for s, a in (("law", "B"), ("art", "D"))
    ]
    for split in ("dev", "val", "test"):
        write(tmp_path / "data" / "mmlu", f"{split}.jsonl", rows)
    folder = files()
    assert folder.subsets("mmlu", "subject", "test") == ["art", "law"]
    found = folder.splits("mmlu", ["dev", "test", "validation"], "law")
    assert sorted(found) == ["dev", "test", "validation"]
    (row,) = rows_of(found["test"])
    assert (row["answer"], row["question"]) == (1, "q\u2028?")


def test_truthfulqa_bbh_boolq(tmp_path, files):
    data = tmp_path / "data"
    (data / "truthfulqa").mkdir(parents=True)
    answers = {"yes": 1, "no": 0}
    tree = [{"question": "?", "mc1_targets": answers, "mc2_targets": answers}]
    with gzip.open(data / "truthfulqa" / "mc_task.json.gz", "wt") as file:
        json.dump(tree, file)
    (data / "bbh").mkdir()
    examples = {"canary": "x", "examples": [{"input": "1?", "target": "no"}]}
    (data / "bbh" / "sports_understanding.json").write_text(json.dumps(examples))
    write(data / "boolq", "dev.jsonl", [{"question": "q", "title": "t", "answer": True, "passage": "p"}])
    folder = files()
    (row,) = rows_of(folder.splits("truthfulqa", ["validation"])["validation"])
    assert row["mc1_targets"] == {"choices": ["yes", "no"], "labels": [1, 0]}
    (row,) = rows_of(folder.splits("bbh", ["test"], "sports_understanding")["test"])
    assert row == {"input": "1?", "target": "no"}
    found = folder.splits("boolq", ["train", "validation"])
    assert list(found) == ["validation"]
    assert rows_of(found["validation"]) == [{"passage": "p", "question": "q", "label": 1}]


def test_official_rows_stay_as_they_are(tmp_path, files):
    row = {"question": "1+1?", "answer": "#### 2", "extra": [1]}
    write(tmp_path / "data" / "gsm8k", "test.jsonl", [row])
    first, second = (files().splits("gsm8k", ["test"])["test"] for _ in range(2))
    assert rows_of(first) == [row]
    assert first == second


def test_what_is_missing_or_wrong_is_told(tmp_path, files):
    with pytest.raises(DataError, match="is not a folder"):
        files()
    data = tmp_path / "data"
    write(data / "piqa", "validation.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}, {"goal": "g"}])
    write(data / "bench-arc-easy", "test.jsonl", [{"problem": "q\nOptions:\na\nb", "answer": "c"}])
    (data / "gsm8k").mkdir()
    (data / "gsm8k" / "test.jsonl").write_text("{no json\n")
    folder = files()
    with pytest.raises(DataError, match=r"row 2: .* got columns goal, expected goal, sol1, sol2, label"):
        folder.splits("piqa", ["validation"])
    with pytest.raises(DataError, match="answer 'c' is none of the options"):
        folder.splits("arc_easy", ["test"])
    with pytest.raises(DataError, match="cannot be read as JSON"):
        folder.splits("gsm8k", ["test"])
    with pytest.raises(DataError, match=r"winogrande: .* has no folder 'winogrande'.*only bench-arc-easy, gsm8k, piqa"):
        folder.splits("winogrande", ["train"])


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("mmlu_anatomy", ("mmlu", "anatomy")),
        ("truthfulqa_mc2", ("truthfulqa", None)),
        ("bbh_cot_fewshot_causal_judgement", ("bbh", "causal_judgement")),
        ("bbh_zeroshot_sports_understanding", ("bbh", "sports_understanding")),
        ("leaderboard_bbh_formal_fallacies", ("bbh", "formal_fallacies")),
        ("bigbench_causal_judgment_multiple_choice", ("bigbench", "causal_judgment")),
        ("piqa", ("piqa", None)),
        ("lambada", None),
    ],
)
def test_data_of_tasks(task, expected):
    assert data_of(task) == expected


def test_the_published_files(shared_data, tmp_path):
    """Sizes as their sources state them."""
    folder = BenchmarkFolder(shared_data, tmp_path)
    for name, split, subset, rows in (
        ("arc_easy", "test", None, 2376),
        ("piqa", "validation", None, 1838),
        ("boolq", "validation", None, 3270),
        ("truthfulqa", "validation", None, 817),
        ("bbh", "test", "causal_judgement", 187),
        ("gsm8k", "test", None, 1319),
    ):
        assert len(rows_of(folder.splits(name, [split], subset)[split])) == rows
