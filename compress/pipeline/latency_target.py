"""`--target latency=0.5` or `latency=5ms`: the share of MACs is looked for at which the device takes that long.

    looks      channels chosen at a share of MACs and removed, not refitted: time depends on sizes; raced with the dense model
    the next   where the line through the two looks on either side, in logarithms, meets what was asked for
    the run    an ordinary run at the largest share that is quick enough

Allocation goes by loss per multiply-accumulate, not per millisecond. Channel counts are rounded to 8 from the first look on, if
that is measurably faster there, or as `--align` says. Depth is left to the run: what it merges makes the result faster still.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from compress.artifact import Artifact
from compress.errors import BadInput, Infeasible
from compress.measure import quality
from compress.measure.asked import MS, parse_target
from compress.measure.latency import Timing
from compress.method_table import METHODS
from compress.pipeline.contract import FILE
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.rounding import BLOCK
from compress.pipeline.workspace import Workspace
from compress.recipe import Recipe
from compress.stage import Context, Decides, Findings, Race, Stage

UNIT = "latency"
_LARGEST, _SMALLEST = 0.95, 0.02
_CLOSE, _LOOKS = 0.02, 9
"""How close a look has to be to what was asked for, as a share of it, and how many there are at most."""


@dataclass(frozen=True)
class Look:
    """One share of MACs that was tried.

    Attributes:
        macs: share of the dense model's MACs that was asked for.
        time: share of the dense model's time, and the 95 % interval of that; None where the groups do not allow so few.
    """

    macs: float
    time: float | None
    low: float = 0.0
    high: float = 0.0


def wanted(recipe: Recipe) -> bool:
    """Whether the target is a time."""
    return recipe.target is not None and recipe.target.startswith(f"{UNIT}=")


def widest(recipe: Recipe) -> Recipe:
    """The recipe with the largest share that is tried.

    Raises:
        BadInput: a method that does not size channels by one target.
    """
    if not METHODS[recipe.method].sizes:
        raise BadInput(
            f"The target {recipe.target} is met by removing channels, which {recipe.method} does not size by a target. "
            "Take --method entropic, or a target in another unit."
        )
    return recipe.model_copy(update={"target": f"macs={_LARGEST}"})


def found(
    recipe: Recipe, stages: Sequence[Stage], context: Context, _metric: quality.Metric, workspace: Workspace
) -> tuple[Recipe, str]:
    """The recipe with the share of MACs in place of the time, and what was tried; from disk where an earlier run has looked.

    Raises:
        BadInput: others took the cores, so that no time can be aimed at.
        Infeasible: no share is quick enough; says how quick the quickest is.
    """
    place = workspace.out / FILE
    try:
        known = json.loads(place.read_text())
        share, align, looks = float(known["share"]), int(known["align"]), [Look(**one) for one in known["looks"]]
    except FileNotFoundError:
        search = _Search(recipe, stages, context)
        share, align, looks = search.share, search.align, search.looks()
        told = {"unit": UNIT, "share": share, "align": align, "looks": [asdict(one) for one in looks]}
        workspace.write(FILE, json.dumps(told, indent=1))
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{place} cannot be read ({error}). Start again with --force.") from error
    quick = [one for one in looks if one.time is not None and one.time <= share * (1 + _CLOSE)]
    if not quick:
        least = min((one.time for one in looks if one.time is not None), default=1.0)
        raise Infeasible(
            f"The target {recipe.target} is {share:.3g} of the dense model's time, and removing channels comes down to "
            f"{least:.3g}. Choose more, or let layers be merged as well (--depth)."
        )
    best = max(quick, key=lambda one: one.macs)
    parts = [f"{one.macs:.3g}: {one.time:.3g} [{one.low:.3g}, {one.high:.3g}]" for one in looks if one.time is not None]
    said = f"The target {recipe.target} is {share:.3g} of the dense model's time. Time by share of MACs: {', '.join(parts)}."
    return recipe.model_copy(update={"target": f"macs={best.macs:.4f}", "align": align}), f"{said} Taken is {best.macs:.4f}."


class _Search:
    """Looks for one recipe.

    Attributes:
        share: of the dense model's time.
        align: multiple of the channel counts.
    """

    def __init__(self, recipe: Recipe, stages: Sequence[Stage], context: Context, race: Race | None = None) -> None:
        self.recipe, self.stages = recipe, stages
        # Shared by all looks: what is seen of the dense model does not depend on the target.
        self.context = replace(context, findings=Findings())
        self.race = race or LatencyCache(recipe, context.device).race
        unit, asked = parse_target(recipe.target or "")
        plain = self._carried_out(0.5, recipe.align or 1)
        timing = self._timed(plain, context.dense)
        # Of the dense model, by the pair that was timed together.
        self.share = asked / (timing.p50_ms * timing.ratio) if unit == MS else asked
        if self.share >= 1:
            raise Infeasible(
                f"The target {recipe.target} is no less than the {timing.p50_ms * timing.ratio:.3g} ms of the dense model: "
                "nothing has to go. Choose less."
            )
        self.align = recipe.align or self._block(plain)

    def looks(self) -> list[Look]:
        """Every share that was tried, in order."""
        tried: list[Look] = []
        slow, quick = Look(1.0, 1.0), None
        macs = self.share
        while len(tried) < _LOOKS:
            macs = min(max(macs, _SMALLEST), _LARGEST)
            self.context.progress("look for the target", len(tried) / _LOOKS, f"macs={macs:.3g}")
            now = self._look(macs)
            tried.append(now)
            if now.time is None:
                quick = now
            elif abs(now.time / self.share - 1) <= _CLOSE or (macs in (_SMALLEST, _LARGEST) and len(tried) > 1):
                return tried
            elif now.time > self.share:
                slow = now
            else:
                quick = now
            if quick is not None and slow.macs / quick.macs < 1.01:
                return tried
            macs = self._next(slow, quick)
        return tried

    def _next(self, slow: Look, quick: Look | None) -> float:
        assert slow.time is not None
        if quick is None:
            return slow.macs * self.share / slow.time * 0.95
        if quick.time is None:
            return math.sqrt(slow.macs * quick.macs)
        rise = math.log(slow.time / quick.time) or 1.0
        part = min(max(math.log(self.share / quick.time) / rise, 0.1), 0.9)
        return quick.macs * (slow.macs / quick.macs) ** part

    def _look(self, macs: float) -> Look:
        try:
            smaller = self._carried_out(macs, self.align)
        except Infeasible:  # below what the groups allow
            return Look(macs, None)
        timing = self._timed(smaller, self.context.dense)
        return Look(macs, 1 / timing.ratio, 1 / timing.ci95[1], 1 / timing.ci95[0])

    def _block(self, plain: Artifact) -> int:
        """Rounded to what kernels like, if that is measurably faster at the same share of MACs."""
        try:
            rounded = self._carried_out(0.5, BLOCK)
        except Infeasible:
            return 1
        return BLOCK if self.race(rounded, plain).faster else 1

    def _timed(self, one: Artifact, other: Artifact) -> Timing:
        timing = self.race(one, other)
        if timing.noisy:
            raise BadInput(
                f"A time cannot be aimed at while the machine is busy: the smaller model is {timing.told}. Retry on an idle "
                "machine, or take a target in macs."
            )
        return timing

    def _carried_out(self, macs: float, align: int) -> Artifact:
        recipe = self.recipe.model_copy(update={"target": f"macs={macs:.6f}", "align": align})
        artifact = self.context.dense
        for stage in self.stages:
            decides = stage.traits.decides
            if decides is Decides.NOTHING or stage.traits.races or stage.traits.trains:
                continue
            # Weights do not matter, but to a stage that judges what it has fitted.
            context = replace(self.context, recipe=recipe, fitting=decides is not Decides.BEFORE_TRAINING)
            artifact = stage(artifact, context)
        return artifact
