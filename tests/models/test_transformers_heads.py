"""Reward models and token classifiers against transformers with torch."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.decoder_config import Source
from jaxalign.models.huggingface import load_policy, save_pretrained
from jaxalign.types import causal_rows
from tests.models.test_transformers import MODELS, SMALL

pytestmark = pytest.mark.judge

PAD, END = 0, 2
FAMILIES = {
    "llama": {},
    "mistral": {"windows": 7},
    "qwen2": {"qkv_bias": True, "tied_embeddings": True},
    "qwen3": {"qk_norm": True},
}


def ours(policy, variables, tokens):
    return np.asarray(policy.outputs(variables, policy.hidden(variables, causal_rows(jnp.asarray(tokens)))))


def theirs(model, tokens, mask):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits.numpy()


def assert_close(actual, wanted):
    """Within 1e-5 of the largest value."""
    scale = float(np.abs(wanted).max())
    np.testing.assert_allclose(actual / scale, wanted / scale, atol=1e-5)


@pytest.fixture
def texts():
    """Prompts with completions that end with the end token, ragged: tokens padded right, mask, lengths."""
    rng = np.random.default_rng(0)
    lengths = np.array([5, 12, 9])
    tokens = rng.integers(3, 61, (3, 12))
    mask = (np.arange(12) < lengths[:, None]).astype(np.int64)
    tokens[np.arange(3), lengths - 1] = END
    return np.where(mask == 1, tokens, PAD), mask, lengths


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize(("family", "fields"), FAMILIES.items(), ids=FAMILIES.keys())
def test_transformers_scores_an_export_alike(make_tiny, texts, tmp_path, family, fields, outputs):
    """Of a padded batch: a reward model at the completions' end token, a classifier at every token."""
    import transformers

    build = {"head_outputs": outputs, "language_head": False}
    policy, variables = make_tiny(build, family=family, **fields)
    source = Source({"pad_token_id": PAD, "eos_token_id": END})
    policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, source=source))
    save_pretrained(policy, variables, tmp_path / "m")
    auto = (
        transformers.AutoModelForSequenceClassification
        if outputs == 1
        else transformers.AutoModelForTokenClassification
    )
    model, report = auto.from_pretrained(tmp_path / "m", attn_implementation="eager", output_loading_info=True)
    assert not any(report.values())
    assert model.config.num_labels == outputs
    tokens, mask, lengths = texts
    here, there = ours(policy, variables, tokens), theirs(model.eval(), tokens, mask)
    if outputs == 1:
        assert_close(here[np.arange(3), lengths - 1], there)
    else:
        assert_close(here[mask == 1], there[mask == 1])


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize(("family", "fields"), MODELS.values(), ids=MODELS.keys())
def test_their_models_are_read_and_written_back(texts, tmp_path, family, fields, kind):
    import torch
    import transformers

    torch.manual_seed(0)
    labels = 1 if kind == "SequenceClassification" else 2
    ids = {"pad_token_id": PAD, "eos_token_id": END, "num_labels": labels}
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **fields}, **ids, attn_implementation="eager")
    model = getattr(transformers, f"{family}For{kind}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "theirs")
    tokens, mask, lengths = texts
    wanted = theirs(model, tokens, mask)
    policy, variables = load_policy(tmp_path / "theirs", dtype="float32")
    here = ours(policy, variables, tokens)
    if labels == 1:
        assert_close(here[np.arange(3), lengths - 1], wanted)
    else:
        assert_close(here[mask == 1], wanted[mask == 1])

    save_pretrained(policy, variables, tmp_path / "ours")
    auto = getattr(transformers, f"AutoModelFor{kind}")
    again = auto.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(again) is type(model)
    assert again.config.id2label == model.config.id2label
    np.testing.assert_array_equal(theirs(again, tokens, mask), wanted)
