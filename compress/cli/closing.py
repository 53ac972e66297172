"""What stands on standard output when a run is over: the stages, what matters of what was said, and one closing block."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from compress.cli.tables import console, facts, print_table, told
from compress.cli.terminal import say
from compress.report import sentences, weights
from compress.report.html import PAGE
from compress.report.html.command_line import command_line
from compress.report.html.headline import UNLIMITED, of_report
from compress.report.promise import kept
from compress.report.records import Outcome, Report
from compress.report.table import columns, rows, table
from compress.user import files

DISPENSABLE = ("peak memory", "time", "params", "file")
"""Columns of the stage table that go first where there is no room; the page has them all."""


def print_report(report: Report, out: object, quiet: bool = False) -> None:
    """The stage table, what may be said about it, and where to look; `quiet`: the closing block alone."""
    folder = Path(str(out))
    if not quiet:
        print_stages(report)
        say()
        for warning in report.warnings:
            told(f"Warning: {warning}")
        for sentence in sentences.exports(report):
            told(sentence)
        print_notes(report.notes, folder)
        say()
    verdict = of_report(report)
    told(verdict.headline)
    # The error that ends a run which broke its contract says the rest.
    if report.outcome is Outcome.KEPT:
        for sentence in verdict.sentences:
            # Without --quiet the warnings stand above already.
            if (quiet or sentence not in report.warnings) and sentence != report.verdict:
                told(sentence)
    said = [(one.name.lower(), "; ".join(filter(None, (one.value, one.beside, one.interval)))) for one in verdict.figures]
    facts([*said, ("files", f"{', '.join(_files(report, folder))}")])
    # On one line, however long: it is copied.
    say(f"next     {next_command(report, folder)}")


def print_stages(report: Report) -> None:
    """The table as it fits: without what is dispensable, then in parts."""
    out = console(wide=True)
    names, cells = columns(report), rows(report)
    if fits(table(report), out.width):
        out.print(table(report))
        return
    for number in range(1, len(DISPENSABLE) + 1):
        made = table(report, without=DISPENSABLE[:number])
        if fits(made, out.width):
            out.print(made)
            return
    print_table(names, cells)


def fits(made: Table, width: int) -> bool:
    """Whether a table is shown whole."""
    wide = console(wide=True)
    return wide.measure(made, options=wide.options.update(max_width=1000)).maximum <= width


def print_notes(notes: Sequence[str], folder: Path) -> None:
    """Those that could change what somebody does; how many others there are."""
    shown, rest = weights.parted(notes)
    for note in shown:
        told(f"Note: {note}")
    if rest:
        told(f"{len(rest)} more note{'s are' if len(rest) > 1 else ' is'} in {folder / PAGE}.")


def _files(report: Report, folder: Path) -> Iterator[str]:
    """What lies in the folder of a run, what to look at first."""
    yield f"{folder / PAGE} (for a browser)"
    yield from (Path(one.path).name for one in report.exports)
    if (folder / "model.compressed").exists():
        yield "model.compressed (to go on in torch)"
    else:  # A model without a class-free form has none; the notes say why.
        yield f"no model.compressed. {sentences.WITHOUT_CHECKPOINT}"


def next_command(report: Report, folder: Path) -> str:
    """What most people would do now, as a shell takes it."""
    place = shlex.quote(str(folder))
    verdict, dense, now = of_report(report), report.dense.quality, report.result.quality
    unlimited = UNLIMITED in verdict.sentences
    # A limit that this result breaks is no next step.
    lost = unlimited and dense is not None and now is not None and kept(dense, now, 1, report.chance).verdict == "fail"
    if report.outcome is Outcome.QUALITY_LOST or lost:
        return longer(folder) or f"compress report {place}"
    package = ["compress", "package", str(folder), *files.elsewhere("package", ".tar.gz")]
    if report.outcome is not Outcome.KEPT or verdict.tone == "bad" or not report.exports:
        return f"compress report {place}"
    return f"compress gate {place} --max-drop 1" if unlimited else shlex.join(package)


def longer(folder: Path) -> str:
    """The same run with twice the training, into a folder of its own; empty where no command line can repeat it."""
    from compress.recipe import Recipe, settings_in

    if not (folder / "recipe.toml").is_file():
        return ""
    settings = settings_in(folder / "recipe.toml")
    epochs = 2 * float(settings.get("epochs", 0)) or Recipe.model_fields["epochs"].default
    return command_line({**settings, "epochs": epochs}, files.untaken(f"{folder}-longer"))
