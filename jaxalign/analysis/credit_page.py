"""Credit maps as a page: completions whose tokens are coloured by their share of DPO's implicit reward."""

from __future__ import annotations

import re
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
    than = "than before training" if found.reference_is_start else "than under the reference"
    body = f"""<h1>Which tokens earn the reward</h1>
<p><code>{escape(found.model)}</code>, method {escape(found.method)}, measured against {_reference(found)}.
The credit of a token is beta * (log π - log π<sub>ref</sub>), {_beta(found)}: above 0 where the token is more likely
{than}, after what stands before it. {_meaning(found)} Point at a token to read its numbers.</p>
<p class="soft">The view of a policy as an advantage of each token is that of arXiv 2404.12358, for DPO. A token that
both models find certain has no credit, however important it is.</p>
<div class="scale"><span>&minus;{scale:.3g}</span><i></i><span>+{scale:.3g}</span>
<span>less likely, more likely {than}; colours end at the 99th percentile</span></div>
{"".join(_example(example, found, scale) for example in found.examples)}"""
    return html(f"Token credit, {found.method}", body, STYLE)


def _reference(found: CreditMap) -> str:
    name = f"<code>{escape(found.reference)}</code>"
    if found.reference_is_start:
        name = f"the model before training ({name})"
    return name if found.trained_against else f"{name}, which the method itself does not use"


def _beta(found: CreditMap) -> str:
    if found.beta_option is None:
        return f"with beta = {found.beta:g}, since the method has none"
    option = "" if found.beta_option == "beta" else f" (option {escape(found.beta_option)})"
    return f"with beta = {found.beta:g}{option}"


def _meaning(found: CreditMap) -> str:
    """What the sum of a completion's credit is, and is not."""
    method = escape(found.method)
    if not found.is_method_reward:
        meaning = "Summed over a completion it is the implicit reward of DPO with this beta, which need not be that of"
        return f"{meaning} {method} itself.{_left_out(found.method)}"
    pairs = [example.margin for example in found.examples if example.margin is not None]
    meaning = f"Summed over a completion it is the implicit reward, of DPO and of {method}.{_left_out(found.method)}"
    if pairs:
        meaning += f" Pairs that it ranks as the data says: {sum(margin > 0 for margin in pairs)} of {len(pairs)}."
    return meaning


def _left_out(method: str) -> str:
    """What the method's loss compares the reward with, if it is not another completion's."""
    if re.match(r"bco(_|\b)", method):
        return " The shift delta that BCO's loss subtracts from it is left out."
    if re.match(r"kto(_|\b)", method):
        return " The KL divergence that KTO's loss subtracts from it is left out."
    return ""


def colour_scale(found: CreditMap) -> float:
    """The credit that has the strongest colour: the 99th percentile of all sizes, so that one token hides no others."""
    sizes = [np.abs(completion.credit) for example in found.examples for completion in example.completions]
    together = np.concatenate(sizes) if sizes else np.zeros(1)
    return float(np.quantile(together, 0.99)) or 1.0


def _example(example: Credited, found: CreditMap, scale: float) -> str:
    margin = ""
    if example.margin is not None:
        mark = ""
        if found.is_method_reward:
            mark = ": ranked as the data says" if example.margin > 0 else ": not ranked as the data says"
        margin = f'<p class="soft number">margin of {_reward(found)} {example.margin:+.3f}{mark}</p>'
    completions = "".join(_completion(completion, found, scale) for completion in example.completions)
    return (
        f'<section class="example"><h2>{escape(example.source)}</h2>{margin}'
        f'<div class="prompt">{escape(example.prompt)}</div>{completions}</section>'
    )


def _completion(completion: Completion, found: CreditMap, scale: float) -> str:
    tokens = "".join(_token(completion, index, scale) for index in range(len(completion.tokens)))
    moved = completion.policy.sum() - completion.reference.sum()
    numbers = f"{_reward(found)} {completion.total:+.3f}, {len(completion.tokens)} tokens, log-ratio {moved:+.2f} nats"
    return (
        f'<div class="completion"><b>{escape(completion.name)}</b><span class="soft number">{numbers}</span></div>'
        f'<div class="tokens">{tokens}</div>'
    )


def _reward(found: CreditMap) -> str:
    return "reward" if found.is_method_reward else "DPO's reward"


def _token(completion: Completion, index: int, scale: float) -> str:
    credit = float(completion.credit[index])
    note = f"credit {credit:+.4f}\nlog-probability {completion.policy[index]:.3f} nats"
    note += f", reference {completion.reference[index]:.3f}"
    note += f"\ntoken {index + 1} of {len(completion.tokens)}"
    strength = min(1.0, abs(credit) / scale) * STRONGEST
    # A line break shows its colour on a sign of its own.
    text = escape(completion.tokens[index]).replace("\n", "⏎\n")
    style = "u" if credit > 0 else "d"
    return f'<span class="{style}" style="--a:{strength:.2f}" title="{escape(note, quote=True)}">{text}</span>'
