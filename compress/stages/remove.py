"""Remove channels, and refit every layer that is left.

    statistics of the dense model -> loss curve of every group -> one budget split over all groups -> which channels stay
    -> surgery -> every layer refitted in the order of the graph

How many stay is decided by the loss curves for the selectors that measure the loss (entropic, obs), by the same share of
every group for the others (magnitude, taylor, random). The refit is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.entropy import allocate, swaps
from compress.entropy.allocate import Allocation
from compress.entropy.obs import Sweep
from compress.errors import BadInput, UnsupportedModel
from compress.graph.channels import Group, solve
from compress.plan import Keep, Plan
from compress.recipe import DEFAULT_TARGET, Recipe
from compress.stage import Context
from compress.statistics import budget, calibration, selection

Selector = Literal["entropic", "entropic-path", "obs", "obs-swaps", "magnitude", "taylor", "random"]
MEASURED = ("entropic", "entropic-path", "obs", "obs-swaps")
_BATCH = 125
_CLOSE = 0.02  # relative distance from the target beyond which the report says so


@dataclass(frozen=True)
class Remove:
    """The stage.

    Attributes:
        selector: how channels are chosen. "entropic" is the path finished by swaps, never worse by estimated loss than the sweep.
        groups: names of the groups that may lose channels; all removable ones by default.
        counts: channels to keep by group, instead of a budget.
        share_alike: split the budget by the same share of every group, whatever the selector.
    """

    selector: Selector = "entropic"
    groups: tuple[str, ...] | None = None
    counts: Mapping[str, int] | None = None
    share_alike: bool = False
    name: str = "remove"

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        groups = self._groups(artifact)
        if self.counts is None and context.recipe.tolerance is None:
            self._budget(artifact, context, groups)
        if context.recipe.tolerance is not None and self.selector not in MEASURED:
            raise BadInput(
                f"--tolerance needs a method that measures the loss, {self.selector} does not. Give a --target instead."
            )

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        edits, notes = self.decide(artifact, context)
        smaller = apply(Plan(edits, context.recipe.method, context.recipe.align or 1), artifact).noting(*notes)
        return calibration.refitted(smaller, context)

    def decide(
        self, artifact: Artifact, context: Context, losses: selection.Losses | None = None
    ) -> tuple[tuple[Keep, ...], tuple[str, ...]]:
        """The edits, and what should be said about them. `losses` spares the pass over the images.

        Raises:
            Infeasible: the target is out of reach; raised before any data is looked at.
            UnsupportedModel: no group can lose channels.
        """
        self.check(artifact, context)
        groups = self._groups(artifact)
        curves: dict[str, Sweep] = {}
        if self.selector in MEASURED:
            losses = losses or selection.Losses(artifact.module, calibration.statistics(artifact, context, groups, states=False))
            curves = selection.sweeps(losses, groups, lambda share: context.progress("loss curves", share, ""))
            groups, whole = [g for g in groups if g.name in curves], [g.name for g in groups if g.name not in curves]
        else:
            whole = []
        counts, notes = self._counts(artifact, context, groups, curves)
        if whole:
            notes = (
                *notes,
                f"{len(whole)} groups stay whole because no layer that reads them can be refitted: {', '.join(whole[:5])}.",
            )
        choose = _chooser(self.selector, artifact, context, losses, curves)
        edits = []
        for number, (group, count) in enumerate(zip(groups, counts, strict=True)):
            if count < group.channels:
                edits.append(Keep(group.name, group.channels, tuple(sorted(choose(group, count)))))
            context.progress("choose channels", (number + 1) / len(groups), group.name)
        return tuple(edits), notes

    def _groups(self, artifact: Artifact) -> list[Group]:
        found = budget.removable(artifact.module, solve(artifact.module, artifact.inputs))
        chosen = [g for g in found if self.groups is None or g.name in self.groups]
        if not chosen:
            raise UnsupportedModel(
                "The model has no group of channels that can be removed; needed is at least one. "
                "'compress explain' tells the reason for each group."
            )
        return chosen

    def _budget(self, artifact: Artifact, context: Context, groups: Sequence[Group]) -> tuple[allocate.CostModel, float]:
        target = context.recipe.target or DEFAULT_TARGET
        channels = solve(artifact.module, artifact.inputs)
        model = budget.cost_model(artifact.module, artifact.inputs, channels, groups, target.partition("=")[0])
        return model, budget.absolute(target, model, groups, context.recipe.align or 1)

    def _counts(
        self, artifact: Artifact, context: Context, groups: Sequence[Group], curves: Mapping[str, Sweep]
    ) -> tuple[Sequence[int], tuple[str, ...]]:
        recipe = context.recipe
        if self.counts is not None:
            return [self.counts.get(g.name, g.channels) for g in groups], ()
        if recipe.tolerance is not None:
            return allocate.tolerated([curves[g.name].losses for g in groups], recipe.tolerance, recipe.align or 1), ()
        model, target = self._budget(artifact, context, groups)
        if self.selector in MEASURED and not self.share_alike:
            split: Allocation = allocate.allocate([curves[g.name].losses for g in groups], model, target, recipe.align or 1)
        else:
            split = allocate.uniform([g.channels for g in groups], model, target, recipe.align or 1)
        if abs(split.cost / target - 1) > _CLOSE:
            why = f"channel counts are multiples of {recipe.align}" if (recipe.align or 1) > 1 else "no closer choice"
            wanted = recipe.target or DEFAULT_TARGET
            return split.counts, (f"The target {wanted} is met at {split.cost / target:.1%} of it: {why}.",)
        return split.counts, ()


def _chooser(
    selector: Selector,
    artifact: Artifact,
    context: Context,
    losses: selection.Losses | None,
    curves: Mapping[str, Sweep],
) -> Callable[[Group, int], Sequence[int]]:
    """(group, count) -> channels."""
    module, recipe = artifact.module, context.recipe
    if losses is not None:
        if selector == "obs":
            return lambda group, count: curves[group.name].kept(count)
        if selector == "obs-swaps":
            return lambda group, count: swaps.improve(losses.of(group), curves[group.name].kept(count))
        finished = selector == "entropic"
        return lambda group, count: selection.entropic(losses.of(group), curves[group.name], count, finished)
    if selector == "random":
        generator = torch.Generator().manual_seed(recipe.seed)
        return lambda group, count: torch.randperm(group.channels, generator=generator)[:count].tolist()
    if selector == "magnitude":
        return lambda group, count: selection.magnitude(module, group).topk(count).indices.tolist()
    products = _products(module, context)
    return lambda group, count: selection.taylor(module, group, products).topk(count).indices.tolist()


def _products(module: GraphModule, context: Context) -> dict[str, torch.Tensor]:
    split, recipe = context.data.train, context.recipe
    batches = ((b.inputs, b.target) for b in split.batches(_BATCH, limit=recipe.calibration, seed=recipe.seed))
    return selection.weight_products(module.to(context.device), batches, context.device, recipe.seed)
