"""How long the rest of a run will take, roughly: known costs (images, epochs, the target) times what was measured so far.

seconds of a stage = images that it passes through the model x seconds an image takes + what measuring a model takes
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from compress.measure.asked import parse_target
from compress.pipeline.prepare import answered
from compress.stage import Context, Decides, Stage

LOOKED_AT = 32  # images of the pass that is timed
BACKWARD = 3.0
"""A training step against a forward pass of the same images: forward, and twice that for both gradients."""
PASSES = {"looks": 3.0, "removes": 8.0}
"""Forward passes of the calibration images: to count states; to count, choose and refit."""
RACES = 2.0
"""What a stage spends in races, in times of measuring one model."""


def seconds_an_image(context: Context) -> float:
    """Of a forward pass of the dense model, here and now."""
    inputs = next(iter(context.calibration.inputs(LOOKED_AT, most=LOOKED_AT, device=context.device)))
    with torch.no_grad():
        took: list[float] = []
        for _ in range(3):  # the first pass also allocates, and others may be disturbed
            start = time.perf_counter()
            answered(context.dense, inputs)
            took.append(time.perf_counter() - start)
    return min(took) / max(len(inputs[0]), 1)


def all_of(stages: Sequence[Stage], context: Context) -> float:
    """Seconds of a run that has not begun; of what is measured, quality alone is known before."""
    return Expected.of(stages, context, len(context.data.test) * seconds_an_image(context)).left


@dataclass
class Expected:
    """Seconds that each step of a run is expected to take; what was spent so far corrects those that are still to come.

    Attributes:
        steps: of the stages behind the dense model, and of the exports at the end.
        planned, spent: of those that are over, and were not taken from disk.
    """

    steps: Sequence[float]
    planned: float = 0.0
    spent: float = 0.0
    over: int = field(default=0)

    @classmethod
    def of(cls, stages: Sequence[Stage], context: Context, measuring: float) -> Expected:
        """`measuring` is what the dense model took to be measured."""
        image = seconds_an_image(context)
        each = [_seconds(stage, context, image) + (RACES * measuring if stage.traits.races else 0) for stage in stages]
        looks = [_looks(stage) for stage in stages]
        steps = [one + (0 if look else measuring) for one, look in zip(each, looks, strict=True)]
        return cls((*steps, measuring * len(context.recipe.export)))

    def done(self, seconds: float) -> None:
        """One more is over; seconds near nothing are those of a stage that an earlier run had finished."""
        expected = self.steps[self.over]
        self.over += 1
        if seconds > 0.05 * expected:
            self.planned, self.spent = self.planned + expected, self.spent + seconds

    @property
    def left(self) -> float:
        """Until everything is done."""
        # As if a third of everything had taken what was expected: a short stage alone turns no estimate over.
        held = sum(self.steps) / 3
        off = (self.spent + held) / (self.planned + held) if held else 1.0
        return off * sum(self.steps[self.over :])


def _looks(stage: Stage) -> bool:
    """Whether the model leaves it as it came, so that nothing is measured again."""
    return stage.traits.decides is Decides.NOTHING and not (stage.traits.trains or stage.traits.repeats)


def _seconds(stage: Stage, context: Context, image: float) -> float:
    recipe = context.recipe
    if stage.traits.trains or stage.traits.decides is Decides.IN_TRAINING:
        unit, asked = parse_target(recipe.target) if recipe.target else ("", 1.0)
        share = asked if unit in ("macs", "params") else 1.0
        teacher = 1.0 if recipe.distill else 0.0
        return recipe.epochs * len(context.data.train) * image * (BACKWARD * share + teacher)
    passes = PASSES["removes" if stage.traits.removes else "looks"]
    return passes * context.calibration.images * image
