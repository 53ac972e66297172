"""Search: an agent tries channel counts for all groups, and the best that it found is carried out.

    statistics of the dense model, once  ->  episode: counts -> closed-form refit -> reward on held-out images   (many)
    best episode's counts  ->  channels chosen, removed and refitted as by any other method

The search counts channels one by one; where counts are to be multiples of something, the best row of actions is taken through the
same wall again with such counts.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.artifact import Artifact, apply
from compress.curves import Curve, Series
from compress.edits import Keep, Plan
from compress.errors import MissingPackage, extra
from compress.recipe import DEFAULT_TARGET, Recipe
from compress.refit import refit
from compress.selection import budget
from compress.selection.choice import Choice
from compress.stage import Context, Decides, Traits

if TYPE_CHECKING:
    from compress.search.episodes import Episode

PACKAGES = ("gymnasium", "stable_baselines3")


@dataclass(frozen=True)
class Search:
    """The stage; channels are chosen by entropic regression once the search has said how many stay."""

    name: str = "search"
    traits: Traits = Traits(Decides.BEFORE_TRAINING, frozenset({"width"}))

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse what no search can do, and say what to install.

        Raises:
            MissingPackage: Gymnasium or Stable-Baselines3 is not installed.
            BadInput, Infeasible, UnsupportedModel: see `search.task.choice`.
        """
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingPackage(
                f"--method {context.recipe.method} needs {' and '.join(missing).replace('_', '-')}, which is not installed: "
                f"{extra('rl')}."
            )
        # Imported late: these packages are an extra and slow to load.
        from compress.search.task import choice

        choice(artifact, context)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        target = context.recipe.target or DEFAULT_TARGET
        if artifact is not context.dense and budget.met(target, artifact, context.dense):
            return artifact.noting(f"The model meets the target {target} already: nothing was searched.")
        edits, notes, curves = self._decided(artifact, context)
        smaller = apply(Plan(edits, context.recipe.method, context.recipe.align or 1), artifact).noting(*notes)
        for curve in curves:
            smaller = smaller.showing(curve)
        return refit.refitted(smaller, context)

    def _decided(self, artifact: Artifact, context: Context) -> tuple[tuple[Keep, ...], tuple[str, ...], tuple[Curve, ...]]:
        from compress.search import agents, episodes
        from compress.search.gym_environment import Pruning
        from compress.search.task import choice, task

        self.check(artifact, context)
        recipe, made = context.recipe, task(artifact, context)
        # What a run that was cut off has tried already.
        done = episodes.recorded(context.scratch, len(made.widths.groups))
        if len(done) < recipe.episodes:
            with agents.own_randomness():
                environment = Pruning(made)
                agent = agents.Ddpg(environment, len(made.widths.groups), recipe.episodes, recipe.seed)
                done = episodes.search(environment, agent, recipe.episodes, context.scratch, _told(context))
        number = episodes.best(done)
        # Taken through the wall again with counts that are multiples (module docstring).
        counts = choice(artifact, context, recipe.align or 1).replay(done[number].shares)
        edits, notes = Choice("entropic", counts=counts).decide(artifact, context, made.losses)
        drawn = agents.drawn(recipe.episodes)
        return edits, (_summary(recipe, done, number, drawn), *notes), _curves(recipe, done, made.judge.quality, drawn)


def _told(context: Context) -> Callable[[int, Episode], None]:
    def progress(number: int, episode: Episode) -> None:
        context.progress("search", number / context.recipe.episodes, f"episode {number}, reward {episode.reward:.3f}")

    return progress


def _summary(recipe: Recipe, done: Sequence[Episode], number: int, drawn: int) -> str:
    """The search in a sentence."""
    found, first = done[number], max(done[:drawn], key=lambda episode: episode.reward)
    entropy = "" if found.entropy is None else f", spatial entropy ({recipe.spatial}) {found.entropy:.3f} of the dense model's"
    return (
        f"Search: of {len(done)} episodes ({drawn} drawn, then DDPG; reward by {recipe.reward}) the best is number {number + 1}, "
        f"reward {found.reward:.4f}; the best drawn one had {first.reward:.4f}. Quality on the images of the search, after the "
        f"quick refit: {found.quality:.4f}{entropy}."
    )


def _curves(recipe: Recipe, done: Sequence[Episode], dense: float, drawn: int) -> tuple[Curve, ...]:
    """Reward and quality of every episode."""
    place = tuple(float(number + 1) for number in range(len(done)))
    rewards = tuple(episode.reward for episode in done)
    so_far = tuple(itertools.accumulate(rewards, max))
    marks = {"the agent decides": float(drawn)}
    return (
        Curve(
            "Search: reward",
            "episode",
            f"reward by {recipe.reward}",
            (Series("each episode", place, rewards), Series("best so far", place, so_far)),
            marks=marks,
            note="What each choice of channel counts is worth to the search, before it is carried out.",
        ),
        Curve(
            "Search: quality",
            "episode",
            "quality on the images of the search",
            (Series("each episode", place, tuple(episode.quality for episode in done)),),
            levels={"dense": dense},
            marks=marks,
            note="After the quick refit; what the search has chosen is refitted better and fine-tuned.",
        ),
    )
