"""The report of a study, from its rows alone: a page, Markdown, CSV and LaTeX."""

from jaxalign.studies.report.page import Report, markdown, render, write_report

__all__ = ["Report", "markdown", "render", "write_report"]
