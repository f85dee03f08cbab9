"""Sampling against the published greedy text, against whole forwards, and against the distribution itself."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.models.decoder_config import decoder_config
from jaxalign.models.huggingface import load_policy
from jaxalign.models.policy import build_policy
from jaxalign.sampling.engine import generate, sample

PROMPTS = [[3], [5, 9, 2, 30], list(range(16)), [7, 7], list(range(40, 29, -1))]
LONG = [list(range(40, 10, -1)), list(range(17))]  # Other buckets.
SETTINGS = {"max_new_tokens": 12, "batch_size": 4}  # Mostly the same, so that few programs are compiled.


def numpy_variables(policy):
    """Sharp enough that no two tokens are close; drawn without a compilation."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.5, leaf.shape), leaf.dtype), policy.abstract())


@pytest.fixture(scope="module")
def tiny():
    fields = {"vocab_size": 61, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_width": 40}
    fields |= {"max_positions": 64, "head_dim": 8, "windows": [None, 4], "qk_norm": True}
    config = decoder_config(fields)
    policy = build_policy(config, dtype="float32")
    return policy, numpy_variables(policy)


@pytest.fixture(scope="module")
def unigram():
    """A model whose next token has always the same distribution, ``p(v) ~ v + 1`` over eight tokens."""
    config = decoder_config(
        {"vocab_size": 8, "width": 8, "layers": 1, "heads": 1, "head_dim": 8, "mlp_width": 8, "max_positions": 512}
    )
    policy = build_policy(config, dtype="float32")
    variables = numpy_variables(policy)
    params = variables["params"]
    params["final_norm"]["scale"] = jnp.ones(8)
    params["embed"]["embedding"] = jnp.ones((8, 8))
    for layer, name in (("attention", "output"), ("mlp", "down")):
        params["layers"][layer][name]["kernel"] *= 0
    probabilities = np.arange(1, 9) / 36
    params["head"]["kernel"] = jnp.tile(jnp.log(jnp.asarray(probabilities, jnp.float32)) / 8, (8, 1))
    return policy, variables, probabilities


def test_greedy_equals_the_published_text(shared_data):
    policy, variables = load_policy(shared_data / "lm-stories260k" / "hf", dtype="float32")
    golden = json.loads((shared_data / "lm-stories260k" / "golden.json").read_text())
    wanted = golden["greedy_ids"][len(golden["ids"]) :]
    out = generate(policy, variables, [golden["ids"]], max_new_tokens=len(wanted), stop_tokens=[1, 2], batch_size=1)
    assert out == [wanted]


def test_greedy_equals_the_argmax_of_whole_forwards(tiny):
    policy, variables = tiny
    prompts = [*PROMPTS, *LONG]
    for prompt, completion in zip(prompts, sample(policy, variables, prompts, **SETTINGS), strict=True):
        sequence = np.zeros((1, 64), np.int32)
        sequence[0, : len(prompt) + 12] = [*prompt, *completion.tokens]
        logps = jax.nn.log_softmax(policy.logits(variables, sequence)[0, len(prompt) - 1 : len(prompt) + 11])
        assert completion.tokens == jnp.argmax(logps, axis=-1).tolist()
        taken = logps[jnp.arange(12), jnp.asarray(completion.tokens)]
        np.testing.assert_allclose(completion.logps, taken, atol=1e-5)
        assert not completion.stopped


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.3, "top_k": 20, "top_p": 0.9}])
def test_result_is_independent_of_the_batch(tiny, settings):
    policy, variables = tiny
    settings = {**SETTINGS, **settings, "seed": 5}
    wanted = generate(policy, variables, PROMPTS, **settings)
    assert generate(policy, variables, PROMPTS[:2], **settings) == wanted[:2]
    for batch_size in (1, 3):
        assert generate(policy, variables, PROMPTS, **{**settings, "batch_size": batch_size}) == wanted


def test_a_seed_for_each_prompt_travels_with_it(tiny):
    policy, variables = tiny
    settings = {**SETTINGS, "temperature": 1.0}
    seeds = [11, 12, 13, 14, 15]
    wanted = generate(policy, variables, PROMPTS, seed=seeds, **settings)
    assert generate(policy, variables, PROMPTS[::-1], seed=seeds[::-1], **settings) == wanted[::-1]


def test_seeds_and_equal_prompts_differ(tiny):
    policy, variables = tiny
    settings = {**SETTINGS, "temperature": 2.0}
    first = generate(policy, variables, [[3]] * 4, seed=1, **settings)
    assert len({tuple(tokens) for tokens in first}) == 4
    assert generate(policy, variables, [[3]] * 4, seed=1, **settings) == first
    assert generate(policy, variables, [[3]] * 4, seed=2, **settings) != first


def test_stop_tokens_end_and_stay(tiny):
    policy, variables = tiny
    free = generate(policy, variables, PROMPTS, **SETTINGS)
    stop = [free[0][4], free[1][7]]
    for whole, completion in zip(free, sample(policy, variables, PROMPTS, stop_tokens=stop, **SETTINGS), strict=True):
        ends = [index for index, token in enumerate(whole) if token in stop]
        assert completion.tokens == (whole[: ends[0] + 1] if ends else whole)
        assert completion.stopped == bool(ends)
        assert len(completion.logps) == len(completion.tokens)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"temperature": 1.0}, lambda p: p),
        ({"temperature": 0.5}, lambda p: p**2),
        ({"temperature": 1.0, "top_k": 3}, lambda p: p * (p >= np.sort(p)[-3])),
        ({"temperature": 1.0, "top_p": 0.6}, lambda p: p * (p > 4.5 / 36)),  # 8 + 7 + 6 = 21 of 36 fall short.
        ({"temperature": 2.0, "top_k": 4, "top_p": 0.5}, lambda p: np.sqrt(p) * (p > 6.5 / 36)),
    ],
)
def test_draws_follow_the_distribution(unigram, settings, weights):
    policy, variables, probabilities = unigram
    drawn = generate(policy, variables, [[0]] * 40, max_new_tokens=200, batch_size=40, seed=3, **settings)
    counts = np.bincount(np.concatenate(drawn), minlength=8)
    expected = weights(probabilities)
    expected = expected / expected.sum() * counts.sum()
    assert (counts[expected == 0] == 0).all()
    chi2 = np.sum((counts - expected)[expected > 0] ** 2 / expected[expected > 0])
    assert chi2 < 25  # 7 degrees of freedom at most: exceeded with probability 8e-4, and the seed is fixed.


def test_logps_are_the_models_own(unigram):
    policy, variables, probabilities = unigram
    completion = sample(policy, variables, [[0]], max_new_tokens=50, temperature=3.0, top_k=4, batch_size=1)[0]
    np.testing.assert_allclose(completion.logps, np.log(probabilities[completion.tokens]), atol=1e-5)


def test_the_whole_context_can_be_used(tiny):
    policy, variables = tiny
    assert [len(tokens) for tokens in generate(policy, variables, [[1] * 33, [1] * 60], max_new_tokens=4)] == [4, 4]


def test_no_prompts(tiny):
    assert generate(*tiny, [], max_new_tokens=4) == []


def test_sharded_batch_equals_one_device(tiny):
    policy, variables = tiny
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def constrain(x, axes):
        spec = jax.sharding.PartitionSpec(*("data" if axis == "batch" else None for axis in axes))
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))

    sharded = build_policy(policy.config, dtype="float32", constrain=constrain)
    wanted = generate(policy, variables, PROMPTS, **SETTINGS)
    assert generate(sharded, variables, PROMPTS, **{**SETTINGS, "batch_size": 8}) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected an integer >= 1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0, expected a number in \\(0, 1\\]"),
        ({"top_k": -1}, "top_k is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": [1]}, "seed has 1 entries"),
        ({"stop_tokens": [61]}, r"stop tokens \[61\] are outside of the vocabulary of 61"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1, 61]]}, "Is this the model's tokenizer"),
        ({"prompts": [[1] * 61]}, "prompt 0 has 61 tokens and max_new_tokens is 4: together more than the model's 64"),
    ],
)
def test_wrong_settings(tiny, change, message):
    settings = {"prompts": [[1], [2]], "max_new_tokens": 4, **change}
    with pytest.raises(ConfigError, match=message):
        generate(*tiny, settings.pop("prompts"), **settings)


def test_all_problems_at_once(tiny):
    with pytest.raises(ConfigError) as error:
        generate(*tiny, [[], [99]], max_new_tokens=4, top_p=2.0)
    assert len(error.value.problems) == 3
