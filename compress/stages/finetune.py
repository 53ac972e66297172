"""Fine-tuning: the compressed model learns from the data and from the dense model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.recipe import Recipe
from compress.stage import Context, Traits
from compress.training import reinitialized
from compress.training.gradual_linearize import blended, settled
from compress.training.losses import objective
from compress.training.setup import refuse_apart
from compress.training.together import How, train_together

SHORT = 1.0
"""Epochs up to which norms are held: longer trainings move the weights away from the statistics that suited the start."""


def holds_norms(recipe: Recipe) -> bool:
    """Whether batch norms keep their statistics: in a short training of weights that are there, and of functions that stay."""
    return not recipe.from_scratch and recipe.linearize != "gradual" and recipe.epochs <= SHORT


@dataclass(frozen=True)
class Finetune:
    """Trains the model as the recipe says, with the dense model as the teacher.

    With `from_scratch` in the recipe the weights are drawn anew first: what the found architecture reaches without the weights
    that compression chose, under the same training. With `linearize` gradual, activations are linearized gradually.
    """

    name: str = "finetune"
    traits: Traits = Traits(repeats=True, trains=True)

    def needed(self, recipe: Recipe) -> bool:
        return recipe.epochs > 0

    def check(self, artifact: Artifact, context: Context) -> None:
        """Training can be tried on any model; the loss must be one that is known.

        Raises:
            BadInput: an unknown loss, or one that does not suit the task; settings that do not go together.
        """
        refuse_apart(context.recipe)
        objective(context.recipe, context.data.spec.task, context.data.spec.labeled, teacher=True)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        recipe, notes = context.recipe, ()
        module = artifact.module
        if recipe.from_scratch:
            again, said = reinitialized(module, recipe.seed)
            module, notes = cast(GraphModule, again), (said,)
        if recipe.linearize == "gradual":
            module = blended(module, context.before.module)
        how = How(self.name, taught=True, hold_norms=holds_norms(recipe))
        found = train_together(module, context, how)
        tuned = replace(artifact, module=settled(cast(GraphModule, found.module))).noting(*notes, *found.notes)
        return tuned.observing(trainings=found.curves(self.name))
