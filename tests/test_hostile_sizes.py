"""Small files that ask for much, and layers that cannot run: refused in a sentence, before memory or time is spent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from PIL import EpsImagePlugin, Image
from torch import nn
from torchvision import datasets

import exporters
from compress.checkpoint.deserialize import from_json
from compress.checkpoint.load import most_values
from compress.checkpoint.load.architectures import accepts, build
from compress.checkpoint.load.hugging_face import _harmless, _offline, _require_here
from compress.checkpoint.load.model import open_artifact
from compress.checkpoint.load.most_values import MostValues, TooMany, beyond, in_time
from compress.commands.bench_files import onnx_inputs
from compress.data import open_data, settings
from compress.data.images import colored, pixels
from compress.errors import BadInput, CompressError
from compress.recipe import make
from compress.report.records import from_json as report_from_json
from exporters import isolated
from tests.attacks.names import graph_with, small
from tests.runs import invoke

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (1, "eps", "x"),
        (1, "eps", -5.0),
        (0, "padding", (-3, -3)),
        (0, "dilation", (0, 0)),
        (2, "p", float("nan")),
    ],
)
def test_a_layer_that_does_not_run_is_told_and_no_internal_failure(layer: int, name: str, value: Any):
    net = small()
    if name == "p":
        net[2] = nn.Dropout()
    vars(net[layer])[name] = value
    torch.save(net, "model.pt")
    result = invoke("explain", "model.pt", "--input-shape", "3x8x8")
    # A dilation of 0 is told where it runs.
    assert result.exit_code in ((0, 2, 4) if name == "dilation" else (2, 4)) and "Internal" not in result.stderr, result.stderr


@pytest.mark.parametrize("shape", [[1, 1, 8, 5_000_000], [1, 3, 20_000, 20_000], [1, 3, -1, 8], [1, 3, 10**18, 8], [1, 3, 0, 8]])
def test_the_size_of_an_input_that_only_a_file_tells_is_believed_within_bounds(shape: list[int]):
    graph_with(Path("model.compressed"), lambda document: document["nodes"][0].update(shape=shape))
    with pytest.raises(BadInput, match=r"taken from a file are sizes of up to \d+ values\. Say the shape with --input-shape"):
        open_artifact("model.compressed")
    assert open_artifact("model.compressed", input_shapes=[(3, 8, 8)]).inputs[0].shape == (1, 3, 8, 8)


def test_what_a_model_makes_of_a_small_input_is_bounded_and_more_of_a_large_one_is_not():
    net = small()
    net[2] = nn.ZeroPad2d(5000)
    torch.save(net, "model.pt")
    with pytest.raises(BadInput, match=r"values at '_?\w+' for a single input; at most 268435456 are worked with"):
        open_artifact("model.pt", input_shapes=[(3, 16, 16)])
    wide = nn.Sequential(nn.Conv2d(1, 20, 1), nn.AdaptiveAvgPool2d(1)).eval()
    torch.save(wide, "wide.pt")
    assert open_artifact("wide.pt", input_shapes=[(1, 4000, 4000)]).cost.macs == 20 * 4000**2


@pytest.mark.parametrize("name", ["model.pt", "weights.safetensors"])
@pytest.mark.parametrize("size", [b"\x80" + 3 * b"\0" + 8 * b"\xff", b"\x80" + 11 * b"\x7f", 12 * b"\xff"])
def test_an_archive_whose_part_lies_beyond_any_file_is_refused(name: str, size: bytes):
    header = bytearray(tarfile.TarInfo("pickle").tobuf())
    header[124:136] = size
    header[148:156] = 8 * b" "
    header[148:156] = b"%06o\0 " % sum(header)
    Path(name).write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(BadInput):
        open_artifact(name, input_shapes=[(3, 8, 8)])


def test_an_architecture_is_no_larger_than_the_weights_that_it_is_for():
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), "net.pt")
    with pytest.raises(BadInput, match="far larger than these weights"):
        open_artifact("net.pt", arch="torchvision:resnet18", arch_kwargs={"num_classes": 10**6}, input_shapes=[(3, 32, 32)])
    assert open_artifact("net.pt", arch="torchvision:resnet18", input_shapes=[(3, 32, 32)]).cost.macs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"depth": 10**9}, "that a network has"), ({"depth": 9_900, "embed_dim": 1, "num_heads": 1}, "tensors")],
)
def test_an_architecture_has_no_millions_of_layers(arguments: dict[str, int], said: str):
    pytest.importorskip("timm")
    with pytest.raises(BadInput, match=said):
        build("timm:vit_tiny_patch16_224", arguments, 5_000_000)


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": 10**5},
        {"depth_multiplier": 1e9},
        {"depths": [3, 10**6]},
        {"depths": [[3], [{"block_sizes": [10**8]}]]},
        {"num_labels": 3 * 10**7},
        {"vision_config": {"num_hidden_layers": 10**8}},
        {"attention_types": [[["global"], 10**8]]},
        {"hidden_size": 10**8},
    ],
)
def test_numbers_that_no_network_has_are_found_at_any_depth(arguments: dict[str, object]):
    assert beyond(arguments)


def test_numbers_that_networks_have_are_let_be():
    known = {"vocab_size": 262_144, "max_position_embeddings": 10_485_760, "rope_theta": 10**9, "num_labels": 21_843}
    more = {"depth": 152, "depths": [3, 3, 27, 3], "layer_norm_eps": 1e-12, "drop": 0.1, "text_config": {"width_mult": 1.4}}
    parts = {"depth_decoder_config": {"vocab_size": 128_256, 5: "five"}, "vocab_size_per_layer_input": 262_144}
    assert not beyond(known | more | parts)


def test_making_an_architecture_ends_and_leaves_the_alarms_of_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(most_values, "SECONDS", 0.2)
    heard, before = list[int](), signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.6)
    try:
        with pytest.raises(TooMany, match="takes longer"), in_time(0):
            while True:
                pass
        with in_time(0):
            pass
        assert not heard
        time.sleep(0.6)
        assert heard == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_picture_that_is_gone_through_thousands_of_times_is_refused():
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save("one.jpg", progressive=True)
    whole = Path("one.jpg").read_bytes()
    last = whole.rindex(b"\xff\xda")
    Path("many.jpg").write_bytes(whole[:-2] + 200 * whole[last:-2] + whole[-2:])
    assert pixels("one.jpg", (16, 16), 3, None).shape == (16, 16, 3)
    for size in ((16, 16), (8, 8)):
        with pytest.raises(ValueError, match="scans"):
            pixels("many.jpg", size, 3, "crop")
    with pytest.raises(ValueError, match="scans"):
        colored("many.jpg")


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (3, 2000)])
def test_a_strip_of_pixels_is_cut_before_it_is_scaled(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    strip = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(strip).save("strip.png")
    made, scaled = list[int](), Image.Image.resize

    def noted(self: Image.Image, size: tuple[int, int], *more: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return scaled(self, size, *more)

    monkeypatch.setattr(Image.Image, "resize", noted)
    found = pixels("strip.png", (32, 32), 3, "crop")
    assert found.shape == (32, 32, 3) and made == [32 * 32]
    middle = strip[:, len(strip[0]) // 2] if size[0] < size[1] else strip[len(strip) // 2, :]
    assert abs(found.mean() - middle.mean()) < 60  # of what lies in the middle, and of nothing else


@pytest.mark.parametrize("name", ["seed", "arch", "data", "calibration", "method", "unknown"])
def test_a_number_of_thousands_of_digits_is_told(name: str):
    Path("recipe.toml").write_text(f"{name} = 0x{'f' * 6000}\n")
    torch.save(small(), "model.pt")
    done = invoke("run", "model.pt", "--recipe", "recipe.toml", "--data", "digits", "--out", "out")
    assert done.exit_code == 2 and "hundreds of digits" in done.stderr, done.stderr
    with pytest.raises(BadInput, match="number of thousands of digits"):
        make(**{"model": "a.pt", "data": "digits", "seed": 10**5000})


def test_a_report_with_a_number_of_hundreds_of_digits_is_refused():
    with pytest.raises(BadInput, match="hundreds of digits"):
        report_from_json('{"schema": 1, "bytes": ' + "9" * 4000 + "}")


def test_a_graph_of_millions_of_lists_is_not_parsed():
    with pytest.raises(BadInput, match="lists and tables"):
        from_json('{"format": [' + 4_000_001 * "[],")


@pytest.mark.parametrize("first", [-5, 0, 3, 2**62])
def test_the_batch_of_an_onnx_file_is_a_number(first: int):
    value = onnx.helper.make_tensor_value_info("x", 1, [first, 4])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.helper.make_tensor_value_info("y", 1, [first, 4])])
    onnx.save(onnx.helper.make_model(graph), "net.onnx")
    if first > 3:
        with pytest.raises(BadInput, match="4611686018427387904x4 values; at most"):
            onnx_inputs(Path("net.onnx"), 2)
    elif first < 0:
        with pytest.raises(BadInput, match="no fixed shape"):
            onnx_inputs(Path("net.onnx"), 2)
    else:
        assert onnx_inputs(Path("net.onnx"), 2)[0].shape == (first or 2, 4)


@pytest.mark.parametrize(
    "config",
    [
        {"backbone": "microsoft/resnet-50"},
        {"deep": [{"backbone": "hf-hub:x/y"}]},
        {"backbone": "resnet50"},
        {"use_timm_backbone": True, "backbone": "resnet50", "backbone_kwargs": {"out_indices": [1]}},
        {"backbone_config": {"architecture": "local-dir:here"}},
    ],
)
def test_a_config_takes_no_part_of_it_from_elsewhere(config: dict[str, Any]):
    with pytest.raises(BadInput, match="would be fetched or opened"):
        _require_here(config, "folder")
    _require_here({"model_type": "timm_backbone", "backbone": "resnet50", "name": "a/b"}, "folder")
    _require_here({"use_timm_backbone": True, "backbone": "resnet50"}, "folder")


def test_the_hub_is_asked_nothing_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    constants = ModuleType("huggingface_hub.constants")
    constants.HF_HUB_OFFLINE = False  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with _offline():
        assert os.environ["HF_HUB_OFFLINE"] == "1" and constants.HF_HUB_OFFLINE is True
    assert os.environ["HF_HUB_OFFLINE"] == "0" and constants.HF_HUB_OFFLINE is False


def test_values_beyond_the_weights_are_not_made_first():
    with pytest.raises(TooMany), MostValues(1000):
        torch.empty(2**40, 2**10)


def test_no_part_of_a_config_names_code_or_a_file():
    config = {
        "a": 1,
        "auto_map": {},
        "text_config": {"model_type": "t", "checkpoint_path": "/x", "_attn": "y", "deep": {"quantization_config": {}}},
        "parts": [{"auto_map": 1, "b": 2}],
    }
    assert _harmless(config) == {"a": 1, "text_config": {"model_type": "t", "deep": {}}, "parts": [{"b": 2}]}


def test_arrays_that_are_packed_beyond_reason_are_not_unpacked():
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1100, 2**20)})
        for _ in range(1100):
            file.write(bytes(2**20))
    with pytest.raises(BadInput, match=r"hold arrays of 1.2 GB"):
        open_data("bomb.npz")


def test_threads_have_a_limit():
    Path("model.pt").touch()
    done = invoke("run", "model.pt", "--data", "digits", "--threads", 10**8)
    assert done.exit_code == 2 and "1024" in done.stderr


@pytest.mark.parametrize("arguments", [{"weights_backbone": "DEFAULT"}, {"weights": "DEFAULT"}, {"pretrained_backbone": True}])
def test_no_argument_of_a_library_loads_weights(arguments: dict[str, Any]):
    with pytest.raises(BadInput, match=r"the weights come from the model file"):
        build("torchvision:fcn_resnet50", arguments)
    with pytest.raises(BadInput, match=r"the weights come from the model file"):
        build("timm:resnet18", arguments)


@pytest.mark.parametrize("name", datasets.__all__)
def test_a_data_set_of_torchvision_only_reads(name: str, here: Path):
    """LSUN unpickles a file of the current folder, Cityscapes unpacks archives, Caltech101 makes folders."""
    (here / "there").mkdir()
    with pytest.raises(BadInput):
        open_data(f"torchvision:{name}@there")
    assert [str(path) for path in here.rglob("*")] == [str(here / "there")]


def test_a_data_set_that_does_more_than_read_is_refused_unopened(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "LSUN", lambda **_: pytest.fail("it was opened"))
    with pytest.raises(BadInput, match="does more than read"):
        open_data("torchvision:LSUN@.")


@pytest.mark.parametrize("leads_to", ["..", "/"])
def test_a_link_in_a_circle_is_not_followed_by_torchvision_either(leads_to: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "ImageFolder", lambda **_: pytest.fail("it was opened"))
    Path("pictures/a").mkdir(parents=True)
    Path("pictures/a/link").symlink_to(leads_to)
    with pytest.raises(BadInput, match="a link leads to a folder that is there, or around it"):
        open_data("torchvision:ImageFolder@pictures")


def test_no_picture_of_a_data_set_starts_another_program(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "sh")
    monkeypatch.setattr(subprocess, "check_call", lambda *told, **_: asked.append(told))
    for number in range(12):
        path = Path(f"pictures/{'ab'[number % 2]}/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(BadInput, match="Ghostscript"):
        open_data("torchvision:ImageFolder@pictures")
    assert not asked and EpsImagePlugin.gs_binary == "sh"


@pytest.mark.parametrize("arch", ["timm:resnet18", "hf:.", "resnet18"])
def test_a_library_is_none_that_lies_in_the_current_folder(arch: str, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(here))])
    (here / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    for library in ("timm", "transformers"):
        monkeypatch.delitem(sys.modules, library, raising=False)
        (here / f"{library}.py").write_text("import pathlib\npathlib.Path('it-ran').mkdir()\n")
    for asked in (lambda: build(arch, {}), lambda: accepts(arch, "anything")):
        with suppress(CompressError):
            asked()
    assert not (here / "it-ran").exists()


def plant(folder: Path) -> None:
    """Packages that leave a trace where somebody imports them."""
    for package in ("exporters", "numpy", "compress"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("import pathlib\npathlib.Path('it-ran').mkdir()\n")


def test_no_exporting_process_runs_anything_of_the_current_folder(here: Path):
    plant(here)
    isolated.export("onnx", small(), (torch.zeros(1, 3, 8, 8),), here / "model.onnx")
    assert not (here / "it-ran").exists()


@pytest.mark.parametrize(
    "command",
    [
        "bench model.onnx --rounds 5",
        "run model.pt --data digits --nproc 2 --epochs 0 --depth 0 --align 1 --rounds 5 --calibration 64 --allow-doubtful",
    ],
)
def test_no_process_runs_anything_of_the_current_folder(command: str, here: Path):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    torch.save(model, here / "model.pt")
    exporters.export("onnx", model, (torch.zeros(1, 1, 8, 8),), here / "model.onnx")
    plant(here)
    # As the console script: without the current folder in front.
    words = ["-P", "-m", "compress", *command.split()]
    done = subprocess.run(
        [sys.executable, *words], cwd=here, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and not (here / "it-ran").exists(), done.stderr


@pytest.mark.parametrize("name", ["VisionDataset", "MNIST", "ImageNet"])
def test_a_data_set_that_does_not_open_is_a_sentence(name: str):
    Path("d/MNIST/processed").mkdir(parents=True)
    for file in ("training.pt", "test.pt"):
        (Path("d/MNIST/processed") / file).write_bytes(b"cos\nsystem\n(S'mkdir it-ran'\ntR.")
    with pytest.raises(BadInput, match=r"does not open in d|does more than read there"):
        open_data(f"torchvision:{name}@d")
    assert not Path("it-ran").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": -5}, "pixels from 1 to 16,384"),
        ({"size": 2**63 - 1}, "pixels from 1 to 16,384"),
        ({"size": float("nan")}, "needed is a finite number"),
        ({"augment": {"shift": 10**9}}, "1024"),
        ({"size": (0, 0)}, "pixels from 1 to 16,384"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "mean is a number up to"),
        ({"mean": (1e30,), "std": (1.0,)}, "mean is a number up to"),
        ({"mean": (0.0,), "std": (1e-30,)}, "std one between"),
    ],
)
def test_a_description_of_data_that_makes_no_sense_is_told(values: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        settings.make(**values)


def test_scores_that_are_no_numbers_are_told():
    net = small()
    net[2] = nn.Threshold(0.0, float("nan"))
    torch.save(net, "model.pt")
    random = np.random.default_rng(0)
    np.savez("data.npz", x=random.standard_normal((40, 3, 8, 8)).astype(np.float32), y=np.arange(40) % 2)
    with pytest.raises(CompressError, match="NaN or infinite scores"):
        import compress

        compress.analyze("model.pt", data="data.npz", timed=False)
