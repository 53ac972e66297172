"""Small tables for notebooks: plain HTML without a style or a script of its own; every text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from compress.report.records import Report
from compress.report.table import columns, rows


def stages(report: Report, out: str) -> str:
    """A row per stage, what came of it, and where it is."""
    return f"{table(columns(report), rows(report))}{_lines((report.verdict, f'Everything is in {out}', *report.warnings))}"


def table(headings: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A table of texts, the first column left-aligned."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _lines(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)
