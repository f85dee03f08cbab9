"""Token log-probabilities from hidden states and the output head, in chunks and in float32.

Logits exist only where a token is scored, and only a chunk at a time: the largest array made here is
``[R, chunk, vocabulary_chunk]``. The backward pass recomputes each chunk's logits once from the saved log-sum-exp.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

TOKEN_CHUNK = 128
VOCABULARY_CHUNK = 65_536


class TokenScores(NamedTuple):
    """What one pass over the vocabulary tells of each scored token, ``[R, S]`` float32 each.

    Only `logps` carries a gradient. The others are None unless statistics were asked for.

    Attributes:
      logps: log-probability of the target token, nats.
      entropy: entropy of the predicted distribution, nats.
      correct: 1.0 where the target is the most likely token.
      mean_logit: mean of the logits over the vocabulary.
    """

    logps: Float[Array, "R S"]
    entropy: Float[Array, "R S"] | None = None
    correct: Float[Array, "R S"] | None = None
    mean_logit: Float[Array, "R S"] | None = None


def token_scores(
    hidden: Float[Array, "R T D"],
    head: Float[Array, "D V"],
    source: Int[Array, "R S"],
    target: Int[Array, "R S"],
    *,
    soft_cap: float | None = None,
    chunk: int = TOKEN_CHUNK,
    vocabulary_chunk: int = VOCABULARY_CHUNK,
    statistics: bool = False,
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
      statistics: also return entropy, correctness and mean logit (no gradient).
    """
    scored = source.shape[1]
    chunk = max(1, min(chunk, scored))
    padding = -scored % chunk
    source = jnp.pad(source, ((0, 0), (0, padding)))
    target = jnp.pad(target, ((0, 0), (0, padding)))
    states = jnp.take_along_axis(hidden, source[..., None], axis=1)
    blocks = _blocks(head.shape[1], vocabulary_chunk)
    scores = _scores(states, head, target, soft_cap, chunk, blocks, statistics)
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


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _scores(states, head, target, soft_cap, chunk, blocks, statistics):
    return _scores_forward(states, head, target, soft_cap, chunk, blocks, statistics)[0]


def _scores_forward(states, head, target, soft_cap, chunk, blocks, statistics):
    def one_chunk(_, inputs):
        chunk_states, chunk_target = inputs
        shape = chunk_target.shape
        peak = jnp.full(shape, -jnp.inf)
        total, weighted, logit_sum = jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(shape)
        picked = jnp.zeros(shape)
        for start, stop in blocks:
            logits = _capped_logits(chunk_states, head[:, start:stop], soft_cap)
            new_peak = jnp.maximum(peak, logits.max(-1))
            shrink = jnp.exp(peak - new_peak)
            exponentials = jnp.exp(logits - new_peak[..., None])
            total = total * shrink + exponentials.sum(-1)
            if statistics:
                weighted = weighted * shrink + (exponentials * logits).sum(-1)
                logit_sum = logit_sum + logits.sum(-1)
            inside = (chunk_target >= start) & (chunk_target < stop)
            index = jnp.clip(chunk_target - start, 0, stop - start - 1)
            here = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
            picked = jnp.where(inside, here, picked)
            peak = new_peak
        logsumexp = peak + jnp.log(total)
        outputs = {"logps": picked - logsumexp, "logsumexp": logsumexp}
        if statistics:
            outputs["entropy"] = logsumexp - weighted / total
            outputs["correct"] = (picked >= peak).astype(jnp.float32)
            outputs["mean_logit"] = logit_sum / blocks[-1][1]
        return None, outputs

    _, outputs = jax.lax.scan(one_chunk, None, (_chunks(states, chunk), _chunks(target, chunk)))
    outputs = {name: _unchunk(value) for name, value in outputs.items()}
    logsumexp = outputs.pop("logsumexp")
    return TokenScores(**outputs), (states, head, target, logsumexp)


def _scores_backward(soft_cap, chunk, blocks, statistics, residuals, cotangents):
    del statistics  # the statistics carry no gradient
    states, head, target, logsumexp = residuals
    inputs = tuple(_chunks(x, chunk) for x in (states, target, logsumexp, cotangents.logps))

    def one_chunk(head_gradient, inputs):
        chunk_states, chunk_target, chunk_logsumexp, cotangent = inputs
        states_gradient = jnp.zeros(chunk_states.shape, jnp.float32)
        for block, (start, stop) in enumerate(blocks):
            block_head = head[:, start:stop]
            logits = _capped_logits(chunk_states, block_head, soft_cap)
            probabilities = jnp.exp(logits - chunk_logsumexp[..., None])
            hit = chunk_target[..., None] == jnp.arange(start, stop)
            gradient = cotangent[..., None] * (hit - probabilities)
            if soft_cap is not None:
                gradient = gradient * (1.0 - jnp.square(logits / soft_cap))
            gradient = gradient.astype(head.dtype)
            products = {"precision": _precision(head), "preferred_element_type": jnp.float32}
            states_gradient += jnp.einsum("rcv,dv->rcd", gradient, block_head, **products)
            head_gradient[block] += jnp.einsum("rcd,rcv->dv", chunk_states, gradient, **products)
        return head_gradient, states_gradient.astype(states.dtype)

    zeros = [jnp.zeros((head.shape[0], stop - start), jnp.float32) for start, stop in blocks]
    head_gradient, states_gradient = jax.lax.scan(lambda c, x: one_chunk(list(c), x), zeros, inputs)
    head_gradient = jnp.concatenate(head_gradient, axis=1).astype(head.dtype)
    no_gradient = np.zeros(target.shape, jax.dtypes.float0)
    return _unchunk(states_gradient), head_gradient, no_gradient


_scores.defvjp(_scores_forward, _scores_backward)
