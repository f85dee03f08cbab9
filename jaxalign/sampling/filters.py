"""Which tokens may be drawn: top-k and top-p as pure functions over logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

REMOVED = -jnp.inf


def top_k_filter(logits: Float[Array, "N V"], k: int) -> Float[Array, "N V"]:
    """Keep the `k` largest logits of each row (and those equal to the smallest of them); 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    smallest = jax.lax.top_k(logits, k)[0][:, -1:]
    return jnp.where(logits < smallest, REMOVED, logits)


def top_p_filter(logits: Float[Array, "N V"], p: float | Float[Array, ""]) -> Float[Array, "N V"]:
    """Keep the fewest most probable tokens whose probabilities sum to at least `p` (Holtzman et al., 2020).

    The most probable token is always kept, and so are tokens exactly as probable as the last one kept.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (before < p).at[:, 0].set(True)
    smallest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, REMOVED, logits)
