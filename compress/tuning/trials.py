"""A worker: looks at the trials of a study one after the other, carries some out as ordinary runs, tells their figures.

    look      channels removed and refitted without training; `rounds` says which trials that is enough for
    run       an ordinary run into trials/NNNN; model, data, dense figures and statistics are those of all trials
    figures   points lost on held-out images, and the share of the dense model's time (or bytes, MACs, ...) that is left

Test images are counted by each run, as always, and chosen by is nothing but the held-out ones.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import exporters
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.errors import CompressError, GateFailed, NotWritten
from compress.measure.points import drop
from compress.pipeline.answers import answers
from compress.pipeline.contract import narrowed
from compress.pipeline.held_out import HeldOut
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.run import run
from compress.pipeline.sequence import stages_of
from compress.pipeline.shared import Shared
from compress.progress import Progress, under
from compress.recipe import TRUST, Recipe, make, settings_in
from compress.refit import refit
from compress.report.records import ExportRecord, Outcome, Report
from compress.tuning.believed import FOLDER, folder_of
from compress.tuning.rounds import LOOK, LOOK_LEFT, Does, Rounds, before, latest, looked, number
from compress.tuning.space import Space, recipe_of, require_inside, suggested
from compress.tuning.storage import answering
from compress.tuning.study import Study
from compress.user import files
from exporters import atomic
from exporters.errors import ExportError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

HERE = ("model", "arch", "arch_kwargs", "data", "device", "threads", *TRUST)
"""Settings that say where things are on this machine; who joins a study may give his own."""
_UNSEEN = (
    *("reconstruct", "iterations", "order", "depth", "linearize", "from_scratch", "epochs", "optimizer", "lr", "weight_decay"),
    *("warmup", "distill", "temperature", "precision", "clip", "ema", "export", "calibrator", "int8_error", "qat"),
)
"""Settings that a look does not depend on: trials that differ in these alone are looked at once."""
_LOOKED_AT = 256
"""Images that a look refits to: enough to tell trials apart, and a run takes what its recipe says."""
_EIGHT_BITS = 0.25
"""Bytes of a weight in 8 bits, as a share of those in 32."""


@dataclass(frozen=True)
class Worker:
    """One process of a search.

    Attributes:
        base: settings of all trials.
        space: what differs between them.
        out: folder of the search.
    """

    study: Study
    rounds: Rounds
    shared: Shared
    base: Recipe
    space: Space
    out: Path
    held_out: HeldOut
    progress: Progress
    _seen: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]], init=False)

    def work(self) -> None:
        """Every trial that is left in the queue."""
        while (task := self.study.next(self.rounds.next)) is not None:
            trial, does = task
            every = latest(self.study.trials)
            ran, seen = sum(one.state.is_finished() for one in every), sum(map(looked, every))
            share = (ran + seen) / (self.rounds.trials + self.rounds.runs)
            said = f"{seen + 1} of {self.rounds.trials} is looked at" if does is Does.LOOK else f"{ran + 1} is carried out"
            self.progress("trials", min(share, 1.0), said)
            with self.study.beating(trial):
                self._one(trial, does)

    def _one(self, trial: optuna.Trial, does: Does) -> None:
        start, known = time.perf_counter(), self.study.of(trial)
        facts: dict[str, Any] = {"host": platform.node()}
        try:
            if does is Does.LEAVE:
                self.study.tell(trial, None, {"reason": _left_alone(known.user_attrs)}, pruned=True)
            elif does is Does.LOOK:
                facts["values"] = self._values(known)
                require_inside(self.space, facts["values"])
                facts[LOOK], facts[LOOK_LEFT] = self._look(recipe_of(self.base, facts["values"]), self._named(known))
                self.study.put_back(trial, facts)
            else:
                require_inside(self.space, known.user_attrs["values"])
                folder, recipe = self._folder(known), recipe_of(self.base, known.user_attrs["values"])
                with answering():
                    trial.set_user_attr("folder", str(folder.resolve()))
                figures = self._figures(recipe, folder, facts, self._named(known))
                self.study.tell(trial, figures, facts | {"seconds": round(time.perf_counter() - start, 1)})
        except NotWritten:
            raise
        # A trial that cannot be carried out is a result, as for --methods.
        except (CompressError, ExportError) as error:
            self.study.tell(trial, None, facts | {"reason": str(error)})

    def _values(self, trial: FrozenTrial) -> dict[str, str]:
        """What a trial tries; the same whoever looks at it, as far as those of earlier rounds came to the same."""
        if "values" in trial.user_attrs:
            return trial.user_attrs["values"]
        earlier, seed = before(trial, self.study.trials), self.base.seed * 100_003 + number(trial)
        return self.study.drawn(trial, lambda of: suggested(self.space, of), seed, lambda: _known(earlier))

    def _named(self, trial: FrozenTrial) -> Progress:
        return lambda what, done, detail="": self.progress(under(f"{number(trial):04d}", what), done, detail)

    def _folder(self, trial: FrozenTrial) -> Path:
        """A trial that somebody else began goes on in its folder, where that is here."""
        begun = folder_of(trial.user_attrs.get("folder", ""), number(trial))
        return begun or self.out / FOLDER / f"{number(trial):04d}"

    def _figures(self, recipe: Recipe, folder: Path, facts: dict[str, Any], progress: Progress) -> tuple[float, float]:
        """Points lost and share left; `facts` gets what else is to be known of the trial."""
        report = self._run(recipe, folder, progress)
        dense, result = report.dense.quality, report.result.quality
        shipped = next((one for one in reversed(report.exports) if one.format in recipe.export), None)
        answer = answers(shipped.format, folder / shipped.path) if shipped else load(folder / "model.compressed")
        lost = self.held_out.lost(answer)
        if shipped is not None and shipped.quality is not None:
            result = shipped.quality
        left = self._left(recipe, report, shipped, folder)
        facts |= {
            "lost": asdict(lost),
            "test": drop(dense, result) if dense and result else None,
            "test_ci95": result and result.drop_ci95,
            "macs": report.result.macs / report.dense.macs,
            "params": report.result.params / report.dense.params,
            "outcome": report.outcome.value,
            "noisy": recipe.minimize == "latency" and bool(report.result.latency and report.result.latency.noisy),
        }
        return lost.points, left

    def _run(self, recipe: Recipe, folder: Path, progress: Progress) -> Report:
        folder.parent.mkdir(parents=True, exist_ok=True)
        begun = (folder / "recipe.toml").exists()
        if begun:
            _from_here(folder / "recipe.toml", recipe)
        try:
            return run(recipe, folder, shared=self.shared, resume=begun, progress=progress)
        except GateFailed as error:  # a contract that is broken has figures all the same; what is not exact has none
            if not isinstance(error.report, Report) or error.report.outcome is not Outcome.QUALITY_LOST:
                raise
            return error.report

    def _look(self, recipe: Recipe, progress: Progress) -> tuple[float, float]:
        # At once, without the steps of block reconstruction: what a run adds to that is its training.
        usual = {name: Recipe.model_fields[name].get_default(call_default_factory=True) for name in _UNSEEN}
        plain = recipe.model_copy(update=usual | {"reconstruct": 0, "iterations": 1})
        if (key := plain.model_dump_json()) not in self._seen:
            made = self._narrowed(plain, progress)
            self._seen[key] = self.held_out.lost(made.module).points, self._share(plain, made)
        lost, left = self._seen[key]
        bits = recipe.minimize == "size" and recipe.export[-1] in exporters.LOSSY
        return lost, left * _EIGHT_BITS if bits else left

    def _narrowed(self, recipe: Recipe, progress: Progress) -> Artifact:
        """With the channels that a run would keep, which are not chosen again there, refitted to fewer images than there."""
        context, _ = self.shared.for_run(recipe, progress)
        race = LatencyCache(recipe, context.device).race
        chosen = narrowed(stages_of(recipe), replace(context, race=race, fitting=False))
        if chosen.module is context.dense.module:
            return chosen
        few = {"calibration": min(recipe.calibration, _LOOKED_AT)}
        return refit.refitted(chosen, replace(context, recipe=context.recipe.model_copy(update=few)))

    def _share(self, recipe: Recipe, made: Artifact) -> float:
        dense = self.shared.context.dense
        if recipe.minimize == "latency":
            return 1 / LatencyCache(recipe, self.shared.context.device).race(made, dense).ratio
        now, before = made.cost, dense.cost
        if recipe.minimize == "memory":
            return now.peak_memory_bytes(recipe.batch) / before.peak_memory_bytes(recipe.batch)
        return now.macs / before.macs if recipe.minimize == "macs" else now.params / before.params

    def _left(self, recipe: Recipe, report: Report, shipped: ExportRecord | None, folder: Path) -> float:
        """What the result has left of what is to be made small, as a share of the dense model's."""
        dense, result = report.dense, report.result
        match recipe.minimize:
            case "macs":
                return result.macs / dense.macs
            case "params":
                return result.params / dense.params
            case "memory":
                return result.peak_memory_bytes / dense.peak_memory_bytes
            case "size":
                return (shipped.bytes if shipped and shipped.bytes else result.file_bytes) / dense.file_bytes
            case "latency":
                if shipped is None or shipped.format not in exporters.LOSSY:
                    if result.latency is None:
                        raise CompressError("Nothing was timed; needed is a time to compare by. Take --minimize macs.")
                    return 1 / result.latency.ratio
                return 1 / self._raced(recipe, folder / shipped.path)

    def _raced(self, recipe: Recipe, file: Path) -> float:
        """Speed of an exported file over the dense model's, both in the runtime of the run."""
        races, context, known = LatencyCache(recipe, self.shared.context.device), self.shared.context, self.shared.dense
        if races.runtime == "torch" or known is None:
            raise CompressError("A file of 8 bits is timed in ONNX Runtime, not in torch. Take --runtime ort, or --export onnx.")
        inputs = tuple(x.repeat(recipe.batch, *[1] * (x.ndim - 1)) for x in context.dense.inputs)
        return races.of_files(known.file, file, inputs).ratio


def _from_here(path: Path, recipe: Recipe) -> None:
    """The recipe of a run that another worker began names model and data as they are called on this machine."""
    files.unlinked(path.parent)
    begun = make(**settings_in(path))
    atomic.write(path, begun.model_copy(update={name: getattr(recipe, name) for name in HERE}).to_toml().encode())


def _left_alone(looked: Mapping[str, Any]) -> str:
    return f"Looked at alone: without training it loses {looked[LOOK]:.2f} points at {looked[LOOK_LEFT]:.1%}."


def _known(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Finished trials, and with them those that were looked at alone: as if a run won for them what it did on average."""
    import optuna

    seen = [one for one in trials if looked(one)]
    ran = [one for one in seen if one.values]
    won = sum(one.user_attrs[LOOK] - one.values[0] for one in ran) / len(ran) if ran else 0.0
    shrunk = sum(one.values[1] / one.user_attrs[LOOK_LEFT] for one in ran) / len(ran) if ran else 1.0
    return [
        optuna.create_trial(
            params=one.params,
            distributions=one.distributions,
            values=one.values or [one.user_attrs[LOOK] - won, one.user_attrs[LOOK_LEFT] * shrunk],
        )
        for one in seen
    ]
