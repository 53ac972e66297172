"""The run that `make demo` shows, kept for the README: python benchmarks/demo.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

import compress
from compress.report.records import Report

RESULT = Path(__file__).parent / "results" / "demo.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = compress.demo(out=folder, progress=lambda what, share, detail: None)
    assert isinstance(report, Report)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(report.to_json())
    print(report.verdict)


if __name__ == "__main__":
    main()
