"""Numbers in the docs come from here: from the code and from benchmarks/results/*.json, never from a keyboard.

    <!-- result: mnist.json:drop.mean; .2f -->0.12<!-- end -->                       one number, in a Python format
    <!-- constant: compress.measure.cost:NAME; g -->2.5<!-- end -->                  a number of the code
    <!-- table: mnist.json:rows; method=Method; macs=MACs=,d -->  ...  <!-- end -->  records, column by column: key=title=format
    <!-- table: report demo.json -->  ...  <!-- end -->                              the stages of a run's report.json
    <!-- table: settings -->  ...  <!-- end -->                                      made from the code: a name in CODE

`python benchmarks/tables.py` rewrites what stands between the markers; a test checks that nothing would change.
"""

from __future__ import annotations

import enum
import importlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKER = re.compile(r"<!-- (?P<kind>result|constant|table): (?P<what>.*?) -->(?P<text>.*?)<!-- end -->", re.DOTALL)


def documents() -> list[Path]:
    """Every Markdown file that may quote a number."""
    places = ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
    return sorted(path for place in places for path in ROOT.glob(place))


def current(text: str, results: Path = RESULTS) -> str:
    """The text with every marked number and table as the results have it now."""

    def replace(match: re.Match[str]) -> str:
        kind, what = match["kind"], match["what"].strip()
        made = f"\n\n{table(what, results)}\n\n" if kind == "table" else NUMBERS[kind](what, results)
        return f"<!-- {kind}: {what} -->{made}<!-- end -->"

    return MARKER.sub(replace, text)


def number(what: str, results: Path) -> str:
    place, _, spec = what.partition(";")
    return format(look_up(place.strip(), results), spec.strip())


def constant(what: str, results: Path) -> str:
    """`package.module:NAME; format`."""
    place, _, spec = what.partition(";")
    module, _, name = place.strip().partition(":")
    return format(getattr(importlib.import_module(module), name), spec.strip())


NUMBERS: Mapping[str, Callable[[str, Path], str]] = {"result": number, "constant": constant}
"""By kind of the marker."""


def table(what: str, results: Path) -> str:
    if what in CODE:
        return CODE[what]()
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


def methods_table() -> str:
    from compress.method_table import METHODS

    rows = ([f"`{name}`", one.what, one.source, one.needs, one.costs] for name, one in METHODS.items())
    return markdown(["method", "what goes", "source", "needs", "costs before fine-tuning"], rows)


def formats_table() -> str:
    from exporters.formats import FORMATS

    rows = (
        [
            f"`{name}`",
            f"`model{one.ending}`",
            f"`{one.runtime}`",
            "yes" if one.lossy else "no",
            "yes" if one.fixed else "no",
            f"`{one.install}`",
        ]
        for name, one in FORMATS.items()
    )
    return markdown(["format", "file", "compared in", "fewer bits", "fixed batch", "needs"], rows)


ERRORS = ("compress.errors", "compress.commands.bench", "exporters.errors", "exporters.opset17")
"""Modules that define errors."""


def errors_table() -> str:
    """Every class of error with the exit code that the command line gives it."""
    from compress.cli.guard import sentence

    rows = []
    for place in ERRORS:
        for name, one in vars(importlib.import_module(place)).items():
            error = isinstance(one, type) and issubclass(one, BaseException) and not issubclass(one, Warning)
            if error and one.__module__ == place:
                code = getattr(one, "exit_code", None) or sentence(one.__new__(one))[1]
                rows.append([f"`{place}.{name}`", str(code), (one.__doc__ or "").partition("\n")[0]])
    return markdown(["class", "exit code", "meaning"], rows)


def records_table() -> str:
    """The records of a report, the whole first, each with its fields."""
    from compress.report import records

    kinds = [one for one in vars(records).values() if isinstance(one, type) and issubclass(one, records.Record)]
    parts = []
    for one in sorted(kinds, key=lambda kind: kind is not records.Report):
        if one.model_fields:
            rows = (
                [f"`{f.alias or name}`", f"`{spelled(f.annotation)}`", f.description or ""]
                for name, f in one.model_fields.items()
            )
            parts += [f"## {one.__name__}", one.__doc__ or "", markdown(["field", "type", "meaning"], rows)]
    return "\n\n".join(parts)


def spelled(annotation: Any) -> str:
    """A type in short, the same in every Python: `tuple[str, ...] | None`."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return spelled(parts[0])
    if origin in (types.UnionType, typing.Union):
        return " | ".join(map(spelled, parts))
    if origin is typing.Literal:
        return " | ".join(map(repr, parts))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " | ".join(repr(str(one.value)) for one in annotation)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(spelled, parts))}]"
    return {type(None): "None", ...: "..."}.get(annotation) or getattr(annotation, "__name__", str(annotation))


CODE: Mapping[str, Callable[[], str]] = {
    "settings": settings_table,
    "methods": methods_table,
    "formats": formats_table,
    "errors": errors_table,
    "records": records_table,
}
"""Tables that are made from the code."""


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
