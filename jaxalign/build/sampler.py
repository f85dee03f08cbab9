"""A model in a folder that answers conversations, its weights read when the first is asked."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxalign.build.generate import stop_tokens
from jaxalign.data.chat import load_chat_template
from jaxalign.data.prompts import encode_prompts, end_token_ids
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import DataError
from jaxalign.models.huggingface import load_policy, resolve
from jaxalign.models.policy import Policy
from jaxalign.models.weights_hash import weights_hash
from jaxalign.sampling.engine import generate as sample_tokens
from jaxalign.training.mesh import make_mesh
from jaxalign.types import Variables


class Sampler:
    """Answers conversations as `jaxalign.evaluation.dialogue.Generate` asks for."""

    def __init__(self, model: str, *, chat_template: str | None = None, batch_size: int = 16, dtype: str = "bfloat16"):
        """Reads the tokenizer.

        Args:
          model: Hugging Face folder or hub id.
          chat_template: path, text, or ``chatml``; None = the model's own.
          batch_size: conversations decoded together.
          dtype: of the arithmetic.

        Raises:
          DataError: there is no chat template.
          ModelError: the folder is no model.
        """
        self._folder = resolve(model)
        self._tokenizer = load_tokenizer(self._folder)
        self._template = chat_template
        self._batch_size, self._dtype = batch_size, dtype
        self._plan = make_mesh()
        template = load_chat_template(self._tokenizer, chat_template)
        if template is None:
            raise DataError(
                f"{model} has no chat template, which dialogues need; give one (a file, or chatml for models that were "
                "trained with it)."
            )
        self._template_hash = template.content_hash

    @functools.cached_property
    def origin(self) -> dict[str, Any]:
        """What the answers depend on, besides the question: weights, template, precision."""
        return {
            "weights": weights_hash(self._folder),
            "chat_template": self._template_hash,
            "dtype": self._dtype,
        }

    @functools.cached_property
    def _loaded(self) -> tuple[Policy, Variables, list[int]]:
        policy, variables = load_policy(
            self._folder,
            dtype=self._dtype,
            param_dtype=self._dtype,
            shardings=self._plan.sharding,
            constrain=self._plan.constrain,
        )
        ends = {
            *stop_tokens(self._tokenizer, policy.config.source.generation),
            *end_token_ids(self._tokenizer, chat_template=self._template),
        }
        return policy, variables, sorted(ends)

    def __call__(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: Sequence[int],
    ) -> list[str | None]:
        """One answer each; None where conversation and `max_new_tokens` exceed the model's positions."""
        ids = encode_prompts(conversations, self._tokenizer, chat_template=self._template)
        with jax.set_mesh(self._plan.mesh):
            policy, variables, ends = self._loaded
            fits = [i for i, each in enumerate(ids) if len(each) + max_new_tokens <= policy.config.max_positions]
            drawn = sample_tokens(
                policy,
                variables,
                [ids[i] for i in fits],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                stop_tokens=ends,
                seed=[seed[i] for i in fits],
                batch_size=-(-self._batch_size // self._plan.batch_size) * self._plan.batch_size,
            )
        texts = {i: self._tokenizer.decode(t, skip_special_tokens=True) for i, t in zip(fits, drawn, strict=True)}
        return [texts.get(i) for i in range(len(ids))]
