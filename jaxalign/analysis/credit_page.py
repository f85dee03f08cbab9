"""Credit maps as a page: completions whose tokens are coloured by their share of the implicit reward."""

from __future__ import annotations

from html import escape

import numpy as np

from jaxalign.analysis.credit import Completion, Credited, CreditMap
from jaxalign.analysis.page import html

STRONGEST = 0.85
"""Opacity of the strongest colour: text on it can still be read."""

STYLE = """
.example { border-top: 1px solid var(--rule); margin-top: 28px; padding-top: 14px; }
.example h2 { margin: 0 0 6px; }
.prompt, .tokens { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border-radius: 8px;
  padding: 10px 14px; margin: 6px 0 12px; }
.prompt { color: var(--soft); max-height: 11em; overflow-y: auto; }
.tokens { line-height: 1.9; }
.tokens span { border-radius: 3px; padding: 2px 0; }
.tokens span:hover { outline: 2px solid var(--ink); }
.u { background: rgb(var(--up) / var(--a)); } .d { background: rgb(var(--down) / var(--a)); }
.completion { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: baseline; }
.completion b { min-width: 5.5em; }
.number { font-variant-numeric: tabular-nums; }
.scale { display: flex; align-items: center; gap: 10px; font-size: .85rem; color: var(--soft); margin: 14px 0; }
.scale i { width: 220px; height: 12px; border-radius: 3px; background: linear-gradient(90deg,
  rgb(var(--down) / .85), rgb(var(--down) / 0) 50%, rgb(var(--up) / 0) 50%, rgb(var(--up) / .85)); }
"""


def render(found: CreditMap) -> str:
    """The page as text."""
    scale = colour_scale(found)
    formula = "beta * (log π - log π<sub>ref</sub>)" if found.reference else "beta * log π (there is no reference)"
    pairs = [example.margin for example in found.examples if example.margin is not None]
    right = (
        f"Of {len(pairs)} pairs, {sum(margin > 0 for margin in pairs)} are ranked as the data says. " if pairs else ""
    )
    reference = f", measured against <code>{escape(found.reference)}</code>" if found.reference else ""
    body = f"""<h1>Which tokens earn the reward</h1>
<p><code>{escape(found.model)}</code>{reference}, method {escape(found.method)}, beta = {found.beta:g}. The credit of a
token is {formula}: how much likelier training made it after what stands before. Summed over a completion it is the
implicit reward. {right}Point at a token to read its numbers.</p>
<p class="soft">The view of a policy as an advantage of each token is that of arXiv 2404.12358. A token that both models
find certain has no credit, however important it is.</p>
<div class="scale"><span>&minus;{scale:.3g}</span><i></i><span>+{scale:.3g}</span>
<span>less likely than before, more likely than before; colours end at the 99th percentile</span></div>
{"".join(_example(example, found, scale) for example in found.examples)}"""
    return html(f"Token credit, {found.method}", body, STYLE)


def colour_scale(found: CreditMap) -> float:
    """The credit that has the strongest colour: the 99th percentile of all sizes, so that one token hides no others."""
    sizes = [np.abs(completion.credit) for example in found.examples for completion in example.completions]
    together = np.concatenate(sizes) if sizes else np.zeros(1)
    return float(np.quantile(together, 0.99)) or 1.0


def _example(example: Credited, found: CreditMap, scale: float) -> str:
    margin = ""
    if example.margin is not None:
        mark = "as the data says" if example.margin > 0 else "against the data"
        margin = f'<p class="soft number">margin {example.margin:+.3f}: ranked {mark}</p>'
    completions = "".join(_completion(completion, found, scale) for completion in example.completions)
    return (
        f'<section class="example"><h2>{escape(example.source)}</h2>{margin}'
        f'<div class="prompt">{escape(example.prompt)}</div>{completions}</section>'
    )


def _completion(completion: Completion, found: CreditMap, scale: float) -> str:
    tokens = "".join(_token(completion, index, found, scale) for index in range(len(completion.tokens)))
    moved = completion.policy.sum() - completion.reference.sum()
    numbers = f"reward {completion.total:+.3f}, {len(completion.tokens)} tokens"
    if found.reference:
        numbers += f", log-ratio {moved:+.2f} nats"
    return (
        f'<div class="completion"><b>{escape(completion.name)}</b><span class="soft number">{numbers}</span></div>'
        f'<div class="tokens">{tokens}</div>'
    )


def _token(completion: Completion, index: int, found: CreditMap, scale: float) -> str:
    credit = float(completion.credit[index])
    note = f"credit {credit:+.4f}\nlog-probability {completion.policy[index]:.3f} nats"
    if found.reference:
        note += f", reference {completion.reference[index]:.3f}"
    note += f"\ntoken {index + 1} of {len(completion.tokens)}"
    strength = min(1.0, abs(credit) / scale) * STRONGEST
    # A line break shows its colour on a sign of its own.
    text = escape(completion.tokens[index]).replace("\n", "⏎\n")
    style = "u" if credit > 0 else "d"
    return f'<span class="{style}" style="--a:{strength:.2f}" title="{escape(note, quote=True)}">{text}</span>'
