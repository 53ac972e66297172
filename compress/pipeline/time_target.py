"""A budget of milliseconds that a model of its own time meets: width split over the layers by loss per millisecond.

    times      of the layers, at widths in multiples of 1, 8 and 16 channels, or of what `--align` says
    a look     the budget split by these times, channels removed, the whole network raced with the dense model
    corrected  the budget, by what the race says, until the model takes what was asked for within 2 %
    chosen     of the multiples the one that loses least of held-out quality, refitted, at that time

So quality and milliseconds decide together whether channel counts are rounded: all multiples are compared at the same time. And
whether depth is given for width: where the recipe lets layers be linearized, the model made shallower first, then narrower, is
compared with one that is made narrower alone, at that time again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compress.artifact import Artifact
from compress.edits import Linearize
from compress.errors import Infeasible
from compress.measure import quality
from compress.measure.latency import Timing, both
from compress.measure.layer_times import TimeBudget
from compress.pipeline.contract import narrowed
from compress.pipeline.held_out import HeldOut
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.layer_timing import layer_times, timeable
from compress.selection.budget import removable
from compress.selection.time_model import time_model
from compress.stage import Context, Decides, Stage
from compress.stages.merge import Merge

MULTIPLES = (1, 8, 16)
"""Of channels, where `--align` names none: as they come, and the blocks that kernels of runtimes work on."""
_CLOSE, _RACES = 0.02, 7
"""How close a race has to come to what was asked for, as a share of it, and how many there are of each multiple at most."""


@dataclass(frozen=True)
class Look:
    """One model that was raced.

    Attributes:
        align: multiple of its channel counts.
        macs: share of the dense model's MACs.
        left: share of the dense model's time, and the 95 % interval of that.
        time: the budget that it was made with.
        shallow: whether depth was removed before width.
        fits: whether it takes no more than was asked for, or hardly more.
        lost: points of held-out quality, refitted; None where it was not counted.
    """

    align: int
    macs: float
    left: float
    low: float
    high: float
    time: TimeBudget
    shallow: bool
    fits: bool
    lost: float | None = None


def possible(stages: Sequence[Stage], context: Context) -> bool:
    """Whether every stage that removes channels can split a budget of time, and the runtime tells what layers take."""
    recipe = context.recipe
    narrowing = [stage for stage in stages if "width" in stage.traits.removes]
    able = recipe.iterations == 1 and bool(narrowing) and all(stage.traits.times for stage in narrowing)
    return able and timeable(context.dense, LatencyCache(recipe, context.device))


@dataclass(frozen=True)
class Search:
    """Looks for one target.

    Attributes:
        context: with the recipe, and findings that all looks share.
        timed: a race that can be aimed by.
        again: the same once more. Of several noisy times the one that is closest to what was asked for is closer than it should
            be: what is taken was timed twice.
        share: of the dense model's time that was asked for.
        shallow: the dense model with layers linearized, which is made narrower in its place, and merged before it is raced.
    """

    context: Context
    stages: Sequence[Stage]
    metric: quality.Metric
    timed: Callable[[Artifact, Artifact], Timing]
    again: Callable[[Artifact, Artifact], Timing]
    share: float
    shallow: Artifact | None = None

    def looks(self) -> list[Look]:
        """Every model that was raced; none at all where nothing comes down to what was asked for."""
        align = self.context.recipe.align
        alone = self._looks((align,) if align else MULTIPLES)
        shallow = self._shallow()
        if shallow is None:
            return alone
        return [*alone, *replace(self, shallow=shallow)._looks((best(alone).align,) if alone else MULTIPLES)]

    def _shallow(self) -> Artifact | None:
        """The dense model after the stages that remove depth; None where these leave it as it is."""
        recipe, artifact = self.context.recipe, self.context.dense
        context = replace(self.context, race=LatencyCache(recipe, self.context.device).race)
        for stage in self.stages:
            if stage.traits.removes == {"depth"} and stage.traits.decides is Decides.BEFORE_TRAINING:
                artifact = stage(artifact, context)
        return artifact if any(isinstance(edit, Linearize) for edit in artifact.plan.edits) else None

    def _looks(self, multiples: Sequence[int]) -> list[Look]:
        every = [list(self._at(multiple)) for multiple in multiples]
        largest = [max(fitting, key=lambda one: one.left) for found in every if (fitting := [one for one in found if one.fits])]
        if not largest:
            return []
        held_out = HeldOut(self.context, self.metric)
        counted = {id(one): replace(one, lost=held_out.lost(self._refitted(one).module).points) for one in largest}
        return [counted.get(id(one), one) for found in every for one in found]

    def _at(self, multiple: int) -> Iterator[Look]:
        """Models at one multiple, until one takes what was asked for, or two on either side of it are next to each other."""
        dense, recipe = self.context.dense, self.context.recipe
        start = self.shallow or dense
        times = layer_times(start, LatencyCache(recipe, self.context.device), multiple, self.context.progress)
        groups = removable(start.module, start.channels)
        model = time_model(start, groups, times, recipe.batch)
        whole = model(np.array([g.channels for g in groups], dtype=float))
        part, below, above = self.share, 0.0, 1.0
        for number in range(_RACES):
            self.context.progress("look for the target", number / _RACES, f"widths in multiples of {multiple}")
            budget = TimeBudget(times, part * whole, recipe.batch)
            try:
                smaller = self._merged(sized(self.stages, self._with(budget, multiple), start))
            except Infeasible:  # below what the fewest channels take
                return
            timing = self.timed(smaller, dense)
            if self._close(1 / timing.ratio):
                timing = both(timing, self.again(smaller, dense))
            left = 1 / timing.ratio
            macs = smaller.cost.macs / dense.cost.macs
            interval, fits = (1 / timing.ci95[1], 1 / timing.ci95[0]), left <= self.share * (1 + _CLOSE)
            yield Look(multiple, macs, left, *interval, budget, self.shallow is not None, fits)
            below, above = (part, above) if left <= self.share else (below, part)
            if self._close(left) or above < below * (1 + _CLOSE / 2):
                return
            # By what the race says of the times; between the two on either side where that leads beyond one of them.
            part *= self.share / left
            if not below < part < above:
                part = math.sqrt(max(below, above / 2) * above)

    def _close(self, left: float) -> bool:
        return abs(left / self.share - 1) <= _CLOSE

    def _with(self, budget: TimeBudget, multiple: int) -> Context:
        recipe = self.context.recipe.model_copy(update={"target": None, "align": multiple})
        return replace(self.context, recipe=recipe, time=budget)

    def _refitted(self, look: Look) -> Artifact:
        self.context.progress("look for the target", 0.9, f"refit widths in multiples of {look.align}")
        return narrowed(self.stages, self._with(look.time, look.align), start=self.shallow)

    def _merged(self, artifact: Artifact) -> Artifact:
        """As the run will leave it, but for what only races decide there."""
        return artifact if self.shallow is None else Merge()(artifact, replace(self.context, race=None))


def best(tried: Sequence[Look]) -> Look:
    """Of those that take no more than was asked for, the largest of each multiple, the one that loses least; of equals the one
    that is closest.
    """
    return min((one for one in tried if one.lost is not None), key=lambda one: (one.lost or 0.0, -one.left))


def told(tried: Sequence[Look], taken: Look) -> str:
    """What was tried, in a sentence."""
    parts = [
        f"in multiples of {one.align}{' after depth' if one.shallow else ''} {one.left:.3g} [{one.low:.3g}, {one.high:.3g}] with "
        f"{one.lost:.2f} points of held-out quality lost before any training"
        for one in tried
        if one.lost is not None
    ]
    return (
        f"Channels were chosen by loss per millisecond, as the layers were timed, and the whole was raced {len(tried)} times: "
        f"{'; '.join(parts)}. Taken are multiples of {taken.align}, {'depth before width' if taken.shallow else 'width alone'}."
    )


def sized(stages: Sequence[Stage], context: Context, start: Artifact | None = None) -> Artifact:
    """The dense model, or what was made of it, with the channels that the context's budget leaves, not refitted: a time does not
    depend on weights.
    """
    artifact = start or context.dense
    for stage in stages:
        decides = stage.traits.decides
        if decides is Decides.NOTHING or stage.traits.races or stage.traits.trains:
            continue
        # Weights do not matter, but to a stage that judges what it has fitted.
        artifact = stage(artifact, replace(context, which=False, fitting=decides is not Decides.BEFORE_TRAINING))
    return artifact
