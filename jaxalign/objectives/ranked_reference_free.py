"""Objectives on K scored completions of a prompt that need no reference policy."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.objectives.ranges import NonNegative, Positive, Smoothing
from jaxalign.objectives.ranked_terms import beats, best, existing, mean_over, only, ranked_output
from jaxalign.objectives.terms import fixed, logistic_loss, negative_log_likelihood
from jaxalign.types import LossOutput

RankedNormalization = Literal["tokens", "sum"]
"""There is no ``"batch_tokens"``: the mean length of a batch's best completions is not among the inputs."""


def rrhf(
    policy: Float[Array, "B K"],
    scores: Float[Array, "B K"],
    lengths: Float[Array, "B K"],
    *,
    nll_coefficient: NonNegative = 1.0,
    nll_normalization: RankedNormalization = "sum",
) -> LossOutput:
    """Rank Responses to align Human Feedback: every pair in the wrong order costs its distance.

    ::

      loss = sum over pairs with score_i < score_j of max(0, avg.lp_i - avg.lp_j) + nll_coefficient * nll

      nll  = -lp_best        "sum"
             -avg.lp_best    "tokens"

    There is no margin: a pair in the right order costs nothing, so where all are, only the likelihood of the best
    completion is left. Completions with equal scores are not compared; where several are best, `nll` is their mean.

    Paper and code disagree: the paper adds the two terms, the second a sum over the completion (from memory, not
    verified against the paper), which is the default here. The authors' code weighs the ranking term 100 times and
    averages the second over the padded length: ``"tokens"`` with a coefficient of 0.01 is near to it.

    Args:
      policy: mean log-probability per token of the completions, nats per token, ``[B, K]``.
      scores: the data's score of each completion, higher is better, ``[B, K]``.
      lengths: scored tokens, ``[B, K]``; 0 where there is no such completion.
      nll_coefficient: weight of the likelihood term.
      nll_normalization: how the likelihood term is divided.

    Returns:
      Losses, ``[B]``; every example weighs 1. Rewards in the metrics are ``avg.lp``, and ``logps/*`` are means per
      token; chosen and rejected are the completions with the highest and the lowest score; ``nll_loss`` is the
      likelihood term before its coefficient.

    Raises:
      ValueError: `nll_normalization` is none of the two.

    References:
      Yuan et al. 2023, arXiv 2304.05302.

    Example:
      Scores 3, 2, 1 with -2, -1, -1.5 nats per token: both others are ahead of the best, by 1 and 0.5, and 4 tokens
      hold 8 nats: ``1.5 + 8``.

      >>> import jax.numpy as jnp
      >>> policy, scores = jnp.array([[-2.0, -1.0, -1.5]]), jnp.array([[3.0, 2.0, 1.0]])
      >>> rrhf(policy, scores, jnp.array([[4.0, 4.0, 4.0]])).losses.item()
      9.5
    """
    exists = existing(lengths)
    avg = only(policy, exists)
    behind = jax.nn.relu(avg[:, None, :] - avg[:, :, None])  # [b, i, j]: how far j is ahead of i
    ranking = jnp.where(beats(scores, exists), behind, 0.0).sum((1, 2))
    nll = mean_over(_nll(avg * fixed(lengths), lengths, nll_normalization), best(scores, exists))
    losses = ranking + nll_coefficient * nll
    return ranked_output(losses, rewards=avg, policy=policy, scores=scores, exists=exists, nll_loss=nll)


def tpo(
    policy: Float[Array, "B K"],
    scores: Float[Array, "B K"],
    lengths: Float[Array, "B K"],
    *,
    beta: Positive = 0.01,
    nll_coefficient: NonNegative = 1.0,
    nll_normalization: RankedNormalization = "tokens",
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Triple Preference Optimization: imitate the best completion, prefer the second to the worst.

    ::

      h    = beta * (lp_second - lp_worst)
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h) + nll_coefficient * nll

      nll  = -lp_best / |y_best|    "tokens"
             -lp_best               "sum"

    The best completion (the authors' "gold" or "reference" response, which has nothing to do with a reference policy)
    is only imitated, so that imitation and preference do not pull at the same tokens. Completions in between are not
    used. Where scores tie, the completion that is listed first counts as the better one. An example with two
    completions compares the best with the worst, as CPO does; one with a single completion is only imitated.

    Paper and code: the likelihood term of the authors' code and of TRL is the mean over all gold tokens of the batch;
    here every gold completion counts the same. For completions of equal length that is the same.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B, K]``.
      scores: the data's score of each completion, higher is better, ``[B, K]``.
      lengths: scored tokens, ``[B, K]``; 0 where there is no such completion.
      beta: scale of the preference margin, per nat.
      nll_coefficient: the paper's alpha: weight of the likelihood term.
      nll_normalization: how the likelihood term is divided.
      label_smoothing: the share of preference labels assumed to be flipped (in TRL's code).

    Returns:
      Losses, ``[B]``; every example weighs 1. Rewards in the metrics are ``beta * lp``; as in every ranked method,
      chosen and rejected are the best and the worst completion (TRL reports the second as chosen); ``nll_loss`` is the
      likelihood term before its coefficient.

    Raises:
      ValueError: `nll_normalization` is none of the two.

    References:
      Saeidi et al. 2024, arXiv 2405.16681.

    Example:
      The second leads the worst by 4 nats, the best has 8 nats over 4 tokens: ``log(1 + exp(-0.4)) + 2``.

      >>> import jax.numpy as jnp
      >>> policy, scores = jnp.array([[-9.0, -8.0, -13.0]]), jnp.array([[4.0, 5.0, 1.0]])
      >>> round(tpo(policy, scores, jnp.array([[4.0, 4.0, 4.0]]), beta=0.1).losses.item(), 4)
      2.513
    """
    exists = existing(lengths)
    lp = only(policy, exists)
    margin, nll = _triple(lp, _nll(lp, lengths, nll_normalization), scores, exists)
    losses = logistic_loss(beta * margin, label_smoothing) + nll_coefficient * nll
    return ranked_output(losses, rewards=beta * lp, policy=policy, scores=scores, exists=exists, nll_loss=nll)


def tpo_l(
    policy: Float[Array, "B K"],
    scores: Float[Array, "B K"],
    lengths: Float[Array, "B K"],
    *,
    beta: Positive = 2.0,
    gamma_beta_ratio: NonNegative = 0.8,
    nll_coefficient: NonNegative = 0.05,
    nll_normalization: RankedNormalization = "tokens",
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """TPO-L: TPO with mean log-probabilities and a target margin, as in SimPO.

    ::

      h    = beta * (avg.lp_second - avg.lp_worst) - gamma,    gamma = beta * gamma_beta_ratio
      loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h) + nll_coefficient * nll

      nll  = -avg.lp_best    "tokens"
             -lp_best        "sum"

    On the three completions, on ties and on examples with fewer, and on the likelihood term, see `tpo`. The defaults
    are the authors' for Mistral-7B base (beta 2, gamma 1.6, alpha 0.05); for Llama-3 instruct they take 10, 3, 0.05.

    Args:
      policy: mean log-probability per token of the completions, nats per token, ``[B, K]``.
      scores: the data's score of each completion, higher is better, ``[B, K]``.
      lengths: scored tokens, ``[B, K]``; 0 where there is no such completion.
      beta: scale of the reward, per (nat per token).
      gamma_beta_ratio: target margin ``gamma / beta`` in nats per token; the authors' option is ``gamma``.
      nll_coefficient: the paper's alpha: weight of the likelihood term.
      nll_normalization: how the likelihood term is divided.
      label_smoothing: the share of preference labels assumed to be flipped (in TRL's code).

    Returns:
      Losses, ``[B]``; every example weighs 1. Rewards in the metrics are ``beta * avg.lp``, and ``logps/*`` are means
      per token; chosen and rejected are the best and the worst completion; ``nll_loss`` is the likelihood term before
      its coefficient.

    Raises:
      ValueError: `nll_normalization` is none of the two.

    References:
      Saeidi et al. 2024, arXiv 2405.16681.

    Example:
      ``h = 2 * (-1 - -1.5) - 2 * 0.5 = 0`` costs ``ln 2``; the best has 3 nats per token, of which 0.05 count.

      >>> import jax.numpy as jnp
      >>> policy, scores = jnp.array([[-1.0, -3.0, -1.5]]), jnp.array([[4.0, 5.0, 1.0]])
      >>> round(tpo_l(policy, scores, jnp.array([[4.0, 4.0, 4.0]]), gamma_beta_ratio=0.5).losses.item(), 4)
      0.8431
    """
    exists = existing(lengths)
    avg = only(policy, exists)
    margin, nll = _triple(avg, _nll(avg * fixed(lengths), lengths, nll_normalization), scores, exists)
    losses = logistic_loss(beta * (margin - gamma_beta_ratio), label_smoothing) + nll_coefficient * nll
    return ranked_output(losses, rewards=beta * avg, policy=policy, scores=scores, exists=exists, nll_loss=nll)


def _nll(
    sums: Float[Array, "B K"], lengths: Float[Array, "B K"], normalization: RankedNormalization
) -> Float[Array, "B K"]:
    """The negative log-likelihood of every completion, ``[B, K]``."""
    if normalization not in ("tokens", "sum"):
        raise ValueError(f"nll_normalization: got {normalization!r}, expected 'tokens' or 'sum'.")
    return negative_log_likelihood(sums.ravel(), lengths.ravel(), None, normalization).reshape(sums.shape)


def _triple(
    values: Float[Array, "B K"], nll: Float[Array, "B K"], scores: Float[Array, "B K"], exists: Bool[Array, "B K"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Value of the second minus that of the worst completion, and the best's `nll`, ``[B]`` each.

    The first listed wins a tie. With fewer than three completions the best is also the second.
    """
    scores = only(fixed(scores), exists)
    place = jnp.arange(scores.shape[1])
    tie = exists[:, :, None] & exists[:, None, :] & (scores[:, :, None] == scores[:, None, :])
    before = beats(scores, exists) | (tie & (place[:, None] < place[None, :]))  # [b, i, j]: i stands before j
    rank = before.sum(1)
    count = exists.sum(-1, keepdims=True)
    second, last = jnp.where(count > 2, 1, 0), count - 1
    margin = mean_over(values, exists & (rank == second)) - mean_over(values, exists & (rank == last))
    return margin, mean_over(nll, exists & (rank == 0))
