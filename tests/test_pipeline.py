"""A run as a whole, with a stage that is simple enough to know what must come out."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

import compress
import exporters
from compress.artifact import Artifact, apply
from compress.checkpoint.load import load
from compress.data import open_data
from compress.edits import Keep, Plan, from_json
from compress.errors import BadInput, GateFailed, Infeasible, NotWritten, StageFailed
from compress.graph.channels.solve import solve
from compress.measure.latency import Timing
from compress.method_table import METHODS, Method
from compress.pipeline import exports, harness, prepare, stepwise
from compress.pipeline.prepare import find_device
from compress.pipeline.rounding import with_widths_that_pay
from compress.pipeline.run import run
from compress.pipeline.workspace import open_workspace
from compress.recipe import Recipe, from_toml, make
from compress.report.html.page import page_of
from compress.report.records import Quality, Report, json_schema
from compress.stage import Context, Decides, Traits
from compress.training import train


@dataclass(frozen=True)
class Halve:
    """Keeps the first half of every removable group; `then` is called at the end, to break or to count."""

    name: str = "halve"
    then: object = None
    traits: Traits = Traits(Decides.BEFORE_TRAINING, frozenset({"width"}))

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: object) -> None: ...

    def __call__(self, artifact: Artifact, context: object) -> Artifact:
        groups = [g for g in solve(artifact.module, artifact.inputs).removable if g.channels > 1]
        smaller = apply(Plan(tuple(Keep(g.name, g.channels, tuple(range(g.channels // 2))) for g in groups)), artifact)
        if callable(self.then):
            self.then()
        return smaller


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, Report]:
    """One whole run, for every test that only looks at what it left."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 10),
    )
    torch.save(net, folder / "model.pt")
    recipe = make(model=str(folder / "model.pt"), data="digits", method="halve", align=1, rounds=5, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "halve", Method((Halve(),)))
        return recipe, folder / "out", run(recipe, folder / "out")


@pytest.fixture
def recipe(finished: tuple[Recipe, Path, Report], monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setitem(METHODS, "halve", Method((Halve(),)))
    return finished[0].model_copy(update={"export": ()})


def test_a_run_writes_a_valid_report_and_models_that_agree(finished: tuple[Recipe, Path, Report]):
    recipe, out, report = finished
    written = json.loads((out / "report.json").read_text())
    jsonschema.validate(written, json_schema())
    assert [s["stage"] for s in written["stages"]] == ["dense", "halve"]
    assert report.result.params < report.dense.params and report.result.macs < report.dense.macs
    assert report.exactness is not None and 0 <= report.exactness.worst_abs <= report.exactness.tolerance
    assert written["exports"][0]["parity"]["worst_abs"] <= written["exports"][0]["parity"]["tolerance"]
    reloaded = load(out / "model.compressed")
    assert sum(p.numel() for p in reloaded.parameters()) == report.result.params
    names = "model.onnx model.compressed plan.json recipe.toml report.html report.json report.md stages"
    assert {p.name for p in out.iterdir()} == set(names.split())
    assert from_toml(out / "recipe.toml") == recipe


def test_the_report_tells_what_all_of_its_time_went_to(finished: tuple[Recipe, Path, Report]):
    _, out, report = finished
    parts = {one.what: one.seconds for one in report.spent}
    assert {"opening data and model", "halve", "timing", "counting quality", "proving exactness", "exporting"} <= set(parts)
    assert parts["everything else"] < 0.5 * sum(parts.values()) and "| time |" in (out / "report.md").read_text()


def test_the_result_is_timed_in_a_large_batch_too_unless_it_was(finished: tuple[Recipe, Path, Report], recipe: Recipe):
    _, out, report = finished
    large = report.large_batch
    assert large is not None and large.batch == 32 and large.ratio > 0  # calls of a tiny network are short
    assert f"with batch {large.batch}" in (out / "report.md").read_text() and "batches of 32" in (out / "report.html").read_text()
    batch = recipe.model_copy(update={"batch": 32, "export": ()})
    assert run(batch, out.with_name("batch")).large_batch is None


def test_the_report_says_of_every_layer_what_became_of_it_and_the_page_shows_it(finished: tuple[Recipe, Path, Report]):
    _, out, report = finished
    layers = report.layers
    assert [(one.name, one.kind) for one in layers[:3]] == [("0", "Conv2d"), ("1", "BatchNorm2d"), ("2", "ReLU")]
    assert (layers[0].width, layers[0].width_after, layers[0].frozen) == (8, 4, "")
    assert layers[-1].width == layers[-1].width_after == 10 and "output" in layers[-1].frozen
    for figure in ("params", "macs"):
        for ending, stage in (("", report.dense), ("_after", report.result)):
            assert sum(getattr(one, figure + ending) or 0 for one in layers) == getattr(stage, figure), "all layers are the model"
    assert {one.activation for one in report.activations} <= {one.name for one in layers} and report.chance == 0.1
    latency = report.result.latency
    # 5 undisturbed ones, or on a busy machine all that were tried.
    assert latency and 5 <= len(latency.rounds_ms) == len(latency.dense_rounds_ms) <= 10
    assert [one.stage for one in report.trainings] == []
    page = (out / "report.html").read_text()
    assert page == page_of(out) and "8 → 4" in page and "no better than guessing" in page


def test_results_can_be_read_by_whom_the_umask_lets(finished: tuple[Recipe, Path, Report]):
    umask = os.umask(0)
    os.umask(umask)
    for path in (finished[1], *finished[1].rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == wanted, path


def test_the_plan_of_a_run_replays_on_the_dense_model(finished: tuple[Recipe, Path, Report]):
    recipe, out, report = finished
    context, _ = prepare.prepare(recipe)
    replayed = apply(from_json((out / "plan.json").read_text()), context.dense)
    assert sum(p.numel() for p in replayed.module.parameters()) == report.result.params


def test_a_killed_run_resumes_behind_its_last_finished_stage_and_gives_the_same(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(METHODS, "halve", Method((Halve(then=lambda: calls.append("first")), Halve("again", interrupt))))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out/report.json").exists()
    assert sorted(p.name for p in (tmp_path / "out/stages").iterdir()) == ["00-dense", "01-halve"]
    monkeypatch.setitem(METHODS, "halve", Method((Halve(then=lambda: calls.append("first")), Halve("again"))))
    resumed = run(recipe, tmp_path / "out", resume=True)
    assert calls == ["first"]
    whole = run(recipe, tmp_path / "two")
    assert [s.params for s in resumed.stages] == [s.params for s in whole.stages]
    assert [s.quality for s in resumed.stages] == [s.quality for s in whole.stages]
    assert resumed.plan_sha256 == whole.plan_sha256
    one, other = (load(tmp_path / name / "model.compressed").state_dict() for name in ("out", "two"))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_stage_whose_facts_were_changed_is_not_gone_on_from(
    finished: tuple[Recipe, Path, Report], recipe: Recipe, tmp_path: Path
):
    out = tmp_path / "out"
    shutil.copytree(finished[1], out)
    (out / "report.json").unlink()
    (out / "recipe.toml").write_text(recipe.to_toml())
    facts = out / "stages/01-halve/stage.json"
    value = json.loads(facts.read_text())["record"]["quality"]["value"]
    facts.write_text(facts.read_text().replace(str(value), str(round(value / 2, 4)), 1))
    with pytest.raises(BadInput, match=r"01-halve cannot be read .It was changed after it was written.*--force"):
        run(recipe, out, resume=True)


def test_another_runs_folder_is_not_overwritten_without_force(
    finished: tuple[Recipe, Path, Report], recipe: Recipe, tmp_path: Path
):
    out = tmp_path / "out"
    shutil.copytree(finished[1], out)
    before = (out / "report.json").read_bytes()
    with pytest.raises(BadInput, match=r"holds another run.*--resume.*--force"):
        run(recipe, out)
    assert (out / "report.json").read_bytes() == before
    run(recipe, out, force=True)
    assert (out / "report.json").read_bytes() != before  # another date, at the least


def test_a_folder_with_other_files_is_refused(recipe: Recipe, tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("It was a dark and stormy night")
    with pytest.raises(BadInput, match="not of a run"):
        run(recipe, tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_finished_run_is_not_done_again(finished: tuple[Recipe, Path, Report], recipe: Recipe, tmp_path: Path):
    recipe, out, report = finished
    shutil.copytree(out, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != "recipe.toml"}
    told: list[str] = []
    again = run(recipe, tmp_path / "out", resume=True, progress=lambda what, *_: told.append(str(what)))
    assert again == report.model_copy(update={"checksum": again.checksum}) and any("finished already" in one for one in told)
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != "recipe.toml"}
    assert {path for path in before if path.is_file() and before[path] != now.get(path)} == set()
    # A file that is gone is written once more.
    (tmp_path / "out/model.onnx").unlink()
    run(recipe, tmp_path / "out", resume=True)
    assert (tmp_path / "out/model.onnx").exists()


def test_no_file_of_a_run_names_its_folder(finished: tuple[Recipe, Path, Report]):
    named = str(finished[1]).encode()
    assert [path for path in finished[1].rglob("*") if path.is_file() and named in path.read_bytes()] == []


def test_resume_with_other_settings_is_refused(finished: tuple[Recipe, Path, Report], recipe: Recipe):
    with pytest.raises(BadInput, match=r"other settings \(--seed 0, now 5\)"):
        run(finished[0].model_copy(update={"seed": 5}), finished[1], resume=True)


def test_out_that_is_a_file_or_below_one_is_refused(recipe: Recipe, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(BadInput, match=r"is a file|cannot be written"):
            run(recipe, out)


def test_a_stage_that_breaks_names_what_is_kept(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def crash() -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setitem(METHODS, "halve", Method((Halve(), Halve("crash", crash))))
    with pytest.raises(StageFailed, match=r"'crash' failed: ZeroDivisionError: by zero\..*dense, halve.*--resume"):
        run(recipe, tmp_path / "out")


def test_a_full_disk_is_told_and_leaves_no_half_written_stage(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stepwise, "save", full)
    with pytest.raises(BadInput, match=r"No space left on device.*Make room.*--resume"):
        run(recipe, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out/stages").iterdir()] == ["00-dense"]


def test_a_disk_that_spilled_values_fill_is_told_with_what_helps(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> None:
        raise NotWritten("The disk takes no more. Give more --memory.") from OSError(28, "No space left on device")

    monkeypatch.setattr(stepwise, "save", full)
    with pytest.raises(NotWritten, match=r"Give more --memory\. Finished stages are kept \(dense\): add --resume"):
        run(recipe, tmp_path / "out")


def test_going_on_and_beginning_anew_contradict_each_other(recipe: Recipe, tmp_path: Path):
    with pytest.raises(BadInput, match="resume=True goes on with what is there, and force=True throws it away"):
        compress.run(recipe=recipe, out=tmp_path / "out", resume=True, force=True)
    assert not (tmp_path / "out").exists()


def test_a_drop_beyond_the_contract_ends_with_the_gates_exit_code(recipe: Recipe, tmp_path: Path):
    with pytest.raises(GateFailed, match=r"more than --max-drop -90") as caught:
        run(recipe.model_copy(update={"max_drop": -90.0}), tmp_path / "out")
    assert caught.value.exit_code == 5
    assert "--max-drop" in json.loads((tmp_path / "out/report.json").read_text())["verdict"]


@dataclass(frozen=True)
class Spoil:
    """A training that leaves every output the same."""

    name: str = "finetune"
    traits: Traits = Traits(trains=True)

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: object) -> None: ...

    def __call__(self, artifact: Artifact, context: object) -> Artifact:
        module = copy.deepcopy(artifact.module)
        for parameter in module.parameters():
            parameter.data.zero_()
        return replace(artifact, module=module)


@pytest.mark.parametrize(("limit", "named"), [(5.0, True), (-90.0, False)])
def test_a_stage_that_breaks_the_contract_is_named_beside_the_last_one_that_kept_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, named: bool
):
    monkeypatch.setitem(METHODS, "halve", Method((Halve(), Spoil())))
    data = open_data("digits")
    trained = train(
        torch.load(recipe.model, weights_only=False), data, make(epochs=4, lr=1e-2, batch_size=64, distill=0.0)
    ).module
    with torch.no_grad():  # what halving takes away says nothing, so that it costs nothing
        trained[3].weight[:, 4:], trained[3].weight[4:], trained[3].bias[4:] = 0, 0, 0
    torch.save(trained, tmp_path / "trained.pt")
    with pytest.raises(GateFailed) as caught:
        run(recipe.model_copy(update={"max_drop": limit, "model": str(tmp_path / "trained.pt")}), tmp_path / "out")
    notes = json.loads((tmp_path / "out/report.json").read_text())["notes"]
    said = "After stage 'halve' the model still kept the allowed drop"
    assert (said in str(caught.value)) is named and any(said in note for note in notes) is named
    assert ("stage 'finetune' broke it. Its model is" in str(caught.value)) is named
    if named:
        assert load(tmp_path / "out/stages/01-halve/model.compressed")


def test_removal_that_is_not_exact_fails_the_run(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    honest = harness.remove.mask

    def wrong(module: nn.Module, *rest: object) -> nn.Module:
        masked = honest(module, *rest)
        with torch.no_grad():
            masked.get_parameter("6.bias").add_(1.0)
        return masked

    monkeypatch.setattr(harness.remove, "mask", wrong)
    with pytest.raises(GateFailed, match="differs from the masked one"):
        run(recipe, tmp_path / "out")


@dataclass(frozen=True)
class KeepFive(Halve):
    """Keeps 5 of 8 channels, or all 8 where counts are rounded."""

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        keep = tuple(range(5 if context.recipe.align == 1 else 8))
        return apply(Plan((Keep("0", 8, keep),), align=context.recipe.align), artifact)


@pytest.mark.parametrize(
    ("align", "interval", "widths"),
    [
        (None, (1.2, 1.4), 8),  # rounding is measurably faster: taken without being asked for
        (None, (0.9, 1.1), 5),
        (8, (0.9, 1.1), 8),  # asked for, and not slower
        (8, (0.7, 0.9), 5),
        (1, (9.0, 9.9), 5),  # never tried
    ],
)
def test_rounded_widths_stay_only_where_they_pay(recipe: Recipe, align: int | None, interval: tuple[float, float], widths: int):
    context, _ = prepare.prepare(recipe)
    context = replace(context, race=lambda one, other: Timing(1.0, sum(interval) / 2, interval, 5))
    result = with_widths_that_pay(KeepFive(), context.dense, context, align)
    assert result.module.get_submodule("0").out_channels == widths
    assert align == 1 or any("rounded" in note and "95 %" in note for note in result.notes)


@dataclass(frozen=True)
class KeepTwo(Halve):
    """Keeps 5 of 8 channels, or 2 where counts are rounded: a target that rounding misses from below."""

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        keep = tuple(range(5 if context.recipe.align == 1 else 2))
        return apply(Plan((Keep("0", 8, keep),), align=context.recipe.align), artifact)


@pytest.mark.parametrize(("interval", "widths"), [((1.2, 1.4), 5), ((9.0, 9.9), 2)])
def test_what_is_faster_only_because_it_is_smaller_is_not_rounded(recipe: Recipe, interval: tuple[float, float], widths: int):
    context, _ = prepare.prepare(recipe)
    context = replace(context, race=lambda one, other: Timing(1.0, sum(interval) / 2, interval, 5))
    result = with_widths_that_pay(KeepTwo(), context.dense, context, None)
    assert result.module.get_submodule("0").out_channels == widths


@dataclass(frozen=True)
class Weighed(KeepFive):
    """Expects to lose 0.2 with rounded counts, and as much as `unrounded` with those that are as quick."""

    unrounded: float = 0.0

    def estimated(self, artifact: Artifact, context: Context) -> float:
        if context.recipe.align == 8:
            assert context.recipe.target == "macs=0.500000"
            return 0.2
        assert context.recipe.target == "macs=0.384615", "1.3 times as quick: as many fewer MACs"
        return self.unrounded


@pytest.mark.parametrize(("unrounded", "widths"), [(0.3, 8), (0.1, 5)])
def test_time_that_costs_more_quality_than_it_is_worth_is_not_saved(recipe: Recipe, unrounded: float, widths: int):
    context, _ = prepare.prepare(recipe.model_copy(update={"target": "macs=0.5"}))
    context = replace(context, race=lambda one, other: Timing(1.0, 1.3, (1.2, 1.4), 5))
    result = with_widths_that_pay(Weighed(unrounded=unrounded), context.dense, context, None)
    assert result.module.get_submodule("0").out_channels == widths
    assert any(f"0.2 by rounded ones, {unrounded} by unrounded ones that are as quick" in note for note in result.notes)


def test_an_infeasible_target_leaves_no_folder(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Refuses(Halve):
        def check(self, artifact: Artifact, context: object) -> None:
            raise Infeasible("out of reach")

    monkeypatch.setitem(METHODS, "halve", Method((Refuses(),)))
    with pytest.raises(Infeasible):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_is_named_with_those_there_are(recipe: Recipe, tmp_path: Path):
    with pytest.raises(BadInput, match=r"'entropik'; known are entropic"):
        run(recipe.model_copy(update={"method": "entropik"}), tmp_path / "out")


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "tpu"])
def test_a_device_that_is_not_there_is_refused(name: str):
    if name.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(BadInput, match=r"device"):
        prepare.find_device(name)


def test_a_run_that_finished_no_stage_is_not_in_the_way_of_the_next(tmp_path: Path):
    out, recipe = tmp_path / "o", make(model="model.pt", seed=1)
    with open_workspace(out, recipe, resume=False, force=False):
        pass
    (out / "stages").mkdir()  # an error before the first stage leaves no more than this
    with open_workspace(out, make(model="model.pt", seed=2), resume=False, force=False):
        pass
    assert from_toml(out / "recipe.toml").seed == 2
    (out / "stages/00-dense").mkdir(parents=True)
    with pytest.raises(BadInput, match="holds another run"):
        open_workspace(out, recipe, resume=False, force=False).__enter__()


def test_a_cuda_device_beyond_the_last_one_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(BadInput, match="last one that torch sees is cuda:0"):
        find_device("cuda:7")


@pytest.fixture
def here_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports in this process, which is faster; tests/test_apart.py looks at processes of their own."""
    monkeypatch.setattr(exports.isolated, "export", exporters.export)


@pytest.mark.usefixtures("here_instead")
def test_a_format_with_fewer_bits_is_measured_itself_and_one_that_fails_leaves_the_others(recipe: Recipe, tmp_path: Path):
    asked = recipe.model_copy(update={"export": ("onnx", "onnx-fp16", "onnx-int8"), "calibration": 40, "int8_error": 1e-9})
    report = run(asked, tmp_path / "out")
    assert [(e.format, e.path) for e in report.exports] == [("onnx", "model.onnx"), ("onnx-fp16", "model.fp16.onnx")]
    whole, half = report.exports
    assert whole.quality is None and whole.parity is not None and whole.closeness is not None
    assert half.parity is None and half.quality is not None and half.quality.samples == report.result.quality.samples
    assert [f.format for f in report.failed_exports] == ["onnx-int8"] and "1e-09" in report.failed_exports[0].reason
    text = (tmp_path / "out/report.md").read_text()
    assert "No onnx-int8 was written" in text and "beside the model in float" in text


@pytest.mark.usefixtures("here_instead")
def test_a_file_that_loses_more_than_it_may_ends_with_the_gates_exit_code(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Less than nothing, so that the model itself, trained on nothing, is far above.
    nothing_right = Quality(metric="rightness", value=-1.0, samples=10)
    monkeypatch.setattr(harness.Harness, "quality_of", lambda self, answer: nothing_right)
    with pytest.raises(GateFailed, match=r"The export onnx-fp16 loses .* more than --max-drop") as caught:
        run(recipe.model_copy(update={"export": ("onnx", "onnx-fp16"), "max_drop": 60.0}), tmp_path / "out")
    assert caught.value.exit_code == 5
    assert "The export onnx-fp16 loses" in json.loads((tmp_path / "out/report.json").read_text())["verdict"]
    assert (tmp_path / "out/model.onnx").exists()


def test_a_missing_package_is_told_before_anything_slow(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(exporters.NEEDS, "onnx-int8", ("no_such_package",))
    with pytest.raises(exporters.MissingBackend, match=r"no_such_package.*pip install"):
        run(recipe.model_copy(update={"export": ("onnx-int8",)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_report_names_the_files_of_settings_that_were_given(
    finished: tuple[Recipe, Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe, _, report = finished
    assert report.recipe_sha256 is None and report.data_sha256 is None
    monkeypatch.setitem(METHODS, "halve", Method((Halve(),)))
    (tmp_path / "data.toml").write_text('source = "digits"\n')
    (tmp_path / "my.toml").write_text(recipe.model_copy(update={"data": str(tmp_path / "data.toml")}).to_toml())
    found = compress.run(recipe=tmp_path / "my.toml", out=tmp_path / "out")
    expected = [sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("my.toml", "data.toml")]
    assert isinstance(found, Report) and [found.recipe_sha256, found.data_sha256] == expected
