"""What a method's objective is told of a batch of rows: one forward pass of the policy, and the reference's answer.

A `Reading` stays in the row layout, per token or per completion, so that it can be split into micro-batches and put
together again. `by_example` turns it into what `jaxalign.training.inputs.objective_inputs` takes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.data.records import no_token
from jaxalign.logprobs import TokenScores
from jaxalign.methods import INPUTS, Logps, Method
from jaxalign.training.references import Reference, ReferenceLogps
from jaxalign.training.scoring import by_completion, completion_lengths, score, sum_completions
from jaxalign.types import Rows, Variables

OF_TOKENS = {"token_kl": "kl", "token_entropy": "entropy", "token_collision": "collision"}
"""Input of an objective -> the statistic of `TokenScores` that it is."""


class Reading(NamedTuple):
    """One pass over some rows.

    Attributes:
      policy: what carries a gradient, by name: ``logps [R, S]``, ``token_kl`` and ``token_entropy`` ``[R, S]``,
        ``rewards [R, E, K]``, ``step_logits [R, S, 2]``, ``degree_logits [R, E, M, C]``; those that the method asks
        for.
      fixed: what carries none: ``token_collision [R, S]``.
      reference: the reference's log-probabilities.
      tokens: statistics for the step's metrics; None where no token is scored.
    """

    policy: Mapping[str, Array]
    fixed: Mapping[str, Array]
    reference: ReferenceLogps
    tokens: TokenScores | None


def wants_logps(method: Method) -> bool:
    """Whether the method's loss reads log-probabilities, so that tokens must be scored."""
    return "policy" in method.inputs or any(name in method.inputs for name in OF_TOKENS)


def wants_language_head(method: Method) -> bool:
    """Whether what is trained stays a language model: it is scored, or a head beside it is dropped at the end."""
    return wants_logps(method) or "degree_logits" in method.inputs


def read(
    policy: Any,
    variables: Variables,
    method: Method,
    reference: Reference,
    reference_state: Any,
    frozen: Mapping[str, Any],
    rows: Rows,
    statistics: Collection[str] = (),
) -> Reading:
    """Runs policy and reference over the rows, as far as the method asks for them.

    Args:
      policy: the policy's functions.
      variables: its variables.
      method: says what is needed.
      reference: the run's reference.
      reference_state: its state.
      frozen: the step's frozen tree.
      rows: the batch.
      statistics: of each token, for metrics (see `jaxalign.logprobs.STATISTICS`).
    """
    hidden = policy.hidden(variables, rows)
    carried: dict[str, Array] = {}
    if any(INPUTS[name].head for name in method.inputs):
        carried = _head_outputs(policy, variables, method, hidden, rows)
    if not wants_logps(method):
        return Reading(carried, {}, reference.logps(reference_state, frozen, rows), None)
    asked = {OF_TOKENS[name] for name in method.inputs if name in OF_TOKENS}
    live = reference.distribution(reference_state, frozen, rows) if "kl" in asked and reference.distribution else None
    scores = score(
        policy,
        variables,
        rows,
        hidden=hidden,
        statistics={*statistics, *(asked - {"kl"})},
        entropy_gradient="entropy" in asked,
        reference=live,
    )
    tokens = scores.tokens
    carried["logps"] = tokens.logps
    for name, statistic in OF_TOKENS.items():
        if name in method.inputs and INPUTS[name].trains:
            carried[name] = getattr(tokens, statistic)
    fixed = {} if tokens.collision is None else {"token_collision": jax.lax.stop_gradient(tokens.collision)}
    if live is None:
        theirs = reference.logps(reference_state, frozen, rows)
    else:
        assert tokens.reference_logps is not None
        logps = jax.lax.stop_gradient(tokens.reference_logps)
        theirs = ReferenceLogps(sum_completions(logps, rows), logps)
    return Reading(carried, fixed, theirs, jax.lax.stop_gradient(tokens))


def sums(reading_policy: Mapping[str, Array], rows: Rows) -> Float[Array, "R E K"]:
    """The policy's summed log-probability of each completion; zeros where no token is scored."""
    if "logps" in reading_policy:
        return sum_completions(reading_policy["logps"], rows)
    return jnp.zeros((*rows.example_mask.shape, rows.completions), jnp.float32)


def by_example(
    method: Method,
    policy: Mapping[str, Array],
    fixed: Mapping[str, Array],
    reference: ReferenceLogps,
    rows: Rows,
) -> dict[str, Array]:
    """A reading by input name: ``[R, E, K]`` a completion, ``[R, E, K, N]`` a token, ``[R, E, ...]`` an example."""
    lengths = completion_lengths(rows)
    found: dict[str, Array] = {}
    for name in method.inputs:
        if name == "policy":
            tokens = method.logps is Logps.TOKEN
            found[name] = by_completion(policy["logps"], lengths) if tokens else sums(policy, rows)
        elif name == "reference":
            if method.logps is Logps.TOKEN:
                assert reference.tokens is not None  # check_reference says so first
                found[name] = by_completion(reference.tokens, lengths)
            else:
                found[name] = reference.sums
        elif name in ("rewards", "degree_logits"):
            found[name] = policy[name]
        elif name in policy:
            found[name] = by_completion(policy[name], lengths)
        elif name in fixed:
            found[name] = by_completion(fixed[name], lengths)
        elif INPUTS[name].column and INPUTS[name].per == "token":
            column = rows.columns[name]
            found[name] = by_completion(column, lengths, no_token(column.dtype))
    # An unpaired method's second completion is another example's; the objective is told of it under names of its own.
    if method.mismatched and "policy" not in found:
        found["policy"] = sums(policy, rows)
    return found


def _head_outputs(policy: Any, variables: Variables, method: Method, hidden: Array, rows: Rows) -> dict[str, Array]:
    found = {}
    if "step_logits" in method.inputs:
        index = rows.columns["score_index"]
        found["step_logits"] = policy.outputs(variables, jnp.take_along_axis(hidden, index[..., None], axis=1))
    if "rewards" in method.inputs or "degree_logits" in method.inputs:
        ends = rows.columns["ends"]
        states = jnp.take_along_axis(hidden, ends.reshape(len(ends), -1, 1), axis=1)
        outputs = policy.outputs(variables, states.reshape(*ends.shape, -1))
        own = rows.completions
        if "rewards" in method.inputs:
            found["rewards"] = outputs[:, :, :own, 0]
        else:
            found["degree_logits"] = outputs  # intact completions first: they have degree 0
    return found
