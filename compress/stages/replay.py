"""A warm start: what an earlier plan decided, carried out before a method goes on from there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compress.artifact import Artifact, apply
from compress.edits import Factor, Merge, Plan, read
from compress.recipe import Recipe
from compress.refit import refit
from compress.stage import Context, Decides, Traits
from compress.user.wording import many


@dataclass(frozen=True)
class Replay:
    """Carries out `--plan` and refits what it leaves to the dense model, whatever training the plan's own run had.

    Merges are left out: they compute the same, and a merged layer has no dense counterpart for later stages to hold on to.
    """

    name: str = "replay"
    traits: Traits = Traits(Decides.BEFORE_TRAINING)

    def needed(self, recipe: Recipe) -> bool:
        return recipe.plan is not None

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse a plan that cannot be read, or that was made for another model.

        Raises:
            BadInput: no plan.
            PlanMismatch: an edit names what the model does not have.
        """
        apply(_begun(context)[0], artifact)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        plan, merges = _begun(context)
        origin = f"{context.recipe.plan} (method {plan.method or 'unknown'})"
        said = f"The {many(len(plan.edits), 'edit')} of {origin} come first" + (", refitted." if context.fitting else ".")
        if merges:
            said += f" Its {merges} merges were left out; a method that merges finds them again."
        return refit.refitted(apply(plan, artifact), context).noting(said)


def _begun(context: Context) -> tuple[Plan, int]:
    """What is carried out of the plan, and how many edits are not."""
    plan = read(Path(context.recipe.plan or ""))
    edits = tuple(edit for edit in plan.edits if not isinstance(edit, Merge | Factor))
    return replace(plan, edits=edits), len(plan.edits) - len(edits)
