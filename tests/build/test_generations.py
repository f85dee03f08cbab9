"""Sampled answers described, and how far they are from the reference: against the plain path, one answer at a time."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import build
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import DataError
from jaxalign.models.huggingface import load_policy
from jaxalign.training.mesh import make_mesh
from tests.build.conftest import write_lines, written_pairs

module = importlib.import_module("jaxalign.build.generations")  # the package holds the function of that name
SAMPLING = build.Sampling(max_new_tokens=12, seed=5)
COUNT = 6


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(module, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def prompts(world):
    return str(write_lines(world.folder / "prompts.jsonl", [{"prompt": p["prompt"]} for p in written_pairs(COUNT + 2)]))


@pytest.fixture(scope="module")
def sampled(world, prompts, tmp_path_factory):
    """What was found, with every answer's tokens and divergence as the module computed them."""
    kept = {}

    def spy(answers):
        kept["divergences"] = answers
        return divergence_metrics(answers)

    def draw(*arguments, **options):
        kept["prompts"], kept["drawn"] = arguments[2], sample(*arguments, **options)
        return kept["drawn"]

    divergence_metrics, sample = module.divergence_metrics, module.sample
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "divergence_metrics", spy)
        patch.setattr(module, "sample", draw)
        patch.setattr(module, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        found = build.generations(
            str(world.model), prompts, reference=str(world.twin), count=COUNT, sampling=SAMPLING,
            batch_size=4, dtype="float32", out=out,
        )  # fmt: skip
    return found, kept, out


def test_every_divergence_equals_a_loop_in_float64(world, sampled):
    found, kept, _ = sampled
    models = [load_policy(folder, dtype="float32") for folder in (world.model, world.twin)]
    k1, k3, exact, lengths = [], [], [], []
    for prompt, each, divergence in zip(kept["prompts"], kept["drawn"], kept["divergences"], strict=True):
        tokens = np.array([[*prompt, *each.tokens]])
        padded = np.pad(tokens, ((0, 0), (0, 64 - tokens.shape[1])))
        logs = []
        for policy, variables in models:
            logits = np.asarray(policy.logits(variables, jnp.asarray(padded)), np.float64)[0]
            logs.append(logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)))
            logs[-1] -= logits.max(-1, keepdims=True)
        own, theirs = logs
        at = np.arange(len(prompt) - 1, tokens.shape[1] - 1)
        chosen = np.array(each.tokens)
        kl = (np.exp(own[at]) * (own[at] - theirs[at])).sum(-1)
        assert np.abs(divergence.policy - own[at, chosen]).max() < 1e-4
        assert np.abs(divergence.reference - theirs[at, chosen]).max() < 1e-4
        assert np.abs(divergence.exact - kl).max() < 1e-4
        ratio = own[at, chosen] - theirs[at, chosen]
        k1.append(ratio.sum())
        k3.append((np.exp(-ratio) - 1 + ratio).sum())
        exact.append(kl.sum())
        lengths.append(len(chosen))
    assert found.metrics["kl/sequence"].values == pytest.approx(exact, abs=1e-3)
    assert found.metrics["kl/sequence"].value == pytest.approx(np.mean(exact), abs=1e-3)
    assert found.metrics["kl/sequence_k1"].values == pytest.approx(k1, abs=1e-3)
    assert found.metrics["kl/sequence_k3"].values == pytest.approx(k3, rel=1e-3)
    assert found.metrics["kl/token"].value == pytest.approx(sum(exact) / sum(lengths), rel=1e-4)
    assert min(exact) > 0.1  # the two models differ


def test_what_is_told_of_the_answers(world, sampled):
    found, kept, out = sampled
    tokenizer = load_tokenizer(world.model)
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [each["prompt"] for each in answers] == [pair["prompt"] for pair in written_pairs(COUNT)]
    assert list(found.samples) == answers
    for answer, each in zip(answers, kept["drawn"], strict=True):
        assert answer["ended"] == each.stopped == (each.tokens[-1] == tokenizer.eos_token_id)
        assert answer["completion"] == tokenizer.decode(each.tokens, skip_special_tokens=True)
    assert found.metrics["length"].values == [len(each.tokens) - each.stopped for each in kept["drawn"]]
    assert found.metrics["ended"].value == np.mean([each.stopped for each in kept["drawn"]])
    assert sum(found.details["lengths"]["counts"]) == COUNT
    assert json.loads(json.dumps(found.as_dict()))["protocol"]["temperature"] == 1.0


@pytest.fixture
def canned(monkeypatch, sampled):
    """The answers that were sampled above, given again at once."""
    _, kept, _ = sampled

    def again(policy, variables, prompts, **options):
        assert prompts == kept["prompts"]
        return kept["drawn"]

    monkeypatch.setattr(module, "sample", again)


def test_a_model_does_not_diverge_from_its_copy(world, prompts, canned):
    found = build.generations(
        str(world.model), prompts, reference=str(world.model), count=COUNT, sampling=SAMPLING, dtype="float32"
    )
    for name in ("kl/sequence", "kl/sequence_k1", "kl/sequence_k3"):
        assert found.metrics[name].values == [0.0] * COUNT
    assert (found.metrics["kl/token"].value, found.metrics["kl/token"].stderr) == (0.0, 0.0)
    assert found.notes == []


def test_batches_do_not_matter(world, prompts, sampled, canned):
    first, _, _ = sampled
    found = build.generations(
        str(world.model), prompts, reference=str(world.twin), count=COUNT, sampling=SAMPLING, dtype="float32",
        batch_size=1,
    )  # fmt: skip
    assert found.metrics.keys() == first.metrics.keys()
    for name, metric in first.metrics.items():
        assert found.metrics[name].value == pytest.approx(metric.value, rel=1e-4), name


def test_the_protocol_knows_prompts_templates_and_tokens(world, prompts, sampled, monkeypatch):
    _, kept, _ = sampled
    monkeypatch.setattr(module, "sample", lambda *arguments, **options: kept["drawn"][: len(arguments[2])])

    def protocol(rows, **options):
        return build.generations(str(world.model), rows, sampling=SAMPLING, dtype="float32", **options).protocol

    rows = [{"prompt": pair["prompt"]} for pair in written_pairs(COUNT)]
    first = protocol(prompts, count=COUNT)
    assert first == protocol(rows)
    assert first["template_hash"] is None
    assert first["prompts_hash"] != protocol([*rows[1:], rows[0]])["prompts_hash"]
    chat, other = (
        protocol(rows, chat=True, chat_template=template)
        for template in ("chatml", "{% for m in messages %}{{ m.content }}{% endfor %}")
    )
    assert first["prompts_hash"] != chat["prompts_hash"] == other["prompts_hash"]
    assert len({chat["template_hash"], other["template_hash"], None}) == 3
    assert first["tokenizer_hash"] == chat["tokenizer_hash"]


def test_where_no_divergence_is_told(world, prompts, canned):
    def notes(reference, **changes):
        found = build.generations(
            str(world.model), prompts, reference=reference, count=COUNT, dtype="float32",
            sampling=build.Sampling(max_new_tokens=12, **changes),
        )  # fmt: skip
        assert not any(name.startswith("kl/") for name in found.metrics)
        return " ".join(found.notes)

    assert "there is no reference" in notes(None)
    assert "(temperature 0.7, top_p 1, top_k 0)" in notes(str(world.twin), temperature=0.7)
    assert "(temperature 1, top_p 0.9, top_k 0)" in notes(str(world.twin), top_p=0.9)
    assert "has another vocabulary" in notes(str(world.foreign))


def test_degeneration_is_told(world, prompts, sampled, monkeypatch):
    _, kept, _ = sampled
    never = [dataclasses.replace(each, tokens=[9] * 12, stopped=False) for each in kept["drawn"]]
    monkeypatch.setattr(module, "sample", lambda *arguments, **options: never)
    options = {"count": COUNT, "sampling": SAMPLING, "dtype": "float32"}
    assert build.generations(str(world.model), prompts, **options).degenerate == (
        f"of {COUNT} answers 100 % without an end within 12 tokens"
    )
    exempt = build.generations(str(world.model), prompts, most_unended=1.0, **options)
    assert exempt.degenerate is None
    assert "was not taught to end" in " ".join(exempt.notes)


def test_prompts_that_are_none(world, tmp_path):
    rows = write_lines(tmp_path / "p.jsonl", [{"prompt": "fine"}, {"question": "?"}, {"prompt": ""}])
    with pytest.raises(DataError, match=r"(?s)p.jsonl row 2: expected a text, or an object with a 'prompt'.*row 3"):
        build.generations(str(world.model), str(rows))
    rows.write_text('"one"\n{"prompt": [{"role": "user", "content": "two"}]}\nthree\n')
    with pytest.raises(DataError, match="row 3: "):
        build.generations(str(world.model), str(rows))
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        build.generations(str(world.model), str(rows), count=2)
