"""`--target latency=5ms`, `memory=20MB`, or shares of either: what is measured of a model, met by looking.

    memory     a share of MACs is looked for: channels chosen at it and removed, not refitted, since memory depends on sizes alone
    time       likewise with races; where the runtime tells what its layers take, a budget of milliseconds is (`time_target`)
    the next   where the line through the two looks on either side, in logarithms, meets what was asked for
    the run    an ordinary run at the largest share that is small enough

Time is raced with the dense model, memory is that of the weights and of the activations of a batch that are alive at once.
Where a share of MACs is looked for, depth is left to the run: what it merges makes the result smaller still.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from compress.artifact import Artifact
from compress.errors import BadInput, Infeasible, Unsteady
from compress.measure import quality
from compress.measure.asked import MS, PEAK, parse_target
from compress.measure.latency import Timing, both
from compress.measure.layer_times import LayerTimes, TimeBudget
from compress.method_table import METHODS
from compress.pipeline import search_file, time_target
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.rounding import BLOCK, pays
from compress.pipeline.search_file import FILE
from compress.pipeline.workspace import Workspace
from compress.recipe import Recipe
from compress.stage import Context, Findings, Stage

_WHAT = {"latency": "time", "memory": "peak memory"}
"""Units of targets that are measured -> what of the dense model they are a share of."""
_LARGEST, _SMALLEST = 0.95, 0.02
_CLOSE, _LOOKS = 0.02, 9
"""How close a look has to be to what was asked for, as a share of it, and how many there are at most."""


@dataclass(frozen=True)
class Look:
    """One share of MACs that was tried.

    Attributes:
        macs: share of the dense model's MACs that was asked for.
        left: share of the dense model's time or memory, and the 95 % interval of that; None where the groups do not allow so few.
    """

    macs: float
    left: float | None
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Searched:
    """What a search ended with, as it stands in `search.json`.

    Attributes:
        unit: of what was asked for.
        target: in MACs, that stands in its place.
        align: multiple of the channel counts.
        note: what was tried, in words.
        looks: every model that was tried.
        time: a budget of milliseconds, which decides in the place of the target.
        settings: others of the recipe that were decided with it.
    """

    unit: str
    target: str
    align: int | None
    note: str
    looks: Sequence[Any]
    time: TimeBudget | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


def wanted(recipe: Recipe) -> bool:
    """Whether the target is a time, or memory."""
    return _unit(recipe) in _WHAT


def timed(recipe: Recipe) -> bool:
    """Whether it is a time, which only races tell."""
    return _unit(recipe) == "latency"


def _unit(recipe: Recipe) -> str:
    return (recipe.target or "").partition("=")[0]


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
    recipe: Recipe, stages: Sequence[Stage], context: Context, metric: quality.Metric, workspace: Workspace | None = None
) -> tuple[Context, str]:
    """The context with what meets the target in its place, and what was tried; from disk where an earlier run has looked.

    Raises:
        Unsteady: others took the cores, so that no time can be aimed at.
        BadInput: what an earlier run found cannot be read, or is not what a search writes.
        Infeasible: nothing is small enough; says how far it goes.
    """
    known = workspace and search_file.read(search_file.Aimed, workspace.out, _unit(recipe))
    if known:
        searched = _read(known)
    else:
        searched = _searched(recipe, stages, context, metric)
        if workspace is not None:
            workspace.write(FILE, json.dumps(asdict(searched), indent=1))
    settled = recipe.model_copy(update={"target": searched.target, "align": searched.align, **searched.settings})
    return replace(context, recipe=settled, time=searched.time), searched.note


def _read(known: search_file.Aimed) -> Searched:
    of = known.time
    time = of and TimeBudget(LayerTimes(**of.times.model_dump()), of.ms, of.batch)
    return Searched(known.unit, known.target, known.align, known.note, known.looks, time, known.settings.given())


def _searched(recipe: Recipe, stages: Sequence[Stage], context: Context, metric: quality.Metric) -> Searched:
    search = _Search(recipe, stages, context)
    said = f"The target {recipe.target} is {search.share:.3g} of the dense model's {_WHAT[_unit(recipe)]}."
    if timed(recipe) and time_target.possible(stages, search.context):
        budgets = time_target.Search(search.context, stages, metric, search.timed, search.again, search.share)
        if tried := budgets.looks():
            return _of_budgets(recipe, said, tried)
    looks = search.looks()
    enough = [one for one in looks if one.left is not None and one.left <= search.share * (1 + _CLOSE)]
    if not enough:
        least = min((one.left for one in looks if one.left is not None), default=1.0)
        raise Infeasible(
            f"{said[:-1]}, and removing channels comes down to {least:.3g}. Choose more, or let layers be merged as well "
            "(--depth)."
        )
    best = max(enough, key=lambda one: one.macs)
    parts = ", ".join(_told(one) for one in looks if one.left is not None)
    note = f"{said} By share of MACs it is {parts}. Taken is {best.macs:.4f}."
    if not timed(recipe) and recipe.align is None:
        note += " Channel counts stay as they come, since multiples of 8 take no less memory; they may be slower: --align 8."
    return Searched(_unit(recipe), f"macs={best.macs:.4f}", search.align, note, looks)


def _of_budgets(recipe: Recipe, said: str, tried: Sequence[time_target.Look]) -> Searched:
    best = time_target.best(tried)
    note = f"{said} {time_target.told(tried, best)}"
    # Width alone: what merging saved on top would come out faster than was asked for, and be paid for in quality.
    settings: dict[str, Any] = {"order": "depth-width"} if best.shallow else {"depth": 0.0}
    return Searched("latency", f"macs={best.macs:.4f}", best.align, note, tried, best.time, settings)


def _told(look: Look) -> str:
    interval = "" if look.low == look.high else f" [{look.low:.3g}, {look.high:.3g}]"
    return f"{look.left:.3g}{interval} at {look.macs:.3g}"


class _Search:
    """Looks for one recipe.

    Attributes:
        share: of the dense model's time or memory.
        align: multiple of the channel counts.
    """

    def __init__(self, recipe: Recipe, stages: Sequence[Stage], context: Context) -> None:
        self.recipe, self.stages = recipe, stages
        # Shared by all looks: what is seen of the dense model does not depend on the target.
        self.context = replace(context, recipe=recipe, findings=Findings())
        self.race = LatencyCache(recipe, context.device).race
        self.repeated = LatencyCache(recipe, context.device, again=1).race
        unit, asked = parse_target(recipe.target or "")
        self.align, whole = recipe.align, 1.0
        if unit == MS:
            timing = self.timed(self._carried_out(0.5, recipe.align or 1), context.dense)
            # Of the dense model, by the pair that was timed together.
            whole = timing.p50_ms * timing.ratio
        elif unit == PEAK:
            whole = self._peak(context.dense)
        self.share = asked / whole
        if self.share >= 1:
            dense = f"{whole:.3g} ms" if unit == MS else f"{whole / 1e6:.3g} MB"
            raise Infeasible(
                f"The target {recipe.target} is no less than the {dense} of the dense model: nothing has to go. Choose less."
            )

    def looks(self) -> list[Look]:
        """Every share that was tried, in order."""
        if self.align is None:
            # Rounded counts take no less memory.
            self.align = self._block(self._carried_out(0.5, 1)) if timed(self.recipe) else 1
        tried: list[Look] = []
        slow, quick = Look(1.0, 1.0), None
        macs = self.share
        while len(tried) < _LOOKS:
            macs = min(max(macs, _SMALLEST), _LARGEST)
            self.context.progress("look for the target", len(tried) / _LOOKS, f"macs={macs:.3g}")
            now = self._look(macs)
            tried.append(now)
            if now.left is None:
                quick = now
            elif abs(now.left / self.share - 1) <= _CLOSE or (macs in (_SMALLEST, _LARGEST) and len(tried) > 1):
                return tried
            elif now.left > self.share:
                slow = now
            else:
                quick = now
            if quick is not None and slow.macs / quick.macs < 1.01:
                return tried
            macs = self._next(slow, quick)
        return tried

    def _next(self, slow: Look, quick: Look | None) -> float:
        assert slow.left is not None
        if quick is None:
            return slow.macs * self.share / slow.left * 0.95
        if quick.left is None:
            return math.sqrt(slow.macs * quick.macs)
        rise = math.log(slow.left / quick.left) or 1.0
        part = min(max(math.log(self.share / quick.left) / rise, 0.1), 0.9)
        return quick.macs * (slow.macs / quick.macs) ** part

    def _look(self, macs: float) -> Look:
        try:
            smaller = self._carried_out(macs, self.align or 1)
        except Infeasible:  # below what the groups allow
            return Look(macs, None)
        if not timed(self.recipe):
            left = self._peak(smaller) / self._peak(self.context.dense)
            return Look(macs, left, left, left)
        timing = self.timed(smaller, self.context.dense)
        if 1 / timing.ratio <= self.share * (1 + _CLOSE):
            # Of several noisy times the one that meets what was asked for is better than it should be.
            timing = both(timing, self.again(smaller, self.context.dense))
        return Look(macs, 1 / timing.ratio, 1 / timing.ci95[1], 1 / timing.ci95[0])

    def _peak(self, one: Artifact) -> float:
        return one.cost.peak_memory_bytes(self.recipe.batch)

    def _block(self, plain: Artifact) -> int:
        """Rounded to what kernels like, if that pays at the same share of MACs."""
        try:
            rounded = self._carried_out(0.5, BLOCK)
        except Infeasible:
            return 1
        return BLOCK if pays(self.race(rounded, plain), rounded, plain) else 1

    def timed(self, one: Artifact, other: Artifact) -> Timing:
        """A race that can be aimed by."""
        return self._steady(self.race(one, other))

    def again(self, one: Artifact, other: Artifact) -> Timing:
        """The same race, run once more."""
        return self._steady(self.repeated(one, other))

    @staticmethod
    def _steady(timing: Timing) -> Timing:
        if timing.noisy:
            raise Unsteady(
                f"A time cannot be aimed at while the machine is busy: the smaller model is {timing.told}. Retry on an idle "
                "machine, or take a target in macs."
            )
        return timing

    def _carried_out(self, macs: float, align: int) -> Artifact:
        recipe = self.recipe.model_copy(update={"target": f"macs={macs:.6f}", "align": align})
        return time_target.sized(self.stages, replace(self.context, recipe=recipe))
