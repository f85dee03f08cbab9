"""Shifts by token, and the end token: against plain loops in float64, closed forms, and on a real tiny model."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import jax
import numpy as np
import pytest

from jaxalign.analysis.credit import make_credit_step
from jaxalign.data.pipeline import OrderedBatches, Packer, ordered_iterator
from jaxalign.data.row_shapes import choose_programs
from jaxalign.data.rows import scored_values
from jaxalign.evaluation.end_token import end_token_metrics
from jaxalign.evaluation.token_shift import Scored, by_token, shift_details, shift_metrics
from jaxalign.methods import METHODS
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.training import references
from tests.bigram import bigram_policy, log_probabilities
from tests.example_sets import examples_for

CONFIG = DecoderConfig(
    vocab_size=24, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=16, max_positions=64,
    tied_embeddings=True,
)  # fmt: skip
POLICY = bigram_policy(CONFIG)
EXAMPLES = examples_for(METHODS["dpo"], vocabulary=CONFIG.vocab_size, count=60)
LAST = [[int(example.completions[k][-1]) for example in EXAMPLES] for k in (0, 1)]
END = max(range(CONFIG.vocab_size), key=lambda token: min(LAST[0].count(token), LAST[1].count(token)))


def variables_of(seed: int):
    return POLICY.init(jax.random.key(seed))


def scored(batch_size: int, one, other) -> list[dict[str, Scored]]:
    """All pairs through the packed path."""
    batches = OrderedBatches(EXAMPLES, batch_size=batch_size)
    programs = choose_programs([batches.sizes(i) for i in range(len(batches))], 2)
    step = jax.jit(make_credit_step(POLICY, references.frozen(POLICY)))
    found = {}
    for batch in ordered_iterator(batches, Packer(programs, 1)):
        values = step(one, (), {"reference": other}, batch.rows)
        found |= dict(scored_values(batch.rows, *map(np.asarray, values)))
    return [
        {
            name: Scored(tokens, *logps, ended=int(tokens[-1]) == END)
            for name, tokens, logps in zip(("chosen", "rejected"), EXAMPLES[i].completions, found[i], strict=True)
        }
        for i in range(len(EXAMPLES))
    ]


@pytest.fixture(scope="module")
def pairs():
    return scored(8, variables_of(1), variables_of(2))


def test_equals_a_loop_over_single_sequences(pairs):
    """Sums by token, means by completion and end tokens, one sequence and one position at a time."""
    sums, counts = defaultdict(float), defaultdict(int)
    means, ends = {"chosen": [], "rejected": []}, {"chosen": {}, "rejected": {}}
    for number, example in enumerate(EXAMPLES):
        for name, completion in zip(means, example.completions, strict=True):
            tokens = np.concatenate([example.prompt, completion])
            own, theirs = (log_probabilities(variables_of(seed), tokens) for seed in (1, 2))
            total = 0.0
            for t in range(len(example.prompt), len(tokens)):
                shift = own[t - 1, tokens[t]] - theirs[t - 1, tokens[t]]
                total += shift
                sums[int(tokens[t])] += shift
                counts[int(tokens[t])] += 1
            means[name].append(total / len(completion))
            if tokens[-1] == END:
                ends[name][number] = (own[-2, END], theirs[-2, END])
    found = by_token([each for pair in pairs for each in pair.values()])
    assert found.ids.tolist() == sorted(sums)
    assert found.counts.tolist() == [counts[i] for i in sorted(sums)]
    assert found.means == pytest.approx([sums[i] / counts[i] for i in sorted(sums)], abs=1e-5)

    least = 32
    often = {i: sums[i] / counts[i] for i in sums if counts[i] >= least}
    assert 0 < len(often) < len(sums)
    metrics = shift_metrics(pairs, min_count=least)
    for name, values in means.items():
        assert metrics[f"shift/{name}"].values == pytest.approx(values, abs=1e-5)
    assert metrics["by_token/mean_abs"].value == pytest.approx(np.mean(np.abs(list(often.values()))), abs=1e-5)
    assert metrics["by_token/lowest"].value == pytest.approx(min(often.values()), abs=1e-5)
    assert metrics["by_token/highest"].value == pytest.approx(max(often.values()), abs=1e-5)
    assert metrics["by_token/mean_abs"].n == len(often)
    details = shift_details(pairs, str, min_count=least, top=3)
    ranked = sorted(often, key=lambda i: -abs(often[i]))[:3]
    assert [row["id"] for row in details["top_tokens"]] == ranked
    assert [row["count"] for row in details["top_tokens"]] == [counts[i] for i in ranked]
    assert [row["token"] for row in details["top_tokens"]] == [str(i) for i in ranked]
    assert details["tokens"] == sum(counts.values()) == sum(g["tokens"] for g in details["groups"].values())
    edges, heights = details["histogram"]["edges"], details["histogram"]["counts"]
    every = [sums[i] / counts[i] for i in sums]
    assert sum(heights) == details["ids"] == len(sums)
    assert heights == [sum(a <= v < b for v in every) for a, b in itertools.pairwise(edges)]

    stops = end_token_metrics(pairs)
    assert min(len(found) for found in ends.values()) > 1
    for name, values in ends.items():
        assert stops[f"end/logp/{name}"].values == pytest.approx([own for own, _ in values.values()], abs=1e-5)
        assert stops[f"end/reference_logp/{name}"].values == pytest.approx([r for _, r in values.values()], abs=1e-5)
    both = [number for number in ends["chosen"] if number in ends["rejected"]]
    for metric, place in (("end/margin", 0), ("end/reference_margin", 1)):
        wanted = [ends["chosen"][i][place] - ends["rejected"][i][place] for i in both]
        assert (stops[metric].values if metric in stops else []) == pytest.approx(wanted, abs=1e-5)


def test_end_margins_are_of_pairs_with_two_ends():
    def one(logp, reference, ended=True):
        return Scored(np.array([7, END]), np.array([-1.0, logp]), np.array([-1.0, reference]), ended)

    pairs = [
        {"chosen": one(-1, -2), "rejected": one(-4, -3)},
        {"chosen": one(-2, -2), "rejected": one(-9, -9, ended=False)},
        {"chosen": one(-3, -1), "rejected": one(-1, -1)},
    ]
    found = end_token_metrics(pairs)
    assert found["end/margin"].values == [3.0, -2.0]
    assert found["end/margin"].value == 0.5
    assert found["end/reference_margin"].values == [1.0, 0.0]
    assert (found["end/logp/chosen"].value, found["end/logp/rejected"].value) == (-2.0, -2.5)
    assert "end/margin" not in end_token_metrics([{"completion": one(-1, -1)}])


def test_a_model_has_not_moved_from_itself():
    one = variables_of(1)
    pairs = scored(8, one, one)
    assert not by_token([each for pair in pairs for each in pair.values()]).means.any()
    metrics = shift_metrics(pairs, min_count=1)
    assert {metric.value for metric in metrics.values()} == {0.0}
    histogram = shift_details(pairs, str)["histogram"]
    assert sum(histogram["counts"]) == max(histogram["counts"]) == CONFIG.vocab_size - 3
    stops = end_token_metrics(pairs)
    assert stops["end/logp/chosen"].value == stops["end/reference_logp/chosen"].value


@pytest.mark.parametrize("batch_size", [1, 60])
def test_batches_do_not_matter(pairs, batch_size):
    other = scored(batch_size, variables_of(1), variables_of(2))
    one, two = (by_token([each for pair in found for each in pair.values()]) for found in (pairs, other))
    assert one.counts.tolist() == two.counts.tolist()
    assert np.abs(one.means - two.means).max() < 1e-5


@pytest.mark.parametrize("scale", [1e-6, 0.03, 7.0, 80.0, 1e5])
def test_histograms_of_different_models_fit_on_one_another(scale):
    values = np.random.default_rng(0).normal(-scale, scale, 500)
    ids = np.arange(500)
    completions = [Scored(ids, values, np.zeros(500), True)]
    histogram = by_token(completions).histogram()
    edges = np.array(histogram["edges"])
    width = edges[1] - edges[0]
    assert sum(histogram["counts"]) == 500
    assert len(histogram["counts"]) <= 48
    leading = width / 10 ** math.floor(math.log10(width) + 1e-9)
    assert any(leading == pytest.approx(factor) for factor in (1, 2, 5))
    assert edges / width == pytest.approx(np.round(edges / width), abs=1e-6)


def test_nothing_to_tell():
    assert shift_metrics([]) == {}
    assert end_token_metrics([]) == {}
    assert shift_details([], str)["top_tokens"] == []
