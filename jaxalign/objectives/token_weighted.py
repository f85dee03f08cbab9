"""DPO on sums of weighted tokens: the tail counts less, as many tokens of both, weights from the data.

The same weights apply to any other method by `jaxalign.combinators`, in a configuration as ``ld(...)``,
``sampled(...)`` and ``weighted(...)``.
"""

from jaxtyping import Array, Key

from jaxalign.objectives.paired import dpo
from jaxalign.objectives.ranges import Fraction, Positive, Smoothing
from jaxalign.objectives.token_terms import TokenMasks, TokenPairs, drawn_tokens, tail_weights, token_sums
from jaxalign.types import LossOutput


def ld_dpo(
    policy: TokenPairs,
    reference: TokenPairs,
    token_mask: TokenMasks,
    *,
    beta: Positive = 0.1,
    alpha: Fraction = 0.5,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """Length-desensitised DPO: the tokens that only the longer completion has room for count less.

    ::

      m     = min(|y_w|, |y_l|)
      lp(y) = sum over t <= m of log p_t + alpha * sum over t > m of log p_t;   lr alike
      loss  = the loss of dpo with these sums

    The tail of the longer completion sways the sums by its length alone. With ``alpha = 1``, or completions of the same
    length, it is `dpo`; with ``alpha = 0`` the tail is ignored. Equals TRL's ``ld_alpha``. The expression ``ld(dpo)``
    is the same, and ``ld(...)`` of another method does this to it.

    Args:
      policy: log-probability of each token of the two completions, nats, ``[B, N]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      token_mask: True where the completion has such a token, ``[B, N]`` each.
      beta: strength of the tie to the reference, per nat.
      alpha: weight of the tokens beyond the length of the shorter completion.
      label_smoothing: the share of preference labels assumed to be flipped.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``, and ``logps/*`` are
      ``lp``, both weighted as above.

    References:
      Liu et al. 2024, arXiv 2409.06411.

    Example:
      The chosen completion has one token more than the rejected one. Its log-ratio is ``1 + 0.5 * 1``, the other's 0:
      ``log(1 + exp(-0.15))``.

      >>> import jax.numpy as jnp
      >>> from jaxalign.types import Pair
      >>> policy = Pair(jnp.array([[-1.0, -1.0]]), jnp.array([[-1.0, 0.0]]))
      >>> reference = Pair(jnp.array([[-2.0, -2.0]]), jnp.array([[-1.0, 0.0]]))
      >>> mask = Pair(jnp.array([[True, True]]), jnp.array([[True, False]]))
      >>> round(ld_dpo(policy, reference, mask, beta=0.1, alpha=0.5).losses.item(), 4)
      0.621
    """
    weights = tail_weights(token_mask, alpha)
    return dpo(token_sums(policy, weights), token_sums(reference, weights), beta=beta, label_smoothing=label_smoothing)


def sampo(
    policy: TokenPairs,
    reference: TokenPairs,
    token_mask: TokenMasks,
    keys: Key[Array, " B"],
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """SamPO: DPO on as many tokens of both completions, drawn at random from the longer one.

    ::

      m     = min(|y_w|, |y_l|)
      lp(y) = sum over m tokens of y, drawn without replacement, of log p_t;   lr over the same tokens
      loss  = the loss of dpo with these sums

    A longer completion has no advantage from its length. The draw is a new one at every step, and depends on nothing
    but the example's key: not on padding, neighbours or devices. With completions of the same length it is `dpo`.

    Paper and code disagree: in the authors' code policy and reference draw tokens of their own, which adds the noise of
    two draws to every log-ratio. Here both see the same tokens.

    Args:
      policy: log-probability of each token of the two completions, nats, ``[B, N]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      token_mask: True where the completion has such a token, ``[B, N]`` each.
      keys: a random key for each example, ``[B]``.
      beta: strength of the tie to the reference, per nat.
      label_smoothing: the share of preference labels assumed to be flipped.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``, and ``logps/*`` are
      ``lp``, both over the drawn tokens.

    References:
      Lu et al. 2024, arXiv 2406.10957, and the authors' code.

    Example:
      Each token of the chosen completion gained 1 nat and one of the two is drawn; the rejected one gained nothing:
      ``log(1 + exp(-0.1))``.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxalign.types import Pair
      >>> policy = Pair(jnp.array([[-1.0, -1.0]]), jnp.array([[-1.0, 0.0]]))
      >>> reference = Pair(jnp.array([[-2.0, -2.0]]), jnp.array([[-1.0, 0.0]]))
      >>> mask = Pair(jnp.array([[True, True]]), jnp.array([[True, False]]))
      >>> round(sampo(policy, reference, mask, jax.random.split(jax.random.key(0), 1)).losses.item(), 4)
      0.6444
    """
    drawn = drawn_tokens(token_mask, keys)
    return dpo(token_sums(policy, drawn), token_sums(reference, drawn), beta=beta, label_smoothing=label_smoothing)


def weighted_dpo(
    policy: TokenPairs,
    reference: TokenPairs,
    token_weights: TokenPairs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
) -> LossOutput:
    """DPO with a weight for each token, from the data.

    ::

      lp(y) = sum over t of weight_t * log p_t;   lr alike
      loss  = the loss of dpo with these sums

    For data that know which tokens matter: a mask of the steps that went wrong, weights of an annotator or of another
    model. With all weights 1 it is `dpo`; tokens with weight 0 are as good as not there.

    Args:
      policy: log-probability of each token of the two completions, nats, ``[B, N]`` each.
      reference: the same of the reference policy; no gradient flows into it.
      token_weights: how much each token counts, ``[B, N]`` each.
      beta: strength of the tie to the reference, per nat.
      label_smoothing: the share of preference labels assumed to be flipped.

    Returns:
      Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta * (lp - lr)``, and ``logps/*`` are
      ``lp``, both weighted.

    Example:
      Each token of the chosen completion gained 1 nat, and the two weigh 2 and 0.5; the rejected one gained nothing:
      ``log(1 + exp(-0.25))``.

      >>> import jax.numpy as jnp
      >>> from jaxalign.types import Pair
      >>> policy = Pair(jnp.array([[-1.0, -1.0]]), jnp.array([[-1.0, 0.0]]))
      >>> reference = Pair(jnp.array([[-2.0, -2.0]]), jnp.array([[-1.0, 0.0]]))
      >>> weights = Pair(jnp.array([[2.0, 0.5]]), jnp.array([[1.0, 0.0]]))
      >>> round(weighted_dpo(policy, reference, weights, beta=0.1).losses.item(), 4)
      0.5759
    """
    lp, lr = token_sums(policy, token_weights), token_sums(reference, token_weights)
    return dpo(lp, lr, beta=beta, label_smoothing=label_smoothing)
