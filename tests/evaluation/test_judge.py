"""Asking a judge: patience, limits, what is kept, and errors that say what to do."""

from __future__ import annotations

import email.utils
import json
import time

import pytest

from jaxalign.errors import ConfigError, DataError, JaxalignError
from jaxalign.evaluation.journal import Journal
from jaxalign.evaluation.judge import Judge, Request
from jaxalign.evaluation.judge_pace import Pace, growing_wait, retry_after
from jaxalign.evaluation.judge_settings import JudgeSettings
from tests.evaluation.judge_server import said

pytest.importorskip("openai")


def requests(count, **options):
    return [Request(messages=[{"role": "user", "content": f"question {i}"}], **options) for i in range(count)]


def echo(body):
    return said(f"answer to {body['messages'][-1]['content']}")


def slow_echo(body):
    time.sleep(0.03)
    return echo(body)


def test_replies_are_in_order_and_never_asked_twice(start_server, settings_of, tmp_path):
    server = start_server(slow_echo)
    settings = settings_of(server, concurrency=4, price_in=10.0, price_out=30.0)
    asked = requests(10)
    with Judge(settings, tmp_path / "judge.jsonl") as judge:
        replies = judge.ask([*asked, asked[3]])
        costs = judge.costs()
    assert [reply.text for reply in replies] == [f"answer to question {i}" for i in (*range(10), 3)]
    assert len(server.asked()) == 10
    assert 1 < server.most_busy <= 4
    tokens = len("answer to question 0") // 4
    assert costs["replies"] == 10
    assert costs["prompt_tokens"] == 1000
    assert costs["completion_tokens"] == 10 * tokens
    assert costs["cost"] == pytest.approx((1000 * 10 + 10 * tokens * 30) / 1e6)
    sent = len(server.requests)
    with Judge(settings, tmp_path / "judge.jsonl") as judge:
        again = judge.ask([*asked, *requests(1, repeat=1)])
        assert judge.usage.kept == 10
        assert judge.usage.sent == 2  # the check, and the repetition, which is another request
    assert again[:10] == replies[:10]
    assert len(server.requests) == sent + 2
    with Judge(settings, tmp_path / "judge.jsonl") as judge:
        judge.ask(asked)
        assert judge.costs() == costs
        assert judge.usage.sent == 0


def test_what_a_request_says_is_sent(start_server, settings_of, tmp_path):
    server = start_server(lambda body: said("M", {"M": -0.1, "m": -2.4}))
    messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Which?"}]
    request = Request(messages=messages, max_tokens=1, temperature=1.0, top_logprobs=5)
    with Judge(settings_of(server), tmp_path / "judge.jsonl") as judge:
        (reply,) = judge.ask([request])
        assert judge.has_logprobs()
    assert reply.logprobs == {"M": -0.1, "m": -2.4}
    body = server.asked()[0]
    assert body["messages"] == messages
    wanted = {"model": "stub", "max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 5, "n": 1}
    assert {name: body[name] for name in wanted} == wanted


def test_faults_are_waited_out(start_server, settings_of, tmp_path):
    server = start_server(echo)
    server.faults = [None, (429, {"retry-after": "0.3"}), (500,), (503,), ("garbage",), ("hang", 5.0), (408,)]
    with Judge(settings_of(server, timeout=0.3, concurrency=1), tmp_path / "judge.jsonl") as judge:
        began = time.monotonic()
        replies = judge.ask(requests(3))
        assert judge.usage.retries == 6
    assert time.monotonic() - began > 0.6  # Retry-After and the timeout
    assert [reply.text for reply in replies] == [f"answer to question {i}" for i in range(3)]
    assert len(server.asked()) == 3


def test_retry_after_holds_back_every_thread(start_server, settings_of, tmp_path):
    server = start_server(echo)
    server.faults = [None, (429, {"retry-after-ms": "400"})]
    with Judge(settings_of(server, concurrency=2), tmp_path / "judge.jsonl") as judge:
        judge.ask(requests(6))
    gaps = [later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)]
    pause = gaps.index(max(gaps))
    assert gaps[pause] > 0.35
    assert len(gaps) - pause >= 2  # the refused one and others came after it


def test_an_endpoint_that_says_when_to_come_back_is_not_given_up(start_server, settings_of, tmp_path):
    server = start_server(echo)
    server.faults = [None, *[(429, {"retry-after-ms": "10"})] * 5]
    with Judge(settings_of(server, concurrency=1, retries=1), tmp_path / "judge.jsonl") as judge:
        assert judge.ask(requests(1))[0].text == "answer to question 0"


def test_an_endpoint_that_dies_leaves_what_it_answered(start_server, settings_of, tmp_path):
    server = start_server(echo)
    settings = settings_of(server, concurrency=1, retries=2)
    server.faults = [None, None, None, (500,), (500,), (500,)]
    asked = requests(5)
    with Judge(settings, tmp_path / "judge.jsonl") as judge, pytest.raises(JaxalignError) as failure:
        judge.ask(asked)
    assert "gave no answer in 3 attempts; the last: error 500" in str(failure.value).lower() or "500" in str(
        failure.value
    )
    assert "2 of 5 requests were answered and are kept" in str(failure.value)
    server.faults = []
    with Judge(settings, tmp_path / "judge.jsonl") as judge:
        judge.ask(asked)
    assert server.repeated() == 0


def test_a_refused_request_does_not_stop_the_others_and_is_not_kept(start_server, settings_of, tmp_path):
    server = start_server(echo)
    server.faults = [None, None, (400, {}, "context_length_exceeded")]
    settings = settings_of(server, concurrency=1)
    with Judge(settings, tmp_path / "judge.jsonl") as judge:
        replies = judge.ask(requests(3))
    assert [reply.error is None for reply in replies] == [True, False, True]
    with Judge(settings, tmp_path / "judge.jsonl") as judge:
        assert all(reply.error is None for reply in judge.ask(requests(3)))


def test_what_is_wrong_is_told_before_anything_is_asked(start_server, settings_of, tmp_path, monkeypatch):
    server = start_server(echo, models=("judge-large", "judge-small"))
    cases = [
        ({"model": "judge-lage"}, [], "no model 'judge-lage', expected one of judge-large, judge-small"),
        ({"model": "judge-lage"}, [], "Did you mean 'judge-large'"),
        ({"model": "judge-large"}, [(401,)], "refuses the key .* set the environment variable OPENAI_API_KEY"),
        ({"model": "judge-large"}, [(429, {}, "insufficient_quota")], "no quota left"),
        ({"model": "judge-large"}, [(400,)], "refuses to answer"),
        ({"model": "judge-large"}, [(429, {"retry-after": "7200"})], "asks to wait for 7200 s in all"),
        ({"model": "judge-large", "retries": 1}, [(500,)] * 2, "gave no answer in 2 attempts"),
        ({"model": "judge-large", "base_url": "http://127.0.0.1:9"}, [], "cannot be reached.*is the server running"),
    ]
    for changes, faults, message in cases:
        server.faults = list(faults)
        with (
            Judge(settings_of(server, **changes), tmp_path / "judge.jsonl") as judge,
            pytest.raises(JaxalignError, match=message),
        ):
            judge.ask(requests(3))
    assert server.asked() == []
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="no key in the environment variable OPENAI_API_KEY"):
        Judge(JudgeSettings(model="gpt-4"), tmp_path / "judge.jsonl")
    with pytest.raises(ConfigError) as failure:
        JudgeSettings(model="", base_url="localhost:8000", concurrency=0, retries=-1)
    assert len(failure.value.problems) == 4


def test_a_base_url_without_a_path_is_completed():
    urls = {"http://a:1": "http://a:1/v1", "http://a/": "http://a/v1", "https://a/api/v3": "https://a/api/v3"}
    assert {url: JudgeSettings(model="m", base_url=url).url for url in urls} == urls


def test_a_journal_drops_a_torn_line_and_refuses_damage_and_a_second_process(tmp_path):
    path = tmp_path / "a" / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"a": "one\u2028line"})
        journal.append({"a": 2})
        with pytest.raises(ConfigError, match="in use by another process"):
            Journal(path)
    path.write_bytes(path.read_bytes() + b'{"a": 3, "b": "tor')
    with Journal(path) as journal:
        assert journal.torn
        assert journal.records == [{"a": "one\u2028line"}, {"a": 2}]
        journal.append({"a": 4})
    assert [json.loads(line) for line in path.read_text().splitlines()][-2:] == [{"a": 2}, {"a": 4}]
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(DataError, match="line 2: not JSON"):
        Journal(path)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_no_minute_has_more_than_the_limits():
    clock = Clock()
    pace = Pace(requests_per_minute=5, tokens_per_minute=1000, clock=clock, sleep=clock.sleep)
    sent = []
    for i in range(40):
        tokens = 50 + 400 * (i % 3 == 0)
        ticket = pace.wait(tokens)
        pace.settle(ticket, tokens)
        sent.append((clock.now, tokens))
        clock.now += 0.5
    for start, _ in sent:
        window = [tokens for moment, tokens in sent if start <= moment < start + 60]
        assert len(window) <= 5
        assert sum(window) <= 1000
    assert clock.now - 1000 < 60 * 10  # 40 requests at 5 a minute, not slower


def test_a_request_above_the_limit_goes_alone():
    clock = Clock()
    pace = Pace(tokens_per_minute=100, clock=clock, sleep=clock.sleep)
    pace.wait(500)
    assert clock.now == 1000
    pace.wait(500)
    assert clock.now == 1060
    pace.pause(200)
    pace.wait(1)
    assert clock.now == 1260


def test_waits():
    assert retry_after({}) is None
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after": "3", "retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": email.utils.formatdate(time.time() + 30)}) == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": "soon"}) is None
    for attempt in range(12):
        longest = min(2.0**attempt, 60)
        assert longest / 2 <= growing_wait(attempt, 1.0, 60.0) <= longest
