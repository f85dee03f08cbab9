"""Training adapters: nothing but them is trained, no gradient of the base is formed, and the base is the reference."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxalign.build.data import column_names
from jaxalign.data.pipeline import OrderedBatches, Packer
from jaxalign.data.row_plans import RowProgram, RowShape
from jaxalign.errors import ConfigError
from jaxalign.methods import METHODS
from jaxalign.models.adapters import Adapter
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.policy import build_policy
from jaxalign.training import references
from jaxalign.training.mesh import make_mesh
from jaxalign.training.state import create_state, state_shardings
from jaxalign.training.step import make_train_step
from jaxalign.training.trainable import adapters, full
from tests import example_sets

# No two sizes are alike, so that an array's shape says what it is.
CONFIG = DecoderConfig(
    vocab_size=64, width=40, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=56, max_positions=256,
    tied_embeddings=True,
)  # fmt: skip
DPO = METHODS["dpo"]


@functools.cache
def rows(count: int = 4):
    examples = example_sets.examples_for(DPO, vocabulary=CONFIG.vocab_size, count=8, longest=6)
    batches = OrderedBatches(examples, batch_size=8)
    shape = RowShape(tokens=48, scored=32, examples=4, completions=2)
    return Packer([RowProgram(count, shape)], 1, column_names=column_names(DPO, ()))(batches(0)).rows


SMALL = Adapter(rank=3)


def a_policy(adapter: Adapter | None = SMALL, plan=None):
    further = {} if plan is None else {"constrain": plan.constrain}
    return build_policy(CONFIG, dtype="float32", adapter=adapter, **further)


def drawn(policy):
    """Adapters at their start (B = 0) over a base that tells tokens apart; drawn with numpy, which compiles nothing."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        value = rng.normal(0.0, 0.3, leaf.shape)
        return jnp.asarray(0.0 * value if path[-1].key == "b" else value, leaf.dtype)

    return jax.tree.map_with_path(draw, policy.abstract())


def a_step(policy, reference, trainable, microbatches: int = 1):
    step = make_train_step(
        policy, DPO, reference, trainable, optax.adam(1e-2), options=DPO.resolve_options({}), microbatches=microbatches
    )

    def begin(variables):
        state, untrained = create_state(variables, trainable, optax.adam(1e-2), reference, 0)
        return state, {"policy": untrained, "reference": {}}

    return begin, step


def size_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def products(jaxpr) -> set[tuple[int, ...]]:
    """Sorted shapes of the results of all matrix products in a program."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.add(tuple(sorted(equation.outvars[0].aval.shape)))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= products(inner)
    return found


def kernel_shapes(policy) -> set[tuple[int, ...]]:
    flat = jax.tree.leaves_with_path(policy.abstract()["params"]["layers"])
    return {tuple(sorted(leaf.shape[1:])) for path, leaf in flat if path[-1].key == "kernel"}


def test_split_and_join_are_inverses_and_name_what_is_missing():
    policy = build_policy(CONFIG, head_outputs=1, language_head=False, adapter=Adapter(rank=3))
    variables = policy.abstract()
    for head, names in ((False, {"lora"}), (True, {"lora", "head"})):
        trained, frozen = adapters(head=head).split(variables)
        assert trained.keys() == names
        assert trained.keys() | frozen.keys() == variables.keys()
        assert adapters(head=head).join(trained, frozen) == variables
    with pytest.raises(ConfigError, match="no adapters"):
        adapters().split({"params": {}})


def test_no_gradient_of_a_whole_matrix_is_formed():
    found, flops = {}, {}
    for name, policy, reference, trainable in (
        ("full", a_policy(None), references.none(), full()),
        ("lora", a_policy(), references.none(), adapters()),
    ):
        begin, step = a_step(policy, reference, trainable)
        arguments = (*jax.eval_shape(begin, policy.abstract()), jax.tree.map(jnp.asarray, rows()))
        traced = jax.jit(step).trace(*arguments)
        found[name] = products(traced.jaxpr.jaxpr) & kernel_shapes(policy)
        flops[name] = traced.lower().cost_analysis()["flops"]
    assert found["full"] == kernel_shapes(a_policy(None))  # the search sees them where they are
    assert found["lora"] == set()
    assert flops["lora"] < 0.85 * flops["full"]


def test_the_base_is_the_reference_and_nothing_else_is_trained():
    policy = a_policy()
    begin, step = a_step(policy, references.shared(policy), adapters())
    variables = drawn(policy)
    state, frozen = begin(variables)
    batch = jax.tree.map(jnp.asarray, rows())
    program = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    # The base is an argument once, and there is no other copy of it.
    arguments = program.memory_analysis().argument_size_in_bytes
    once = size_of(state) + size_of(frozen["policy"]) + size_of(batch)
    assert arguments <= once + 1024
    assert size_of(frozen["reference"]) == 0
    assert size_of(state) < 0.8 * size_of(variables["params"])
    before = jax.tree.map(np.array, frozen)
    state, output = program(state, frozen, batch)
    total, weight = output.metrics["loss"]
    assert np.float32(total) / np.float32(weight) == np.float32(math.log(2))
    np.testing.assert_array_equal(output.policy_sums, output.reference_sums)
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    assert state.trainable.keys() == {"lora"}
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.trainable))
    state, output = program(state, frozen, batch)
    assert output.metrics["loss"][0] / output.metrics["loss"][1] < math.log(2)
    assert not np.array_equal(output.policy_sums, output.reference_sums)


def test_micro_batches_and_a_moving_reference_carry_adapters_only():
    policy = a_policy()
    reference = references.moving(policy, rate=0.5, every=1, trainable=adapters())
    begin, step = a_step(policy, reference, adapters(), microbatches=2)
    state, frozen = jax.eval_shape(begin, policy.abstract())
    assert state.reference.keys() == {"lora"}
    after, _ = jax.eval_shape(step, state, frozen, jax.tree.map(jnp.asarray, rows()))
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)
    variables = drawn(policy)
    kept = reference.init(variables)
    moved = {"lora": jax.tree.map(lambda leaf: leaf + 0.1, variables["lora"])}
    kept = reference.update(kept, variables | moved, 1)
    expected = jax.tree.map(lambda leaf: leaf + 0.05, variables["lora"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept["lora"], expected)


def test_factors_are_laid_on_a_mesh_as_the_weights_that_they_adapt():
    plan = make_mesh(data=2, fsdp=2, tensor=2)
    policy = a_policy(plan=plan)
    places = plan.tree_shardings(policy.axes(), policy.abstract())
    begin, _ = a_step(policy, references.shared(policy), adapters())
    shapes, _ = jax.eval_shape(begin, policy.abstract())
    shardings = state_shardings(shapes, places, plan.replicated)
    for tree in (shardings.trainable, shardings.opt_state[0].mu):
        query = tree["lora"]["layers"]["attention"]["query"]
        assert query["a"].spec == PartitionSpec(None, "fsdp", None)
        assert query["b"].spec == PartitionSpec(None, None, "tensor", None)
