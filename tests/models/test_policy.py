"""The decoder as a policy: row layout, cache, remat, dtypes, names of axes."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ModelError
from jaxalign.models.decoder_config import decoder_config
from jaxalign.models.policy import build_policy
from jaxalign.types import causal_rows

VARIANTS = {
    "plain": {},
    "biases": {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "qk_norm": {"qk_norm": True},
    "tied": {"tied_embeddings": True},
    "window": {"windows": 5},
    "mixed windows": {"windows": [None, 5, 3]},
    "rope llama3": {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_positions": 16}},
    "rope linear": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "soft cap": {"soft_cap": 2.0},
    "wide heads": {"head_dim": 16},
    "gelu": {"activation": "gelu_tanh"},
}
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())


def tokens(rows: int, length: int, seed: int = 0):
    return jax.random.randint(jax.random.key(seed), (rows, length), 0, 61)


def test_later_tokens_and_neighbours_change_nothing(make_tiny):
    policy, variables = make_tiny(windows=[None, 5, 3])
    batch = tokens(3, 14)
    whole = policy.logits(variables, batch)
    np.testing.assert_allclose(policy.logits(variables, batch[1:2, :9]), whole[1:2, :9], atol=1e-5)


@variants
def test_cached_decoding_equals_the_whole_forward(make_tiny, fields):
    policy, variables = make_tiny(**fields)
    batch = tokens(3, 14)
    whole = policy.logits(variables, batch)
    lengths = jnp.array([8, 3, 5])
    last, cache = policy.prefill(variables, batch[:, :8], lengths, 14)
    rows = jnp.arange(3)
    np.testing.assert_allclose(last, whole[rows, lengths - 1], atol=1e-5)
    for step in range(6):
        positions = lengths + step
        logits, cache = policy.decode(variables, cache, batch[rows, positions], positions)
        np.testing.assert_allclose(logits, whole[rows, positions], atol=1e-5)


@variants
def test_shared_prompt_equals_separate_forwards(make_tiny, fields):
    """One row | prompt a | chosen a | rejected a | prompt b | completion b | pad | against one forward a sequence."""
    policy, variables = make_tiny(**fields)
    rng = np.random.default_rng(0)
    examples = [(6, (5, 7)), (4, (8,))]
    length = 40
    row = {name: np.zeros((1, length), np.int32) for name in ("tokens", "positions", "own_start", "prefix_start")}
    row["prefix_end"] = np.zeros((1, length), np.int32)
    at, sequences = 0, []
    for prompt_size, completion_sizes in examples:
        start, prompt = at, rng.integers(0, 61, prompt_size)
        at += prompt_size
        row["tokens"][0, start:at], row["positions"][0, start:at] = prompt, np.arange(prompt_size)
        row["own_start"][0, start:at] = start
        for size in completion_sizes:
            completion, piece = rng.integers(0, 61, size), slice(at, at + size)
            row["tokens"][0, piece], row["positions"][0, piece] = completion, prompt_size + np.arange(size)
            row["own_start"][0, piece] = at
            row["prefix_start"][0, piece], row["prefix_end"][0, piece] = start, start + prompt_size
            sequences.append((start, prompt, piece, completion))
            at += size
    row["own_start"][0, at:] = np.arange(at, length)
    plain = causal_rows(jnp.asarray(row["tokens"]))
    rows = replace(plain, **{name: jnp.asarray(value) for name, value in row.items()})
    packed = policy.hidden(variables, rows)[0]
    assert bool(jnp.isfinite(packed).all())
    separate = np.zeros((len(sequences), 16), np.int32)
    for line, (_, prompt, _, completion) in zip(separate, sequences, strict=True):
        line[: len(prompt) + len(completion)] = [*prompt, *completion]
    forwards = policy.hidden(variables, causal_rows(jnp.asarray(separate)))
    for alone, (start, prompt, piece, completion) in zip(forwards, sequences, strict=True):
        np.testing.assert_allclose(packed[start : start + len(prompt)], alone[: len(prompt)], atol=1e-5)
        np.testing.assert_allclose(packed[piece], alone[len(prompt) : len(prompt) + len(completion)], atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(make_tiny, remat):
    batch = tokens(2, 12)

    def gradient(remat):
        policy, variables = make_tiny(build={"remat": remat})
        return jax.jit(jax.grad(lambda v: jnp.mean(policy.logits(v, batch) ** 2)))(variables)

    for ours, theirs in zip(jax.tree.leaves(gradient(remat)), jax.tree.leaves(gradient("none")), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@variants
def test_axes_name_every_parameter(make_tiny, fields):
    policy, variables = make_tiny(**fields)
    size = {
        "vocab": policy.config.vocab_size,
        "embed": policy.config.width,
        "heads": policy.config.heads,
        "kv_heads": policy.config.kv_heads,
        "head": policy.config.head_dim,
        "mlp": policy.config.mlp_width,
        "layers": policy.config.layers,
    }
    axes = jax.tree.map(lambda names: tuple(size[name] for name in names), policy.axes(), is_leaf=_is_names)
    assert axes == jax.tree.map(lambda leaf: leaf.shape, policy.abstract())
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), policy.abstract()
    )
    assert ("head" in variables["params"]) == (not policy.config.tied_embeddings)


def _is_names(leaf: object) -> bool:
    return isinstance(leaf, tuple)


def test_compute_and_parameter_types(make_tiny):
    policy, variables = make_tiny(build={"dtype": "bfloat16"})
    exact, _ = make_tiny()
    batch = tokens(2, 10)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert policy.hidden(variables, causal_rows(batch)).dtype == jnp.bfloat16
    assert policy.head(variables).dtype == jnp.bfloat16
    logits = policy.logits(variables, batch)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact.logits(variables, batch), atol=0.02)
    stored, _ = make_tiny(build={"param_dtype": "bfloat16"})
    assert {leaf.dtype for leaf in jax.tree.leaves(stored.abstract())} == {jnp.dtype("bfloat16")}


def test_hidden_times_head_gives_the_logits(make_tiny):
    for fields in ({}, {"tied_embeddings": True}, {"soft_cap": 1.5}):
        policy, variables = make_tiny(**fields)
        batch = tokens(2, 6)
        logits = policy.hidden(variables, causal_rows(batch)) @ policy.head(variables)
        if policy.soft_cap is not None:
            logits = policy.soft_cap * jnp.tanh(logits / policy.soft_cap)
        np.testing.assert_allclose(policy.logits(variables, batch), logits, atol=1e-6)


def test_constraint_is_asked_for_after_embedding_and_in_the_block():
    asked = []
    config = decoder_config({"vocab_size": 7, "width": 8, "layers": 2, "heads": 2, "mlp_width": 8, "max_positions": 8})
    policy = build_policy(config, constrain=lambda x, axes: asked.append((x.shape, axes)) or x)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), policy.abstract())
    asked.clear()
    policy.hidden(variables, causal_rows(jnp.zeros((2, 4), jnp.int32)))
    assert set(asked) == {((2, 4, 8), ("batch", "length", None))}
    assert len(asked) >= 2


def test_init_is_deterministic_and_reasonable(make_tiny):
    policy, _ = make_tiny()
    variables, again = policy.init(jax.random.key(0)), policy.init(jax.random.key(0))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), variables, again))
    other = policy.init(jax.random.key(1))
    kernel = variables["params"]["layers"]["mlp"]["up"]["kernel"]
    assert not bool((kernel == other["params"]["layers"]["mlp"]["up"]["kernel"]).any())
    assert not bool((kernel[0] == kernel[1]).any())  # Layers differ.
    assert float(kernel.std()) == pytest.approx(24**-0.5, rel=0.05)
    logps = jax.nn.log_softmax(policy.logits(variables, tokens(4, 20)))
    assert float(-logps.mean()) == pytest.approx(np.log(61), abs=0.05)


def test_policy_is_a_static_argument(make_tiny):
    policy, variables = make_tiny()
    run = jax.jit(lambda policy, variables, batch: policy.logits(variables, batch), static_argnums=0)
    np.testing.assert_allclose(run(policy, variables, tokens(1, 4)), policy.logits(variables, tokens(1, 4)), atol=1e-6)


def test_wrong_names_are_told_at_once(make_tiny):
    config = make_tiny()[0].config
    with pytest.raises(ModelError) as error:
        build_policy(config, dtype="bf16", param_dtype="float8", remat="dot")
    assert len(error.value.problems) == 3
    assert "Did you mean 'dots'?" in str(error.value)
