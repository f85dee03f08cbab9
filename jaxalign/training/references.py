"""Where reference log-probabilities come from: one triple of pure functions per source.

A `Reference` has the shape of `optax.GradientTransformation`. The train step asks it for log-probabilities and does not
know which it is, so one loss serves every reference:

=================  ===================================================  ==============  ===========
source             what it reads                                        lives in        token level
=================  ===================================================  ==============  ===========
`frozen`           a model, by default a copy of the start              ``frozen``      yes
`shared`           the base under the policy's adapters                 ``frozen``      yes
`moving`           a copy that follows the policy (EMA, TR-DPO)         the state       yes
`cached`           the column ``reference_logps``                       the data        yes
`cached_sums`      the column ``reference_sums``                        the data        no
`given_sums`       the column ``reference_sums``                        the data        no
`none`             nothing: every log-probability is 0                  nowhere         yes
=================  ===================================================  ==============  ===========

No gradient ever flows into a reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.errors import ConfigError
from jaxalign.logprobs import Distribution
from jaxalign.methods import INPUTS, Logps, Method
from jaxalign.training.scoring import score, sum_completions
from jaxalign.training.trainable import Trainable, full
from jaxalign.types import Rows, Variables

FULL = full()


class ReferenceLogps(NamedTuple):
    """A reference's log-probabilities of what is scored in some rows, nats, float32, without gradient.

    Attributes:
      sums: of each completion, ``[R, E, K]``.
      tokens: of each scored token, ``[R, S]``; None where only sums are known.
    """

    sums: Float[Array, "R E K"]
    tokens: Float[Array, "R S"] | None


class Reference(NamedTuple):
    """A source of reference log-probabilities.

    Attributes:
      init: ``init(variables) -> state``: what it carries from step to step, from the policy's variables at the start.
      logps: ``logps(state, frozen, rows) -> ReferenceLogps``. ``frozen`` is the step's frozen tree.
      update: ``update(state, variables, step) -> state``, after each optimizer step, with the policy's new variables
        and the number of steps taken so far (1 after the first).
      token_level: whether `logps` knows each token, not just each completion's sum.
      columns: the data columns that it reads.
      distribution: ``distribution(state, frozen, rows) -> Distribution`` over the whole vocabulary, for methods that
        compare it with the policy's; None where only log-probabilities are known.
      absent: there is no reference model; the log-probabilities are zeros, and a KL divergence from it says nothing.
    """

    init: Callable[[Variables], Any]
    logps: Callable[[Any, Mapping[str, Any], Rows], ReferenceLogps]
    update: Callable[[Any, Variables, Int[Array, ""]], Any]
    token_level: bool = True
    columns: tuple[str, ...] = ()
    distribution: Callable[[Any, Mapping[str, Any], Rows], Distribution] | None = None
    absent: bool = False


def frozen(policy: Any) -> Reference:
    """A model that does not change: its variables are ``frozen["reference"]``.

    With the policy's own functions and the variables that training starts from, the log-ratio at step 0 is 0: both
    sides are the same computation on the same numbers. A compiler may add up the policy's softmax in another order,
    beside the sums of its entropy, and the last bit of float32 then differs. Another model of the same tokenizer may be
    given instead.

    Args:
      policy: the reference's functions (a `jaxalign.models.policy.Policy`).
    """

    def logps(state, frozen, rows):
        return _scored(policy, frozen["reference"], rows)

    def distribution(state, frozen, rows):
        return _distribution(policy, frozen["reference"], rows)

    return Reference(_no_state, logps, _keep, distribution=distribution)


def shared(policy: Any) -> Reference:
    """The base under the policy's adapters: the frozen weights that the step reads anyway, without a second copy.

    Its variables are ``frozen["policy"]``, over which ``frozen["reference"]`` is laid: empty for the base itself, an
    adapter collection (``{"lora": ...}``) for a reference that is another adapter on the same base. With fresh
    adapters, whose B is 0, the log-ratio at step 0 is 0 as with `frozen`.

    Args:
      policy: the policy's functions, or for another adapter functions built with its rank and scale.
    """

    def variables(frozen):
        return {**frozen["policy"], **frozen["reference"]}

    def logps(state, frozen, rows):
        return _scored(policy, variables(frozen), rows)

    def distribution(state, frozen, rows):
        return _distribution(policy, variables(frozen), rows)

    return Reference(_no_state, logps, _keep, distribution=distribution)


def moving(
    policy: Any,
    *,
    trainable: Trainable = FULL,
    rate: float = 1.0,
    every: int = 1,
    dtype: str | None = None,
) -> Reference:
    """A copy of the policy that follows it.

    Every ``every`` optimizer steps, ``reference <- rate * policy + (1 - rate) * reference``, mixed in float32.

    ``rate=1`` is TR-DPO's hard update, ``0 < rate < 1`` its soft update, and ``every=1`` with a small rate an
    exponential moving average with decay ``1 - rate``. The copy is part of the train state: checkpointed, restored and
    sharded like the policy.

    Only what is trained is copied. With adapters these are the factors, and each is mixed by itself: at ``rate=1`` the
    reference is the policy of that step, as without adapters; below, ``A B`` of the mixed factors is another matrix
    than the mix of the products ``A B``, which has no factors of the same rank.

    Args:
      policy: the policy's functions.
      trainable: which of its variables are trained.
      rate: share of the policy in the new reference, in (0, 1].
      every: optimizer steps between two updates; the first comes after step ``every``.
      dtype: dtype in which the copy is kept, ``"float32"`` or ``"bfloat16"``; None keeps the policy's.

    Raises:
      ConfigError: a value is out of range, or bfloat16 is too coarse for the rate.

    Source: Gorbatovski et al. 2024, "Learn Your Reference Model for Real Good Alignment" (TR-DPO),
    arXiv 2404.09656, sec. 3.
    """
    problems = []
    if not (isinstance(rate, (int, float)) and math.isfinite(rate) and 0 < rate <= 1):
        problems.append(f"reference.update_rate: got {rate!r}, expected a number above 0 and at most 1")
    elif dtype == "bfloat16" and rate < 2**-7:
        problems.append(
            f"reference.update_rate: got {rate!r} with reference.dtype 'bfloat16', whose numbers are 2**-8 apart "
            "(relative): most updates would round to nothing. Use 'float32' or a larger rate"
        )
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        problems.append(f"reference.update_every: got {every!r}, expected an integer of at least 1 (optimizer steps)")
    if dtype not in (None, "float32", "bfloat16"):
        problems.append(f"reference.dtype: got {dtype!r}, expected 'float32' or 'bfloat16'")
    if problems:
        raise ConfigError(problems)

    def init(variables):
        # A real copy: the policy's arrays are donated to the step, and one buffer cannot be given away twice.
        trained, _ = trainable.split(variables)
        return jax.tree.map(lambda x: jnp.array(x, dtype if _is_float(x) else None, copy=True), trained)

    def logps(state, frozen, rows):
        return _scored(policy, trainable.join(state, frozen.get("policy", {})), rows)

    def mixed(reference, current):
        if rate == 1 or not _is_float(reference):
            return current.astype(reference.dtype)
        wide = jnp.promote_types(reference.dtype, jnp.float32)
        # In this order the difference vanishes, and the reference stays bit-equal, when it equals the policy.
        old = reference.astype(wide)
        return (old + rate * (current.astype(wide) - old)).astype(reference.dtype)

    def update(state, variables, step):
        trained, _ = trainable.split(jax.lax.stop_gradient(variables))
        if every == 1:
            return jax.tree.map(mixed, state, trained)
        due = step % every == 0
        return jax.lax.cond(due, lambda s, v: jax.tree.map(mixed, s, v), lambda s, v: s, state, trained)

    def distribution(state, frozen, rows):
        return _distribution(policy, trainable.join(state, frozen.get("policy", {})), rows)

    return Reference(init, logps, update, distribution=distribution)


def cached() -> Reference:
    """Per-token log-probabilities that came with the data: the column ``reference_logps``, ``[R, S]``, nats."""

    def logps(state, frozen, rows):
        tokens = jax.lax.stop_gradient(rows.columns["reference_logps"].astype(jnp.float32))
        return ReferenceLogps(sum_completions(tokens, rows), tokens)

    return Reference(_no_state, logps, _keep, columns=("reference_logps",))


def cached_sums() -> Reference:
    """Log-probabilities of whole completions that came with the data: the column ``reference_sums`` ``[R, E, K]``.

    For a reference with a tokenizer or chat template of its own, whose tokens are not the policy's, and for the
    unconditional prior ``log p(y)``, whose context is not the policy's. A method that takes token means divides these
    sums by the column ``reference_lengths`` ``[R, E, K]`` where it is there.
    """

    def logps(state, frozen, rows):
        return ReferenceLogps(jax.lax.stop_gradient(rows.columns["reference_sums"].astype(jnp.float32)), None)

    return Reference(_no_state, logps, _keep, token_level=False, columns=("reference_sums", "reference_lengths"))


def given_sums() -> Reference:
    """Log-probabilities of whole completions that the data's rows told: the column ``reference_sums`` ``[R, E, K]``.

    As `cached_sums`, but nobody knows how many tokens the reference read: a method that takes token means divides by
    the policy's.
    """
    return cached_sums()._replace(columns=("reference_sums",))


def none() -> Reference:
    """No reference: every log-probability is 0.

    With DPO it is the "probability" objective, ``r = beta * log p(y|x)`` (arXiv 2407.13709, eq. 10), also called
    reference-free. It is also what methods that read no reference are given.
    """

    def logps(state, frozen, rows):
        rows_count, examples = rows.example_mask.shape
        return ReferenceLogps(
            jnp.zeros((rows_count, examples, rows.completions), jnp.float32),
            jnp.zeros(rows.score_target.shape, jnp.float32),
        )

    return Reference(_no_state, logps, _keep, absent=True)


def check_reference(method: Method, reference: Reference) -> list[str]:
    """What is wrong with this reference for this method, one line each; empty when they fit."""
    problems = []
    if method.logps is Logps.TOKEN and method.needs_reference and not reference.token_level:
        problems.append(
            f"reference.source: {method.name} needs the reference's log-probability of each token, but this reference "
            "knows only those of whole completions (it has its own tokenizer or context). Use a reference with the "
            "policy's tokenizer and template, or a method that takes sums (dpo, ipo, kto, ...)"
        )
    if method.needs_live_reference and reference.distribution is None:
        asked = ", ".join(name for name in method.inputs if INPUTS[name].live)
        problems.append(
            f"reference.mode: {method.name} compares whole next-token distributions ({asked}), but this reference only "
            "tells the log-probabilities of the data's tokens. Use reference.mode=live with reference.source=policy, "
            "or with a model of the same tokenizer"
        )
    return problems


def _distribution(policy, variables, rows: Rows) -> Distribution:
    variables = jax.lax.stop_gradient(variables)
    return Distribution(policy.hidden(variables, rows), policy.head(variables), policy.soft_cap)


def _scored(policy, variables, rows: Rows) -> ReferenceLogps:
    scores = score(policy, jax.lax.stop_gradient(variables), rows)
    tokens, sums = jax.lax.stop_gradient((scores.tokens.logps, scores.sums))
    return ReferenceLogps(sums, tokens)


def _is_float(array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _no_state(variables):
    return ()


def _keep(state, variables, step):
    return state
