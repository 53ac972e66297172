"""Analysis in a run: the states of all activations, counted in one streaming pass. Changes nothing.

What the next stage will ask of the same model and images, moments of layers' inputs, is counted in the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from compress.artifact import Artifact
from compress.curves import ActivationStates
from compress.recipe import Recipe
from compress.refit import refit
from compress.stage import Context, Measures, Stage, Traits
from compress.statistics.collect import Statistics


@dataclass(frozen=True)
class Analyze:
    """The stage: one pass that counts the states of every activation. The model passes unchanged, the findings become notes.

    Attributes:
        ahead: the stage behind it, whose statistics it takes.
        name: of its row.
        traits: it only looks.
    """

    ahead: Stage | None = None
    name: str = "analyze"
    traits: Traits = Traits()

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        """Any model can be analyzed."""

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        groups = self.ahead.measured(artifact, context) if isinstance(self.ahead, Measures) else ()
        found = refit.statistics(artifact, context, groups, states=True, ahead=bool(groups))
        return artifact.noting(_summary(found)).observing(activations=_each(found)) if found.states else artifact


def _each(found: Statistics) -> tuple[ActivationStates, ...]:
    return tuple(
        ActivationStates(path, len(state.on), found.bits(path), float(state.always_on), float(state.always_off))
        for path, state in found.states.items()
    )


def _summary(found: Statistics) -> str:
    """The states of all activations in a sentence."""
    mean = {path: found.bits(path) for path in found.states}
    lowest = min(mean, key=mean.__getitem__)
    channels = sum(len(state.on) for state in found.states.values())
    off = sum(round(state.always_off * len(state.on)) for state in found.states.values())
    on = sum(round(state.always_on * len(state.on)) for state in found.states.values())
    return (
        f"State entropy over {found.images:,} images: {sum(mean.values()) / len(mean):.2f} bits on average over {len(mean)} "
        f"activations, lowest {mean[lowest]:.2f} at {lowest}; "
        f"of {channels:,} channels {off:,} are always off and {on:,} always on."
    )
