"""Width and depth in both orders, and the better of the two: measured, not believed.

    one     channels removed, then linearized          other   linearized, then channels removed
    both judged before fine-tuning, with what became linear merged: quality on held-out data, and a race

The one of better held-out quality stays where the two are further apart than a standard error, else the one that is measurably
faster, else width before depth. It takes the time of both.
"""

from __future__ import annotations

from dataclasses import dataclass

from compress.artifact import Artifact
from compress.measure.points import drop
from compress.recipe import Recipe
from compress.selection import depth
from compress.stage import Context, Decides, Stage, Traits

_ORDERS = ("width before depth", "depth before width")


@dataclass(frozen=True)
class Order:
    """The stage; it is made of those that remove channels, linearize and merge."""

    width: Stage
    depth: Stage
    merge: Stage
    name: str = "remove + linearize"
    traits: Traits = Traits(Decides.BEFORE_TRAINING, frozenset({"width", "depth"}), repeats=True, races=True)

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        """What either stage refuses."""
        self.width.check(artifact, context)
        self.depth.check(artifact, context)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        tried = [self.depth(self.width(artifact, context), context), self.width(self.depth(artifact, context), context)]
        found = [depth.held_out(one, context) for one in tried]
        apart = drop(found[0], found[1])  # points by which the second is worse
        said = f"{found[0].value:.4f} and {found[1].value:.4f} of held-out {found[0].metric} before fine-tuning"
        # Within a standard error the difference may be noise, and speed decides.
        if abs(apart) > found[0].points * found[0].standard_error:
            better = int(apart < 0)
        elif context.race is None:
            better = 0
        else:
            # Merged, since depth pays only where layers become one.
            timing = context.race(self.merge(tried[1], context), self.merge(tried[0], context))
            better = int(timing.faster)
            said += f", the second {timing.told}"
        return tried[better].noting(f"Order: {_ORDERS[0]} or {_ORDERS[1]} ({said}): {_ORDERS[better]}.")
