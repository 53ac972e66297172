"""Layers of a run: what each had and has, what was done to it, and why nothing was where nothing was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from compress.edits import Factor, Keep, Linearize, Merge, Plan, Pointwise, Relocate
from compress.report import sentences
from compress.report.html import plots
from compress.report.html.run_folder import ANALYSIS, LayerAnalysis, RunFolder
from compress.report.html.view import LayerRow, Layers
from compress.report.records import LayerRecord


@dataclass
class _Done:
    """What happened to one layer or activation, in words."""

    marks: list[str] = field(default_factory=list[str])
    reasons: list[str] = field(default_factory=list[str])

    def add(self, mark: str, reason: str) -> None:
        if mark not in self.marks:
            self.marks.append(mark)
        self.reasons.append(reason)


def layers_of(run: RunFolder) -> Layers | None:
    """Every layer and activation that anything is known of; None where nothing is."""
    done = _by_plan(run.plan)
    records = {one.name: one for one in run.report.layers} if run.report else {}
    states = {one.activation: one for one in run.observed.activations}
    stays = {one.activation: one.reason for one in run.report.stays} if run.report else {}
    analysed = {one.layer: one for one in run.analysis} | {one.activation: one for one in run.analysis if one.activation}
    for name, reason in stays.items():
        if "linearized" not in done[name].marks:
            done[name].add("stays", f"Why it could not be linearized to any use: {reason}.")
    for name, one in records.items():
        if one.frozen:
            done[name].add("frozen", f"Why its channels are frozen: {one.frozen}.")
    names = list(dict.fromkeys([*records, *states, *analysed, *(name for name, what in done.items() if what.marks)]))
    if not names:
        return None
    bits = {name: one.entropy for name, one in states.items()}
    rows = tuple(_row(name, records.get(name), bits.get(name), analysed.get(name), done[name]) for name in names)
    return Layers(rows, _columns(rows), tuple(_pictures(records, bits)), tuple(_missing(run, records)))


def _by_plan(plan: Plan | None) -> defaultdict[str, _Done]:
    """What the edits of a plan did, by the name of the layer."""
    done: defaultdict[str, _Done] = defaultdict(_Done)
    for edit in plan.edits if plan is not None else ():
        match edit:
            case Keep(layer, channels, keep):
                gone = channels - len(keep)
                whole = f"{gone} of its {channels} channels were removed, {len(keep)} stay"
                done[layer].add("narrower", f"{whole}; layers that are coupled to it lost the same ones.")
            case Linearize(layer, channels, slope):
                how = "an affine function of each channel" if slope else "the identity"
                done[layer].add("linearized", f"The activation became {how} ({channels} channels).")
            case Pointwise(layer):
                done[layer].add("1x1", "Its kernel was reduced to 1x1, so that it could be merged without a larger kernel.")
            case Relocate(layers):
                done[layers[0]].add("padding moved", f"It took over the padding of {', '.join(layers[1:])}.")
            case Merge(layers):
                done[layers[0]].add("merged", f"It is one layer now with {', '.join(layers[1:])}.")
                for name in layers[1:]:
                    done[name].add("merged", f"It went into {layers[0]}.")
            case Factor(layer, rank):
                done[layer].add("factored", f"It became two layers with {rank} channels between them.")
    return done


def _row(name: str, record: LayerRecord | None, bits: float | None, found: LayerAnalysis | None, done: _Done) -> LayerRow:
    entropy = bits if bits is not None else (found.entropy if found and found.activation == name else None)
    reasons = list(done.reasons)
    marks = list(done.marks)
    narrower = record is not None and record.width is not None and (record.width_after or record.width) < record.width
    # A merged layer makes what the last one of its segment made, which says nothing of channels that were removed.
    if narrower and not {"narrower", "merged"} & set(marks):
        marks.append("narrower")
        reasons.append("It lost the channels that it is coupled to.")
    if record is not None and record.params is not None and record.params_after is None and not marks:
        marks.append("gone")
        reasons.append("The result has no layer of this name: it went into another one, or nothing reads it any more.")
    if found and found.frozen and "frozen" not in marks:
        marks.append("frozen")
        reasons.append(f"Why its channels are frozen: {found.frozen}.")
    if found and found.activation == name and found.stays and not {"stays", "linearized"} & set(marks):
        marks.append("stays")
        reasons.append(f"Why it stays: {found.stays}.")
    if found and found.layer == name and found.error_at_half is not None:
        reasons.append(
            f"With half of its channels the layers behind it would be off by {found.error_at_half:.1%} of their variance."
        )
    saved = found.linearized_saves_ms if found and found.activation == name else None
    return LayerRow(
        name=name,
        kind=record.kind if record else "activation" if bits is not None or (found and found.activation == name) else "",
        width=_pair(record, "width", str),
        share=_share(record),
        macs=_pair(record, "macs", sentences.count),
        params=_pair(record, "params", sentences.count),
        entropy="" if entropy is None else f"{entropy:.2f} bits",
        redundancy=_redundancy(found) if found and found.layer == name else "",
        milliseconds="" if saved is None else f"{saved:.3g} ms",
        marks=tuple(marks),
        reasons=tuple(reasons),
    )


def _pair(record: LayerRecord | None, name: str, shown: Callable[[int], str]) -> str:
    """`64 → 24`, one number where both are the same."""
    if record is None:
        return ""
    before: int | None = getattr(record, name)
    after: int | None = getattr(record, f"{name}_after")
    if before is None:
        return "" if after is None else f"new: {shown(after)}"
    if before == after:
        return shown(before)
    return f"{shown(before)} → {'gone' if after is None else shown(after)}"


def _share(record: LayerRecord | None) -> float | None:
    if record is None or not record.width:
        return None
    return round(100 * min(1.0, (record.width_after or 0) / record.width), 1)


def _redundancy(found: LayerAnalysis) -> str:
    if found.needed is None or found.channels is None:
        return ""
    return f"{found.needed} of {found.channels} needed"


def _columns(rows: Sequence[LayerRow]) -> tuple[str, ...]:
    known = ("width", "macs", "params", "entropy", "redundancy", "milliseconds")
    return tuple(name for name in known if any(getattr(row, name) for row in rows))


def _pictures(records: dict[str, LayerRecord], bits: dict[str, float]) -> list[plots.Plot]:
    wide = [one for one in records.values() if one.width]
    made: list[plots.Plot] = []
    if wide:
        before, after = [float(one.width or 0) for one in wide], [float(one.width_after or 0) for one in wide]
        y = plots.y_axis(before, from_zero=True)
        tips = [f"{one.name}: {one.width} channels, now {one.width_after or 'gone'}" for one in wide]
        changed = sum(a != b for a, b in zip(before, after, strict=True))
        made.append(
            plots.Plot(
                "Channels per layer, before and after",
                f"{len(wide)} layers in the order in which they run; {changed} of them have fewer channels now. "
                f"In all {sum(before):.0f} before and {sum(after):.0f} after. The table below has every figure.",
                "layer, by its number in the table",
                "channels",
                plots.column_ticks([number for number, one in enumerate(records.values(), 1) if one.width]),
                y.ticks(),
                bars=plots.columns(before, after, tips, y),
            )
        )
    if bits:
        y = plots.Axis(0.0, 1.0, plots.HEIGHT - plots.BOTTOM, plots.TOP)
        tips = [f"{name}: {value:.2f} bits" for name, value in bits.items()]
        lowest = min(bits, key=bits.__getitem__)
        made.append(
            plots.Plot(
                "State entropy per activation",
                f"{len(bits)} activations in the order in which they run; the lowest is {lowest} with {bits[lowest]:.2f} bits. "
                "0 bits: it never changes its state on this data.",
                "activation, in the order in which they run",
                "bits per channel",
                plots.column_ticks(range(1, len(bits) + 1)),
                y.ticks(),
                bars=plots.columns([min(max(one, 0.0), 1.0) for one in bits.values()], None, tips, y),
            )
        )
    return made


def _missing(run: RunFolder, records: dict[str, LayerRecord]) -> list[str]:
    """What a reader may look for in vain."""
    told: list[str] = []
    if not records:
        told.append("This run does not hold the widths of its layers: an older version wrote it, or it did not finish.")
    if not run.observed.activations and not run.analysis:
        told.append("This run does not hold the entropy of its activations.")
    if not run.analysis:
        told.append(
            "A run measures neither redundancy nor milliseconds per layer. 'compress analyze MODEL --data DATA --json' does: put "
            f"what it prints into the folder of the run as {ANALYSIS}, and make this page again with 'compress report'."
        )
    return told
