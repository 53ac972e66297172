"""`compress detector`: from a whole detector to a smaller one in its class, measured by its boxes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_detectors import IMAGES, TARGETS, Maps, tiny
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

import compress
from compress.cli.main import cli
from compress.commands import detector as command
from compress.detection import own_losses, wholes
from compress.detection.answered import answering
from compress.detection.coco import CocoImages, open_coco, open_parts
from compress.detection.drawn import draw
from compress.errors import BadInput, CompressWarning, EmptyData, UnsupportedModel
from compress.pipeline.prepare import opened
from compress.recipe import make
from compress.report import records
from compress.report.html.command_line import command_line


def coco(folder: Path, count: int = 6) -> CocoImages:
    return open_coco(draw(folder, count=count, size=64))


class Pyramid(nn.Module):
    out_channels = 32  # as many as the groups of the norms in the heads

    def __init__(self):
        super().__init__()
        self.maps, self.fpn = Maps(), FeaturePyramidNetwork([24, 16], 32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.maps(x))


def tiny_fcos() -> FCOS:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,), (1.0,)))
    return FCOS(Pyramid(), 4, min_size=64, max_size=64, anchor_generator=anchors)


@pytest.mark.parametrize("made_by", [tiny, tiny_fcos])
def test_the_whole_way_leaves_a_smaller_detector_its_file_and_a_report(made_by: Callable[[], nn.Module], tmp_path: Path):
    pytest.importorskip("pycocotools")
    detector = made_by().eval()
    parts = {"train": coco(tmp_path / "a", 8), "test": coco(tmp_path / "b")}
    settings = {"epochs": 1, "batch_size": 4, "rounds": 5, "calibration": 8, "method": "magnitude", "threads": 1}
    with pytest.warns(CompressWarning, match="finds next to nothing"):  # as it stands on standard error at a shell, also with -q
        made = compress.detector(detector, parts, target="macs=0.8", out=tmp_path / "out", **settings)
    report, path = records.read(tmp_path / "out")
    assert [row.stage for row in report.stages] == ["dense", "remove", "finetune"] and path.parent == made.out
    assert all(row.quality is not None and row.quality.metric == "map" and row.quality.samples == 6 for row in report.stages)
    assert report.result.macs < 0.81 * report.dense.macs and report.exactness is not None and report.exactness.holds
    assert report.exports[0].quality is not None and report.result.quality is not None
    assert report.exports[0].quality.value == pytest.approx(report.result.quality.value, abs=1e-3)
    assert any("finds next to nothing" in warning for warning in report.warnings)
    again = torch.load(made.out / "detector.pt", weights_only=False)
    assert type(again) is type(detector) and not made.model.training
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), made.model.state_dict().values(), strict=True))
    small = compress.edit(detector, made.plan, inputs=IMAGES[:1]).model
    small.load_state_dict(made.model.state_dict())
    assert compress.load(made.out / "model.compressed") is not None and (made.out / "report.html").exists()
    with pytest.raises(BadInput, match="exists already"):
        compress.detector(detector, parts, target="macs=0.8", out=tmp_path / "out", **settings)


def test_a_detector_in_a_file_is_refused_where_it_goes_another_way(tmp_path: Path):
    torch.save(tiny(), tmp_path / "whole.pt")
    recipe = make(model=str(tmp_path / "whole.pt"), trust_pickle=True, input_shape=("3x64x64",))
    with pytest.raises(UnsupportedModel, match=r"'compress detector MODEL --data COCO_FOLDER' makes it smaller"):
        opened(recipe)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"metric": "top1"}, "has no metric="),
        ({"loss": "a:b"}, "has no loss="),
        ({"plan": "plan.json"}, "has no plan="),
    ],
)
def test_settings_that_a_detector_has_no_use_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str
):
    monkeypatch.setattr(command, "packages", lambda: None)
    with pytest.raises(BadInput, match=said):
        compress.detector(tiny(), coco(tmp_path / "a"), out=tmp_path / "out", **settings)  # type: ignore[arg-type]


def test_no_detector_and_classes_that_it_does_not_know_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "packages", lambda: None)
    data = coco(tmp_path / "a")
    with pytest.raises(BadInput, match="Conv2d is no detector of torchvision"):
        compress.detector(nn.Conv2d(3, 3, 1), data, out=tmp_path / "out")
    with pytest.raises(BadInput, match="There is no data; needed is"):
        compress.detector(tiny(), "", out=tmp_path / "out")
    more = CocoImages(data.records, {**data.categories, 9: "cat"})
    with pytest.raises(BadInput, match=r"The data has 10 classes, .* the detector 4"):
        compress.detector(tiny(), more, out=tmp_path / "out")


def test_images_lie_in_squares_and_boxes_with_them(tmp_path: Path):
    folder = draw(tmp_path / "a", count=1, size=64)
    content = json.loads((folder / "annotations.json").read_text())
    from PIL import Image

    Image.new("RGB", (40, 20), (255, 0, 0)).save(folder / content["images"][0]["file_name"])
    content["images"][0] |= {"width": 40, "height": 20}
    content["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 10]}]
    (folder / "annotations.json").write_text(json.dumps(content))
    data = open_coco(folder)
    assert data.sizes() == {(20, 40)}
    image, target = data.letterboxed(80)[0]
    assert image.shape == (3, 80, 80) and target["boxes"].tolist() == [[20, 30, 60, 50]]
    assert image[0, 40, 40] == 1 and image[0, 10, 40] == pytest.approx(114 / 255)


def test_parts_of_a_folder_are_found_or_drawn(tmp_path: Path):
    draw(tmp_path / "one", count=10, size=32)
    train, test = open_parts(tmp_path / "one")
    assert (len(train), len(test)) == (8, 2) and not {r.id for r in train.records} & {r.id for r in test.records}
    draw(tmp_path / "two" / "train", count=3, size=32)
    draw(tmp_path / "two" / "valid", count=2, size=32)
    assert [len(part) for part in open_parts(tmp_path / "two")] == [3, 2]
    whole = tmp_path / "three"
    (whole / "annotations").mkdir(parents=True)
    for part, count in (("train2017", 3), ("val2017", 2)):
        draw(whole / "images" / part, count=count, size=32)
        shutil.move(whole / "images" / part / "annotations.json", whole / "annotations" / f"instances_{part}.json")
    assert [len(part) for part in open_parts(whole)] == [3, 2]


def test_training_follows_the_detectors_own_losses_and_leaves_it_as_it_was(tmp_path: Path):
    data, detector = coco(tmp_path / "a"), tiny().eval()
    for parameter in detector.parameters():  # as in files that were written for use alone
        parameter.requires_grad_(False)
    kept = {name: value.clone() for name, value in detector.state_dict().items()}
    recipe = make(model="", epochs=2, batch_size=4, lr=1e-3)
    trained, losses = own_losses.train(detector, data, recipe, torch.device("cpu"))
    again, _ = own_losses.train(detector, data, recipe, torch.device("cpu"))
    assert len(losses) == 2 and all(map(math.isfinite, losses)) and not trained.training
    assert all(torch.equal(kept[name], value) for name, value in detector.state_dict().items())
    moved = [name for name, value in trained.state_dict().items() if not torch.equal(kept[name], value)]
    assert any("head" in name for name in moved)
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_detector_says_what_another_answers_in_its_parts_place():
    detector = tiny().eval()
    with torch.no_grad():
        own = detector(IMAGES[:1])[0]

        def shifted(images: Tensor) -> list[Tensor]:
            whole = wholes.found(tiny().eval())
            assert whole is not None
            with torch.no_grad():
                return [value + 3 * torch.arange(value.shape[-1]) for value in tree_leaves(whole.part(images))]

        with answering(detector, shifted) as can:
            other = detector(IMAGES[:1])[0]
        again = detector(IMAGES[:1])[0]
    assert can and not torch.equal(own["scores"][:5], other["scores"][:5])
    assert all(torch.equal(own[name], again[name]) for name in own)
    assert own_losses.loss_of(detector.train(), IMAGES[:2], TARGETS[:2], [1]).isfinite()


def test_the_line_that_repeats_it_is_that_of_the_command():
    line = command_line({"model": "yolo.pt", "metric": "map", "align": 1, "data": "coco", "target": "macs=0.7"})
    assert line == "compress detector yolo.pt --data coco --target macs=0.7"


def test_what_looks_at_a_model_looks_at_the_part_of_a_detector_and_says_so(tmp_path: Path):
    torch.save(tiny(), tmp_path / "whole.pt")
    opening = {"trust_pickle": True, "input_shape": "3x64x64"}
    with pytest.warns(CompressWarning, match="of the part .* 'compress detector' makes the whole smaller"):
        rows = compress.explain(tmp_path / "whole.pt", reach=True, **opening)
    with pytest.warns(CompressWarning, match="of the part"):
        assert compress.explain(tiny(), reach=True, input_shape="3x64x64") == rows
    assert rows[0].macs > 0.3
    draw(tmp_path / "coco", count=6, size=64)
    with pytest.warns(CompressWarning, match="of the part"):
        found = compress.analyze(tmp_path / "whole.pt", data=tmp_path / "coco", timed=False, calibration=4, trust_pickle=True)
    assert any(row.needed is not None for row in found)


def test_a_detector_is_refused_for_what_it_is_before_its_images_are(tmp_path: Path):
    torch.save(tiny(), tmp_path / "whole.pt")
    draw(tmp_path / "coco", count=2, size=64)
    with pytest.raises(UnsupportedModel, match="is a whole detector"):
        opened(make(model=str(tmp_path / "whole.pt"), trust_pickle=True, data=str(tmp_path / "coco")))


@pytest.mark.parametrize(("part", "said"), [("test", "to count with have no box"), ("train", "to train on have no box")])
def test_parts_without_a_box_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, said: str):
    monkeypatch.setattr(command, "packages", lambda: None)
    for name in ("train", "test"):
        folder = draw(tmp_path / name, count=2, size=64)
        content = json.loads((folder / "annotations.json").read_text())
        content["annotations"] = [] if name == part else content["annotations"]
        (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(EmptyData, match=said):
        compress.detector(tiny(), tmp_path, epochs=1, out=tmp_path / "out")


@pytest.mark.parametrize(("data", "said"), [("nowhere", "is not there"), ("whole.pt", "is a file"), ("empty", "has no boxes")])
def test_data_without_boxes_is_refused_with_the_format_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: str, said: str
):
    monkeypatch.setattr(command, "packages", lambda: None)
    (tmp_path / "empty").mkdir()
    torch.save(tiny(), tmp_path / "whole.pt")
    words = [
        "detector",
        str(tmp_path / "whole.pt"),
        "--trust-pickle",
        "--data",
        str(tmp_path / data),
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(SystemExit) as end:
        cli(words)
    told = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and f"{said}. Needed is a folder in COCO's format" in told and ".npz" not in told
    with pytest.raises(BadInput, match=f"{said}. Needed is a folder in COCO's format"):
        compress.detector(tiny(), tmp_path / data, out=tmp_path / "o")


def test_a_part_of_a_detector_is_not_trained_on_boxes(tmp_path: Path):
    draw(tmp_path / "coco" / "train", count=2, size=64)
    (tmp_path / "model.compressed").mkdir()
    with pytest.raises(BadInput, match=r"COCO's format.* Train the whole one: 'compress detector' does so"):
        compress.finetune(tmp_path / "model.compressed", str(tmp_path / "coco"), out=tmp_path / "out")
