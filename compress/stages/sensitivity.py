"""Pruning before training: the untrained net loses what a first training, or a first look, did not need, and is trained then.

    theta_0 = the initial weights (--initial, else drawn)
    S = scores of theta_0's weights (`training.saliency`);  the highest stay, as --target and --scope say
    with --structure channels: a channel is worth the mean of S over the filters that make it, and the others go
    result: theta_0 without the rest, trained as the recipe says

Source and our readings: `training.saliency`. The paper prunes the untrained network and trains again ("position matters more than
value"), and gives neither a threshold nor an accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.entropy import ranking
from compress.graph.channels.solve import Group
from compress.recipe import Recipe
from compress.selection import uniform_width
from compress.stage import Context, Decides, Traits
from compress.training.initial_weights import beginning
from compress.training.masks import prunable
from compress.training.saliency import CRITERIA, Scores
from compress.training.together import How, train_together


@dataclass(frozen=True)
class Sensitivity:
    """The stage; `criterion` judges the weights."""

    criterion: Literal["learned", "snip", "random"] = "learned"
    name: str = "sensitivity"
    traits: Traits = Traits(Decides.IN_TRAINING, frozenset({"width"}), trains=True, once=True)

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse what cannot be pruned and trained, see `narrowing.check`."""
        uniform_width.check(artifact, context)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        recipe = context.recipe
        untrained = beginning(artifact, context)
        scores = CRITERIA[self.criterion](untrained.module, context, How(self.name, "first look"))
        unit, left = uniform_width.goal(recipe)
        masks: ranking.Masks = {}
        if recipe.structure == "weights":
            masks = ranking.stay(scores, prunable(untrained.module), left, together=recipe.scope == "global")
            said = f"{ranking.left(masks):.1%} of the weights are left; the others are zeros in the file: no speed."
        else:
            worth = lambda module, group: channels_worth(scores, module, group)  # noqa: E731
            untrained = uniform_width.narrower(untrained, untrained.module, worth, context, unit, left)
            said = f"{uniform_width.share(untrained, context.dense, unit):.1%} of the {unit} are left in the untrained net."
        done = train_together(untrained.module, context, How(self.name, "training", masks=masks))
        return (
            replace(untrained, module=cast(GraphModule, done.module))
            .noting(said, *done.notes)
            .observing(trainings=done.curves(self.name))
        )


def channels_worth(scores: Scores, module: GraphModule, group: Group) -> Tensor:
    """Mean score over the filters that make each channel, (channels,), over all producers."""
    total, count = torch.zeros(group.channels, dtype=torch.float64), torch.zeros(group.channels, dtype=torch.float64)
    for member in group.members:
        path = member.tensor.removesuffix(".weight")
        if member.role == "out" and path in scores:
            rows = scores[path].double().movedim(member.dim, 0).flatten(1)
            here = member.index >= 0
            total.index_add_(0, member.index[here], rows[here].sum(1))
            count.index_add_(0, member.index[here], torch.full((int(here.sum()),), float(rows.shape[1]), dtype=torch.float64))
    return total / count.clamp_min(1)  # no producer with scores
