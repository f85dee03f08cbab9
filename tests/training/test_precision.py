"""bfloat16 computes, float32 adds up: reductions, weights and losses stay float32 whatever the model's precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.records import Example
from jaxalign.data.row_plans import RowShape
from jaxalign.data.rows import build_rows
from jaxalign.methods import METHODS
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy
from jaxalign.training import references
from jaxalign.training.readings import read
from jaxalign.training.scoring import score
from jaxalign.types import Rows

CONFIG = DecoderConfig(
    vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_positions=64,
    qk_norm=True, soft_cap=30.0,
)  # fmt: skip
STORY = (
    "Once upon a time there was a little girl who liked to play outside in the sun with her small red ball. One day "
    "the ball rolled into the garden of an old man, and she was afraid to ask for it."
)
DELICATE = {
    "exp",
    "log",
    "log1p",
    "logistic",
    "rsqrt",
    "reduce_sum",
    "reduce_max",
    "cumsum",
    "tanh",
    "sin",
    "cos",
    "pow",
}


def delicate_types(jaxpr, found=None) -> dict[str, set[str]]:
    """Which types the operations that lose precision work in."""
    found = {} if found is None else found
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in DELICATE:
            found.setdefault(name, set()).add(str(equation.invars[0].aval.dtype))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                delicate_types(inner, found)
    return found


def test_norms_softmax_log_probabilities_and_loss_are_float32_in_a_bfloat16_model():
    policy, dpo = build_policy(CONFIG, dtype="bfloat16"), METHODS["dpo"]
    reference = references.frozen(policy)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    rows = Rows(
        *(ints(2, 24),) * 5, *(ints(2, 16),) * 3, example_mask=jax.ShapeDtypeStruct((2, 2), jnp.bool_),
        columns={"example_id": ints(2, 2)}, completions=2,
    )  # fmt: skip

    def forward(variables, frozen, rows):
        return read(policy, variables, dpo, reference, (), frozen, rows, ("entropy", "correct", "mean_logit"))

    variables = policy.abstract()
    traced = jax.make_jaxpr(forward)(variables, {"reference": variables}, rows)
    types = delicate_types(traced.jaxpr)
    assert {"exp", "rsqrt", "reduce_sum", "reduce_max"} <= types.keys()  # the search sees them
    # The gate of the MLP is no reduction: it works in the model's precision, as its neighbours do.
    assert {name: found - {"float32", "int32", "bool"} for name, found in types.items() if name != "logistic"} == {
        name: set() for name in types if name != "logistic"
    }
    told = jax.eval_shape(forward, variables, {"reference": variables}, rows)
    assert {leaf.dtype for leaf in jax.tree.leaves(told)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}  # the master weights


def test_the_log_ratio_of_one_model_is_zero_and_its_error_between_two_is_bounded(shared_data):
    """On a real model and text: what docs/adapters.md says of bfloat16."""
    from jaxalign.data.tokenizer import load_tokenizer
    from jaxalign.models.huggingface import load_variables, read_config

    folder = shared_data / "lm-stories260k" / "hf"
    tokens = np.asarray([load_tokenizer(folder).encode(STORY)[:38]])
    ratios = {}
    for dtype in ("float32", "bfloat16"):
        policy = build_policy(read_config(folder), dtype=dtype)
        variables = load_variables(folder, policy)
        rng = np.random.default_rng(0)

        def nudged(leaf):
            leaf = np.asarray(leaf)
            return leaf + 0.02 * leaf.std() * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: B023

        def logps(variables):
            logits = np.asarray(policy.logits(variables, tokens), np.float64)[0, :-1]  # noqa: B023
            picked = np.take_along_axis(logits, tokens[0, 1:, None], 1)[:, 0]
            return picked - np.log(np.exp(logits).sum(-1))

        first = logps(variables)
        np.testing.assert_array_equal(first - logps(jax.tree.map(np.array, variables)), 0.0)
        ratios[dtype] = logps(jax.tree.map(nudged, variables)) - first
    error = ratios["bfloat16"] - ratios["float32"]
    assert np.abs(error).max() < 0.15, np.abs(error)
    assert np.abs(error).mean() < 0.03, np.abs(error)


def test_other_rows_round_the_same_weights_differently_within_bounds(shared_data):
    """Step 0 of a cached reference: each pair alone in a short row, and behind others in a long one."""
    from jaxalign.data.tokenizer import load_tokenizer
    from jaxalign.models.huggingface import load_variables, read_config

    folder = shared_data / "lm-stories260k" / "hf"
    tokens = np.asarray(load_tokenizer(folder).encode(STORY))
    starts = (0, 8, 16, 24)
    pairs = [Example(tokens[i : i + 9], (tokens[i + 9 : i + 39], tokens[i + 20 : i + 45]), {}, "") for i in starts]
    policy = build_policy(read_config(folder), dtype="bfloat16")
    variables = load_variables(folder, policy)
    sums = jax.jit(lambda rows: score(policy, variables, rows).sums)
    alone = sums(build_rows([[(i, pair)] for i, pair in enumerate(pairs)], RowShape(80, 64, 1, 2), ()))
    packed = sums(build_rows([list(enumerate(pairs))], RowShape(272, 224, 4, 2), ()))
    ratios = np.asarray(packed[0] - alone[:, 0])
    assert np.abs(ratios).max() < 1.0, ratios
    assert np.abs(ratios).max() > 0.0  # were it exact, docs/adapters.md would say too little
