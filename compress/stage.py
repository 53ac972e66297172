"""What a stage is, and what it is told. `pipeline.run` is the only caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from compress.artifact import Artifact
from compress.data import Data
from compress.measure.latency import Timing
from compress.recipe import Recipe

Progress = Callable[[str, float, str], None]
"""(what is being done, share done in [0, 1], a short live detail such as 'loss 0.41')."""

Race = Callable[[Artifact, Artifact], Timing]
"""Speed of the first model over the second in the target runtime, timed in turns."""


def silent(what: str, share: float, detail: str = "") -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True)
class Context:
    """Everything a stage may look at besides the artifact; nothing here changes during a run.

    Attributes:
        desk: a folder that the stage may make, for what lets it go on after it was cut off, the only place where it may write;
            removed when the stage is finished; None in a dry run.
        trained: the model as the last turn's training left it; None before any training.
        initial: the checkpoint that `--initial` names; None where it names none.
        race: the pipeline's stopwatch, for a choice that needs milliseconds; None where nothing is timed, as in a dry run.
    """

    dense: Artifact
    data: Data
    recipe: Recipe
    device: torch.device
    progress: Progress = silent
    race: Race | None = None
    desk: Path | None = None
    trained: Artifact | None = None
    initial: Artifact | None = None

    @property
    def before(self) -> Artifact:
        """What refitted weights hold on to: the dense model, or what the last turn's training made of it."""
        return self.trained or self.dense


class Stage(Protocol):
    """A named map from artifact to artifact. It decides and edits; it never times or measures, and writes to its desk only.

    A stage that trains or searches may say `once = True`: it is not carried out a second time with channel counts rounded.
    """

    @property
    def name(self) -> str:
        """What its row is called."""
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
