"""Objectives on pairs against TRL's `DPOTrainer`: the batch's loss and its gradient, on the same tokens."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.trl_cases import CASES, agree, mean, paired, tokens

pytestmark = [pytest.mark.judge, pytest.mark.trl]

# Name of the test, method, its options, TRL's losses with their weights, TRL's other settings.
# beta is the same on both sides and stands once.
LOSSES = {
    "sigmoid": ("dpo", {"beta": 0.1}, {"sigmoid": 1.0}, {}),
    "hinge": ("rso", {"beta": 0.3}, {"hinge": 1.0}, {}),
    "ipo": ("ipo", {"beta": 0.1}, {"ipo": 1.0}, {}),
    "exo_pair": ("exo", {"beta": 0.1, "label_smoothing": 1e-3}, {"exo_pair": 1.0}, {"label_smoothing": 1e-3}),
    "exo_pair smooth": ("exo", {"beta": 0.5, "label_smoothing": 0.2}, {"exo_pair": 1.0}, {"label_smoothing": 0.2}),
    "nca_pair": ("nca_pair", {"beta": 0.1}, {"nca_pair": 1.0}, {}),
    "robust": ("robust_dpo", {"beta": 0.1, "label_smoothing": 0.1}, {"robust": 1.0}, {"label_smoothing": 0.1}),
    "robust 0": ("robust_dpo", {"beta": 0.3, "label_smoothing": 0.0}, {"robust": 1.0}, {}),
    # TRL's bco_pair has no reward shift since 0.29: that is the biased form of NCA. With the shift: bco_pair.
    "bco_pair": ("nca_pair", {"beta": 0.1, "noise_share": 0.0}, {"bco_pair": 1.0}, {}),
    "sppo_hard": ("sppo", {"beta": 0.1}, {"sppo_hard": 1.0}, {}),
    "aot": ("aot", {"beta": 0.1}, {"aot": 1.0}, {}),
    "aot smooth": ("aot", {"beta": 0.01, "label_smoothing": 0.2}, {"aot": 1.0}, {"label_smoothing": 0.2}),
    "aot_unpaired": ("aot_unpaired", {"beta": 0.1}, {"aot_unpaired": 1.0}, {}),
    "aot_unpaired smooth": (
        "aot_unpaired",
        {"beta": 0.01, "label_smoothing": 0.2},
        {"aot_unpaired": 1.0},
        {"label_smoothing": 0.2},
    ),
    "apo_zero": ("apo_zero", {"beta": 0.1}, {"apo_zero": 1.0}, {}),
    "apo_down": ("apo_down", {"beta": 0.1}, {"apo_down": 1.0}, {}),
    "discopop": ("discopop", {"beta": 0.05}, {"discopop": 1.0}, {}),
    "discopop wide": ("discopop", {"beta": 0.01, "tau": 0.5}, {"discopop": 1.0}, {"discopop_tau": 0.5}),
    "sft": ("nll", {}, {"sft": 1.0}, {}),
    "sigmoid_norm": ("dpo_norm", {"beta": 5.0}, {"sigmoid_norm": 1.0}, {}),
    # Several losses at once.
    "mpo": (
        "0.8*dpo + 0.2*nca_pair + nll",  # for the shift see bco_pair
        {"dpo_beta": 0.1, "nca_pair_beta": 0.1, "nca_pair_noise_share": 0.0},
        {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0},
        {},
    ),
    # The paper's likelihood term is a mean of means; TRL's is the mean over all tokens.
    "iterative rpo": (
        "iterative_rpo",
        {"dpo_beta": 0.1, "nll_normalization": "batch_tokens"},
        {"sigmoid": 1.0, "sft": 1.0},
        {},
    ),
    "regularized rpo": (
        "regularized_rpo",
        {"dpo_beta": 0.01},
        {"sigmoid": 1.0, "sft": 0.005},
        {"beta": 0.01},
    ),
    # f-divergences: alone, and under the losses of one margin.
    "forward_kl": ("f_dpo", {"beta": 0.1}, {"sigmoid": 1.0}, {"f_divergence_type": "forward_kl"}),
    "js": ("f_dpo", {"beta": 0.1, "divergence": "js"}, {"sigmoid": 1.0}, {"f_divergence_type": "js_divergence"}),
    # TRL's coefficient is 1 - alpha.
    "alpha": (
        "f_dpo",
        {"beta": 0.1, "divergence": "alpha", "alpha": 0.25},
        {"sigmoid": 1.0},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.75},
    ),
    "js robust": (
        "js(robust_dpo)",
        {"beta": 0.1, "label_smoothing": 0.1},
        {"robust": 1.0},
        {"f_divergence_type": "js_divergence", "label_smoothing": 0.1},
    ),
    "forward_kl hinge": ("forward_kl(rso)", {"beta": 0.1}, {"hinge": 1.0}, {"f_divergence_type": "forward_kl"}),
    "js ipo": ("js(ipo)", {"beta": 0.1}, {"ipo": 1.0}, {"f_divergence_type": "js_divergence"}),
    "js exo_pair": (
        "js(exo)",
        {"beta": 0.1, "label_smoothing": 0.01},
        {"exo_pair": 1.0},
        {"f_divergence_type": "js_divergence", "label_smoothing": 0.01},
    ),
    "js discopop": ("js(discopop)", {"beta": 0.1}, {"discopop": 1.0}, {"f_divergence_type": "js_divergence"}),
    "js norm": ("js(dpo_norm)", {"beta": 5.0}, {"sigmoid_norm": 1.0}, {"f_divergence_type": "js_divergence"}),
    # LD-DPO and LD with another loss.
    "ld": ("ld_dpo", {"beta": 0.1, "alpha": 0.3}, {"sigmoid": 1.0}, {"ld_alpha": 0.3}),
    "ld ipo": ("ld(ipo)", {"beta": 0.1, "ld_alpha": 0.3}, {"ipo": 1.0}, {"ld_alpha": 0.3}),
    "ld apo_zero": ("ld(apo_zero)", {"beta": 0.1, "ld_alpha": 0.0}, {"apo_zero": 1.0}, {"ld_alpha": 0.0}),
    # WPO's weights; TRL does not clamp them.
    "wpo": ("wpo", {"beta": 0.1, "clamp": False}, {"sigmoid": 1.0}, {"use_weighting": True}),
    "wpo ipo": ("on_policy(ipo)", {"beta": 0.1, "clamp": False}, {"ipo": 1.0}, {"use_weighting": True}),
    "wpo nca_pair": ("on_policy(nca_pair)", {"beta": 0.1, "clamp": False}, {"nca_pair": 1.0}, {"use_weighting": True}),
}

# TRL's exponential overflows, so the gradients of its pairs are nan. Here it is clipped; the other pairs agree.
OVERFLOWS = {("forward_kl", "extreme"), ("forward_kl hinge", "extreme")}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", LOSSES)
def test_dpo(trl, loss, case):
    name, options, loss_types, settings = LOSSES[loss]
    batch = tokens(trl, case)
    settings = {name: options[name] for name in options if name == "beta"} | settings
    expected = trl.dpo(batch, loss_types=loss_types, **settings)
    assert np.isfinite(expected[1]).all() == ((loss, case) not in OVERFLOWS)
    # Of these TRL has float32 alone: the logarithms of the label smoothing, the clip of the exponential.
    exact = "exo_pair" not in loss_types and settings.get("f_divergence_type") != "alpha_divergence"
    agree(batch.policy, lambda policy: mean(paired(name, policy, batch, **options)), expected, exact)


def test_dpo_without_smoothing(trl):
    """TRL's "sigmoid" ignores label_smoothing since 0.29; here it is conservative DPO's."""
    batch = tokens(trl, "random")
    expected = trl.dpo(batch, loss_types={"sigmoid": 1.0}, label_smoothing=0.2)
    agree(batch.policy, lambda policy: mean(paired("dpo", policy, batch, label_smoothing=0.0)), expected)


def test_wpo_clamp(trl):
    """TRL does not clamp a pair's weight at 1, as the authors' code and the default here do."""
    batch = tokens(trl, "random")
    # Tokens near a probability of 1 are likelier than a sample's, which makes a weight above 1.
    batch.policy[:] = np.where(batch.policy < -3.0, -3.0, -0.3)

    def loss(policy):
        output = paired("wpo", policy, batch, beta=0.1)
        free = paired("wpo", policy, batch, beta=0.1, clamp=False).metrics["pair_weights"]
        assert (free > 1.0).any()
        assert (free < 1.0).any()
        return (output.losses * jnp.maximum(free, 1.0)).mean()

    agree(batch.policy, loss, trl.dpo(batch, loss_types={"sigmoid": 1.0}, use_weighting=True))
