"""How far a policy is from its reference: the KL divergence over answers that the policy itself sampled.

With ``y`` drawn from the policy and ``d_t = log p(y_t | x, y_<t) - log p_ref(y_t | x, y_<t)``, three estimators of
``KL(p || p_ref)`` of an answer, all without bias, from the noisiest to the calmest:

* ``k1``, the sum of ``d_t``;
* ``k3``, the sum of ``exp(-d_t) - 1 + d_t``, never below 0;
* exact per token: the sum over the answer of the divergence of the two next-token distributions, over the vocabulary.

Sources: J. Schulman, "Approximating KL Divergence", 2020 (k1, k3; here token by token, since the ratio of a whole
answer would overflow). The third is k1 with each token's draw averaged out, by the chain rule of the divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jaxalign.evaluation.outcome import Metric
from jaxalign.logprobs import Distribution, token_scores
from jaxalign.types import Rows, Variables

DivergenceStep = Callable[
    [Variables, Variables, Rows], tuple[Float[Array, "R S"], Float[Array, "R S"], Float[Array, "R S"]]
]
"""``(variables, reference_variables, rows) -> logps of policy and of reference, KL(policy || reference)``, nats."""


@dataclass(frozen=True)
class Divergence:
    """An answer under policy and reference, ``[C]`` a scored token.

    Attributes:
      policy: log-probability of each token, nats.
      reference: the same under the reference.
      exact: ``KL(policy || reference)`` of the two next-token distributions, nats.
    """

    policy: np.ndarray
    reference: np.ndarray
    exact: np.ndarray

    @property
    def k1(self) -> np.ndarray:
        """``d_t``, float64."""
        return self.policy.astype(np.float64) - self.reference

    @property
    def k3(self) -> np.ndarray:
        """``exp(-d_t) - 1 + d_t``, float64."""
        return np.expm1(-self.k1) + self.k1


def make_divergence_step(policy: Any, reference: Any) -> DivergenceStep:
    """Builds the scoring step. It is pure: the caller jits it. Both models have the same vocabulary.

    Args:
      policy: the policy's functions (a `jaxalign.models.policy.Policy`).
      reference: the reference's.
    """

    def step(variables, reference_variables, rows):
        # The divergence that `token_scores` knows is KL(its reference || its policy): so each takes the other's part.
        scores = token_scores(
            reference.hidden(reference_variables, rows),
            reference.head(reference_variables),
            rows.score_source,
            rows.score_target,
            soft_cap=reference.soft_cap,
            reference=Distribution(policy.hidden(variables, rows), policy.head(variables), policy.soft_cap),
        )
        assert scores.reference_logps is not None
        assert scores.kl is not None
        return scores.reference_logps, scores.logps, scores.kl

    return step


def divergence_metrics(answers: Sequence[Divergence]) -> dict[str, Metric]:
    """The divergence of policy from reference.

    ====================  =============================================================================================
    ``kl/sequence``       nats an answer, by the exact divergence of each token
    ``kl/sequence_k1``    the same by k1
    ``kl/sequence_k3``    the same by k3
    ``kl/token``          nats per token: the sum of ``kl/sequence`` by the sum of the tokens
    ====================  =============================================================================================

    Args:
      answers: sampled from the policy as it is (temperature 1, nothing filtered), at least one.
    """
    exact = np.array([answer.exact.sum(dtype=np.float64) for answer in answers])
    lengths = np.array([len(answer.exact) for answer in answers], np.float64)
    token, stderr = _ratio(exact, lengths)
    return {
        "kl/sequence": _nats(exact),
        "kl/sequence_k1": _nats(np.array([answer.k1.sum() for answer in answers])),
        "kl/sequence_k3": _nats(np.array([answer.k3.sum() for answer in answers])),
        "kl/token": Metric(value=token, n=len(answers), stderr=stderr, unit="nats/token"),
    }


def _nats(values: np.ndarray) -> Metric:
    return Metric(value=float(values.mean()), n=len(values), values=values.tolist(), unit="nats")


def _ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float | None]:
    """The ratio of two sums, and its standard error by linearisation."""
    count, total = len(numerators), max(denominators.sum(), 1.0)
    ratio = float(numerators.sum() / total)
    if count < 2:
        return ratio, None
    spread = ((numerators - ratio * denominators) ** 2).sum()
    return ratio, float(np.sqrt(spread * count / (count - 1)) / total)
