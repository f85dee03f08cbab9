"""Objectives on K scored completions of a prompt that are measured against a reference policy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.objectives.ranges import Positive
from jaxalign.objectives.ranked_terms import (
    beats,
    existing,
    log_softmax_over,
    log_targets,
    mean_over,
    only,
    ranked_output,
)
from jaxalign.objectives.terms import fixed
from jaxalign.types import LossOutput


def info_nca(
    policy: Float[Array, "B K"],
    reference: Float[Array, "B K"],
    scores: Float[Array, "B K"],
    lengths: Float[Array, "B K"],
    *,
    beta: Positive = 0.01,
    temperature: Positive = 1e-4,
) -> LossOutput:
    """InfoNCA: cross-entropy from the softmax of the data's scores to the softmax of the implicit rewards.

    ::

      m_k  = beta * (lp_k - lr_k)
      q    = softmax(scores / temperature)
      loss = -sum_k q_k * log softmax(m)_k

    With two completions and a small temperature it is DPO. Only differences of rewards count, as in DPO, so the
    probability of the best completion may fall as long as that of the others falls faster; `nca` prevents that.

    The default temperature is that of the authors' configuration for UltraFeedback, whose scores are steps of half a
    point and more: all weight lies on the best completion. A larger one, of the size of typical differences of scores,
    also uses how much better the others are. The authors' code adds 0.01 to the score of the completion listed first
    (in their data the best), so that it wins ties; here completions with equal scores have equal weight.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B, K]``.
      reference: the same of the reference policy; no gradient flows into it.
      scores: the data's score of each completion, higher is better, ``[B, K]``; its unit is that of `temperature`.
      lengths: scored tokens, ``[B, K]``; 0 where there is no such completion.
      beta: strength of the tie to the reference, per nat.
      temperature: the paper's alpha: by how much scores must differ to make a difference.

    Returns:
      Losses in nats, ``[B]``; every example weighs 1. Rewards in the metrics are ``m``; chosen and rejected are the
      completions with the highest and the lowest score.

    References:
      Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv 2402.05369.

    Example:
      Targets of 2/3 and 1/3, rewards ``ln 3`` apart (3/4 and 1/4): ``-2/3 log(3/4) - 1/3 log(1/4)``.

      >>> import jax.numpy as jnp
      >>> policy, reference = jnp.array([[-9.0, -9.0]]), jnp.array([[-9.0 - jnp.log(3.0), -9.0]])
      >>> scores, lengths = jnp.array([[jnp.log(2.0), 0.0]]), jnp.array([[4.0, 4.0]])
      >>> round(info_nca(policy, reference, scores, lengths, beta=1.0, temperature=1.0).losses.item(), 4)
      0.6539
    """
    exists = existing(lengths)
    rewards = beta * (only(policy, exists) - only(fixed(reference), exists))
    targets = jnp.exp(log_targets(scores, exists, temperature))
    losses = -only(targets * log_softmax_over(rewards, exists), exists).sum(-1)
    return ranked_output(losses, rewards=rewards, policy=policy, scores=scores, exists=exists)


def nca(
    policy: Float[Array, "B K"],
    reference: Float[Array, "B K"],
    scores: Float[Array, "B K"],
    lengths: Float[Array, "B K"],
    *,
    beta: Positive = 0.01,
    temperature: Positive = 1e-4,
) -> LossOutput:
    """Noise Contrastive Alignment on K scored completions: each is told from noise, weighted by its score.

    ::

      m_k  = beta * (lp_k - lr_k)
      q    = softmax(scores / temperature)
      loss = -sum_k q_k * log sigmoid(m_k) - (1/K) * sum_k log sigmoid(-m_k)

    K is the number of completions that the example has. Unlike `info_nca` it bounds each reward by itself: the first
    sum raises good completions above the reference, the second lowers all of them, so that the best one's probability
    does not fall. Where policy and reference agree the loss is ``2 ln 2``.

    With two completions and a small temperature it is `nca_pair`. On the default temperature and on ties, see
    `info_nca`. The authors' code averages the second sum over the batch before it adds the first; the mean is the same.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B, K]``.
      reference: the same of the reference policy; no gradient flows into it.
      scores: the data's score of each completion, higher is better, ``[B, K]``; its unit is that of `temperature`.
      lengths: scored tokens, ``[B, K]``; 0 where there is no such completion.
      beta: strength of the tie to the reference, per nat.
      temperature: the paper's alpha: by how much scores must differ to make a difference.

    Returns:
      Losses in nats, ``[B]``; every example weighs 1. Rewards in the metrics are ``m``; chosen and rejected are the
      completions with the highest and the lowest score.

    References:
      Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv 2402.05369.

    Example:
      Rewards ``ln 3`` and 0 have sigmoids 3/4 and 1/2; all weight is on the first: ``-log(3/4) - (log(1/4) + log(1/2))
      / 2``.

      >>> import jax.numpy as jnp
      >>> policy, reference = jnp.array([[-9.0, -9.0]]), jnp.array([[-9.0 - jnp.log(3.0), -9.0]])
      >>> scores, lengths = jnp.array([[5.0, 4.0]]), jnp.array([[4.0, 4.0]])
      >>> round(nca(policy, reference, scores, lengths, beta=1.0).losses.item(), 4)
      1.3274
    """
    exists = existing(lengths)
    rewards = beta * (only(policy, exists) - only(fixed(reference), exists))
    targets = jnp.exp(log_targets(scores, exists, temperature))
    losses = only(targets * jax.nn.softplus(-rewards), exists).sum(-1) + mean_over(jax.nn.softplus(rewards), exists)
    return ranked_output(losses, rewards=rewards, policy=policy, scores=scores, exists=exists)


def plackett_luce(
    policy: Float[Array, "B K"],
    reference: Float[Array, "B K"],
    scores: Float[Array, "B K"],
    lengths: Float[Array, "B K"],
    *,
    beta: Positive = 0.1,
) -> LossOutput:
    """DPO on a whole ranking: the Plackett-Luce negative log-likelihood of the order of the scores.

    ::

      m_k  = beta * (lp_k - lr_k)
      loss = -sum_k log( exp(m_k) / (exp(m_k) + sum of exp(m_j) over the completions j with lower scores) )

    The best completion is drawn from all, the second from the rest, and so on. With two completions it is DPO. Only
    the order of the scores counts. Completions with equal scores are not compared with each other: neither stands in
    the other's sum. Where policy and reference agree, the loss of K different scores is ``log(K!)``.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B, K]``.
      reference: the same of the reference policy; no gradient flows into it.
      scores: the data's score of each completion, higher is better, ``[B, K]``.
      lengths: scored tokens, ``[B, K]``; 0 where there is no such completion.
      beta: strength of the tie to the reference, per nat.

    Returns:
      Losses in nats, ``[B]``; every example weighs 1. Rewards in the metrics are ``m``; chosen and rejected are the
      completions with the highest and the lowest score.

    References:
      Rafailov et al. 2023, arXiv 2305.18290, appendix A.3 (without ties).

    Example:
      Rewards ``ln 2``, 0, 0 in the order of the scores: 2/4 for the first place and 1/2 for the second, ``log 4``.

      >>> import jax.numpy as jnp
      >>> policy, reference = jnp.array([[-9.0, -9.0, -9.0]]), jnp.array([[-9.0 - jnp.log(2.0), -9.0, -9.0]])
      >>> scores, lengths = jnp.array([[5.0, 4.0, 1.0]]), jnp.array([[4.0, 4.0, 4.0]])
      >>> round(plackett_luce(policy, reference, scores, lengths, beta=1.0).losses.item(), 4)
      1.3863
    """
    exists = existing(lengths)
    rewards = beta * (only(policy, exists) - only(fixed(reference), exists))
    itself = jnp.eye(exists.shape[1], dtype=bool)
    field = beats(scores, exists) | (exists[:, :, None] & itself)  # [b, i, j]: j runs for the place that i takes
    runs = log_softmax_over(jnp.broadcast_to(rewards[:, None, :], field.shape), field)
    losses = -jnp.where(itself, runs, 0.0).sum((1, 2))
    return ranked_output(losses, rewards=rewards, policy=policy, scores=scores, exists=exists)


def exo_list(
    policy: Float[Array, "B K"],
    reference: Float[Array, "B K"],
    scores: Float[Array, "B K"],
    lengths: Float[Array, "B K"],
    *,
    beta: Positive = 0.1,
    temperature: Positive = 0.1,
) -> LossOutput:
    """Efficient Exact Optimization on K scored completions: reverse KL from the policy's preferences to the data's.

    ::

      p    = softmax(beta * (lp - lr))
      q    = softmax(scores / temperature)
      loss = sum_k p_k * (log p_k - log q_k)

    Cross-entropy to q (`info_nca`) is the forward KL, which spreads the policy over everything that q supports; the
    reverse KL seeks its modes, as the reward-maximising policy does. The loss is 0 exactly where ``p = q``. Completions
    with equal scores have equal weight in q.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B, K]``.
      reference: the same of the reference policy; no gradient flows into it.
      scores: the data's score of each completion, higher is better, ``[B, K]``; its unit is that of `temperature`.
      lengths: scored tokens, ``[B, K]``; 0 where there is no such completion.
      beta: the paper's beta_pi: strength of the tie to the reference, per nat.
      temperature: the paper's beta_r: by how much scores must differ to make a difference. The authors take 0.1 or 0.5
        for the scores of their reward model.

    Returns:
      Losses in nats, ``[B]``; every example weighs 1. Rewards in the metrics are ``beta * (lp - lr)``; chosen and
      rejected are the completions with the highest and the lowest score.

    References:
      Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", arXiv 2402.00856.

    Example:
      The policy prefers with 1/2 and 1/2, the data with 2/3 and 1/3: ``(log(3/4) + log(3/2)) / 2``.

      >>> import jax.numpy as jnp
      >>> policy, lengths = jnp.array([[-9.0, -7.0]]), jnp.array([[4.0, 4.0]])
      >>> scores = jnp.array([[jnp.log(2.0), 0.0]])
      >>> round(exo_list(policy, policy, scores, lengths, temperature=1.0).losses.item(), 4)
      0.0589
    """
    exists = existing(lengths)
    rewards = beta * (only(policy, exists) - only(fixed(reference), exists))
    log_p = log_softmax_over(rewards, exists)
    log_q = log_targets(scores, exists, temperature)
    losses = only(jnp.exp(log_p) * (log_p - log_q), exists).sum(-1)
    return ranked_output(losses, rewards=rewards, policy=policy, scores=scores, exists=exists)


def sppo_ranked(
    policy: Float[Array, "B K"],
    reference: Float[Array, "B K"],
    win_probabilities: Float[Array, "B K"],
    lengths: Float[Array, "B K"],
    *,
    beta: Positive = 1e-3,
) -> LossOutput:
    """SPPO on all of a prompt's completions: each log-ratio is drawn to its own win probability.

    ::

      loss = (1/K) * sum_k ( (lp_k - lr_k) - (P_k - 1/2) / beta )^2

    ``P_k`` is the probability that completion k beats a completion of the policy being trained (its last iterate, which
    is also the reference), as a preference model estimates it, for instance over the K completions sampled together. K
    is the number of completions that the example has. The paper minimises this over all sampled completions; the
    authors' code keeps the best and the worst of them, which is `sppo_soft`.

    Args:
      policy: summed log-probabilities of the completions, nats, ``[B, K]``.
      reference: the same of the reference policy; no gradient flows into it.
      win_probabilities: ``P_k``, from 0 to 1, ``[B, K]``.
      lengths: scored tokens, ``[B, K]``; 0 where there is no such completion.
      beta: the paper's ``1 / eta``: a win probability of 1 asks for ``1 / (2 beta)`` nats above the reference.

    Returns:
      Losses in nats^2, ``[B]``; every example weighs 1. Rewards in the metrics are ``beta * (lp - lr)``; chosen and
      rejected are the completions with the highest and the lowest win probability.

    References:
      Wu et al. 2024, arXiv 2405.00675.

    Example:
      At beta 0.1 the targets are 2 and -1 nats; the log-ratios are 1 and 0: ``(1 + 1) / 2``.

      >>> import jax.numpy as jnp
      >>> policy, reference = jnp.array([[-9.0, -7.0]]), jnp.array([[-10.0, -7.0]])
      >>> wins, lengths = jnp.array([[0.7, 0.4]]), jnp.array([[4.0, 4.0]])
      >>> round(sppo_ranked(policy, reference, wins, lengths, beta=0.1).losses.item(), 4)
      1.0
    """
    exists = existing(lengths)
    ratios = only(policy, exists) - only(fixed(reference), exists)
    wins = only(fixed(win_probabilities), exists)
    losses = mean_over((ratios - (wins - 0.5) / beta) ** 2, exists)
    return ranked_output(losses, rewards=beta * ratios, policy=policy, scores=wins, exists=exists)
