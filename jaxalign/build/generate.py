"""Completions of prompts by a model in a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxalign.data.prompts import Prompt, encode_prompts, end_token_ids
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.models.huggingface import load_policy, resolve
from jaxalign.sampling.engine import generate as sample_tokens
from jaxalign.training.mesh import make_mesh


def generate(
    model: str,
    prompts: Sequence[Prompt],
    *,
    chat: bool = False,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 8,
    dtype: str = "bfloat16",
) -> list[str]:
    """Continues each prompt.

    Args:
      model: a Hugging Face folder or hub id.
      prompts: texts, or lists of ``{"role", "content"}`` messages.
      chat: wrap a text in the model's chat template, as one message of the user.
      max_new_tokens: most tokens of a completion.
      temperature: 0 = the most probable token each time.
      top_p: see `jaxalign.sampling.engine.sample`.
      top_k: see there.
      seed: of the draws.
      batch_size: prompts decoded together.
      dtype: of the arithmetic.

    Returns:
      The completions as text, without the token that ended them.

    Raises:
      DataError: an empty prompt, messages for a model without chat template, or messages that the template refuses.
      ConfigError: settings out of range, or prompts too long.
    """
    folder = resolve(model)
    tokenizer = load_tokenizer(folder)
    ids = encode_prompts([as_messages(prompt) if chat else prompt for prompt in prompts], tokenizer)
    plan = make_mesh()
    with jax.set_mesh(plan.mesh):
        policy, variables = load_policy(
            folder, dtype=dtype, param_dtype=dtype, shardings=plan.sharding, constrain=plan.constrain
        )
        drawn = sample_tokens(
            policy,
            variables,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop_tokens=stop_tokens(tokenizer, policy.config.source.generation),
            seed=seed,
            batch_size=-(-batch_size // plan.batch_size) * plan.batch_size,
        )
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in drawn]


def stop_tokens(tokenizer: Any, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's, the chat template's, and what generation_config.json names."""
    named = generation.get("eos_token_id")
    named = [named] if isinstance(named, int) else list(named or [])
    return tuple(sorted({*end_token_ids(tokenizer), *named}))


def as_messages(prompt: Prompt) -> Prompt:
    """A text as a user's message; a conversation as it is."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
