"""Which file of a run is shipped, and how large it is.

Stages are timed with files that are written quickly; the export is written with its metadata, compared with the model, and may
be larger. Whatever is said of the result's size is said of the file that leaves the folder.
"""

from __future__ import annotations

from compress.report.records import ExportRecord, Report

FORMAT = "onnx"
"""The format of the result itself; others are made from it."""


def shipped(report: Report) -> ExportRecord | None:
    """The exported file that stands for the result: the ONNX file, else the first one; None where nobody wrote down its size."""
    found = next((export for export in report.exports if export.format == FORMAT), next(iter(report.exports), None))
    return None if found is None or found.bytes is None else found


def file_bytes(report: Report) -> int:
    """Bytes of the shipped file; of the file that the last stage was timed with where nothing was exported."""
    found = shipped(report)
    return report.result.file_bytes if found is None or found.bytes is None else found.bytes
