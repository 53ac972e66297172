"""`compress tune`: a search over recipes, by Optuna; each trial is an ordinary run, and others may join from other machines."""

from __future__ import annotations

import operator
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

from torch import nn

from compress import __version__
from compress.checkpoint.load.live_module import fingerprint
from compress.data import digest
from compress.errors import BadInput, Infeasible
from compress.keywords import Settings, with_settings
from compress.pipeline import doubts
from compress.pipeline.begun_with import spare
from compress.pipeline.contract import unrounded
from compress.pipeline.given import Given, resolved_recipe
from compress.pipeline.held_out import HeldOut
from compress.pipeline.prepare import prepare
from compress.pipeline.shared import Shared
from compress.pipeline.workspace import beside
from compress.progress import Progress, silent
from compress.recipe import TRUST, Recipe, code_in, make, settings_in
from compress.report.environment import environment
from compress.stage import Context
from compress.tuning import believed, front, space
from compress.tuning import study as studies
from compress.tuning.believed import FOLDER
from compress.tuning.front import Tuning
from compress.tuning.rounds import Rounds, usual_runs
from compress.tuning.storage import shown
from compress.tuning.trials import HERE, Worker
from compress.user import files

DATABASE = "study.db"


@with_settings
def tune(
    model: nn.Module | str | Path | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    out: str | Path = "tune-out",
    trials: int = 30,
    runs: int | None = None,
    over: str | Sequence[str] = (),
    storage: str | None = None,
    study: str = "compress",
    join: bool = False,
    force: bool = False,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> Tuning:
    """Look for the recipes that no other one beats: little quality lost, and little left of what `minimize` names.

    Every trial is a run in a folder of its own, `out`/trials/NNNN. Quality is that of held-out images; the test images are
    counted and shown, and chosen by is nothing of them. `out`/best is the run with the least left that keeps `max_drop`, or loses
    at most a point where there is none.

    Args:
        model: as for `run`; with `join` it may lie elsewhere than the study says.
        recipe: settings of all trials.
        out: folder of the search.
        trials: how many are looked at, by all workers together.
        runs: how many of them are carried out; by default a fifth, and six at least.
        over: what is searched, as NAME=VALUE,VALUE or NAME=LOW..HIGH; by default what usually pays and no setting fixes.
        storage: where the study is kept: sqlite:///FILE, postgresql://..., grpc://HOST:PORT, or the path of a journal; by
            default a database in `out`.
        study: its name there.
        join: work on the study that is there, begun by another worker, or here and cut off.
        force: replace another search in `out`.
        progress: told what is being done.

    Raises:
        BadInput: settings that do not go together, a study of another model or data, or a storage that cannot be reached.
        MissingPackage: Optuna is not installed.
        Infeasible: no trial came to a result, or none keeps `max_drop`; everything is written all the same.
        NotWritten: the storage went away; finished runs are in their folders.
    """
    if join and force:
        raise BadInput("--join goes on with what is there, and --force throws it away. Leave one of them out.")
    if trials < 1:
        raise BadInput(f"--trials is {trials}; needed is at least 1.")
    if runs is not None and not 1 <= runs <= trials:
        raise BadInput(f"--runs is {runs}; needed is at least 1, and no more than the {trials} of --trials.")
    out, given_settings = Path(out), cast("dict[str, Any]", settings)
    place = storage or f"sqlite:///{(out / DATABASE).resolve()}"
    there = _looked(out, join, force, storage is None)
    opened = studies.joined(place, study) if join else None
    if opened:
        told = believed.facts(opened.facts, opened.place)
        base, given = _recipe_of(told, model, given_settings)
        searched = space.read(told.space, base)
    else:
        base, given = resolved_recipe(model, recipe, given_settings)
        fixed = {*_typed(recipe), *(name for name, value in given_settings.items() if value is not None)}
        searched = space.space(base, fixed, [over] if isinstance(over, str) else over)
        base = unrounded(base)
    if base.tolerance is not None or base.plan is not None:
        raise BadInput("A search varies the --target; it does not go with --tolerance or --plan. Leave them out.")
    beside(out, base)
    spare(there, base, out)
    if storage and opened is None:
        studies.require_free(place, study)
    context, metric = prepare(base, progress, given, refusing=True)
    doubts.guessing(context, metric)
    held_out = HeldOut(context, metric)
    if base.max_drop is not None:
        held_out.require_telling(f"Which recipes keep --max-drop {base.max_drop:g} cannot be told")
    same = _what(context)
    _cleared(out, there)
    if opened is None:
        facts = {**same, "recipe": base.to_toml(), "space": space.written(searched), "compress": __version__}
        facts |= {"trials": trials, "runs": usual_runs(trials) if runs is None else runs}
        opened = studies.made(place, study, trials, space.usual_first(searched), facts)
    told = believed.facts(opened.facts, opened.place)
    notes = _compared(told.model_dump(), same, base.minimize, shown(place))
    rounds = Rounds(told.trials, told.runs, len(space.usual_first(searched)))
    shared = Shared(context, metric, timed=base.minimize == "latency")
    Worker(opened, rounds, shared, base, searched, out, held_out, progress).work()
    tuned = front.write(front.found(opened, base.minimize, metric.name, base.max_drop, notes, len(context.data.held_out)), out)
    _refuse(tuned, base, len(context.data.held_out))
    return tuned


def _looked(out: Path, join: bool, force: bool, embedded: bool) -> list[Path]:
    """What is to be cleared from the folder of the search: another search, unless this one goes on with it."""
    files.spelled(out)
    try:
        there = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.exists() else []
        files.unlinked(out)
        ours = {DATABASE, FOLDER, front.BEST, front.TABLE, front.FIGURES, front.PICTURE, "report.html"}
        if join:
            if embedded and DATABASE not in there:
                raise BadInput(f"{out} holds no study to join. Leave --join out, or give its --storage.")
            return []
        if there and not (force and set(there) <= ours):
            kind = "another search" if set(there) <= ours else "files that are not of a search"
            more = ", --join to go on with it, --force to replace it" if set(there) <= ours else ""
            raise BadInput(f"{out} holds {kind}. Give another --out{more}.")
        return [out / name for name in there]
    except OSError as error:
        raise _unwritable(out, error) from error


def _cleared(out: Path, there: Sequence[Path]) -> None:
    """Make the folder, not before everything that could be refused was."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for one in there:
            shutil.rmtree(one) if one.is_dir() else one.unlink()
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> BadInput:
    return BadInput(f"{out} cannot be written ({error.strerror}). Choose a folder that can with --out.")


def _typed(recipe: Recipe | str | Path | None) -> Sequence[str]:
    if recipe is None:
        return ()
    return tuple(settings_in(Path(recipe))) if isinstance(recipe, str | Path) else tuple(recipe.model_fields_set)


def _recipe_of(told: believed.Facts, model: object, settings: Mapping[str, Any]) -> tuple[Recipe, Given]:
    """The recipe of a study that is joined, with what lies elsewhere on this machine.

    Raises:
        BadInput: a setting that only the one who made the study may give, or code that it names.
    """
    own = {key: value for key, value in settings.items() if value is not None}
    try:
        said = {key: value for key, value in files.parsed_toml(told.recipe).items() if key not in TRUST}
        theirs = make(**said)
    except ValueError as error:
        raise BadInput(f"The recipe of the study cannot be read ({error}). Take a study from a source you trust.") from error
    except BadInput as error:
        raise BadInput(f"The recipe of the study cannot be used: {error}") from error
    repeated = {key: own.pop(key) for key in list(own) if key not in HERE}  # by whoever repeats the command with --join
    mine = make(**{**said, **repeated})
    if other := [key for key in repeated if getattr(mine, key) != getattr(theirs, key)]:
        key = other[0]
        raise BadInput(
            f"--{key.replace('_', '-')} is a setting of the study, which has {getattr(theirs, key)!r} and not "
            f"{getattr(mine, key)!r}. With --join leave it out; what may differ is what lies elsewhere here: {', '.join(HERE)}."
        )
    used = {key: value for key, value in said.items() if key not in own and key not in repeated}
    if not own.get("trust_recipe") and (named := code_in(used)):
        raise BadInput(
            f"The study names code ({named}), and using it would run that code. Give that setting yourself, or, if you trust "
            "whoever made the study, add --trust-recipe."
        )
    return resolved_recipe(model, make(**said), own)


def _what(context: Context) -> dict[str, str]:
    """What all workers of a study have to have in common."""
    data, known = context.data, environment()
    return {
        "model": fingerprint(context.dense.module),
        "data": digest.told(data),
        "processor": known.gpu or known.cpu,
    }


def _compared(facts: Mapping[str, Any], mine: Mapping[str, str], minimize: str, place: str) -> tuple[str, ...]:
    """Notes on what differs here from where the study was made.

    Raises:
        BadInput: it is a study of another model, or of other data.
    """
    alike: dict[str, Callable[[str, str], bool]] = {"model": operator.eq, "data": digest.same}
    for what, same in alike.items():
        if not same(str(facts.get(what)), mine[what]):
            raise BadInput(
                f"The study in {place} is of another {what} ({facts.get(what)}) than this one ({mine[what]}). Give that {what}, "
                "or another --study."
            )
    if minimize == "latency" and facts.get("processor") != mine["processor"]:
        return (
            f"Trials were timed on different processors ({facts.get('processor')}, {mine['processor']}): each beside the dense "
            "model there, which compares them only roughly.",
        )
    return ()


def _refuse(tuned: Tuning, base: Recipe, samples: int) -> None:
    """End with an error where nothing came to a result, or nothing keeps the contract.

    Raises:
        Infeasible: with what was closest.
    """
    measured = [one for one in tuned.trials if one.left is not None]
    if not measured:
        reason = next((one.reason for one in tuned.trials if one.reason), "none was finished")
        raise Infeasible(f"No trial came to a result; the first one: {reason}")
    if base.max_drop is not None and tuned.best is None:
        more = "Allow more, train longer (--epochs), or let it try more (--trials)."
        raise Infeasible(f"{front.none_keeps(measured, base.max_drop, samples)} {more}")
