"""How likely a policy finds it to stop where a given completion stops.

Methods differ in what they do to the end token: where its probability falls, answers grow long and at last never end.

Source: arXiv 2407.13709, figure 3: the mean log-probability of the end token at the end, and its mean difference
between chosen and rejected completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxalign.evaluation.outcome import Metric
from jaxalign.evaluation.token_shift import Scored


def end_token_metrics(examples: Sequence[Mapping[str, Scored]]) -> dict[str, Metric]:
    """Log-probabilities of the end token, nats, over the completions that have one.

    ==============================  ===================================================================================
    ``end/logp/NAME``               under the policy, at the end of the completions NAME
    ``end/reference_logp/NAME``     under the reference
    ``end/margin``                  that of the chosen minus that of the rejected completion, over pairs of two ends
    ``end/reference_margin``        the same under the reference
    ==============================  ===================================================================================

    Args:
      examples: completions by name (``chosen``, ``rejected``).
    """
    metrics = {}
    for name in dict.fromkeys(name for each in examples for name in each):
        ends = [each[name] for each in examples if name in each and each[name].ended]
        if ends:
            metrics[f"end/logp/{name}"] = _nats([float(each.policy[-1]) for each in ends])
            metrics[f"end/reference_logp/{name}"] = _nats([float(each.reference[-1]) for each in ends])
    pairs = [(each["chosen"], each["rejected"]) for each in examples if {"chosen", "rejected"} <= each.keys()]
    pairs = [(chosen, rejected) for chosen, rejected in pairs if chosen.ended and rejected.ended]
    if pairs:
        metrics["end/margin"] = _nats([float(a.policy[-1]) - float(b.policy[-1]) for a, b in pairs])
        metrics["end/reference_margin"] = _nats([float(a.reference[-1]) - float(b.reference[-1]) for a, b in pairs])
    return metrics


def _nats(values: list[float]) -> Metric:
    return Metric(value=sum(values) / len(values), n=len(values), values=values, unit="nats")
