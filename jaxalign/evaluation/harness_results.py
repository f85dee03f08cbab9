"""lm-eval's results as an `Outcome`: numbers with their spread, question by question, and the protocol behind them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.evaluation.outcome import Metric, Outcome
from jaxalign.evaluation.suites import Benchmark, Suite

MOST_VALUES = 5000
"""Items whose values are kept where they are no plain 0 or 1: those cost ten times as many bytes."""
GIVEN_TEXT = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")
"""lm-eval's kinds of tasks that score given text, so that a model that writes no language may still be measured."""
SAMPLES = 2
SAMPLE_CHARACTERS = 2000


def make_outcome(
    found: Mapping[str, Any],
    suite: Suite,
    *,
    lm: Any,
    notes: Sequence[str] = (),
    limit: int | None = None,
    chat: bool = False,
    system: str | None = None,
    shots: int | None = None,
) -> Outcome:
    """What a suite found.

    Args:
      found: of lm-eval's `simple_evaluate`, with samples.
      suite: that was run.
      lm: the `JaxalignLM` that answered.
      notes: to be told with the outcome.
      limit: documents of each task; None = all.
      chat: prompts were in the chat template.
      system: the system's message.
      shots: that replaced the suite's own.
    """
    tasks = _leaves(found, suite)
    metrics: dict[str, Metric] = {}
    protocol: dict[str, Any] = {}
    headline: dict[str, Metric] = {}
    notes = list(notes)
    for benchmark in suite.benchmarks:
        leaves = tasks[benchmark.task]
        parts = {leaf: _task_metrics(found, leaf) for leaf in leaves}
        if len(leaves) == 1 and leaves[0] == benchmark.task:
            own = parts[leaves[0]]
        else:
            own = _over_subjects(parts)
        metrics |= {f"{benchmark.task}/{name}": metric for name, metric in own.items()}
        chosen = benchmark.metric if benchmark.metric in own else next(iter(own), None)
        if chosen is not None:
            headline[benchmark.task] = own[chosen]
        cut = sum(lm.cut[leaf] for leaf in leaves)
        protocol[benchmark.task] = _task_protocol(found, leaves, chosen, cut)
        if cut:
            notes.append(f"{benchmark.task}: {cut} contexts were cut on their left to {lm.max_length} positions.")
        asked = benchmark.shots if shots is None else shots
        used = protocol[benchmark.task]["shots"]
        if asked is not None and used != asked:
            notes.append(f"{benchmark.task}: {used} shots, {asked} were asked for.")
    if lm.cut:
        notes.append("Cut contexts have lost examples or instructions: compare with models that were cut alike only.")
    if limit is not None:
        notes.append(f"Only the first {limit} documents of each task were asked.")
    notes += [f"{name}: {note}." for name, note in found.get("jaxalign_data_notes", {}).items()]
    if len(headline) > 1:
        metrics["average"] = _average(list(headline.values()))
    template = lm.tokenizer.chat_template if chat else None
    return Outcome(
        metrics=metrics,
        protocol={
            "suite": suite.name,
            "lm_eval": importlib.metadata.version("lm_eval"),
            "tasks": protocol,
            "chat_template": _hash(str(template)) if template else None,
            "system": system,
            "limit": limit,
            "max_length": lm.max_length,
        },
        samples=list(_shown(found, tasks)),
        details=_by_subject(found, tasks),
        notes=notes,
    )


def _average(own: Sequence[Metric]) -> Metric:
    """The plain mean of the benchmarks' headline metrics, which are independent: no two share a question."""
    spread = [metric.stderr for metric in own if metric.stderr is not None]
    return Metric(
        value=sum(metric.value for metric in own) / len(own),
        n=len(own),
        stderr=math.hypot(*spread) / len(own) if len(spread) == len(own) else None,
        higher_is_better=True,
        of_given_text=all(metric.of_given_text for metric in own),
    )


def _leaves(found: Mapping[str, Any], suite: Suite) -> dict[str, list[str]]:
    """The tasks with samples of each benchmark."""
    done = list(found["samples"])
    groups = found.get("group_subtasks", {})
    tasks = {}
    for benchmark in suite.benchmarks:
        name = benchmark.task
        if name in done:
            tasks[name] = [name]
        else:
            inside = set(_inside(groups, name))
            tasks[name] = [task for task in done if task in inside or task.startswith(f"{name}_")]
    return tasks


def _inside(groups: Mapping[str, Sequence[str]], name: str) -> Iterator[str]:
    for member in groups.get(name, ()):
        yield member
        yield from _inside(groups, member)


def _task_metrics(found: Mapping[str, Any], task: str) -> dict[str, Metric]:
    """All numbers of a task; ``"acc"`` or, behind a filter, ``"exact_match,strict-match"``."""
    metrics = {}
    better = found.get("higher_is_better", {}).get(task, {})
    given = found.get("configs", {}).get(task, {}).get("output_type") in GIVEN_TEXT
    for key, value in found["results"][task].items():
        name, _, way = key.partition(",")
        if not way or name.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        rows = sorted((row for row in found["samples"][task] if row["filter"] == way), key=lambda row: row["doc_id"])
        values = [row.get(name) for row in rows]
        plain = bool(values) and all(isinstance(v, (bool, int, float, np.number)) for v in values)
        numbers = _compact([float(v) for v in values]) if plain else None
        if numbers is not None and not math.isclose(sum(numbers) / len(numbers), value, rel_tol=1e-6, abs_tol=1e-9):
            numbers = None  # some other aggregate than the mean
        spread = found["results"][task].get(f"{name}_stderr,{way}")
        metrics[name if way == "none" else key] = Metric(
            value=float(value),
            n=len(rows),
            values=_kept(numbers),
            stderr=float(spread) if isinstance(spread, (int, float)) and math.isfinite(spread) else None,
            higher_is_better=better.get(name),
            of_given_text=given,
        )
    return metrics


def _compact(values: list[float]) -> list[float]:
    """Right and wrong as 1 and 0, in half the characters; other values as they are."""
    return [int(v) for v in values] if all(v in (0.0, 1.0) for v in values) else values


def _kept(values: list[float] | None) -> list[float] | None:
    """Values that a row may hold, if they are known."""
    few = values is not None and (len(values) <= MOST_VALUES or all(isinstance(v, int) for v in values))
    return values if few else None


def _over_subjects(parts: Mapping[str, Mapping[str, Metric]]) -> dict[str, Metric]:
    """A benchmark of several tasks: the mean over its questions, and over its tasks as ``_unweighted``."""
    metrics = {}
    names = [name for name in next(iter(parts.values()), {}) if all(name in part for part in parts.values())]
    for name in names:
        own = [part[name] for part in parts.values()]
        n = sum(metric.n for metric in own)
        known = all(metric.values is not None for metric in own)
        values = _kept([v for metric in own for v in metric.values or () if v is not None]) if known else None
        spread = [metric.stderr for metric in own]
        errors = None if None in spread else np.asarray(spread, float)
        sizes = np.asarray([metric.n for metric in own], float)
        better = own[0].higher_is_better
        for suffix, weights in (("", sizes / n), ("_unweighted", np.full(len(own), 1 / len(own)))):
            metrics[name + suffix] = Metric(
                value=float(weights @ [metric.value for metric in own]),
                n=n,
                values=values if not suffix else None,
                stderr=None if errors is None else float(np.sqrt(np.square(weights * errors).sum())),
                higher_is_better=better,
                of_given_text=all(metric.of_given_text for metric in own),
            )
    return metrics


def _task_protocol(found: Mapping[str, Any], leaves: Sequence[str], metric: str | None, cut: int) -> dict[str, Any]:
    def same(values: Sequence[Any]) -> Any:
        distinct = sorted(set(values), key=str)
        return distinct[0] if len(distinct) == 1 else distinct

    hashes = [row["doc_hash"] for leaf in leaves for row in found["samples"][leaf]]
    prompts = [row["prompt_hash"] for leaf in leaves for row in found["samples"][leaf]]
    entry = {
        "version": same([found["versions"].get(leaf) for leaf in leaves]),
        "shots": same([found["n-shot"].get(leaf) for leaf in leaves]),
        "metric": metric,
        "docs": sum(found["n-samples"][leaf]["effective"] for leaf in leaves),
        "data": _hash("".join(hashes)),
        "prompts": _hash("".join(prompts)),
    }
    return entry | ({"subjects": len(leaves)} if len(leaves) > 1 else {}) | ({"cut": cut} if cut else {})


def _by_subject(found: Mapping[str, Any], tasks: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    for name, leaves in tasks.items():
        if len(leaves) > 1:
            details[name] = {
                leaf: {"n": metric.n, key: metric.value}
                for leaf in leaves
                for key, metric in list(_task_metrics(found, leaf).items())[:1]
            }
    return {"subjects": details} if details else {}


def _shown(found: Mapping[str, Any], tasks: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """The first answers of tasks that generate text."""
    for leaves in tasks.values():
        for leaf in leaves:
            if found["configs"][leaf].get("output_type") != "generate_until":
                continue
            seen: set[int] = set()
            for row in found["samples"][leaf]:
                if row["doc_id"] in seen or len(seen) == SAMPLES:
                    continue
                seen.add(row["doc_id"])
                completion = row["resps"][0][0]
                prompt = row["arguments"][0][0]
                yield {
                    "task": leaf,
                    "prompt": str(prompt)[-SAMPLE_CHARACTERS:],
                    "completion": str(completion)[:SAMPLE_CHARACTERS],
                    "target": str(row["target"])[:SAMPLE_CHARACTERS],
                }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def headline(suite: Suite, outcome: Outcome) -> list[tuple[Benchmark, str, Metric]]:
    """The rows of the suite's table: each benchmark with its headline metric."""
    rows = []
    for benchmark in suite.benchmarks:
        name = outcome.protocol["tasks"][benchmark.task]["metric"]
        if name is not None:
            rows.append((benchmark, name, outcome.metrics[f"{benchmark.task}/{name}"]))
    return rows
