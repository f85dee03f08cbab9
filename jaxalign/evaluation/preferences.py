"""Held-out evaluation on preference data: the same numbers whatever the batch size, the packing and the devices.

The compiled part only scores completions. Their log-probabilities, a few numbers an example, are collected on the host
for the whole set, and the objective is applied to all of them at once. A batch-coupled objective (KTO's ``z0``) so sees
the set as one batch, and every mean is one division.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float

from jaxalign.errors import DataError, NumericsError, some
from jaxalign.methods import INPUTS, Layout, Logps, Method
from jaxalign.training.inputs import example_keys, objective_inputs
from jaxalign.training.mesh import programs_in_flight
from jaxalign.training.readings import by_example, read, sums, wants_logps
from jaxalign.training.references import Reference
from jaxalign.training.scoring import completion_lengths
from jaxalign.types import LossOutput, Rows, Variables, Weighted


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CompletionScores:
    """What evaluation keeps of some examples. Leading axes ``[R, E]`` from a step, ``[N]`` once collected.

    Attributes:
      policy: summed log-probability of each completion, nats, ``[..., K]``; zeros for a method that reads none.
      reference: the same under the reference (zeros where there is none), ``[..., K]``.
      lengths: scored tokens, ``[..., K]``.
      example_mask: False where there is no example, ``[...]``.
      columns: what else the metrics need, by name.
      values: what else the objective reads of policy and reference, by input name (see `objective_inputs`).
      has_reference: whether `reference` is a model's. Static.
    """

    policy: Float[Array, "... K"]
    reference: Float[Array, "... K"]
    lengths: Float[Array, "... K"]
    example_mask: Bool[Array, "..."]
    columns: Mapping[str, Array]
    has_reference: bool = field(metadata={"static": True})
    values: Mapping[str, Array] = field(default_factory=dict)


EvalStep = Callable[[Variables, Any, Mapping[str, Any], Rows], CompletionScores]
"""``(variables, reference_state, frozen, rows) -> CompletionScores``."""


Summary = Callable[[Method, Mapping[str, Any], CompletionScores, Mapping[str, Any] | None], dict[str, Any]]
"""``(method, options, scores, method_state) -> what is told of them``."""


def make_eval_step(policy: Any, method: Method, reference: Reference) -> EvalStep:
    """Builds the scoring step. It is pure: the caller jits it and pins shardings.

    Args:
      policy: the policy's functions (a `jaxalign.models.policy.Policy`).
      method: says which columns its objective reads.
      reference: where reference log-probabilities come from.
    """
    kept = {name for name in method.columns if INPUTS[name].per != "token"} | {"example_id", "reference_lengths"}

    def step(variables, reference_state, frozen, rows):
        found = read(policy, variables, method, reference, reference_state, frozen, rows)
        values = by_example(method, found.policy, found.fixed, found.reference, rows)
        if method.logps is not Logps.TOKEN:
            values = {name: value for name, value in values.items() if name not in ("policy", "reference")}
        return CompletionScores(
            values=values,
            policy=sums(found.policy, rows),
            reference=found.reference.sums,
            lengths=completion_lengths(rows),
            example_mask=rows.example_mask,
            columns={name: column for name, column in rows.columns.items() if name in kept},
            has_reference=not reference.absent,
        )

    return step


def collect(batches: Iterable[CompletionScores]) -> CompletionScores:
    """All examples of all batches and all processes, ``[N, ...]`` NumPy, in the order of ``columns["example_id"]``.

    An example that is there twice (by its id) counts once. Every process gets the same.

    Raises:
      DataError: there is no example.
      NumericsError: a log-probability is not finite.
    """
    waiting: deque[CompletionScores] = deque()
    in_flight = programs_in_flight()
    parts: list[CompletionScores] = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > in_flight:
            parts.append(_valid_examples(waiting.popleft()))
    parts.extend(map(_valid_examples, waiting))
    if not parts or not sum(len(part.example_mask) for part in parts):
        raise DataError("evaluation: there are no held-out examples; set data.eval or data.eval_size")
    everything = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    if "example_id" in everything.columns:
        order = np.unique(everything.columns["example_id"], return_index=True)[1]
        everything = jax.tree.map(lambda array: array[order], everything)
    _check_finite(everything)
    return everything


def preference_metrics(
    method: Method,
    options: Mapping[str, Any],
    scores: CompletionScores,
    state: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Metrics of a whole held-out set, without the ``eval_`` prefix.

    ==================================  ==============================================================================
    ``loss``                            the method's loss, ``sum(weights * losses) / sum(weights)``
    ``rewards/*``, ``logps/*``, ...     the objective's own metrics under TRL's names; ``rewards/margins`` of unpaired
                                        data is the difference of the two means
    ``ranking/accuracy``                share of pairs with ``log p(chosen) > log p(rejected)`` (sums); a tie is wrong
    ``ranking/accuracy_per_token``      the same of token means
    ``ranking/reference_accuracy`` and  the same under the reference
    ``..._per_token``
    ``kl/sequence``                     mean over the chosen completions of ``rho = log p(y|x) - log p_ref(y|x)``, nats
    ``kl/token``                        ``sum(rho) / sum(tokens)`` over the chosen completions, nats per token
    ``lengths/chosen``, ``/rejected``   mean scored tokens of a completion
    ==================================  ==============================================================================

    ``kl/*`` is the first-order ("k1") Monte-Carlo estimator of KL(policy || reference) with the data's chosen
    completions in the place of samples from the policy. So it is not that divergence, but a cheap sign of how far the
    policy has moved on such text: 0 at the start, and negative where the policy finds the chosen completions less
    likely than the reference does. "Chosen" are the desirable completions of unpaired data and all those of single
    ones. Ranking needs pairs. Without a reference model, what compares with it is left out.

    Args:
      method: its objective is applied once, to all examples.
      options: the method's hyper-parameters.
      scores: from `collect`.
      state: the method's running statistics, which stay as they are; None = those before the first step.
    """
    output = _apply(method, options, scores, state)
    metrics = {"loss": _mean(output.losses, output.weights)}
    for name, value in output.metrics.items():
        values, weights = value if isinstance(value, Weighted) else (value, np.ones_like(value))
        if weights.any():
            metrics[name] = _mean(values, weights)
    if {"rewards/chosen", "rewards/rejected"} <= metrics.keys() and "rewards/margins" not in metrics:
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    metrics |= {name: float(values.mean()) for name, values in _ranking(method, scores).items()}
    metrics |= _distances(method, scores)
    broken = {name: value for name, value in metrics.items() if not np.isfinite(value)}
    if broken:
        raise NumericsError(
            "evaluation: not finite: " + ", ".join(f"{name} = {value}" for name, value in broken.items())
        )
    return metrics


def preference_values(
    method: Method,
    options: Mapping[str, Any],
    scores: CompletionScores,
    state: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """The examples' own values, ``[N]`` float64, of those metrics of `preference_metrics` that are plain means of them.

    What is a mean over some of the examples, or a ratio of sums, is left out. The arguments are those of
    `preference_metrics`.
    """
    output = _apply(method, options, scores, state)
    found: dict[str, Any] = {name: value for name, value in output.metrics.items() if not isinstance(value, Weighted)}
    if np.all(output.weights == output.weights[0]):
        found["loss"] = output.losses
    found |= _ranking(method, scores)
    if method.layout is Layout.PAIRED and scores.has_reference and wants_logps(method):
        found["kl/sequence"] = scores.policy[:, 0].astype(np.float64) - scores.reference[:, 0]
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def _apply(
    method: Method, options: Mapping[str, Any], scores: CompletionScores, state: Mapping[str, Any] | None
) -> LossOutput:
    """The objective, once, on all examples; on the host."""
    count = len(scores.example_mask)
    # What a method draws at random is drawn by example, so that it is the same in every evaluation.
    ids = jnp.asarray(scores.columns.get("example_id", np.arange(count)))
    keys = example_keys(jax.random.key_data(jax.random.key(0)), 0, ids) if "keys" in method.inputs else None
    inputs = objective_inputs(
        method,
        jax.tree.map(jnp.asarray, {"policy": scores.policy, "reference": scores.reference, **scores.values}),
        lengths=jnp.asarray(scores.lengths),
        columns={name: jnp.asarray(column) for name, column in scores.columns.items()},
        example_mask=jnp.ones(count, bool),
        state=state,
        keys=keys,
    )
    return jax.device_get(method.objective(**inputs, **options))


def evaluate_preferences(
    step: EvalStep,
    batches: Iterable[Rows],
    *,
    method: Method,
    options: Mapping[str, Any],
    variables: Variables,
    reference_state: Any = (),
    frozen: Mapping[str, Any] | None = None,
    method_state: Mapping[str, Any] | None = None,
    summary: Summary = preference_metrics,
) -> dict[str, Any]:
    """Scores every batch and applies `preference_metrics` to the whole.

    Args:
      step: from `make_eval_step`, compiled.
      batches: rows on the devices; each example once.
      method: the method.
      options: its hyper-parameters.
      variables: the policy's.
      reference_state: a moving reference's state.
      frozen: the step's frozen tree (``reference`` for a live reference).
      method_state: the method's running statistics; None = those before the first step.
      summary: what is told of the scores: `preference_metrics`, or `preference_values`.

    Raises:
      DataError: there is no example.
      NumericsError: a log-probability is not finite.
    """
    scores = collect(step(variables, reference_state, frozen or {}, rows) for rows in batches)
    return summary(method, options, scores, method_state)


def metric_names(method: Method, options: Mapping[str, Any], has_reference: bool) -> list[str]:
    """The names that `preference_metrics` will give, without any data."""
    several = method.layout in (Layout.PAIRED, Layout.RANKED) or method.mismatched
    completions = 2 if several else 1

    def some(name: str) -> Any:
        per = "token" if name in ("policy", "reference") and method.logps is Logps.TOKEN else INPUTS[name].per
        if name == "degree_logits":
            return np.zeros((2, 1, method.head_outputs(options)), np.float32)
        if name == "degrees":
            return np.zeros((2, 1), np.int32)
        if name == "step_labels":
            return np.broadcast_to(np.array([0, 1, -1], np.int32), (2, completions, 3))
        if name in ("scores", "win_probabilities"):
            return np.broadcast_to(np.arange(completions, 0, -1).astype(np.float32) / completions, (2, completions))
        shape = {"example": (2,), "completion": (2, completions), "token": (2, completions, 3)}[per]
        return np.full((*shape, 2) if name == "step_logits" else shape, -1.0, np.float32)

    ours = [name for name in method.inputs if INPUTS[name].per != "batch" and name not in ("lengths", "example_mask")]
    columns = {name: some(name) for name in method.columns if INPUTS[name].per != "token"}
    if "desirable" in columns:
        columns["desirable"] = np.array([True, False])
    every: Any = np.ones((2, completions), np.float32)
    mask: Any = np.ones(2, bool)
    scores = CompletionScores(
        values={name: some(name) for name in ours if name not in (*columns, "keys")},
        policy=-every,
        reference=-every,
        lengths=every,
        example_mask=mask,
        columns=columns,
        has_reference=has_reference,
    )
    return list(preference_metrics(method, options, scores))


def _valid_examples(batch: CompletionScores) -> CompletionScores:
    """A step's scores on the host, ``[n, ...]``, without the places that hold no example."""
    if jax.process_count() > 1:
        batch = multihost_utils.process_allgather(batch, tiled=True)
    batch = jax.device_get(batch)
    mask = batch.example_mask.reshape(-1)
    leading = batch.example_mask.ndim
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[leading:])[mask], batch)


def _check_finite(scores: CompletionScores) -> None:
    for name in ("policy", "reference"):
        broken = np.flatnonzero(~np.isfinite(getattr(scores, name)).all(axis=-1))
        if len(broken):
            ids = scores.columns.get("example_id", np.arange(len(scores.example_mask)))[broken]
            raise NumericsError(
                f"evaluation: the {name}'s log-probabilities are not finite for {len(broken)} of "
                f"{len(scores.example_mask)} held-out examples (ids {some(ids, 5)})"
            )


def _mean(values: Any, weights: Any) -> float:
    weights = np.asarray(weights, np.float64)
    counted = np.where(weights != 0, np.asarray(values, np.float64), 0.0)
    return float((counted * weights).sum() / weights.sum()) if weights.any() else float("nan")


def _ranking(method: Method, scores: CompletionScores) -> dict[str, np.ndarray]:
    """Whether each pair is ranked right, ``[N]``."""
    if method.layout is not Layout.PAIRED or not wants_logps(method):
        return {}
    sources = {"": (scores.policy, scores.lengths)}
    if scores.has_reference:
        sources["reference_"] = (scores.reference, scores.columns.get("reference_lengths", scores.lengths))
    metrics = {}
    for prefix, (logps, lengths) in sources.items():
        for suffix, values in (("", logps), ("_per_token", logps / np.maximum(lengths, 1))):
            metrics[f"ranking/{prefix}accuracy{suffix}"] = values[:, 0] > values[:, 1]
    return metrics


def _distances(method: Method, scores: CompletionScores) -> dict[str, float]:
    everyone = np.ones(len(scores.example_mask), bool)
    desirable = np.asarray(scores.columns.get("desirable", everyone)).astype(bool)
    groups = {
        Layout.SINGLE: {"chosen": (0, everyone)},
        Layout.PAIRED: {"chosen": (0, everyone), "rejected": (1, everyone)},
        Layout.UNPAIRED: {"chosen": (0, desirable), "rejected": (0, ~desirable)},
    }.get(method.layout, {})
    metrics = {}
    for name, (k, members) in groups.items():
        if not members.any():
            continue
        lengths = scores.lengths[members, k].astype(np.float64)
        metrics[f"lengths/{name}"] = float(lengths.mean())
        if name == "chosen" and scores.has_reference and wants_logps(method):
            ratios = scores.policy[members, k].astype(np.float64) - scores.reference[members, k]
            metrics["kl/sequence"] = float(ratios.mean())
            metrics["kl/token"] = float(ratios.sum() / max(lengths.sum(), 1.0))
    return metrics
