"""Divergence of a policy from its reference: against float64 loops over the whole vocabulary, and closed forms."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.pipeline import OrderedBatches, Packer, ordered_iterator
from jaxalign.data.row_shapes import choose_programs
from jaxalign.data.rows import scored_values
from jaxalign.evaluation.divergence import Divergence, divergence_metrics, make_divergence_step
from jaxalign.methods import METHODS
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.types import causal_rows
from tests.bigram import bigram_policy, log_probabilities
from tests.example_sets import examples_for

CONFIG = DecoderConfig(
    vocab_size=24, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=16, max_positions=64,
    tied_embeddings=True,
)  # fmt: skip
POLICY = bigram_policy(CONFIG)
EXAMPLES = examples_for(METHODS["sft"], vocabulary=CONFIG.vocab_size, count=20)


def variables_of(seed: int):
    return POLICY.init(jax.random.key(seed))


def measured(batch_size, one, other) -> list[Divergence]:
    batches = OrderedBatches(EXAMPLES, batch_size=batch_size)
    programs = choose_programs([batches.sizes(i) for i in range(len(batches))], 1)
    step = jax.jit(make_divergence_step(POLICY, POLICY))
    found = {}
    for batch in ordered_iterator(batches, Packer(programs, 1)):
        values = step(one, other, batch.rows)
        found |= dict(scored_values(batch.rows, *map(np.asarray, values)))
    return [Divergence(*found[i][0]) for i in range(len(EXAMPLES))]


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_equals_a_loop_over_single_sequences(batch_size):
    found = measured(batch_size, variables_of(1), variables_of(2))
    sequence, k1, k3, lengths = [], [], [], []
    for example, each in zip(EXAMPLES, found, strict=True):
        completion = example.completions[0]
        tokens = np.concatenate([example.prompt, completion])
        own, theirs = (log_probabilities(variables_of(seed), tokens)[len(example.prompt) - 1 : -1] for seed in (1, 2))
        ratio = (own - theirs)[np.arange(len(completion)), completion]
        assert each.exact == pytest.approx((np.exp(own) * (own - theirs)).sum(-1), abs=1e-5)
        assert each.k1 == pytest.approx(ratio, abs=1e-5)
        assert each.k3 == pytest.approx(np.exp(-ratio) - 1 + ratio, rel=1e-4, abs=1e-5)
        sequence.append((np.exp(own) * (own - theirs)).sum())
        k1.append(ratio.sum())
        k3.append((np.exp(-ratio) - 1 + ratio).sum())
        lengths.append(len(completion))
    metrics = divergence_metrics(found)
    assert metrics["kl/sequence"].values == pytest.approx(sequence, abs=1e-4)
    assert metrics["kl/sequence_k1"].values == pytest.approx(k1, abs=1e-4)
    assert metrics["kl/sequence_k3"].values == pytest.approx(k3, rel=1e-4)
    assert metrics["kl/token"].value == pytest.approx(sum(sequence) / sum(lengths), abs=1e-5)
    # The standard error of a ratio, by the jackknife.
    without = [
        (sum(sequence) - s) / (sum(lengths) - n) for s, n in zip(sequence, lengths, strict=True)
    ]  # fmt: skip
    jackknife = np.sqrt((len(without) - 1) * np.var(without))
    assert metrics["kl/token"].stderr == pytest.approx(jackknife, rel=0.15)


def test_a_model_does_not_diverge_from_itself():
    one = variables_of(1)
    for each in measured(7, one, one):
        assert not each.exact.any()
        assert not each.k1.any()
        assert not each.k3.any()


def test_models_of_different_functions():
    """The step takes each model's own functions: here the other one's soft cap flattens its distribution."""
    capped = dataclasses.replace(POLICY, soft_cap=0.5)
    one = variables_of(1)
    rows = dataclasses.replace(
        causal_rows(jnp.arange(6)[None]),
        score_source=jnp.arange(5)[None],
        score_target=jnp.arange(1, 6)[None],
        score_slot=jnp.zeros((1, 5), jnp.int32),
    )
    own = log_probabilities(one, np.arange(6))[:5]
    params = {name: np.asarray(value, np.float64) for name, value in one["params"].items()}
    logits = np.tanh((params["embed"][:5] + params["position"][:5]) @ params["mix"]) @ params["out"]
    flat = 0.5 * np.tanh(logits / 0.5)
    flat -= np.log(np.exp(flat).sum(-1, keepdims=True))
    for policy, reference, first, second in ((POLICY, capped, own, flat), (capped, POLICY, flat, own)):
        logps, reference_logps, kl = make_divergence_step(policy, reference)(one, one, rows)
        at = (np.arange(5), np.arange(1, 6))
        assert np.asarray(logps)[0] == pytest.approx(first[at], abs=1e-5)
        assert np.asarray(reference_logps)[0] == pytest.approx(second[at], abs=1e-5)
        assert np.asarray(kl)[0] == pytest.approx((np.exp(first) * (first - second)).sum(-1), abs=1e-5)


def test_all_estimators_have_the_divergence_as_their_mean():
    """One token drawn from a known distribution, very often: k1 and k3 meet the closed form, k3 with less noise."""
    generator = np.random.default_rng(0)
    p, r = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.2, 0.3])
    kl = float((p * np.log(p / r)).sum())
    drawn = generator.choice(3, 40_000, p=p)
    answers = [Divergence(np.log(p[[i]]), np.log(r[[i]]), np.array([kl])) for i in drawn]
    found = divergence_metrics(answers)
    for name in ("kl/sequence", "kl/sequence_k1", "kl/sequence_k3"):
        values = np.array(found[name].values, float)
        assert found[name].value == pytest.approx(kl, abs=max(1e-12, 4 * values.std() / len(values) ** 0.5)), name
    k1, k3 = (np.array(found[f"kl/sequence_{name}"].values, float) for name in ("k1", "k3"))
    assert k3.std() < k1.std()
    assert found["kl/token"].value == pytest.approx(kl)
    assert divergence_metrics(answers[:1])["kl/token"].stderr is None
