"""Token log-probabilities from hidden states and the output head, in chunks and in float32.

Logits exist only where a token is scored, and only a chunk at a time: the largest array made here is
``[R, chunk, vocabulary_chunk]``. The backward pass recomputes each chunk's logits once from the saved log-sum-exp.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

TOKEN_CHUNK = 128
VOCABULARY_CHUNK = 65_536


STATISTICS = ("entropy", "correct", "mean_logit", "collision")


class TokenScores(NamedTuple):
    """What one pass over the vocabulary tells of each scored token, ``[R, S]`` float32 each; None = not asked for.

    A gradient flows from `logps`, from `kl`, and from `entropy` where that is asked for.

    Attributes:
      logps: log-probability of the target token, nats.
      entropy: entropy of the predicted distribution, nats.
      correct: 1.0 where the target is the most likely token.
      mean_logit: mean of the logits over the vocabulary.
      collision: log of the sum of the squared probabilities, ``log sum_v p_v^2``: the expected log-probability's bound
        for a token drawn from the policy itself.
      reference_logps: log-probability of the target token under the reference distribution, nats.
      kl: ``KL(reference || policy)`` of the two predicted distributions, nats.
    """

    logps: Float[Array, "R S"]
    entropy: Float[Array, "R S"] | None = None
    correct: Float[Array, "R S"] | None = None
    mean_logit: Float[Array, "R S"] | None = None
    collision: Float[Array, "R S"] | None = None
    reference_logps: Float[Array, "R S"] | None = None
    kl: Float[Array, "R S"] | None = None


class Distribution(NamedTuple):
    """A model's next-token distributions, not yet computed: ``softmax(cap(hidden @ head))``.

    Attributes:
      hidden: states after the final norm, ``[R, T, D]``.
      head: output projection, ``[D, V]``.
      soft_cap: of the logits, or None.
    """

    hidden: Float[Array, "R T D"]
    head: Float[Array, "D V"]
    soft_cap: float | None = None


def token_scores(
    hidden: Float[Array, "R T D"],
    head: Float[Array, "D V"],
    source: Int[Array, "R S"],
    target: Int[Array, "R S"],
    *,
    soft_cap: float | None = None,
    chunk: int = TOKEN_CHUNK,
    vocabulary_chunk: int = VOCABULARY_CHUNK,
    statistics: Collection[str] = (),
    entropy_gradient: bool = False,
    reference: Distribution | None = None,
) -> TokenScores:
    """Scores the target tokens: ``log softmax(cap(hidden[source] @ head))[target]``.

    The hidden states are gathered inside their row, so rows that live on different devices exchange nothing.

    Args:
      hidden: states after the final norm, any float dtype.
      head: output projection, any float dtype; products accumulate in float32.
      source: index in the row of the state that predicts each scored token.
      target: the token predicted.
      soft_cap: final-logit soft cap ``c * tanh(z / c)``, or None.
      chunk: scored tokens of a row whose logits exist at once.
      vocabulary_chunk: vocabulary entries whose logits exist at once; a larger vocabulary goes in blocks.
      statistics: which of `STATISTICS` to return too.
      entropy_gradient: whether a gradient flows from the entropy (it costs arithmetic in the backward pass).
      reference: another model's distributions over the same rows and vocabulary; then `reference_logps` and `kl` are
        returned. It gets no gradient.

    Raises:
      ValueError: an unknown statistic, or a reference with a vocabulary of another size.
    """
    unknown = set(statistics) - set(STATISTICS)
    if unknown:
        raise ValueError(f"statistics: got {sorted(unknown)}, expected some of {', '.join(STATISTICS)}")
    scored = source.shape[1]
    chunk = max(1, min(chunk, scored))
    padding = -scored % chunk
    source = jnp.pad(source, ((0, 0), (0, padding)))
    target = jnp.pad(target, ((0, 0), (0, padding)))

    def gathered(states):
        return jnp.take_along_axis(states, source[..., None], axis=1)

    other = None
    if reference is not None:
        if reference.head.shape[1] != head.shape[1]:
            raise ValueError(
                f"reference: got a vocabulary of {reference.head.shape[1]} tokens, expected the policy's "
                f"{head.shape[1]}: the divergence compares distributions over the same tokens"
            )
        other = jax.lax.stop_gradient((gathered(reference.hidden), reference.head))
    plan = _Plan(
        soft_cap,
        chunk,
        _blocks(head.shape[1], vocabulary_chunk),
        tuple(name for name in STATISTICS if name in statistics),
        entropy_gradient and "entropy" in statistics,
        None if reference is None else reference.soft_cap,
    )
    scores = _scores(gathered(hidden), head, target, other, plan)
    return TokenScores(*jax.tree.map(lambda value: value[:, :scored], scores))


def completion_sums(
    values: Float[Array, "R S"], slot: Int[Array, "R S"], examples: int, completions: int
) -> Float[Array, "R {examples} {completions}"]:
    """Sums a per-token value over each completion of each row.

    A sum over a one-hot matrix rather than a scatter-add: the order of additions is then fixed on every backend.

    Args:
      values: per scored token.
      slot: which of the row's ``examples * completions`` completions a token belongs to; anything else is left out.
      examples: E, the number of examples a row holds.
      completions: K, the number of completions of an example.
    """
    belongs = slot[..., None] == jnp.arange(examples * completions)
    # where, not a product: a non-finite value in an unused slot must not reach the sums as 0 * nan.
    sums = jnp.sum(jnp.where(belongs, values[..., None].astype(jnp.float32), 0.0), axis=1)
    return sums.reshape(values.shape[0], examples, completions)


def _blocks(vocabulary: int, size: int) -> tuple[tuple[int, int], ...]:
    count = -(-vocabulary // size)
    edges = np.linspace(0, vocabulary, count + 1).astype(int).tolist()
    return tuple(itertools.pairwise(edges))


def _precision(head):
    """Float32 means float32 also where the hardware would round the factors (TF32, bfloat16 passes)."""
    return jax.lax.Precision.HIGHEST if head.dtype == jnp.float32 else None


def _capped_logits(states, head, soft_cap):
    logits = jnp.einsum("rcd,dv->rcv", states, head, precision=_precision(head), preferred_element_type=jnp.float32)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _chunks(array, chunk):
    """``[R, S, ...] -> [S / chunk, R, chunk, ...]``, the axis that `lax.scan` walks."""
    rows, scored = array.shape[:2]
    return jnp.moveaxis(array.reshape(rows, scored // chunk, chunk, *array.shape[2:]), 1, 0)


def _unchunk(array):
    array = jnp.moveaxis(array, 0, 1)
    return array.reshape(array.shape[0], -1, *array.shape[3:])


class _Plan(NamedTuple):
    """What is known before tracing."""

    soft_cap: float | None
    chunk: int
    blocks: tuple[tuple[int, int], ...]
    statistics: tuple[str, ...]
    entropy_gradient: bool
    reference_soft_cap: float | None


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _scores(states, head, target, other, plan):
    return _scores_forward(states, head, target, other, plan)[0]


def _scores_forward(states, head, target, other, plan):
    other_states, other_head = (None, None) if other is None else other

    def one_chunk(_, inputs):
        chunk_states, chunk_target, chunk_other = inputs
        policy, reference = _Softmax.empty(chunk_target.shape), _Softmax.empty(chunk_target.shape)
        for start, stop in plan.blocks:
            logits = _capped_logits(chunk_states, head[:, start:stop], plan.soft_cap)
            average = logits if "entropy" in plan.statistics else None
            policy = policy.seen(logits, chunk_target - start, average, "collision" in plan.statistics)
            if other_head is not None:
                other_logits = _capped_logits(chunk_other, other_head[:, start:stop], plan.reference_soft_cap)
                # The gap is summed, not the two logits apart: it is 0, exactly, where the two models agree.
                reference = reference.seen(other_logits, chunk_target - start, other_logits - logits, False)
        logsumexp = policy.logsumexp
        outputs = {"logps": policy.picked - logsumexp, "logsumexp": logsumexp}
        if "entropy" in plan.statistics:
            outputs["entropy"] = logsumexp - policy.mean / policy.total
        if "correct" in plan.statistics:
            outputs["correct"] = (policy.picked >= policy.peak).astype(jnp.float32)
        if "mean_logit" in plan.statistics:
            outputs["mean_logit"] = policy.plain_sum / plan.blocks[-1][1]
        if "collision" in plan.statistics:
            outputs["collision"] = jnp.log(policy.squares) + 2.0 * (policy.peak - logsumexp)
        if other is not None:
            outputs["reference_logsumexp"] = reference.logsumexp
            outputs["reference_logps"] = reference.picked - reference.logsumexp
            outputs["kl"] = reference.mean / reference.total - reference.logsumexp + logsumexp
        return None, outputs

    parts = (states, target, other_states)
    _, outputs = jax.lax.scan(one_chunk, None, jax.tree.map(lambda x: _chunks(x, plan.chunk), parts))
    outputs = {name: _unchunk(value) for name, value in outputs.items()}
    saved = (outputs.pop("logsumexp"), outputs.pop("reference_logsumexp", None))
    saved += (outputs["entropy"] if plan.entropy_gradient else None,)
    return TokenScores(**outputs), (states, head, target, other, saved)


def _scores_backward(plan, residuals, cotangents):
    states, head, target, other, (logsumexp, other_logsumexp, entropy) = residuals
    other_states, other_head = (None, None) if other is None else other
    wanted = {
        "logps": cotangents.logps,
        "entropy": cotangents.entropy if plan.entropy_gradient else None,
        "kl": cotangents.kl,  # None without a reference
    }
    inputs = (states, target, logsumexp, wanted, other_states, other_logsumexp, entropy)
    products = {"precision": _precision(head), "preferred_element_type": jnp.float32}

    def one_chunk(head_gradient, inputs):
        chunk_states, chunk_target, chunk_logsumexp, cotangent, chunk_other, chunk_other_logsumexp, h = inputs
        states_gradient = jnp.zeros(chunk_states.shape, jnp.float32)
        for block, (start, stop) in enumerate(plan.blocks):
            block_head = head[:, start:stop]
            logits = _capped_logits(chunk_states, block_head, plan.soft_cap)
            log_probabilities = logits - chunk_logsumexp[..., None]
            probabilities = jnp.exp(log_probabilities)
            hit = chunk_target[..., None] == jnp.arange(start, stop)
            gradient = cotangent["logps"][..., None] * (hit - probabilities)
            if other_head is not None:
                other_logits = _capped_logits(chunk_other, other_head[:, start:stop], plan.reference_soft_cap)
                theirs = jnp.exp(other_logits - chunk_other_logsumexp[..., None])
                gradient += cotangent["kl"][..., None] * (probabilities - theirs)
            if plan.entropy_gradient:
                gradient -= cotangent["entropy"][..., None] * probabilities * (log_probabilities + h[..., None])
            if plan.soft_cap is not None:
                gradient = gradient * (1.0 - jnp.square(logits / plan.soft_cap))
            gradient = gradient.astype(head.dtype)
            states_gradient += jnp.einsum("rcv,dv->rcd", gradient, block_head, **products)
            head_gradient[block] += jnp.einsum("rcd,rcv->dv", chunk_states, gradient, **products)
        return head_gradient, states_gradient.astype(states.dtype)

    zeros = [jnp.zeros((head.shape[0], stop - start), jnp.float32) for start, stop in plan.blocks]
    chunked = jax.tree.map(lambda x: _chunks(x, plan.chunk), inputs)
    head_gradient, states_gradient = jax.lax.scan(lambda c, x: one_chunk(list(c), x), zeros, chunked)
    head_gradient = jnp.concatenate(head_gradient, axis=1).astype(head.dtype)
    no_gradient = np.zeros(target.shape, jax.dtypes.float0)
    return _unchunk(states_gradient), head_gradient, no_gradient, None


_scores.defvjp(_scores_forward, _scores_backward)


class _Softmax(NamedTuple):
    """A softmax over the vocabulary, seen block by block: sums scaled by the largest logit so far."""

    peak: Array
    total: Array  # sum of exp(z - peak)
    mean: Array  # sum of exp(z - peak) * x, for the x whose mean is asked for
    squares: Array  # sum of exp(z - peak)^2
    plain_sum: Array  # sum of z
    picked: Array  # the target's z

    @classmethod
    def empty(cls, shape) -> _Softmax:
        zeros = jnp.zeros(shape)
        return cls(jnp.full(shape, -jnp.inf), zeros, zeros, zeros, zeros, zeros)

    @property
    def logsumexp(self):
        return self.peak + jnp.log(self.total)

    def seen(self, logits, index, average, squares: bool) -> _Softmax:
        """After one more block; `index` is the target's place in it, if it is there, `average` what `mean` is of."""
        peak = jnp.maximum(self.peak, logits.max(-1))
        shrink = jnp.exp(self.peak - peak)
        exponentials = jnp.exp(logits - peak[..., None])
        inside = (index >= 0) & (index < logits.shape[-1])
        clipped = jnp.clip(index, 0, logits.shape[-1] - 1)
        here = jnp.take_along_axis(logits, clipped[..., None], axis=-1)[..., 0]
        mean = self.mean * shrink
        if average is not None:
            mean += (exponentials * average).sum(-1)
        return _Softmax(
            peak,
            self.total * shrink + exponentials.sum(-1),
            mean,
            self.squares * jnp.square(shrink) + jnp.square(exponentials).sum(-1) if squares else self.squares,
            self.plain_sum + logits.sum(-1),
            jnp.where(inside, here, self.picked),
        )
