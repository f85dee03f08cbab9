"""lm-eval's own hf backend and ours give the same answers to the same requests, on real benchmarks and a real model.

The hf backend runs in float64: in float32 each of the two is off by up to 6e-5 on a log-likelihood of -394 nats, and
they may be so in opposite directions.
"""

import math

import jax
import pytest

pytest.importorskip("lm_eval")

pytestmark = [pytest.mark.judge, pytest.mark.slow]

TASKS = (
    "arc_easy",
    "hellaswag",
    "mmlu_anatomy",
    "mmlu_philosophy",
    "boolq",
    "piqa",
    "truthfulqa_mc1",
    "gsm8k",
    "bbh_zeroshot_sports_understanding",
    "leaderboard_bbh_sports_understanding",
)
DOCUMENTS = 24
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def answers(shared_data, tmp_path_factory):
    """Requests and answers by kind: of our backend through a suite, and of the hf backend to the same requests."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from jaxalign.data.tokenizer import load_tokenizer
    from jaxalign.evaluation.benchmark_files import BenchmarkFolder
    from jaxalign.evaluation.harness import JaxalignLM
    from jaxalign.evaluation.run_suite import run_suite
    from jaxalign.evaluation.suites import Benchmark, Suite
    from jaxalign.models.huggingface import load_policy
    from jaxalign.training.mesh import make_mesh

    class HF(HFLM):
        max_gen_toks = NEW_TOKENS

    folder = str(shared_data / "lm-stories260k" / "hf")
    policy, variables = load_policy(folder, dtype="float32")
    plan = make_mesh(devices=jax.devices()[:1])
    ours = JaxalignLM(policy, variables, load_tokenizer(folder), plan=plan, batch_tokens=1024, overlong="cut")
    ours.max_gen_toks = NEW_TOKENS
    recorded = {}

    def record(kind):
        answer = getattr(ours, kind)

        def recording(requests, **options):
            results = answer(requests, **options)
            recorded[kind] = (requests, results)
            return results

        return recording

    for kind in ("loglikelihood", "generate_until"):
        setattr(ours, kind, record(kind))
    # The leaderboard's own 3 examples, which are the same before every question, and none elsewhere.
    benchmarks = tuple(Benchmark(task=task, shots=None if "leaderboard" in task else 0) for task in TASKS)
    suite = Suite(name="parity", summary="", benchmarks=benchmarks)
    files = BenchmarkFolder(shared_data, tmp_path_factory.mktemp("benchmarks"))
    outcome = run_suite(ours, suite, folder=files, limit=DOCUMENTS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    hf = HF(pretrained=folder, dtype="float64", device="cpu", batch_size=16)
    theirs = {kind: getattr(hf, kind)(requests, disable_tqdm=True) for kind, (requests, _) in recorded.items()}
    torch.set_num_threads(threads)
    return ours, outcome, recorded, theirs


def test_log_likelihoods_and_greedy_flags(answers):
    _, _, recorded, theirs = answers
    requests, ours = recorded["loglikelihood"]
    assert len(requests) > 600
    worst = max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs["loglikelihood"], strict=True))
    assert worst < 1e-4
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs["loglikelihood"]]


def test_generations(answers):
    _, _, recorded, theirs = answers
    requests, ours = recorded["generate_until"]
    assert len(requests) == 2 * DOCUMENTS
    assert ours == theirs["generate_until"]


def test_contexts_were_cut_as_the_hf_backend_cuts_them_and_it_is_told(answers):
    lm, outcome, recorded, _ = answers
    asked = dict.fromkeys(TASKS, 0)
    for kind, (requests, _) in recorded.items():
        for request in requests:
            ids = lm.tok_encode(request.args[0])
            if kind == "generate_until":
                asked[request.task_name] += len(ids) > lm.max_length - NEW_TOKENS
            else:
                ids, more = lm._encode_pair(*request.args)
                asked[request.task_name] += len(ids) + len(more) > lm.max_length + 1
    assert {task: count for task, count in asked.items() if count} == dict(lm.cut)
    assert lm.cut["boolq"] > 0
    assert lm.cut["arc_easy"] == 0
    assert f"boolq: {lm.cut['boolq']} contexts were cut on their left to 512 positions." in outcome.notes
    assert outcome.protocol["tasks"]["boolq"]["cut"] == lm.cut["boolq"]


def test_outcome_holds_the_answers_question_by_question(answers):
    _, outcome, _, _ = answers
    for name, metric in outcome.metrics.items():
        if name == "average":
            continue
        assert metric.n == DOCUMENTS
        assert len(metric.values) == DOCUMENTS
        assert math.isclose(sum(metric.values) / metric.n, metric.value, rel_tol=1e-6, abs_tol=1e-9)
        assert metric.stderr is not None
