"""Which channels stay: the budget split over the groups, and the channels of each chosen by a criterion.

    statistics of the dense model -> loss curve of every group -> one budget split over all groups -> which channels stay

How many stay is decided by the loss curves for the selectors that measure the loss (entropic, obs), by the same share of
every group for the others (magnitude, taylor, random).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.artifact import Artifact
from compress.edits import Keep
from compress.entropy import allocate, swaps
from compress.entropy.allocate import Allocation
from compress.entropy.obs import Sweep
from compress.errors import BadInput, Infeasible, UnsupportedModel
from compress.graph.channels.solve import Group
from compress.measure.asked import parse_target
from compress.recipe import DEFAULT_TARGET
from compress.refit import refit
from compress.selection import budget
from compress.selection import channels as selection
from compress.selection.scores import SCORES
from compress.selection.time_model import time_model
from compress.stage import Context, once
from compress.statistics.collect import Statistics

Selector = Literal["entropic", "entropic-path", "obs", "obs-swaps", "magnitude", "taylor", "random", "state-entropy"]
MEASURED = ("entropic", "entropic-path", "obs", "obs-swaps")
"""Selectors that measure the loss; the others give each channel a number."""
Measured = tuple[selection.Losses, Mapping[str, Sweep]]
Choose = Callable[[Sequence[tuple[Group, int]]], Sequence[tuple[int, ...]]]
"""Which channels of some groups stay, if so many of each do."""
ROUNDED = "channel counts are multiples of"
"""What a note says of a target that rounding missed."""
_CLOSE = 0.02  # relative distance from the target beyond which the report says so


@dataclass(frozen=True)
class Choice:
    """How channels are chosen.

    Attributes:
        selector: the criterion. "entropic" is the path finished by swaps, never worse by estimated loss than the sweep.
        groups: names of the groups that may lose channels; all removable ones by default.
        counts: channels to keep by group, instead of a budget.
        share_alike: split the budget by the same share of every group; by default where the selector does not measure the loss.
    """

    selector: Selector = "entropic"
    groups: tuple[str, ...] | None = None
    counts: Mapping[str, int] | None = None
    share_alike: bool | None = None

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse what cannot be met, before any data is looked at.

        Raises:
            Infeasible: the target is out of reach.
            BadInput: a tolerance, which this selector does not measure.
            UnsupportedModel: no group can lose channels.
        """
        groups = self._groups(artifact)
        # Counts or a tolerance need no budget.
        if self.counts is None and context.recipe.tolerance is None:
            self._budget(artifact, context, groups)
        if context.recipe.tolerance is not None and self.selector not in MEASURED:
            raise BadInput(
                f"--tolerance needs a method that measures the loss, {self.selector} does not. Give a --target instead."
            )

    def decide(
        self, artifact: Artifact, context: Context, losses: selection.Losses | None = None
    ) -> tuple[tuple[Keep, ...], tuple[str, ...]]:
        """The edits, and what should be said about them. `losses` spares the pass over the images.

        Raises:
            Infeasible: the target is out of reach; raised before any data is looked at.
            UnsupportedModel: no group can lose channels.
        """
        # Before the pass over the images: a target out of reach should not cost minutes.
        self.check(artifact, context)
        groups = self._groups(artifact)
        if self.selector in MEASURED:
            measured = self._measured(artifact, context, groups, losses)
            curves, choose = _weighed(groups, measured), self._by_loss(measured, context)
            why = "no layer that reads them can be refitted"
        else:
            key = (self.selector, *refit.asked(context, groups))
            scores = once(context.findings, artifact.module, key, lambda: SCORES[self.selector](artifact, context, groups))
            curves = {name: _what_goes(worth) for name, worth in scores.items()}
            choose, why = _by_score(scores), f"{self.selector} finds nothing to measure behind them"
        # Groups without a curve cannot be judged and stay whole, which the report says.
        whole = [g.name for g in groups if g.name not in curves and not g.inner]
        groups = [g for g in groups if g.name in curves]
        if not groups:
            raise UnsupportedModel(f"No channel can be chosen because {why}. Take another method; 'compress methods' lists them.")
        counts, notes = self._counts(artifact, context, groups, curves)
        if whole:
            notes = (*notes, f"{len(whole)} groups stay whole because {why}: {', '.join(whole[:5])}.")
        wanted = [(group, count) for group, count in zip(groups, counts, strict=True) if count < group.channels]
        if not context.which:
            return tuple(Keep(group.name, group.channels, tuple(range(count))) for group, count in wanted), notes
        asked, findings = refit.asked(context, groups), context.findings

        def place(one: tuple[Group, int]) -> tuple[object, ...]:
            return (self.selector, "kept", one[0].name, one[1], *asked)

        new = [one for one in wanted if findings is None or not findings.knows(artifact.module, place(one))]
        chosen = {group.name: kept for (group, _), kept in zip(new, choose(new), strict=True)}
        return tuple(
            Keep(one[0].name, one[0].channels, once(findings, artifact.module, place(one), lambda g=one[0]: chosen[g.name]))
            for one in wanted
        ), notes

    def measured(self, artifact: Artifact, context: Context) -> Sequence[Group]:
        """See `stage.Measures`; none for selectors that measure no loss."""
        return self._groups(artifact) if self.selector in MEASURED else ()

    def estimated(self, artifact: Artifact, context: Context) -> float | None:
        """Sum of the loss curves of all groups at the counts that the budget leaves; None for selectors that measure no loss.

        Raises:
            Infeasible: the target is out of reach.
        """
        if self.selector not in MEASURED or self.counts is not None or context.recipe.tolerance is not None:
            return None
        groups = self._groups(artifact)
        curves = _weighed(groups, self._measured(artifact, context, groups, None))
        known = [g for g in groups if g.name in curves]
        counts, _ = self._counts(artifact, context, known, curves)
        return sum(float(curves[g.name][n]) for g, n in zip(known, counts, strict=True))

    def _measured(
        self, artifact: Artifact, context: Context, groups: Sequence[Group], losses: selection.Losses | None
    ) -> Measured:
        """The loss of removing channels of each group, and its curve."""
        key = ("loss curves", id(losses), *refit.asked(context, groups))
        if losses is not None:
            known = losses
            return once(context.findings, artifact.module, key, lambda: _swept(known, groups, context))
        return once(context.findings, artifact.module, key, lambda: _measured(artifact, tuple(groups), context))

    def _by_loss(self, measured: Measured, context: Context) -> Choose:
        """Channels by measured loss."""

        def choose(wanted: Sequence[tuple[Group, int]]) -> list[tuple[int, ...]]:
            arguments = measured, self.selector, tuple(wanted)
            return context.together(_chosen, *arguments) if context.team.keeps(measured) else _chosen(*arguments, context)

        return choose

    def _groups(self, artifact: Artifact) -> list[Group]:
        found = budget.removable(artifact.module, artifact.channels)
        chosen = [g for g in found if self.groups is None or g.name in self.groups]
        if not chosen:
            raise UnsupportedModel(
                "The model has no group of channels that can be removed; needed is at least one. "
                "'compress explain' tells the reason for each group."
            )
        return chosen

    def _budget(self, artifact: Artifact, context: Context, groups: Sequence[Group]) -> tuple[allocate.CostModel, float]:
        if (time := context.time) is not None:
            return time_model(artifact, groups, time.times, time.batch), time.ms
        target = context.recipe.target or DEFAULT_TARGET
        unit = target.partition("=")[0]
        model = budget.cost_model(artifact, groups, unit)
        whole = budget.of(context.dense.cost, unit)
        return model, budget.absolute(target, model, groups, context.recipe.align or 1, whole)

    def _counts(
        self, artifact: Artifact, context: Context, groups: Sequence[Group], curves: Mapping[str, Tensor]
    ) -> tuple[Sequence[int], tuple[str, ...]]:
        recipe = context.recipe
        if self.counts is not None:
            return [self.counts.get(g.name, g.channels) for g in groups], ()
        if recipe.tolerance is not None:
            return allocate.tolerated([curves[g.name] for g in groups], recipe.tolerance, recipe.align or 1), ()
        model, target = self._budget(artifact, context, groups)
        if (least := model(allocate.lowest([g.channels for g in groups], recipe.align or 1))) > target:
            raise Infeasible(f"The fewest channels take {least:.3g} of the {target:.3g} that are allowed. Choose more.")
        if not (self.selector not in MEASURED if self.share_alike is None else self.share_alike):
            split: Allocation = allocate.allocate([curves[g.name] for g in groups], model, target, recipe.align or 1)
        # Numbers that do not compare across layers cannot split a budget: the same share for all.
        else:
            split = allocate.uniform([g.channels for g in groups], model, target, recipe.align or 1)
        # Milliseconds are estimated, and told by who races the result.
        if context.time is None and abs(split.cost / target - 1) > _CLOSE:
            why = f"{ROUNDED} {recipe.align}" if (recipe.align or 1) > 1 else "no closer choice"
            wanted = recipe.target or DEFAULT_TARGET
            unit, asked = parse_target(wanted)
            reached = asked * split.cost / target
            shown = f"{reached / 1e6:.3g}MB" if unit == "size" else f"{reached:.3g}"
            return split.counts, (f"Reached {unit}={shown} by removing channels, target {wanted}: {why}.",)
        return split.counts, ()


def _measured(artifact: Artifact, groups: Sequence[Group], context: Context) -> Measured:
    return context.together(_of_statistics, artifact, refit.statistics(artifact, context, groups), groups, keep=True)


def _of_statistics(artifact: Artifact, found: Statistics, groups: Sequence[Group], context: Context) -> Measured:
    return _swept(selection.Losses(artifact.module, found), groups, context)


def _swept(losses: selection.Losses, groups: Sequence[Group], context: Context) -> Measured:
    return losses, selection.sweeps(losses, groups, lambda share: context.progress("loss curves", share, ""), context.ranks)


def _chosen(
    measured: Measured, selector: Selector, wanted: Sequence[tuple[Group, int]], context: Context
) -> list[tuple[int, ...]]:
    """Channels by measured loss, by a selector of `MEASURED`."""
    losses, sweeps = measured

    def kept(one: tuple[Group, int]) -> tuple[int, ...]:
        group, count = one
        sweep = sweeps[group.name]
        with losses.threads(group):
            if selector == "obs":
                found = sweep.kept(count)
            elif selector == "obs-swaps":
                found = swaps.improve(losses.of(group), sweep.kept(count))
            else:
                found = selection.entropic(losses.of(group), sweep, count, selector == "entropic")
        return tuple(sorted(found))

    def told(share: float) -> None:
        context.progress("choose channels", share, "")

    return context.ranks.each(wanted, kept, lambda one: losses.work(one[0]), told)


def _weighed(groups: Sequence[Group], measured: Measured) -> dict[str, Tensor]:
    """The loss curves, each as much as is left of it behind the layers that are fitted anew."""
    known = [group.name for group in groups if group.name in measured[1]]
    return {name: measured[1][name].losses * float(w) for name, w in zip(known, allocate.by_depth(len(known)), strict=True)}


def _by_score(scores: Mapping[str, Tensor]) -> Choose:
    """Those with the largest numbers."""
    return lambda wanted: [tuple(sorted(scores[group.name].topk(count).indices.tolist())) for group, count in wanted]


def _what_goes(worth: Tensor) -> Tensor:
    """What the channels that go are worth together, by how many stay, (channels + 1,)."""
    # The channels that are worth least go first, so the sum runs over sorted worths.
    return torch.cat([worth.new_zeros(1), worth.clamp_min(0).sort().values.cumsum(0)]).flip(0)
