"""The frame of the pages that analyses write: one HTML file, for light and dark, that loads nothing."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d2125; --soft: #5d666f; --rule: #e3e5e8; --card: #f4f5f6;
  --up: 31 95 208; --down: 196 84 10; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e8ea; --soft: #9aa4ad; --rule: #2d3338;
  --card: #1d2125; --up: 70 116 230; --down: 190 96 40; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.15rem; margin: 36px 0 8px; }
p { max-width: 78ch; margin: 8px 0; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
figure { margin: 12px 0 0; min-width: 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; }
.scroll { overflow-x: auto; }
code, pre { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--card); border-radius: 8px; padding: 12px 14px; overflow-x: auto; }
"""


def html(title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
      title: of the window.
      body: HTML.
      style: rules beside the common ones. Their colours are ``--paper``, ``--ink``, ``--soft``, ``--rule``, ``--card``,
        and as numbers for ``rgb()``: ``--up`` and ``--down``, the two ends of diverging scales.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body><main>\n{body}\n"
        "</main></body>\n</html>\n"
    )


def target_problems(path: Path) -> list[str]:
    """Why the analysis cannot be written to this file, one line each."""
    if path.suffix not in (".html", ".json"):
        return [f"--out: got {str(path)!r}, expected a file that ends in .html (a page) or .json (the numbers)."]
    if path.is_dir() or any(parent.is_file() for parent in path.parents):
        return [f"--out: got {str(path)!r}, where no file can be written."]
    return []


def write(path: Path, page: str, numbers: Any) -> None:
    """Writes the page, or the numbers, as the ending of the path says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = page if path.suffix == ".html" else json.dumps(numbers, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
