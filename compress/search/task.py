"""A search made ready: what its episodes need, from one pass over the calibration images, and those of the reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compress.artifact import Artifact
from compress.data.calibration import MAPS
from compress.errors import BadInput, UnsupportedModel
from compress.graph.channels.solve import Channels, Group
from compress.measure import quality
from compress.recipe import DEFAULT_TARGET
from compress.refit import refit
from compress.search.rewards import Judge, Outcome, has_maps, judge
from compress.search.shrinking import Shrinker, shrinker
from compress.search.widths import Widths, widths
from compress.selection import budget
from compress.selection import channels as selection
from compress.stage import Context
from compress.statistics.consumers import measured
from compress.statistics.layers import layers

IMAGES = 256
"""Held-out images that an episode is judged on: enough to rank choices, few enough for thousands of them."""
_LEVELLED = 2  # batches, for means and deviations


@dataclass(frozen=True)
class Task:
    """Everything that an episode needs, and what the images taught on the way, for who carries the choice out."""

    widths: Widths
    shrinker: Shrinker
    judge: Judge
    losses: selection.Losses

    def outcome(self, counts: dict[str, int]) -> Outcome:
        """What a choice of channel counts is worth."""
        return self.judge(self.shrinker(counts))


def task(artifact: Artifact, context: Context) -> Task:
    """Prepare a search by the recipe's `target`, `reward` and `spatial`. Channel counts are not rounded in it.

    Raises:
        BadInput, Infeasible, UnsupportedModel: as for `choice`.
        EmptyData: there are no images.
    """
    recipe, data = context.recipe, context.data
    made = choice(artifact, context)
    groups = made.groups
    losses = selection.Losses(artifact.module, refit.statistics(artifact, context, groups))
    curves = selection.sweeps(losses, groups, lambda share: context.progress("loss curves", share, ""))
    metric, _ = quality.choose(recipe.metric, data.spec.task, data.spec.labeled)
    batches = tuple(data.held_out.batches(MAPS, limit=IMAGES, seed=recipe.seed, device=context.device))
    # The first batches of those that are judged anyway: no further pass.
    few = tuple(torch.cat(parts) for parts in zip(*(batch.inputs for batch in batches[:_LEVELLED]), strict=True))
    small = shrinker(artifact, losses.statistics, curves, few, context.device)
    return Task(made, small, judge(small.module, recipe.reward, batches, metric, context.device, recipe.spatial), losses)


def choice(artifact: Artifact, context: Context, align: int = 1) -> Widths:
    """What there is to choose, found without looking at data.

    Raises:
        BadInput: a tolerance instead of a target, or a target in activations.
        Infeasible: the target is out of reach; tells the reachable range.
        UnsupportedModel: no group can lose channels, or the reward needs maps and there are none.
    """
    recipe = context.recipe
    if recipe.tolerance is not None:
        raise BadInput("--tolerance has no meaning for a search, which spends a budget. Give a --target instead.")
    if recipe.reward != "accuracy":
        has_maps(artifact.module)
    channels = artifact.channels
    return widths(artifact, channels, _readable(artifact, channels), recipe.target or DEFAULT_TARGET, align, context.dense)


def _readable(artifact: Artifact, channels: Channels) -> list[Group]:
    """Groups that can lose channels and have a consumer that can be refitted."""
    known = layers(artifact.module)
    # Of a position that goes with its head or with its channel a policy would have to know both.
    found = [g for g in budget.removable(artifact.module, channels) if measured(g, known) and not g.inner]
    if not found:
        raise UnsupportedModel(
            "The model has no group of channels that can be removed and whose consumers can be refitted; needed is at least one. "
            "'compress explain' tells the reason for each group."
        )
    return found
