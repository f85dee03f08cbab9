"""The chunked pass over the vocabulary against all logits at once: values in float64, gradients by autodiff."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.row_plans import RowShape
from jaxalign.data.rows import build_rows
from jaxalign.logprobs import STATISTICS, Distribution, completion_sums, token_scores
from jaxalign.mesh_axes import platform
from jaxalign.training.mesh import make_mesh
from jaxalign.training.scoring import by_completion, completion_lengths
from jaxalign.vocabulary_tiles import LARGE_TILE_BYTES, TILE_BYTES, tile_shape
from tests.training.conftest import examples_for

R, T, S, D, V = 2, 11, 7, 6, 50


def some(seed: int, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(scale * rng.normal(size=(R, T, D)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    return hidden, head


HIDDEN, HEAD = some(0)
THEIRS = Distribution(*some(1))
SOURCE = jnp.asarray(np.random.default_rng(2).integers(0, T, (R, S)), jnp.int32)
TARGET = jnp.asarray(np.random.default_rng(3).integers(0, V, (R, S)), jnp.int32)
SMALL = {"chunk": 3, "vocabulary_chunk": 16}  # several chunks of tokens, several blocks of the vocabulary


def dense(hidden, head, soft_cap=None):
    """Log-probabilities of the whole vocabulary at the scored places, ``[R, S, V]``, and the logits."""
    logits = jnp.take_along_axis(hidden, SOURCE[..., None], 1) @ head
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    return jax.nn.log_softmax(logits), logits


def expected(hidden, head, theirs=THEIRS, soft_cap=None):
    """Every statistic, from the definition."""
    log_p, logits = dense(hidden, head, soft_cap)
    log_q, _ = dense(theirs.hidden, theirs.head, theirs.soft_cap)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    return {
        "logps": jnp.take_along_axis(log_p, TARGET[..., None], -1)[..., 0],
        "entropy": -(p * log_p).sum(-1),
        "correct": (logits.argmax(-1) == TARGET).astype(jnp.float32),
        "mean_logit": logits.mean(-1),
        "collision": jnp.log(jnp.square(p).sum(-1)),
        "reference_logps": jnp.take_along_axis(log_q, TARGET[..., None], -1)[..., 0],
        "kl": (q * (log_q - log_p)).sum(-1),
    }


@pytest.mark.parametrize("blocks", [{}, SMALL], ids=["whole", "chunked"])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_values(blocks, soft_cap):
    scores = token_scores(
        HIDDEN, HEAD, SOURCE, TARGET, soft_cap=soft_cap, statistics=STATISTICS, reference=THEIRS, **blocks
    )
    for name, value in expected(HIDDEN, HEAD, soft_cap=soft_cap).items():
        np.testing.assert_allclose(getattr(scores, name), value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("blocks", [{}, SMALL], ids=["whole", "chunked"])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("names", [("logps",), ("kl",), ("entropy",), ("logps", "kl", "entropy")], ids="+".join)
def test_gradients(names, soft_cap, blocks):
    """Of a weighted sum, with respect to states and head."""
    weights = {name: jnp.asarray(np.random.default_rng(4).normal(size=(R, S)), jnp.float32) for name in names}

    def ours(hidden, head):
        scores = token_scores(
            hidden,
            head,
            SOURCE,
            TARGET,
            soft_cap=soft_cap,
            statistics=("entropy",),
            entropy_gradient=True,
            reference=THEIRS,
            **blocks,
        )
        return sum((weights[name] * getattr(scores, name)).sum() for name in names)

    def theirs(hidden, head):
        values = expected(hidden, head, soft_cap=soft_cap)
        return sum((weights[name] * values[name]).sum() for name in names)

    for mine, right in zip(jax.grad(ours, (0, 1))(HIDDEN, HEAD), jax.grad(theirs, (0, 1))(HIDDEN, HEAD), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-5)


def test_what_is_not_asked_for_is_not_there_and_carries_no_gradient():
    scores = token_scores(HIDDEN, HEAD, SOURCE, TARGET)
    assert [value is None for value in scores] == [False, *[True] * 6]

    def statistics(hidden):
        scores = token_scores(hidden, HEAD, SOURCE, TARGET, statistics=STATISTICS, reference=THEIRS)
        return scores.entropy.sum() + scores.collision.sum() + scores.mean_logit.sum() + scores.reference_logps.sum()

    assert (jax.grad(statistics)(HIDDEN) == 0).all()


def test_no_gradient_reaches_the_reference():
    def kl(hidden, head):
        scores = token_scores(HIDDEN, HEAD, SOURCE, TARGET, reference=Distribution(hidden, head))
        return scores.kl.sum() + scores.reference_logps.sum()

    assert all((gradient == 0).all() for gradient in jax.grad(kl, (0, 1))(*some(1)))


def test_the_divergence_of_a_model_from_itself_is_exactly_zero():
    scores = token_scores(HIDDEN, HEAD, SOURCE, TARGET, reference=Distribution(HIDDEN, HEAD), **SMALL)
    assert (scores.kl == 0).all()
    np.testing.assert_array_equal(scores.logps, scores.reference_logps)


def test_the_divergence_is_accurate_where_it_is_small():
    """Against float64, a thousandth of a nat between two sharp distributions."""
    hidden, head = some(0, scale=5.0)
    nearby = hidden + 1e-2 * jnp.asarray(np.random.default_rng(5).normal(size=hidden.shape), jnp.float32)
    found = token_scores(hidden, head, SOURCE, TARGET, reference=Distribution(nearby, head)).kl

    def log_softmax(states):
        logits = np.take_along_axis(np.asarray(states, np.float64), np.asarray(SOURCE)[..., None], 1) @ np.asarray(
            head, np.float64
        )
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(hidden), log_softmax(nearby)
    np.testing.assert_allclose(found, (np.exp(log_q) * (log_q - log_p)).sum(-1), atol=2e-6)


def test_extreme_logits_stay_finite():
    hidden, head = some(0, scale=1e3)
    theirs = Distribution(*some(1, scale=1e3))

    def total(hidden):
        scores = token_scores(
            hidden, head, SOURCE, TARGET, statistics=STATISTICS, entropy_gradient=True, reference=theirs, **SMALL
        )
        return sum(value.sum() for value in scores)

    value, gradient = jax.value_and_grad(total)(hidden)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("device", ["cpu", "tpu"])
@pytest.mark.parametrize("vocabulary", [50, 32_000, 50_257, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("tokens", [1, 1_345, 70_001])
def test_tiles_keep_to_their_size_and_waste_little(tokens, vocabulary, device):
    tile = tile_shape(tokens, vocabulary, device)
    assert 4 * tile.tokens * tile.entries <= 1.1 * TILE_BYTES.get(device, LARGE_TILE_BYTES)
    assert -tokens % tile.tokens < -(-tokens // tile.tokens)  # padding: less than one token a tile
    assert tile.entries <= vocabulary
    most = TILE_BYTES.get(device, LARGE_TILE_BYTES) // (4 * tile.tokens)
    assert -(-vocabulary // tile.entries) <= 2 * -(-vocabulary // most) + 1


def test_tiles_are_those_of_the_devices_that_are_compiled_for_also_of_one():
    chip = jax.sharding.AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=chip)):
        assert platform() == "tpu"
    assert platform() == "cpu"


def test_on_a_mesh_every_device_keeps_to_its_rows_and_its_vocabulary():
    """The numbers of one device, from eight; a block of the head travels over fsdp, and never a logit."""
    rng = np.random.default_rng(6)
    rows, scored, width, vocabulary, block = 4, 5, 8, 96, 16
    arguments = [rng.normal(size=shape) for shape in ((rows, 7, width), (width, vocabulary)) * 2]
    arguments = [jnp.asarray(array, jnp.float32) for array in arguments]
    source, target = (jnp.asarray(rng.integers(0, most, (rows, scored))) for most in (7, vocabulary))

    def total(hidden, head, other_hidden, other_head):
        scores = token_scores(
            hidden, head, source, target, statistics=STATISTICS, entropy_gradient=True, soft_cap=3.0,
            reference=Distribution(other_hidden, other_head), chunk=3, vocabulary_chunk=block,
        )  # fmt: skip
        weights = jnp.arange(1.0, 1 + target.size).reshape(target.shape)
        return (weights * (scores.logps + scores.kl * 2 - scores.entropy)).sum(), scores

    step = jax.value_and_grad(total, (0, 1), has_aux=True)
    expected = jax.jit(step)(*arguments)
    plan = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    axes = (("batch", None, None), ("embed", "vocab"))
    with jax.set_mesh(plan.mesh):
        where = [plan.sharding(names, array.shape) for names, array in zip(axes * 2, arguments, strict=True)]
        placed = [jax.device_put(array, sharding) for array, sharding in zip(arguments, where, strict=True)]
        program = jax.jit(step, out_shardings=((None, None), (where[0], where[1]))).lower(*placed).compile()
        found = program(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)

    result = r"= (\(.*?\)|\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    travels: dict[str, set[tuple[int, ...]]] = {}
    for shapes, kind in re.findall(result, program.as_text()):
        for shape in re.findall(r"\[([\d,]*)\]", shapes):
            travels.setdefault(kind, set()).add(tuple(int(size) for size in shape.split(",") if size))
    assert travels.pop("all-gather") == {(width, block)}
    assert travels.pop("reduce-scatter") == {(width // 2, block)}
    assert all(np.prod(shape) <= max(rows * scored * width // 4, width * block) for shape in travels.pop("all-reduce"))
    assert not travels


def test_problems():
    with pytest.raises(ValueError, match=r"got \['entrpy'\], expected some of entropy"):
        token_scores(HIDDEN, HEAD, SOURCE, TARGET, statistics=("entrpy",))
    with pytest.raises(ValueError, match="vocabulary of 49 tokens, expected the policy's 50"):
        token_scores(HIDDEN, HEAD, SOURCE, TARGET, reference=Distribution(HIDDEN, HEAD[:, 1:]))


def test_tokens_by_completion_are_the_tokens_of_each_completion():
    examples = examples_for("dpo", count=5)
    host = build_rows([[(i, examples[i]) for i in (0, 3)], [(1, examples[1])], []], RowShape(96, 64, 3, 2))
    rows = jax.tree.map(jnp.asarray, host)
    lengths = completion_lengths(rows)
    found = by_completion(rows.score_target, lengths, empty=-7)
    assert found.shape == (3, 3, 2, 64)
    for place, identity in {(0, 0): 0, (0, 1): 3, (1, 0): 1}.items():
        for k, completion in enumerate(examples[identity].completions):
            np.testing.assert_array_equal(found[*place, k, : len(completion)], completion)
            assert (found[*place, k, len(completion) :] == -7).all()
    assert (found[2] == -7).all()
    sums = completion_sums(rows.score_target.astype(jnp.float32), rows.score_slot, 3, 2)
    np.testing.assert_array_equal(by_completion(rows.score_target, lengths).sum(-1), sums)
    pairs = jnp.stack([rows.score_target, -rows.score_target], -1)
    np.testing.assert_array_equal(by_completion(pairs, lengths)[..., 1], -by_completion(rows.score_target, lengths))
