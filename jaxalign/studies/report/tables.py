"""A study's tables: the main one, and the forms in which tables leave the report: CSV, Markdown, LaTeX."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxalign.studies.report.comparisons import Difference, Estimate, best_of, estimate
from jaxalign.studies.report.results import SEED, Group, Results, canonical, degenerate, protocol_of
from jaxalign.studies.report.wording import DASH, MINUS, label_text, metric_name, number, p_text, unit_name

BEST, ALIKE, APART, UNTESTED = "best", "not distinguishable from the best", "differs from the best", "not tested"
DEGENERATE = "degenerate"


@dataclass(frozen=True)
class Line:
    """A line of the main table.

    Attributes:
      group: the setting.
      estimate: its headline.
      verdict: how it stands to the best of its protocol; empty where it has no value or there is no best.
      difference: the best minus it; None for the best itself and where untested.
      failed: rows of this setting that failed.
    """

    group: Group
    estimate: Estimate
    verdict: str
    difference: Difference | None
    failed: int

    @property
    def text(self) -> str:
        """The headline's value in a table without its unit, or why there is none."""
        if self.estimate.value is not None:
            return number(self.estimate.value, self.estimate.unit)
        if self.estimate.degenerate:
            return DEGENERATE
        return "failed" if self.failed and not self.group.rows else "not measured"

    @property
    def interval(self) -> str:
        """The headline's interval; empty where there is none."""
        low, high, unit = self.estimate.low, self.estimate.high, self.estimate.unit
        return "" if low is None or high is None else f"[{number(low, unit)}, {number(high, unit)}]"

    @property
    def remark(self) -> str:
        """Rows that are not in the mean."""
        lost, failed = self.estimate.degenerate, self.failed
        parts = [f"{lost} degenerate"] * bool(lost) + [f"{failed} failed"] * bool(failed)
        return ", ".join(parts)


def main_table(results: Results) -> list[tuple[int | None, list[Line]]]:
    """The settings with their headline, one table for each protocol: ``(protocol, lines)``."""
    failed: dict[str, list] = {}
    for row in results.failed:
        labels = results.labels_of(row)
        failed.setdefault(canonical(labels), []).append((labels, row))
    tables = []
    for protocol in dict.fromkeys(group.protocol for group in results.groups):
        groups = [group for group in results.groups if group.protocol == protocol]
        found = best_of(results, results.headline, groups)
        tables.append(
            (protocol, [_line(results, group, found, len(failed.get(canonical(group.labels), ()))) for group in groups])
        )
    known = {canonical(group.labels) for group in results.groups}
    gone = [
        Line(
            Group(members[0][0], (), None), Estimate(None, None, None, 0, 0, 0, False, "share"), "", None, len(members)
        )
        for key, members in failed.items()
        if key not in known
    ]
    if gone and tables:
        tables[0][1].extend(gone)
    elif gone:
        tables.append((None, gone))
    return tables


def _line(results: Results, group: Group, found, failed: int) -> Line:
    value = estimate(results, group, results.headline)
    if found is None or value.value is None or not found[1]:
        return Line(group, value, "", None, failed)
    best, others = found
    if group is best:
        return Line(group, value, BEST, None, failed)
    gap = others[id(group)]
    verdict = UNTESTED if gap is None or gap.adjusted is None else APART if gap.holds else ALIKE
    return Line(group, value, verdict, gap, failed)


def csv_text(results: Results) -> str:
    """A line for each row and metric; a failed row has one line with its error."""
    names = [*results.labels, SEED]
    head = ["row", *(f"label:{name}" for name in names), "status", "measure", "metric", "value", "n", "stderr"]
    head += ["unit", "higher_is_better", "degenerate", "protocol", "error"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in results.rows:
        start = [row["row"], *(row["labels"].get(name, "") for name in names), row["status"]]
        if row["status"] != "done":
            error = row.get("error") or {}
            said = ": ".join(str(error[part]) for part in ("stage", "type", "message") if error.get(part))
            writer.writerow([*start, *[""] * 9, said])
        for measure, outcome in row.get("results", {}).items():
            way = hashlib.sha256(canonical(protocol_of(outcome)).encode()).hexdigest()[:8]
            for name, metric in outcome.get("metrics", {}).items():
                cells = [metric.get(key) for key in ("value", "n", "stderr", "unit", "higher_is_better")]
                cells = ["" if cell is None else cell for cell in cells]
                writer.writerow([*start, measure, name, *cells, degenerate(row) or "", way, ""])
    return out.getvalue()


# A bracket at the start of a row would be an option of the \\ before it.
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", DASH: "--", MINUS: "$-$", "\n": " ",
}  # fmt: skip


def latex_escape(text: str) -> str:
    """A text for LaTeX, nothing of it a command."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def latex_text(results: Results) -> str:
    """The main table for a paper, with booktabs: the best in bold, what cannot be told from it with a dagger."""
    labels = results.labels
    unit = next(
        (line.estimate.unit for _, lines in main_table(results) for line in lines if line.estimate.value is not None),
        "",
    )
    head = [
        *labels,
        f"{metric_name(results.headline)}, {unit_name(unit)}".rstrip(", "),
        "95 % interval",
        "seeds",
        "items",
    ]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"% {latex_escape(results.study.get('name', ''))}",
        "\\begin{tabular}{" + "l" * len(labels) + "rlrr}",
        "\\toprule",
        " & ".join(latex_escape(name) for name in head) + " \\\\",
    ]
    for number_of_table, (protocol, members) in enumerate(main_table(results)):
        lines.append("\\midrule")
        if number_of_table:
            which = "without the headline" if protocol is None else f"protocol {letter(protocol)}, not comparable"
            lines.append(f"\\multicolumn{{{len(head)}}}{{l}}{{\\emph{{{which}}}}} \\\\")
        for line in members:
            value = latex_escape(line.text)
            if line.estimate.value is None:
                value = f"\\emph{{{value}}}"
            elif line.verdict == BEST:
                value = f"\\textbf{{{value}}}"
            elif line.verdict == ALIKE:
                value += "$^\\dagger$"
            cells = [latex_escape(label_text(line.group.labels.get(name))) for name in labels]
            cells += [value, latex_escape(line.interval) or "--"]
            cells += [str(line.estimate.seeds), str(line.estimate.items)]
            lines.append(" & ".join(cells) + " \\\\")
    lines += [
        "\\bottomrule",
        "\\end{tabular}",
        "% bold: best; dagger: not distinguishable from it after Holm's correction",
    ]
    return "\n".join(lines) + "\n"


def markdown_escape(text: str) -> str:
    """A text for a Markdown cell or line, nothing of it markup or HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", " ".join(text.split()))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are escaped here."""
    lines = [head, ["---"] * len(head), *([markdown_escape(cell) for cell in row] for row in rows)]
    lines[0] = [markdown_escape(cell) for cell in head]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def letter(protocol: int) -> str:
    """A protocol's name: A for the most frequent."""
    return chr(ord("A") + protocol) if protocol < 26 else str(protocol + 1)


def p_of(found: Difference | None) -> str:
    """The corrected p of a difference."""
    return p_text(None if found is None else found.adjusted)
