"""Token log-probabilities from hidden states and the output head, in tiles and in float32.

Logits exist only where a token is scored, and only a tile at a time, ``[tokens, vocabulary entries]`` of `TILE_BYTES`.
The vocabulary is the outer loop: a block of the head is read once a pass, and its gradient is made and written once.
The backward pass recomputes each tile's logits once from the saved log-sum-exp.

On a mesh (that of `jax.set_mesh`) every device works on its own rows and its own part of the vocabulary. What travels:
a few numbers a token and the states' gradient over the vocabulary's axes; over the axes that split the head's width, a
block of the head and of its gradient at a time, so that the whole head never stands on a device.

Tokamax's `linear_softmax_cross_entropy_loss` (0.0.17) is not used, though it gives one loss a token with a cotangent
for each. It has no soft cap, no choice of precision, and neither entropy, accuracy nor KL, so a step that reports
these would pass over the vocabulary twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

TILE_BYTES = {"cpu": 16 << 20}
"""Of a tile's float32 logits: on a CPU what its caches hold; elsewhere `LARGE_TILE_BYTES`."""
LARGE_TILE_BYTES = 128 << 20
TILE_TOKENS = 4096
"""Tokens of a tile at most: beyond, more tokens make no product faster."""

STATISTICS = ("entropy", "correct", "mean_logit", "collision")


class MeshAxes(NamedTuple):
    """Which axes of a mesh split what; those that the mesh lacks, or that do not divide a size, are left out.

    Attributes:
      rows: R.
      width: D, of the head only.
      vocabulary: V.
    """

    rows: tuple[str, ...] = ("data", "fsdp")
    width: tuple[str, ...] = ("fsdp",)
    vocabulary: tuple[str, ...] = ("tensor",)


MESH_AXES = MeshAxes()


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
    mesh = jax.sharding.get_abstract_mesh()
    divided = mesh.size > 1 and not mesh.manual_axes
    rows = _dividing(mesh, axes.rows, source.shape[0]) if divided else ()
    vocabulary = _dividing(mesh, axes.vocabulary, head.shape[1]) if divided else ()
    # A head whose width is split otherwise than its gradient's sum over the rows is gathered by XLA.
    width = _dividing(mesh, tuple(a for a in axes.width if a in rows), head.shape[0]) if divided else ()
    tokens, entries = source.size // _parts(mesh, rows), head.shape[1] // _parts(mesh, vocabulary)
    platform = mesh.abstract_device.platform if divided and mesh.abstract_device else jax.default_backend()
    tile = tile_shape(tokens, entries, platform)
    plan = _Plan(
        soft_cap,
        None if reference is None else reference.soft_cap,
        tuple(name for name in STATISTICS if name in statistics),
        entropy_gradient and "entropy" in statistics,
        _Tile(
            tile.tokens if chunk is None else min(chunk, tokens),
            tile.entries if vocabulary_chunk is None else min(vocabulary_chunk, entries),
        ),
        mesh if divided else None,
        MeshAxes(rows, width, vocabulary),
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


class _Tile(NamedTuple):
    tokens: int
    entries: int


def tile_shape(tokens: int, vocabulary: int, platform: str) -> _Tile:
    """The tile, (tokens, vocabulary entries), whose logits exist at once.

    Args:
      tokens: scored tokens on a device.
      vocabulary: entries on a device.
      platform: "cpu", "gpu" or "tpu".
    """
    budget = TILE_BYTES.get(platform, LARGE_TILE_BYTES) // 4
    rows = -(-tokens // -(-tokens // TILE_TOKENS))
    entries = max(128, budget // rows)
    if entries >= vocabulary:
        return _Tile(rows, vocabulary)
    sizes = [size for size in range(entries, entries // 2, -1) if vocabulary % size == 0]
    aligned = [size for size in sizes if size % 128 == 0]
    if sizes:
        return _Tile(rows, (aligned or sizes)[0])
    # Nothing near divides it: blocks of one size, and one smaller block behind them.
    even = -(-vocabulary // -(-vocabulary // entries))
    return _Tile(rows, -(-even // 128) * 128)


def _dividing(mesh: AbstractMesh, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """The leading axes of the mesh whose sizes together divide `size`."""
    kept: tuple[str, ...] = ()
    for axis in axes:
        if mesh.shape.get(axis, 1) == 1:
            continue
        if size % (_parts(mesh, kept) * mesh.shape[axis]):
            break
        kept = (*kept, axis)
    return kept


def _parts(mesh: AbstractMesh, axes: tuple[str, ...]) -> int:
    return int(np.prod([mesh.shape[axis] for axis in axes], initial=1))


class _Plan(NamedTuple):
    """What is known before tracing."""

    soft_cap: float | None
    reference_soft_cap: float | None
    statistics: tuple[str, ...]
    entropy_gradient: bool
    tile: _Tile
    mesh: AbstractMesh | None
    axes: MeshAxes

    def local(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """`function` on each device's part. `inputs`, `outputs`: "rows", "head" or None (absent) for each array."""
        if self.mesh is None:
            return function
        rows = PartitionSpec(self.axes.rows or None)
        specs = {"rows": rows, "head": PartitionSpec(self.axes.width or None, self.axes.vocabulary or None)}

        def spec(names):
            return jax.tree.map(lambda name: specs[name], names)

        return jax.shard_map(function, mesh=self.mesh, in_specs=spec(inputs), out_specs=spec(outputs), check_vma=False)

    def first_entry(self, head: Array) -> Array | int:
        """The vocabulary entry that this device's part of the head begins with."""
        return jax.lax.axis_index(self.axes.vocabulary) * head.shape[1] if self.axes.vocabulary else 0

    def columns(self, head: Array, start: Any, size: int) -> Float[Array, "D size"]:
        """A block of the head."""
        block = jax.lax.dynamic_slice_in_dim(head, start, size, 1) if size < head.shape[1] else head
        return jax.lax.all_gather(block, self.axes.width, axis=0, tiled=True) if self.axes.width else block

    def row_sum(self, gradient: Float[Array, "D size"]) -> Array:
        """The gradient of a block of the head, summed over all devices' rows; this device's part of its width."""
        if self.axes.width:
            gradient = jax.lax.psum_scatter(gradient, self.axes.width, scatter_dimension=0, tiled=True)
        others = tuple(axis for axis in self.axes.rows if axis not in self.axes.width)
        return jax.lax.psum(gradient, others) if others else gradient

    def vocabulary_sum(self, values: Any) -> Any:
        """Over the devices that share the vocabulary."""
        return jax.lax.psum(values, self.axes.vocabulary) if self.axes.vocabulary else values


def _precision(head):
    """Float32 means float32 also where the hardware would round the factors (TF32, bfloat16 passes)."""
    return jax.lax.Precision.HIGHEST if head.dtype == jnp.float32 else None


def _product(subscripts: str, left: Array, right: Array) -> Array:
    return jnp.einsum(subscripts, left, right, precision=_precision(right), preferred_element_type=jnp.float32)


def _capped_logits(states, columns, soft_cap):
    logits = _product("nd,dv->nv", states, columns)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _chunked(array: Array, size: int) -> Array:
    """``[R, S, ...] -> [chunks, size, ...]``, the axis that the inner loop walks."""
    tokens = array.shape[0] * array.shape[1]
    flat = array.reshape(tokens, *array.shape[2:])
    padding = [(0, -tokens % size), *[(0, 0)] * (flat.ndim - 1)]
    return jnp.pad(flat, padding).reshape(-1, size, *array.shape[2:])


def _unchunked(array: Array, rows: int, scored: int) -> Array:
    flat = array.reshape(-1, *array.shape[2:])
    return flat[: rows * scored].reshape(rows, scored, *array.shape[2:])


def _over_blocks(body: Callable[[Any, Any, int], Any], carry: Any, vocabulary: int, size: int) -> Any:
    """``carry = body(carry, start, size)`` for each block of the vocabulary, the last one perhaps smaller."""
    full, rest = divmod(vocabulary, size)
    if full == 1:
        carry = body(carry, 0, size)
    else:
        starts = jnp.arange(full) * size
        carry = jax.lax.scan(lambda c, start: (body(c, start, size), None), carry, starts)[0]
    return body(carry, full * size, rest) if rest else carry


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _scores(states, head, target, other, plan):
    return _scores_forward(states, head, target, other, plan)[0]


def _scores_forward(states, head, target, other, plan):
    where = ("rows", "head", "rows", None if other is None else ("rows", "head"))
    names = ("logps", "logsumexp", *plan.statistics)
    names += () if other is None else ("reference_logps", "reference_logsumexp", "kl")
    run = plan.local(partial(_local_forward, plan), where, dict.fromkeys(names, "rows"))
    outputs = run(states, head, target, other)
    saved = (outputs.pop("logsumexp"), outputs.pop("reference_logsumexp", None))
    saved += (outputs["entropy"] if plan.entropy_gradient else None,)
    return TokenScores(**outputs), (states, head, target, other, saved)


def _local_forward(plan, states, head, target, other):
    rows, scored = target.shape
    other_states, other_head = (None, None) if other is None else other
    chunks = jax.tree.map(lambda x: _chunked(x, plan.tile.tokens), (states, target, other_states))
    first = plan.first_entry(head)

    def block(softmaxes, start, size):
        ours = plan.columns(head, start, size)
        theirs = None if other_head is None else plan.columns(other_head, start, size)

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

        return _each(one_chunk, (softmaxes, chunks))

    empty = _Softmax.empty(chunks[1].shape)
    softmaxes = _over_blocks(block, (empty, None if other is None else empty), head.shape[1], plan.tile.entries)
    policy, reference = (None if s is None else s.joined(plan.axes.vocabulary) for s in softmaxes)
    assert policy is not None
    logsumexp = policy.logsumexp
    outputs = {"logps": policy.picked - logsumexp, "logsumexp": logsumexp}
    if "entropy" in plan.statistics:
        outputs["entropy"] = logsumexp - policy.mean / policy.total
    if "correct" in plan.statistics:
        outputs["correct"] = (policy.picked >= policy.peak).astype(jnp.float32)
    if "mean_logit" in plan.statistics:
        parts = 1 if plan.mesh is None else _parts(plan.mesh, plan.axes.vocabulary)
        outputs["mean_logit"] = policy.plain_sum / (head.shape[1] * parts)
    if "collision" in plan.statistics:
        outputs["collision"] = jnp.log(policy.squares) + 2.0 * (policy.peak - logsumexp)
    if reference is not None:
        outputs["reference_logsumexp"] = reference.logsumexp
        outputs["reference_logps"] = reference.picked - reference.logsumexp
        outputs["kl"] = reference.mean / reference.total - reference.logsumexp + logsumexp
    return {name: _unchunked(value, rows, scored) for name, value in outputs.items()}


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
    run = plan.local(partial(_local_backward, plan), where, ("rows", "head"))
    no_gradient = np.zeros(target.shape, jax.dtypes.float0)
    return *run(*inputs), no_gradient, None


def _local_backward(plan, states, head, target, other, saved, wanted):
    rows, scored = target.shape
    other_states, other_head = (None, None) if other is None else other
    chunks = jax.tree.map(lambda x: _chunked(x, plan.tile.tokens), (states, target, saved, wanted, other_states))
    first = plan.first_entry(head)

    def block(carry, start, size):
        states_gradient, head_gradient = carry
        ours = plan.columns(head, start, size)
        theirs = None if other_head is None else plan.columns(other_head, start, size)

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

        states_gradient, block_gradient = _each(one_chunk, (states_gradient, chunks), summed=True)
        block_gradient = plan.row_sum(block_gradient).astype(head.dtype)
        return states_gradient, jax.lax.dynamic_update_slice_in_dim(head_gradient, block_gradient, start, 1)

    carry = (jnp.zeros(chunks[0].shape, jnp.float32), jnp.zeros_like(head))
    states_gradient, head_gradient = _over_blocks(block, carry, head.shape[1], plan.tile.entries)
    states_gradient = plan.vocabulary_sum(_unchunked(states_gradient, rows, scored))
    return states_gradient.astype(states.dtype), head_gradient


_scores.defvjp(_scores_forward, _scores_backward)


def _each(one_chunk: Callable[[Any], Any], chunks: Any, summed: bool = False) -> Any:
    """`one_chunk` for each chunk; `summed`: the second of its two results is summed over the chunks, not collected."""
    count = jax.tree.leaves(chunks)[0].shape[0]
    if count == 1:
        results = one_chunk(jax.tree.map(lambda x: x[0], chunks))
        collected, total = results if summed else (results, None)
        collected = jax.tree.map(lambda x: x[None], collected)
        return (collected, total) if summed else collected
    if not summed:
        return jax.lax.map(one_chunk, chunks)

    def add(total, chunk):
        collected, part = one_chunk(chunk)
        return total + part, collected

    part = jax.eval_shape(one_chunk, jax.tree.map(lambda x: x[0], chunks))[1]
    total, collected = jax.lax.scan(add, jnp.zeros(part.shape, part.dtype), chunks)
    return collected, total


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
