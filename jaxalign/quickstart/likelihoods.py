"""How likely a model finds given answers, and which of a pair it finds likelier."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from jaxalign.build.row_layout import lay_out
from jaxalign.data.pipeline import OrderedBatches, ordered_iterator
from jaxalign.data.records import ExampleSet
from jaxalign.data.rows import scored_values
from jaxalign.evaluation.outcome import Metric
from jaxalign.models.policy import Policy
from jaxalign.training.scoring import score
from jaxalign.types import Rows, Variables

BATCH_SIZE = 128

Ids = Sequence[int]


class Scorer:
    """Log-probabilities of answers under an architecture, with any weights: rows of one shape are one program."""

    def __init__(self, policy: Policy):
        """Compiles nothing yet.

        Args:
          policy: the model's functions.
        """

        def tokens(variables: Variables, rows: Rows) -> jax.Array:
            return score(policy, variables, rows).tokens.logps

        self._tokens = jax.jit(tokens)

    def __call__(self, variables: Variables, examples: Sequence[Sequence[Ids]]) -> np.ndarray:
        """Log-probability of each completion after its prompt, nats, ``[n, K]``.

        Args:
          variables: the weights.
          examples: prompt and K completions each, at least one.
        """
        segments = [segment for example in examples for segment in example]
        store = ExampleSet.from_segments(segments, completions=len(examples[0]) - 1)
        batches = OrderedBatches(store, batch_size=min(BATCH_SIZE, len(store)))
        layout = lay_out(batches, 1)
        # The last batch is smaller than the others, but takes as many rows.
        packer = layout.packer((), slice)  # of R rows all, `slice(R)`
        found = np.zeros((len(store), store.completions))
        for batch in ordered_iterator(batches, packer):
            logps = np.asarray(self._tokens(variables, jax.device_put(batch.rows)))
            for identity, completions in scored_values(batch.rows, logps):
                found[identity] = [values.sum(dtype=np.float64) for (values,) in completions]
        return found


def rankings(
    scorer: Scorer, variables: Variables, start: Variables | None, pairs: Sequence[tuple[Ids, Ids, Ids]]
) -> dict[str, Metric]:
    """Share of pairs that the model, and its change since the start, rank as the judge did.

    Args:
      scorer: of the model's architecture.
      variables: the model's weights.
      start: those of the model that the last stage began from; None = not told.
      pairs: prompt, chosen and rejected answer.
    """

    def margins(weights: Variables) -> np.ndarray:
        logps = scorer(weights, pairs)
        return logps[:, 0] - logps[:, 1]

    own = margins(variables)
    metrics = {"ranking": _share(own > 0)}
    if start is not None:
        metrics["reward_ranking"] = _share(own - margins(start) > 0)
    return metrics


def _share(flags: np.ndarray) -> Metric:
    return Metric(
        value=float(flags.mean()),
        n=flags.size,
        values=flags.astype(int).tolist(),
        higher_is_better=True,
        of_given_text=True,
    )
