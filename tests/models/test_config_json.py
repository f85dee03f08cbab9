"""`config.json` files as they are in the world, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jaxalign.errors import ModelError
from jaxalign.models.config_json import config_json, parse_config, read_config
from jaxalign.models.decoder_config import RopeScaling, decoder_config

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 100,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 2}
QWEN3 = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


@pytest.mark.parametrize(
    ("file", "facts"),
    [
        ("llama-2-7b-hf", {"kv_heads": 32, "head_dim": 128, "rope_theta": 10000.0, "qkv_bias": False, "windows": ()}),
        (
            "llama-3.1-70b-instruct",
            {
                "kv_heads": 8,
                "rope_theta": 500000.0,
                "rope_scaling": RopeScaling(kind="llama3", factor=8.0),
                "max_positions": 131072,
            },
        ),
        ("mistral-nemo-instruct-2407", {"head_dim": 128, "width": 5120, "windows": (), "rope_theta": 1e6}),
        ("qwen2.5-7b-instruct", {"qkv_bias": True, "output_bias": False, "windows": (), "norm_epsilon": 1e-6}),
        ("qwen3-14b", {"qk_norm": True, "qkv_bias": False, "head_dim": 128, "tied_embeddings": False}),
        ("codellama-34b-instruct-hf", {"rope_theta": 1e6}),
        ("yi-34b", {"kv_heads": 8, "heads": 56}),
    ],
)
def test_published_files(shared_data, file, facts):
    config = parse_config(json.loads((shared_data / "hf-configs" / f"{file}.json").read_text()))
    assert {name: getattr(config, name) for name in facts} == facts


@pytest.mark.parametrize("file", ["mixtral-8x7b-v0.1", "qwen3-30b-a3b", "deepseek-v2-lite"])
def test_published_files_of_other_families_are_refused(shared_data, file):
    raw = json.loads((shared_data / "hf-configs" / f"{file}.json").read_text())
    with pytest.raises(ModelError, match=f"architecture '{raw['architectures'][0]}' is not modelled, expected one of"):
        parse_config(raw)


@pytest.mark.parametrize(
    ("raw", "facts"),
    [
        (MISTRAL, {"windows": (4096,) * 3}),
        ({**MISTRAL, "sliding_window": None}, {"windows": ()}),
        ({**MISTRAL, "sliding_window": 7}, {"windows": (7, 7, 7)}),
        (QWEN2, {"windows": (), "qkv_bias": True}),
        (
            {**QWEN2, "use_sliding_window": True, "max_window_layers": 2, "sliding_window": 9},
            {"windows": (None, None, 9)},
        ),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 3, "sliding_window": 9}, {"windows": ()}),
        (
            {
                **QWEN3,
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            {"windows": (9, None, 9), "head_dim": 128},
        ),
        (LLAMA, {"kv_heads": 4, "head_dim": 16, "norm_epsilon": 1e-6, "max_positions": 2048}),
        ({**LLAMA, "attention_bias": True}, {"qkv_bias": True, "output_bias": True, "mlp_bias": False}),
        ({**LLAMA, "mlp_bias": True, "hidden_act": "gelu"}, {"mlp_bias": True, "activation": "gelu"}),
        (
            {**LLAMA, "rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE},
            {"rope_theta": 5e5, "rope_scaling": RopeScaling(kind="llama3", factor=8.0)},
        ),
        (
            {**LLAMA, "rope_parameters": {"rope_theta": 5e5, **LLAMA3_ROPE}},
            {"rope_theta": 5e5, "rope_scaling": RopeScaling(kind="llama3", factor=8.0)},
        ),
        (
            {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_scaling": RopeScaling(kind="linear", factor=2.0), "rope_theta": 10000.0},
        ),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, {"rope_theta": 7.0}),
        ({**LLAMA, "rope_scaling": {"rope_type": "default"}}, {"rope_scaling": None}),
        ({**{k: v for k, v in LLAMA.items() if k != "architectures"}}, {"family": "llama"}),
    ],
)
def test_fields(raw, facts):
    config = parse_config(raw)
    assert {name: getattr(config, name) for name in facts} == facts
    # What is written says the same, in both rotary forms.
    written = config_json(config, dtype="float32")
    assert parse_config(written) == config
    assert parse_config({k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}) == config
    assert parse_config({k: v for k, v in written.items() if k != "rope_parameters"}) == config


@pytest.mark.parametrize(
    ("raw", "messages"),
    [
        ({**LLAMA, "architectures": ["LlamaForCausalLm"]}, ["Did you mean 'LlamaForCausalLM'"]),
        ({**LLAMA, "architectures": ["GPT2LMHeadModel"]}, ["architecture 'GPT2LMHeadModel' is not modelled"]),
        ({**LLAMA, "model_type": "mistral"}, ["model_type 'mistral' contradicts architecture 'LlamaForCausalLM'"]),
        ({"hidden_size": 3}, ["neither 'architectures' nor 'model_type'"]),
        ({**LLAMA, "hiden_act": "gelu"}, ["unknown field 'hiden_act' = 'gelu'.*Did you mean 'hidden_act'"]),
        ({**LLAMA, "attention_dropout": 0.1}, ["attention_dropout = 0.1 is not modelled for LlamaForCausalLM"]),
        ({**MISTRAL, "attention_bias": True}, ["attention_bias = True is not modelled for MistralForCausalLM"]),
        ({**LLAMA, "sliding_window": 128}, ["sliding_window = 128 is not modelled for LlamaForCausalLM"]),
        ({**LLAMA, "quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({**LLAMA, "partial_rotary_factor": 0.5}, ["partial_rotary_factor = 0.5"]),
        ({**LLAMA, "hidden_act": "silux"}, ["hidden_act 'silux' is not modelled.*Did you mean 'silu'"]),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4}}, ["rotary scaling 'yarn' is not modelled"]),
        ({**LLAMA, "rope_scaling": {"rope_type": "lama3"}}, ["Did you mean 'llama3'"]),
        (
            {**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8}},
            ["'low_freq_factor' is", "'high_freq", "'original_max"],
        ),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": "2"}}, ["factor is '2', expected a number"]),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 1}}, ["beta_fast = 1 is not modelled"]),
        ({**LLAMA, "rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, ["they must agree"]),
        ({**LLAMA, "rope_parameters": {"full_attention": {}}}, ["by layer are not modelled"]),
        ({**QWEN3, "layer_types": ["full_attention", "linear"]}, ["layer type 'linear'", "layer_types has 2 entries"]),
        ({**LLAMA, "num_key_value_heads": 3}, ["heads = 4 is not a multiple of kv_heads = 3"]),
        ({**LLAMA, "vocab_size": "100"}, ["vocab_size is '100'"]),
        (
            {**LLAMA, "new_field": 1, "attention_dropout": 0.5, "hidden_act": "x", "rope_scaling": {"type": "dynamic"}},
            ["new_field", "attention_dropout", "hidden_act", "dynamic"],
        ),
    ],
)
def test_what_is_not_modelled_is_named(raw, messages):
    with pytest.raises(ModelError) as error:
        parse_config(raw)
    for message in messages:
        assert error.match(message)
    assert len(error.value.problems) == len(messages)
    assert all(problem.startswith("config.json: ") for problem in error.value.problems)


def test_unknown_values_that_do_nothing_are_accepted():
    parse_config({**LLAMA, "attention_dropout": 0.0, "use_cache": False, "torch_dtype": "float16", "auto_map": None})


def test_extra_fields_are_written_back():
    written = config_json(parse_config({**LLAMA, "bos_token_id": 5, "initializer_range": 0.3}), dtype="bfloat16")
    assert (written["bos_token_id"], written["initializer_range"], written["torch_dtype"]) == (5, 0.3, "bfloat16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": True}, "qk_norm = True cannot be said"),
        ({"qkv_bias": True}, "one field, 'attention_bias', for all biases"),
        ({"windows": (3, 3)}, r"windows \(3, 3\) cannot be said"),
        ({"soft_cap": 30.0}, "soft_cap = 30.0 cannot be said"),
        ({"family": "lama"}, "Did you mean 'llama'"),
        ({"family": "mistral", "windows": (3, None)}, "cannot be said in a config.json of family 'mistral'"),
    ],
)
def test_facts_that_a_family_cannot_say(change, message):
    config = decoder_config({"vocab_size": 9, "width": 8, "layers": 2, "heads": 2, "mlp_width": 8, "max_positions": 8})
    with pytest.raises(ModelError, match=message):
        config_json(replace(config, **change), dtype="float32")


def test_folders_without_a_model(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        read_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="PEFT adapter"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="expected a JSON object"):
        read_config(tmp_path)
