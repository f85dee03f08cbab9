"""A battery over every row of METHODS.

The battery builds inputs from the names that a method asks for, so that a new row is tested by being there.
"""

import doctest
import inspect
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.method_text import describe, table
from jaxalign.methods import INPUTS, METHODS, Layout, Method
from jaxalign.types import LossOutput, Weighted
from tests.method_inputs import EXISTS, B, K, fill, make_inputs, take, trained

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def mean_loss(method: Method, inputs: dict, mask=None):
    """The step's reduction: masked and weighted sums, one division."""
    output = method.loss(inputs)
    weights = output.weights if mask is None else jnp.where(mask, output.weights, 0.0)
    return (weights * output.losses).sum() / weights.sum()


def flat(output: LossOutput) -> dict:
    return {"losses": output.losses, "weights": output.weights} | dict(output.metrics)


@each_method
def test_shapes_and_precision(method):
    """One float32 value an example, also from bfloat16 inputs."""
    inputs = make_inputs(method)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, inputs)
    for given in (inputs, half):
        for name, value in jax.tree.leaves_with_path(flat(method.loss(given))):
            assert value.shape == (B,), name
            assert value.dtype == jnp.float32, name


@each_method
def test_bfloat16_inputs_are_computed_in_float32(method):
    """The result is that of the rounded inputs in float32, bit by bit: nothing inside is rounded again."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, make_inputs(method))
    lifted = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, half)
    jax.tree.map(np.testing.assert_array_equal, flat(method.loss(half)), flat(method.loss(lifted)))


@each_method
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finite_at_a_thousand_nats(method, dtype):
    """Values, metrics and gradients, with every sign of the log-ratio."""
    for policy, reference in ((-1000.0, 0.0), (0.0, -1000.0), (0.0, 0.0), (-1000.0, -1000.0)):
        inputs = fill(method, make_inputs(method), policy, reference, dtype)
        for name, value in jax.tree.leaves_with_path(flat(method.loss(inputs))):
            assert jnp.isfinite(value).all(), (name, policy, reference)
        gradient = jax.grad(lambda p, rest=inputs: mean_loss(method, rest | p))(trained(method, inputs))
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@each_method
def test_only_the_policy_gets_a_gradient(method):
    inputs = make_inputs(method)
    floats = {
        name: value
        for name, value in inputs.items()
        if all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(value))
    }
    gradients = jax.grad(lambda given: mean_loss(method, inputs | given))(floats)
    for name, gradient in gradients.items():
        size = sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(gradient))
        assert (size > 0) == INPUTS[name].trains, name


@each_method
def test_weights_metrics_and_state_carry_no_gradient(method):
    inputs = make_inputs(method)

    def total(given):
        output = method.loss(inputs | given)
        rest = jax.tree.leaves((dict(output.metrics), output.state))
        return output.weights.sum() + sum(leaf.sum() for leaf in rest)

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.grad(total)(trained(method, inputs))))


@each_method
def test_state_keeps_its_structure(method):
    """Scalars of the same names, so that the next step can take them."""
    state = method.loss(make_inputs(method)).state
    assert (state is None) == (not method.state)
    if state is not None:
        assert state.keys() == method.state.keys()
        assert all(jnp.shape(value) == () for value in state.values())


@each_method
def test_permuted_examples_give_permuted_losses(method):
    inputs = make_inputs(method)
    order = jnp.asarray([4, 2, 0, 5, 1, 3])
    straight = jax.tree.map(lambda x: x[order], flat(method.loss(inputs)))
    permuted = flat(method.loss(take(method, inputs, order)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), straight, permuted)


@each_method
def test_masked_examples_count_nothing(method):
    """The loss and its gradient are those of the batch without them, whatever they hold."""
    inputs = make_inputs(method)
    mask = jnp.asarray([True, True, False, True, False, True])
    kept = jnp.flatnonzero(mask)

    def poison(name, value):
        known = INPUTS[name]
        if known.per == "batch" or known.column or name in ("lengths", "token_mask", "keys"):
            return value
        return jax.tree.map(lambda x: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, -777.0), value)

    poisoned = {name: poison(name, value) for name, value in inputs.items()}
    if "example_mask" in inputs:
        poisoned["example_mask"] = mask
    without = take(method, inputs, kept)
    loss, gradient = jax.value_and_grad(lambda p: mean_loss(method, poisoned | p, mask))(trained(method, poisoned))
    expected, expected_gradient = jax.value_and_grad(lambda p: mean_loss(method, without | p))(trained(method, without))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for actual, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(actual[kept], right, rtol=1e-5, atol=1e-9)
        assert (actual[~mask] == 0).all()


@each_method
def test_batch_coupled_says_whether_examples_see_each_other(method):
    """An example alone has the same loss as in its batch, unless the method is batch coupled."""
    inputs = make_inputs(method)
    together = method.loss(inputs).losses
    alone = jnp.concatenate([method.loss(take(method, inputs, jnp.asarray([i]))).losses for i in range(B)])
    assert np.allclose(together, alone, rtol=1e-6) == (not method.batch_coupled)


@each_method
def test_jit_equals_eager(method):
    inputs = make_inputs(method)
    jitted, eager = flat(jax.jit(method.loss)(inputs)), flat(method.loss(inputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), jitted, eager)


@each_method
def test_reference_is_needed_exactly_if_it_changes_the_loss(method):
    inputs = make_inputs(method)
    moved = dict(inputs)
    for name in method.inputs:
        if INPUTS[name].reference:
            moved[name] = jax.tree.map(lambda x: 1.5 * x + 0.1 * (x != 0), inputs[name])
    assert method.needs_reference == (not np.allclose(method.loss(inputs).losses, method.loss(moved).losses))


@each_method
def test_metrics_have_their_names(method):
    metrics = method.loss(make_inputs(method)).metrics
    rewards = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"}
    expected = {
        Layout.SINGLE: set(),
        Layout.PAIRED: rewards,
        Layout.UNPAIRED: {"rewards/chosen", "rewards/rejected"},
        Layout.RANKED: rewards,
    }[method.layout]
    if "policy" in method.inputs:
        expected |= {
            Layout.SINGLE: {"nll_loss", "logps/chosen"},
            Layout.PAIRED: {"logps/chosen", "logps/rejected", "policy/accuracies"},
            Layout.UNPAIRED: {"logps/chosen", "logps/rejected"},
            Layout.RANKED: {"logps/chosen", "logps/rejected"},
        }[method.layout]
    if "degree_logits" not in method.inputs:
        assert expected <= set(metrics)


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.layout is Layout.UNPAIRED], ids=lambda m: m.name)
def test_unpaired_metrics_count_their_own_kind(method):
    inputs = make_inputs(method)
    for name, value in method.loss(inputs).metrics.items():
        if name.endswith(("/chosen", "/rejected")):
            assert isinstance(value, Weighted)
            np.testing.assert_array_equal(value.weights == 1, inputs["desirable"] == name.endswith("chosen"))


each_ranked = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.layout is Layout.RANKED], ids=lambda m: m.name
)


def per_completion(inputs: dict, change) -> dict:
    """The inputs with `change` made to each that there is one of for every completion."""
    return {
        name: change(name, value) if INPUTS[name].per in ("completion", "token") else value
        for name, value in inputs.items()
    }


@each_ranked
def test_the_order_of_completions_does_not_matter(method):
    inputs = make_inputs(method)
    order = np.stack([np.random.default_rng(i).permutation(K) for i in range(B)])
    rows = np.arange(B)[:, None]
    shuffled = per_completion(inputs, lambda _, value: value[rows, order])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        flat(method.loss(shuffled)),
        flat(method.loss(inputs)),
    )


@each_ranked
def test_absent_completions_count_nothing(method):
    """Whatever stands where a completion has no length, and however many of them there are."""
    inputs = make_inputs(method)
    poisoned = per_completion(
        inputs, lambda name, value: jnp.where(EXISTS, value, 0.0 if name == "lengths" else -777.0)
    )
    longer = per_completion(inputs, lambda _, value: jnp.concatenate([value, jnp.zeros_like(value)], 1))
    short = jnp.asarray([5])
    shorter = per_completion(take(method, inputs, short), lambda _, value: value[:, EXISTS[5]])
    rest = take(method, inputs, short)
    for given, expected in ((poisoned, inputs), (longer, inputs), (shorter, rest)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
            flat(method.loss(given)),
            flat(method.loss(expected)),
        )
    gradient = jax.grad(lambda p: mean_loss(method, poisoned | p))(trained(method, poisoned))
    for leaf in jax.tree.leaves(gradient):
        assert (leaf[~EXISTS] == 0).all()


OTHER_DIRECTIONS: typing.Final = {
    "nll": "it does not look at the rejected completion",
    "discopop": "its loss rises with the margin between h = -0.119 and 0.072, by design of the paper",
    "apo_down": "it pushes both completions down; where it starts, the chosen one's two terms just cancel",
    "sppo_soft": "a chosen completion that wins less than half of its comparisons is pushed down",
    "sppo_ranked": "likewise: each completion has a target of its own",
    "slic_hf": "a pair whose margin is reached leaves the rejected completion alone",
    "beta_dpo": "a pair that the draw drops has no gradient",
}
"""Method -> why it does not push up every wanted completion and down every unwanted one where it starts."""


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS.values() if "policy" in m.inputs and m.name not in OTHER_DIRECTIONS],
    ids=lambda m: m.name,
)
def test_more_evidence_for_the_chosen_lowers_the_loss(method):
    """At the reference, every method pushes wanted completions up, and unwanted ones down."""
    inputs = make_inputs(method)
    for name, twin in (("reference", "policy"), ("mismatched_reference", "mismatched_policy")):
        if name in inputs:
            inputs[name] = inputs[twin]
    gradient = jax.grad(lambda p: mean_loss(method, inputs | {"policy": p}))(inputs["policy"])
    gradient = jax.tree.map(lambda x: x.reshape(B, -1).sum(-1) if method.layout is not Layout.RANKED else x, gradient)
    if method.layout is Layout.PAIRED:
        assert (gradient.chosen < 0).all()
        assert (gradient.rejected > 0).all()
    elif method.layout is Layout.RANKED:
        exists = inputs["lengths"] > 0
        best = jnp.where(exists, inputs["scores"], -jnp.inf).argmax(1)
        worst = jnp.where(exists, inputs["scores"], jnp.inf).argmin(1)
        assert (jnp.take_along_axis(gradient, best[:, None], 1) < 0).all()
        assert (jnp.take_along_axis(gradient, worst[:, None], 1) >= 0).all()
    else:
        wanted = inputs.get("desirable", jnp.ones(B, bool))
        np.testing.assert_array_equal(jnp.sign(gradient), jnp.where(wanted, -1.0, 1.0))


@each_method
def test_docstring_examples_and_sections(method):
    function = inspect.unwrap(method.objective)
    (example,) = doctest.DocTestFinder().find(function, globs=dict(vars(sys.modules[function.__module__])))
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
    for name in (*method.inputs, *method.options):
        assert f"\n  {name}: " in (inspect.getdoc(function) or ""), f"{name} is not documented"
    assert method.summary.endswith(".")


@each_method
def test_description(method):
    text = describe(method)
    for word in (method.name, method.paper, *method.inputs, *method.options, "loss "):
        assert word in text
    assert len([line for line in table().splitlines() if line.split()[:1] == [method.name]]) == 1
