"""Methods of the literature that are combinations of other rows: each an expression with its paper's defaults."""

from __future__ import annotations

from collections.abc import Mapping

from jaxalign.combinations import parse
from jaxalign.combinators import named
from jaxalign.method import Method

_MPO = """Mixed Preference Optimization: which completion is better, whether each is good, how to write the good one.

::

  loss = dpo_weight * loss of dpo + bco_pair_weight * loss of bco_pair + nll_weight * loss of nll

Three terms for three questions: `dpo` learns relative preference, `bco_pair` the absolute quality of each completion,
`nll` the generation of the chosen one. Written out it is ``0.8*dpo + 0.2*bco_pair + nll``.

The weights and the likelihood's mean over all tokens are TRL's recipe for the paper. TRL's second term has lost
its reward shift since: TRL's value today is that of ``0.8*dpo + 0.2*nca_pair + nll`` with ``nca_pair_noise_share = 0``
and one beta.

Returns:
  Losses, ``[B]``; every pair weighs 1 (0 where masked). Rewards in the metrics are those of `dpo`; ``loss/dpo``,
  ``loss/bco_pair`` and ``loss/nll`` are the terms before their weights. State: that of `bco_pair`.

References:
  Wang et al. 2024, arXiv 2411.10442 (the weights as TRL quotes them).

Example:
  The terms are ``log(1 + exp(-0.3)) = 0.5544``, ``2 log(1 + exp(-0.15)) = 1.2419`` and ``10 / 5``.

  >>> import jax.numpy as jnp
  >>> from jaxalign.methods import METHODS
  >>> from jaxalign.types import Pair
  >>> def pair(chosen, rejected):
  ...     return Pair(jnp.array([chosen]), jnp.array([rejected]))
  >>> state = {"bco_pair_mean": jnp.array(0.0), "bco_pair_count": jnp.array(0.0)}
  >>> output = METHODS["mpo"].objective(
  ...     policy=pair(-10.0, -13.0), reference=pair(-12.0, -12.0), lengths=pair(5.0, 6.0), state=state
  ... )
  >>> round(output.losses.item(), 4)
  2.6919
"""

_ITERATIVE_RPO = """Iterative Reasoning Preference Optimization: DPO plus the likelihood of the right answer, per token.

::

  loss = dpo_weight * loss of dpo + nll_weight * nll,    nll = -lp_w / |y_w|

Right and wrong answers to a reasoning task differ in few tokens, and DPO alone may make both less likely; the second
term keeps the right one. Each completion counts the same whatever its length (``nll_normalization = tokens``). The
iterations, in which the policy writes the answers and becomes the next reference, are runs. Written out it is
``dpo + nll`` with that option.

The weights and ``beta`` were not verified against the paper. TRL takes the mean over all chosen tokens of the batch,
here ``nll_normalization = batch_tokens``.

Returns:
  Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are those of `dpo`; ``loss/dpo`` and ``loss/nll`` are
  the terms before their weights.

References:
  Pang et al. 2024, arXiv 2404.19733.

Example:
  ``log(1 + exp(-0.3)) + 10 / 5``.

  >>> import jax.numpy as jnp
  >>> from jaxalign.methods import METHODS
  >>> from jaxalign.types import Pair
  >>> def pair(chosen, rejected):
  ...     return Pair(jnp.array([chosen]), jnp.array([rejected]))
  >>> output = METHODS["iterative_rpo"].objective(
  ...     policy=pair(-10.0, -13.0), reference=pair(-12.0, -12.0), lengths=pair(5.0, 6.0)
  ... )
  >>> round(output.losses.item(), 4)
  2.5544
"""

_REGULARIZED_RPO = """Regularized Preference Optimization: DPO with a small likelihood term against overoptimization.

::

  loss = dpo_weight * loss of dpo + nll_weight * loss of nll

With few data a policy may raise what the pairs say nothing about. The paper derives the likelihood of the chosen
completion as the price of being pessimistic there: an adversarial reward model within the data's confidence. Written
out it is ``dpo + 0.005*nll`` with ``dpo_beta = 0.01``.

Weight, ``dpo_beta`` and the mean over all tokens are TRL's recipe for the paper; they were not verified against it.

Returns:
  Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are those of `dpo`; ``loss/dpo`` and ``loss/nll`` are
  the terms before their weights.

References:
  Liu et al. 2024, arXiv 2405.16436 (weight and beta as TRL quotes them).

Example:
  ``log(1 + exp(-0.01 * 3)) + 0.005 * 10 / 5``.

  >>> import jax.numpy as jnp
  >>> from jaxalign.methods import METHODS
  >>> from jaxalign.types import Pair
  >>> def pair(chosen, rejected):
  ...     return Pair(jnp.array([chosen]), jnp.array([rejected]))
  >>> output = METHODS["regularized_rpo"].objective(
  ...     policy=pair(-10.0, -13.0), reference=pair(-12.0, -12.0), lengths=pair(5.0, 6.0)
  ... )
  >>> round(output.losses.item(), 4)
  0.6883
"""

_SOFT_DPO = """DPO with the probability of each preference in the place of its label.

::

  p    = preference, the probability that the chosen completion is the better one
  loss = p * loss of dpo + (1 - p) * loss of dpo with the two sides swapped

Judges give probabilities, and people who vote disagree: a pair that half of them would turn round should teach
nothing. Where ``p = 1`` it is `dpo`; the loss is least where ``sigmoid(h) = p``, so the margin learned is finite. It is
the conservative DPO of ``label_smoothing`` with a smoothing of each pair's own. Written out it is ``soft(dpo)``.

A row whose ``preference`` is below 0.5 is turned round when it is read: its rejected completion becomes the chosen one
with ``1 - preference``, and the report counts it. The loss is the same; ``rewards/accuracies`` counts for the likelier
completion.

Returns:
  Losses, ``[B]``; every pair weighs 1. Rewards in the metrics are those of `dpo`.

References:
  Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023, eq. 3, with a noise rate a pair.

Example:
  The margin is ``h = 0.1 * 3``: ``0.75 * log(1 + exp(-0.3)) + 0.25 * log(1 + exp(0.3))``.

  >>> import jax.numpy as jnp
  >>> from jaxalign.methods import METHODS
  >>> from jaxalign.types import Pair
  >>> def pair(chosen, rejected):
  ...     return Pair(jnp.array([chosen]), jnp.array([rejected]))
  >>> output = METHODS["soft_dpo"].objective(
  ...     policy=pair(-10.0, -13.0), reference=pair(-12.0, -12.0), preference=jnp.array([0.75])
  ... )
  >>> round(output.losses.item(), 4)
  0.6294
"""

_DPO_NORM = """Length-normalised DPO: logistic loss on the difference of the mean log-ratios per token.

::

  h    = beta * ((avg.lp_w - avg.lr_w) - (avg.lp_l - avg.lr_l))
  loss = -(1 - label_smoothing) * log sigmoid(h) - label_smoothing * log sigmoid(-h)

Sums of log-ratios grow with the length of a completion; means do not, so a long answer cannot win by its length. Means
are some hundred times smaller than sums, and so ``beta`` is larger. Written out it is ``mean(dpo)`` with that beta.

It is TRL's ``sigmoid_norm``, whose beta is 0.1 like that of every loss there. The default here is that of OLMo's
training scripts; from memory, Tulu 3 uses the same. It was not verified against the paper.

Returns:
  Losses in nats, ``[B]``; every pair weighs 1. Rewards in the metrics are ``beta`` times the mean log-ratio per token,
  and ``logps/*`` are means per token.

References:
  Lambert et al. 2024, "Tulu 3", arXiv 2411.15124; Meng et al. 2024, arXiv 2405.14734, compare it with SimPO.

Example:
  Per token, the chosen completion gained 0.25 nats and the rejected one lost 0.125: ``h = 5 * 0.375``.

  >>> import jax.numpy as jnp
  >>> from jaxalign.methods import METHODS
  >>> from jaxalign.types import Pair
  >>> def pair(chosen, rejected):
  ...     return Pair(jnp.array([chosen]), jnp.array([rejected]))
  >>> output = METHODS["dpo_norm"].objective(policy=pair(-1.0, -1.5), reference=pair(-1.25, -1.375))
  >>> round(output.losses.item(), 4)
  0.1427
"""


def recipes(rows: Mapping[str, Method]) -> tuple[Method, ...]:
    """The combined methods, made of the given rows."""

    def combined(expression: str) -> Method:
        return parse(expression, rows.__getitem__, rows)

    return (
        named(combined("0.8*dpo + 0.2*bco_pair + 1.0*nll"), "mpo", paper="arXiv 2411.10442", doc=_MPO),
        named(
            combined("dpo + 1.0*nll"),
            "iterative_rpo",
            paper="arXiv 2404.19733",
            doc=_ITERATIVE_RPO,
            nll_normalization="tokens",
        ),
        named(
            combined("dpo + 0.005*nll"),
            "regularized_rpo",
            paper="arXiv 2405.16436",
            doc=_REGULARIZED_RPO,
            dpo_beta=0.01,
        ),
        named(combined("mean(dpo)"), "dpo_norm", paper="arXiv 2411.15124", doc=_DPO_NORM, beta=5.0),
        named(combined("soft(dpo)"), "soft_dpo", paper="arXiv 2305.18290", doc=_SOFT_DPO),
    )
