"""The benchmark of a DPO step: that our side runs, what its table says, and the trace's reading."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.models.config_json import parse_config
from jaxalign.models.policy import build_policy

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def load(path: str):
    name = f"benchmarks_{path.replace('/', '_')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{path}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


dpo_step, ours, checkpoint, profile, world = map(
    load, ("dpo_step", "dpo_step_ours", "random_checkpoint", "profile", "peers/world")
)


def test_our_side_takes_the_steps_of_the_objective(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BENCH_ARTIFACTS", str(tmp_path))
    # One device, as the benchmark finds it.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    args = dpo_step.arguments(["--tiny", "--warmup=1", "--steps=2", "--peers=", "--ours=--run=8 --matmul-seconds=0.05"])
    args.artifacts = tmp_path
    folder = checkpoint.ensure_checkpoint(tmp_path / "hf_tiny", world.SETTINGS["tiny"])
    found = dpo_step.run_one(args, "ours", "tiny", "live")
    assert found is not None, capsys.readouterr().out
    assert found["steps"] == 2
    assert found["unexpected"] == 0
    assert 0 < found["fill"] <= 1
    assert min(found[name] for name in ("step_s_median", "useful_per_s", "matmul_per_s", "peak_rss_mb")) > 0
    assert found["losses"][0] == pytest.approx(math.log(2), rel=1e-6)
    assert len(found["losses"]) == 4

    # The first step's log-probabilities, each sequence by itself.
    from jaxalign.models.huggingface import load_policy

    policy, variables = load_policy(folder, dtype="float32")
    world.use("tiny")
    pairs = world.make_pairs(world.BATCH, vocab=512)
    length = max(len(x["prompt_ids"]) + len(x["chosen_ids"]) for x in pairs)
    tokens = np.zeros((world.BATCH, length), np.int32)
    for row, x in zip(tokens, pairs, strict=True):
        row[: len(x["prompt_ids"]) + len(x["chosen_ids"])] = [*x["prompt_ids"], *x["chosen_ids"]]
    logps = np.asarray(jax.nn.log_softmax(policy.logits(variables, tokens)))
    sums = [
        sum(logps[i, len(x["prompt_ids"]) + k - 1, token] for k, token in enumerate(x["chosen_ids"]))
        for i, x in enumerate(pairs)
    ]
    assert found["logps"][0] == pytest.approx(np.mean(sums), rel=1e-5)


def test_useful_flops_count_each_seen_token_once():
    config = parse_config(checkpoint.fields(world.SETTINGS["tiny"]))
    params = build_policy(config).abstract()["params"]
    blocks = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["layers"]))
    pair = {"prompt_ids": [1] * 5, "chosen_ids": [1] * 3, "rejected_ids": [1] * 4}
    own = [(0, 5), (5, 8), (8, 12)]
    seen = sum(1 for a, b in own for q in range(a, b) for k in range(q + 1) if a <= k or k < 5)
    attention = 4 * config.heads * config.head_dim * config.layers * seen
    forward = 2 * (blocks + config.width) * 12 + attention + 2 * config.width * config.vocab_size * 7
    assert ours.useful_flops(config, [pair], live=False) == 3 * forward
    assert ours.useful_flops(config, [pair, pair], live=True) == 8 * forward
    assert ours.useful_flops(config, [pair], live=False, adapters=10) == 2 * forward + attention + 6 * 10 * 12


def test_pairs_do_not_depend_on_how_many_are_made():
    for setting in ("small", "real", "tiny"):
        world.use(setting)
        pairs = world.make_pairs(6)
        assert world.make_pairs(4) == pairs[:4]
        ids, masks = world.left_right_pad(pairs)
        assert ids["prompt_ids"].shape == (6, world.MAX_PROMPT)
        assert masks["chosen_ids"].sum() == sum(len(x["chosen_ids"]) for x in pairs)
        for x, row, mask in zip(pairs, ids["prompt_ids"], masks["prompt_ids"], strict=True):
            assert row[mask == 1].tolist() == x["prompt_ids"]


def result(label: str, number: int, seconds: float, **more):
    facts = {"setting": "small", "mode": "live", "label": label, "round": number, "device": "cpu"}
    facts |= {"step_s_median": seconds, "step_s_mean": seconds, "pairs_per_s": 8 / seconds, "cpu_s_median": seconds}
    facts |= {"compile_s": 1.0, "peak_rss_mb": 1000.0, "steady_peak_rss_mb": 900.0, "load1": 0.1, "steps": 4}
    return facts | {"losses": [0.69314718, 0.6931, 0.6930, 0.69]} | more


def test_table_has_ratios_of_each_round():
    of_ours = {"useful_per_s": 3e9, "matmul_per_s": 6e9, "fill": 0.9, "programs": [[1, 2, 3, 4]], "how": "{}"}
    results = []
    for number, slow in enumerate((1.0, 3.0, 1.0)):  # what slows a round slows all of it
        results += [
            result("ours", number, 0.5 * slow, **of_ours),
            result("trl", number, 1.5 * slow, peak_rss_mb=2500.0),
            result("tunix", number, 1.0 * slow),
        ]
    told = "\n".join(dpo_step.table(results))
    assert "| small | live | trl | 5.33 | 1.500 (1.500..4.500) |" in told
    assert "| 3.00x | 0.33x | 0.40x |" in told
    assert "2.00x (2.00..2.00) the best peer (tunix)" in told
    assert "share 50%" in told
    assert "peak memory 0.40x TRL's" in told
    lines, same = dpo_step.agreement(results)
    assert same
    assert len(lines) == 2
    results[1]["losses"] = [0.69314718, 0.6932, 0.6930, 0.69]
    lines, same = dpo_step.agreement(results)
    assert not same
    assert "MORE THAN 1e-05" in lines[0]


def test_adapters_that_are_drawn_differently_share_the_first_loss_only():
    mine = result("ours", 0, 1.0, how=json.dumps({"lora": 16}))
    assert dpo_step.agreement([mine, result("trl", 0, 1.0, losses=[0.69314718, 0.5, 0.5, 0.5])])[1]


@pytest.mark.parametrize(("kind", "peak"), [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("cpu", None)])
def test_peak_of_a_device(kind, peak):
    assert dpo_step.peak_rate(kind) == peak


def test_settings_of_a_gpu_have_the_sizes_of_their_names():
    counts = {}
    for name in ("0.5b", "8b"):
        params = build_policy(parse_config(checkpoint.fields(world.SETTINGS[name]))).abstract()
        counts[name] = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert counts == {"0.5b": 494_032_768, "8b": 8_030_261_248}


def test_same_options_on_both_sides_of_a_gpu():
    args = dpo_step.arguments(["--device=gpu", "--trl-python=python3"])
    assert args.setting == ["0.5b", "8b"]
    for setting in args.setting:
        mine, theirs = (
            dpo_step.our_command(args, setting, "live"),
            dpo_step.peer_command(args, "trl", setting, "live")[0],
        )
        for name in ("--weights", "--lora"):
            values = [command[command.index(name) + 1] if name in command else None for command in (mine, theirs)]
            assert values[0] == values[1]


def test_time_of_an_operation_is_without_what_it_calls():
    events = [
        profile.Event("thread", "while.1", 0, 100),
        profile.Event("thread", "dot.3", 10, 30),
        profile.Event("thread", "dot.4", 50, 20),
        profile.Event("other", "loop_add_fusion.2.clone", 5, 7),
    ]
    times = profile.own_times(events)
    assert sorted(times) == [("dot.3", 30), ("dot.4", 20), ("loop_add_fusion.2.clone", 7), ("while.1", 50)]
    rows = profile.totals((profile.kind(name), time) for name, time in times)
    assert set(rows) == {("matmul", 50, 2), ("while", 50, 1), ("add fusion", 7, 1)}
    assert profile.table("kind", rows, 1, 1)[2:] == ["| matmul | 0.00 | 46.7% | 2 |", "| all 3 | 0.00 | | |"]


def test_a_trace_holds_the_operations_of_a_program(tmp_path):
    x = np.ones((64, 64), np.float32)
    program = jax.jit(lambda x: x @ x).lower(x).compile()
    with jax.profiler.trace(str(tmp_path)):
        program(x).block_until_ready()
    assert any("matmul" in profile.kind(event.name) for event in profile.read(tmp_path))


def test_the_standard_library_keeps_its_module_of_that_name():
    import subprocess

    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import cProfile, profile; profile.Profile; cProfile.run"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("path", "words", "text"),
    [
        ("scaling", ["--no-compile", "--targets=v5e:4x4,v5f:2x2"], "argument --targets: got 'v5f:2x2'"),
        ("profile", ["--setting=tny"], "argument --setting: invalid choice: 'tny'"),
        ("scoring", ["--forms=plane"], "argument --forms: invalid choice: 'plane'"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_computed(path, words, text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path, *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        load(path).main()
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
