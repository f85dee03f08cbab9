"""Scores of continuations against a plain forward pass over each request alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.evaluation.loglikelihood import ContinuationScorer
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy
from jaxalign.training.mesh import make_mesh

CONFIG = DecoderConfig(
    vocab_size=61,
    width=16,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_width=24,
    max_positions=64,
    tied_embeddings=True,
)


@pytest.fixture(scope="module")
def model():
    policy = build_policy(CONFIG, dtype="float32")
    variables = jax.tree.map(lambda x: 2 * x, policy.init(jax.random.key(0)))  # far from uniform
    return policy, variables


def make_requests(count: int, seed: int = 0):
    """Requests like those of benchmarks: some share a context, some the beginning of one."""
    generator = np.random.default_rng(seed)
    examples = generator.integers(0, 61, 20).tolist()
    requests = []
    for _ in range(count):
        question = generator.integers(0, 61, generator.integers(1, 9)).tolist()
        context = examples + question if generator.random() < 0.5 else question
        for _ in range(generator.integers(1, 5)):
            requests.append((context, generator.integers(0, 61, generator.choice([1, 1, 2, 7])).tolist()))
    return requests


def expected(policy, variables, requests):
    """One padded causal pass, all logits."""
    width = max(len(context) + len(continuation) for context, continuation in requests)
    tokens = np.zeros((len(requests), width), np.int32)
    for i, (context, continuation) in enumerate(requests):
        tokens[i, : len(context) + len(continuation)] = context + continuation
    logps = np.asarray(jax.nn.log_softmax(policy.logits(variables, jnp.asarray(tokens))), np.float64)
    for i, (context, continuation) in enumerate(requests):
        at = len(context) - 1 + np.arange(len(continuation))
        yield logps[i, at, continuation].sum(), bool((logps[i, at].argmax(-1) == continuation).all())


def test_equals_a_pass_over_each_request(model):
    policy, variables = model
    requests = make_requests(20)
    # What greedy decoding says next is a continuation too.
    contexts = [context for context, _ in requests[::3]]
    likely = [np.argmax(policy.logits(variables, jnp.asarray([context]))[0, -1]) for context in contexts[:4]]
    requests += [(context, [int(token)]) for context, token in zip(contexts, likely, strict=False)]
    scorer = ContinuationScorer(policy, variables, make_mesh(devices=jax.devices()[:1]), batch_tokens=256)
    scores = scorer(requests)
    for score, (value, greedy) in zip(scores, expected(policy, variables, requests), strict=True):
        assert abs(score.value - value) < 1e-5
        assert score.greedy == greedy
    assert sum(score.greedy for score in scores) >= 4
    assert scorer.counts.row_tokens < 0.5 * scorer.counts.request_tokens
    assert len(scorer.counts.programs) <= 2
    before = scorer.counts.programs
    scorer(requests)
    assert scorer.counts.programs == before


def test_independent_of_batch_and_devices(model):
    """Batches of other sizes, on one device and on eight: the rows are split over them."""
    _, variables = model
    requests = make_requests(30, seed=1)
    results = []
    for devices, batch_tokens in ((1, 128), (8, 64)):
        plan = make_mesh(devices=jax.devices()[:devices])
        with jax.set_mesh(plan.mesh):
            policy = build_policy(CONFIG, dtype="float32", constrain=plan.constrain)
            placed = jax.device_put(variables, plan.tree_shardings(policy.axes(), policy.abstract()))
            scorer = ContinuationScorer(policy, placed, plan, batch_tokens=batch_tokens)
            results.append(scorer(requests))
        assert all(rows % plan.batch_size == 0 for rows, _, _ in scorer.counts.programs)
    np.testing.assert_allclose([s.value for s in results[1]], [s.value for s in results[0]], atol=1e-5)
    assert [s.greedy for s in results[1]] == [s.greedy for s in results[0]]


def test_no_array_holds_logits_of_all_tokens():
    """The largest float32 array of the program is far below rows x tokens x vocabulary."""
    config = dataclasses.replace(CONFIG, vocab_size=4096)
    policy = build_policy(config, dtype="float32")
    scorer = ContinuationScorer(policy, policy.abstract(), make_mesh(devices=jax.devices()[:1]), batch_tokens=4096)
    rows = {"tokens": 16, "length": 256, "scored": 256}
    program = scorer._program(rows["tokens"], rows["scored"])
    jaxpr = str(jax.make_jaxpr(program)(policy.abstract(), abstract_rows(**rows)))
    assert f"f32[{rows['tokens']},{rows['scored']},4096]" not in jaxpr
    assert f"f32[{rows['tokens']},{rows['length']},4096]" not in jaxpr


def abstract_rows(tokens: int, length: int, scored: int):
    from jaxalign.types import Rows

    long, slots = (jax.ShapeDtypeStruct((tokens, size), jnp.int32) for size in (length, scored))
    present = jax.ShapeDtypeStruct((tokens, 1), jnp.bool_)
    return Rows(long, long, long, long, long, slots, slots, slots, present)
