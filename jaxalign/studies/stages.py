"""A stage's folder: whether its run is finished, and what a row tells of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.studies.folders import Folders, read_json

POINTS = 60
"""Points kept of a curve."""
NO_CURVES = ("perf/", "epoch", "num_tokens", "step")
"""Columns of metrics.jsonl that are no course of anything: they depend on the machine, or on the step alone."""


def is_done(folder: Path) -> bool:
    """Whether a stage's run is finished and its exported model is whole."""
    manifest = read_json(folder / "manifest.json")
    return manifest is not None and manifest.get("status") == "done" and is_model(folder / "export")


def is_model(folder: Path) -> bool:
    """Whether a Hugging Face folder has its configuration and every file of its weights."""
    if read_json(folder / "config.json") is None:
        return False
    index = read_json(folder / "model.safetensors.index.json")
    files = set(index.get("weight_map", {}).values()) if index else {"model.safetensors"}
    return bool(files) and all((folder / file).is_file() for file in files)


def is_filled(folders: Folders, key: str) -> bool:
    """Whether the cache holds the reference log-probabilities of this key."""
    return folders.filled(key).is_file()


def facts(folder: Path) -> dict[str, Any]:
    """What a row tells of a finished run: how much was trained on what, where, and the course of its metrics."""
    from jaxalign.training.metrics import read_metrics

    manifest = read_json(folder / "manifest.json") or {}
    data = manifest.get("data", {}).get("train", {})
    record = read_metrics(folder)
    best = (read_json(folder / "config.json") or {}).get("train", {}).get("best_metric")
    return {
        "seconds": manifest.get("train_seconds"),
        "steps": manifest.get("steps"),
        "examples": data.get("examples"),
        "tokens": next((row["num_tokens"] for row in reversed(record) if "num_tokens" in row), None),
        "parameters": manifest.get("parameters"),
        "device": manifest.get("device"),
        "versions": manifest.get("versions"),
        "data_hash": data.get("data_hash"),
        "template_hash": data.get("template_hash"),
        "metrics": _held_out(record, best) or manifest.get("metrics", {}),
        "curves": curves(record),
    }


def _held_out(record: Sequence[Mapping[str, Any]], best: str | None) -> dict[str, Any]:
    """The held-out metrics of the step whose weights were exported; empty without a rule for the best."""
    from jaxalign.training.checkpoint import lower_is_better

    rows = [row for row in record if best is not None and row.get(best) is not None]
    if best is None or not rows:
        return {}
    chosen = (min if lower_is_better(best) else max)(rows, key=lambda row: row[best])
    return {name: value for name, value in chosen.items() if name.startswith("eval_")}


def curves(record: Sequence[Mapping[str, Any]], points: int = POINTS) -> dict[str, list[Any]]:
    """The course of the metrics, from the rows of metrics.jsonl.

    Args:
      record: rows of training, and rows of evaluation with names that begin with ``eval_``.
      points: most points of a curve; the first and the last are always among them.

    Returns:
      ``"train/step"`` and ``"train/loss"``, ..., ``"eval/step"`` and ``"eval/loss"``, ...; lists of a kind are equally
      long, with None where a row lacks the metric.
    """
    found: dict[str, list[Any]] = {}
    for kind in ("train", "eval"):
        named = [(row["step"], {name: row[name] for name in row if _kind(name) == kind}) for row in record]
        named = [(step, row) for step, row in named if row]
        kept = [named[i] for i in _spread(len(named), points)]
        if kept:
            found[f"{kind}/step"] = [step for step, _ in kept]
        for name in dict.fromkeys(name for _, row in kept for name in row):
            found[f"{kind}/{name.removeprefix('eval_')}"] = [_short(row.get(name)) for _, row in kept]
    return found


def _kind(name: str) -> str:
    return "none" if name.startswith(NO_CURVES) else "eval" if name.startswith("eval_") else "train"


def _spread(count: int, points: int) -> list[int]:
    if count <= points:
        return list(range(count))
    return [round(i * (count - 1) / (points - 1)) for i in range(points)]


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
