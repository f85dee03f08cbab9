"""Credit maps of real runs: against the plain path, one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign import build
from jaxalign.data.tokenizer import token_texts
from jaxalign.errors import ConfigError
from tests.build.conftest import Judge, make_tokenizer, written_pairs

BETA = 0.3


@pytest.fixture(scope="module")
def run(finished):
    return finished(method__beta=BETA)


@pytest.mark.parametrize("mode", ["live", "cached"])
def test_equals_the_plain_path(world, run, configure, mode):
    config = configure(method__beta=BETA, reference__mode=mode)
    found = build.token_credit(config, run.workdir, count=3)
    assert (found.method, found.beta, found.reference) == ("dpo", BETA, str(world.model))
    assert len(found.examples) == 3
    pairs = {pair["prompt"]: pair for pair in written_pairs()}
    policy, reference = Judge.of(run.workdir / "export"), Judge.of(world.model)
    for example in found.examples:
        pair = pairs[example.prompt.removeprefix("<s>")]
        assert [completion.name for completion in example.completions] == ["chosen", "rejected"]
        wanted = zip(example.completions, policy.pair_logps(pair), reference.pair_logps(pair), strict=True)
        for completion, own, theirs in wanted:
            assert np.abs(completion.policy - own).max() < 1e-4
            assert np.abs(completion.reference - theirs).max() < 1e-4
            assert np.abs(completion.credit - BETA * (own - theirs)).max() < 1e-4
            assert completion.total == pytest.approx(BETA * (own.sum() - theirs.sum()), abs=1e-3)
            text = "".join(completion.tokens)
            assert text == pair[completion.name] + "</s>"


def test_agrees_with_evaluation(run, configure):
    """The mean reward over all held-out pairs is that of `evaluate`."""
    config = configure(method__beta=BETA)
    found = build.token_credit(config, run.workdir, count=1000)
    metrics = build.evaluate(config, run.workdir)
    rewards = [example.completions[0].total for example in found.examples]
    assert len(rewards) == 8
    assert np.mean(rewards) == pytest.approx(metrics["eval_rewards/chosen"], abs=1e-4)
    margins = [example.margin for example in found.examples]
    assert np.mean([margin > 0 for margin in margins if margin is not None]) == pytest.approx(
        metrics["eval_rewards/accuracies"]
    )


def test_the_start_has_earned_nothing(world, configure):
    for mode, bound in (("live", 0), ("cached", 1e-5)):  # cached ones come from other rows
        found = build.token_credit(configure(reference__mode=mode), model=str(world.model), count=2)
        credits = [completion.credit for example in found.examples for completion in example.completions]
        assert max(abs(credit).max() for credit in credits) <= bound


def test_batches_do_not_matter(run, configure):
    one, many = (
        build.token_credit(configure(method__beta=BETA, evaluation__batch_size=size), run.workdir, count=5)
        for size in (1, 4)
    )
    assert [example.source for example in one.examples] == [example.source for example in many.examples]
    for a, b in zip(one.examples, many.examples, strict=True):
        for own, other in zip(a.completions, b.completions, strict=True):
            assert own.tokens == other.tokens
            assert np.abs(own.credit - other.credit).max() < 1e-5


def test_mismatched_partners_are_left_out(world, configure):
    """KTO puts another example's answer behind each prompt; it gets no credit here, and pairs are single answers."""
    found = build.token_credit(configure(method__name="kto", reference__mode="cached"), model=str(world.twin), count=2)
    for example in found.examples:
        (name,) = [completion.name for completion in example.completions]
        text = "".join(example.completions[0].tokens).removesuffix("</s>")
        pair = next(pair for pair in written_pairs() if pair["prompt"] == example.prompt.removeprefix("<s>"))
        assert pair[{"good": "chosen", "bad": "rejected"}[name]] == text
        assert example.margin is None
        assert example.completions[0].credit.any()


def test_a_combination_takes_the_beta_of_its_first_term(world, configure):
    """Completions that are read and never scored (spo's damaged ones) get no credit."""
    config = configure(method__name="dpo + 0.1*spo", method__dpo_beta=0.7)
    found = build.token_credit(config, model=str(world.twin), count=2)
    plain = build.token_credit(configure(method__beta=0.7), model=str(world.twin), count=2)
    assert (found.beta, found.beta_option) == (0.7, "dpo_beta")
    for example, same in zip(found.examples, plain.examples, strict=True):
        assert [completion.name for completion in example.completions] == ["chosen", "rejected"]
        for completion, other in zip(example.completions, same.completions, strict=True):
            assert completion.tokens == other.tokens
            assert completion.credit.any()
            assert np.abs(completion.credit - other.credit).max() < 1e-4


def test_a_method_without_reference_is_measured_against_the_start(world, configure):
    same = build.token_credit(configure(method__beta=2.0), model=str(world.twin), count=1)
    for changes in ({"method__name": "simpo"}, {"method__beta": 2.0, "reference__source": "none"}):
        found = build.token_credit(configure(**changes), model=str(world.twin), count=1)
        assert (found.reference, found.reference_is_start) == (str(world.model), True)
        assert not found.trained_against
        assert not found.is_method_reward
        assert found.beta == 2.0
        for one, other in zip(found.examples[0].completions, same.examples[0].completions, strict=True):
            assert np.abs(one.credit - other.credit).max() < 1e-4
    start = build.token_credit(configure(method__name="ld(simpo) + 0.1*nll"), model=str(world.model), count=1)
    assert start.beta_option == "ld_simpo_beta"
    assert not start.examples[0].completions[0].credit.any()


@pytest.mark.parametrize(
    ("changes", "model", "text"),
    [
        ({}, None, "--workdir: missing"),
        ({"reference__mode": "moving"}, "model", "reference.mode: got 'moving'"),
        ({"reference__mode": "cached", "reference__source": "foreign"}, "model", "has its own tokenizer or template"),
    ],
)
def test_what_has_no_credit(world, configure, changes, model, text):
    if changes.get("reference__source") == "foreign":
        changes = {**changes, "reference__source": world.foreign}
    with pytest.raises(ConfigError, match=text):
        build.token_credit(configure(**changes), model=model and str(world.model))


@pytest.mark.parametrize("text", ["café ünö", "日本語 x", "a😀b"])
def test_the_last_byte_of_a_character_shows_it(text):
    tokenizer = make_tokenizer(320)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = list(token_texts(ids, tokenizer))
    assert len(shown) == len(ids)
    partial = ["\ufffd" in tokenizer.decode(ids[: i + 1]) for i in range(len(ids))]
    assert any(partial)
    assert "".join(piece for piece, part in zip(shown, partial, strict=True) if not part) == text


def test_a_run_without_export(tmp_path, configure):
    with pytest.raises(ConfigError, match=r"has no export/ to look into.*"):
        build.token_credit(configure(), tmp_path, count=0)
