"""What a person sees while a command works and when it is done. Results go to standard output, the rest to standard error."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from compress.cli.terminal import say
from compress.errors import CompressWarning
from compress.report.escape import printable


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A table on standard output; columns whose every cell is a number lean right. Piped into a file nothing is cut off."""
    cells = [[cell(value) for value in row] for row in rows]
    numeric = [bool(cells) and all(is_numeric(row[i]) for row in cells) for i in range(len(columns))]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in cells:
        table.add_row(*(escape(printable(cell)) for cell in row))
    console(wide=True).print(table)


def console(wide: bool = False) -> Console:
    """Standard output; `wide`: where it is not a terminal, lines are not wrapped."""
    made = Console(highlight=False)
    return Console(highlight=False, width=200) if wide and not made.is_terminal else made


def print_records(records: Sequence[Any], title: str | None = None) -> None:
    """Data classes of one kind as a table, a column for each field that any of them fills."""
    if not records:
        say("nothing to show")
        return
    names = [f.name for f in dataclasses.fields(records[0]) if any(getattr(r, f.name) not in (None, "", ()) for r in records)]
    print_table([name.replace("_", " ") for name in names], ([getattr(r, name) for name in names] for r in records), title)


def print_comparison(found: Any, out: object | None) -> None:
    """Runs beside each other, and what makes that unfair."""
    from compress.report.comparison import COLUMNS, cells

    print_table(COLUMNS, cells(found))
    for warning in found.warnings:
        say(f"Note: {warning}")
    if out:
        say(f"The comparison is in {out}: compare.md, compare.json and, with matplotlib, compare.svg.")


def print_methods(methods: Sequence[Any]) -> None:
    """A paragraph for each method."""
    for one in methods:
        click.secho(one.method, bold=True)
        facts = {"stages": ", ".join(one.stages), "source": one.source, "needs": one.needs, "costs": one.costs}
        for line in (one.what, *(f"{name}: {fact}" for name, fact in facts.items() if fact not in ("", "-"))):
            say(click.wrap_text(line, width=110, initial_indent="  ", subsequent_indent="    "))


def print_probing(found: Any) -> None:
    """What is lost at each place, and what that means."""
    print_records(found.rows)
    say(found.verdict)


def print_report(report: Any, out: object) -> None:
    """The stage table, what may be said about it, and where to look."""
    from compress.report import sentences
    from compress.report.table import table

    console(wide=True).print(table(report))
    say()
    warned = (f"Warning: {warning}" for warning in report.warnings)
    for sentence in (*warned, *sentences.sentences(report), *(f"Note: {note}" for note in report.notes)):
        say(sentence)
    # A model without a class-free form has none; the notes say why.
    there = Path(str(out), "model.compressed").exists()
    on = "model.compressed to go on in torch." if there else f"there is no model.compressed. {sentences.WITHOUT_CHECKPOINT}"
    say(f"{report.verdict}\nEverything is in {out}: report.md first, {on}")


def compared(export: Any) -> str:
    """What is known of a file beside the model."""
    said = [] if export.parity is None else [f"worst absolute difference to torch {export.parity.worst_abs:.2g}"]
    if (close := export.closeness) is not None:
        agreement = "" if close.agreement is None else f", same class on {close.agreement:.2%}"
        said.append(f"relative error {close.relative:.2g}{agreement} of {close.samples} samples")
    if export.kept_float:
        said.append(f"in float: {', '.join(export.kept_float)}")
    return "; ".join(said) or "not compared"


def print_decision(decision: Any, out: object | None) -> None:
    """What a plan does to each layer, and the model's cost before and after."""
    print_table(("edit", "layer", "to"), (described(edit) for edit in decision.plan.edits))
    say()
    sizes = [(name, dataclasses.asdict(size)) for name, size in (("dense", decision.dense), ("planned", decision.planned))]
    print_table(["", *(key.replace("_", " ") for key in sizes[0][1])], ([name, *size.values()] for name, size in sizes))
    for note in decision.notes:
        say(f"Note: {note}")
    done = f"{out} is written: carry it out with 'compress apply {out} MODEL'." if out else "Nothing was written."
    say(f"The plan: {counted(decision.plan.edits)}. {done}")


def described(edit: Any) -> tuple[str, str, str]:
    """(kind, layer, what becomes of it) of one edit of a plan."""
    from compress.edits import KINDS, Factor, Keep, Linearize, Pointwise

    match edit:
        case Keep():
            what = f"{len(edit.keep)} of {edit.channels} channels"
        case Linearize():
            what = f"an affine function for each of {edit.channels} channels" if edit.slope else "the identity"
        case Factor():
            what = f"two layers of rank {edit.rank}"
        case Pointwise():
            what = "a 1x1 convolution"
        case _:
            what = ", ".join(edit.layers)
    return KINDS[type(edit)], edit.layer, what


def counted(edits: Sequence[Any]) -> str:
    """How many edits of each kind, in words."""
    from compress.edits import Keep, Linearize, Merge, Pointwise

    kinds = {
        Keep: "groups of channels made smaller",
        Linearize: "activations linearized",
        Pointwise: "convolutions made 1x1",
        Merge: "segments merged into one layer",
    }
    # By layer: a plan that went on from another one narrows the same group twice.
    numbers = {kind: len({edit.layer for edit in edits if isinstance(edit, kind)}) for kind in kinds}
    return ", ".join(f"{n} {kinds[kind]}" for kind, n in numbers.items() if n) or "nothing changes"


def print_timings(timings: Mapping[str, Any]) -> None:
    """Latency of several files beside the first; where the interval holds 1, nothing is claimed."""
    ran = {name: t for name, t in timings.items() if t.reason is None}
    heading = (
        "model",
        "runtime",
        "batch",
        "threads",
        "p50 ms",
        "p90",
        "p99",
        "per second",
        "speed-up",
        "95 % interval",
        "verdict",
    )
    heading = (*heading, "rounds", "peak MB", "load ms", "first ms", "J per call", "GPU ms", "GPU MB", "device")
    rows = [[name, *_timing(t)] for name, t in ran.items()]
    filled = [i for i in range(len(heading)) if any(row[i] for row in rows)]
    print_table([heading[i] for i in filled], ([row[i] for i in filled] for row in rows))
    for name, t in timings.items():
        if t.reason is not None:
            say(f"Not timed: {name} in {t.runtime}, batch {t.batch}: {t.reason}")
        elif t.noisy:
            say(f"Too noisy for any claim: the rounds of {name}. Let the machine rest, pin with --cpu, or take more --rounds.")
    calm = min((t.calm for t in ran.values() if t.calm is not None), default=1.0)
    if calm < 0.9:
        say(f"Other processes took the cores: {1 - calm:.0%} of the rounds were thrown away.")
    clocks = next((t.mhz for t in ran.values() if t.mhz and all(t.mhz)), None)
    if clocks:
        say(f"Clock of the cores before and after: {clocks[0]:.0f} and {clocks[1]:.0f} MHz.")


def _timing(t: Any) -> tuple[str, ...]:
    """One candidate, as it is read; what was not measured is empty."""

    def shown(value: float | None, digits: int, scale: float = 1.0) -> str:
        return "" if value is None else f"{scale * value:.{digits}f}"

    first = t.ci95 == (1.0, 1.0)
    return (
        t.runtime, str(t.batch), str(t.threads),
        shown(t.p50_ms, 3), shown(t.p90_ms, 3), shown(t.p99_ms, 3), shown(t.per_second, 1),
        f"{t.ratio:.2f}x", f"{t.ci95[0]:.2f} - {t.ci95[1]:.2f}", "" if first and not t.noisy else t.verdict, str(t.samples),
        shown(t.peak_bytes, 0, 1e-6), shown(t.load_ms, 0), shown(t.first_ms, 2), shown(t.joules, 4),
        shown(t.gpu_ms, 3), shown(t.gpu_bytes, 0, 1e-6), t.device or "",
    )  # fmt: skip


def cell(value: object) -> str:
    """One value as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if value != value or abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def is_numeric(text: str) -> bool:
    """Whether a cell is a number, its unit or sign aside."""
    try:
        float(text.replace(",", "").rstrip("%x") or "0")
    except ValueError:
        return False
    return True


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """Data classes, pydantic models, paths and tuples as JSON has them; a number that JSON lacks becomes null."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float, str], None]]:
    """A callback (what, share done, detail) that draws a bar with an ETA; without a terminal, one line per new task."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        with told_at_once(lambda line: say(line, err=True)):
            yield line_per_task()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars, told_at_once(lambda line: console.print(escape(line))):
        tasks: dict[str, Any] = {}

        def update(what: str, share: float, detail: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(escape(what), total=1.0, detail=detail)
            bars.update(tasks[what], completed=share, detail=escape(detail))

        yield update


@contextmanager
def told_at_once(tell: Callable[[str], None]) -> Iterator[None]:
    """Warnings of this package as one line each, when they come up; those of others stay with Python."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, CompressWarning):
            tell(f"Warning: {message}")
        else:
            shown(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", CompressWarning)
        warnings.showwarning = show
        yield


def line_per_task() -> Callable[[str, float, str], None]:
    """Progress for log files: the name of a task once, when it starts."""
    seen: set[str] = set()

    def update(what: str, share: float, detail: str = "") -> None:
        if what not in seen:
            seen.add(what)
            say(f"{what} ...", err=True)

    return update
