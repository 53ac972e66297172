"""The files and folders that a run begins with, as its settings name them: nothing of them goes for its results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from compress.data.folder import looked_into
from compress.data.settings import from_toml
from compress.errors import BadInput
from compress.recipe import Recipe
from compress.user import files
from compress.user.shard_paths import shards


def begun_with(recipe: Recipe) -> Iterator[tuple[str, str | Path]]:
    """(setting, place) of each: models, plans, files of functions, and data, behind a data.toml and patterns, too."""
    for key in ("model", "initial", "plan"):
        if value := getattr(recipe, key):
            yield key, value
    for key in ("arch", "metric", "loss"):
        yield from ((key, place) for place in _named(getattr(recipe, key) or ""))
    for place in data_of(recipe):
        yield "data", place
        # The files of a folder go with it, and may be a million.
        if not files.is_folder(place):
            with suppress(BadInput):
                yield from (("data", shard) for shard in shards(str(place)))


def files_of(recipe: Recipe) -> Iterator[str | Path]:
    """The places themselves; of folders of data those in which every file counts."""
    for key, place in begun_with(recipe):
        yield from looked_into(files.at_home(place)) if key == "data" and files.is_folder(place) else (place,)


def spare(going: Sequence[Path], recipe: Recipe, where: Path) -> None:
    """Refuse to remove what the run itself begins with.

    Args:
        going: what would go.
        recipe: of the run.
        where: the folder that it is in.

    Raises:
        BadInput: the model, the data or the plan lies among what would go.
    """
    for key, place in begun_with(recipe):
        if files.among(place, going):
            raise BadInput(
                f"--{key} {place} is one of the files of {where} that --force replaces. Give another --out, or copy it first."
            )


def data_of(recipe: Recipe) -> Iterator[str | Path]:
    """Places of the data alone; a pattern stands for itself."""
    text = recipe.data
    if text.endswith(".toml"):
        yield text
        # What cannot be read is refused where it is read.
        with suppress(BadInput):
            text = from_toml(files.at_home(text)).source
    if text:
        yield text
        yield from _named(text)


def _named(text: str) -> Iterator[str]:
    """A file of a function, or the folder of a name: file.py:factory, hf:FOLDER, torchvision:NAME@DIR."""
    if (file := text.rpartition(":")[0]).endswith(".py"):
        yield file
    library, _, behind = text.partition(":")
    if library == "hf":
        yield behind
    if library == "torchvision" and "@" in behind:
        yield behind.partition("@")[2]
