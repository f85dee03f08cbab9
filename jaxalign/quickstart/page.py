"""The quick start's page: one HTML file with its plots inside, for light and dark, that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxalign.quickstart.numbers import number, percent, points, share
from jaxalign.studies.charts import Point, Series, Span, histogram, interval_chart, legend, line_chart

Rows = Sequence[Mapping[str, Any]]

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d2125; --soft: #5d666f; --rule: #e3e5e8; --card: #f4f5f6;
  --sft: #b4570a; --dpo: #1f5fd0; --good: #1c7a45; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e8ea; --soft: #9aa4ad; --rule: #2d3338;
  --card: #1d2125; --sft: #f0a25a; --dpo: #7aa8ff; --good: #6cc58f; --bad: #f28b82; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.2rem; margin: 44px 0 8px; padding-top: 16px; border-top: 1px solid var(--rule); }
h3 { font-size: .95rem; margin: 0 0 6px; }
p { max-width: 76ch; margin: 8px 0; }
.soft, figcaption, .none { color: var(--soft); font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(178px, 1fr)); gap: 12px; margin: 24px 0; }
.card { background: var(--card); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 1.3rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
.card small { color: var(--soft); display: block; }
.grid-2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 28px 24px; }
figure { margin: 12px 0 0; min-width: 0; }
figcaption { margin-top: 4px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg text.label { fill: var(--ink); font-size: 12.5px; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.span { stroke-width: 3; stroke-linecap: round; opacity: .55; }
.line.sft, .span.sft { stroke: var(--sft); } .line.dpo, .span.dpo { stroke: var(--dpo); }
.line.good { stroke: var(--good); } .line.bad { stroke: var(--bad); stroke-dasharray: 6 3; }
.line.soft-line { stroke: var(--soft); stroke-dasharray: 2 3; }
.dot.sft, .bar.sft { fill: var(--sft); } .dot.dpo, .bar.dpo { fill: var(--dpo); }
.dot.good { fill: var(--good); } .dot.bad { fill: var(--bad); } .dot.soft-line { fill: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .85rem; color: var(--soft); padding-left: 4px; }
.key { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px; vertical-align: middle; }
.key.sft { background: var(--sft); } .key.dpo { background: var(--dpo); } .key.good { background: var(--good); }
.key.bad { background: repeating-linear-gradient(90deg, var(--bad) 0 5px, transparent 5px 7px); }
.key.soft-line { background: repeating-linear-gradient(90deg, var(--soft) 0 3px, transparent 3px 6px); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
.yes { color: var(--good); } .no { color: var(--bad); }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--card); border-radius: 8px; padding: 12px 14px; overflow-x: auto; }
@media print { body { background: #fff; } figure, .card, tr { break-inside: avoid; } }
"""

MODELS = {"sft": "SFT", "dpo": "SFT, then DPO"}


def write_page(path: str | Path, results: Mapping[str, Any], metrics: Mapping[str, Rows]) -> Path:
    """Writes the page.

    Args:
      path: the file.
      results: what the program measured, as in ``results.json``.
      metrics: the rows of ``metrics.jsonl`` of each stage.
    """
    path = Path(path)
    path.write_text(render(results, metrics), encoding="utf-8")
    return path


def render(results: Mapping[str, Any], metrics: Mapping[str, Rows]) -> str:
    """The page as text."""
    parts = [
        _introduction(results),
        _cards(results),
        _tasks(results),
        _training(results, metrics),
        _answers(results),
        _examples(results),
        _reproduce(results),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Quick start of jaxalign</title>\n<style>{STYLE}</style>\n</head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body>\n</html>\n"
    )


def _introduction(results: Mapping[str, Any]) -> str:
    summary = results["world"]
    world = summary["world"]
    return f"""<h1>Aligning a small model in a generated world</h1>
<p>The world is an instruction language of {summary["tasks"]} tasks on lists of animals, such as
<code>Sort: fox cat hen</code>. A function knows the right answer to every prompt.</p>
<p>A crowd answered {world["demonstrations"]:,} prompts, and only {percent(summary["demonstrations_exact"])} of its
answers are right and to the point: on the hard tasks {percent(world["hard_slip_rate"])} of the crowd make the typical
mistake, {percent(world["chatty_rate"])} of all answers open with small talk. A model of
{results["parameters"] / 1e6:.1f} million random weights learnt from these demonstrations (SFT). Then it learnt from
{world["pairs"]:,} pairs of the crowd's answers, of which a judge preferred the right one, then the plain one, and was
wrong in {percent(world["judge_error"])} of the pairs (DPO, with the SFT model as frozen reference).</p>
<p>Both models were then asked {results["questions"]:,} held-out questions, about lists whose words no training prompt
lists in any order. <b>Exact match</b> is the share of answers that are the right answer and nothing else.</p>"""


def _cards(results: Mapping[str, Any]) -> str:
    sft, dpo = results["models"]["sft"], results["models"]["dpo"]
    gain = results["difference"]["greedy"]
    seconds = results["seconds"]
    cards = [
        ("Exact match", f"{percent(sft['greedy']['exact'][0])} → {percent(dpo['greedy']['exact'][0])}",
         f"most probable answer; {points(gain)}"),
        ("Sampled at temperature 1", f"{percent(sft['sampled']['exact'][0])} → {percent(dpo['sampled']['exact'][0])}",
         f"exact match; {points(results['difference']['sampled'])}"),
        ("KL from the SFT model", f"{dpo['kl'][0]:.2f} nats", f"an answer [{dpo['kl'][1]:.2f}, {dpo['kl'][2]:.2f}]"),
        ("Tokens of an answer", f"{sft['sampled']['length'][0]:.1f} → {dpo['sampled']['length'][0]:.1f}",
         "sampled at temperature 1"),
        ("Time", f"{seconds['sft'] + seconds['dpo']:.0f} s",
         f"SFT {seconds['sft']:.0f} s, DPO {seconds['dpo']:.0f} s, with all set-up"),
    ]  # fmt: skip
    boxes = "".join(
        f'<div class="card"><small>{escape(name)}</small><b>{escape(value)}</b><small>{escape(note)}</small></div>'
        for name, value, note in cards
    )
    return f'<div class="cards">{boxes}</div>'


def _tasks(results: Mapping[str, Any]) -> str:
    rows = {}
    for task, first in results["models"]["sft"]["tasks"].items():
        spans = []
        for name, text in MODELS.items():
            value, low, high = results["models"][name]["tasks"][task]["exact"]
            note = f"{task}, {text}: {percent(value)} [{percent(low)}, {percent(high)}], n = {first['n']}"
            spans.append(Span(value, low, high, name, note))
        rows[task] = spans
    counts = [entry["n"] for entry in results["models"]["sft"]["tasks"].values()]
    chart = interval_chart("Exact match by task, before and after DPO", rows, x="exact match, most probable answer")
    return f"""<h2>Exact match by task</h2>
<figure>{legend({text: name for name, text in MODELS.items()})}{chart}
<figcaption>Dots are shares, bars their 95 % Wilson intervals; {min(counts)} to {max(counts)} held-out questions a
task.</figcaption></figure>"""


def _training(results: Mapping[str, Any], metrics: Mapping[str, Rows]) -> str:
    lengths = {
        text: (name, {int(length): share for length, share in results["models"][name]["lengths"].items()})
        for name, text in MODELS.items()
    }
    lengths_chart = histogram(
        "Tokens of sampled answers, before and after", lengths, x="tokens, end token included", y="share"
    )
    sft, dpo = metrics["sft"], metrics["dpo"]
    charts = [
        ("SFT: loss", line_chart("Loss of SFT by step", [
            Series("training", _points_of(sft, "loss"), "sft"),
            Series("held out", _points_of(sft, "eval_loss"), "soft-line", dots=True),
         ], x="step", y="nats a token", include=(0,)),
         "Cross entropy of the crowd's answers. It cannot reach 0: which answer one of the crowd gives is chance."),
        ("DPO: loss", line_chart("Loss of DPO by step", [
            Series("training", _points_of(dpo, "loss"), "dpo"),
            Series("held out", _points_of(dpo, "eval_loss"), "soft-line", dots=True),
         ], x="step", y="nats a pair", include=(0,)),
         "It starts at ln 2 = 0.693, since policy and reference are the same model then."),
        ("DPO: implicit rewards", line_chart("Rewards of chosen and rejected answers by step", [
            Series("chosen", _points_of(dpo, "rewards/chosen"), "good"),
            Series("rejected", _points_of(dpo, "rewards/rejected"), "bad"),
            Series("margin", _points_of(dpo, "rewards/margins"), "soft-line"),
         ], x="step", y="reward", include=(0,)),
         "β times the log-ratio to the reference, mean over the training pairs of each step."),
        ("DPO: pairs ranked as the judge did", line_chart("Share of pairs ranked as the judge did, by step", [
            Series("training", _points_of(dpo, "rewards/accuracies"), "dpo"),
            Series("held out", _points_of(dpo, "eval_rewards/accuracies"), "soft-line", dots=True),
         ], x="step", y="share", include=(0, 1)),
         "Chosen above rejected by implicit reward. The judge errs, so 100 % is out of reach on held-out pairs."),
        ("DPO: log-probabilities", line_chart("Log-probability of chosen and rejected answers by step", [
            Series("chosen", _points_of(dpo, "logps/chosen"), "good"),
            Series("rejected", _points_of(dpo, "logps/rejected"), "bad"),
         ], x="step", y="nats an answer"),
         "DPO moves the difference; that of the chosen ones may fall too, as long as that of the rejected falls more."),
        ("Length of sampled answers", lengths_chart,
         "The crowd's small talk makes answers long; the judge prefers them plain."),
    ]  # fmt: skip
    figures = "".join(
        f"<figure><h3>{escape(name)}</h3>{chart}<figcaption>{escape(note)}</figcaption></figure>"
        for name, chart, note in charts
    )
    return f'<h2>Training, and what it did to length</h2>\n<div class="grid-2">{figures}</div>'


def _answers(results: Mapping[str, Any]) -> str:
    models = results["models"]
    head = "<tr><th></th>" + "".join(f"<th>{escape(text)}</th>" for text in MODELS.values()) + "</tr>"
    body = []
    for kind, text in (("greedy", "most probable answer"), ("sampled", "sampled at temperature 1")):
        for what, label in (("exact", "exact match"), ("right", "right, perhaps with small talk")):
            cells = "".join(f"<td>{share(models[name][kind][what])}</td>" for name in MODELS)
            body.append(f"<tr><td>{label}, {text}</td>{cells}</tr>")
        cells = "".join(f"<td>{number(models[name][kind]['length'])}</td>" for name in MODELS)
        body.append(f"<tr><td>tokens, {text}</td>{cells}</tr>")
    cells = "".join(f"<td>{number(models[name]['kl'])}</td>" for name in MODELS)
    body.append(f"<tr><td>KL from the SFT model, nats an answer</td>{cells}</tr>")
    return f"""<h2>Answers</h2>
<div class="scroll"><table>{head}{"".join(body)}</table></div>
<p class="soft">n = {results["questions"]:,} held-out questions. In brackets 95 % intervals: Wilson for shares,
percentile bootstrap over questions for means and for paired differences. They tell the chance in the choice of
questions and in sampling, not the chance in training; for that, run other seeds. KL is the mean log-ratio of sampled
answers.</p>"""


def _examples(results: Mapping[str, Any]) -> str:
    head = "<tr><th>Prompt</th><th>Right answer</th>" + "".join(f"<th>{escape(text)}</th>" for text in MODELS.values())
    body = []
    for row in results["examples"]:
        cells = []
        for name in MODELS:
            said = row["models"][name]
            style, mark = ("yes", "✓") if said["exact"] else ("no", "✓ but not plain" if said["right"] else "✗")
            cells.append(f'<td>{escape(said["text"]) or "<i>nothing</i>"} <span class="{style}">{mark}</span></td>')
        body.append(f"<tr><td>{escape(row['prompt'])}</td><td>{escape(row['answer'])}</td>{''.join(cells)}</tr>")
    return f"""<h2>Side by side</h2>
<p class="soft">The first held-out question of each task, with the most probable answer of each model. Not selected.</p>
<div class="scroll"><table>{head}</tr>{"".join(body)}</table></div>"""


def _reproduce(results: Mapping[str, Any]) -> str:
    return f"""<h2>The same again</h2>
<pre><code>jaxalign quickstart --workdir=NEW_FOLDER --seed={results["seed"]}</code></pre>
<p class="soft">The numbers of this page are in <code>results.json</code> beside it. <code>sft/</code> and
<code>dpo/</code> are runs like any other: <code>config.json</code> has their options, <code>manifest.json</code> their
data and versions, <code>metrics.jsonl</code> the curves, <code>export/</code> the model.</p>"""


def _points_of(rows: Rows, name: str) -> list[Point]:
    return [(row["step"], row[name]) for row in rows if name in row]
