"""`--max-drop` without a target: the smallest model that keeps it is looked for.

    looks        channels removed and refitted without training, at targets that are halved in on; statistics and loss curves once
    trainings    where fine-tuning follows, three smaller targets are trained: what the looks lose, training may win back
    the run      an ordinary run at the smallest target that kept the contract on held-out data

Three parts of the data that do not overlap: the training data to calibrate and train on, the held-out data to choose by, the
test data, which is read once, at the end. A target counts as kept where the drop plus one standard error of it is allowed: the
smallest of several that just keep it would otherwise be the luckiest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from compress.artifact import Artifact
from compress.errors import Infeasible
from compress.measure import quality
from compress.method_table import METHODS
from compress.pipeline import search_file
from compress.pipeline.held_out import HeldOut, Lost
from compress.pipeline.search_file import FILE
from compress.pipeline.workspace import Workspace
from compress.recipe import Recipe
from compress.stage import Context, Decides, Findings, Stage

UNITS = {"latency": "macs", "memory": "macs", "macs": "macs", "params": "params", "size": "params"}
"""What is made small -> the unit of the targets that are tried."""
_LARGEST, _SMALLEST, _CLOSE = 0.95, 0.02, 1.06
"""Targets between which is looked, and how close two of them are to be one."""
_UNREACHABLE = 1e9
_FURTHER, _TRAININGS = 1.8, 3
"""By which factor a trained target is smaller than the smallest that kept, and how many are trained."""


@dataclass(frozen=True)
class Look:
    """One target that was tried.

    Attributes:
        target: share of the dense model.
        lost: points of held-out quality, and the 95 % interval of that; the same number twice where there is none.
        trained: whether after fine-tuning.
        kept: whether the contract would be kept, with a standard error to spare.
    """

    target: float
    lost: float
    low: float
    high: float
    trained: bool
    kept: bool


def wanted(recipe: Recipe) -> bool:
    """Whether a recipe names a contract and leaves it open how small the model becomes."""
    open_ = recipe.target is None and recipe.tolerance is None and recipe.plan is None
    return open_ and recipe.max_drop is not None and METHODS[recipe.method].sizes


def widest(recipe: Recipe) -> Recipe:
    """The recipe with the largest target that is tried: what cannot reach that can reach none."""
    return recipe.model_copy(update={"target": f"{UNITS[recipe.minimize]}={_LARGEST}"})


def found(
    recipe: Recipe, stages: Sequence[Stage], context: Context, metric: quality.Metric, workspace: Workspace
) -> tuple[Context, str]:
    """The context with the target that keeps its recipe's contract, and what was tried; from disk where a run has looked already.

    Raises:
        BadInput: what an earlier run found is not what a search writes.
        Infeasible: no target that can be reached keeps it; says what was closest.
    """
    unit = UNITS[recipe.minimize]
    if known := search_file.read(search_file.Kept, workspace.out, unit):
        looks = [Look(**one.model_dump()) for one in known.looks]
    else:
        looks = list(_Search(recipe, stages, context, metric).looks())
        workspace.write(FILE, json.dumps({"unit": unit, "looks": [asdict(one) for one in looks]}, indent=1))
    kept = [one for one in looks if one.kept]
    if not kept:
        raise Infeasible(_nothing_keeps(recipe, looks, len(context.data.held_out)))
    target = f"{unit}={min(one.target for one in kept):.4f}"
    settled = unrounded(recipe)
    return replace(context, recipe=settled.model_copy(update={"target": target})), _said(
        recipe, looks, settled.align != recipe.align, len(context.data.held_out)
    )


def unrounded(recipe: Recipe) -> Recipe:
    """The recipe with channel counts as they come where no time is made small: rounding them saves nothing else, and costs."""
    return recipe if recipe.align or recipe.minimize == "latency" else recipe.model_copy(update={"align": 1})


def _said(recipe: Recipe, looks: Sequence[Look], as_they_come: bool, samples: int) -> str:
    parts = [
        f"{one.target:.3g}{' trained' if one.trained else ''}: {one.lost:.2f} [{one.low:.2f}, {one.high:.2f}]"
        f"{' kept' if one.kept else ''}"
        for one in looks
        if one.lost < _UNREACHABLE
    ]
    smallest = min(one.target for one in looks if one.kept)
    untold = any(one.target < smallest and one.lost <= (recipe.max_drop or 0) for one in looks)
    return (
        f"The target was looked for: points of held-out quality lost by share of {UNITS[recipe.minimize]} "
        f"({', '.join(parts)}). Allowed are {recipe.max_drop:g}, kept is what leaves a standard error to spare."
        + (f" Smaller ones lost no more than that, and {samples:,} held-out samples cannot tell; more would." if untold else "")
        + (
            f" Channel counts stay as they come, since multiples of 8 make {recipe.minimize} no smaller; they may be slower: "
            "--align 8 rounds them."
            if as_they_come
            else ""
        )
    )


@dataclass
class _Search:
    recipe: Recipe
    stages: Sequence[Stage]
    context: Context
    metric: quality.Metric

    def __post_init__(self) -> None:
        # Shared by all looks: what is seen of the dense model does not depend on the target.
        self.context = replace(self.context, findings=Findings())
        self.held_out = HeldOut(self.context, self.metric)
        self.held_out.require_telling(f"What keeps --max-drop {self.recipe.max_drop:g} cannot be looked for")
        self.tried: list[Look] = []

    def looks(self) -> Sequence[Look]:
        """Every target that was tried, in order."""
        lowest = self._bracketed()
        if self.recipe.epochs > 0:
            self._trained(lowest)
        return self.tried

    def _trained(self, kept: float | None) -> None:
        """Smaller targets than the smallest look that kept, trained: further and further, then between the last two."""
        broken: float | None = None
        for number in range(_TRAININGS):
            high = kept or _LARGEST
            if kept is None and number == _TRAININGS - 1:
                target = _LARGEST
            else:
                target = max(high / _FURTHER, _SMALLEST) if broken is None else (high * broken) ** 0.5
            if kept is not None and kept / target < _CLOSE:
                return
            if self._look(target, train=True).kept:
                kept = target
            else:
                broken = target

    def _bracketed(self) -> float | None:
        """The smallest target that keeps the contract without training; None where the largest does not."""
        kept, broken = None, _SMALLEST
        target = 0.5
        while True:
            if self._look(target).kept:
                kept = target
            else:
                broken = target
            if kept is None and target == _LARGEST:
                return None
            high = _LARGEST if kept is None else kept
            if kept is not None and high / broken < _CLOSE:
                return kept
            target = (high * broken) ** 0.5
            if kept is None and high / target < _CLOSE:
                target = _LARGEST

    def _look(self, target: float, train: bool = False) -> Look:
        again = [one for one in self.tried if one.target == target and one.trained == train]
        if again:
            return again[0]
        unit = UNITS[self.recipe.minimize]
        self.context.progress("look for the target", len(self.tried) / 12, f"{unit}={target:.3g}{', trained' if train else ''}")
        try:
            found = self._lost(f"{unit}={target:.6f}", train)
        except Infeasible:  # below what the groups allow
            found = Lost(_UNREACHABLE, _UNREACHABLE, _UNREACHABLE)
        kept = found.keeps(self.recipe.max_drop or 0)
        self.tried.append(Look(target, found.points, found.low, found.high, train, kept))
        return self.tried[-1]

    def _lost(self, target: str, train: bool) -> Lost:
        recipe = self.recipe.model_copy(update={"target": target, "align": self.recipe.align or 1})
        return self.held_out.lost(narrowed(self.stages, replace(self.context, recipe=recipe), train).module)


def narrowed(stages: Sequence[Stage], context: Context, train: bool = False, start: Artifact | None = None) -> Artifact:
    """The dense model, or what was made of it, with the width that its recipe asks for, refitted, and trained where that is
    wanted.

    Depth and merging are left to the run: they are chosen by races, for the width that was found.
    """
    artifact = start or context.dense
    for stage in stages:
        looks = stage.traits.decides is Decides.NOTHING and not stage.traits.repeats
        if not (looks or stage.traits.races) and (train or not stage.traits.trains):
            artifact = stage(artifact, context)
    return artifact


def _nothing_keeps(recipe: Recipe, looks: Sequence[Look], samples: int) -> str:
    best, allowed = min(looks, key=lambda one: one.lost), recipe.max_drop or 0.0
    error = (best.high - best.lost) / 2
    needed = max(math.ceil(100 * (best.lost + error) - 1e-9) / 100, 0.01)  # rounded up: what is named has to be enough
    said = (
        f"No target keeps --max-drop {allowed:g}: at {UNITS[recipe.minimize]}={best.target:.3g} {recipe.method} loses "
        f"{best.lost:.2f} [{best.low:.2f}, {best.high:.2f}] points of held-out quality"
    )
    if best.lost <= allowed:  # then neither another target nor training would help
        return (
            f"{said}, and a standard error ({error:.2f}) has to be to spare: {samples:,} held-out samples cannot tell "
            f"{allowed:g} from more. Give more samples, or allow --max-drop {needed:g}."
        )
    return f"{said}. Allow --max-drop {needed:g}{'' if recipe.epochs > 0 else ', or train (--epochs 3)'}."
