"""Every source of reference log-probabilities, against the plain path: one text, one forward pass, all logits.

Step 1 of a run whose batch is the whole training set logs means that have a closed form, because the policy is still
the model that training started from.
"""

from __future__ import annotations

import math

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxalign.build import check_data
from jaxalign.errors import ConfigError
from jaxalign.models.huggingface import load_policy
from tests.build.conftest import HELD_OUT, ROWS, Judge, assert_close, assert_same_run, written_pairs

BETA = 0.1
EVERYTHING = {"train__batch_size": ROWS - HELD_OUT, "train__steps": 2}


@pytest.fixture(scope="module")
def judges(world):
    return {name: Judge.of(getattr(world, name)) for name in ("model", "twin", "foreign")}


def trained_pairs(config) -> list[dict[str, str]]:
    """The pairs that are not held out."""
    pairs = written_pairs()
    return [pairs[int(source.rpartition(" ")[2]) - 1] for source in check_data(config).train.sources]


def start_logps(judge, pairs) -> tuple[np.ndarray, np.ndarray]:
    """Sums ``[n, 2]`` and token counts of plain pairs."""
    arrays = [judge.pair_logps(pair) for pair in pairs]
    return np.array([[a.sum() for a in pair] for pair in arrays]), np.array([[len(a) for a in p] for p in arrays])


def prior_logps(judge, pairs, prefix: str = "") -> np.ndarray:
    context = [judge.tokenizer.bos_token_id, *judge.encode(prefix)]
    return np.array(
        [
            [judge.token_logps(context, [*judge.encode(pair[n]), judge.tokenizer.eos_token_id]).sum() for n in NAMES]
            for pair in pairs
        ]
    )


NAMES = ("chosen", "rejected")


def check_first_dpo_row(row, policy: np.ndarray, reference: np.ndarray) -> None:
    rewards = BETA * (policy - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    # Relative to the largest reward, but no closer than float32 tells two log-probabilities apart.
    near = max(1e-5 * np.abs(rewards).max(), 1e-7 * BETA * np.abs(policy).max())
    assert row["rewards/chosen"] == pytest.approx(rewards[:, 0].mean(), abs=near)
    assert row["rewards/rejected"] == pytest.approx(rewards[:, 1].mean(), abs=near)
    assert row["rewards/margins"] == pytest.approx(margins.mean(), abs=near)
    assert_close(row["loss"], np.logaddexp(0.0, -margins).mean(), 1e-5, "loss")
    assert row["rewards/accuracies"] == pytest.approx((margins > 0).mean())


@pytest.mark.parametrize("prefix", ["", "Answer:\n"])
def test_the_prior_is_the_answer_without_its_prompt(prefix, finished, judges):
    run = finished(reference__source="prior", reference__prior_prefix=prefix, **EVERYTHING)
    pairs = trained_pairs(run.config)
    policy, _ = start_logps(judges["model"], pairs)
    check_first_dpo_row(run.steps[0], policy, prior_logps(judges["model"], pairs, prefix))
    assert run.manifest["reference"]["source"] == "prior"
    assert run.manifest["reference"]["mode"] == "cached"


def test_another_model_of_the_same_tokenizer(finished, judges, world):
    live = finished(reference__source=str(world.twin), reference__mode="live", **EVERYTHING)
    cached = finished(reference__source=str(world.twin), reference__mode="cached", **EVERYTHING)
    pairs = trained_pairs(live.config)
    policy, reference = (start_logps(judges[name], pairs)[0] for name in ("model", "twin"))
    assert np.abs(policy - reference).max() > 1  # they do differ
    check_first_dpo_row(live.steps[0], policy, reference)
    assert_same_run(live, cached)
    assert live.manifest["reference"]["hash"] == cached.manifest["reference"]["hash"]


@pytest.mark.parametrize("method", ["dpo", "ipo"])
def test_another_tokenizer_scores_the_text_in_its_own_tokens(method, finished, judges, world):
    run = finished(method__name=method, method__beta=BETA, reference__source=str(world.foreign), **EVERYTHING)
    pairs = trained_pairs(run.config)
    policy, lengths = start_logps(judges["model"], pairs)
    reference, reference_lengths = start_logps(judges["foreign"], pairs)
    assert (lengths != reference_lengths).any()
    row = run.steps[0]
    if method == "dpo":
        check_first_dpo_row(row, policy, reference)
        return
    means = policy / lengths - reference / reference_lengths
    margins = means[:, 0] - means[:, 1]
    assert_close(row["loss"], np.square(margins - 1 / (2 * BETA)).mean(), 1e-5, "loss")
    assert_close(row["rewards/chosen"], BETA * means[:, 0].mean(), 1e-5, "chosen")


def test_another_tokenizer_cannot_be_live(start_run, world):
    with pytest.raises(ConfigError, match=r"whose tokenizer is not the policy's. Use .cached"):
        start_run(reference__source=str(world.foreign), reference__mode="live")


def test_another_template_scores_the_conversation_as_that_model_reads_it(finished, judges, world):
    """The policy and the reference each wrap the same messages in their own template and tokens."""
    run = finished(
        model__path=world.chat, data__train=[str(world.conversations)], reference__source=str(world.foreign_chat),
        **EVERYTHING,
    )  # fmt: skip
    pairs = trained_pairs(run.config)
    policy = chat_logps(judges["model"], "<s><|user|>\n{}<|assistant|>\n", pairs)
    reference = chat_logps(judges["foreign"], "<s>[user]\n{}[assistant]\n", pairs)
    check_first_dpo_row(run.steps[0], policy, reference)


def chat_logps(judge, text: str, pairs) -> np.ndarray:
    """Of conversations, written out here as the template writes them."""

    def logps(pair, name) -> float:
        prompt = judge.encode(text.format(pair["prompt"].strip()))
        return judge.token_logps(prompt, judge.encode(f"{pair[name]}</s>")).sum()

    return np.array([[logps(pair, name) for name in NAMES] for pair in pairs])


def test_cut_examples_are_refused_where_the_reference_reads_other_tokens(start_run, world):
    with pytest.raises(ConfigError, match=r"examples were cut to data\.max_length"):
        start_run(reference__source=str(world.foreign), data__max_length=20)


def test_no_reference_is_the_probability_objective(finished, judges):
    run = finished(reference__source="none", **EVERYTHING)
    policy, _ = start_logps(judges["model"], trained_pairs(run.config))
    check_first_dpo_row(run.steps[0], policy, np.zeros_like(policy))
    # Nothing to compare with, so nothing is told of a divergence from it.
    assert not [name for name in run.evaluations[-1] if "/kl" in name or "reference" in name]


def test_a_hard_update_makes_the_reference_the_policy(finished):
    run = finished(reference__mode="moving", reference__update_every=3, reference__update_rate=1.0, train__steps=8)
    margins = {row["step"]: abs(row["rewards/margins"]) for row in run.steps}
    for step in (1, 4, 7):  # the first after a move
        assert margins[step] < 1e-6
        assert run.steps[step - 1]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    for step in (2, 3, 5, 6, 8):
        assert margins[step] > 1e-4


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_soft_update_is_the_recursion(start_run, world):
    rate = 0.25
    run = start_run(
        reference__mode="moving", reference__update_every=2, reference__update_rate=rate, train__steps=4,
        train__checkpoint_every=1, train__keep=9, train__batch_size=8,
    )  # fmt: skip
    reference = load_policy(world.model, dtype="float32")[1]
    for step in range(1, 5):
        state = ocp.PyTreeCheckpointer().restore(run.workdir / "checkpoints" / str(step) / "state")
        if step % 2 == 0:
            reference = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, reference, state["trainable"])
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), reference, state["reference"])
