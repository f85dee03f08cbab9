"""Suites through lm-eval on files of our own, with a model that knows or does not know the answers."""

import json
import types

import pytest

pytest.importorskip("lm_eval")

from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation import harness_results
from jaxalign.evaluation.benchmark_files import BenchmarkFolder
from jaxalign.evaluation.harness import JaxalignLM
from jaxalign.evaluation.outcome import Outcome
from jaxalign.evaluation.run_suite import run_suite
from jaxalign.evaluation.suites import SUITES, Benchmark, Suite, get_suite


class Oracle(JaxalignLM):
    """Prefers continuations that hold "good", and generates a fixed answer."""

    def __init__(self, **options):
        model = types.SimpleNamespace(config=types.SimpleNamespace(max_positions=4096, source=None))
        self._rank, self._world_size = 0, 1
        self.policy, self.max_length, self.max_gen_toks, self.batch_size = model, 4096, 256, 1
        self.tokenizer = types.SimpleNamespace(chat_template=None, name_or_path="oracle")
        from collections import Counter

        self.cut, self.calls = Counter(), Counter()
        self.prompts = []

    def loglikelihood(self, requests, disable_tqdm=False):
        self.prompts += [request.args[0] for request in requests]
        return [(0.0 if "good" in request.args[1] else -9.0, False) for request in requests]

    def generate_until(self, requests, disable_tqdm=False):
        return ["so it is #### 2" for _ in requests]


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    good = {"goal": "g", "sol1": "good", "sol2": "bad", "label": 0}
    write(root / "piqa", "validation.jsonl", [good, {**good, "label": 1}, good, good])
    write(root / "gsm8k", "test.jsonl", [{"question": f"q{n}", "answer": f"#### {n}"} for n in (1, 2, 3)])
    for subject, rights in (("anatomy", 4), ("virology", 1)):
        choices = ["good one", "b", "c", "d"]
        rows = [
            {"subject": subject, "question": f"q{n}", "choices": choices, "answer": "A" if n < rights else "B"}
            for n in range(6 if subject == "anatomy" else 2)
        ]
        for split in ("dev", "test", "val"):
            path = root / "mmlu" / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
    return BenchmarkFolder(root, tmp_path / "cache")


def suite(*benchmarks):
    return Suite(name="own", summary="", benchmarks=benchmarks)


def test_outcome_and_files(data, tmp_path):
    own = suite(
        Benchmark(task="piqa", metric="acc", shots=0),
        Benchmark(task="gsm8k", metric="exact_match,strict-match", shots=0, why="because."),
    )
    outcome = run_suite(Oracle(), own, folder=data, out=tmp_path / "out", model_name="runs/first", limit=3)
    assert outcome.metrics["piqa/acc"].values == [1.0, 0.0, 1.0]
    assert outcome.metrics["gsm8k/exact_match,strict-match"].values == [0.0, 1.0, 0.0]
    assert outcome.metrics["average"].value == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert outcome.metrics["piqa/acc"].higher_is_better is True
    # Of answers that it chooses among, a model that writes no language is measured all the same.
    given = {name: metric.of_given_text for name, metric in outcome.metrics.items()}
    assert given["piqa/acc"]
    assert not given["gsm8k/exact_match,strict-match"]
    assert not given["average"]
    spread = [outcome.metrics[name].stderr for name in ("piqa/acc", "gsm8k/exact_match,strict-match")]
    assert spread[0] == pytest.approx((2 / 3 / 3 / 2) ** 0.5, rel=1e-6)
    assert outcome.metrics["average"].stderr == pytest.approx((spread[0] ** 2 + spread[1] ** 2) ** 0.5 / 2)
    protocol = outcome.protocol["tasks"]["gsm8k"]
    assert (protocol["shots"], protocol["docs"], protocol["version"]) == (0, 3, 3.0)
    assert protocol["metric"] == "exact_match,strict-match"
    assert outcome.protocol["limit"] == 3
    assert "gsm8k: because." in outcome.notes
    assert "Only the first 3 documents of each task were asked." in outcome.notes
    assert outcome.samples[0]["completion"] == "so it is #### 2"
    assert Outcome.from_dict(json.loads(json.dumps(outcome.as_dict()))).metrics.keys() == outcome.metrics.keys()
    (results,) = (tmp_path / "out").rglob("results_*.json")
    written = json.loads(results.read_text())
    assert written["results"]["piqa"]["acc,none"] == pytest.approx(2 / 3)
    assert written["model_name"] == "runs/first"
    (samples,) = (tmp_path / "out").rglob("samples_gsm8k_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    # Once for each of the task's two filters.
    assert sorted((row["doc_id"], row["filter"]) for row in rows)[0] == (0, "flexible-extract")
    assert len(rows) == 6


def test_mmlu_has_both_averages(data):
    """The oracle prefers no letter; ties go to A, which is right in 4 of 6 and 1 of 2."""
    lm = Oracle()
    outcome = run_suite(lm, suite(Benchmark(task="mmlu", metric="acc", shots=1)), folder=data)
    assert outcome.metrics["mmlu/acc"].value == pytest.approx(5 / 8)
    assert outcome.metrics["mmlu/acc_unweighted"].value == pytest.approx((4 / 6 + 1 / 2) / 2)
    assert outcome.metrics["mmlu/acc"].n == 8
    assert sum(outcome.metrics["mmlu/acc"].values) == 5
    assert outcome.metrics["mmlu/acc"].of_given_text
    assert "mmlu: 2 of 57 subjects are in data." in outcome.notes
    assert outcome.details["subjects"]["mmlu"]["mmlu_virology"] == {"n": 2, "acc": 0.5}
    assert all(prompt.count("Answer:") == 2 for prompt in lm.prompts)


def test_right_and_wrong_are_kept_of_any_number_of_questions():
    """HellaSwag has 10,042: two models are compared question by question."""
    found = {
        "results": {"long": {"acc,none": 0.5, "acc_stderr,none": 0.005, "bleu,none": 0.25}},
        "samples": {
            "long": [{"filter": "none", "doc_id": n, "acc": float(n % 2), "bleu": n % 2 / 2} for n in range(10_042)]
        },
        "configs": {"long": {"output_type": "multiple_choice"}},
    }
    metrics = harness_results._task_metrics(found, "long")
    assert json.dumps(metrics["acc"].values) == json.dumps([0, 1] * 5021)
    assert metrics["acc"].of_given_text
    assert metrics["bleu"].values is None


def test_missing_examples_and_splits_are_errors(data):
    with pytest.raises(DataError) as error:
        run_suite(
            Oracle(),
            suite(
                Benchmark(task="gsm8k", shots=5),
                Benchmark(task="winogrande", shots=0),
                Benchmark(task="boolq", shots=0),
            ),
            folder=data,
        )
    first, second, third = error.value.problems
    assert "gsm8k: " in first
    assert "has no train split of it, from which its 5 few-shot examples come." in first
    assert second.startswith("winogrande:")
    assert third.startswith("boolq:")
    with pytest.raises(ConfigError, match=r"piqqa: lm-eval has no such task\. Did you mean 'piqa'"):
        run_suite(Oracle(), suite(Benchmark(task="piqqa")))
    with pytest.raises(ConfigError, match="no chat template"):
        run_suite(Oracle(), suite(Benchmark(task="piqa")), folder=data, chat=True)


def test_other_shots_are_noted(data):
    outcome = run_suite(Oracle(), suite(Benchmark(task="gsm8k", shots=5)), folder=data, shots=0)
    assert "gsm8k: 0 shots instead of the suite's 5." in outcome.notes
    assert outcome.protocol["tasks"]["gsm8k"]["shots"] == 0


def test_the_suite_of_study_1_has_the_12_text_benchmarks():
    from lm_eval.tasks import TaskManager

    study = SUITES["study1"]
    assert len(study.benchmarks) == 12
    known = TaskManager().all_tasks
    for each in SUITES.values():
        assert [b.task for b in each.benchmarks if b.task not in known] == []
    shots = {b.task: (b.shots, b.metric) for b in study.benchmarks}
    assert shots["arc_challenge"] == (25, "acc_norm")
    assert shots["hellaswag"] == (10, "acc_norm")
    assert shots["gsm8k"] == (5, "exact_match,strict-match")
    assert shots["openbookqa"] == (1, "acc_norm")


def test_names_of_suites():
    assert [b.task for b in get_suite("tasks:arc_easy,piqa").benchmarks] == ["arc_easy", "piqa"]
    with pytest.raises(ConfigError, match="Did you mean 'openllm'"):
        get_suite("openlm")
