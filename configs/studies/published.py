"""Public facts about the models and data sets that the studies name, so that a plan needs no download.

Architectures are the fields of each model's config.json that decide its shape. Where the models are on disk their own
files are read instead. Parameter counts that they lead to are tested against the published ones.
"""

from typing import Any

from jaxalign.studies.study import PublishedData

_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": _MISTRAL,
    "mistralai/Mistral-7B-Instruct-v0.2": {**_MISTRAL, "rope_theta": 1000000.0, "sliding_window": None},
    "alignment-handbook/zephyr-7b-sft-full": _MISTRAL,
    "HuggingFaceH4/mistral-7b-sft-beta": _MISTRAL,
    "allenai/tulu-2-7b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    },
    "meta-llama/Meta-Llama-3-70B-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": 128009,
        "torch_dtype": "bfloat16",
    },
    "Qwen/Qwen2-1.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "torch_dtype": "bfloat16",
    },
}
"""Hub id -> config.json."""

_ULTRAFEEDBACK = "row counts from the data cards; tokens a row (prompt 190, answer 340) and bytes are guesses"

DATASETS = {
    "HuggingFaceH4/ultrafeedback_binarized": PublishedData(
        examples={"train_prefs": 61_135, "test_prefs": 2_000},
        prompt=190,
        completion=340,
        size=650_000_000,
        source=_ULTRAFEEDBACK,
    ),
    "allenai/ultrafeedback_binarized_cleaned": PublishedData(
        examples={"train_prefs": 60_800, "test_prefs": 2_000},
        prompt=190,
        completion=340,
        size=650_000_000,
        source="as HuggingFaceH4/ultrafeedback_binarized less what its cleaning took out: all numbers are guesses",
    ),
    "HuggingFaceH4/ultrachat_200k": PublishedData(
        examples={"train_sft": 207_865, "test_sft": 23_110},
        prompt=900,
        completion=250,
        size=1_600_000_000,
        source="row counts from the data card; tokens a row (conversation 900, last answer 250) and bytes are guesses",
    ),
}
