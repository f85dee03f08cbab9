"""The decoder and its folders against transformers with torch."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.huggingface import load_policy, save_pretrained

pytestmark = pytest.mark.judge

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama 2": ("Llama", {}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA31, "num_key_value_heads": 1}),
    "llama linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 8, "head_dim": 16}),
    "qwen2.5": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 biases": ("Qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
}


def torch_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def load_torch(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 97, (2, 40))


@pytest.mark.parametrize(("family", "fields"), MODELS.values(), ids=MODELS.keys())
def test_same_logits_both_ways(family, fields, tokens, tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **fields}, attn_implementation="eager")
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):  # Neutral at initialisation: a mistake would not show.
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    wanted = torch_logits(model, tokens)

    policy, variables = load_policy(tmp_path / "theirs", dtype="float32")
    ours = np.asarray(policy.logits(variables, jnp.asarray(tokens)))
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(ours / scale, wanted / scale, atol=1e-4)

    save_pretrained(policy, variables, tmp_path / "ours")
    exported = load_torch(tmp_path / "ours")
    assert type(exported) is type(model)
    assert exported.config.rope_parameters == model.config.rope_parameters
    np.testing.assert_array_equal(torch_logits(exported, tokens), wanted)


def test_published_model_exports_with_equal_logits(stories, golden, tmp_path):
    import transformers

    policy, variables = load_policy(stories, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save_pretrained(policy, variables, tmp_path / "m", tokenizer=tokenizer, max_shard_bytes=3e5)
    model = load_torch(tmp_path / "m")
    ids = [golden["story_ids"]]
    wanted = torch_logits(model, ids)
    np.testing.assert_array_equal(wanted, torch_logits(load_torch(stories), ids))
    # Relative to the largest logit, 23: torch itself is 2e-5 away from its own float64 result here, and 2e-5 apart
    # between its two implementations of attention; we are 1.6e-5 away from float64.
    ours = np.asarray(policy.logits(variables, jnp.asarray(ids)))
    np.testing.assert_allclose(ours / 23, wanted / 23, atol=1e-5)
    exact = torch_logits(model.double(), ids)
    assert np.sqrt(np.mean((ours - exact) ** 2)) < 5e-6
    assert model.generation_config.eos_token_id == [1, 2]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert again(golden["story"]).input_ids == tokenizer(golden["story"]).input_ids
    assert again.chat_template == tokenizer.chat_template
    assert (tmp_path / "m" / "chat_template.jinja").exists()
