"""Optimizers and schedules against loops in float64, and against torch and transformers where these are installed."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import ConfigError
from jaxalign.training import optimizer as module
from jaxalign.training.optimizer import OPTIMIZERS, SCHEDULES, decays, make_optimizer, make_schedule

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def test_docstring_examples():
    assert doctest.testmod(module).failed == 0


# Schedules.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", {0: 0.0, 2: 0.5, 4: 1.0, 12: 1.0, 20: 1.0}),
        ("linear", {0: 0.0, 2: 0.5, 4: 1.0, 12: 0.5, 20: 0.0, 25: 0.0}),
        ("cosine", {0: 0.0, 2: 0.5, 4: 1.0, 8: 0.5 + 0.5**1.5, 12: 0.5, 20: 0.0}),
        ("inverse_sqrt", {0: 0.0, 2: 0.5, 4: 1.0, 16: 0.5}),
    ],
)
def test_schedules_by_hand(name, expected):
    """Twenty steps, four of them warm-up, peak 1. cos(pi / 4) = sqrt(1/2) and 0.5 * (1 + sqrt(1/2)) = 0.5 + 0.5^1.5."""
    schedule = make_schedule(name, 1.0, 20, 4)
    actual = {step: float(schedule(step)) for step in expected}
    assert actual == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warmup_the_first_step_has_the_peak(name):
    assert float(make_schedule(name, 3e-4, 7)(0)) == pytest.approx(3e-4)


@pytest.mark.judge
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_equal_those_of_transformers(name, warmup):
    import torch
    from transformers import get_scheduler

    weights = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weights], lr=2e-3)
    scheduler = get_scheduler(
        "constant_with_warmup" if name == "constant" else name, theirs, num_warmup_steps=warmup, num_training_steps=11
    )
    rates = []
    for _ in range(11):
        rates.append(theirs.param_groups[0]["lr"])
        theirs.step()
        scheduler.step()
    ours = [float(make_schedule(name, 2e-3, 11, warmup)(step)) for step in range(11)]
    np.testing.assert_allclose(ours, rates, rtol=1e-6, atol=1e-10)


def test_warmup_ratio_rounds_up_and_steps_are_taken_as_they_are():
    _, by_ratio = make_optimizer("sgd", 1.0, "linear", 15, 0.1)  # 1.5 steps -> 2
    _, by_steps = make_optimizer("sgd", 1.0, "linear", 15, warmup_steps=2)
    assert [float(by_ratio(step)) for step in range(16)] == [float(by_steps(step)) for step in range(16)]


# Optimizers.

SHAPES = {"mlp": {"kernel": (5, 3), "bias": (3,)}, "final_norm": {"scale": (5,)}}


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def train(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def expected_weights(name, params, gradients, *, rate, decay, clip, b1, b2, eps):
    """The same in float64, weight by weight; `rate` by step."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    weights = [leaf.astype(np.float64) for leaf in jax.tree.leaves(params)]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step, tree in enumerate(gradients):
        gradient = [leaf.astype(np.float64) for leaf in jax.tree.leaves(tree)]
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        for i, g in enumerate(gradient):
            g = g * min(1.0, clip / norm)
            if name in ("adamw", "adam"):
                first[i] = b1 * first[i] + (1 - b1) * g
                second[i] = b2 * second[i] + (1 - b2) * g**2
                mean, square = first[i] / (1 - b1 ** (step + 1)), second[i] / (1 - b2 ** (step + 1))
                direction = mean / (np.sqrt(square) + eps)
            elif name == "lion":
                direction = np.sign(b1 * first[i] + (1 - b1) * g)
                first[i] = b2 * first[i] + (1 - b2) * g
            elif name == "rmsprop":
                second[i] = b2 * second[i] + (1 - b2) * g**2
                first[i] = b1 * first[i] + g / (np.sqrt(second[i]) + eps)
                direction = first[i]
            else:
                first[i] = b1 * first[i] + g
                direction = first[i]
            if "kernel" in names[i]:
                direction = direction + decay * weights[i]
            weights[i] = weights[i] - rate(step) * direction
    return weights


@pytest.mark.parametrize(
    ("name", "b1", "b2"),
    [
        ("adamw", 0.9, 0.999),
        ("adamw", 0.8, 0.95),
        ("lion", 0.9, 0.99),
        ("rmsprop", 0.0, 0.99),
        ("rmsprop", 0.9, 0.99),
        ("sgd", 0.0, None),
        ("sgd", 0.9, None),
    ],
)
def test_against_a_loop_in_float64(name, b1, b2):
    """Six steps with warm-up, linear decay, clipping that bites in some steps, and decay of the kernel only."""
    params = random_tree(0)
    gradients = [jax.tree.map(lambda g, scale=s: g * scale, random_tree(s)) for s in range(1, 7)]
    optimizer, _ = make_optimizer(
        name, 0.05, "linear", 6, warmup_steps=2, weight_decay=0.1, clip_norm=9.0, b1=b1, b2=b2, eps=1e-6
    )
    actual = train(optimizer, params, gradients)
    expected = expected_weights(
        name, params, gradients, decay=0.1, clip=9.0, b1=b1, b2=b2, eps=1e-6,
        rate=lambda step: 0.05 * (step / 2 if step < 2 else (6 - step) / 4),
    )  # fmt: skip
    for leaf, right in zip(jax.tree.leaves(actual), expected, strict=True):
        np.testing.assert_allclose(leaf, right, rtol=2e-5, atol=2e-6)


@pytest.mark.judge
@pytest.mark.parametrize("name", ["adamw", "rmsprop", "sgd"])
def test_against_torch(name):
    import torch

    params, gradients = random_tree(0), [random_tree(seed) for seed in range(1, 6)]
    theirs = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in jax.tree.leaves(params)]
    kinds = {
        "adamw": lambda: torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.0),
        "rmsprop": lambda: torch.optim.RMSprop(theirs, lr=0.01),
        "sgd": lambda: torch.optim.SGD(theirs, lr=0.01),
    }
    judge = kinds[name]()
    for gradient in gradients:
        for weight, leaf in zip(theirs, jax.tree.leaves(gradient), strict=True):
            weight.grad = torch.tensor(leaf)
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        judge.step()
    ours = train(make_optimizer(name, 0.01, "constant", 5, clip_norm=1.0)[0], params, gradients)
    for leaf, weight in zip(jax.tree.leaves(ours), theirs, strict=True):
        np.testing.assert_allclose(leaf, weight.detach().numpy(), rtol=1e-5, atol=1e-6)


@each_optimizer
def test_every_optimizer_descends_under_one_compilation(name):
    target = random_tree(3)
    optimizer, _ = make_optimizer(name, 0.05, "cosine", 200, 0.05, clip_norm=1.0)
    compilations = 0

    def distance(params):
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True))

    @jax.jit
    def step(params, state):
        nonlocal compilations
        compilations += 1
        updates, state = optimizer.update(jax.grad(distance)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.zeros_like, target)
    state, start = optimizer.init(params), distance(params)
    for _ in range(200):
        params, state = step(params, state)
    assert distance(params) < 0.05 * start
    assert compilations == 1


@each_optimizer
def test_moments_are_float32_for_bfloat16_weights(name):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_tree(0))
    optimizer, _ = make_optimizer(name, 0.01, "constant", 5)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kinds <= {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(optax.apply_updates(params, updates))} == {jnp.dtype("bfloat16")}


@each_optimizer
def test_a_step_of_learning_rate_0_changes_nothing(name):
    """The first step of a warm-up."""
    params = random_tree(0)
    decay = 0.0 if name == "adam" else 0.1
    optimizer, _ = make_optimizer(name, 0.01, "linear", 10, 0.5, weight_decay=decay)
    jax.tree.map(np.testing.assert_array_equal, train(optimizer, params, [random_tree(1)]), params)


def test_clipping_bounds_the_global_norm():
    params, gradient = random_tree(0), jax.tree.map(lambda x: 100 * x, random_tree(1))
    clipped = train(make_optimizer("sgd", 1.0, "constant", 1, clip_norm=0.5)[0], params, [gradient])
    moved = jax.tree.map(lambda a, b: a - b, params, clipped)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.5, rel=1e-5)


def test_an_optimizer_without_second_moment_takes_no_b2():
    """The configuration has one field for all; sgd and adafactor leave it alone."""
    for name in ("sgd", "adafactor"):
        params, gradients = random_tree(0), [random_tree(1)]
        with_b2 = train(make_optimizer(name, 0.1, "constant", 2, b2=0.5)[0], params, gradients)
        jax.tree.map(
            np.testing.assert_array_equal,
            with_b2,
            train(make_optimizer(name, 0.1, "constant", 2)[0], params, gradients),
        )


# Weight decay.


def test_norms_and_biases_do_not_decay():
    """Also where blocks are stacked over layers, so that a norm's scale is a matrix."""
    tree = {
        "embed": {"embedding": jnp.zeros((8, 4))},
        "blocks": {
            "attention_norm": {"scale": jnp.zeros((2, 4))},
            "attention": {"query": {"kernel": jnp.zeros((2, 4, 2, 2)), "bias": jnp.zeros((2, 2, 2))}},
            "mlp": {"gate": {"kernel": jnp.zeros((2, 4, 6))}},
        },
        "final_norm": {"scale": jnp.zeros(4)},
        "head": {"kernel": jnp.zeros((4, 8))},
    }
    decaying = {jax.tree_util.keystr(path) for path, decay in jax.tree.leaves_with_path(decays(tree)) if decay}
    assert decaying == {
        "['embed']['embedding']",
        "['blocks']['attention']['query']['kernel']",
        "['blocks']['mlp']['gate']['kernel']",
        "['head']['kernel']",
    }


def test_every_weight_of_a_decoder_is_sorted(policy):
    mask = decays(policy.abstract())
    for path, decay in jax.tree.leaves_with_path(mask):
        assert decay == (path[-1].key in ("kernel", "embedding")), jax.tree_util.keystr(path)


# Arguments.


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        make_optimizer(
            "adamww", float("nan"), "cosin", 0, 1.0, warmup_steps=-1, weight_decay=-1.0, clip_norm=0.0, b1=1.0, b2=-0.1,
            eps=0.0,
        )  # fmt: skip
    assert list(error.value.problems) == [
        "optimizer.name: got 'adamww', expected one of adamw, adam, lion, adafactor, rmsprop, sgd. "
        "Did you mean 'adamw'?",
        "optimizer.schedule: got 'cosin', expected one of constant, linear, cosine, inverse_sqrt. "
        "Did you mean 'cosine'?",
        "optimizer.learning_rate: got nan, expected a finite number > 0.",
        "optimizer.total_steps: got 0, expected an integer >= 1.",
        "optimizer.warmup_ratio: got 1.0, expected a number >= 0 and < 1.",
        "optimizer.weight_decay: got -1.0, expected a finite number >= 0.",
        "optimizer.eps: got 0.0, expected a finite number > 0.",
        "optimizer.warmup_steps: got -1, expected an integer >= 0.",
        "optimizer.warmup_steps: set either warmup_steps or warmup_ratio, not both.",
        "optimizer.clip_norm: got 0.0, expected a finite number > 0, or none.",
        "optimizer.b1: got 1.0, expected a number >= 0 and < 1.",
        "optimizer.b2: got -0.1, expected a number >= 0 and < 1.",
    ]


def test_adam_has_no_weight_decay():
    with pytest.raises(ConfigError, match="adam has none; use adamw"):
        make_optimizer("adam", 1e-3, weight_decay=0.1)
