"""Objectives on preference pairs in which the loss of one pair depends on the others of its batch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxalign.objectives.ranges import NonNegative, Positive, Range, Smoothing
from jaxalign.objectives.terms import (
    Pairs,
    at_least_float32,
    difference,
    fixed,
    log_ratios,
    logistic_loss,
    masked_mean,
    paired_output,
    present,
    running_mean,
    scaled,
    sigmoid,
)
from jaxalign.types import LossOutput, Pair

Share = Annotated[float, Range(ge=0.0, lt=1.0)]
SMALLEST_BETA = 1e-3  # of beta-DPO, in its authors' code


def aot(
    policy: Pairs,
    reference: Pairs,
    example_mask: Bool[Array, " B"] | None = None,
    *,
    beta: Positive = 0.01,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Alignment via Optimal Transport, paired: the policy's margins beat the reference's as a distribution.

    ::

      d    = sort(lp_w - lp_l) - sort(lr_w - lr_l)        the sorts over the global batch
      loss = -(1 - label_smoothing) * log sigmoid(beta * d) - label_smoothing * log sigmoid(-beta * d)

    DPO wants every pair's margin to grow. This wants the distribution of margins to dominate the reference's
    (stochastic dominance of first order): the smallest margin the smallest, the largest the largest. The loss of a
    rank belongs to the pair whose policy margin holds it, which is where its gradient goes. Where policy and
    reference agree, the loss is ``ln 2`` whatever the options.

    Names differ: this is TRL's ``aot``. In TRL before 0.28 the *other* form, `aot_unpaired`, is called ``aot_pair``.
    TRL sorts what one device holds, this function the global batch.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      example_mask: False where the batch has no example, ``[B]``; None = every one counts.
      beta: strength of the tie to the reference, per nat.
      label_smoothing: the share of preference labels assumed to be flipped (TRL's, not the paper's).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1 (0 where masked). Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Melnyk et al. 2024, arXiv 2406.05882 (checked against TRL, not against the paper).

    Example:
      Policy margins 3 and -1, reference margins 2 and 0. The pair with 3 meets the larger one, 2, though that is the
      other pair's: ``log(1 + exp(-0.1))``. The pair with -1 meets 0: ``log(1 + exp(0.1))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0, -12.0]), jnp.array([-13.0, -11.0]))
      >>> reference = Pair(jnp.array([-12.0, -10.0]), jnp.array([-12.0, -12.0]))
      >>> [round(loss, 4) for loss in aot(policy, reference, beta=0.1).losses.tolist()]
      [0.6444, 0.7444]
    """
    lp = Pair(at_least_float32(policy.chosen), at_least_float32(policy.rejected))
    counted = present(example_mask, lp.chosen)
    margins = difference(_only(counted, lp))
    others = difference(_only(counted, Pair(fixed(reference.chosen), fixed(reference.rejected))))
    losses = logistic_loss(beta * (margins - _of_the_same_rank(others, margins, counted)), label_smoothing)
    output = paired_output(losses, rewards=scaled(beta, log_ratios(policy, reference)), policy=policy)
    return replace(output, weights=counted.astype(losses.dtype))


def aot_unpaired(
    policy: Pairs,
    reference: Pairs,
    example_mask: Bool[Array, " B"] | None = None,
    *,
    beta: Positive = 0.01,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Alignment via Optimal Transport, unpaired: the chosen log-ratios beat the rejected ones as a distribution.

    ::

      rho  = lp - lr
      d    = sort(rho_w) - sort(rho_l)        the sorts over the global batch
      loss = -(1 - label_smoothing) * log sigmoid(beta * d) - label_smoothing * log sigmoid(-beta * d)

    Which completion was rejected for which does not matter, only the two sets. The loss of a rank is counted for the
    pair whose chosen completion holds it; its gradient also goes to the rejected completion of that rank, which may
    belong to another pair. With a batch of one pair this is DPO. Where policy and reference agree, the loss is
    ``ln 2`` whatever the options.

    Names differ: this is TRL's ``aot_unpaired``, and in TRL before 0.28 ``aot_pair``. TRL sorts what one device
    holds, this function the global batch.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      example_mask: False where the batch has no example, ``[B]``; None = every one counts.
      beta: strength of the tie to the reference, per nat.
      label_smoothing: the share of preference labels assumed to be flipped (TRL's, not the paper's).

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1 (0 where masked). Rewards in the metrics are ``beta * (lp - lr)``.

    References:
      Melnyk et al. 2024, arXiv 2406.05882 (checked against TRL, not against the paper).

    Example:
      Chosen log-ratios 2 and -2, rejected ones -1 and 1. The first pair's 2 meets the larger, 1:
      ``log(1 + exp(-0.1))``; -2 meets -1: ``log(1 + exp(0.1))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0, -12.0]), jnp.array([-13.0, -11.0]))
      >>> reference = Pair(jnp.array([-12.0, -10.0]), jnp.array([-12.0, -12.0]))
      >>> [round(loss, 4) for loss in aot_unpaired(policy, reference, beta=0.1).losses.tolist()]
      [0.6444, 0.7444]
    """
    ratios = log_ratios(policy, reference)
    counted = present(example_mask, ratios.chosen)
    sides = _only(counted, ratios)
    losses = logistic_loss(
        beta * (sides.chosen - _of_the_same_rank(sides.rejected, sides.chosen, counted)), label_smoothing
    )
    output = paired_output(losses, rewards=scaled(beta, ratios), policy=policy)
    return replace(output, weights=counted.astype(losses.dtype))


def beta_dpo(
    policy: Pairs,
    reference: Pairs,
    keys: Key[Array, " B"],
    state: Mapping[str, Float[Array, ""]],
    example_mask: Bool[Array, " B"] | None = None,
    *,
    beta: Positive = 0.1,
    scaling_factor: NonNegative = 0.6,
    filtering_ratio: Share = 0.2,
    momentum: Share = 0.9,
) -> LossOutput:
    """DPO with a dynamic beta: each batch gets its own, by how far apart its pairs are, and loses its outliers.

    ::

      Delta = (lp_w - lr_w) - (lp_l - lr_l)
      M     = momentum * M + (1 - momentum) * mean(Delta)        S likewise, of the standard deviation
      kept  = (1 - filtering_ratio) * B pairs, drawn without replacement with weights exp(-((Delta - M) / S)^2 / 2)
      beta' = max(0.001, beta * (1 + scaling_factor * (mean(Delta of the kept) - M)))
      loss  = -log sigmoid(beta' * Delta)        of the kept pairs; the others weigh 0

    Pairs that are further apart than usual say little and get a larger beta, hence less change. Only `Delta` in the
    loss carries a gradient: the statistics, the draw and ``beta'`` do not. With ``scaling_factor=0`` and
    ``filtering_ratio=0`` this is DPO.

    As in the authors' code, M and S start at 0, take in the batch before they are used, and S is the square root of
    the unbiased variance. The number of kept pairs is rounded down, here to no less than 1. The draw is exact (Gumbel
    top-k), also where all weights would underflow, as in the first steps, when S is still small. If S is 0, as it is
    where policy and reference agree on every pair, the authors' weights are 0/0; here all pairs are equally likely.
    The authors divide by the number of kept pairs on each device, this function by that of the global batch.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      keys: random keys, ``[B]``, for the draw.
      state: ``mean`` and ``std``, the M and S before this batch, nats.
      example_mask: False where the batch has no example, ``[B]``; None = every one counts.
      beta: beta of a batch whose pairs are as far apart as usual, per nat.
      scaling_factor: the authors' ``a``, per nat.
      filtering_ratio: share of the pairs to leave out.
      momentum: share of the old M and S in the new ones.

    Returns:
      Losses in nats, ``[B]``; the kept pairs weigh 1, the others 0. Rewards in the metrics are ``beta * (lp - lr)``
      with the fixed beta, as in the authors' code; ``beta`` is ``beta'`` and ``kept`` is 1 or 0. All pairs count in
      the metrics. State: the new M and S.

    References:
      Wu et al. 2024, arXiv 2407.08639 (checked against the authors' code, not against the paper).

    Example:
      Deltas of 1 and 3: ``M = 0.9 * 1 + 0.1 * 2 = 1.1``. All are kept, so ``beta' = 0.1 * (1 + 0.6 * (2 - 1.1)) =
      0.154`` and the losses are ``log(1 + exp(-0.154))`` and ``log(1 + exp(-0.462))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0, -9.0]), jnp.array([-11.0, -12.0]))
      >>> zeros = jnp.zeros(2)
      >>> keys, state = jax.random.split(jax.random.key(0), 2), {"mean": jnp.array(1.0), "std": jnp.array(1.0)}
      >>> output = beta_dpo(policy, Pair(zeros, zeros), keys, state, filtering_ratio=0.0)
      >>> [round(loss, 4) for loss in output.losses.tolist()], round(output.state["mean"].item(), 4)
      ([0.6191, 0.4886], 1.1)
    """
    ratios = log_ratios(policy, reference)
    counted = present(example_mask, ratios.chosen)
    delta = difference(_only(counted, ratios))
    apart, count = fixed(delta), counted.sum().astype(jnp.float32)

    batch_mean = masked_mean(apart, counted)
    variance = jnp.where(counted, (apart - batch_mean) ** 2, 0.0).sum() / jnp.maximum(count - 1.0, 1.0)
    mean = momentum * fixed(state["mean"]) + (1.0 - momentum) * batch_mean
    std = momentum * fixed(state["std"]) + (1.0 - momentum) * jnp.sqrt(variance)

    # S > 0 unless all pairs are alike; the bound only turns 0/0 into 0.
    log_weights = -0.5 * ((apart - mean) / jnp.maximum(std, 1e-6)) ** 2
    # The small number keeps 10 * 0.9 at 9 whatever float32 makes of it.
    keep = jnp.maximum(jnp.floor(count * (1.0 - filtering_ratio) + 1e-3), 1.0)
    kept = _drawn(keys, log_weights, counted, keep.astype(jnp.int32))
    batch_beta = jnp.maximum(beta * (1.0 + scaling_factor * (masked_mean(apart, kept) - mean)), SMALLEST_BETA)

    losses = logistic_loss(batch_beta * delta)
    weights = kept.astype(losses.dtype)
    rewards = scaled(beta, ratios)
    output = paired_output(losses, rewards=rewards, policy=policy, beta=jnp.full_like(losses, batch_beta), kept=weights)
    return replace(output, weights=weights, state={"mean": mean, "std": std})


def bco_pair(
    policy: Pairs,
    reference: Pairs,
    state: Mapping[str, Float[Array, ""]],
    example_mask: Bool[Array, " B"] | None = None,
    *,
    beta: Positive = 0.1,
) -> LossOutput:
    """Binary Classifier Optimization on pairs: tells chosen from rejected completions by their rewards, each alone.

    ::

      m    = beta * (lp - lr)
      d    = mean of all m so far, this batch's included
      loss = -log sigmoid(m_w - d) - log sigmoid(-(m_l - d))

    The reward shift ``d`` carries no gradient. Where policy and reference agree and always have, the loss is
    ``2 ln 2``. MPO (arXiv 2411.10442) adds it to DPO and to the negative log-likelihood.

    Versions disagree: TRL before 0.29 has the shift, TRL since has dropped it, which is `nca_pair` with
    ``noise_share=0``. TRL's mean counts every batch of a device once, this one every pair once: the same where
    batches are of one size.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      state: ``mean``, the d before this batch, and ``count``, how many pairs it has seen.
      example_mask: False where the batch has no example, ``[B]``; None = every one counts.
      beta: strength of the tie to the reference, per nat.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1 (0 where masked). Rewards in the metrics are ``m``; ``delta`` is
      d. State: the new mean and count.

    References:
      Jung et al. 2024, arXiv 2404.04656 (checked against TRL, not against the paper).

    Example:
      ``m_w = 0.2``, ``m_l = -0.4``, so d is their mean, -0.1: ``log(1 + exp(-0.3)) + log(1 + exp(-0.3))``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-16.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> start = {"mean": jnp.array(0.0), "count": jnp.array(0.0)}
      >>> round(bco_pair(policy, reference, start, beta=0.1).losses.item(), 4)
      1.1087
    """
    ratios = log_ratios(policy, reference)
    counted = present(example_mask, ratios.chosen)
    rewards = scaled(beta, _only(counted, ratios))
    after = running_mean(state, 0.5 * (rewards.chosen + rewards.rejected), counted)
    delta = after["mean"]
    losses = logistic_loss(rewards.chosen - delta) + logistic_loss(delta - rewards.rejected)
    output = paired_output(losses, rewards=scaled(beta, ratios), policy=policy, delta=jnp.full_like(losses, delta))
    return replace(output, weights=counted.astype(losses.dtype), state=after)


def kto_pair(
    policy: Pairs,
    reference: Pairs,
    example_mask: Bool[Array, " B"] | None = None,
    *,
    beta: Positive = 0.1,
) -> LossOutput:
    """KTO on pairs as TRL had it in early 2024: each completion against the batch's completions of the other kind.

    ::

      rho  = lp - lr
      z_w  = max(0, mean of rho_w over the global batch)        z_l likewise, of rho_l
      loss = ((1 - sigmoid(beta * (rho_w - z_l))) + (1 - sigmoid(beta * (z_w - rho_l)))) / 2

    This is what studies of that time may have run under the name KTO; new work should take `kto`, which measures the
    reference point on mismatched completions. Unlike there, the reference points carry a gradient: no copy of that
    code detaches them. Where policy and reference agree, the loss is one half.

    The half makes the batch's mean that of both kinds together, as in TRL. TRL took the means over what one device
    held, this function over the global batch.

    Args:
      policy: summed log-probabilities of the two completions, nats, ``[B]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      example_mask: False where the batch has no example, ``[B]``; None = every one counts.
      beta: strength of the tie to the reference, per nat.

    Returns:
      Losses between 0 and 1, ``[B]``; every pair weighs 1 (0 where masked). Rewards in the metrics are
      ``beta * (lp - lr)``; ``kl/chosen`` is z_w and ``kl/rejected`` z_l, nats.

    References:
      Ethayarajh et al. 2024, arXiv 2402.01306, has no such form: this is ``kto_pair`` of TRL's DPOTrainer.

    Example:
      Log-ratios 2 and -1: ``z_w = 2`` and ``z_l = max(0, -1) = 0``. Both distances are positive:
      ``(sigmoid(-0.1 * (2 - 0)) + sigmoid(-0.1 * (2 + 1))) / 2``.

      >>> import jax.numpy as jnp
      >>> policy = Pair(jnp.array([-10.0]), jnp.array([-13.0]))
      >>> reference = Pair(jnp.array([-12.0]), jnp.array([-12.0]))
      >>> round(kto_pair(policy, reference, beta=0.1).losses.item(), 4)
      0.4379
    """
    ratios = log_ratios(policy, reference)
    counted = present(example_mask, ratios.chosen)
    sides = _only(counted, ratios)
    kl = Pair(_clamped(masked_mean(sides.chosen, counted)), _clamped(masked_mean(sides.rejected, counted)))
    losses = 0.5 * (sigmoid(-beta * (sides.chosen - kl.rejected)) + sigmoid(-beta * (kl.chosen - sides.rejected)))
    output = paired_output(
        losses,
        rewards=scaled(beta, ratios),
        policy=policy,
        **{"kl/chosen": jnp.full_like(losses, kl.chosen), "kl/rejected": jnp.full_like(losses, kl.rejected)},
    )
    return replace(output, weights=counted.astype(losses.dtype))


def _only(counted: Bool[Array, " B"], pair: Pairs) -> Pairs:
    """The values of the examples that count, 0 for the others, whatever they hold."""
    return Pair(jnp.where(counted, pair.chosen, 0.0), jnp.where(counted, pair.rejected, 0.0))


def _of_the_same_rank(
    others: Float[Array, " B"], values: Float[Array, " B"], counted: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """For each of `values`, that of `others` which holds the same rank among those that count; ``[B]``."""
    rank = jnp.argsort(_order(values, counted))
    return others[_order(others, counted)[rank]]


def _order(values: Float[Array, " B"], counted: Bool[Array, " B"]) -> Int[Array, " B"]:
    """The index that sorts `values`, those that do not count behind the others."""
    return jnp.argsort(jnp.where(counted, fixed(values), jnp.inf))


def _drawn(
    keys: Key[Array, " B"], log_weights: Float[Array, " B"], counted: Bool[Array, " B"], number: Int[Array, ""]
) -> Bool[Array, " B"]:
    """True for `number` examples, drawn one by one in proportion to their weights, without replacement.

    Adding Gumbel noise to the log-weights and taking the largest does just that (the Gumbel top-k trick), and each
    example's noise comes from its own key, so that it does not depend on its neighbours.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (), jnp.float32))(keys)
    largest = jnp.where(counted, log_weights, -jnp.inf).max()
    scores = jnp.where(counted, log_weights - largest + noise, -jnp.inf)
    return counted & (jnp.argsort(jnp.argsort(-scores)) < number)


def _clamped(value: Float[Array, ""]) -> Float[Array, ""]:
    """``max(value, 0)`` with a slope of 1 at 0, as torch has it: KTO on pairs starts there."""
    return jnp.where(value >= 0.0, value, 0.0)
