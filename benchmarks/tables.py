"""Numbers in the docs come from here: from the recipe's fields and from benchmarks/results/*.json, never from a keyboard.

    <!-- result: mnist.json:drop.mean; .2f -->0.12<!-- end -->                       one number, in a Python format
    <!-- table: mnist.json:rows; method=Method; macs=MACs=,d -->  ...  <!-- end -->  records, column by column: key=title=format
    <!-- table: report demo.json -->  ...  <!-- end -->                              the stages of a run's report.json
    <!-- table: settings -->  ...  <!-- end -->                                      the fields of Recipe

`python benchmarks/tables.py` rewrites what stands between the markers; a test checks that nothing would change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compress.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKER = re.compile(r"<!-- (?P<kind>result|table): (?P<what>.*?) -->(?P<text>.*?)<!-- end -->", re.DOTALL)


def documents() -> list[Path]:
    """Every Markdown file that may quote a number."""
    places = ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
    return sorted(path for place in places for path in ROOT.glob(place))


def current(text: str, results: Path = RESULTS) -> str:
    """The text with every marked number and table as the results have it now."""

    def replace(match: re.Match[str]) -> str:
        kind, what = match["kind"], match["what"].strip()
        made = number(what, results) if kind == "result" else f"\n\n{table(what, results)}\n\n"
        return f"<!-- {kind}: {what} -->{made}<!-- end -->"

    return MARKER.sub(replace, text)


def number(what: str, results: Path) -> str:
    place, _, spec = what.partition(";")
    return format(look_up(place.strip(), results), spec.strip())


def table(what: str, results: Path) -> str:
    if what == "settings":
        return settings_table()
    if what.startswith("report "):
        return report_table(results / what.removeprefix("report "))
    place, *columns = (part.strip() for part in what.split(";"))
    found = look_up(place, results)
    records = [{"name": name, **record} for name, record in found.items()] if isinstance(found, dict) else found
    chosen = [[*column.split("="), "", ""][:3] for column in columns]
    rows = ([shown(deep(record, key), spec) for key, _, spec in chosen] for record in records)
    return markdown([title or key for key, title, _ in chosen], rows)


def settings_table() -> str:
    rows = []
    for name, field in Recipe.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = "" if default in (None, "", (), {}) else f"`{json.dumps(default)}`"
        flag = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
        rows.append([f"`{flag}`", f"`{name}`", text, field.description or ""])
    return markdown(["flag", "TOML key, Python argument", "default", "meaning"], rows)


def report_table(path: Path) -> str:
    """The stage table of a run's report.json."""
    from compress.report.records import from_json
    from compress.report.table import columns, rows

    report = from_json(path.read_text())
    return markdown(columns(report), rows(report))


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def look_up(place: str, results: Path) -> Any:
    """`file.json:path.to.value`; a part of the path that is a number counts in a list."""
    file, _, path = place.partition(":")
    return deep(json.loads((results / file).read_text()), path)


def deep(value: Any, path: str) -> Any:
    for part in filter(None, path.split(".")):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def shown(value: Any, spec: str) -> str:
    return "" if value is None else format(value, spec)


def main() -> None:
    for path in documents():
        text = path.read_text()
        if (made := current(text)) != text:
            path.write_text(made)
            print(f"rewrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
