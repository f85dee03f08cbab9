"""A reference's per-token log-probabilities of examples, over the whole mesh, forward only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.data.pipeline import Packer
from jaxalign.data.records import Example
from jaxalign.training.mesh import MeshPlan
from jaxalign.training.scoring import score
from jaxalign.types import Variables


class RowScorer:
    """Scores examples in packed rows; the same call on every process gives the same values.

    Args:
      policy: the reference's functions.
      variables: its weights, on the mesh.
      packer: how examples become rows.
      plan: the mesh.
    """

    def __init__(self, policy: Any, variables: Variables, packer: Packer, plan: MeshPlan):
        self._variables = variables
        self._packer = packer
        self._plan = plan
        self._logps = jax.jit(
            lambda variables, rows: score(policy, variables, rows).tokens.logps, out_shardings=plan.replicated
        )

    def __call__(self, examples: Sequence[Example]) -> list[tuple[np.ndarray, ...]]:
        """The log-probabilities of each example's completions, nats: K arrays, one value a scored token."""
        batch = self._packer(list(enumerate(examples)))
        rows = self._plan.put_rows(batch.rows, batch.global_rows, batch.first_row)
        logps = np.asarray(jax.device_get(self._logps(self._variables, rows)))
        result: list[tuple[np.ndarray, ...]] = [()] * len(examples)
        for row, members in enumerate(self._packer.plan(examples)[1].rows):
            cursor = 0
            for identity in members:
                arrays = []
                for completion in examples[identity].completions:
                    arrays.append(logps[row, cursor : cursor + len(completion)])
                    cursor += len(completion)
                result[identity] = tuple(arrays)
        return result
