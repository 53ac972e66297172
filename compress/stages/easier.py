"""EASIER: the rectifier of the lowest state entropy becomes an identity, the network is trained again, and so on.

    until held-out quality is more than --max-drop points below where it began, or the target is met:
        H_l = mean over channels of the state entropy of rectifier l
        argmin_l H_l -> identity, and with it every l of H_l = 0;   train --epochs epochs

What is returned is the last model that kept to the limit. Source: Quétu, Liao, Tartaglione, "The Simpler The Better: An
Entropy-Based Importance Metric To Reduce Neural Networks' Depth", ECML PKDD 2024, Algorithm 1. Departs from the authors' code in
that the entropy is taken in eval mode over the calibration images, not over the last training epoch (`--entropy easier` takes the
mean of batch entropies as theirs does); the model as given counts as trained; training is `compress`'s own, with distillation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.plan import Linearize, Plan
from compress.recipe import Recipe
from compress.stage import Context
from compress.statistics import rectifiers
from compress.training import Progress, train


@dataclass(frozen=True)
class Easier:
    """The stage."""

    name: str = "easier"

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse a model without rectifiers that can go, and a target that depth alone does not reach.

        Raises:
            UnsupportedModel: no rectifier can be linearized.
            Infeasible: the target is not in rectifiers, or leaves fewer than have to stay.
        """
        rectifiers.spared(artifact, context.recipe.target)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        recipe = context.recipe
        most = len(rectifiers.free(artifact)) - rectifiers.spared(artifact, recipe.target)
        limit = rectifiers.MAX_DROP if recipe.max_drop is None else recipe.max_drop
        start = rectifiers.held_out(artifact, context)
        best, gone, curve = artifact, 0, [f"0: {start.value:.4f}"]
        while gone < most:
            shallower = _without_lowest(best, context, most - gone)
            count = gone + len(shallower.plan.edits) - len(best.plan.edits)
            detail = f"{count} of {most} rectifiers"
            trained = train(
                shallower.module,
                context.data,
                recipe,
                context.device,
                teacher=context.dense.module,
                progress=_told(context, detail),
            )
            shallower = replace(shallower, module=cast(GraphModule, trained.module))
            now = rectifiers.held_out(shallower, context)
            curve.append(f"{count}: {now.value:.4f}")
            if rectifiers.lost(start, now) > limit:
                break
            best, gone = shallower, count
        return best.noting(
            f"EASIER linearized {gone} of {most} rectifiers within {limit:g} points of held-out {start.metric}. "
            f"Held-out {start.metric} by their number: {', '.join(curve)}."
        )


def _told(context: Context, detail: str) -> Progress:
    return lambda what, share, text: context.progress("easier", share, f"{detail}, {text}")


def _without_lowest(artifact: Artifact, context: Context, most: int) -> Artifact:
    """The model with an identity at the rectifier of the lowest entropy, and at all of entropy 0."""
    found, channels = rectifiers.entropies(artifact, context), rectifiers.widths(artifact)
    chosen = rectifiers.lowest(found, most)
    return apply(Plan(tuple(Linearize(path, channels[path]) for path in chosen)), artifact)
