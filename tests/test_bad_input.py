"""Whatever a person can get wrong ends in one clear sentence and an exit code, with nothing half-written."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

import compress
import exporters
from compress.checkpoint.save import require_place
from compress.cli.main import cli
from compress.data import check_output, from_arrays
from compress.data.checks import by_position
from compress.data.objects import open_objects
from compress.errors import BadInput, CompressWarning
from compress.measure.quality import METRICS
from compress.pipeline import doubts
from compress.recipe import make
from compress.stage import Context
from exporters.onnx import OPSETS
from tests.runs import over

QUICK = ("--target", "params=0.5", "--align", "1", "--epochs", "0", "--rounds", "5", "--calibration", "40", "--allow-doubtful")
"""Of a net that was never trained."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["run", *map(str, arguments)])


def refused(result: Result, exit_code: int = 2, out: str = "out") -> str:
    """The sentence, after checking that it is the only one and that nothing was written."""
    lines = [line for line in result.stderr.splitlines() if not line.endswith("...") and not line.startswith("Warning: ")]
    assert result.exit_code == exit_code, result.output
    assert len(lines) == 1 and lines[0].startswith("Error: ") and lines[0].endswith((".", "?")), result.stderr
    assert "Traceback" not in result.output and not result.stdout
    assert not Path(out).exists()
    return lines[0]


def small_net(classes: int = 10, channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    ).eval()


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.sum() > 0:
            x = -x
        return self.fc(x.mean((2, 3)))


class TwoInputs(nn.Module):
    """A model that one image is not enough for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc(self.conv(torch.cat([a, b], 1)).mean((2, 3)))


class Frozen(nn.Module):
    """Every channel is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Canary:
    """A pickle that would touch a file when it is opened."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("canary",)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder of its own, with a good model in it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(small_net(), "model.pt")


def arrays(classes: int = 10, size: int = 8, labels: int | None = None) -> None:
    """A good data.npz, or one with a twist."""
    random = np.random.default_rng(0)
    y = np.arange(80) % classes if labels is None else np.full(80, labels)
    np.savez("data.npz", x=random.integers(0, 255, (80, size, size), dtype=np.uint8), y=y)


# The model file


def test_a_missing_model_file():
    assert "There is no model file no.pt" in refused(run("no.pt", "--data", "digits", *QUICK))


def test_a_folder_instead_of_a_model():
    Path("folder").mkdir()
    assert "folder" in refused(run("folder", "--data", "digits", *QUICK))


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"", "is empty"), (b"<!DOCTYPE html><html>", "web page"), (b"hello", "text file"), (b"\x80\x02.", "model")],
)
def test_a_file_that_is_no_model(content: bytes, part: str):
    Path("bad.pt").write_bytes(content)
    assert part in refused(run("bad.pt", "--data", "digits", *QUICK))


def test_a_truncated_model_file():
    Path("cut.pt").write_bytes(Path("model.pt").read_bytes()[:-300])
    assert "truncated or damaged" in refused(run("cut.pt", "--data", "digits", *QUICK))


def test_a_pickle_with_foreign_code_is_not_run():
    torch.save({"state_dict": Canary()}, "evil.pt")
    with zipfile.ZipFile("evil.pt") as archive:
        assert any(b"mkdir" in archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    sentence = refused(run("evil.pt", "--data", "digits", *QUICK))
    assert "mkdir" in sentence and "--trust-pickle" in sentence and not Path("canary").exists()


def test_a_plain_pickle_is_not_run():
    Path("evil.pkl").write_bytes(pickle.dumps(Canary()))
    refused(run("evil.pkl", "--data", "digits", *QUICK))
    assert not Path("canary").exists()


def test_weights_without_an_architecture():
    torch.save(small_net().state_dict(), "weights.pt")
    assert "--arch" in refused(run("weights.pt", "--data", "digits", *QUICK))


def test_weights_for_another_architecture():
    torch.save(small_net().state_dict(), "weights.pt")
    sentence = refused(run("weights.pt", "--arch", "torchvision:resnet18", "--data", "digits", *QUICK))
    assert "conv1.weight is missing" in sentence and sentence.count("is missing") + sentence.count("is unexpected") <= 5


@pytest.mark.parametrize("arch", ["torchvision:resnet19", "nowhere:net", "no_colon", "nothing.py:net"])
def test_an_unknown_architecture(arch: str):
    torch.save(small_net().state_dict(), "weights.pt")
    refused(run("weights.pt", "--arch", arch, "--data", "digits", *QUICK))


def test_weights_that_are_not_numbers():
    net = small_net()
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = float("nan")
    torch.save(net, "nan.pt")
    assert "NaN" in refused(run("nan.pt", "--data", "digits", *QUICK))


def test_control_flow_that_depends_on_data_names_the_line():
    torch.save(Branching().state_dict(), "weights.pt")
    sentence = refused(run("weights.pt", "--arch", f"{__file__}:Branching", "--data", "digits", *QUICK), exit_code=4)
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "if x.sum() > 0" in text)
    assert f"test_bad_input.py:{line}" in sentence


def test_a_model_with_two_inputs_says_what_is_needed():
    torch.save(TwoInputs().state_dict(), "weights.pt")
    assert "--input-shape" in refused(run("weights.pt", "--arch", f"{__file__}:TwoInputs", "--data", "digits", *QUICK))


def test_a_model_in_which_everything_is_frozen():
    torch.save(Frozen().state_dict(), "weights.pt")
    refused(run("weights.pt", "--arch", f"{__file__}:Frozen", "--data", "digits", *QUICK), exit_code=4)


# The data


def test_no_data():
    assert "--data" in refused(run("model.pt", *QUICK))


@pytest.mark.parametrize("data", ["nowhere", "nowhere.npz", "torchvision:CIFAR10", "module:no", "data.toml"])
def test_data_that_does_not_exist(data: str):
    refused(run("model.pt", "--data", data, *QUICK))


def test_an_empty_folder():
    Path("images").mkdir()
    assert "images" in refused(run("model.pt", "--data", "images", *QUICK))


def test_a_single_class():
    arrays(labels=0)
    assert "class" in refused(run("model.pt", "--data", "data.npz", *QUICK))


def test_labels_that_the_model_has_no_output_for():
    arrays(classes=12)
    sentence = refused(run("model.pt", "--data", "data.npz", *QUICK))
    assert "12" in sentence or "11" in sentence


def test_images_with_the_wrong_number_of_channels():
    torch.save(small_net(channels=4), "four.pt")
    assert "hannel" in refused(run("four.pt", "--data", "digits", *QUICK))


def test_images_of_the_wrong_size():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    torch.save(net, "fixed.pt")
    arrays(size=12)
    assert "12x12" in refused(run("fixed.pt", "--data", "data.npz", *QUICK))


def test_too_many_unreadable_images_are_counted_and_named():
    for name in ("cat", "dog"):
        (Path("images") / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), i * 20).save(f"images/{name}/{i}.png")
    for i in range(5):
        Path(f"images/cat/{i}.png").write_bytes(b"no image")
    torch.save(small_net(classes=2), "two.pt")
    assert ".png" in refused(run("two.pt", "--data", "images", *QUICK))


# Settings


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--method", "magic"), "entropic"),
        (("--target", "params=0"), "params=0"),
        (("--target", "params=-1"), "params=-1"),
        (("--target", "macs=1.5"), "macs=1.5"),
        (("--target", "flops=0.5"), "flops=0.5"),
        (("--target", "half"), "half"),
        (("--target", "size=0MB"), "size=0MB"),
        (("--target", "size=5parsec"), "size=5parsec"),
        (("--tolerance", "2"), "--tolerance"),
        (("--align", "0"), "--align"),
        (("--epochs", "-1"), "--epochs"),
        (("--metric", "beauty"), "beauty"),
        (("--loss", "nowhere:loss", "--epochs", "1"), "nowhere"),
        (("--export", "tflight"), "tflight"),
        (("--device", "tpu9"), "tpu9"),
        (("--input-shape", "big"), "big"),
        (("--arch-kwargs", "width"), "KEY=VALUE"),
        (("--recipe", "nothing.toml"), "nothing.toml"),
    ],
)
def test_a_setting_that_cannot_be(flags: tuple[str, ...], part: str):
    assert part in refused(run("model.pt", "--data", "digits", *over(("--epochs", "0", "--calibration", "40"), *flags)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("flags", [("--device", "cuda"), ("--runtime", "ort-cuda")])
def test_cuda_asked_for_and_absent(flags: tuple[str, ...]):
    assert "cuda" in refused(run("model.pt", "--data", "digits", *QUICK, *flags)).lower()


def test_a_target_below_what_can_be_reached_names_the_reachable_range():
    sentence = refused(run("model.pt", "--data", "digits", *over(QUICK, "--target", "params=0.0001")), exit_code=3)
    assert "params=" in sentence


def test_a_recipe_with_an_unknown_setting():
    Path("recipe.toml").write_text('model = "model.pt"\nspeed = 11\n')
    assert "speed" in refused(run("--recipe", "recipe.toml"))


# Where it goes


def test_the_place_for_results_is_a_file():
    Path("file").write_text("mine")
    result = run("model.pt", "--data", "digits", *QUICK, "--out", "file")
    assert "file" in refused(result) and Path("file").read_text() == "mine"


def test_a_folder_and_a_link_that_leads_nowhere_are_no_places_for_one_file_and_one_model():
    Path("folder").mkdir()
    done = CliRunner().invoke(cli, ["export", "model.pt", "--input-shape", "1x8x8", "--out", "folder", "--force"])
    assert done.exit_code == 2 and "--out folder is a folder; needed is the file to write" in done.stderr
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(BadInput, match=r"dangling, is a link that leads nowhere"):
        require_place(Path("dangling"))


def test_the_place_for_results_holds_something_else():
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("mine")
    result = run("model.pt", "--data", "digits", *QUICK, "--out", "mine")
    assert "--force" in refused(result) and os.listdir("mine") == ["thesis.tex"]


def test_the_place_for_results_cannot_be_written():
    assert "/proc/out" in refused(run("model.pt", "--data", "digits", *QUICK, "--out", "/proc/out"))


def test_ctrl_c_says_how_to_go_on_and_the_folder_is_not_taken_for_a_finished_run(monkeypatch: pytest.MonkeyPatch):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    arrays()
    monkeypatch.setattr("compress.refit.refit.refitted", interrupt)
    result = run("model.pt", "--data", "data.npz", *QUICK)
    assert result.exit_code == 130 and "--resume" in result.stderr and "Traceback" not in result.output
    assert not Path("out/report.json").exists()
    again = run("model.pt", "--data", "data.npz", *QUICK)
    assert again.exit_code == 2 and "--resume" in again.stderr
    other = run("model.pt", "--data", "data.npz", *QUICK, "--seed", 7, "--resume")
    assert other.exit_code == 2 and "--seed" in other.stderr


def test_a_misspelled_setting_is_answered_with_the_right_one():
    Path("recipe.toml").write_text('model = "model.pt"\ntargget = "params=0.5"\n')
    assert "no setting 'targget'. Did you mean target?" in refused(run("--recipe", "recipe.toml"))


@pytest.mark.parametrize("flags", [("--seed", "-1"), ("--max-drop", "-1"), ("--opset", "16"), ("--opset", "26")])
def test_a_setting_out_of_range_is_refused_before_anything_is_done(flags: tuple[str, str]):
    assert flags[0] in refused(run("model.pt", "--data", "digits", *QUICK, *flags))


def test_the_opsets_of_the_settings_are_those_of_the_exporter():
    assert make(opset=OPSETS[0]) and make(opset=OPSETS[-1])
    for outside in (OPSETS[0] - 1, OPSETS[-1] + 1):
        with pytest.raises(BadInput, match="opset"):
            make(opset=outside)


@pytest.mark.parametrize("verb", [compress.run, compress.analyze, compress.explain, compress.export])
def test_weights_in_place_of_a_model_are_refused_with_what_to_do(verb: Callable[[Any], object]):
    with pytest.raises(BadInput, match=r"is a dict; needed is a module, or the path.*load_state_dict"):
        verb(dict(small_net().state_dict()))


def test_target_and_tolerance_together_are_refused():
    sentence = refused(run("model.pt", "--data", "digits", *QUICK, "--tolerance", "0.01"))
    assert "--target params=0.5 and --tolerance 0.01" in sentence and "Give one of them" in sentence


def test_fewer_classes_than_outputs_are_noted():
    arrays(classes=3)
    noted = compress.plan("model.pt", data="data.npz", calibration=40, out=None).notes
    assert any(n.startswith("The data has 3 classes, the model 10 outputs: labels are taken as outputs 0 to 2") for n in noted)


def test_images_in_color_for_a_grey_model_are_told_without_words_of_torch_and_the_remedy_works():
    colors = np.random.default_rng(0).integers(0, 255, (80, 8, 8, 3), dtype=np.uint8)
    np.savez("color.npz", x=colors, y=np.arange(80) % 10)
    sentence = refused(run("model.pt", "--data", "color.npz", *QUICK))
    assert "The data gives inputs of 3x8x8, the model's first layer (0) takes 1 channel. Set channels = 1" in sentence
    Path("data.toml").write_text('source = "color.npz"\nchannels = 1\n')
    assert compress.plan("model.pt", data="data.toml", calibration=40, out=None).plan.edits
    # What a program holds is used as it is: there is nothing to convert it.
    with pytest.raises(BadInput, match=r"takes 1 channel\. Give the data it was trained on\.$"):
        compress.plan("model.pt", data=(torch.rand(80, 3, 8, 8), torch.arange(80) % 10), out=None)


def test_classes_that_are_some_of_the_models_are_taken_by_position_with_a_warning():
    arrays(classes=3)
    data = from_arrays(dict(np.load("data.npz")), classes=("cat", "dog", "horse"))
    said = by_position(data, (1, 10))
    assert said is not None and "3 classes (cat, dog, horse) and the model 10 outputs, so labels are taken by position" in said
    assert by_position(data, (1, 3)) is None and check_output(data, (1, 10)) == ()
    assert by_position(from_arrays(dict(np.load("data.npz"))), (1, 10)) is None  # numbers are the model's own
    with pytest.warns(CompressWarning, match=r"as classes = \[...\] in compress\.data\.open_objects"):
        compress.plan("model.pt", data=data, calibration=40, out=None, allow_doubtful=True)


@pytest.mark.parametrize(("own", "more"), [(True, {}), (False, {"from_scratch": True}), (False, {})])
def test_samples_of_training_that_quality_is_counted_on_are_a_warning(own: bool, more: dict[str, Any]):
    x, y = torch.rand(80, 1, 8, 8), torch.arange(80) % 10
    data = open_objects({"train": (x, y)} | ({"test": (x, y)} if own else {}))
    recipe = make(model="model.pt", data="in memory (x)", target="params=0.5", **more)
    said = doubts.seen_in_training(Context(None, data, recipe, torch.device("cpu")), METRICS["top1"])  # type: ignore[arg-type]
    assert (said is None) == (own or bool(more))
    assert said is None or ("top1 is counted on 16 samples" in said and 'data={"train": ..., "test": ...}' in said)


def test_images_of_another_size_name_the_layer_that_does_not_fit():
    torch.save(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval(), "fixed.pt")
    arrays(size=12)
    sentence = refused(run("fixed.pt", "--data", "data.npz", *QUICK))
    assert "layer 3 takes 288 values and gets 800" in sentence and "size = [" in sentence


def test_a_stored_model_and_data_of_another_shape():
    Path("plan.json").write_text('{"schema": 1, "edits": []}')
    compress.apply("plan.json", "model.pt", input_shape=(1, 8, 8))
    np.savez("color.npz", x=np.arange(80 * 192, dtype=np.uint8).reshape(80, 8, 8, 3), y=np.arange(80) % 10)
    assert "takes 1 channel" in refused(run("model.compressed", "--data", "color.npz", *QUICK))


def test_an_input_shape_that_the_model_does_not_take():
    with pytest.raises(BadInput, match=r"input shape is 3x8x8, the model's first layer \(0\) takes 1 channel\. .*input_shape="):
        compress.explain("model.pt", input_shape=(3, 8, 8))


def test_a_metric_of_another_task():
    sentence = refused(run("model.pt", "--data", "digits", *QUICK, "--metric", "psnr"))
    assert "psnr does not suit the task classification; needed is top1 or top5 or agreement" in sentence


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("torchvision:NOPE@x", "no data set 'NOPE'"),
        ("torchvision:CIFAR11@x", "Did you mean CIFAR1"),
        ("", "torchvision:NAME@DIR"),
    ],
)
def test_data_of_torchvision_is_named_exactly(data: str, part: str):
    assert part in refused(run("model.pt", "--data", data, *QUICK))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("sise = 8", "no setting 'sise'. Did you mean size?"),
        ("zzz = 1", "no setting 'zzz'. Known are source"),
        ("[augment]\nflop = true", "no setting 'augment.flop'. Did you mean flip?"),
    ],
)
def test_a_misspelled_data_setting_is_answered_with_the_right_one(line: str, part: str):
    Path("data.toml").write_text(f'source = "digits"\n{line}\n')
    assert part in refused(run("model.pt", "--data", "data.toml", *QUICK))


@pytest.mark.parametrize(
    ("flags", "needle"),
    [
        (("--metric", "own.py:fails"), r"--metric own\.py:fails fails \(RuntimeError: boom\)"),
        (("--metric", "own.py:nothing"), "gives nan; needed is a number"),
        (("--metric", "own.py:words"), "gives many; needed is a number"),
        (("--loss", "own.py:fails", "--epochs", "1"), r"--loss own\.py:fails fails \(RuntimeError: boom\)"),
        (("--input-shape", "9" * 5000 + "x8x8"), "needed is CxHxW"),
        (("--input-shape", "\u00b2x8x8"), "needed is CxHxW"),
        (("--input-shape", "1x9999999x9999999"), "needed is CxHxW"),
    ],
)
def test_functions_of_the_user_that_fail_and_shapes_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], needle: str
):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "def fails(*_): raise RuntimeError('boom')\ndef nothing(*_): return float('nan')\ndef words(*_): return 'many'\n"
    )
    torch.save(small_net(), "model.pt")
    result = run("model.pt", "--data", "digits", *over(QUICK, *flags))
    assert result.exit_code == 2 and re.search(needle, result.stderr), result.output


@pytest.mark.parametrize(("change", "needle"), [("weight", "weights up to 1e"), ("variance", "negative variances in 1")])
def test_values_that_compute_infinities_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, needle: str):
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    with torch.no_grad():
        if change == "weight":
            net[0].weight.fill_(1e30)  # type: ignore[union-attr,operator]
        else:
            net[1].running_var.fill_(-1)  # type: ignore[union-attr,operator]
    torch.save(net, "model.pt")
    assert re.search(needle, refused(run("model.pt", "--data", "digits", *QUICK)))


@pytest.mark.parametrize(("setting", "value"), [("rounds", 10**20), ("epochs", 1e12)])
def test_more_than_anybody_can_wait_for_is_no_setting(setting: str, value: float):
    with pytest.raises(BadInput, match=f"--{setting}"):
        make(model="a.pt", data="digits", **{setting: value})


@pytest.mark.parametrize("name", sorted(exporters.CALIBRATED))
def test_eight_bits_without_real_inputs_are_refused_before_anything_is_opened(tmp_path, name: str, monkeypatch):
    monkeypatch.setattr(exporters, "require", lambda _: None)
    with pytest.raises(BadInput, match=r"real inputs, and none were given\. Add data="):
        compress.export(tmp_path / "no such model.pt", format=name, out=tmp_path / "out", input_shape="1x8x8")


@pytest.mark.parametrize("setting", ["epochs", "lr", "temperature", "weight_decay", "max_drop", "clip"])
def test_infinity_is_no_setting(setting: str):
    with pytest.raises(BadInput, match=f"--{setting.replace('_', '-')} is inf; needed is a finite number"):
        make(model="a.pt", data="digits", **{setting: float("inf")})


def test_a_core_that_is_not_there():
    with pytest.raises(BadInput, match="cpu names core 4095, and there are "):
        compress.bench("model.onnx", cpu="4095")
