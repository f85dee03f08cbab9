"""The report on training: how far the log-probabilities of chosen and rejected completions moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from jaxalign.studies.report.charts import Curve, Panel, grid, panels, unwrapped
from jaxalign.studies.report.marks import key
from jaxalign.studies.report.pictures import figure
from jaxalign.studies.report.results import Results, Row, canonical
from jaxalign.studies.report.wording import count, number, short_setting
from jaxalign.studies.study import Label

MOST_PANELS = 24
APART = 5
"""Largest by median movement from which on panels do not share their scale."""
WORRY = -1.0
"""Nats per token by which chosen completions may fall before a reader should look at what the model writes."""
SIDES = {"chosen": "good", "rejected": "bad"}

EXPLANATION = """Losses of this family see only the difference between chosen and rejected, relative to the
reference. The two completions share much of their text, and lowering the rejected one lowers what they share; so
the probability of the chosen one usually falls too, only more slowly. Probability that both lose goes to texts that
are in no pair. A drop of the chosen ones by a few tenths of a nat per token is common and says little by itself.
When it passes about one nat per token (each token nearly three times less probable than at the start), or when the
two lines fall together without parting, look at the samples, the lengths and the divergence before trusting a
score."""


def training(results: Results) -> str:
    """A panel for each setting whose last stage logged these log-probabilities."""
    settings: dict[str, tuple[Mapping[str, Label], list[_Drift]]] = {}
    for group in results.groups:  # how a row was measured does not matter here
        settings.setdefault(canonical(group.labels), (group.labels, []))[1].extend(_drifts(group.rows))
    found = [(labels, drifts) for labels, drifts in settings.values() if drifts]
    if not found:
        return ""
    by_token = all(drift.lengths for _, drifts in found for drift in drifts)
    pictures, fallen = [], []
    for labels, drifts in found:
        curves = []
        for side, style in SIDES.items():
            steps, rows = _common([drift.moved(side, by_token) for drift in drifts])
            if not steps:
                continue
            middle, low, high = rows.mean(0), rows.min(0), rows.max(0)
            band = [] if len(rows) < 2 else list(zip(steps, low.tolist(), high.tolist(), strict=True))
            curves.append(Curve(side, list(zip(steps, middle.tolist(), strict=True)), style, band=band, marks=False))
            if by_token and side == "chosen" and middle[-1] < WORRY:
                fallen.append((float(middle[-1]), short_setting(results.telling(labels)) or "all rows"))
        pictures.append(Panel(short_setting(results.telling(labels)), curves))
    unit = "nats per token" if by_token else "nats"
    reach = [max(abs(y) for curve in picture.curves for _, y in curve.points) for picture in pictures]
    own = max(reach) > APART * float(np.median(reach))

    def draw(shown: Sequence[Panel]) -> str:
        return panels(
            "Log-probabilities of chosen and rejected completions during training",
            shown,
            x="step",
            y=f"change, {unit}",
            include=(0.0,),
            names=False,
            size=(240, 176),
        )

    shown = pictures[:MOST_PANELS]
    drawn = grid([panel for picture in shown for panel in unwrapped(draw([picture]))]) if own else draw(shown)
    hidden = len(pictures) - MOST_PANELS
    parts = ["Change since the first record, mean over seeds, on training batches."]
    parts += ["Bands reach from the lowest to the highest seed."] * any(len(drifts) > 1 for _, drifts in found)
    parts += ["The panels differ too much for one scale: each has its own."] * own
    parts += [] if by_token else ["Lengths were not recorded, so the change is per completion: divide by its tokens."]
    parts += [f"{hidden} more settings are not drawn."] * (hidden > 0)
    worry = ""
    if fallen:
        worst = "; ".join(f"{name} ({number(value, unit)})" for value, name in sorted(fallen)[:4])
        words = f"In {len(fallen)} of {count(len(found), 'setting')} the chosen completions fell by more than one nat"
        worry = f"<p><strong>{words} per token</strong>, furthest in: {escape(worst)}.</p>"
    small = drawn.replace('class="panels', 'class="panels small')
    return f"<p>{EXPLANATION}</p>{worry}" + figure(small, escape(" ".join(parts)), key(SIDES))


class _Drift:
    """One run's log-probabilities."""

    def __init__(self, curves: Mapping[str, Sequence[float | None]], lengths: Mapping[str, float]):
        self.curves, self.lengths = curves, lengths

    def moved(self, side: str, by_token: bool) -> dict[float, float]:
        """Step -> change since the first record."""
        values = self.curves[f"train/logps/{side}"]
        pairs = [
            (s, v) for s, v in zip(self.curves["train/step"], values, strict=False) if s is not None and v is not None
        ]
        pairs = [(s, v) for s, v in pairs if math.isfinite(v)]
        scale = self.lengths[side] if by_token else 1.0
        return {s: (v - pairs[0][1]) / scale for s, v in pairs}


def _drifts(rows: Sequence[Row]) -> list[_Drift]:
    found = []
    for row in rows:
        stages = row.get("stages") or [{}]
        curves = stages[-1].get("curves", {})
        if all(any(v is not None for v in curves.get(f"train/logps/{side}", ())) for side in SIDES) and curves.get(
            "train/step"
        ):
            lengths = {} if _is_mean(stages[-1]) else {side: _length(stages[-1], row, side) for side in SIDES}
            known = {side: length for side, length in lengths.items() if length}
            if _is_mean(stages[-1]):
                known = dict.fromkeys(SIDES, 1.0)
            found.append(_Drift(curves, known if len(known) == len(SIDES) else {}))
    return found


def _is_mean(stage: Mapping[str, Any]) -> bool:
    """Whether the method's log-probabilities are per token already."""
    from jaxalign.errors import JaxalignError
    from jaxalign.method import Logps
    from jaxalign.methods import get_method

    name = stage.get("config", {}).get("method", {}).get("name")
    try:
        return bool(name) and get_method(name).logps is Logps.MEAN
    except JaxalignError:
        return False  # a method of the study's own, which this reader does not have


def _length(stage: Mapping[str, Any], row: Row, side: str) -> float | None:
    """Mean tokens of the held-out completions, which stand for those of training."""
    recorded = [v for v in stage.get("curves", {}).get(f"eval/lengths/{side}", ()) if v]
    if recorded:
        return recorded[-1]
    for name in (f"eval_lengths/{side}", f"lengths/{side}"):
        if stage.get("metrics", {}).get(name):
            return stage["metrics"][name]
    metric = row.get("results", {}).get("held_out", {}).get("metrics", {}).get(f"lengths/{side}")
    return metric["value"] if metric and metric.get("value") else None


def _common(lines: Sequence[Mapping[float, float]]) -> tuple[list[float], np.ndarray]:
    """The steps that all lines have, and their values ``[lines, steps]``."""
    steps = sorted(set.intersection(*(set(line) for line in lines)))
    return steps, np.array([[line[step] for step in steps] for line in lines])
