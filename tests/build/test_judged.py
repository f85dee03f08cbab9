"""MT-Bench and AlpacaEval of a real, tiny model: from a folder to the outcome, by function and by command."""

from __future__ import annotations

import functools
import json

import jax
import pytest

from jaxalign import build
from jaxalign.build import sampler as module
from jaxalign.build.sampler import Sampler
from jaxalign.cli import main
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.judge_settings import JudgeSettings
from jaxalign.files import read_lines
from jaxalign.training.mesh import make_mesh
from tests.build.conftest import write_lines
from tests.evaluation.judge_server import JudgeServer, said

pytest.importorskip("openai")

TURNS = {
    101: ["What about the river?", "And the stone?"],
    102: ["What of the garden?", f"And {'x7 q' * 90}?"],
    103: ["Which letter?", "Please look."],
}
"""Questions of which the second is too long for the model once it is to go on."""

NAMES = ("single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(module, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))


@pytest.fixture
def files(tmp_path):
    """A benchmark of MT-Bench's form."""
    folder = tmp_path / "files"
    folder.mkdir()
    questions = [{"question_id": id, "category": "extraction", "turns": turns} for id, turns in TURNS.items()]
    write_lines(folder / "mt_bench_question.jsonl", questions)
    write_lines(folder / "mt_bench_reference_gpt-4.jsonl", [])
    fields = {False: "{question} {answer}", True: "{question_1} {answer_1} {question_2} {answer_2}"}
    prompts = [
        {
            "name": name,
            "system_prompt": "Judge.",
            "prompt_template": fields["multi" in name],
            "output_format": "[[rating]]",
        }
        for name in NAMES
    ]
    write_lines(folder / "judge_prompts.jsonl", prompts)
    return folder


@pytest.fixture
def server():
    server = JudgeServer(lambda body: said(f"[[{len(body['messages'][-1]['content']) % 10 + 1}]]"))
    yield server
    server.close()


def test_a_model_answers_two_turns_and_is_judged(world, files, server, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = {"max_new_tokens": 8, "dtype": "float32", "batch_size": 2}
    unreached = JudgeSettings(model="stub", base_url="http://127.0.0.1:9", first_wait=0.01)
    with pytest.raises(ConfigError, match="cannot be reached"):
        build.mt_bench(str(world.chat), files, out, judge=unreached, **options)
    path = out / "mt_bench" / "model_answer" / "chat.jsonl"
    assert path.read_text() == ""  # nothing was generated for a judge that is not there

    found = build.mt_bench(str(world.chat), files, out, **options)
    assert any("Judge them with the same command" in note and str(path) in note for note in found.notes)
    assert any("102/2" in note for note in found.notes)
    answers = {row["question_id"]: row["choices"][0]["turns"] for row in read_lines(path)}
    sampler = Sampler(str(world.chat), batch_size=2, dtype="float32")
    conversations = [
        [
            {"role": "user", "content": TURNS[id][0]},
            {"role": "assistant", "content": answers[id][0]},
            {"role": "user", "content": TURNS[id][1]},
        ]
        for id in TURNS
    ]
    again = sampler(conversations, temperature=0.0, max_new_tokens=8, seed=[1, 2, 3])
    assert [text and text.strip() for text in again] == [answers[101][1], None, answers[103][1]]
    assert answers[102][1] == "ERROR"

    # All answers are there: from here on the weights are not read any more.
    monkeypatch.setattr(module, "load_policy", None)
    command = ["evaluate", "--suite=mt_bench", f"--model={world.chat}", f"--benchmarks={files}", f"--out={out}"]
    command += ["--max-new-tokens=8", "--dtype=float32", "--batch-size=2", "--seed=0"]
    command += [f"--judge={server.url}", "--judge-model=stub", "--judge-price=10,30"]
    assert main(command) == 0
    assert "score/turn_2" in capsys.readouterr().out
    assert len(server.asked()) == 5
    outcome = json.loads((out / "mt_bench.json").read_text())
    assert outcome["metrics"]["score"]["n"] == 3
    assert outcome["metrics"]["too_long"]["value"] == pytest.approx(1 / 6)
    assert outcome["details"]["judge"]["cost"] > 0
    assert {"max_new_tokens": 8, "judge": "stub", "seed": 0}.items() <= outcome["protocol"].items()
    rows = read_lines(out / "mt_bench" / "model_judgment" / "stub_single.jsonl")
    assert [(row["question_id"], row["turn"]) for row in rows] == [(101, 1), (102, 1), (103, 1), (101, 2), (103, 2)]

    # Answers of a file need no model, and are judged the same.
    assert main([*(c for c in command if not c.startswith("--model")), f"--answers={path}", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["metrics"] == outcome["metrics"]
    assert len(server.asked()) == 5
    with pytest.raises(ConfigError, match="made with max_new_tokens=8, now it is 9"):
        build.mt_bench(str(world.chat), files, out, **{**options, "max_new_tokens": 9})
    with pytest.raises(DataError, match="has no chat template"):
        build.mt_bench(str(world.model), files, out, **options)


def test_outputs_and_annotations_of_alpaca_eval(world, server, tmp_path, capsys):
    data, out = tmp_path / "set.json", tmp_path / "out"
    instructions = ["What about the river?", f"{'x7 q' * 90}?"]
    rows = [{"dataset": "d", "instruction": i, "output": "A baseline.", "generator": "baseline"} for i in instructions]
    data.write_text(json.dumps(rows))
    command = ["evaluate", "--suite=alpaca_eval", f"--model={world.chat}", f"--benchmarks={data}", f"--out={out}"]
    command += ["--max-new-tokens=8", "--dtype=float32", "--name=mine"]
    assert main(command) == 0
    assert "their outputs are empty: 1" in capsys.readouterr().out
    outputs = json.loads((out / "alpaca_eval" / "mine" / "model_outputs.json").read_text())
    assert [row["instruction"] for row in outputs] == instructions
    assert outputs[1]["output"] == ""
    assert {row["generator"] for row in outputs} == {"mine"}
    judge = [f"--judge={server.url}", "--judge-model=stub"]
    assert main([*command, *judge]) == 2
    assert "judge_prompt: missing" in capsys.readouterr().err
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("<|im_start|>user\n{instruction} {output_1} {output_2}<|im_end|>")
    server.answer = lambda body: said("m", {"m": -0.1, "M": -2.0})
    assert main([*command, *judge, f"--judge-prompt={prompt}"]) == 0
    found = json.loads((out / "alpaca_eval.json").read_text())
    again = tmp_path / "again"
    path = out / "alpaca_eval" / "mine" / "annotations.json"
    assert (
        main(["evaluate", "--suite=alpaca_eval", f"--benchmarks={data}", f"--out={again}", f"--annotations={path}"])
        == 0
    )
    read = json.loads((again / "alpaca_eval.json").read_text())
    assert read["metrics"] == found["metrics"]
    assert (again / "alpaca_eval" / "mine" / "leaderboard.json").is_file()


def test_flags_that_do_not_go_together_are_told_at_once(capsys):
    assert main(["evaluate", "--suite=mt_bench", "--model=M", "--judge-model=x", "--shots=3", "--temperature=1"]) == 2
    said_ = capsys.readouterr().err
    for problem in (
        "--temperature: goes with --suite=alpaca_eval only",
        "--shots: has no meaning for --suite=mt_bench",
        "--benchmarks: missing",
        "--out: missing",
        "--judge-model: needs a judge",
    ):
        assert problem in said_
    assert main(["evaluate", "--judge=http://a", "--pairwise=b"]) == 2
    said_ = capsys.readouterr().err
    assert "--judge: goes with --suite=mt_bench and --suite=alpaca_eval only" in said_
    assert "--pairwise: goes with --suite=mt_bench only" in said_
