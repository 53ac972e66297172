"""EASIER: the activation of the lowest state entropy becomes an identity, the network is trained again, and so on.

    until held-out quality is more than --max-drop points below where it began, or the target is met:
        H_l = mean over channels of the state entropy of activation l
        argmin_l H_l -> identity, and with it every l of H_l = 0;   train --epochs epochs

What is returned is the last model that kept to the limit.

With `--cheap`, which is ours: a quarter of the activations at once, those whose closest affine functions move the outputs
least, lines in their place, layers behind refitted to the model before, a tenth of the epochs; half as many activations at a
time where quality falls too far, down to one.

Source: Quétu, Liao, Tartaglione, "The Simpler The Better: An
Entropy-Based Importance Metric To Reduce Neural Networks' Depth", ECML PKDD 2024, Algorithm 1. Departs from the authors' code in
that the entropy is taken in eval mode over the calibration images, not over the last training epoch (`--entropy easier` takes the
mean of batch entropies as theirs does); the model as given counts as trained; training is `compress`'s own, with distillation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.edits import Linearize, Plan
from compress.measure.points import drop
from compress.recipe import Recipe
from compress.refit import fit_activations, refit
from compress.selection import depth
from compress.selection.output_divergence import moved
from compress.stage import Context, Decides, Traits
from compress.training.together import How, train_together

_AT_ONCE = 4  # parts of the activations, one of which goes at once
_SHORT = 0.1  # of the epochs


@dataclass(frozen=True)
class Easier:
    """The stage."""

    name: str = "easier"
    traits: Traits = Traits(Decides.IN_TRAINING, frozenset({"depth"}), trains=True)

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse a model without activations that can go, and a target that depth alone does not reach.

        Raises:
            UnsupportedModel: no activation can be linearized.
            Infeasible: the target is not in activations, or leaves fewer than have to stay.
        """
        depth.spared(artifact, context.recipe.target)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        recipe = context.recipe
        most = len(depth.free(artifact)) - depth.spared(artifact, recipe.target)
        limit = depth.MAX_DROP if recipe.max_drop is None else recipe.max_drop
        start = depth.held_out(artifact, context)
        best, gone, curve = artifact, 0, [f"0: {start.value:.4f}"]
        together = max(1, most // _AT_ONCE) if recipe.cheap else 1
        while gone < most and together:
            shallower = _shallower(best, context, min(together, most - gone), most - gone)
            count = gone + sum(isinstance(edit, Linearize) for edit in shallower.plan.edits[len(best.plan.edits) :])
            shallower = _trained(shallower, context, f"{count} of {most} activations")
            now = depth.held_out(shallower, context)
            curve.append(f"{count}: {now.value:.4f}")
            if drop(start, now) <= limit:
                best, gone = shallower, count
            else:
                together //= 2
        return best.noting(
            f"EASIER linearized {gone} of {most} activations within {limit:g} points of held-out {start.metric}. "
            f"Held-out {start.metric} by their number: {', '.join(curve)}."
        )


def _trained(artifact: Artifact, context: Context, detail: str) -> Artifact:
    recipe = context.recipe
    if recipe.cheap:
        recipe = recipe.model_copy(update={"epochs": recipe.epochs * _SHORT})
    trained = train_together(artifact.module, replace(context, recipe=recipe), How("easier", detail, taught=True))
    return replace(artifact, module=cast(GraphModule, trained.module)).observing(trainings=trained.curves("easier"))


def _shallower(artifact: Artifact, context: Context, together: int, most: int) -> Artifact:
    """The model with identities at the activations of lowest entropy and at all of entropy 0; with `cheap`, refitted affine
    functions.
    """
    if context.recipe.cheap:
        edits = fit_activations.fitted(artifact, context, [activation.path for activation in depth.free(artifact)])
        cost = dict(zip(edits, moved(artifact, [[edit] for edit in edits], context), strict=True))
        lined = apply(Plan(tuple(sorted(edits, key=cost.__getitem__)[:together])), artifact)
        return refit.refitted(lined, replace(context, trained=artifact))
    found, channels = depth.entropies(artifact, context), depth.widths(artifact)
    chosen = depth.lowest(found, most, together)
    return apply(Plan(tuple(Linearize(path, channels[path]) for path in chosen)), artifact)
