"""A study's report: one HTML page that loads nothing, and the same in Markdown, CSV and LaTeX, from its rows alone."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

from jaxalign.analysis.page import html
from jaxalign.errors import ConfigError
from jaxalign.studies.report import details, page_tables, pictures, token_pictures
from jaxalign.studies.report.comparisons import by_setting, over_settings
from jaxalign.studies.report.ends import end_of_answers, markdown_ends
from jaxalign.studies.report.published import published_lines
from jaxalign.studies.report.results import Results, degenerate
from jaxalign.studies.report.row_files import read_rows
from jaxalign.studies.report.style import STYLE
from jaxalign.studies.report.tables import (
    csv_text,
    latex_text,
    letter,
    main_table,
    markdown_escape,
    markdown_table,
    p_of,
)
from jaxalign.studies.report.training import training
from jaxalign.studies.report.wording import (
    DASH,
    EACH,
    answer,
    count,
    difference,
    label_text,
    metric_name,
    most_seeds,
    pair,
    setting,
    unit_name,
)


class Report(NamedTuple):
    """The files of a report, and what must be known of the rows that it was made from."""

    html: Path
    markdown: Path
    csv: Path
    latex: Path
    notes: tuple[str, ...]


METHOD = """Intervals cover 95 %. Where a measure keeps the values of its items, they come from a hierarchical
bootstrap: seeds are drawn, then items, the same items for all seeds; the interval is widened for few seeds by
Student's t. Where it does not, they are Student's over the seeds, with the items' standard error where that is
known; of a difference, with both models' standard errors as if their items were not the same, which is rather too
wide. With one seed an interval covers the choice of items alone, and without values and standard errors of the
items the chance of training alone; the tables say which. Differences are paired: the same seed, the same items,
every other label equal. Each table of differences is corrected for its number of comparisons by Holm's method,
which keeps the chance of any false finding in one table at 5 %; reading several tables raises it. What differs from
the best is corrected for all pairs of settings, because the best was found on the same numbers. A few seeds that
agree by luck make a pair look sure; so with several seeds the p that is corrected takes the larger of two spreads
of seeds, the pair's own and that of its whole table, with degrees of freedom of the table. An interval of a
difference is not corrected, so it may leave out zero where the corrected p does not fall below 0.05. Not being
distinguishable is no proof of being equal. In each setting's mean, degenerate rows are left out, which flatters a
setting that lost some."""


def write_report(folder: str | Path, out: str | Path | None = None) -> Report:
    """Writes ``report.html``, ``report.md``, ``rows.csv`` and ``table.tex``.

    Args:
      folder: of the study, with its rows.jsonl; or that file.
      out: the page; the other files stand beside it. None = report.html in the study's folder.

    Raises:
      DataError: the rows cannot be read.
      ConfigError: the page cannot be written there.
    """
    results = Results(*read_rows(folder))
    home = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    page = home / "report.html" if out is None else Path(out)
    if page.suffix not in (".html", ".htm") or page.is_dir() or any(parent.is_file() for parent in page.parents):
        raise ConfigError(f"--out: got {str(page)!r}, expected a file that ends in .html, in a folder.")
    files = (page, page.with_suffix(".md"), page.with_name("rows.csv"), page.with_name("table.tex"))
    report = Report(*files, tuple(results.notes))
    texts = (render(results), markdown(results), csv_text(results), latex_text(results))
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(files, texts, strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--out: {error.filename or page} cannot be written ({error.strerror}); expected a place to write to."
        ) from error
    return report


def render(results: Results) -> str:
    """The page as text."""
    study = results.study
    title = study.get("question") or study.get("name") or "A study"
    sections = {
        "results": ("Results", _results(results)),
        "differences": ("Paired differences", page_tables.differences(results)),
        "curves": ("Curves", pictures.curves(results)),
        "frontier": ("Score against divergence", pictures.frontier(results)),
        "categories": ("By category", pictures.categories(results)),
        "training": ("Log-probabilities in training", training(results)),
        "tokens": ("Tokens and lengths", token_pictures.histograms(results) + token_pictures.top_tokens(results)),
        "ends": ("End of answers", end_of_answers(results)),
        "samples": ("Samples side by side", details.samples(results)),
        "metrics": ("All metrics", page_tables.all_metrics(results)),
        "published": ("Published numbers", _published(results)),
        "failures": ("Rows without a score", page_tables.failures(results)),
        "method": ("How the numbers were computed", _method(results)),
        "provenance": ("How the rows were made", details.provenance(results)),
    }
    sections = {key: part for key, part in sections.items() if part[1]}
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, (name, _) in sections.items())
    body = [
        f'<header><p class="eyebrow">Study {escape(str(study.get("name", "")))}</p><h1>{escape(title)}</h1></header>',
        _answer(results),
        _facts(results),
        *(f'<p class="soft">{escape(note)}</p>' for note in results.notes),
        details.mismatches(results),
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>',
    ]
    body += [
        f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(name)}</h2>{text}</section>'
        for key, (name, text) in sections.items()
    ]
    return html(str(title), "\n".join(body), STYLE)


def _answer(results: Results) -> str:
    first, *rest = answer(results) or ["No row tells anything yet."]
    listed = [sentence for sentence in rest if sentence.startswith(EACH)]
    before = rest[: rest.index(listed[0])] if listed else rest
    after = rest[len(before) + len(listed) :]
    inner = "".join(f"<li>{escape(sentence)}</li>" for sentence in listed)
    more = f"<ul>{inner}</ul><p>{escape(' '.join(after))}</p>" if listed else ""
    return f'<div class="answer"><p><strong>{escape(first)}</strong> {escape(" ".join(before))}</p>{more}</div>'


def _facts(results: Results) -> str:
    lost = sum(bool(degenerate(row)) for row in results.done)
    facts = {
        "rows": str(len(results.rows)),
        "settings": str(len(results.groups)),
        "seeds at most" if most_seeds(results) > 1 else "seed": str(most_seeds(results)),
        "failed": str(len(results.failed)),
        "degenerate": str(lost),
    }
    return '<ul class="facts">' + "".join(f"<li><b>{v}</b> {k}</li>" for k, v in facts.items()) + "</ul>"


def _results(results: Results) -> str:
    better = {True: "Higher is better. ", False: "Lower is better. "}.get(results.higher_is_better, "")  # type: ignore[arg-type]
    words = f"{metric_name(results.headline)} of each setting, mean over its seeds. {better}"
    words += "★ marks the best, ≈ those that cannot be told from it after correction."
    return f"<p>{escape(words)}</p>{page_tables.headline_tables(results)}"


def _published(results: Results) -> str:
    table = page_tables.published(results)
    words = "Numbers of a paper beside ours, for orientation: models, data and judge may differ, so nothing is tested."
    return f"<p>{words}</p>{table}" if table else ""


def _method(results: Results) -> str:
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in results.study.get("notes", ()))
    listed = f'<h3>Notes of the study</h3><ul class="notes">{notes}</ul>' if notes else ""
    return f"<p>{METHOD}</p>{listed}"


def markdown(results: Results) -> str:
    """The question, the answer, the main tables, differences and what is missing, in Markdown."""
    study, name = results.study, results.headline
    parts = [f"# {markdown_escape(str(study.get('question') or study.get('name')))}\n"]
    parts.append(markdown_escape(" ".join(answer(results))) + "\n")
    parts += [markdown_escape(note) + "\n" for note in results.notes]
    for measure, texts in results.mismatches():
        parts.append(f"**Protocols differ:** {markdown_escape(measure)} was measured in {len(texts)} ways.\n")
    parts.append("## Results\n")
    for protocol, lines in main_table(results):
        unit = next((line.estimate.unit for line in lines if line.estimate.value is not None), "")
        if len(results.protocols.get(name.partition("/")[0], ())) > 1:
            parts.append(f"Protocol {letter(protocol)}\n" if protocol is not None else "Not measured\n")
        head = [*results.labels, f"{metric_name(name)}, {unit_name(unit)}".rstrip(", ")]
        rows = []
        for line in lines:
            cells = [label_text(line.group.labels.get(label)) for label in results.labels]
            covers = line.estimate.covers or DASH if line.estimate.value is not None else ""
            p = p_of(line.difference) if line.difference else ""
            verdict = ", ".join(part for part in (line.verdict, line.remark) if part)
            rows.append(
                [
                    *cells,
                    line.text,
                    line.interval,
                    covers,
                    str(line.estimate.seeds),
                    str(line.estimate.items),
                    p,
                    verdict,
                ]
            )
        parts.append(
            markdown_table(
                [*head, "95 % interval", "interval covers", "seeds", "items", "p, corrected", "remark"], rows
            )
        )
    parts += _markdown_differences(results)
    parts += markdown_ends(results)
    parts += _markdown_rest(results)
    parts.append(f"## How the numbers were computed\n\n{METHOD}\n")
    parts += [f"- {markdown_escape(str(note))}" for note in study.get("notes", ())]
    return "\n".join(parts).rstrip() + "\n"


def _markdown_differences(results: Results) -> list[str]:
    unit = results.metrics.get(results.headline, {}).get("unit", "share")
    parts = []
    for own, label in results.compared_labels:
        for found in (over_settings(own, results.headline, label), by_setting(own, results.headline, label)):
            if not found:
                continue
            rows = []
            for d in found:
                where = count(d.settings, "setting") if d.context is None else setting(d.context)
                verdict = "not tested" if d.adjusted is None else "holds" if d.holds else "does not hold"
                rows.append(
                    [
                        pair(d),
                        difference(d, unit),
                        p_of(d),
                        verdict,
                        d.covers or DASH,
                        str(d.seeds),
                        str(d.items or DASH),
                        where,
                    ]
                )
            title = "averaged over settings" if found[0].context is None else "in each setting"
            parts.append(f"## Differences between values of {markdown_escape(label)}, {title}\n")
            head = [
                "difference",
                "mean [95 % interval]",
                "p, corrected",
                "after correction",
                "interval covers",
                "pairs of rows",
                "items",
                "where",
            ]
            parts.append(markdown_table(head, rows))
    return parts


def _markdown_rest(results: Results) -> list[str]:
    parts = []
    lines = list(published_lines(results))
    if lines:
        rows = [[x.setting, x.metric, x.value, x.here, x.ours, x.source] for x in lines]
        head = ["setting", "metric of the paper", "published", "here", "our metric", "source"]
        parts += ["## Published numbers\n", markdown_table(head, rows)]
    if results.failed:
        rows = [
            [str(row["row"]), setting(row["labels"]), str((row.get("error") or {}).get("message", ""))[:500]]
            for row in results.failed
        ]
        parts += ["## Failed rows\n", markdown_table(["row", "labels", "error"], rows)]
    lost = [row for row in results.done if degenerate(row)]
    if lost:
        rows = [[str(row["row"]), setting(row["labels"]), str(degenerate(row))] for row in lost]
        parts += ["## Degenerate rows\n", markdown_table(["row", "labels", "why"], rows)]
    return parts
