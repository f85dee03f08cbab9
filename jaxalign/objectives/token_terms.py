"""The pieces of objectives that see tokens: sums of weighted tokens, and which tokens count how much.

A completion is a row of N tokens, 0 (False) behind its last one. Nothing depends on N.
"""

from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree, UInt32

from jaxalign.objectives.terms import Pairs, at_least_float32, fixed
from jaxalign.types import Pair

if TYPE_CHECKING:
    TokenPairs: TypeAlias = Pair[Float[Array, "B N"]]
    TokenMasks: TypeAlias = Pair[Bool[Array, "B N"]]
else:
    TokenPairs = PyTree[Float[Array, "B _N"]]  # the two sides may be cut at lengths of their own
    TokenMasks = PyTree[Bool[Array, "B _N"]]


def token_sums(values: TokenPairs, weights: TokenPairs | None = None) -> Pairs:
    """Sums over the tokens of each completion, ``[B]`` each; a token times its weight, without a gradient into it."""
    if weights is None:
        return jax.tree.map(lambda value: at_least_float32(value).sum(-1), values)
    return jax.tree.map(lambda value, weight: (at_least_float32(value) * fixed(weight)).sum(-1), values, weights)


def token_counts(token_mask: TokenMasks) -> Pairs:
    """Tokens of each completion, ``[B]`` float32 each."""
    return jax.tree.map(lambda mask: mask.sum(-1).astype(jnp.float32), token_mask)


def tail_weights(token_mask: TokenMasks, tail: float) -> TokenPairs:
    """1 for the tokens up to the length of the pair's shorter completion, `tail` for those behind, ``[B, N]`` each."""
    lengths = token_counts(token_mask)
    shared = jnp.minimum(lengths.chosen, lengths.rejected)[:, None]

    def weights(mask: Bool[Array, "B N"]) -> Float[Array, "B N"]:
        return mask * jnp.where(jnp.arange(mask.shape[-1]) < shared, 1.0, tail)

    return Pair(weights(token_mask.chosen), weights(token_mask.rejected))


def drawn_tokens(token_mask: TokenMasks, keys: Key[Array, " B"]) -> TokenPairs:
    """As many tokens of both completions as the shorter one has, drawn without replacement: 1 = drawn, ``[B, N]`` each.

    Each token draws a number of its own, from its example's key, its side and its place, and the tokens with the
    smallest numbers are taken. So a draw depends neither on N nor on the other examples, and all subsets of a
    completion are equally likely. The shorter completion is taken whole.
    """
    lengths = token_counts(token_mask)
    count = jnp.minimum(lengths.chosen, lengths.rejected)[:, None]

    def drawn(mask: Bool[Array, "B N"], side: int) -> Float[Array, "B N"]:
        def numbers(key: Key[Array, ""]) -> UInt32[Array, " N"]:
            own = jax.random.fold_in(key, side)
            places = jnp.arange(mask.shape[-1])
            return jax.vmap(lambda place: jax.random.bits(jax.random.fold_in(own, place), dtype=jnp.uint32))(places)

        # The sort is stable, so equal numbers go by place, and what is behind the last token comes last.
        order = jnp.where(mask, jax.vmap(numbers)(keys), ~jnp.uint32(0)).argsort(axis=-1)
        ranks = order.argsort(axis=-1)
        return (mask & (ranks < count)).astype(jnp.float32)

    return Pair(drawn(token_mask.chosen, 0), drawn(token_mask.rejected, 1))


def alignment_weights(policy: TokenPairs, token_collision: TokenPairs, token_mask: TokenMasks) -> Pairs:
    """``log w``, the mean over a completion's tokens of ``log p_t - log sum_v p_v^2``, ``[B]`` each, no gradient.

    A completion that the policy itself would write has a ``w`` near 1, an unlikely one a smaller one.
    """

    def mean(
        logps: Float[Array, "B N"], collision: Float[Array, "B N"], mask: Bool[Array, "B N"]
    ) -> Float[Array, " B"]:
        excess = jnp.where(mask, fixed(logps) - fixed(collision), 0.0)
        return excess.sum(-1) / jnp.maximum(mask.sum(-1), 1)

    return jax.tree.map(mean, policy, token_collision, token_mask)
