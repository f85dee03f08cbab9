"""Which tokens a policy thanks for its reward: the implicit reward of DPO, token by token.

A policy trained against a reference is the optimal policy of a reward on tokens, and by its optimality
``beta * log(pi(y_t | x, y_<t) / pi_ref(y_t | x, y_<t))`` is the advantage of writing the token ``y_t`` there (Rafailov
et al. 2024, "From r to Q*", arXiv 2404.12358). Summed over a completion it is DPO's implicit reward. The reward of
another method may be something else: a mean over tokens, a function of the log-ratio, a log-probability alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jaxalign.errors import ConfigError
from jaxalign.training.references import Reference
from jaxalign.training.scoring import score
from jaxalign.types import Rows, Variables

CreditStep = Callable[[Variables, Any, Mapping[str, Any], Rows], tuple[Float[Array, "R S"], Float[Array, "R S"]]]
"""``(variables, reference_state, frozen, rows) -> log-probabilities of policy and reference``, nats."""


@dataclass(frozen=True)
class Completion:
    """A completion with the credit of each of its tokens.

    Attributes:
      name: ``chosen``, ``rejected``, ...
      tokens: their texts.
      policy: log-probability of each token under the policy, nats, ``[C]``.
      reference: the same under the reference.
      credit: ``beta * (policy - reference)``, ``[C]``.
    """

    name: str
    tokens: tuple[str, ...]
    policy: np.ndarray
    reference: np.ndarray
    credit: np.ndarray

    @property
    def total(self) -> float:
        """DPO's implicit reward of the completion: the sum of its credit."""
        return float(self.credit.sum())


@dataclass(frozen=True)
class Credited:
    """An example: its prompt, and its completions with their credit."""

    source: str
    prompt: str
    completions: tuple[Completion, ...]

    @property
    def margin(self) -> float | None:
        """DPO's reward of the chosen minus that of the rejected completion; None where there is no pair."""
        totals = {completion.name: completion.total for completion in self.completions}
        return totals["chosen"] - totals["rejected"] if "rejected" in totals else None


@dataclass(frozen=True)
class CreditMap:
    """The credit of some examples.

    Attributes:
      model: the policy.
      reference: the model that it is measured against.
      method: the method it was trained with.
      beta: the scale of the credit, per nat.
      examples: the examples.
      beta_option: the method's option that ``beta`` is the value of; None where it has none.
      trained_against: training used this reference. If not (simpo, say), it only serves the comparison.
      reference_is_start: the reference is the policy before training.
      is_method_reward: the sum of a completion's credit is also the reward of the method itself.
    """

    model: str
    reference: str
    method: str
    beta: float
    examples: tuple[Credited, ...]
    beta_option: str | None = "beta"
    trained_against: bool = True
    reference_is_start: bool = True
    is_method_reward: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON. Log-probabilities in nats."""

        def numbers(values: np.ndarray) -> list[float]:
            return [round(float(value), 6) for value in values]

        return {
            "model": self.model,
            "reference": self.reference,
            "method": self.method,
            "beta": self.beta,
            "beta_option": self.beta_option,
            "trained_against_reference": self.trained_against,
            "dpo_reward_is_method_reward": self.is_method_reward,
            "examples": [
                {
                    "source": example.source,
                    "prompt": example.prompt,
                    "dpo_margin": example.margin,
                    "completions": [
                        {
                            "name": completion.name,
                            "dpo_reward": completion.total,
                            "tokens": list(completion.tokens),
                            "policy_logps": numbers(completion.policy),
                            "reference_logps": numbers(completion.reference),
                            "credit": numbers(completion.credit),
                        }
                        for completion in example.completions
                    ],
                }
                for example in self.examples
            ],
        }


def make_credit_step(policy: Any, reference: Reference) -> CreditStep:
    """Builds the scoring step. It is pure: the caller jits it.

    Args:
      policy: the policy's functions (a `jaxalign.models.policy.Policy`).
      reference: where reference log-probabilities come from.

    Raises:
      ConfigError: the reference knows only whole completions.
    """
    if not reference.token_level:
        raise ConfigError(
            "reference.source: this reference has its own tokenizer or template, so it knows only the "
            "log-probabilities of whole completions, and single tokens get no credit. Use one with the policy's "
            "tokenizer."
        )

    def step(variables, reference_state, frozen, rows):
        tokens = reference.logps(reference_state, frozen, rows).tokens
        assert tokens is not None  # it is token-level
        return score(policy, variables, rows).tokens.logps, tokens

    return step


def credited(
    logps: Sequence[tuple[np.ndarray, ...]],
    *,
    beta: float,
    names: Sequence[str],
    tokens: Sequence[Sequence[str]],
    prompt: str,
    source: str,
) -> Credited:
    """An example with its credit.

    Args:
      logps: of each completion, under policy and reference; those behind the last name are left out.
      beta: scale of the rewards, per nat.
      names: of the completions.
      tokens: their tokens' texts.
      prompt: text.
      source: where the example is from.
    """
    completions = [
        Completion(name, tuple(texts), policy, reference, beta * (policy - reference))
        for name, texts, (policy, reference) in zip(names, tokens, logps, strict=False)
        if len(texts)
    ]
    return Credited(source, prompt, tuple(completions))
