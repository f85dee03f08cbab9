"""AlpacaEval with a judge that is played, and its scores against their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jaxalign.errors import DataError
from jaxalign.evaluation.alpaca_eval import alpaca_eval, annotate, leaderboard, read_preference, shown_in_other_order
from jaxalign.evaluation.alpaca_eval_files import (
    EvaluationSet,
    find_files,
    output_rows,
    read_annotations,
    read_evaluation_set,
    read_judge_prompt,
    read_outputs,
    write_json,
)
from jaxalign.evaluation.judge import Judge, Reply
from jaxalign.evaluation.length_control import LengthControl, fit_l1, length_controlled, read_length_control
from tests.evaluation.judge_server import said

pytest.importorskip("openai")

TEMPLATE = """<|im_start|>system
You choose.
<|im_end|>
<|im_start|>user
## Instruction
{"instruction": "{instruction}"}
## Outputs
m: {output_1}
M: {output_2}
<|im_end|>
"""
COUNT = 24


def made_up_set(count: int = COUNT) -> EvaluationSet:
    instructions = tuple(f"Instruction {i}, with {{output_1}} in it\u2028" for i in range(count))
    outputs = tuple("word " * (1 + i % 7) for i in range(count))
    return EvaluationSet(instructions, ("koala",) * count, outputs, "baseline", "0")


def answers_of(evaluation):
    return [f"my answer {i} <|im_end|>" for i in range(len(evaluation.instructions))]


def longer_wins(body):
    """Prefers the longer answer, as an endpoint with log-probabilities says it."""
    text = body["messages"][-1]["content"]
    if "\nM: " not in text:
        return said("m", {"m": -0.5, "M": -1.0})
    first, second = text.split("\nm: ")[1].split("\nM: ")
    p = 1 / (1 + math.exp((len(second) - len(first)) / 10))
    return said("m", {"m": math.log(p), "M": math.log(1 - p), "Both": -9.0})


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(TEMPLATE)
    return read_judge_prompt(path)


def test_the_judge_sees_the_answers_in_the_order_drawn(prompt, start_server, settings_of, tmp_path):
    server = start_server(longer_wins)
    evaluation = made_up_set()
    outputs = answers_of(evaluation)
    outputs[5] = evaluation.outputs[5]
    with Judge(settings_of(server), tmp_path / "judge.jsonl") as judge:
        rows, protocol = annotate(evaluation, outputs, judge, prompt, model="mine")
    switched = [shown_in_other_order(instruction) for instruction in evaluation.instructions]
    assert 4 < sum(switched) < 20
    asked = {body["messages"][1]["content"] for body in server.asked() if "\nM: " in body["messages"][-1]["content"]}
    expected = set()
    for i, instruction in enumerate(evaluation.instructions):
        shown = [evaluation.outputs[i], outputs[i]]
        first, second = reversed(shown) if switched[i] else shown
        text = f'## Instruction\n{{"instruction": "{instruction}"}}\n## Outputs\nm: {first}\nM: {second}'.strip()
        if i != 5:
            expected.add(text)
    assert asked == expected
    assert {body["messages"][0]["content"] for body in server.asked()[1:]} == {"You choose."}
    assert rows[5]["preference"] == 1.5
    for i in set(range(COUNT)) - {5}:
        # However they were shown, and up to the space at the message's end, which is stripped.
        gap = (len(outputs[i]) - len(evaluation.outputs[i])) / 10
        assert rows[i]["preference"] - 1 == pytest.approx(1 / (1 + math.exp(-gap)), abs=0.03)
    assert protocol["preference"] == "log-probabilities of m and M"
    assert all(body["max_tokens"] == 1 and body["top_logprobs"] == 5 for body in server.asked())


def test_the_order_is_alpaca_evals():
    """Drawn by alpaca_eval 0.6.6 for these instructions with its seed."""
    drawn = [shown_in_other_order(f"instruction {i}") for i in range(12)]
    assert drawn == [False, True, True, False, True, True, True, False, False, False, True, True]


def test_without_log_probabilities_the_letter_counts(prompt, start_server, settings_of, tmp_path):
    letters = ("m", " M\n", '"m".', "Model m")
    server = start_server(lambda body: said(letters[body["messages"][-1]["content"].count("word") % 4]))
    evaluation = made_up_set()
    with Judge(settings_of(server), tmp_path / "judge.jsonl") as judge:
        rows, protocol = annotate(evaluation, answers_of(evaluation), judge, prompt, model="mine")
    assert "the letter written" in protocol["preference"]
    for i, row in enumerate(rows):
        written = {0: 1.0, 1: 2.0, 2: 1.0, 3: None}[(1 + i % 7) % 4]
        if written is not None and shown_in_other_order(evaluation.instructions[i]):
            written = 3 - written
        assert row["preference"] == written
    outcome = alpaca_eval(evaluation, rows, protocol=protocol)
    lost = sum((1 + i % 7) % 4 == 3 for i in range(COUNT))
    assert outcome.metrics["unread"].value == lost / COUNT
    assert any(f"In {lost} of {COUNT}" in note for note in outcome.notes)
    # A prompt, and all, that was asked is not asked again.
    count = len(server.requests)
    with Judge(settings_of(server), tmp_path / "judge.jsonl") as judge:
        assert annotate(evaluation, answers_of(evaluation), judge, prompt, model="mine") == (rows, protocol)
    assert len(server.requests) == count


@pytest.mark.parametrize(
    ("logprobs", "preference"),
    [
        ({"m": math.log(0.2), "M": math.log(0.6)}, 1.75),
        ({"m": -0.01, "The": -5.0}, 1.0),
        ({"M": -0.01}, 2.0),
        ({"m": -1000.0, "M": -0.0}, 2.0),
        ({"Both": -0.1}, None),
    ],
)
def test_preferences_of_log_probabilities(logprobs, preference):
    found = read_preference(Reply(text="x", logprobs=logprobs))
    assert found == (None if preference is None else pytest.approx(preference))


def annotations(preferences):
    return [
        {
            "instruction": f"i{n}",
            "output_1": "x" * (10 + n),
            "output_2": "y" * (20 - n),
            "generator_1": "baseline",
            "generator_2": "mine",
            "annotator": "judge",
            "preference": value,
        }
        for n, value in enumerate(preferences)
    ]


def evaluation_of(rows):
    return EvaluationSet(
        tuple(r["instruction"] for r in rows), ("",) * len(rows), tuple(r["output_1"] for r in rows), "baseline", "0"
    )


def test_scores_are_alpaca_evals():
    """The numbers are those of alpaca_eval 0.6.6's get_winrate for these preferences."""
    rows = annotations([1.0, 2.0, 1.5, 0, 1.2, 1.9, None, -1, float("nan"), 1.51])
    outcome = alpaca_eval(evaluation_of(rows), rows)
    row = leaderboard(outcome)
    assert row == pytest.approx(
        {
            "win_rate": 51.57142857142858,
            "standard_error": 13.348545743615208,
            "n_wins": 3,
            "n_wins_base": 2,
            "n_draws": 2,
            "n_total": 7,
            "discrete_win_rate": 57.14285714285714,
            "avg_length": 15,
        },
        rel=1e-12,
    )
    assert outcome.metrics["win_rate"].values[6] is None
    assert outcome.metrics["win_rate"].n == 7
    assert outcome.metrics["baseline_length"].value == pytest.approx(14.5)
    assert any("needs weights" in note for note in outcome.notes)
    json.dumps(outcome.as_dict(), allow_nan=False)
    with pytest.raises(DataError, match=r"annotation 1: preference is 3"):
        alpaca_eval(evaluation_of(rows), annotations([1, 3]))
    with pytest.raises(DataError, match="not one verdict"):
        alpaca_eval(evaluation_of(rows), annotations([None, None]))


def test_every_mismatch_is_told(tmp_path):
    evaluation = made_up_set(4)
    rows = output_rows(evaluation, "mine", ["a", "b", "c", "d"])
    write_json(tmp_path / "good.json", rows[::-1])
    assert read_outputs(tmp_path / "good.json", evaluation) == ("mine", ["a", "b", "c", "d"])
    rows[1]["instruction"] = "instruction 1,  with {output_1} in it\u2028"
    rows[3]["instruction"] = "another"
    write_json(tmp_path / "bad.json", rows)
    with pytest.raises(DataError) as failure:
        read_outputs(tmp_path / "bad.json", evaluation)
    problems = failure.value.problems
    assert len(problems) == 3
    assert "no output for instruction 1" in problems[0]
    assert "differs from it in spaces or case" in problems[0]
    assert "no output for instruction 3" in problems[1]
    assert "'another' is not in the evaluation set" in problems[2]


def test_annotations_must_be_of_this_baseline(tmp_path):
    rows = annotations([1.0, 2.0])
    evaluation = evaluation_of(rows)
    write_json(tmp_path / "annotations.json", rows[::-1])
    assert read_annotations(tmp_path / "annotations.json", evaluation) == rows
    rows[0]["output_1"] = "other"
    write_json(tmp_path / "annotations.json", rows)
    with pytest.raises(DataError, match="output_1 of instruction 0, 'i0', is not the baseline's output"):
        read_annotations(tmp_path / "annotations.json", evaluation)


def test_files_are_found_and_checked(tmp_path):
    with pytest.raises(DataError, match=r"no evaluation set, expected alpaca_eval_gpt4_baseline\.json"):
        find_files(tmp_path)
    rows = [{"instruction": "a", "output": "b", "generator": "g", "dataset": "d"}] * 2
    write_json(tmp_path / "alpaca_eval_gpt4_baseline.json", rows)
    (tmp_path / "alpaca_eval_clf.txt").write_text("Which is better, {output_1}?")
    found = find_files(tmp_path)
    assert set(found) == {"data", "judge_prompt"}
    with pytest.raises(DataError, match="the instruction 'a' is there twice"):
        read_evaluation_set(found["data"])
    with pytest.raises(DataError) as failure:
        read_judge_prompt(found["judge_prompt"])
    assert len(failure.value.problems) == 4
    write_json(found["data"], [{"instruction": "a"}])
    with pytest.raises(DataError, match="row 0 has no text 'output'"):
        read_evaluation_set(found["data"])


def length_problem(seed, count=200):
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 1.2, count)
    gamed = rng.normal(0, 1, (2, count))
    features = np.concatenate([np.stack([np.tanh(g), difficulty, np.zeros(count)], 1) for g in gamed])
    control = LengthControl(
        difficulty, features, 1 / (1 + np.exp(-1.5 * gamed)).reshape(-1), np.tile(np.arange(count), 2)
    )
    baseline, mine = rng.integers(500, 2500, count), rng.integers(200, 3000, count)
    delta = (baseline - mine) / np.std(baseline - mine, ddof=1)
    logits = -np.tanh(delta) + 0.4 * difficulty - 0.7 + rng.normal(0, 1, count)
    return control, 1 / (1 + np.exp(-logits)), baseline, mine, delta


@pytest.mark.parametrize("seed", [0, 1])
def test_length_control_is_scikit_learns_cross_validated_regression(seed):
    """``fit_LogisticRegressionCV`` of alpaca_eval, written anew: each example twice, weighted by its probability."""
    linear, metrics, selection = (
        pytest.importorskip(f"sklearn.{name}") for name in ("linear_model", "metrics", "model_selection")
    )
    control, preferences, baseline, mine, delta = length_problem(seed)
    own = np.stack([np.tanh(delta), control.difficulty, np.ones_like(delta)], 1)
    features = np.concatenate([control.features, own])
    targets = np.concatenate([control.preferences, preferences])
    weights = np.where(features[:, 2] > 0, 1.0, 0.1)
    best = None
    fold = selection.GroupKFold(5)
    groups = np.tile(np.arange(len(targets)), 2)
    twice, labels = np.tile(features, (2, 1)), np.repeat([1, 0], len(targets))
    probability = np.concatenate([targets, 1 - targets]) * np.tile(weights, 2)

    def fitted(strength, rows):
        model = linear.LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123, tol=1e-6, max_iter=1000
        )
        return model.fit(twice[rows], labels[rows], sample_weight=probability[rows])

    for strength in np.logspace(-4, 4, 10):
        losses = []
        for train, test in fold.split(twice, labels, groups):
            guess = fitted(strength, train).predict_proba(twice[test])[:, 1]
            one = test[test < len(targets)]
            losses.append(
                metrics.log_loss(labels[test], guess, sample_weight=probability[test], labels=[0, 1], normalize=False)
                / (2 * len(one))
            )
        if best is None or np.mean(losses) < best[0]:
            best = (np.mean(losses), strength)
    assert best is not None
    coefficients = fitted(best[1], slice(None)).coef_[0]
    equal_lengths = np.stack([np.zeros_like(delta), control.difficulty, np.ones_like(delta)], 1)
    expected = 1 / (1 + np.exp(-(equal_lengths @ coefficients)))
    found = length_controlled(control, preferences, baseline, mine)
    np.testing.assert_allclose(found.fitted, expected, atol=1e-4)
    assert found.value == pytest.approx(expected.mean(), abs=1e-4)


def test_equal_models_differ_in_one_test_of_twenty():
    """Two models that differ in what the judge happened to say: |difference| > 1.96 standard errors."""
    count, runs = 150, 60
    rng = np.random.default_rng(0)
    false, values, errors = 0, [], []
    for run in range(runs):
        control, _, baseline, _, _ = length_problem(run, count)
        control.difficulty[:] *= 0.1  # what both share makes differences smaller than their standard errors say
        pair = []
        for _ in range(2):
            mine = rng.integers(200, 3000, count)
            delta = (baseline - mine) / np.std(baseline - mine, ddof=1)
            preferences = 1 / (1 + np.exp(np.tanh(delta) + 0.7 - rng.normal(0, 1.5, count)))
            pair.append(length_controlled(control, preferences, baseline, mine, refits=50))
        values += [each.value for each in pair]
        errors += [each.stderr for each in pair]
        false += abs(pair[0].value - pair[1].value) > 1.96 * math.hypot(pair[0].stderr, pair[1].stderr)
    assert 1 <= false <= 10, false  # 3 of 60 expected; fewer have a chance of 5 %, more one of 0.03 %
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.15)


def test_many_fits_at_once_are_the_single_fits():
    control, *_ = length_problem(4)
    weights = np.random.default_rng(1).multinomial(400, np.full(400, 1 / 400), size=5).astype(float)
    for strength in (1e-2, 1.0, 1e4):
        together = fit_l1(control.features, control.preferences, weights, strength)
        for row, own in zip(together, weights, strict=True):
            alone = fit_l1(control.features, control.preferences, own, strength)
            np.testing.assert_allclose(row, alone, atol=1e-6)


def test_the_penalised_fit_satisfies_its_optimality_conditions():
    control, *_ = length_problem(3)
    x, y, weights = control.features, control.preferences, np.linspace(0.1, 2, len(control.preferences))
    for strength in (1e-3, 1e-2, 1.0, 100.0):
        w = fit_l1(x, y, weights, strength)
        gradient = strength * x.T @ (weights * (1 / (1 + np.exp(-x @ w)) - y))
        for value, slope in zip(w, gradient, strict=True):
            if value == 0:
                assert abs(slope) <= 1 + 1e-6
            else:
                assert slope == pytest.approx(-np.sign(value), abs=1e-6)
    assert (fit_l1(x, y, weights, 1e-6) == 0).all()


def test_length_control_reads_alpaca_evals_file(tmp_path):
    path = tmp_path / "df_gamed.csv"
    lines = ["model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,index"]
    lines += [f"g{m},{0.25 * (i + 1)},{i - 1}.5,{i}.25,False,{i}" for m in range(2) for i in range(3)]
    path.write_text("\n".join([*lines, ""]))
    control = read_length_control(path)
    np.testing.assert_array_equal(control.difficulty, [0.25, 1.25, 2.25])
    np.testing.assert_allclose(control.features[0], [np.tanh(-1.5), 0.25, 0.0])
    assert control.preferences.tolist() == [0.25, 0.5, 0.75] * 2
    rows = annotations([1.2, None, 1.9])
    outcome = alpaca_eval(evaluation_of(rows), rows, control=control)
    controlled = outcome.metrics["length_controlled_win_rate"]
    assert (controlled.n, controlled.values) == (3, None)
    assert controlled.stderr is not None
    assert leaderboard(outcome)["length_controlled_winrate"] == 100 * controlled.value
    assert leaderboard(outcome)["lc_standard_error"] == 100 * outcome.details["lc_standard_error"]
    assert outcome.notes == ["In 1 of 3 comparisons no verdict was found; they are left out."]
    itself = [{**row, "generator_2": "baseline"} for row in rows]
    assert (
        alpaca_eval(evaluation_of(itself), itself, control=control).metrics["length_controlled_win_rate"].value == 0.5
    )
    some = alpaca_eval(evaluation_of(rows[:2]), rows[:2], control=control)
    assert "length_controlled_win_rate" not in some.metrics
    assert "its weights are of 3 instructions, and 2 are measured" in some.notes[0]
    path.write_text("index,preference\n0,1\n")
    with pytest.raises(DataError, match="no column std_delta_len, instruction_difficulty, not_gamed_baseline"):
        read_length_control(path)
