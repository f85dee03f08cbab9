"""Whether a method's own reward of a completion is DPO's: ``beta`` times the summed log-ratio to the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.method import Layout, Logps, Method
from jaxalign.types import Pair

SUPPLIED = ("policy", "reference", "lengths", "mean_lengths", "example_mask", "state")
"""Inputs that any numbers will do for; a method that reads others is not asked."""


def is_dpo_reward(method: Method, options: Mapping[str, Any], beta: float) -> bool:
    """Asks the method's objective for its rewards of a few pairs, and compares them with DPO's.

    Log-ratios of both signs, small and large, tell functions of the log-ratio from the log-ratio itself.

    Args:
      method: the method.
      options: all of its options.
      beta: of DPO's reward, per nat.

    Returns:
      False also where nothing is known: no pairs, no reference, single tokens, or inputs that only real data has.
    """
    inputs = method.inputs
    if method.layout is not Layout.PAIRED or method.logps is not Logps.SUM:
        return False
    if not {"policy", "reference"} <= set(inputs) or not set(inputs) <= set(SUPPLIED):
        return False

    def pair(chosen: list[float], rejected: list[float]) -> Pair:
        return Pair(jnp.array(chosen), jnp.array(rejected))

    policy = pair([-20.0, -35.0, -41.0, -28.0], [-33.0, -22.0, -30.5, -61.0])
    reference = pair([-20.3, -30.0, -44.0, -58.0], [-31.0, -22.1, -40.0, -36.0])
    lengths = pair([10.0, 14.0, 20.0, 13.0], [16.0, 9.0, 12.0, 25.0])
    supplied = {
        "policy": policy,
        "reference": reference,
        "lengths": lengths,
        "mean_lengths": Pair(lengths.chosen.mean(), lengths.rejected.mean()),
        "example_mask": jnp.ones(4, bool),
        "state": {name: jnp.asarray(value, jnp.float32) for name, value in method.state.items()},
    }
    metrics = method.loss({name: supplied[name] for name in inputs}, options).metrics
    for name, own, theirs in (
        ("rewards/chosen", policy.chosen, reference.chosen),
        ("rewards/rejected", policy.rejected, reference.rejected),
    ):
        found = metrics.get(name)
        if found is None or not np.allclose(getattr(found, "values", found), beta * (own - theirs), rtol=1e-4):
            return False
    return True
