"""What a stage is, what it says of itself, and what it is told. `pipeline.run` and `commands.plan` are the only callers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch

from compress.artifact import Artifact
from compress.data import Data
from compress.data.calibration import Calibration
from compress.data.room import Room, room
from compress.graph.channels.solve import Group
from compress.measure.latency import Timing
from compress.measure.layer_times import TimeBudget
from compress.progress import Progress, silent
from compress.ranks import ALONE, Ranks
from compress.ranks.team import ONE, Team
from compress.recipe import Recipe

T = TypeVar("T")
Race = Callable[[Artifact, Artifact], Timing]
"""Speed of the first model over the second in the target runtime, timed in turns."""


@dataclass
class Findings:
    """What was found out about a model, kept for whoever asks again: statistics, loss curves, choices of channels.

    A stage is asked more than once for one model: with other multiples of channels, at other targets. What does not depend on
    those is computed once. It is kept as long as the one who asks wants it, since Gram matrices may be gigabytes.
    """

    _known: dict[tuple[int, Hashable], tuple[object, Any]] = field(default_factory=dict[tuple[int, Hashable], tuple[object, Any]])

    def of(self, model: object, key: Hashable, find: Callable[[], T]) -> T:
        """What `find` gives, once for each model (the very object) and key."""
        place = (id(model), key)
        if place not in self._known:
            self._known[place] = (model, find())  # the model beside it, so that no other one takes its id
        return self._known[place][1]

    def knows(self, model: object, key: Hashable) -> bool:
        """Whether that was found."""
        return (id(model), key) in self._known


def once(findings: Findings | None, model: object, key: Hashable, find: Callable[[], T]) -> T:
    """From the findings, where there are any."""
    return find() if findings is None else findings.of(model, key, find)


@dataclass(frozen=True)
class Context:
    """Everything a stage may look at besides the artifact; nothing here changes during a run.

    Attributes:
        scratch: a folder that the stage may make, for what lets it go on after it was cut off, the only place where it may write;
            removed when the stage is finished; None in a dry run.
        trained: the model as the last iteration's training left it; None before any training.
        initial: the checkpoint that `--initial` names; None where it names none.
        race: the pipeline's latency cache, for a choice that needs milliseconds; None where nothing is timed.
        findings: what was found out about models before, for stages that are asked again; None where nothing is kept.
        fitting: False in a dry run, which asks what a stage edits: `refit.refitted` then leaves the weights as they are.
        which: False where only sizes matter, as for a race: then any channels may stay, as long as it is so many.
        time: milliseconds that stages which can (`Traits.times`) split over the layers in place of the target; None: the target.
        ranks: the processes that carry out the function that is running now; only the team calls one in several.
        team: calls a function in all processes of the run.
    """

    dense: Artifact
    data: Data
    recipe: Recipe
    device: torch.device
    progress: Progress = silent
    race: Race | None = None
    scratch: Path | None = None
    trained: Artifact | None = None
    initial: Artifact | None = None
    findings: Findings | None = None
    fitting: bool = True
    which: bool = True
    time: TimeBudget | None = None
    ranks: Ranks = ALONE
    team: Team = ONE

    def __getstate__(self) -> dict[str, Any]:
        """What another process of the run is told: it shows nothing, times nothing and writes into no folder of this one."""
        told = {"progress": silent, "race": None, "scratch": None, "findings": None}
        return self.__dict__ | told

    def together(self, function: Callable[..., T], *arguments: Any, keep: bool = False) -> T:
        """What a function of (*arguments, context) gives, called in every process of the run at once.

        With `keep` the others keep what they found, until the next such call, and know it where it is an argument.
        """
        return self.team.call(_in_ranks, (function, arguments, self), keep)

    @property
    def calibration(self) -> Calibration:
        """The images that statistics and refits look at."""
        return Calibration(self.data.train, min(self.recipe.calibration, len(self.data.train)), self.recipe.seed)

    def room(self) -> Room:
        """The memory for what is held at once, and files in the scratch folder for the rest."""
        return room(self.recipe.memory, self.device, self.scratch, self.ranks.local)

    @property
    def before(self) -> Artifact:
        """What refitted weights hold on to: the dense model, or what the last iteration's training made of it."""
        return self.trained or self.dense


def _in_ranks(ranks: Ranks, function: Callable[..., T], arguments: tuple[Any, ...], context: Context) -> T:
    return function(*arguments, replace(context, ranks=ranks))


class Decides(Enum):
    """When a stage knows its edits."""

    NOTHING = "it looks, fits or trains, and edits nothing"
    BEFORE_TRAINING = "its edits can be planned"
    IN_TRAINING = "each of its edits follows from a training, so there is no plan beforehand"


@dataclass(frozen=True)
class Traits:
    """What a stage says of itself; every caller goes by this, none by its type or its name.

    Attributes:
        decides: whether `compress plan` and `--dry-run` can have its edits.
        removes: "width" (channels) or "depth" (activations, layers): what `--order` puts in order.
        repeats: carried out in each of `--iterations`.
        races: chooses by timing, which a quick dry run leaves out.
        trains: leaves a trained model, which the stages of the next iteration hold on to.
        once: too slow to be carried out a second time with channel counts rounded.
        times: splits a budget of milliseconds where the context has one.
    """

    decides: Decides = Decides.NOTHING
    removes: frozenset[Literal["width", "depth"]] = frozenset()
    repeats: bool = False
    races: bool = False
    trains: bool = False
    once: bool = False
    times: bool = False


@runtime_checkable
class Stage(Protocol):
    """A named map from artifact to artifact. It decides and edits; it never times or measures, and writes to its scratch only."""

    @property
    def name(self) -> str:
        """What its row is called."""
        ...

    @property
    def traits(self) -> Traits:
        """What it does, for those who put stages in a row."""
        ...

    def needed(self, recipe: Recipe) -> bool:
        """Whether the recipe asks for anything here; if not, the report has no row for it."""
        ...

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse, before anything slow, what cannot work.

        Raises:
            Infeasible: the target is out of reach; says what is reachable.
            UnsupportedModel: nothing here can be compressed.
        """
        ...

    def __call__(self, artifact: Artifact, context: Context) -> Artifact: ...


@runtime_checkable
class Measures(Protocol):
    """A stage that begins with statistics of the model as it comes; one before it, which goes over the images, can take them."""

    def measured(self, artifact: Artifact, context: Context) -> Sequence[Group]:
        """The groups of channels that it will ask for; none where it will need no statistics."""
        ...


@runtime_checkable
class Estimates(Protocol):
    """A stage that can say what its choice will lose before it makes it."""

    def estimated(self, artifact: Artifact, context: Context) -> float | None:
        """Loss by its own measure, which compares for other targets and multiples of channels; None where it measures none.

        Raises:
            Infeasible: the target is out of reach.
        """
        ...
