"""Segments of a model that would be faster as one layer, timed one by one in the target runtime.

Each exact segment, and each that would be exact and no larger with one of its two windows gone, is cut out twice, as it is and
merged (its activations taken away), and the two race. A candidate is what is measurably faster; its gain is the time saved by one
call. Where nothing is timed (a dry run), a candidate is what has fewer multiply-accumulates, and these are its gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.artifact import Artifact, apply
from compress.edits import Linearize, Merge, Plan, Pointwise, Relocate
from compress.graph.merge.segments import Segment, narrower, segments
from compress.graph.merge.subgraph import piece
from compress.measure.latency import Timing
from compress.selection import depth
from compress.stage import Race

HOPELESS = 2.5
"""Times the multiply-accumulates: such a merge is not even timed."""


@dataclass(frozen=True)
class Candidate:
    """A segment that is worth merging.

    Attributes:
        segment: what would become one layer.
        start, stop: places in the graph; `stop` is not included. Candidates that overlap cannot both be merged.
        gain: milliseconds saved by a call, or multiply-accumulates where nothing is timed.
        timing: merged against unmerged, or None.
    """

    segment: Segment
    start: int
    stop: int
    gain: float
    timing: Timing | None = None


@dataclass(frozen=True)
class Timed:
    """What the search has found.

    Attributes:
        candidates: in the order of the graph.
        tried: segments that were raced or counted.
        hopeless: exact segments that would take so many more multiply-accumulates that they were not tried.
    """

    candidates: tuple[Candidate, ...]
    tried: int
    hopeless: int


def candidates(
    artifact: Artifact,
    race: Race | None,
    wanted: Callable[[Segment], bool] = lambda segment: True,
    progress: Callable[[float], None] = lambda share: None,
    pointwise: bool = False,
) -> Timed:
    """Every exact segment that is faster merged.

    Args:
        artifact: any model.
        race: speed of one model over another.
        wanted: which segments are asked about.
        progress: told the share done.
        pointwise: whether kernels may be reduced to 1x1 where that of the one layer would grow otherwise.
    """
    exact = [s for s in segments(artifact.module, artifact.inputs) if s.exact and wanted(s)]
    if pointwise:
        exact += [s for s in narrower(artifact.module, artifact.inputs) if wanted(s)]
    # Race only what has a chance: a race costs seconds.
    tried = [s for s in exact if s.macs_after <= HOPELESS * s.macs_before]
    place = {name: i for i, node in enumerate(artifact.module.graph.nodes) for name in (str(node.target), node.name)}
    found: list[Candidate] = []
    for number, segment in enumerate(tried):
        places = [place[name] for name in segment.layers]
        timing = None if race is None else raced(artifact, segment, race)
        gain = float(segment.macs_before - segment.macs_after) if timing is None else saved_ms(timing)
        # A gain that could be noise is no gain.
        if gain > 0 and (timing is None or timing.faster):
            found.append(Candidate(segment, min(places), max(places) + 1, gain, timing))
        progress((number + 1) / len(tried))
    return Timed(tuple(sorted(found, key=lambda c: (c.start, c.stop))), len(tried), len(exact) - len(tried))


def shortest(artifact: Artifact) -> dict[str, Segment]:
    """For every activation that could be merged across: the segment with the fewest others, then the fewest operations merged.

    A window goes only where the one layer would otherwise take more operations than the layers it replaces.
    """
    best: dict[str, Segment] = {}
    for one in (*segments(artifact.module, artifact.inputs), *narrower(artifact.module, artifact.inputs)):
        for activation in one.activations if one.exact else ():
            best[activation] = min(best.get(activation, one), one, key=_order)
    return best


def _order(one: Segment) -> tuple[int, int, int, int]:
    """Cheap ones that keep their windows come first, then those that lose one, then those that take more operations."""
    more = one.macs_after > one.macs_before
    return len(one.activations), 2 if more else len(one.pointwise), one.macs_after, len(one.relocate)


def saved_ms(timing: Timing) -> float:
    """Milliseconds of a call that a race's winner saves; below 0 for a loser."""
    return (timing.ratio - 1) * timing.p50_ms


def raced(artifact: Artifact, segment: Segment, race: Race) -> Timing:
    """The segment merged, its activations taken away, against the segment as it is."""
    module, inputs = piece(artifact.module, segment.layers)
    before = Artifact(module, inputs)
    return race(merged(before, [segment]), before)


def merged(artifact: Artifact, chosen: Sequence[Segment]) -> Artifact:
    """The model with some segments merged and every activation in them taken away: right in its sizes, not in its values."""
    channels = depth.widths(artifact)
    # Identities: in a race only sizes count, and they leave nothing behind that a runtime would compute.
    edits = [Linearize(activation, channels[activation]) for one in chosen for activation in one.activations]
    less = [Pointwise(layer) for one in chosen for layer in one.pointwise]
    # Padding moves before the merge, or the border would not be exact and the merge refused.
    padded = [Relocate(layers) for one in chosen for layers in one.relocate]
    return apply(Plan((*edits, *less, *padded, *(Merge(one.layers) for one in chosen))), artifact)
