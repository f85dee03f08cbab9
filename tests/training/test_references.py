"""Reference sources: each gives the right numbers, carries no gradient, and moves as its formula says."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.records import Example
from jaxalign.data.row_plans import RowShape
from jaxalign.data.rows import build_rows
from jaxalign.errors import ConfigError
from jaxalign.methods import METHODS, Logps, Method
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import Policy, build_policy
from jaxalign.training import references
from jaxalign.training.reference_fill import fill, read
from jaxalign.training.reference_store import ReferenceStore
from jaxalign.training.scoring import score
from jaxalign.types import Rows

VOCABULARY = 50


def make_policy(dtype: str = "float32", **changes) -> Policy:
    sizes = {"vocab_size": VOCABULARY, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8}
    config = DecoderConfig(**(sizes | {"mlp_width": 24, "max_positions": 64} | changes))
    return build_policy(config, dtype=dtype)


def make_examples(columns=lambda i, completions: {}) -> list[Example]:
    rng = np.random.default_rng(3)
    examples = []
    for i in range(5):
        prompt = rng.integers(1, VOCABULARY, rng.integers(1, 6)).astype(np.int32)
        completions = tuple(rng.integers(1, VOCABULARY, rng.integers(1, 7)).astype(np.int32) for _ in range(2))
        examples.append(Example(prompt, completions, columns(i, completions), f"row {i}"))
    return examples


def pack(examples, columns=()) -> Rows:
    indexed = list(enumerate(examples))
    shape = RowShape(tokens=40, scored=24, examples=2, completions=2)
    rows = build_rows([indexed[:2], indexed[2:4], indexed[4:]], shape, columns)
    return jax.tree.map(jnp.asarray, rows)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy()


@pytest.fixture(scope="module")
def variables(policy):
    return jax.jit(policy.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def rows() -> Rows:
    return pack(make_examples())


@functools.cache
def log_softmax_of(policy):
    return jax.jit(lambda variables, tokens: jax.nn.log_softmax(policy.logits(variables, tokens), axis=-1))


def score_separately(policy, variables, example: Example) -> tuple[np.ndarray, ...]:
    """Plain definition: each completion alone behind its prompt, the whole softmax."""
    values = []
    for completion in example.completions:
        tokens = np.zeros((1, 16), np.int32)  # one shape, one compilation; padding behind changes nothing
        size = len(example.prompt) + len(completion)
        tokens[0, :size] = np.concatenate([example.prompt, completion])
        logps = np.asarray(log_softmax_of(policy)(variables, tokens))[0]
        start = len(example.prompt) - 1
        values.append(logps[start + np.arange(len(completion)), completion])
    return tuple(values)


# --- the sources


def test_frozen_gives_the_models_log_probabilities(policy, variables, rows):
    reference = references.frozen(policy)
    state = reference.init(variables)
    got = jax.jit(reference.logps)(state, {"reference": variables}, rows)
    assert state == ()
    assert reference.update(state, variables, 1) == ()
    for i, example in enumerate(make_examples()):
        expected = [values.sum() for values in score_separately(policy, variables, example)]
        np.testing.assert_allclose(got.sums[i // 2, i % 2], expected, rtol=1e-5)
    np.testing.assert_array_equal(got.sums[2, 1], [0, 0])
    assert got.tokens.shape == rows.score_target.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("source", ["frozen", "moving"])
def test_the_log_ratio_of_the_policy_to_itself_is_exactly_zero(dtype, source, rows):
    policy = make_policy(dtype)
    variables = jax.jit(policy.init)(jax.random.key(0))
    reference = getattr(references, source)(policy)
    state = reference.init(variables)

    @jax.jit
    def ratio(variables, state, frozen, rows):
        scores = score(policy, variables, rows)
        logps = reference.logps(state, frozen, rows)
        return scores.tokens.logps - logps.tokens, scores.sums - logps.sums

    tokens, sums = ratio(variables, state, {"reference": variables}, rows)
    np.testing.assert_array_equal(tokens, 0)
    np.testing.assert_array_equal(sums, 0)


def test_another_architecture_as_reference(variables, rows):
    other = make_policy(width=24, layers=1, kv_heads=2)
    weights = jax.jit(other.init)(jax.random.key(7))
    got = jax.jit(references.frozen(other).logps)((), {"reference": weights, "policy": variables}, rows)
    expected = [v.sum() for v in score_separately(other, weights, make_examples()[0])]
    np.testing.assert_allclose(got.sums[0, 0], expected, rtol=1e-5)


def test_cached_equals_frozen_through_the_store(tmp_path, policy, variables, rows):
    def scorer(examples):
        return [(i, score_separately(policy, variables, example)) for i, example in enumerate(examples)]

    store = ReferenceStore(tmp_path, "weights", "template", "float32/forward-1")
    examples = make_examples()
    fill(store, examples, scorer)
    stored = read(store, examples)
    packed = pack(make_examples(lambda i, _: {"reference_logps": stored.tokens(i)}), ["reference_logps"])
    reference = references.cached()
    got = jax.jit(reference.logps)(reference.init(variables), {}, packed)
    expected = jax.jit(references.frozen(policy).logps)((), {"reference": variables}, rows)
    np.testing.assert_allclose(got.sums, expected.sums, rtol=1e-5)
    real = np.asarray(rows.score_slot) < 4
    np.testing.assert_allclose(np.asarray(got.tokens)[real], np.asarray(expected.tokens)[real], rtol=1e-5)

    # The sums of the same store, as a reference with its own tokenizer would give them.
    columns = {"reference_sums": stored.sums, "reference_lengths": stored.lengths}
    packed = pack(make_examples(lambda i, _: {k: f(i) for k, f in columns.items()}), list(columns))
    sums = references.cached_sums().logps((), {}, packed)
    np.testing.assert_allclose(sums.sums, got.sums, rtol=1e-6)
    assert sums.tokens is None
    np.testing.assert_array_equal(packed.columns["reference_lengths"][0, 0], stored.lengths(0))


def test_none_is_zero(variables, rows):
    got = references.none().logps((), {}, rows)
    assert got.sums.shape == (3, 2, 2)
    assert got.tokens is not None
    assert not np.asarray(got.sums).any()
    assert not np.asarray(got.tokens).any()


@pytest.mark.parametrize("name", ["frozen", "moving", "cached", "cached_sums"])
def test_no_gradient_flows_into_a_reference(name, policy, variables, rows):
    make = getattr(references, name)
    reference = make(policy) if name in ("frozen", "moving") else make()
    extra = {"reference_logps": jnp.ones(rows.score_target.shape), "reference_sums": jnp.ones((3, 2, 2))}

    def total(variables, state, extra):
        packed = Rows(**{**vars(rows), "columns": dict(rows.columns) | extra})
        logps = reference.logps(state, {"reference": variables}, packed)
        moved = jax.jit(reference.update)(state, variables, jnp.asarray(1))
        parts = [x.sum() for x in jax.tree.leaves((logps, moved if name == "moving" else ()))]
        return sum(parts[: 1 if logps.tokens is None else 2])

    gradients = jax.jit(jax.grad(total, argnums=(0, 2)))(variables, reference.init(variables), extra)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


# --- moving


def walk(policy, reference, variables, steps: int, seed: int = 0):
    """A policy that takes random steps, and its reference after each."""
    state, path = reference.init(variables), []
    variables = jax.tree.map(np.asarray, variables)
    update = jax.jit(reference.update, donate_argnums=0)
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        variables = jax.tree.map(lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32), variables)
        state = update(state, variables, jnp.asarray(step, jnp.int32))
        path.append((variables, jax.tree.map(np.asarray, state)))
    return path


@pytest.mark.parametrize(("rate", "every"), [(1.0, 3), (0.6, 3), (0.01, 1), (1.0, 1), (0.25, 2)])
def test_moving_follows_its_formula(policy, variables, rate, every):
    path = walk(policy, references.moving(policy, rate=rate, every=every), variables, 7)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    for step, (current, state) in enumerate(path, start=1):
        if step % every == 0:
            expected = jax.tree.map(
                lambda new, old: rate * np.asarray(new, np.float64) + (1 - rate) * old, current, expected
            )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state, expected)
    if rate == 1:
        current, state = path[every - 1]
        jax.tree.map(np.testing.assert_array_equal, state, current)


def test_moving_resumes_bit_equal(policy, variables):
    reference = references.moving(policy, rate=0.3, every=2)
    path = walk(policy, reference, variables, 6)
    state = jax.tree.map(jnp.asarray, path[2][1])  # as a checkpoint after step 3 has it
    for step in range(4, 7):
        state = jax.jit(reference.update)(state, path[step - 1][0], jnp.asarray(step, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, state, path[-1][1])


def test_moving_starts_as_a_copy_of_its_own(policy, variables):
    reference = references.moving(policy)
    for init in (reference.init, jax.jit(reference.init)):
        state = init(variables)
        jax.tree.map(np.testing.assert_array_equal, state, variables)
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(variables), strict=True)
        assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)


def test_moving_at_rest_stays_bit_equal(policy, variables):
    reference = references.moving(policy, rate=0.1)
    state = reference.init(variables)
    for step in range(1, 4):
        state = jax.jit(reference.update)(state, variables, jnp.asarray(step))
    jax.tree.map(np.testing.assert_array_equal, state, variables)


def test_moving_in_bfloat16_mixes_in_float32(policy, variables):
    reference = references.moving(policy, rate=0.25, dtype="bfloat16")
    state = reference.init(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("bfloat16")}
    moved = jax.jit(reference.update)(state, jax.tree.map(lambda x: np.asarray(x) * 2, variables), jnp.asarray(1))
    for old, start, new in zip(*map(jax.tree.leaves, (state, variables, moved)), strict=True):
        wide = 0.75 * np.asarray(old, np.float32) + 0.25 * 2 * np.asarray(start, np.float32)
        np.testing.assert_allclose(np.asarray(new, np.float32), wide, rtol=2**-8)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"rate": 0.0}, 1),
        ({"rate": 1.5}, 1),
        ({"rate": float("nan")}, 1),
        ({"every": 0}, 1),
        ({"every": 2.0}, 1),
        ({"dtype": "float8"}, 1),
        ({"rate": 0.001, "dtype": "bfloat16"}, 1),
        ({"rate": -1, "every": -1, "dtype": "int8"}, 3),
    ],
)
def test_moving_refuses_what_makes_no_sense(policy, options, count):
    with pytest.raises(ConfigError) as caught:
        references.moving(policy, **options)
    assert len(caught.value.problems) == count


# --- fit


def test_a_token_level_method_refuses_a_reference_of_sums():
    method = Method("m", METHODS["dpo"].objective, METHODS["dpo"].layout, Logps.TOKEN)
    (problem,) = references.check_reference(method, references.cached_sums())
    assert "log-probability of each token" in problem
    assert references.check_reference(method, references.cached()) == []
    assert references.check_reference(METHODS["dpo"], references.cached_sums()) == []
