"""Token log-probabilities from hidden states and the output head, in tiles and in float32.

Logits exist only where a token is scored, and only a tile at a time (`jaxalign.vocabulary_tiles`). The backward
pass recomputes each tile's logits once from the saved log-sum-exp.

On a mesh (that of `jax.set_mesh`) every device works on its own rows and its own part of the vocabulary. What travels:
a few numbers a token and the states' gradient over the vocabulary's axes; over the axes that split the head's width, a
block of the head and of its gradient at a time, so that the whole head never stands on a device.

Tokamax's `linear_softmax_cross_entropy_loss` (0.0.17) is not used, though it gives one loss a token with a cotangent
for each. It has no soft cap, no choice of precision, and neither entropy, accuracy nor KL, so a step that reports
these would pass over the vocabulary twice.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxalign.mesh_axes import platform
from jaxalign.vocabulary_tiles import (
    MESH_AXES,
    Division,
    MeshAxes,
    Tile,
    chunked,
    each,
    over_blocks,
    tile_shape,
    unchunked,
)

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
    chunk: int | None = None,
    vocabulary_chunk: int | None = None,
    statistics: Collection[str] = (),
    entropy_gradient: bool = False,
    reference: Distribution | None = None,
    axes: MeshAxes = MESH_AXES,
) -> TokenScores:
    """Scores the target tokens: ``log softmax(cap(hidden[source] @ head))[target]``.

    The hidden states are gathered inside their row, so rows that live on different devices exchange nothing.

    Args:
      hidden: states after the final norm, any float dtype.
      head: output projection, any float dtype; products accumulate in float32.
      source: index in the row of the state that predicts each scored token.
      target: the token predicted.
      soft_cap: final-logit soft cap ``c * tanh(z / c)``, or None.
      chunk: tokens of a tile, over all rows of a device; None = as `tile_shape` says.
      vocabulary_chunk: vocabulary entries of a tile; None likewise.
      statistics: which of `STATISTICS` to return too.
      entropy_gradient: whether a gradient flows from the entropy (it costs arithmetic in the backward pass).
      reference: another model's distributions over the same rows and vocabulary; then `reference_logps` and `kl` are
        returned. It gets no gradient.
      axes: how a mesh splits rows and head.

    Raises:
      ValueError: an unknown statistic, or a reference with a vocabulary of another size.
    """
    unknown = set(statistics) - set(STATISTICS)
    if unknown:
        raise ValueError(f"statistics: got {sorted(unknown)}, expected some of {', '.join(STATISTICS)}")

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
    division = Division.of(axes, source.shape[0], head.shape)
    tokens = source.size // division.parts(division.rows)
    entries = head.shape[1] // division.parts(division.vocabulary)
    tile = tile_shape(tokens, entries, platform())
    plan = _Plan(
        soft_cap,
        None if reference is None else reference.soft_cap,
        tuple(name for name in STATISTICS if name in statistics),
        entropy_gradient and "entropy" in statistics,
        Tile(
            tile.tokens if chunk is None else min(chunk, tokens),
            tile.entries if vocabulary_chunk is None else min(vocabulary_chunk, entries),
        ),
        division,
    )
    return _scores(gathered(hidden), head, target, other, plan)


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


class _Plan(NamedTuple):
    """What is known before tracing."""

    soft_cap: float | None
    reference_soft_cap: float | None
    statistics: tuple[str, ...]
    entropy_gradient: bool
    tile: Tile
    division: Division


def _precision(head):
    """Float32 means float32 also where the hardware would round the factors (TF32, bfloat16 passes)."""
    return jax.lax.Precision.HIGHEST if head.dtype == jnp.float32 else None


def _product(subscripts: str, left: Array, right: Array) -> Array:
    return jnp.einsum(subscripts, left, right, precision=_precision(right), preferred_element_type=jnp.float32)


def _capped_logits(states, columns, soft_cap):
    logits = _product("nd,dv->nv", states, columns)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _scores(states, head, target, other, plan):
    return _scores_forward(states, head, target, other, plan)[0]


def _scores_forward(states, head, target, other, plan):
    where = ("rows", "head", "rows", None if other is None else ("rows", "head"))
    names = ("logps", "logsumexp", *plan.statistics)
    names += () if other is None else ("reference_logps", "reference_logsumexp", "kl")
    run = plan.division.local(partial(_local_forward, plan), where, dict.fromkeys(names, "rows"))
    outputs = run(states, head, target, other)
    saved = (outputs.pop("logsumexp"), outputs.pop("reference_logsumexp", None))
    saved += (outputs["entropy"] if plan.entropy_gradient else None,)
    return TokenScores(**outputs), (states, head, target, other, saved)


def _local_forward(plan, states, head, target, other):
    rows, scored = target.shape
    other_states, other_head = (None, None) if other is None else other
    chunks = jax.tree.map(lambda x: chunked(x, plan.tile.tokens), (states, target, other_states))
    first = plan.division.first_entry(head)

    def block(softmaxes, start, size):
        ours = plan.division.columns(head, start, size)
        theirs = None if other_head is None else plan.division.columns(other_head, start, size)

        def one_chunk(inputs):
            (policy, reference), (chunk_states, chunk_target, chunk_other) = inputs
            index = chunk_target - first - start
            logits = _capped_logits(chunk_states, ours, plan.soft_cap)
            average = logits if "entropy" in plan.statistics else None
            policy = policy.seen(
                logits, index, average, "collision" in plan.statistics, "mean_logit" in plan.statistics
            )
            if theirs is not None:
                other_logits = _capped_logits(chunk_other, theirs, plan.reference_soft_cap)
                # The gap is summed, not the two logits apart: it is 0, exactly, where the two models agree.
                reference = reference.seen(other_logits, index, other_logits - logits, False, False)
            return policy, reference

        return each(one_chunk, (softmaxes, chunks))

    empty = _Softmax.empty(chunks[1].shape)
    softmaxes = over_blocks(block, (empty, None if other is None else empty), head.shape[1], plan.tile.entries)
    policy, reference = (None if s is None else s.joined(plan.division.vocabulary) for s in softmaxes)
    assert policy is not None
    logsumexp = policy.logsumexp
    outputs = {"logps": policy.picked - logsumexp, "logsumexp": logsumexp}
    if "entropy" in plan.statistics:
        outputs["entropy"] = logsumexp - policy.mean / policy.total
    if "correct" in plan.statistics:
        outputs["correct"] = (policy.picked >= policy.peak).astype(jnp.float32)
    if "mean_logit" in plan.statistics:
        vocabulary = head.shape[1] * plan.division.parts(plan.division.vocabulary)
        outputs["mean_logit"] = policy.plain_sum / vocabulary
    if "collision" in plan.statistics:
        outputs["collision"] = jnp.log(policy.squares) + 2.0 * (policy.peak - logsumexp)
    if reference is not None:
        outputs["reference_logsumexp"] = reference.logsumexp
        outputs["reference_logps"] = reference.picked - reference.logsumexp
        outputs["kl"] = reference.mean / reference.total - reference.logsumexp + logsumexp
    return {name: unchunked(value, rows, scored) for name, value in outputs.items()}


def _scores_backward(plan, residuals, cotangents):
    states, head, target, other, saved = residuals
    wanted = {
        "logps": cotangents.logps,
        "entropy": cotangents.entropy if plan.entropy_gradient else None,
        "kl": cotangents.kl,  # None without a reference
    }
    inputs = (states, head, target, other, saved, wanted)
    where = jax.tree.map(lambda _: "rows", inputs)
    where = (where[0], "head", where[2], None if other is None else ("rows", "head"), *where[4:])
    run = plan.division.local(partial(_local_backward, plan), where, ("rows", "head"))
    no_gradient = np.zeros(target.shape, jax.dtypes.float0)
    return *run(*inputs), no_gradient, None


def _local_backward(plan, states, head, target, other, saved, wanted):
    rows, scored = target.shape
    other_states, other_head = (None, None) if other is None else other
    chunks = jax.tree.map(lambda x: chunked(x, plan.tile.tokens), (states, target, saved, wanted, other_states))
    first = plan.division.first_entry(head)

    def block(carry, start, size):
        states_gradient, head_gradient = carry
        ours = plan.division.columns(head, start, size)
        theirs = None if other_head is None else plan.division.columns(other_head, start, size)

        def one_chunk(inputs):
            before, (chunk_states, chunk_target, (logsumexp, other_logsumexp, entropy), cotangent, chunk_other) = inputs
            logits = _capped_logits(chunk_states, ours, plan.soft_cap)
            log_probabilities = logits - logsumexp[:, None]
            probabilities = jnp.exp(log_probabilities)
            hit = (chunk_target - first - start)[:, None] == jnp.arange(size)
            gradient = cotangent["logps"][:, None] * (hit - probabilities)
            if theirs is not None:
                other_logits = _capped_logits(chunk_other, theirs, plan.reference_soft_cap)
                their_probabilities = jnp.exp(other_logits - other_logsumexp[:, None])
                gradient += cotangent["kl"][:, None] * (probabilities - their_probabilities)
            if plan.entropy_gradient:
                gradient -= cotangent["entropy"][:, None] * probabilities * (log_probabilities + entropy[:, None])
            if plan.soft_cap is not None:
                gradient = gradient * (1.0 - jnp.square(logits / plan.soft_cap))
            gradient = gradient.astype(head.dtype)
            after = before + _product("nv,dv->nd", gradient, ours)
            return after, _product("nd,nv->dv", chunk_states, gradient)

        states_gradient, block_gradient = each(one_chunk, (states_gradient, chunks), summed=True)
        block_gradient = plan.division.row_sum(block_gradient).astype(head.dtype)
        return states_gradient, jax.lax.dynamic_update_slice_in_dim(head_gradient, block_gradient, start, 1)

    carry = (jnp.zeros(chunks[0].shape, jnp.float32), jnp.zeros_like(head))
    states_gradient, head_gradient = over_blocks(block, carry, head.shape[1], plan.tile.entries)
    states_gradient = plan.division.vocabulary_sum(unchunked(states_gradient, rows, scored))
    return states_gradient.astype(states.dtype), head_gradient


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

    def seen(self, logits, index, average, squares: bool, plain: bool) -> _Softmax:
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
            self.plain_sum + logits.sum(-1) if plain else self.plain_sum,
            jnp.where(inside, here, self.picked),
        )

    def joined(self, axes: tuple[str, ...]) -> _Softmax:
        """Over the devices that have seen the other parts of the vocabulary."""
        if not axes:
            return self
        peak = jax.lax.pmax(self.peak, axes)
        shrink = jnp.exp(self.peak - peak)
        parts = (self.total * shrink, self.mean * shrink, self.squares * shrink**2, self.plain_sum, self.picked)
        return _Softmax(peak, *jax.lax.psum(parts, axes))
