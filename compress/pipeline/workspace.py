"""The folder of a run: what is in it, when it may be written, and how every file gets there whole.

    out/  model.onnx  model.compressed/  plan.json  recipe.toml  report.json  report.md  report.html
          pictures/*.svg
          stages/00-dense/  stages/01-remove/ ...      one folder per finished stage, for --resume

A stage folder is written beside its place and renamed when it is complete: it is there whole or not at all. One run at a time
has the folder (`lock`); what was killed while it wrote is known by the mark in its name, and goes when the next run begins.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.data.folder import looked_into
from compress.errors import BadInput
from compress.pipeline.begun_with import data_of, spare
from compress.pipeline.lock import NAME as LOCK
from compress.pipeline.lock import Lock, locked
from compress.pipeline.own_files import LEFT, OURS, is_of_a_run
from compress.recipe import TRUST, Recipe, make, settings_in
from compress.report import sealed
from compress.report.html import PAGE
from compress.user import files
from exporters import atomic
from exporters.standalone import leftovers


@dataclass(frozen=True)
class Workspace:
    """An open `out/` folder."""

    out: Path
    lock: Lock

    def check(self) -> None:
        """Refuse to go on in a folder that is not the one that the run began in.

        Raises:
            BadInput: it was deleted, or another one is in its place.
        """
        if not self.lock.holds:
            raise BadInput(
                f"{self.out} was deleted or replaced while the run was going on; needed is the folder that it began in. "
                "What is there now is no result: repeat the command with --force, and leave the folder alone until it ends."
            )

    def write(self, name: str, text: str) -> None:
        """A text file of the result, replaced as a whole."""
        self.check()
        atomic.write(self.out / name, text.encode())

    def folder(self, number: int, stage: str) -> Path:
        """Where a stage's folder is, or will be."""
        return self.out / "stages" / f"{number:02d}-{stage}"

    def scratch(self, number: int, stage: str) -> Path:
        """Where a stage keeps its own progress until it is finished, also over a kill; a stage that does makes the folder."""
        return self.out / "stages" / f"unfinished-{number:02d}-{stage}"

    def finished(self) -> tuple[str, ...]:
        """Names of the stages on disk, in order."""
        # Two digits in front, so that sorting by name is the order of the run.
        return tuple(path.name.partition("-")[2] for path in sorted((self.out / "stages").glob("[0-9]*")))

    def finish(self, number: int, stage: str, fill: Callable[[Path], dict[str, Any]]) -> None:
        """Write a stage's folder: `fill` puts the files in and gives the facts that become `stage.json`."""
        self.check()
        final = self.folder(number, stage)
        final.parent.mkdir(exist_ok=True)
        # A name of its own for each process; the dot keeps it out of `finished`.
        staging = final.parent / f"{leftovers.hidden(final.name)}stage"
        staging.mkdir()  # not by tempfile, whose folders nobody else may read
        try:
            facts = fill(staging)
            # As it will be read: the checksum is of lists and strings, whatever they are now.
            (staging / "stage.json").write_text(sealed.text(json.loads(json.dumps(facts))))
            # os.replace cannot replace a folder that is not empty.
            if final.exists():
                shutil.rmtree(final)
            os.replace(staging, final)
            # Only after the rename: until then the scratch is all that a killed run has.
            shutil.rmtree(self.scratch(number, stage), ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def open_workspace(out: Path, recipe: Recipe, *, resume: bool, force: bool) -> Generator[Workspace]:
    """Take a folder for a run and write its recipe into it; nobody else runs in it while the block lasts.

    Raises:
        BadInput: it is a file, cannot be written, is in use, holds another run without --resume or --force, or one of other
            settings; or it holds links.
    """
    beside(out, recipe)
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            files.unlinked(out, is_of_a_run)
            # Before anything is looked at: another run could be writing it.
            workspace = Workspace(out, stack.enter_context(locked(out)))
            _cleared(out, recipe, resume, force)
            workspace.write("recipe.toml", recipe.to_toml())
        except OSError as error:
            raise BadInput(f"{out} cannot be written ({error.strerror}). Choose a folder that can with --out.") from error
        yield workspace


def refuse_taken(out: Path, recipe: Recipe, *, resume: bool, force: bool) -> None:
    """Refuse a folder that `open_workspace` would refuse, as far as a look from outside tells: before anything slow.

    Raises:
        BadInput: as for `open_workspace`.
    """
    beside(out, recipe)
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file; needed is a folder for the results. Choose another name with --out.")
    try:
        if out.is_dir():
            files.unlinked(out, is_of_a_run)
            # Where somebody may be at work, the lock says more.
            if not (out / LOCK).exists():
                _found(out, recipe, resume, force)
            return
        # The nearest folder that is there, in which the others will be made.
        there = next(one for one in out.absolute().parents if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise BadInput(f"{out} cannot be written (in {there}). Choose a folder that can with --out.")
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}). Choose a folder that can with --out.") from error


def _cleared(out: Path, recipe: Recipe, resume: bool, force: bool) -> None:
    """Remove what killed runs left, and what of another run goes for this one, or refuse."""
    leftovers.sweep(out, lambda name: name.startswith(LEFT))
    for left in (out / "stages").glob(".*"):
        if leftovers.dead(left.name) is not False:
            shutil.rmtree(left, ignore_errors=True)
    for name in _found(out, recipe, resume, force):
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()


def _found(out: Path, recipe: Recipe, resume: bool, force: bool) -> list[str]:
    """What has to go of another run, with `force`; nothing of one that is gone on with.

    Raises:
        BadInput: it may not go, or is of other settings.
    """
    there = {path.name for path in out.iterdir() if not path.name.startswith(LEFT)} - {LOCK}
    found = sorted(there & set(OURS))
    if found and "recipe.toml" not in found and not resume:
        raise BadInput(
            f"{out} holds {found[0]}, and no recipe.toml, which a run writes first: it may be somebody's own. Give another --out."
        )
    if found == ["recipe.toml"] and not _written_by_us(out / "recipe.toml"):
        raise BadInput(
            f"{out} holds a recipe.toml that somebody wrote, in the place of the one that a run leaves. Give another --out."
        )
    if not _worth_keeping(out, found):
        force = force or bool(found)  # a run that stopped before its first stage was finished
    if there and not found and not force:
        raise BadInput(f"{out} holds files that are not of a run; needed is an empty folder. Choose another, or add --force.")
    if found and not resume and (force or not _worth_keeping(out, found)):
        spare([out / name for name in found], recipe, out)
    if found and resume:
        _same_settings(out, recipe)
        return []
    if found and not force:
        raise BadInput(f"{out} holds another run. Add --resume to go on with it, --force to replace it, or choose another --out.")
    return found


def _worth_keeping(out: Path, found: list[str]) -> bool:
    """Whether a folder holds more than the traces of a run that finished no stage, or a recipe that somebody wrote himself."""
    recipe = out / "recipe.toml"
    if recipe.exists() and not _written_by_us(recipe):
        return True
    return not set(found) <= {"recipe.toml", "search.json", "stages", PAGE} or any((out / "stages").glob("*"))


def _written_by_us(recipe: Path) -> bool:
    """Whether a recipe is as a run writes it, to the letter."""
    try:
        return files.text(recipe) == make(**settings_in(recipe)).to_toml()
    except (BadInput, OSError, UnicodeDecodeError):
        return False


def beside(out: Path, recipe: Recipe) -> None:
    """Refuse a folder among the data, whose next run would take what is written for samples, and one that is the model.

    Raises:
        BadInput: it is one.
    """
    if recipe.model and Path(recipe.model).is_dir() and files.among(out, [Path(recipe.model)]):
        raise BadInput(f"--out {out} lies in the model {recipe.model}, which a run only reads. Give another --out.")
    for place in data_of(recipe):
        if files.is_folder(place) and files.among(out, looked_into(files.at_home(place))):
            raise BadInput(f"--out {out} lies in the folder of --data, {place}, which a run only reads. Give another --out.")


def _same_settings(out: Path, recipe: Recipe) -> None:
    path = out / "recipe.toml"
    if not path.exists():
        raise BadInput(f"{out} has no recipe.toml to go on from. Start again with --force.")
    before, now = make(**settings_in(path)).model_dump(), recipe.model_dump()
    # How much memory there is changes no result: whoever had too little may give more.
    differ = [key for key in now if before[key] != now[key] and key not in (*TRUST, "memory")]
    if differ:
        key = differ[0]
        raise BadInput(
            f"{out} was started with other settings (--{key.replace('_', '-')} {before[key]!r}, now {now[key]!r}). "
            "Resume with the same ones, or start again with --force."
        )
