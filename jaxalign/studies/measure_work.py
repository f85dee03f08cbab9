"""What measures read and write, as rough numbers with their assumptions: estimates of cost are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.methods import get_method
from jaxalign.studies.study import Work

ANSWER = 400
"""Tokens of an answer where more are allowed."""
PROMPT = 200
"""Tokens of a prompt."""
SUITES = {
    # Questions x (tokens of the shots + tokens of the choices): MMLU 14 042 x 650, HellaSwag 10 042 x 1 060,
    # ARC-Challenge 1 172 x 1 150, the others together about 4 million; GSM8K writes 1 319 x 150.
    "study1": Work(
        why="12 benchmarks at their shots, 25 M tokens read and 0.3 M written",
        items=2000,
        read=25e6 / 2000,
        written=150,
    ),
}


def of_answers(data: Sequence[str], split: str, count: int | None, longest: int, batch_size: int, models: int) -> Work:
    """Sampled answers, which `models` models then read."""
    written = min(longest, ANSWER)
    return Work(
        why=f"{PROMPT} tokens a prompt, up to {written} tokens an answer",
        items=count,
        data=tuple(data),
        split=split,
        read=PROMPT + models * (PROMPT + written),
        written=written,
        together=batch_size,
    )


def of_dialogue(questions: int, prompt: int, longest: int, batch_size: int, what: str) -> Work:
    """Answers for a judge."""
    written = min(longest, ANSWER)
    why = f"{what}, {written} tokens an answer"
    return Work(why=why, items=questions, read=prompt, written=written, together=batch_size)


def of_examples(section: Mapping[str, Any], models: int, count: int | None = None) -> Work | None:
    """Held-out examples that `models` models read; None where it cannot be told which they are."""
    names, split = section.get("eval"), section.get("eval_split", "test")
    if not names:
        names, split = section.get("train"), section.get("train_split", "train")
        count = section.get("eval_size") or count
    if not names:
        return None
    data = (names,) if isinstance(names, str) else tuple(names)
    why = f"held-out examples under {models} model{'s' * (models > 1)}"
    return Work(why=why, items=count, data=data, split=split, passes=models)


def of_held_out(tree: Mapping[str, Mapping[str, Any]] | None, *, always: bool, values: bool) -> Work | None:
    """The held-out data of a run, which it measured itself, or those of a configuration."""
    if not (always and tree is not None):
        # Models without a stage of preferences are few; with `values`, the others read their data once more.
        return None if values else Work(why="measured while training", items=0)
    method = get_method(tree.get("method", {}).get("name", "dpo"))
    return of_examples(tree.get("data", {}), 2 if method.needs_reference else 1)


def of_suite(name: str, limit: int | None, shots: int | None, batch_size: int) -> Work | None:
    """Benchmarks, where they were counted."""
    if name not in SUITES or limit is not None or shots is not None:
        return None
    known = SUITES[name]
    return Work(why=known.why, items=known.items, read=known.read, written=known.written, together=batch_size)
