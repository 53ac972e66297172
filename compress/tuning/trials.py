"""A worker: takes one trial after the other from the queue of a study, carries it out as an ordinary run, tells its figures.

    look      channels removed and refitted without training; a trial that is hopeless then ends here
    run       an ordinary run into trials/NNNN; model, data, dense figures and statistics are those of all trials
    figures   points lost on held-out images, and the share of the dense model's time (or bytes, MACs, ...) that is left

Test images are counted by each run, as always, and chosen by is nothing but the held-out ones.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import exporters
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.errors import CompressError, GateFailed, NotWritten
from compress.measure.cost import cost
from compress.measure.points import drop
from compress.pipeline.answers import answers
from compress.pipeline.contract import narrowed
from compress.pipeline.held_out import HeldOut
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.run import run
from compress.pipeline.sequence import stages_of
from compress.pipeline.shared import Shared
from compress.progress import Progress, under
from compress.recipe import Recipe
from compress.report.records import ExportRecord, Outcome, Report
from compress.tuning.space import Space, recipe_of, suggested
from compress.tuning.study import Study, answering
from exporters.errors import ExportError

if TYPE_CHECKING:
    import optuna

FOLDER = "trials"
_ENOUGH, _BETTER = 5, 2
"""Finished trials from which a look can tell anything, and how many of them have to have looked better in both figures."""


@dataclass(frozen=True)
class Worker:
    """One process of a search.

    Attributes:
        base: settings of all trials.
        space: what differs between them.
        out: folder of the search.
    """

    study: Study
    shared: Shared
    base: Recipe
    space: Space
    out: Path
    held_out: HeldOut
    progress: Progress

    def work(self, total: int) -> None:
        """Every trial that is left in the queue."""
        while (trial := self.study.next(self.base.seed)) is not None:
            done = sum(one.state.is_finished() for one in self.study.trials)
            self.progress("trials", min(done / total, 1.0), f"{done + 1} of {total}")
            with self.study.beating(trial):
                self._one(trial)

    def _one(self, trial: optuna.Trial) -> None:
        start = time.perf_counter()
        with answering():
            values = suggested(self.space, trial)
            folder = self._folder(trial)
            trial.set_user_attr("values", values)
            trial.set_user_attr("folder", str(folder.resolve()))
            trial.set_user_attr("host", platform.node())
        facts: dict[str, Any] = {}
        try:
            figures = self._figures(recipe_of(self.base, values), folder, facts)
        except NotWritten:
            raise
        # A trial that cannot be carried out is a result, as for --methods.
        except (CompressError, ExportError) as error:
            self.study.tell(trial, None, facts | {"reason": str(error)})
            return
        facts["seconds"] = round(time.perf_counter() - start, 1)
        self.study.tell(trial, figures, facts, pruned=figures is None)

    def _folder(self, trial: optuna.Trial) -> Path:
        """A trial that somebody else began goes on in its folder, where that is here."""
        before = str(trial.user_attrs.get("folder") or "")
        return Path(before) if before and Path(before).is_dir() else self.out / FOLDER / f"{trial.number:04d}"

    def _figures(self, recipe: Recipe, folder: Path, facts: dict[str, Any]) -> tuple[float, float] | None:
        """Points lost and share left; None where the look shows that the trial is hopeless. `facts` is what to know of it."""
        named: Progress = lambda what, done, detail="": self.progress(under(folder.name, what), done, detail)  # noqa: E731
        if recipe.epochs > 0:
            facts["look"], facts["look_left"] = self._look(recipe, named)
            if (reason := self._hopeless(facts["look"], facts["look_left"])) is not None:
                facts["reason"] = reason
                return None
        report = self._run(recipe, folder, named)
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
        try:
            return run(recipe, folder, shared=self.shared, resume=begun, progress=progress)
        except GateFailed as error:  # a contract that is broken has figures all the same; what is not exact has none
            if not isinstance(error.report, Report) or error.report.outcome is not Outcome.QUALITY_LOST:
                raise
            return error.report

    def _look(self, recipe: Recipe, progress: Progress) -> tuple[float, float]:
        # Cheap: without the steps of block reconstruction.
        context, _ = self.shared.for_run(recipe.model_copy(update={"reconstruct": 0}), progress)
        made = narrowed(stages_of(recipe), replace(context, race=LatencyCache(recipe, context.device).race))
        return self.held_out.lost(made.module).points, self._share(recipe, made)

    def _share(self, recipe: Recipe, made: Artifact) -> float:
        dense = self.shared.context.dense
        if recipe.minimize == "latency":
            return 1 / LatencyCache(recipe, self.shared.context.device).race(made, dense).ratio
        now, before = (cost(one.module, one.inputs) for one in (made, dense))
        if recipe.minimize == "memory":
            return now.peak_memory_bytes(recipe.batch) / before.peak_memory_bytes(recipe.batch)
        return now.macs / before.macs if recipe.minimize == "macs" else now.params / before.params

    def _hopeless(self, lost: float, left: float) -> str | None:
        """Why a trial is not carried out: some that were looked better, or none has ever won back what it would have to."""
        done = [(one.values, one.user_attrs) for one in self.study.trials if one.values]
        looked = [(values, facts) for values, facts in done if "look" in facts]
        if len(looked) < _ENOUGH:
            return None
        better = sum(
            (facts["look"] <= lost and facts["look_left"] < left) or (facts["look"] < lost and facts["look_left"] <= left)
            for _, facts in looked
        )
        if better >= _BETTER:
            return f"Without training it loses {lost:.2f} points at {left:.1%}; {better} trials were better in both then."
        back = max(0.0, *(facts["look"] - values[0] for values, facts in looked))
        shrunk = min(1.0, *(values[1] / facts["look_left"] for values, facts in looked))
        if any(values[0] <= lost - back and values[1] <= left * shrunk for values, _ in done):
            return (
                f"Without training it loses {lost:.2f} points at {left:.1%}; the most that a trial has won since then is "
                f"{back:.2f} points, and another is better all the same."
            )
        return None

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
