"""Held-out evaluation: against a loop over single sequences, and whatever the batch size and the devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.build.data import column_names
from jaxalign.data.pipeline import OrderedBatches, Packer, ordered_iterator
from jaxalign.data.records import Example
from jaxalign.data.row_plans import RowProgram, RowShape, plan_rows
from jaxalign.data.rows import build_rows
from jaxalign.errors import DataError, NumericsError
from jaxalign.evaluation.preferences import (
    CompletionScores,
    collect,
    evaluate_preferences,
    make_eval_step,
    metric_names,
    preference_metrics,
)
from jaxalign.methods import METHODS, Layout
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy
from jaxalign.training import references
from jaxalign.training.mesh import make_mesh
from jaxalign.types import Rows
from tests.bigram import bigram_policy
from tests.example_sets import examples_for

COUNT, VOCABULARY = 11, 40
SHAPE = RowShape(tokens=48, scored=32, examples=4, completions=2)


@functools.cache
def model():
    config = DecoderConfig(
        vocab_size=VOCABULARY, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=24, max_positions=64
    )
    policy = build_policy(config, dtype="float32")
    init = jax.jit(policy.init)
    sharpen = functools.partial(jax.tree.map, lambda x: x * 3)  # untrained logits are almost flat
    return policy, sharpen(init(jax.random.key(0))), sharpen(init(jax.random.key(1)))


@functools.cache
def make_examples(completions: int) -> tuple[Example, ...]:
    rng = np.random.default_rng(0)
    examples = []
    for i in range(COUNT):
        prompt = rng.integers(1, VOCABULARY, rng.integers(1, 6)).astype(np.int32)
        answers = tuple(rng.integers(1, VOCABULARY, rng.integers(1, 7)).astype(np.int32) for _ in range(completions))
        examples.append(Example(prompt, answers, {"desirable": bool(i % 3)}, f"row {i}"))
    return tuple(examples)


def pack(completions: int, batch_size: int, multiple: int = 1) -> list[Rows]:
    """The whole set in batches, in a shuffled order; the rows of a batch are a multiple of `multiple`."""
    order = np.random.default_rng(batch_size).permutation(COUNT)
    examples, shape = make_examples(completions), SHAPE._replace(completions=completions)
    batches = []
    for start in range(0, COUNT, batch_size):
        chosen = [(int(i), examples[i]) for i in order[start : start + batch_size]]
        scored = [sum(map(len, e.completions)) for _, e in chosen]
        tokens = [s + len(e.prompt) for s, (_, e) in zip(scored, chosen, strict=True)]
        rows = [[chosen[i] for i in row] for row in plan_rows(tokens, scored, shape).rows]
        rows += [[]] * (-len(rows) % multiple)
        batches.append(build_rows(rows, shape, ["desirable"]))
    return batches


@functools.cache
def compiled(name: str, absent: bool = False):
    policy, _, _ = model()
    reference = references.none() if absent else references.frozen(policy)
    return jax.jit(make_eval_step(policy, METHODS[name], reference))


def run(name: str, batch_size: int, options=None, absent: bool = False, swap: bool = False):
    method = METHODS[name]
    _, variables, other = model()
    if swap:
        variables, other = other, variables
    return evaluate_preferences(
        compiled(name, absent),
        pack(1 if method.layout is Layout.SINGLE else 2, batch_size),
        method=method,
        options=options or {},
        variables=variables,
        frozen={"reference": other},
    )


@functools.cache
def sums_by_loop(completions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Policy sums, reference sums and lengths ``[N, K]``: each completion alone behind its prompt, whole softmax."""
    policy, *models = model()
    logits = jax.jit(policy.logits)
    result = np.zeros((3, COUNT, completions))
    for i, example in enumerate(make_examples(completions)):
        for k, completion in enumerate(example.completions):
            ids = np.concatenate([example.prompt, completion])
            tokens = np.zeros((1, 16), np.int32)
            tokens[0, : len(ids)] = ids
            for m, variables in enumerate(models):
                values = np.asarray(logits(variables, tokens), np.float64)[0]
                values -= np.log(np.exp(values).sum(-1, keepdims=True))
                places = len(example.prompt) - 1 + np.arange(len(completion))
                result[m, i, k] = values[places, completion].sum()
            result[2, i, k] = len(completion)
    return result[0], result[1], result[2]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_dpo_against_a_loop():
    policy, reference, lengths = sums_by_loop(2)
    rho = policy - reference
    rewards = 0.3 * rho
    margins = rewards[:, 0] - rewards[:, 1]
    got = run("dpo", 4, {"beta": 0.3})
    expected = {
        "loss": -np.log(sigmoid(margins)).mean(),
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/accuracies": (margins > 0).mean(),
        "rewards/margins": margins.mean(),
        "logps/chosen": policy[:, 0].mean(),
        "logps/rejected": policy[:, 1].mean(),
        "ranking/accuracy": (policy[:, 0] > policy[:, 1]).mean(),
        "ranking/accuracy_per_token": ((policy / lengths)[:, 0] > (policy / lengths)[:, 1]).mean(),
        "ranking/reference_accuracy": (reference[:, 0] > reference[:, 1]).mean(),
        "ranking/reference_accuracy_per_token": ((reference / lengths)[:, 0] > (reference / lengths)[:, 1]).mean(),
        "kl/sequence": rho[:, 0].mean(),
        "kl/token": rho[:, 0].sum() / lengths[:, 0].sum(),
        "lengths/chosen": lengths[:, 0].mean(),
        "lengths/rejected": lengths[:, 1].mean(),
    }
    assert expected.keys() <= got.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert 0 < expected["ranking/accuracy"] < 1
    assert expected["ranking/accuracy"] != expected["ranking/accuracy_per_token"]


def test_kto_takes_its_reference_point_over_the_whole_set():
    reference, policy, lengths = sums_by_loop(2)  # in this order the reference point is not clamped to 0
    rho = policy - reference
    desirable = np.array([bool(i % 3) for i in range(COUNT)])
    reference_point = max(0.0, rho[:, 1].mean())
    reward = 0.2 * (rho[:, 0] - reference_point)
    got = run("kto", 3, {"beta": 0.2}, swap=True)
    assert got["loss"] == pytest.approx(sigmoid(np.where(desirable, -reward, reward)).mean(), rel=1e-5)
    assert got["kl"] == pytest.approx(reference_point, rel=1e-5)
    chosen, rejected = 0.2 * rho[desirable, 0].mean(), 0.2 * rho[~desirable, 0].mean()
    assert got["rewards/chosen"] == pytest.approx(chosen, rel=1e-5)
    assert got["rewards/margins"] == pytest.approx(chosen - rejected, rel=1e-5)
    assert got["kl/sequence"] == pytest.approx(rho[desirable, 0].mean(), rel=1e-5)
    assert got["lengths/rejected"] == pytest.approx(lengths[~desirable, 0].mean())
    assert reference_point > 0


def test_sft_weighs_tokens():
    policy, _, lengths = sums_by_loop(1)
    got = run("sft", 4, absent=True)
    assert got["loss"] == pytest.approx(-policy.sum() / lengths.sum(), rel=1e-5)
    assert got["lengths/chosen"] == pytest.approx(lengths.mean())
    assert not [name for name in got if name.startswith(("kl", "ranking", "rewards"))]


@functools.cache
def every_run(name: str, batch_size: int) -> dict[str, float]:
    """A method on data with all that it reads, in batches of a shuffled order, by the bigram model."""
    method = METHODS[name]
    examples = examples_for(method, vocabulary=VOCABULARY, count=COUNT, longest=7)
    examples = examples.select(np.random.default_rng(batch_size).permutation(COUNT))
    batches = OrderedBatches(examples, batch_size=batch_size, mismatched=method.mismatched)
    shape = RowShape(64, 32, 4, examples.completions + batches.mismatched)
    packer = Packer([RowProgram(batch_size, shape)], 1, column_names=column_names(method, ()))
    policy, variables, other = small_model(method)
    step = jax.jit(make_eval_step(policy, method, references.frozen(policy)))
    return evaluate_preferences(
        step,
        (jax.tree.map(jnp.asarray, packed.rows) for packed in ordered_iterator(batches, packer)),
        method=method,
        options=method.resolve_options({}),
        variables=variables,
        frozen={"reference": other},
    )


def small_model(method):
    config = DecoderConfig(
        vocab_size=VOCABULARY, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=24, max_positions=64
    )
    policy = bigram_policy(config, head_outputs=method.head_outputs(method.resolve_options({})))
    return policy, policy.init(jax.random.key(0)), policy.init(jax.random.key(1))


# An example's id is its place in the set, and what is drawn at random is drawn by id; a partner is another one too.
ORDERED = {name for name in METHODS if {"keys", "mismatched_policy"} & set(METHODS[name].inputs)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ORDERED])
def test_batch_size_and_order_change_nothing(name):
    whole = every_run(name, COUNT)
    assert whole
    assert all(np.isfinite(value) for value in whole.values())
    assert set(whole) == set(metric_names(METHODS[name], METHODS[name].resolve_options({}), has_reference=True))
    other = every_run(name, 3)
    assert other.keys() == whole.keys()
    for metric, value in whole.items():
        assert other[metric] == pytest.approx(value, rel=1e-5, abs=1e-6), metric


@pytest.mark.parametrize("name", ["dpo", "kto", "sft"])
def test_batch_size_changes_nothing_with_the_decoder(name):
    whole = run(name, COUNT)
    for batch_size in (1, 2, 5):
        other = run(name, batch_size)
        assert other.keys() == whole.keys()
        for metric, value in whole.items():
            assert other[metric] == pytest.approx(value, rel=1e-5, abs=1e-6), (metric, batch_size)


@pytest.mark.parametrize("axes", [{"data": 8, "fsdp": 1}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_devices_change_nothing(axes):
    plan = make_mesh(**axes)
    method = METHODS["dpo"]
    policy, variables, other = model()
    policy = build_policy(policy.config, dtype="float32", constrain=plan.constrain)
    shardings = plan.tree_shardings(policy.axes(), policy.abstract())
    variables, other = (jax.device_put(v, shardings) for v in (variables, other))
    step = jax.jit(make_eval_step(policy, method, references.frozen(policy)))
    batches = [plan.put_rows(rows, rows.tokens.shape[0], 0) for rows in pack(2, COUNT, plan.batch_size)]
    got = evaluate_preferences(
        step, batches, method=method, options={}, variables=variables, frozen={"reference": other}
    )
    for name, value in run("dpo", COUNT).items():
        assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_the_policy_against_itself_is_the_closed_form():
    _, variables, _ = model()
    got = evaluate_preferences(
        compiled("dpo"), pack(2, 4), method=METHODS["dpo"], options={}, variables=variables,
        frozen={"reference": variables},
    )  # fmt: skip
    assert got["loss"] == pytest.approx(np.log(2), rel=1e-6)
    zeros = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "kl/sequence", "kl/token")
    assert {got[name] for name in zeros} == {0.0}


def test_without_a_reference_nothing_is_compared_with_it():
    got = run("simpo", 4, absent=True)
    assert "ranking/accuracy" in got
    assert not [name for name in got if name.startswith("kl/") or "reference" in name]


def make_scores(count: int, **changes) -> CompletionScores:
    values = {
        "policy": -np.arange(2.0 * count, dtype=np.float32).reshape(1, count, 2),
        "reference": np.zeros((1, count, 2), np.float32),
        "lengths": np.ones((1, count, 2), np.float32),
        "example_mask": np.ones((1, count), bool),
        "columns": {"example_id": np.arange(count)[None]},
        "has_reference": True,
    }
    return CompletionScores(**(values | changes))


def test_collect_orders_and_drops_what_is_no_example_or_there_twice():
    first = make_scores(3, columns={"example_id": np.array([[5, -1, 2]])}, example_mask=np.array([[True, False, True]]))
    second = make_scores(2, columns={"example_id": np.array([[2, 0]])})
    got = collect([first, second])
    assert got.columns["example_id"].tolist() == [0, 2, 5]
    assert got.policy.tolist() == [[-2, -3], [-4, -5], [0, -1]]


def test_a_tie_is_not_a_right_ranking():
    scores = collect([make_scores(2, policy=np.array([[[-1, -1], [-1, -2]]], np.float32))])
    got = preference_metrics(METHODS["dpo"], {}, scores)
    assert got["ranking/accuracy"] == 0.5
    assert got["rewards/accuracies"] == 0.5


@pytest.mark.parametrize("batches", [[], [make_scores(2, example_mask=np.zeros((1, 2), bool))]])
def test_no_examples_is_an_error_of_the_data(batches):
    with pytest.raises(DataError, match="no held-out examples"):
        collect(batches)


@pytest.mark.parametrize("name", ["policy", "reference"])
def test_what_is_not_finite_is_named(name):
    values = np.zeros((1, 3, 2), np.float32)
    values[0, 1, 0] = np.nan
    with pytest.raises(NumericsError, match=rf"the {name}'s log-probabilities are not finite for 1 of 3 .*ids 1\)"):
        collect([make_scores(3, **{name: values})])


def test_the_step_makes_no_host_transfer_and_one_shape_compiles_once():
    step = compiled("dpo")
    _, variables, other = model()
    rows = jax.tree.map(jnp.asarray, pack(2, COUNT)[0])
    with jax.transfer_guard("disallow"):
        step(variables, (), {"reference": other}, rows)
    before = step._cache_size()
    step(variables, (), {"reference": other}, rows)
    assert step._cache_size() == before
