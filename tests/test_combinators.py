"""Combinators against the rows they are to equal, hand-worked numbers, and what they refuse."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import objectives
from jaxalign.combinators import named, on_tokens, settings_of, weighted_sum
from jaxalign.method import Layout, Logps, Method
from jaxalign.methods import METHODS
from jaxalign.transforms import MARGIN_LOSSES, TRANSFORMS, smoothed
from jaxalign.types import LossOutput, Pair
from tests.method_inputs import B, make_inputs, trained

DPO, NLL, IPO = METHODS["dpo"], METHODS["nll"], METHODS["ipo"]


def transform(name, method):
    return TRANSFORMS[name](METHODS[method])


def mean_loss(output, mask=None):
    weights = output.weights if mask is None else jnp.where(mask, output.weights, 0.0)
    return (weights * output.losses).sum() / weights.sum()


def assert_same(method, other, options=None, other_options=None, inputs=None, rtol=1e-6):
    """Losses, metrics and gradients of two methods on the same inputs."""
    inputs = inputs or make_inputs(method) | make_inputs(other)
    options, other_options = options or {}, options if other_options is None else other_options
    output, expected = method.loss(inputs, options), other.loss(inputs, other_options or {})
    np.testing.assert_allclose(output.losses, expected.losses, rtol=rtol, atol=1e-6)
    for name in output.metrics.keys() & expected.metrics.keys():
        np.testing.assert_allclose(output.metrics[name], expected.metrics[name], rtol=rtol, atol=1e-5, err_msg=name)
    slopes = [
        jax.grad(lambda p, m=m, o=o: mean_loss(m.loss(inputs | p, o)))({"policy": inputs["policy"]})
        for m, o in ((method, options), (other, other_options or {}))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *slopes)


# What equals a row.


@pytest.mark.parametrize(
    ("name", "row", "options"),
    [
        ("ld", "ld_dpo", ({"ld_alpha": 0.25, "label_smoothing": 0.1}, {"alpha": 0.25, "label_smoothing": 0.1})),
        ("sampled", "sampo", ({"beta": 0.3}, None)),
        ("weighted", "weighted_dpo", ({"beta": 0.3}, None)),
        ("on_policy", "wpo", ({"beta": 0.3, "clamp": False}, None)),
    ],
)
def test_transforms_of_dpo_are_rows(name, row, options):
    assert_same(transform(name, "dpo"), METHODS[row], options[0], options[1] or options[0])


def test_means():
    """mean(dpo) reads means and is dpo_norm; a method that sees tokens reduces them to the same."""
    assert transform("mean", "dpo").logps is Logps.MEAN
    assert_same(transform("mean", "dpo"), METHODS["dpo_norm"], {"beta": 2.0})
    inputs = make_inputs(on_tokens(IPO))
    lengths = jax.tree.map(lambda mask: mask.sum(-1), inputs["token_mask"])
    means = {name: Pair(*(v.sum(-1) / n for v, n in zip(inputs[name], lengths, strict=True))) for name in IPO.inputs}
    np.testing.assert_allclose(on_tokens(IPO).loss(inputs).losses, IPO.loss(means).losses, rtol=1e-6)


def test_sums():
    """IPO as printed: 2 nats apart, target 5: (2 - 5)^2. And summed(mean(dpo)) is dpo."""
    pair, even = Pair(jnp.array([-10.0]), jnp.array([-13.0])), Pair(jnp.array([-11.0]), jnp.array([-12.0]))
    method = transform("summed", "ipo")
    assert method.logps is Logps.SUM
    assert method.loss({"policy": pair, "reference": even}).losses.item() == pytest.approx(9.0)
    assert_same(TRANSFORMS["summed"](transform("mean", "dpo")), DPO, {"beta": 0.3})


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_smoothed_dpo_is_its_own_smoothing(share):
    assert_same(transform("smoothed", "dpo"), DPO, {"smoothing": share}, {"label_smoothing": share})
    assert_same(transform("smoothed", "simpo"), METHODS["simpo"], {"smoothing": 0.0}, {})


def test_a_draw_is_as_long_as_the_shorter_completion():
    """R-DPO has no length margin on completions of one length: it is dpo on the draw, and asks for no lengths."""
    method = transform("sampled", "r_dpo")
    assert "lengths" not in method.inputs
    assert_same(method, METHODS["sampo"], {"alpha": 0.5}, {})


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_soft_labels_are_a_smoothing_of_each_pair(share):
    method = transform("soft", "ipo")
    inputs = make_inputs(method)
    found = method.loss(inputs | {"preference": jnp.full(B, 1.0 - share)}).losses
    np.testing.assert_allclose(found, smoothed(IPO).loss(inputs, {"smoothing": share}).losses, rtol=1e-6)


def test_smoothed_by_hand():
    """IPO with D = 1 and target 5: 0.75 * (1 - 5)^2 + 0.25 * (-1 - 5)^2 = 12 + 9."""
    inputs = {
        "policy": Pair(jnp.array([-1.0]), jnp.array([-2.0])),
        "reference": Pair(jnp.array([-1.5]), jnp.array([-1.5])),
    }
    output = smoothed(IPO).loss(inputs, {"smoothing": 0.25})
    assert output.losses.item() == pytest.approx(21.0)
    assert output.metrics["rewards/margins"].item() == pytest.approx(0.1)


def test_smoothed_preferences_turn_round():
    """A probability that the chosen completion is better becomes one that the other is."""

    def soft(policy, preference) -> LossOutput:
        """Mine."""
        losses = -preference * policy.chosen - (1 - preference) * policy.rejected
        return LossOutput(losses, jnp.ones_like(losses), {})

    method = smoothed(Method("soft", soft, Layout.PAIRED))
    inputs = make_inputs(method)
    expected = method.loss(inputs, {"smoothing": 0.0}).losses
    np.testing.assert_allclose(method.loss(inputs, {"smoothing": 0.4}).losses, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "twin"),
    [
        ("reverse_kl", {}, {"divergence": "reverse_kl"}),
        ("forward_kl", {"exponent_clip": 20.0}, {"divergence": "forward_kl", "exponent_clip": 20.0}),
        ("js", {"beta": 0.5, "label_smoothing": 0.1}, {"divergence": "js", "beta": 0.5, "label_smoothing": 0.1}),
        (
            "alpha_divergence",
            {"divergence_alpha": 0.25, "exponent_clip": 20.0},
            {"divergence": "alpha", "alpha": 0.25, "exponent_clip": 20.0},
        ),
    ],
)
def test_divergences_of_dpo_are_f_dpo(name, options, twin):
    """Metrics of the policy too: they stay those of its log-probabilities."""
    assert_same(transform(name, "dpo"), METHODS["f_dpo"], options, twin)


@pytest.mark.parametrize("row", MARGIN_LOSSES)
def test_the_reverse_kl_changes_nothing(row):
    method, plain = transform("reverse_kl", row), METHODS[row]
    inputs = make_inputs(plain) | make_inputs(method)
    if plain.logps is Logps.MEAN:  # the transform reads sums
        lengths = inputs["lengths"]
        means = {n: Pair(*(v / c for v, c in zip(inputs[n], lengths, strict=True))) for n in ("policy", "reference")}
        output, expected = method.loss(inputs), plain.loss(inputs | means)
        np.testing.assert_allclose(output.losses, expected.losses, rtol=1e-5)
        for name, values in expected.metrics.items():
            np.testing.assert_allclose(output.metrics[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    else:
        assert_same(method, plain, inputs=inputs)


def test_a_divergence_of_means_by_hand():
    """JS of rho = 2 over 2 tokens and of rho = 0: (log 2 + log sigmoid(2)) / 2 = (0.693147 - 0.126928) / 2 = 0.283110.

    IPO's loss with beta = 0.5 is (0.283110 - 1)^2 = 0.513932.
    """
    inputs = {
        "policy": Pair(jnp.array([-8.0]), jnp.array([-6.0])),
        "reference": Pair(jnp.array([-10.0]), jnp.array([-6.0])),
        "lengths": Pair(jnp.array([2.0]), jnp.array([3.0])),
    }
    output = transform("js", "ipo").loss(inputs, {"beta": 0.5})
    assert output.losses.item() == pytest.approx(0.513932, abs=1e-6)
    assert output.metrics["logps/chosen"].item() == -4.0
    assert output.metrics["logps/rejected"].item() == -2.0


def test_margin_losses_are_functions_of_the_difference():
    """Moving policy and reference together, or both log-ratios together, changes none of them, and some other row."""

    def moves(name):
        method = METHODS[name]
        inputs = make_inputs(method)
        both = {n: Pair(inputs[n].chosen + 3.0, inputs[n].rejected) for n in ("policy", "reference")}
        ratios = {"policy": jax.tree.map(lambda x: x + 3.0, inputs["policy"])}
        losses = method.loss(inputs).losses
        return any(not np.allclose(method.loss(inputs | change).losses, losses, rtol=1e-4) for change in (both, ratios))

    assert not any(map(moves, MARGIN_LOSSES))
    assert moves("h_dpo") and moves("sppo") and moves("chi_po")  # noqa: PT018


# Sums.


def test_a_sum_of_one_is_that_one():
    method = weighted_sum({"dpo": (1.0, DPO)})
    assert {name: option for name, option in method.options.items() if name != "weight"} == DPO.options
    assert_same(method, DPO, {"beta": 0.3})
    twice = method.loss(make_inputs(DPO), {"weight": 2.0}).losses
    np.testing.assert_allclose(twice, 2 * DPO.loss(make_inputs(DPO)).losses, rtol=1e-6)


def test_dpo_with_likelihood_by_hand():
    """log(1 + e^-0.3) = 0.554355 and 10 nats over 5 tokens: 0.554355 + 0.2 * 2 = 0.954355."""
    inputs = {
        "policy": Pair(jnp.array([-10.0]), jnp.array([-13.0])),
        "reference": Pair(jnp.array([-12.0]), jnp.array([-12.0])),
        "lengths": Pair(jnp.array([5.0]), jnp.array([9.0])),
    }
    method = weighted_sum({"dpo": (1.0, DPO), "nll": (0.2, NLL)})
    output = method.objective(**inputs)
    assert output.losses.item() == pytest.approx(0.954355, abs=1e-6)
    found = {
        name: value.item() for name, value in output.metrics.items() if name.startswith(("loss/", "nll", "rewards/c"))
    }
    assert found == pytest.approx(
        {"loss/dpo": 0.554355, "loss/nll": 2.0, "nll_loss": 2.0, "rewards/chosen": 0.2}, abs=1e-6
    )


@pytest.mark.parametrize("normalization", ["batch_tokens", "tokens", "sum"])
def test_cpo_is_a_sum(normalization):
    """The probability objective and the likelihood, under each of its normalisations; cpo has it as one function."""
    method = weighted_sum({"probability": (1.0, METHODS["probability"]), "nll": (0.5, NLL)})
    cpo_options = {"nll_coefficient": 0.5, "nll_normalization": normalization, "beta": 0.2}
    assert_same(method, METHODS["cpo"], {"nll_normalization": normalization, "probability_beta": 0.2}, cpo_options)


def test_terms_of_different_forms():
    """dpo reads sums and simpo means: the sum reads tokens, and gives each its own."""
    simpo = METHODS["simpo"]
    method = weighted_sum({"dpo": (1.0, DPO), "simpo": (0.5, simpo)})
    assert method.logps is Logps.TOKEN
    inputs = make_inputs(method)
    sums = {name: jax.tree.map(lambda x: x.sum(-1), inputs[name]) for name in ("policy", "reference")}
    lengths = jax.tree.map(lambda mask: mask.sum(-1), inputs["token_mask"])
    means = Pair(*(s / n for s, n in zip(sums["policy"], lengths, strict=True)))
    expected = DPO.loss(sums).losses + 0.5 * simpo.loss({"policy": means}).losses
    np.testing.assert_allclose(method.loss(inputs).losses, expected, rtol=1e-6)


def test_state_is_kept_apart():
    bco, beta_dpo = METHODS["bco_pair"], METHODS["beta_dpo"]
    method = weighted_sum({"first": (1.0, bco), "second": (1.0, beta_dpo)})
    assert method.batch_coupled
    assert set(method.state) == {"first_mean", "first_count", "second_mean", "second_std"}
    inputs = make_inputs(method)
    state = method.loss(inputs).state
    for prefix, part in (("first", bco), ("second", beta_dpo)):
        own = part.loss(inputs | {"state": {key: jnp.float32(value) for key, value in part.state.items()}}).state
        assert {key: state[f"{prefix}_{key}"] for key in own} == own


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_of_a_sum_is_the_sum_of_the_means(masked):
    """Also where a term drops pairs of the batch (beta-DPO)."""
    beta_dpo = METHODS["beta_dpo"]
    method = weighted_sum({"beta_dpo": (0.5, beta_dpo), "dpo": (2.0, DPO)})
    inputs = make_inputs(method)
    mask = jnp.asarray([True, True, False, True, True, True]) if masked else jnp.ones(B, bool)
    inputs["example_mask"] = mask
    start = {"state": {key: jnp.float32(value) for key, value in beta_dpo.state.items()}}
    inputs["state"] = {f"beta_dpo_{key}": value for key, value in start["state"].items()}
    parts = beta_dpo.loss(inputs | start), DPO.loss(inputs)
    assert (parts[0].weights < mask).any()  # one is dropped
    expected = 0.5 * mean_loss(parts[0], mask) + 2.0 * mean_loss(parts[1], mask)
    np.testing.assert_allclose(mean_loss(method.loss(inputs), mask), expected, rtol=1e-6)


def test_a_ranking_without_an_order_adds_nothing():
    """One example has equal scores: its share of the reward model's loss is 0."""
    ranked, listed = METHODS["reward_model_ranked"], METHODS["info_nca"]
    with pytest.raises(TypeError, match="the terms of a sum"):
        weighted_sum({"ranked": (1.0, ranked), "dpo": (1.0, DPO)})
    method = weighted_sum({"ranked": (1.0, ranked), "listed": (1.0, listed)})
    inputs = make_inputs(method)
    inputs["scores"] = inputs["scores"].at[2].set(1.0)
    output = method.loss(inputs)
    assert output.metrics["loss/ranked"][2] == 0
    np.testing.assert_allclose(output.losses[2], listed.loss(inputs).losses[2], rtol=1e-6)


def test_a_head_is_the_term_s():
    """A method with a head adds to one without; the option that says how many outputs it has goes by its new name."""
    spo = METHODS["spo"]
    method = weighted_sum({"dpo": (1.0, DPO), "spo": (0.5, spo)})
    expected = spo.head_outputs(spo.resolve_options({}))
    assert method.head_outputs(method.resolve_options({})) == expected
    inputs = make_inputs(method)
    total = DPO.loss(inputs).losses + 0.5 * spo.loss(inputs).losses
    np.testing.assert_allclose(method.loss(inputs).losses, total, rtol=1e-6)
    with pytest.raises(TypeError, match="have a head each"):
        weighted_sum({"a": (1.0, spo), "b": (1.0, METHODS["reward_model"])})


# Signatures and refusals.


def test_a_combination_is_a_row_like_any_other():
    method = weighted_sum({"dpo": (0.8, DPO), "nll": (1.0, NLL)})
    signature = inspect.signature(method.objective)
    assert list(signature.parameters)[:4] == ["policy", "reference", "lengths", "mean_lengths"]
    assert signature.parameters["mean_lengths"].default is None
    assert method.options["dpo_beta"].range == DPO.options["beta"].range
    assert method.options["nll_normalization"].choices == NLL.options["normalization"].choices
    assert method.options["dpo_weight"].default == 0.8
    assert "strength of the tie to the reference" in settings_of(method)["dpo_beta"].text
    assert method.check_options({"dpo_beta": -1.0, "beta": 1.0}) == [
        "method.dpo_beta: got -1.0, expected a finite number > 0.",
        "method.beta: 0.8*dpo + nll has no such option; its options are dpo_beta, dpo_label_smoothing, dpo_weight, "
        "nll_normalization, nll_weight. Did you mean 'dpo_beta'?",
    ]
    with pytest.raises(TypeError, match="missing a required argument: 'reference'"):
        method.objective(make_inputs(DPO)["policy"])


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in ("mean", "sampled", "weighted")])
def test_transforms_carry_no_more_gradient_than_their_method(name):
    """Only what trains has a gradient, and all of that is finite at extremes."""
    method = transform(name, "ipo" if name == "summed" else "dpo")
    inputs = make_inputs(method, low=-500.0, high=-1.0)
    slope = jax.grad(lambda p: mean_loss(method.loss(inputs | p)))(trained(method, inputs))
    assert set(slope) == {"policy"}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    rest = jax.grad(lambda r: mean_loss(method.loss(inputs | {"reference": r})))(inputs["reference"])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(rest))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mean", "ipo", "reads log-probabilities as means, expected sums"),
        ("mean", "cpo", "divides by lengths itself"),
        ("sampled", "nll", "divides by lengths itself"),
        ("ld", "kto", "reads unpaired data, expected paired"),
        ("ld", "tdpo1", "reads the log-probabilities of tokens as they are"),
        ("ld", "reward_model", "reads no log-probabilities"),
        ("weighted", "kto", "mismatched completions"),
        ("smoothed", "sft", "reads single data, expected paired"),
        ("on_policy", "aot", "compares the pairs of a batch"),
        ("js", "h_dpo", "not known to be a function of the difference"),
        ("js", "ld_dpo", "In an expression it comes first"),
    ],
)
def test_what_transforms_refuse(name, row, message):
    with pytest.raises(TypeError, match=message):
        transform(name, row)


def test_what_sums_refuse():
    for terms, message in (
        ({}, "needs a term"),
        ({"dpo": (1.0, DPO), "kto": (1.0, METHODS["kto"])}, "dpo reads paired data and kto unpaired data"),
        ({"dpo": (1.0, DPO), "sft": (1.0, METHODS["sft"])}, "On pairs, nll takes the place of sft"),
        ({"sft": (1.0, METHODS["sft"]), "dft": (1.0, METHODS["dft"])}, "weigh their examples by tokens"),
    ):
        with pytest.raises(TypeError, match=message):
            weighted_sum(terms)
    with pytest.raises(TypeError, match="the option smoothing is there twice"):
        smoothed(smoothed(DPO))
    with pytest.raises(TypeError, match="has no option betta; it has beta and label_smoothing"):
        named(DPO, "mine", doc="Mine.\n\nReturns:\n  Losses.", paper="", betta=0.2)


def test_a_named_method():
    doc = """Mine.

    Returns:
      Losses.
    """
    method = named(DPO, "mine", doc=doc, paper="a note", beta=0.5)
    assert (method.name, method.paper, method.summary) == ("mine", "a note", "Mine.")
    assert method.options["beta"].default == 0.5
    assert "\n  beta: strength of the tie" in (inspect.getdoc(method.objective) or "")
    assert_same(method, dataclasses.replace(DPO, objective=objectives.dpo), {}, {"beta": 0.5})
