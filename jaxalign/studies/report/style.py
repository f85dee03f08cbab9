"""The report's style sheet: light, dark, print, and narrow windows."""

LIGHT = {
    "k0": "#0067a8", "k1": "#c04a00", "k2": "#007a58", "k3": "#a03d86", "k4": "#876500", "k5": "#4353b8",
    "k6": "#9a2f3b", "k7": "#56737d", "kn": "#6b7480", "good": "#0067a8", "bad": "#c04a00",
}  # fmt: skip
"""Colours of compared values on white: told apart with every common colour blindness, contrast above 4.5."""
DARK = {
    "k0": "#58aef0", "k1": "#ff9152", "k2": "#3ecf9e", "k3": "#e79ad0", "k4": "#e0c04a", "k5": "#a5b0ff",
    "k6": "#ff9aa2", "k7": "#9fc0cb", "kn": "#a3adb8", "good": "#58aef0", "bad": "#ff9152",
}  # fmt: skip
"""The same on near black."""
RAMP = 6
"""Steps of the scale for the values of a numeric label."""


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _classes() -> str:
    names = [*LIGHT]
    rules = [
        f".mark.{n} {{ fill: var(--{n}); }} .line.{n}, .span.{n} {{ stroke: var(--{n}); }} "
        f".band.{n} {{ fill: var(--{n}); }} svg text.name.{n} {{ fill: var(--{n}); }}"
        for n in names
    ]
    dashes = {
        "k1": "7 3",
        "k2": "2.5 2.5",
        "k3": "9 3 2 3",
        "k4": "4 4",
        "k5": "12 3",
        "k6": "2 4",
        "k7": "9 2 2 2 2 2",
    }
    rules += [f".line.{name} {{ stroke-dasharray: {dash}; }}" for name, dash in dashes.items()]
    for step in range(RAMP):
        part = round(100 - 72 * step / (RAMP - 1))
        mix = f"color-mix(in oklab, var(--k0) {part}%, var(--far))"
        name = f"r{step}"
        rules.append(
            f".mark.{name} {{ fill: {mix}; }} .line.{name}, .span.{name} {{ stroke: {mix}; }} "
            f"svg text.name.{name} {{ fill: {mix}; }}"
        )
    return "\n".join(rules)


STYLE = f"""
:root {{ {_variables(LIGHT)} --far: #d9a300; --warn: #8a5a00; --warn-paper: #fff6e0; --warn-rule: #e8c87a; }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} --far: #ffd873; --warn: #ffd27a;
  --warn-paper: #2b2413; --warn-rule: #6b5520; }} }}
{_classes()}
""" + """
main { max-width: 1120px; }
h1 { font-size: 1.65rem; max-width: 32em; text-wrap: balance; }
h2 { font-size: 1.22rem; margin: 52px 0 10px; padding-top: 20px; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 28px 0 6px; }
p { max-width: 74ch; }
.eyebrow { color: var(--soft); font-size: .88rem; margin: 0 0 6px; }
.answer { font-size: 1.06rem; line-height: 1.6; background: var(--card); border-radius: 10px; padding: 16px 20px;
  max-width: none; margin: 18px 0; }
.answer p { margin: 0; max-width: 82ch; } .answer ul { margin: 8px 0; padding-left: 22px; max-width: 82ch; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 14px 0 4px; padding: 0; list-style: none; }
.facts li { color: var(--soft); font-size: .9rem; }
.facts b { color: var(--ink); font-variant-numeric: tabular-nums; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; padding: 0; margin: 18px 0 0;
  font-size: .9rem; }
a { color: var(--k0); text-underline-offset: 2px; }
:focus-visible { outline: 2px solid var(--k0); outline-offset: 2px; border-radius: 3px; }
.warn { border: 1px solid var(--warn-rule); background: var(--warn-paper); border-radius: 10px; padding: 12px 18px;
  margin: 18px 0; } .warn h3 { margin: 0 0 4px; color: var(--warn); } .warn ul { margin: 6px 0; padding-left: 20px; }
.warn code { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 10px 0; }
table { min-width: 0; }
th, td { padding: 6px 16px 6px 0; vertical-align: middle; }
thead th { vertical-align: bottom; border-bottom: 1px solid var(--soft); }
th.label, td.label, td.words, th.words { text-align: left; }
tbody th { text-align: left; color: var(--ink); font-weight: 400; white-space: nowrap; }
td.words { min-width: 11em; } td.value { white-space: nowrap; }
td small, th small { color: var(--soft); font-size: .86em; }
tr.best td, tr.best th { font-weight: 650; } tr.gone td { color: var(--soft); }
td.none { color: var(--soft); font-style: italic; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding: 0 0 6px; }
.tag { display: inline-block; font-size: .8rem; border: 1px solid var(--rule); border-radius: 99px; padding: 0 9px;
  color: var(--soft); white-space: nowrap; font-weight: 400; }
.tag.best { border-color: var(--k2); color: var(--k2); font-weight: 650; } .tag.apart { border-style: dashed; }
.swatch { width: 13px; height: 13px; margin-right: 6px; vertical-align: -2px; display: inline-block; }
svg { display: block; width: 100%; height: auto; }
svg.swatch { display: inline-block; } svg.forest { width: 140px; height: 18px; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg text.label { fill: var(--ink); font-size: 12px; } svg text.name { font-size: 11.5px; font-weight: 600; }
.grid { stroke: var(--rule); stroke-width: 1; } .notch, .zero { stroke: var(--soft); stroke-width: 1; }
.zero { stroke-dasharray: 2 2; } .reach { stroke: var(--rule); stroke-width: 2; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: butt; }
.line.level { stroke-width: 1.5; stroke-dasharray: 2 3; } .line.bad { stroke-dasharray: 5 3; }
.band { opacity: .12; stroke: none; } .span { stroke-width: 2.5; opacity: .5; }
.mark { stroke: var(--paper); stroke-width: 1; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 18px 22px; }
.panels.one { grid-template-columns: minmax(0, 470px); }
.panels.wide { grid-template-columns: minmax(0, 680px); }
.panels.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 450px)); gap: 18px 40px; }
.panels.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 235px), 1fr)); gap: 14px 18px; }
.panel { min-width: 0; } .panel-title { font-size: .9rem; font-weight: 600; margin: 0 0 2px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: .88rem; margin: 8px 0 10px; }
.legend svg.sample { width: 28px; height: 16px; display: inline-block; vertical-align: -3px; margin-right: 6px; }
.none { color: var(--soft); font-size: .9rem; }
details { margin: 4px 0; } summary { cursor: pointer; padding: 2px 0; }
.quiet { color: var(--soft); font-size: .92rem; } summary:hover { color: var(--k0); }
details[open] > summary { margin-bottom: 6px; }
.prompt { margin: 18px 0; border-top: 1px solid var(--rule); padding-top: 10px; }
.prompt > p { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; max-width: none; }
.said { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 10px 16px; }
.said > div { background: var(--card); border-radius: 8px; padding: 8px 12px; min-width: 0; }
.said h4 { margin: 0 0 4px; font-size: .82rem; font-weight: 600; color: var(--soft); }
.said p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .93rem; line-height: 1.45; }
pre { font-size: .8rem; max-height: 420px; overflow: auto; } code { overflow-wrap: anywhere; }
.notes li { max-width: 74ch; margin: 4px 0; }
@media (max-width: 620px) { main { padding: 20px 16px 48px; } h1 { font-size: 1.35rem; } .answer { padding: 12px 14px; }
  th, td { padding-right: 12px; } td.words { min-width: 0; } .screen { display: none; } }
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --rule: #ccc; --card: #f5f5f5; LIGHTVARS
    --far: #d9a300; --warn: #6b4600; --warn-paper: #fff; --warn-rule: #999; }
  @page { margin: 15mm 13mm; }
  body { font-size: 10.5pt; background: #fff; } main { max-width: none; padding: 0; }
  :root { font-size: 10pt; }
  nav, .screen, details.folded, details:not([open]) { display: none; }
  h2 { margin-top: 22px; padding-top: 10px; }
  h2, h3, summary, caption, .panel-title, .legend, thead { break-after: avoid; }
  tbody tr:nth-child(-n+3) { break-before: avoid; }
  .panel, tr, .prompt, .said > div, .answer, .warn, .legend { break-inside: avoid; }
  .panels { grid-template-columns: repeat(3, 1fr); gap: 12px; } .panels.one { grid-template-columns: 60%; }
  .panels.two { grid-template-columns: 1fr 1fr; }
  .panels.small { grid-template-columns: repeat(4, 1fr); }
  thead { display: table-header-group; } table { font-size: 8.5pt; } .scroll { overflow: visible; }
  th, td { padding: 3px 8px 3px 0; } td.words { min-width: 0; } tbody th, td.value { white-space: normal; }
  svg.forest { width: 90px; } summary { list-style: none; font-weight: 600; }
  a { color: inherit; text-decoration: none; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
""".replace("LIGHTVARS", _variables(LIGHT))
