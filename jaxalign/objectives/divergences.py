"""What takes the place of a log-ratio where the tie to the reference is another divergence than the reverse KL."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def divergence_link(
    divergence: Divergence, rho: Float[Array, " B"], alpha: float, exponent_clip: float
) -> Float[Array, " B"]:
    """``g(rho) = f'(exp(rho))`` of an f-divergence, shifted so that ``g(0) = 0``, ``[B]``.

    ::

      g(rho) = rho                                 "reverse_kl"
               1 - exp(-rho)                       "forward_kl"
               log 2 + log sigmoid(rho)            "js", Jensen-Shannon
               (1 - exp(-alpha * rho)) / alpha     "alpha"

    Args:
      divergence: its name.
      rho: log-ratios of policy and reference, nats, ``[B]``.
      alpha: of ``"alpha"``, between 0 (reverse KL) and 1 (forward KL).
      exponent_clip: largest argument of exp; beyond it there is no gradient.

    Raises:
      ValueError: there is no such divergence.

    References:
      Wang et al. 2023, arXiv 2309.16240.
    """
    if divergence == "reverse_kl":
        return rho
    if divergence == "forward_kl":
        return -jnp.expm1(jnp.minimum(-rho, exponent_clip))
    if divergence == "js":
        return jnp.log(2.0) + jax.nn.log_sigmoid(rho)
    if divergence == "alpha":
        return -jnp.expm1(jnp.minimum(-alpha * rho, exponent_clip)) / alpha
    raise ValueError(f"divergence: got {divergence!r}, expected 'reverse_kl', 'forward_kl', 'js' or 'alpha'.")
