"""Small things that were said in a way that could be misread, or not at all."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

import compress
from compress.checkpoint.load.model import parse_shape
from compress.cli.main import cli
from compress.data import open_data
from compress.data.objects import open_objects
from compress.data.settings import make as data_settings
from compress.edits import Keep, Plan
from compress.errors import BadInput
from compress.graph.trace.trace import trace
from compress.pipeline.prepare import prepare
from compress.recipe import make
from compress.report import pictures, rules, sentences
from compress.report.changes import side
from compress.report.comparison import cells, compared, legend, spans
from compress.report.html.headline import of_report
from compress.report.records import Latency, Quality
from compress.stages.linearize import _costs
from compress.user.files import json_text
from compress.user.toml_values import toml
from tests.test_gate import latency, quality, report, stage


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(net(), "model.pt")
    return tmp_path


class LooksUp(nn.Module):
    """A forward that looks for what nobody gave it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * {"a": 1}["scale"]


def test_a_key_that_the_models_own_code_lacks_is_no_question_of_shapes():
    with pytest.raises(BadInput) as refused:
        compress.explain(LooksUp(), input_shape="3x8x8")
    assert "own code raises KeyError (test_said_plainly.py:" in str(refused.value) and "scale" in str(refused.value)
    assert "--input-shape" not in str(refused.value)


class TakesADictionary(nn.Module):
    """A forward of a dictionary."""

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        return x["image"] * 2


def test_an_input_that_is_a_dictionary_is_told_by_its_line():
    with pytest.raises(BadInput, match=r"indexed at test_said_plainly.py:\d+: where that is a dictionary or a tuple, wrap"):
        compress.explain(TakesADictionary(), input_shape="3x8x8")


@pytest.mark.parametrize("shape", ["32x32x3", "32,32,3"])
def test_channels_that_come_last_are_answered_with_the_shape_that_works(shape: str):
    result = invoke("explain", "model.pt", "--input-shape", shape)
    assert result.exit_code == 2 and "Channels come first: --input-shape 3x32x32." in result.stderr
    assert invoke("explain", "model.pt", "--input-shape", "3x32x32").exit_code == 0


def test_options_that_are_called_otherwise_elsewhere_are_answered_with_their_name_here():
    result = invoke("export", "model.pt", "--to", "onnx")
    assert result.exit_code == 2 and "Did you mean '--format'?" in result.stderr


def test_a_share_above_one_is_answered_with_an_example():
    result = invoke("run", "model.pt", "--data", "digits", "--target", "macs=1.5")
    assert result.exit_code == 2 and "as in macs=0.5" in result.stderr


def test_a_shape_with_too_few_axes_is_bad_input():
    result = invoke("explain", "model.pt", "--input-shape", "3x32")
    assert result.exit_code == 2 and "3x32" in result.stderr


def test_a_model_in_the_place_of_a_plan_is_told_from_a_broken_plan():
    Path("plan.json").write_text(Plan((Keep("0", 8, (0, 1, 5)),)).to_json())
    result = invoke("apply", "model.pt", "plan.json")
    assert result.exit_code == 2 and "model.pt is a model, where a plan was needed" in result.stderr
    assert "compress apply PLAN MODEL" in result.stderr
    done = invoke("apply", "plan.json", "model.pt", "--input-shape", "3x16x16")
    assert "Nothing was refitted or trained; with --data, this does both, then goes on to its --target:" in done.stdout
    assert done.stdout.splitlines()[-1] == "compress run model.pt --input-shape 3x16x16 --plan plan.json"
    Path("out").mkdir()
    Path("out-2").mkdir()
    np.savez("x.npz", x=np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8))
    given = ("--data", "x.npz", "--force")
    done = invoke("apply", "plan.json", "model.pt", *given)
    assert "Nothing was refitted or trained; this does both, then goes on to its --target:" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("--data x.npz --plan plan.json --out out-3")


def test_how_training_images_are_changed_is_said_only_where_something_is_trained():
    x = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    np.savez("x.npz", x=x, y=np.arange(40) % 10)
    for epochs in (0, 1):
        context, _ = prepare(make(model="model.pt", data="x.npz", epochs=epochs, export=("onnx",)))
        said = "Training images are changed by flips and shifts up to 2 pixels" in " ".join(context.dense.notes)
        assert said == bool(epochs)


def test_an_architecture_is_explained_without_weights():
    Path("nets.py").write_text(
        "from torch import nn\ndef made(width=8):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 3))\n"
    )
    arguments = ("--arch", "nets.py:made", "--arch-kwargs", "width=6", "--input-shape", "3x16x16")
    rows = json.loads(invoke("explain", *arguments, "--json").stdout)
    assert [row["channels"] for row in rows if row["name"] == "0"] == [6]
    assert "Within reach" in invoke("explain", *arguments).stdout
    assert "or --arch NAME alone" in invoke("explain").stderr


def test_a_missing_report_is_the_first_thing_that_gate_says():
    assert "nosuch cannot be read" in invoke("gate", "nosuch").stderr


def test_a_list_of_numbers_is_one_line_and_reads_back():
    plan = Plan((Keep("a [b, c]", 300, tuple(range(300))), Keep("d", 2, (1,))), "entropic", 8)
    text = plan.to_json()
    assert len(text.splitlines()) < 25 and json.loads(text)["edits"][0]["keep"] == list(range(300))
    odd = {"words": ["a, [b]", 'c"d', "e\nf"], "deep": [[1, 2], [{"x": [1.5, None, True]}]], "none": []}
    assert json.loads(json_text(odd)) == odd and "[1, 2]" in json_text(odd)


@pytest.mark.parametrize(
    ("lost", "said"), [(0.694, "costs 0.69 points"), (-0.14, "gains 0.14 points"), (0.0, "costs 0.00 points")]
)
def test_a_drop_is_told_in_words(lost: float, said: str):
    assert _costs(lost) == said


def test_a_share_has_the_same_unit_in_a_report_and_in_a_comparison():
    quality = Quality(metric="top1", value=0.635, samples=10)
    assert sentences.quality(quality) == sentences.figure(0.635, "top1", 100) == "63.50 %"
    found = compared({"one": report(), "other": report()}, {})
    assert found.runs[0].quality is not None
    assert cells(found)[0][6] == f"{100 * found.runs[0].quality:.2f} %"


def test_the_picture_of_a_comparison_names_its_points_and_has_their_intervals(tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = compared({"one": report(), "other": report()}, {})
    plain, whole = tmp_path / "plain.svg", tmp_path / "whole.svg"
    assert pictures.picture(found.picture, plain) and pictures.picture(found.picture, whole, spans(found))
    assert whole.read_text().count("LineCollection") > plain.read_text().count("LineCollection")
    assert whole.read_text().count("<!-- one") >= 2, "in the legend, and beside the point"


def test_samples_of_a_loader_without_an_end_are_used_once():
    random = np.random.default_rng(0)
    x, y = random.standard_normal((40, 3, 8, 8)).astype(np.float32), np.arange(40) % 10

    def forever():
        while True:
            order = random.permutation(40)
            for at in range(0, 40, 10):
                yield torch.from_numpy(x[order[at : at + 10]]), torch.from_numpy(y[order[at : at + 10]])

    data = open_objects(forever, seed=0)
    parts = [torch.cat([batch.inputs[0] for batch in part.batches(16)]) for part in (data.train, data.held_out, data.test)]
    every = torch.cat(parts).flatten(1)
    assert len(every) == 40 == len(torch.unique(every, dim=0))
    assert any("repeats itself: its 40 different samples are used, each once" in note for note in data.notes)


def test_a_recipe_holds_any_character_as_toml_does():
    for name in ("pics \U0001f600", "a\x7fb", 'quo"te\\', "tab\tnew\nline", "\u202e"):
        assert tomllib.loads(f"data = {toml(name)}\nmore = {toml({name: [name]})}") == {"data": name, "more": {name: [name]}}


@pytest.mark.parametrize("shape", ["3x3", "3", "scalar", "3x8x8x8"])
def test_an_input_of_other_axes_than_an_image_is_refused_with_a_folder(shape: str, tmp_path: Path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (40 * i, 9, 9)).save(tmp_path / "images" / part / name / f"{i}.png")
    with pytest.raises(BadInput, match="have channels, height and width"):
        open_data(tmp_path / "images", shape=parse_shape(shape))


def test_noise_is_not_told_as_a_model_that_is_no_faster():
    noisy = Latency(runtime="ort", batch=1, threads=1, p50_ms=1.0, ratio=10.5, ci95=(10.2, 11.0), noisy=True, calm=0.1)
    said = sentences._latency(noisy)
    assert said.startswith("Too noisy to tell in ort") and "other processes took the cores in 90% of its rounds" in said
    assert "Not measurably faster" in sentences._latency(noisy.model_copy(update={"noisy": False, "ci95": (0.9, 1.2)}))


@pytest.mark.parametrize(
    ("ci95", "noisy", "told"),
    [
        ((1.1, 1.4), False, "faster"),
        ((0.7, 0.9), False, "slower"),
        ((0.9, 1.1), False, "not measurably faster or slower"),
        ((2.4, 2.7), True, "too noisy to tell"),
        ((0.7, 0.9), True, "too noisy to tell, slower in these rounds"),
    ],
)
def test_the_four_outcomes_of_a_timing_have_the_same_words_wherever_they_are_told(
    ci95: tuple[float, float], noisy: bool, told: str
):
    now = latency(sum(ci95) / 2, *ci95, noisy=noisy)
    large = now.model_copy(update={"batch": 8})
    made = report(stage("remove", 0.5, now, quality(0.93)), large_batch=large)
    verdict, sides = of_report(made), compared({"a": made}, {})
    assert told in verdict.headline and sentences.reached(*made.stages).count(f"({told})") == 1
    assert sides.runs[0].pace == told and cells(sides)[0][5].endswith("?") == (told not in ("faster", "slower"))
    speed = verdict.figures[1]
    assert f"in batches of 8 {sentences.speed_up(large)}: {told}" in speed.interval
    if told not in ("faster", "slower"):
        assert speed.value == told and f"a is {told}" in legend(sides)[0]
        assert told.capitalize() in sentences._latency(now)
    if noisy:
        ruling = rules.min_speedup(side(made), 1.1)
        assert ruling.verdict == "cannot tell" and ruling.reason.startswith("too noisy to tell: ")


@pytest.mark.parametrize("command", ["analyze --no-time", "explain", "export", "bench --rounds 5"])
def test_every_command_that_looks_at_data_says_what_it_inferred(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    draws, (name, *more) = np.random.default_rng(0), command.split()
    np.savez("data.npz", x=draws.integers(0, 255, (80, 8, 8, 3)).astype(np.uint8), y=np.arange(80) % 3)
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), "net.pt")
    done = invoke(name, "net.pt", "--data", "data.npz", *more)
    assert done.exit_code == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("Note: ")]
    assert any("Normalization inferred" in line for line in told) and len(told) == len(set(told))
    if name in ("analyze", "bench"):
        assert "Note: " not in invoke(name, "net.pt", "--data", "data.npz", *more, "--quiet").stderr


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_and_inputs_of_another_precision_are_traced_in_fp32(kind: torch.dtype):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).to(kind).eval()
    traced = trace(model, (torch.randn(2, 3, 8, 8).to(kind),))
    assert traced(torch.randn(2, 3, 8, 8)).dtype == torch.float32 and model[0].weight.dtype == kind


def test_a_forward_that_fails_is_told_by_its_line():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(10, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).mean((2, 3)))

    with pytest.raises(BadInput, match=r"\(test_said_plainly.py:\d+: mat1 and mat2 shapes"):
        trace(Fails(), (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("name", ["clip", "epochs", "batch", "max_drop", "seed", "tolerance"])
def test_true_is_no_number(name: str):
    with pytest.raises(BadInput, match=f"--{name.replace('_', '-')} is True; needed is a (whole )?number"):
        make(model="m.pt", data="digits", **{name: True})
    assert make(model="m.pt", data="digits", trust_pickle=True).trust_pickle


def test_true_is_no_number_in_a_data_toml_either():
    for name, value in (("memory_gb", True), ("augment", {"shift": True})):
        with pytest.raises(BadInput, match=r"is True; needed is a (whole )?number"):
            data_settings(**{name: value})
