"""What a person sees while a command works and when it is done. Results go to standard output, the rest to standard error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from compress.cli.tables import print_table, told
from compress.cli.terminal import echo, say
from compress.measure.intervals import beside_one
from compress.progress import duration
from compress.user import files
from compress.user.wording import many


def print_records(records: Sequence[Any], title: str | None = None, named: int = 1) -> None:
    """Data classes of one kind as a table, a column for each field that any of them fills; the first `named` name a record."""
    if not records:
        say("nothing to show")
        return
    names = [f.name for f in dataclasses.fields(records[0]) if any(getattr(r, f.name) not in (None, "", ()) for r in records)]
    print_table([name.replace("_", " ") for name in names], ([getattr(r, name) for name in names] for r in records), title, named)


def print_differences(found: Sequence[Any]) -> None:
    """What changed between two reports. Of checksums, which differ in every digit, the first digits tell enough."""
    for_people = [dataclasses.replace(one, old=_shortened(one.old), new=_shortened(one.new)) for one in found]
    print_records(for_people, named=2)


def _shortened(value: object) -> object:
    return f"{value[:12]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value


def print_comparison(found: Any, out: object | None) -> None:
    """Runs beside each other, and what makes that unfair."""
    from compress.report.comparison import COLUMNS, cells, legend

    print_table(COLUMNS, cells(found))
    for line in legend(found):
        told(line)
    for warning in found.warnings:
        told(f"Note: {warning}")
    if out:
        told(f"The comparison is in {out}: compare.md, compare.json and, with matplotlib, compare.svg.")


def print_methods(methods: Sequence[Any]) -> None:
    """A paragraph for each method."""
    for one in methods:
        click.secho(one.method, bold=True)
        facts = {"stages": ", ".join(one.stages), "source": one.source, "needs": one.needs, "costs": one.costs}
        for line in (one.what, *(f"{name}: {fact}" for name, fact in facts.items() if fact not in ("", "-"))):
            told(line, "  ")


def print_probing(found: Any) -> None:
    """What is lost at each place, and what that means."""
    print_records(found.rows)
    told(found.verdict)


def compared(export: Any) -> str:
    """What is known of a file beside the model."""
    said = [] if export.parity is None else [f"worst absolute difference to torch {export.parity.worst_abs:.2g}"]
    if (close := export.closeness) is not None:
        agreement = "" if close.agreement is None else f", same class on {close.agreement:.2%}"
        said.append(f"relative error {close.relative:.2g}{agreement} of {many(close.samples, 'sample')}")
        if close.no_number:
            said.append(
                f"the model's own outputs are no numbers (NaN or infinite) in {close.no_number:.2%} of places: look at the inputs"
            )
    if export.kept_float:
        said.append(f"in float: {', '.join(export.kept_float)}")
    return "; ".join(said) or "not compared"


def print_decision(decision: Any, next_line: str = "") -> None:
    """What a plan does to each layer, the model's cost before and after, and what carries it out where it was written."""
    print_table(("edit", "layer", "to"), (described(edit) for edit in decision.plan.edits))
    say()
    sizes = [(name, dataclasses.asdict(size)) for name, size in (("dense", decision.dense), ("planned", decision.planned))]
    print_table(["", *(key.replace("_", " ") for key in sizes[0][1])], ([name, *size.values()] for name, size in sizes))
    for note in decision.notes:
        told(f"Note: {note}")
    if decision.seconds is not None:
        rough = "perhaps half or three times that"
        told(f"The run will take about {duration(decision.seconds)} here, {rough}, and what timing and exports take.")
    told(f"The plan: {counted(decision.plan.edits)}. {'It is written; next:' if next_line else 'Nothing was written.'}")
    if next_line:
        say(next_line)  # on one line, however long: it is copied


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
        Keep: ("group", "of channels made smaller"),
        Linearize: ("activation", "linearized"),
        Pointwise: ("convolution", "made 1x1"),
        Merge: ("segment", "merged into one layer"),
    }
    # By layer: a plan that went on from another one narrows the same group twice.
    numbers = {kind: len({edit.layer for edit in edits if isinstance(edit, kind)}) for kind in kinds}
    return ", ".join(f"{many(n, kinds[kind][0])} {kinds[kind][1]}" for kind, n in numbers.items() if n) or "nothing changes"


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
            told(f"Not timed: {name} in {t.runtime}, batch {t.batch}: {t.reason}")
        elif t.noisy:
            told(f"Too noisy for any claim: the rounds of {name}. Let the machine rest, pin with --cpu, or take more --rounds.")
    calm = min((t.calm for t in ran.values() if t.calm is not None), default=1.0)
    if calm < 0.9:
        told(f"Other processes took the cores: {1 - calm:.0%} of the rounds were thrown away.")
    clocks = next((t.mhz for t in ran.values() if t.mhz and all(t.mhz)), None)
    if clocks:
        told(f"Clock of the cores before and after: {clocks[0]:.0f} and {clocks[1]:.0f} MHz.")


def _timing(t: Any) -> tuple[str, ...]:
    """One candidate, as it is read; what was not measured is empty."""

    def shown(value: float | None, digits: int, scale: float = 1.0) -> str:
        return "" if value is None else f"{scale * value:.{digits}f}"

    from compress.report.sentences import pace

    told = "" if t.ci95 == (1.0, 1.0) and not t.noisy else pace(t.ci95, t.noisy)
    return (
        t.runtime, str(t.batch), str(t.threads),
        shown(t.p50_ms, 3), shown(t.p90_ms, 3), shown(t.p99_ms, 3), shown(t.per_second, 1),
        f"{t.ratio:.2f}x", f"{beside_one(t.ci95[0])} - {beside_one(t.ci95[1])}", told, str(t.samples),
        shown(t.peak_bytes, 0, 1e-6), shown(t.load_ms, 0), shown(t.first_ms, 2), shown(t.joules, 4),
        shown(t.gpu_ms, 3), shown(t.gpu_bytes, 0, 1e-6), t.device or "",
    )  # fmt: skip


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    echo(files.json_text(plain(value)))


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
