"""MT-Bench end to end with a judge that is played, and what is read of its verdicts."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.dialogue import answer_questions
from jaxalign.evaluation.judge import Judge
from jaxalign.evaluation.mt_bench import answers_only, mt_bench
from jaxalign.evaluation.mt_bench_files import Answer, answer_row, read_answer, read_answers, read_mt_bench
from jaxalign.evaluation.mt_bench_judging import read_score, read_winner, single_request, won
from jaxalign.files import read_lines, write_lines
from tests.evaluation.judge_server import PROBE, said

pytest.importorskip("openai")


@pytest.fixture(scope="module")
def files(shared_data):
    return shared_data / "bench-mt-bench"


@pytest.fixture(scope="module")
def bench(files):
    return read_mt_bench(files)


def digest(value) -> int:
    return int(hashlib.sha256(json.dumps(value).encode()).hexdigest(), 16)


def generate(conversations, *, temperature, max_new_tokens, seed):
    """Says something of its own to each conversation."""
    return [
        f" {temperature} {max_new_tokens} {len(c)} turns, {digest([c, s]) % 1000} {{braces}} \u2028 [[A]] "
        for c, s in zip(conversations, seed, strict=True)
    ]


def verdict(body):
    """Scores and winners from the prompt; one verdict in eight is malformed."""
    system, number = body["messages"][0]["content"], digest(body["messages"])
    if body["messages"][-1]["content"] == PROBE:
        return said("yes")
    if number % 8 == 0:
        return said("I would rather not say. [[seven]]")
    if "[[A]]" in system:
        return said("Better: " + ("[[A]]", "[[B]]", "[[C]]")[number % 3])
    return said(f"Rating: [[{number % 10 + 1}]]")


def test_the_files_are_those_that_papers_used(bench, files, tmp_path):
    assert bench.changed == []
    assert [question.id for question in bench.questions] == list(range(81, 161))
    assert {(q.category, q.temperature) for q in bench.questions} == {
        ("writing", 0.7), ("roleplay", 0.7), ("extraction", 0.0), ("math", 0.0), ("coding", 0.0), ("reasoning", 0.0),
        ("stem", 0.1), ("humanities", 0.1),
    }  # fmt: skip
    for name, place in (
        ("mt_bench_question.jsonl", "mt_bench/question.jsonl"),
        ("judge_prompts.jsonl", "judge_prompts.jsonl"),
        ("mt_bench_reference_gpt-4.jsonl", "mt_bench/reference_answer/gpt-4.jsonl"),
    ):
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / place).write_bytes((files / name).read_bytes())
    assert read_mt_bench(tmp_path) == read_mt_bench(tmp_path / "data") == bench
    few = read_mt_bench(files, limit=2)
    assert [question.id for question in few.questions][:4] == [81, 82, 91, 92]
    with pytest.raises(DataError) as failure:
        read_mt_bench(tmp_path / "mt_bench")
    assert len(failure.value.problems) == 3


def test_prompts_are_byte_for_byte(bench):
    """Hashes of what FastChat 0.2.36 sent for these answers, all 160 of them."""
    answers = {q.id: Answer((f"first {q.id} {{x}} é\u2028", f"second {q.id} [[9]]")) for q in bench.questions}
    sent = [
        (name, request.messages)
        for turn in (1, 2)
        for q in bench.questions
        for name, request in [single_request(bench, q, turn, answers[q.id])]
    ]
    assert {name for name, _ in sent} == {
        "single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn",
    }  # fmt: skip
    assert hashlib.sha256(json.dumps([messages for _, messages in sent]).encode()).hexdigest() == PROMPTS


PROMPTS = "42805bd674666c4f3447987f6bb76bb02f4b0672acba160a9be226573a0fc181"


@pytest.mark.parametrize(
    ("judgment", "score"),
    [
        ("Rating: [[7]]", 7),
        ("[[7.5]] and later [[3]]", 7.5),
        ("Rating: [6]", 6),
        ("[1] source; Rating: [[8]]", 8),
        ("[[10]]", 10),
        ("[[07]]", 7.0),
        ("Rating: 7/10", -1),
        ("[[seven]]", -1),
        ("", -1),
    ],
)
def test_scores_are_read_as_fastchat_reads_them(judgment, score):
    assert read_score(judgment) == score


def test_winners():
    assert [read_winner(text) for text in ("[[A]] [[B]]", "[[B]]", "[[C]]", "A")] == ["A", "B", "tie", "error"]
    games = {
        ("model_1", "model_1"): 1.0,
        ("model_2", "model_2"): 0.0,
        ("model_1", "model_2"): 0.5,
        ("tie", "model_1"): 0.5,
        ("tie", "tie"): 0.5,
        ("error", "model_1"): None,
    }
    for (g1, g2), value in games.items():
        assert won({"g1_winner": g1, "g2_winner": g2}) == value


def mean(values):
    return sum(values) / len(values)


def test_the_whole_benchmark(bench, start_server, settings_of, tmp_path):
    server = start_server(verdict)
    server.faults = [None, (429, {"retry-after": "0.1"}), (500,), ("garbage",)]
    answers = answer_questions(bench.questions, generate, tmp_path / "model.jsonl", model="model")
    other = {id: Answer(tuple(f"other {turn}" for turn in answer.turns)) for id, answer in answers.items()}
    with Judge(settings_of(server, concurrency=4), tmp_path / "judge.jsonl") as judge:
        outcome = mt_bench(bench, answers, judge, tmp_path, model="model", baseline=("other", other))
    folder = tmp_path / "mt_bench" / "model_judgment"
    single, pair = read_lines(folder / "stub_single.jsonl"), read_lines(folder / "stub_pair.jsonl")
    assert (len(single), len(pair), len(server.asked())) == (160, 160, 480)

    read = [row for row in single if row["score"] != -1]
    metrics = outcome.metrics
    assert 0 < len(read) < 160
    assert metrics["score"].value == pytest.approx(mean([row["score"] for row in read]))
    for turn in (1, 2):
        expected = mean([row["score"] for row in read if row["turn"] == turn])
        assert metrics[f"score/turn_{turn}"].value == pytest.approx(expected)
    category = {question.id: question.category for question in bench.questions}
    expected = mean([row["score"] for row in read if category[row["question_id"]] == "math"])
    assert metrics["score/math"].value == pytest.approx(expected)
    assert len(metrics["score"].values) == 80
    for question, value in zip(bench.questions, metrics["score"].values, strict=True):
        own = [row["score"] for row in read if row["question_id"] == question.id]
        assert value == (mean(own) if own else None)

    known = [row for row in pair if "error" not in (row["g1_winner"], row["g2_winner"])]
    wins = sum(row["g1_winner"] == row["g2_winner"] == "model_1" for row in known)
    losses = sum(row["g1_winner"] == row["g2_winner"] == "model_2" for row in known)
    ties = len(known) - wins - losses
    assert min(wins, losses, ties) > 0
    assert metrics["win_rate"].value == pytest.approx((wins + ties / 2) / len(known))
    assert metrics["wins"].value == pytest.approx(wins / len(known))
    unread = 160 - len(read) + 160 - len(known)
    assert metrics["unread"].value == pytest.approx(unread / 320)
    assert outcome.notes == [f"In {unread} of 320 judgments no verdict was found; they are left out of all means."]
    assert outcome.protocol["files"] == dict(bench.hashes)
    assert outcome.details["judge"]["replies"] == 480
    assert len(outcome.samples) == 8
    json.dumps(outcome.as_dict(), allow_nan=False)


def test_repeats_show_how_much_the_judge_wavers(files, start_server, settings_of, tmp_path):
    bench, count = read_mt_bench(files, limit=1), iter(range(1000))
    server = start_server(lambda body: said(f"[[{5 + next(count) % 2}]]"))
    answers = {question.id: Answer(("one", "two")) for question in bench.questions}
    with Judge(settings_of(server, concurrency=1), tmp_path / "judge.jsonl") as judge:
        outcome = mt_bench(bench, answers, judge, tmp_path, model="model", repeats=3)
    assert len(server.asked()) == 3 * 16
    assert outcome.metrics["score"].n == 8
    # 16 judgments a round: each turn has the same score in every round.
    assert outcome.metrics["judge_noise"].value == 0
    assert outcome.metrics["score"].value == pytest.approx(5.5)
    names = sorted(path.name for path in (tmp_path / "mt_bench" / "model_judgment").iterdir())
    assert names == ["stub_single.jsonl", "stub_single.repeat1.jsonl", "stub_single.repeat2.jsonl"]
    server.answer = lambda body: said(f"[[{3 if next(count) % 3 else 9}]]")
    with Judge(settings_of(server, concurrency=1), tmp_path / "other.jsonl") as judge:
        outcome = mt_bench(bench, answers, judge, tmp_path, model="model", repeats=2)
    assert outcome.metrics["judge_noise"].value > 0


def test_a_killed_run_goes_on_without_asking_again(files, start_server, settings_of, tmp_path):
    server = start_server(verdict)
    server.hold_after = 25
    program = textwrap.dedent(f"""
        from jaxalign.evaluation.dialogue import answer_questions
        from jaxalign.evaluation.judge import Judge
        from jaxalign.evaluation.judge_settings import JudgeSettings
        from jaxalign.evaluation.mt_bench import mt_bench
        from jaxalign.evaluation.mt_bench_files import read_mt_bench
        bench = read_mt_bench({str(files)!r}, limit=2)
        say = lambda conversations, **options: ["said"] * len(conversations)
        answers = answer_questions(bench.questions, say, {str(tmp_path / "a.jsonl")!r}, model="model")
        settings = JudgeSettings(model="stub", base_url={server.url!r}, concurrency=3)
        with Judge(settings, {str(tmp_path / "judge.jsonl")!r}) as judge:
            outcome = mt_bench(bench, answers, judge, {str(tmp_path)!r}, model="model")
        print(outcome.metrics["score"].value)
    """)
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    kept = tmp_path / "judge.jsonl"
    deadline = time.monotonic() + 60
    while not (kept.exists() and kept.read_bytes().count(b"\n") == 25):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (tmp_path / "mt_bench").exists()  # no half file
    kept.write_bytes(kept.read_bytes() + b'{"key": "to')
    server.hold_after = None
    for _ in range(2):  # the second finds everything
        score = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout
        assert len(server.asked()) == 32
        assert server.repeated() == 0
        rows = read_lines(tmp_path / "mt_bench" / "model_judgment" / "stub_single.jsonl")
        assert float(score) == pytest.approx(mean([row["score"] for row in rows if row["score"] != -1]))


def test_answers_go_on_where_they_stopped_and_do_not_depend_on_it(bench, tmp_path):
    whole = answer_questions(bench.questions, generate, tmp_path / "whole.jsonl", model="model", seed=3)
    assert [row["question_id"] for row in read_lines(tmp_path / "whole.jsonl")] == list(range(81, 161))
    assert whole[81].turns[0].startswith("0.7 1024 1 turns")
    assert whole[101].turns[1].startswith("0.0 1024 3 turns")
    left = iter(range(3))

    def stops(conversations, **options):
        next(left)
        return generate(conversations, **options)

    path = tmp_path / "part.jsonl"
    with pytest.raises((StopIteration, RuntimeError)):
        answer_questions(bench.questions, stops, path, model="model", seed=3, together=7)
    assert len(read_lines(path)) == 7
    path.write_bytes(path.read_bytes()[:-20])
    assert answer_questions(bench.questions, generate, path, model="model", seed=3) == whole
    ids = {row["question_id"]: row["answer_id"] for row in read_lines(path)}
    assert ids == {row["question_id"]: row["answer_id"] for row in read_lines(tmp_path / "whole.jsonl")}
    assert {len(id) for id in ids.values()} == {22}
    assert answer_questions(bench.questions, None, path, model="model", seed=3) == whole
    with pytest.raises(ConfigError, match="made with seed=3, now it is 4"):
        answer_questions(bench.questions, generate, path, model="model", seed=4)
    assert read_answers(path, bench.questions) == ("model", whole)
    write_lines(path, read_lines(path)[2:])
    with pytest.raises(DataError) as failure:
        read_answers(path, bench.questions)
    assert len(failure.value.problems) == 2


def test_what_does_not_fit_is_told_and_never_cut(files, start_server, settings_of, tmp_path):
    bench = read_mt_bench(files, limit=1)

    def short(conversations, *, seed, **options):
        long = 200  # characters
        return [None if sum(len(m["content"]) for m in c) > long else "said" for c in conversations]

    answers = answer_questions(bench.questions, short, tmp_path / "a.jsonl", model="model")
    left_out = {id: answer.too_long for id, answer in answers.items() if answer.too_long}
    assert left_out
    assert any(turns == (2,) for turns in left_out.values())
    for id, turns in left_out.items():
        assert [answers[id].turns[turn - 1] for turn in turns] == ["ERROR"] * len(turns)
    assert {row["question_id"]: read_answer(row) for row in read_lines(tmp_path / "a.jsonl")} == answers
    server = start_server(lambda body: said("[[4]]"))
    with Judge(settings_of(server), tmp_path / "judge.jsonl") as judge:
        outcome = mt_bench(bench, answers, judge, tmp_path, model="model")
    count = sum(map(len, left_out.values()))
    assert len(server.asked()) == 16 - count
    assert outcome.metrics["too_long"].value == count / 16
    assert f"{count} turns did not fit into the context of model" in outcome.notes[0]
    assert f"{next(iter(left_out))}/2" in outcome.notes[0]
    assert "Not judged." in answers_only(bench, answers).notes


def test_a_judge_without_a_verdict_is_an_error(files, start_server, settings_of, tmp_path):
    bench = read_mt_bench(files, limit=1)
    answers = {question.id: Answer(("one", "two")) for question in bench.questions}
    server = start_server(lambda body: said("Good."))
    with (
        Judge(settings_of(server), tmp_path / "judge.jsonl") as judge,
        pytest.raises(DataError, match="not one judgment of stub holds a score"),
    ):
        mt_bench(bench, answers, judge, tmp_path, model="model")


def test_an_answer_is_written_as_fastchat_writes_it():
    row = answer_row(81, "model", Answer(("one", "two")), 1.5)
    assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
    assert row["choices"] == [{"index": 0, "turns": ["one", "two"]}]
    assert read_answer(row) == Answer(("one", "two"))
