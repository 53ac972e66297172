"""A picture becomes the input in the way that a package says, and gives what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from runs import made_run
from torch import nn

import compress
from compress.data import open_data
from compress.packaging.manifest import _input, decision
from compress.packaging.readme import readme
from compress.packaging.samples import Samples
from compress.recipe import make
from compress.report import records
from exporters.standalone import checksums, picture

RANDOM = np.random.default_rng(0)


def wide(mode: str) -> Image.Image:
    colors = Image.fromarray(RANDOM.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(RANDOM.integers(0, 65536, (20, 30)).astype(np.uint16))
    return colors.convert(mode)


def folder(root: Path, modes: tuple[str, ...] = ("RGB",), count: int = 6) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = wide(modes[i % len(modes)])
            exif = image.getexif()
            exif[0x112] = 6
            image.save(root / name / f"{i}.png", **({"exif": exif} if i % 2 else {}))
    return root


def settings(place: Path, source: str, *lines: str) -> Path:
    (place / "data.toml").write_text("\n".join([f'source = "{source}"', *lines]))
    return place / "data.toml"


def sampled(data) -> Samples:
    batches = data.test.batches(1, limit=2)
    inputs = tuple(tuple(x.numpy() for x in batch.inputs) for batch in batches)
    spec = data.spec
    return Samples(inputs, spec.mean, spec.std, spec.classes, spec.task, spec.preparation)


@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("upright", ["true", "false"])
def test_the_script_makes_the_inputs_that_were_measured(tmp_path, resize, channels, upright):
    root = folder(tmp_path / "p", ("RGB", "L", "RGBA", "P", "I;16", "1"))
    lines = ("size = [9, 12]", f'resize = "{resize}"', f"channels = {channels}", f"upright = {upright}", "[split]", "test = 0.5")
    data = open_data(settings(tmp_path, "p", *lines))
    samples = sampled(data)
    taken = _input(0, samples.inputs[0][0].shape, "float32", samples)
    assert taken["preparation"]["resize"] == resize and taken["preparation"]["size"] == [9, 12]
    paths = sorted(root.rglob("*.png"))
    given = torch.cat([batch.inputs[0] for batch in data.test.batches(4)])
    for number, x in zip(data.test.index.tolist(), given, strict=True):
        # float32 rounding of values up to 3
        assert np.allclose(picture.prepared(paths[number], taken), x.numpy(), atol=1e-6)


def packed(place: Path, **how: str) -> Path:
    """Of a run on wide pictures that were stretched: `place`, in which the package lies packed and unpacked."""
    run = made_run(place)
    folder(place / "p")
    settings(place, "p", "size = [8, 8]", "channels = 1", 'resize = "stretch"', "mean = [0.5]", "std = [0.25]")
    (run / "recipe.toml").write_text(make(model="model.pt", data=str(place / "data.toml")).to_toml())
    checksums.unpack(compress.package(run, out=place / "package.tar.gz", **how).path, place / "package")
    return place


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("run"), license="MIT")


def test_the_package_says_in_words_and_for_a_program_how_a_picture_becomes_the_input(package):
    manifest = json.loads((package / "package" / "manifest.json").read_text())
    said = manifest["inputs"][0]["preparation"]
    expected = {"origin": "files", "size": [8, 8], "resize": "stretch", "filter": "bilinear", "color": "gray", "upright": False}
    assert expected.items() <= said.items() and manifest["decision"]["rule"] == "largest"
    text = (package / "package" / "README.txt").read_text()
    for words in (
        "8x8",
        "without keeping its proportions",
        "bilinear",
        "luma",
        "as stored",
        "mean (0.5)",
        "std (0.25)",
        "picture.py",
    ):
        assert words in text, words


def test_the_script_in_the_package_decides_as_the_model_does(package):
    paths = sorted((package / "p").rglob("*.png"))
    command = [sys.executable, "picture.py", "--json", *map(str, paths)]
    done = subprocess.run(command, cwd=package / "package", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    data = open_data(package / "data.toml")
    with torch.no_grad():
        x = (data.train.inputs[0].read(torch.arange(len(paths))).float() / 255 - 0.5) / 0.25
        outputs = compress.load(package / "model.compressed")(x)
    # float32 sums in another order
    assert np.allclose([one["output"] for one in found], outputs.numpy(), atol=1e-5)
    assert [one["decided"] for one in found] == [[("cat", "dog", "2")[i]] for i in outputs.argmax(1).tolist()]


def test_samples_of_a_file_travel_with_what_the_runs_data_says(package):
    np.savez(package / "s.npz", input_0=RANDOM.random((3, 1, 8, 8)).astype(np.float32))
    made = compress.package(package, out=package / "other.tar.gz", samples=package / "s.npz")
    checksums.unpack(made.path, package / "other")
    (taken,) = json.loads((package / "other" / "manifest.json").read_text())["inputs"]
    assert taken["preparation"]["resize"] == "stretch" and taken["normalization"]["mean"] == [0.5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "no picture that can be read"),
        (["--model", "models/other.onnx", "x.png"], "no model models/other.onnx"),
    ],
)
def test_what_the_script_cannot_use_is_refused_in_a_sentence(package, arguments, words, capsys):
    assert picture.main(["--package", str(package / "package"), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_picture_of_another_size_is_refused_where_none_was_measured(tmp_path):
    folder(tmp_path / "p")
    samples = sampled(open_data(tmp_path / "p"))
    taken = _input(0, (1, 3, 20, 30), "float32", samples)
    assert taken["preparation"]["resize"] is None and "no other was measured" in " ".join(taken["preparation"]["steps"])
    wide("RGB").resize((9, 9)).save(tmp_path / "x.png")
    with pytest.raises(checksums.Refused, match="size is 9x9, needed is 20x30"):
        picture.prepared(tmp_path / "x.png", taken)


def test_arrays_say_that_they_were_no_files(tmp_path):
    np.savez(tmp_path / "a.npz", x=RANDOM.integers(0, 255, (20, 3, 8, 8)).astype(np.uint8), y=np.arange(20) % 2)
    samples = sampled(open_data(settings(tmp_path, "a.npz", "size = 6")))
    taken = _input(0, (1, 3, 6, 6), "float32", samples)
    steps = " ".join(taken["preparation"]["steps"])
    assert "order of the arrays" in steps and "antialias" in steps and taken["preparation"]["resize"] == "stretch"
    with pytest.raises(checksums.Refused, match="not measured on image files"):
        picture.prepared(tmp_path / "x.png", taken)
    report, _ = records.read(made_run(tmp_path))
    assert "picture.py" not in readme("x", report, samples, (1, 2), ["models/model.onnx"]).decode()


@pytest.mark.parametrize(
    ("task", "outputs", "values", "rule", "names"),
    [
        ("classification", (1, 3), [0.1, 3, 2], "largest", ["b"]),
        ("classification", (1, 1), [0.1], "one above 0", ["b"]),
        ("multilabel", (1, 3), [0.1, -3, 2], "all above 0", ["a", "c"]),
        ("regression", (1, 3), [0.1, -3, 2], None, []),
    ],
)
def test_the_manifest_says_how_outputs_are_read(task, outputs, values, rule, names):
    said = decision(Samples(((np.zeros((1, 3, 8, 8)),),), task=task), outputs)
    assert (said and said["rule"]) == rule
    assert picture.decided(np.array(values), {"decision": said, "classes": ["a", "b", "c"]}) == names


@pytest.mark.filterwarnings("ignore::compress.errors.CompressWarning")  # of an untrained model
def test_the_exported_file_says_it_too(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.save(nn.Sequential(net, nn.Linear(8, 2)).eval(), tmp_path / "model.pt")
    folder(tmp_path / "p", count=20)
    data = settings(tmp_path, "p", "size = [8, 8]", 'resize = "stretch"', "upright = true")
    quick = {"target": "macs=0.7", "method": "magnitude", "depth": 0, "align": 1, "rounds": 5, "epochs": 0, "device": "cpu"}
    compress.run(str(tmp_path / "model.pt"), data=str(data), out=tmp_path / "out", **quick)
    said = {p.key: p.value for p in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    expected = {"size": "8,8", "resize": "stretch", "filter": "bilinear", "color": "RGB", "orientation": "exif"}
    assert {f"compress.{key}": value for key, value in expected.items()}.items() <= said.items()
    assert "without keeping its proportions" in said["compress.preparation"] and len(said["compress.mean"].split(",")) == 3
