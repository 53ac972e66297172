"""What a search found: every trial in a table, those that no other one beats as a picture, and the best one in a folder."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compress.curves import Curve, Series
from compress.errors import BadInput
from compress.pipeline.held_out import Lost
from compress.progress import duration
from compress.report import pictures
from compress.report.html import PAGE
from compress.report.html.page import page_of
from compress.report.markdown import bullets, grid
from compress.tuning.believed import folder_of
from compress.tuning.rounds import latest, number
from compress.tuning.study import Study
from exporters import atomic
from exporters.standalone import leftovers

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEST, TABLE, FIGURES, PICTURE = "best", "tune.md", "tune.json", "tune.svg"
ALLOWED = 1.0
"""Points that the best one may lose where no `--max-drop` says it."""
LEFT = {"latency": "time", "memory": "memory", "macs": "MACs", "params": "params", "size": "bytes"}
"""What is made small, as it stands above its column."""
_ON_THE_PAGE = 6


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes:
        trial: its number, which is the name of its folder.
        settings: what differs between the trials.
        lost, lost_ci95: points on held-out images, and the 95 % interval of that; the search goes by these.
        untold: why these points tell nothing; empty where they do.
        left: share of the dense model's time, or of what else was made small.
        test, test_ci95: points on test images.
        macs, params: shares of the dense model's.
        seconds: that it took.
        front: whether no other trial loses as little and leaves as little, and less of one of them.
        folder: of the run, on the machine `host`; None where there is no run.
        reason: why it has no figures, or its contract is broken.
        noisy: the time of which `left` is the share scattered too much for any claim.
    """

    trial: int
    settings: dict[str, str]
    lost: float | None = None
    lost_ci95: tuple[float, float] | None = None
    left: float | None = None
    test: float | None = None
    test_ci95: tuple[float, float] | None = None
    macs: float | None = None
    params: float | None = None
    seconds: float | None = None
    front: bool = False
    folder: str | None = None
    host: str = ""
    reason: str = ""
    noisy: bool = False
    untold: str = ""

    def keeps(self, allowed: float) -> bool:
        """Whether it loses no more than is allowed, with a standard error to spare."""
        if self.lost is None:
            return False
        return Lost(self.lost, *(self.lost_ci95 or (self.lost, self.lost)), self.untold).keeps(allowed)


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
        minimize: what was made small.
        metric: what quality is.
        trials: all of them, by number.
        best: number of the trial in the folder `best`; None where none keeps the limit.
        allowed: points that it may lose: those of `max_drop`, or one where there is none.
        notes: what else has to be said.
        picture: points lost against what is left.
    """

    minimize: str
    metric: str
    trials: tuple[Tried, ...]
    best: int | None
    allowed: float
    notes: tuple[str, ...]
    picture: Curve

    @property
    def columns(self) -> tuple[str, ...]:
        """Of `cells`."""
        return (
            "trial",
            "settings",
            "lost [95 % CI]",
            "on test",
            LEFT[self.minimize],
            *self._beside,
            "took",
            "Pareto front",
        )

    def cells(self) -> list[tuple[str, ...]]:
        """The table, the best ones first."""
        order = sorted(self.trials, key=lambda one: (not one.front, one.left is None, one.left, one.trial))
        return [_cells(one, one.trial == self.best, bool(self._beside)) for one in order]

    @property
    def _beside(self) -> tuple[str, ...]:
        """What is shown beside what was made small, and is not the same."""
        return () if self.minimize == "macs" else ("MACs",)


def found(study: Study, minimize: str, metric: str, allowed: float | None, notes: Sequence[str], samples: int = 0) -> Tuning:
    """What the study holds now; `samples` is the number of held-out images."""
    every = latest(study.trials)
    best_ones = study.unbeaten if any(one.values for one in every) else set[int]()
    rows = tuple(_tried(one, one.number in best_ones) for one in every)
    measured = [one for one in rows if one.left is not None]
    limit = ALLOWED if allowed is None else allowed
    kept = [one for one in measured if one.keeps(limit)]
    best = min(kept, key=lambda one: one.left or 0).trial if kept else None
    if any(one.noisy for one in rows):
        notes = (*notes, "A time with ? scattered too much for any claim, and the order of such trials is chance.")
    if alone := [one for one in every if one.state.name == "PRUNED"]:
        notes = (*notes, _carried_out(len(rows), len(alone)))
    if measured and not kept:
        notes = (*notes, none_keeps(measured, allowed, samples))
    return Tuning(minimize, metric, rows, best, limit, tuple(notes), _picture(rows, minimize, metric))


def _carried_out(trials: int, alone: int) -> str:
    return (
        f"All {trials} trials were looked at, without training, and {trials - alone} carried out as runs: the usual recipes, and "
        f"of the others those that no other look beats, far from each other in what is left. The other {alone} have no run, and "
        "no figures; --runs carries out more."
    )


def none_keeps(measured: Sequence[Tried], allowed: float | None, samples: int = 0) -> str:
    """What to say where no trial keeps the limit: which one is closest, why it is no best one, and what would be."""
    closest = min(measured, key=lambda one: one.lost or 0)
    lost, (low, high) = closest.lost or 0.0, closest.lost_ci95 or (closest.lost or 0.0, closest.lost or 0.0)
    limit = f"--max-drop {allowed:g}" if allowed is not None else f"the {ALLOWED:g} point that may be lost without a --max-drop"
    said = (
        f"No trial keeps {limit}: trial {closest.trial} comes closest, with {lost:.2f} [{low:.2f}, {high:.2f}] points lost on "
        "held-out images"
    )
    if closest.untold:
        return f"{said}, which tell nothing: {closest.untold}. None is called best."
    error, most = (high - lost) / 2, ALLOWED if allowed is None else allowed
    said += f", and a standard error ({error:.2f}) is to spare. None is called best."
    if samples and lost <= most:
        return (
            f"{said} By the figure alone it would keep it: of {samples} held-out images one is {100 / samples:.2f} points, so "
            f"that they cannot tell {most:g} from more. Give more images, or --max-drop {_above(lost + error)}."
        )
    return said


def _above(points: float) -> str:
    """In tenths, and no less."""
    return f"{max(math.ceil(points * 10), 1) / 10:g}"


def write(tuning: Tuning, out: Path) -> Tuning:
    """tune.md, tune.json, tune.svg, report.html and best/ in the folder of the search.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        return _written(tuning, out)
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror or error}). Make room there, and add --join.") from error


def _written(tuning: Tuning, out: Path) -> Tuning:
    best = next((one for one in tuning.trials if one.trial == tuning.best), None)
    if best is not None:
        tuning = dataclasses.replace(tuning, notes=(*tuning.notes, *_copied(best, out / BEST)))
    drawn = pictures.picture(tuning.picture, out / PICTURE)
    atomic.write(out / FIGURES, (json.dumps(dataclasses.asdict(tuning), indent=1, ensure_ascii=False) + "\n").encode())
    parts = [f"# {len(tuning.trials)} trials", grid(tuning.columns, tuning.cells()), bullets(tuning.notes)]
    parts += [f"![{tuning.picture.title}]({PICTURE})"] if drawn else []
    atomic.write(out / TABLE, ("\n\n".join(part for part in parts if part) + "\n").encode())
    front = sorted((one for one in tuning.trials if one.front and one.folder), key=lambda one: one.left or 0)
    folders = [folder for one in front if (folder := folder_of(one.folder or "", one.trial))]
    here = [folder for folder in folders if (folder / "report.json").exists()][:_ON_THE_PAGE]
    if here:
        atomic.write(out / PAGE, page_of(*here, names=[folder.name for folder in here]).encode())
    return tuning


def _copied(best: Tried, place: Path) -> list[str]:
    """The run of the best trial beside the others; says where it is if it is not here."""
    source = folder_of(best.folder or "", best.trial)
    if source is None or not (source / "report.json").exists():
        return [f"The best trial, {best.trial}, is on {best.host or 'another machine'}, in {best.folder}: best/ was not written."]
    # Beside its place and renamed: other workers of the same folder may be doing the same.
    staging = place.parent / f"{leftovers.hidden(place.name)}part"
    shutil.copytree(source, staging, ignore=_not_copied)
    shutil.rmtree(place, ignore_errors=True)
    staging.rename(place)
    return []


def _not_copied(folder: str, names: Sequence[str]) -> list[str]:
    """Hidden files, and what no run writes: links, which may lead anywhere, pipes and devices."""
    plain = {one.name for one in Path(folder).iterdir() if not one.is_symlink() and (one.is_file() or one.is_dir())}
    return [name for name in names if name.startswith(".") or name not in plain]


def _tried(trial: FrozenTrial, front: bool) -> Tried:
    facts = trial.user_attrs
    lost = facts.get("lost")
    reason = str(facts.get("reason", "")) or ("" if trial.state.is_finished() else f"is {trial.state.name.lower()}")
    if not reason and facts.get("outcome") == "quality lost":
        reason = "breaks its contract"
    return Tried(
        number(trial),
        dict(facts.get("values") or {k: str(v) for k, v in trial.params.items()}),
        *((trial.values[0], (lost["low"], lost["high"]), trial.values[1]) if trial.values and lost else (None, None, None)),
        facts.get("test"),
        facts.get("test_ci95") and tuple(facts["test_ci95"]),
        facts.get("macs"),
        facts.get("params"),
        facts.get("seconds"),
        front,
        facts.get("folder") if trial.values else None,
        str(facts.get("host", "")),
        reason,
        bool(facts.get("noisy")),
        (lost or {}).get("reason", ""),
    )


def _cells(one: Tried, best: bool, with_macs: bool) -> tuple[str, ...]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    settings = " ".join(f"{name}={value}" for name, value in one.settings.items())
    if one.lost is None:
        return (str(one.trial), settings, *"---", *("-" * with_macs), "-", one.reason)
    low, high = one.lost_ci95 or (one.lost, one.lost)
    front = "best" if best else "yes" if one.front else one.reason
    return (
        str(one.trial),
        settings,
        f"{one.lost:+.2f} [{low:+.2f}, {high:+.2f}]",
        "-" if one.test is None else f"{one.test:+.2f}",
        share(one.left) + (" ?" if one.noisy else ""),
        *((share(one.macs),) if with_macs else ()),
        "-" if one.seconds is None else duration(one.seconds),
        front,
    )


def _picture(rows: Sequence[Tried], minimize: str, metric: str) -> Curve:
    there = [one for one in rows if one.left is not None and one.lost is not None]
    front = sorted((one.left or 0.0, one.lost or 0.0) for one in there if one.front)
    series = [Series(str(one.trial), (one.left or 0.0,), (one.lost or 0.0,)) for one in there]
    if len(front) > 1:
        series.append(Series(pictures.FRONT, tuple(x for x, _ in front), tuple(y for _, y in front)))
    title, across = f"Points lost against {LEFT[minimize]} left", f"{LEFT[minimize]}, share of the dense model's"
    return Curve(title, across, f"{metric}, points lost on held-out images", tuple(series))
