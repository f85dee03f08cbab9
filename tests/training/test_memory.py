"""The train step never holds all logits of a long row: compiled for a vocabulary of 151,936, and measured, not run."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxalign.methods import METHODS
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy
from jaxalign.training import references
from jaxalign.training.state import create_state
from jaxalign.training.step import make_train_step
from jaxalign.training.trainable import full
from jaxalign.types import Rows

VOCABULARY, LENGTH, SCORED = 151_936, 4_096, 2_048  # Qwen2.5's vocabulary
FULL_LOGITS = LENGTH * VOCABULARY * 4
ARRAY = re.compile(r"\b(?:f32|bf16|f16|s32|pred)\[([\d,]+)\]")


def abstract_rows() -> Rows:
    """One row with one pair."""

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    tokens, scored = ints(1, LENGTH), ints(1, SCORED)
    return Rows(
        tokens, tokens, tokens, tokens, tokens, scored, scored, scored,
        example_mask=jax.ShapeDtypeStruct((1, 1), jnp.bool_), columns={"example_id": ints(1, 1)}, completions=2,
    )  # fmt: skip


def compiled_step(width: int, dtype: str, tied: bool):
    config = DecoderConfig(
        vocab_size=VOCABULARY, width=width, layers=1, heads=2, kv_heads=1, head_dim=width // 2, mlp_width=2 * width,
        max_positions=LENGTH, tied_embeddings=tied,
    )  # fmt: skip
    policy, method, optimizer = build_policy(config, dtype=dtype), METHODS["dpo"], optax.sgd(0.1)
    reference = references.frozen(policy)
    step = make_train_step(policy, method, reference, full(), optimizer, options=method.resolve_options({}))
    variables = policy.abstract()
    state, untrained = jax.eval_shape(lambda v: create_state(v, full(), optimizer, reference, 0), variables)
    frozen = {"policy": untrained, "reference": variables}
    return jax.jit(step, donate_argnums=0).lower(state, frozen, abstract_rows()).compile()


@pytest.mark.parametrize(("width", "dtype", "tied"), [(64, "float32", False), (64, "bfloat16", True)])
def test_the_step_holds_less_than_the_logits_of_a_row(width, dtype, tied):
    """Parameters and gradients are arguments and results; the rest, with a live reference, is counted here."""
    program = compiled_step(width, dtype, tied)
    temporary = program.memory_analysis().temp_size_in_bytes
    assert temporary < FULL_LOGITS, f"{temporary / 2**20:.0f} MiB of temporaries, {FULL_LOGITS / 2**20:.0f} MiB allowed"
    sizes = {shape: _size(shape) for shape in set(ARRAY.findall(program.as_text()))}
    assert f"{VOCABULARY},{width}" in sizes or f"{width},{VOCABULARY}" in sizes  # the search sees arrays
    # No array is as large as the logits of the row, nor as those of what is scored.
    largest = max(sizes, key=sizes.__getitem__)
    assert sizes[largest] < SCORED * VOCABULARY, f"an array [{largest}]"


def _size(shape: str) -> int:
    total = 1
    for dimension in shape.split(","):
        total *= int(dimension)
    return total
