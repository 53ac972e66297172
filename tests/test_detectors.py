"""Detectors as they are built: channels go from the part that traces, and the detector's own code goes on."""

from __future__ import annotations

import copy
import io
import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves
from torchvision.models.detection import ssd, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

import compress
from compress.artifact import apply
from compress.detection import mean_precision, wholes
from compress.detection.coco import CocoImages, open_coco
from compress.detection.drawn import draw
from compress.detection.wholes import found
from compress.edits import Keep, Plan
from compress.errors import BadInput, UnsupportedModel
from compress.graph.channels.solve import solve
from compress.graph.surgery.put_back import put_back
from compress.graph.surgery.remove import keep
from compress.graph.trace.trace import trace


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.place = -1  # what the code around it reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x).chunk(2, 1)
        return self.last(torch.cat([a.relu(), b], 1))


def test_code_that_counts_channels_gives_way_to_its_graph():
    whole, x = nn.Sequential(Halves(), nn.ReLU()).eval(), torch.randn(2, 3, 4, 4)
    dense = trace(whole, (x[:1],))
    channels = solve(dense, (x[:1],))
    group = channels.removable[0]
    small = keep(dense, channels, [Keep(group.name, group.channels, tuple(range(1, group.channels)))])
    made = put_back(whole, dense, small)
    assert torch.equal(made(x), small(x)) and made.state_dict().keys() == whole.state_dict().keys()
    again = copy.deepcopy(made)  # as a trainer does that averages weights
    assert torch.equal(again(x), small(x)) and again[0].place == -1


class Placed(Halves):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x).chunk(2, 1)
        return self.last(torch.cat([a * torch.arange(x.shape[-1]).float().sin(), b], 1))


def test_a_constant_of_a_graph_is_nothing_that_a_training_learns():
    """A trainer may free every parameter; the constant follows the model to other types all the same, in copies, too."""
    whole, x = nn.Sequential(Placed(), nn.ReLU()).eval(), torch.randn(2, 3, 4, 4)
    dense = trace(whole, (x[:1],))
    channels = solve(dense, (x[:1],))
    group = channels.removable[0]
    small = keep(dense, channels, [Keep(group.name, group.channels, tuple(range(1, group.channels)))])
    made = put_back(whole, dense, small)
    assert dict(made.named_parameters()).keys() == dict(whole.named_parameters()).keys()
    assert sum(t.numel() for t in made.buffers()) == x.shape[-1]
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    for again in (made, copy.deepcopy(made), torch.load(file, weights_only=False)):
        torch.testing.assert_close(again.double()(x.double()).float(), small(x))


class Attends(nn.Module):
    """Of a class of torch's that is written out, in one that only a run goes through, as symbols are no tensors."""

    def __init__(self, run: bool):
        super().__init__()
        self.run, self.layer = run, nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.run and not isinstance(x, torch.Tensor):
            raise TypeError
        y = x.flatten(2).permute(0, 2, 1)
        return self.layer(y + 1, y + 1, y, need_weights=False)[0].permute(0, 2, 1).reshape(x.shape)


@pytest.mark.parametrize("run", [False, True])
def test_the_graph_of_an_attention_takes_the_place_of_the_submodule_that_calls_it(run: bool):
    torch.manual_seed(0)
    whole, x = nn.Sequential(nn.Conv2d(3, 8, 1), Attends(run), nn.ReLU()).eval(), torch.randn(2, 3, 4, 4)
    dense = trace(whole, (x[:1],))
    channels = solve(dense, (x[:1],))
    edits = [Keep(g.name, g.channels, tuple(range(1, g.channels))) for g in channels.removable]
    small = keep(dense, channels, edits)
    made = put_back(whole, dense, small)
    assert edits and torch.equal(made(x), small(x))
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in whole.parameters())


class Detect(nn.Module):
    """A head as those of ultralytics: in training it says more of the maps."""

    def __init__(self):
        super().__init__()
        self.f, self.i, self.box, self.more = -1, 1, nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    @property
    def one2many(self) -> dict[str, nn.Module]:
        return {"box_head": self.box, "more_head": self.more}

    def forward_head(self, x: torch.Tensor, box_head: nn.Module, more_head: nn.Module) -> dict[str, torch.Tensor]:
        return {"boxes": box_head(x), "feats": x} | ({"more": more_head(x)} if self.training else {})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.forward_head(x, **self.one2many)


class DetectionModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.save = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Detect()), [0]
        self.model[0].f, self.model[0].i = -1, 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.model(x)


def test_what_a_head_says_in_training_alone_counts_and_one_that_was_fused_has_no_such_layer(monkeypatch: pytest.MonkeyPatch):
    for name, kind in (("tasks", DetectionModel), ("modules.head", Detect)):
        there = types.ModuleType(f"ultralytics.nn.{name}")
        setattr(there, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, there.__name__, there)
    detector = DetectionModel().eval()
    plan = Plan((Keep("model.0", 8, (0, 1, 5)),))
    made = compress.edit(detector, plan, inputs=IMAGES[:2]).model
    said = made.train()(torch.stack(IMAGES[:2]))
    assert said.keys() == {"boxes", "feats", "more"} and said["feats"].shape[1] == 3
    detector.model[1].more = None
    again = compress.edit(detector, plan, inputs=IMAGES[:2]).model
    assert again(torch.stack(IMAGES[:2]))["feats"].shape[1] == 3 and not again.model[1].training


def tiny() -> ssd.SSD:
    """A detector that takes a second: images of 64 x 64 pixels and five small layers."""
    torch.manual_seed(0)
    backbone = Maps()
    anchors = DefaultBoxGenerator([[2], [2]])
    head = ssd.SSDHead([24, 16], anchors.num_anchors_per_location(), 4)
    return ssd.SSD(backbone, anchors, (64, 64), 4, head=head)


class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.two, self.three = nn.Conv2d(16, 24, 3, 2, 1), nn.Conv2d(24, 16, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        large = self.two(self.one(x)).relu()
        return {"0": large, "1": self.three(large).relu()}


IMAGES = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
TARGETS = [{"boxes": torch.tensor([[10.0, 10, 50, 50]]), "labels": torch.tensor([1])} for _ in IMAGES]


def answers(model: nn.Module) -> list[torch.Tensor]:
    """What the part of a detector says of the images."""
    whole = found(model)
    assert whole is not None
    with torch.no_grad():
        return tree_leaves(copy.deepcopy(whole.part).eval()(*whole.seen(IMAGES, 8)))


def test_channels_go_from_a_detector_by_what_its_images_say_and_its_optimizer_follows():
    detector = tiny().train()
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-3)
    sum(detector(IMAGES, TARGETS).values()).backward()
    optimizer.step()
    kept = {name: value.clone() for name, value in detector.state_dict().items()}
    made = compress.remove(detector, zip(IMAGES, TARGETS, strict=True), target="macs=0.8", calibration=8)
    assert isinstance(made.model, ssd.SSD) and made.model.training and made.before is detector
    assert all(torch.equal(kept[name], value) for name, value in detector.state_dict().items())
    small, dense = (dict(m.named_parameters()) for m in (made.model, detector))
    smaller = [name for name, p in small.items() if p.shape != dense[name].shape]
    assert "backbone.one.0.weight" in smaller or "backbone.two.weight" in smaller
    moments = {name: optimizer.state[p]["exp_avg"].sum() for name, p in dense.items()}
    compress.follow(optimizer, made)
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in small.values())
    whole = [name for name in small if name not in smaller]
    assert whole and all(optimizer.state[small[name]]["exp_avg"].sum() == moments[name] for name in whole)
    sum(made.model(IMAGES, TARGETS).values()).backward()
    optimizer.step()


def test_the_part_of_a_detector_is_saved_and_exported_and_the_whole_is_refused_elsewhere(tmp_path: Path):
    detector = tiny().eval()
    compress.save(detector, tmp_path / "part.compressed", inputs=IMAGES[:1])
    whole = found(detector)
    assert whole is not None
    with torch.no_grad():
        again = tree_leaves(compress.load(tmp_path / "part.compressed")(*whole.seen(IMAGES, 8)))
    assert all(torch.equal(a, b) for a, b in zip(again, answers(detector), strict=True)) and len(again) == 2
    assert compress.export(detector, out=tmp_path / "part.onnx", inputs=IMAGES[:1]).path.exists()
    for refused in (
        lambda: compress.run(detector, data=list(zip(IMAGES, TARGETS, strict=True)), out=tmp_path / "out"),
        lambda: compress.plan(detector, data=IMAGES),
        lambda: compress.export(detector, out=tmp_path / "other.onnx"),
        lambda: compress.save(detector, tmp_path / "other"),
    ):
        with pytest.raises(UnsupportedModel, match=r"whole detector \(SSD\).*compress\.remove and compress\.edit take"):
            refused()


def test_as_many_images_count_as_fit_into_memory(monkeypatch: pytest.MonkeyPatch):
    whole = found(tiny())
    assert whole is not None
    assert len(whole.seen(IMAGES, 8)[0]) == 8
    monkeypatch.setattr(wholes, "MOST_BYTES", 3.5 * 3 * 64 * 64 * 4)
    assert len(whole.seen(iter(IMAGES), 8)[0]) == 3


def test_a_detector_loses_channels_in_its_own_class_and_trains_by_its_own_losses():
    torch.manual_seed(0)
    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    images = [torch.rand(3, 320, 320), torch.rand(3, 200, 300)]
    whole = found(detector)
    assert whole is not None
    one = tuple(x[:1] for x in whole.seen(images, 2))
    group = max(solve(trace(whole.part, one), one).removable, key=lambda g: g.channels)
    plan = Plan((Keep(group.name, group.channels, tuple(range(group.channels // 2))),))
    made = compress.edit(detector, plan, inputs=images).model
    assert type(made) is type(detector) and made.training
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in detector.parameters())
    targets = [{"boxes": torch.tensor([[10.0, 10, 90, 90]]), "labels": torch.tensor([1])} for _ in images]
    sum(made(images, targets).values()).backward()
    assert set(made.eval()(images)[1]) == {"boxes", "scores", "labels"}


def test_smaller_layers_that_compute_something_else_in_the_detector_are_refused(monkeypatch: pytest.MonkeyPatch):
    detector = tiny()
    plan = Plan((Keep("backbone.one.0", 16, tuple(range(9))),))
    made = compress.edit(detector, plan, inputs=IMAGES[:2])

    def wrong(whole: nn.Module, dense: GraphModule, small: GraphModule, rewriting: bool = True) -> nn.Module:
        found = put_back(whole, dense, small, rewriting)
        with torch.no_grad():
            found.get_parameter("backbone.two.weight")[0, 0, 0, 0] += 0.1
        return found

    whole, small = found(detector), apply(made.plan, made.traced).module
    assert whole is not None
    wanted = tree_leaves(small(*whole.seen(IMAGES, 8)))
    assert all(torch.equal(a, b) for a, b in zip(answers(made.model), wanted, strict=True))
    monkeypatch.setattr(wholes, "put_back", wrong)
    with pytest.raises(UnsupportedModel, match="SSD computes something else with the smaller layers"):
        compress.edit(detector, plan, inputs=IMAGES[:2])


def test_images_are_read_with_the_boxes_of_the_file_and_without_crowds(tmp_path: Path):
    folder = draw(tmp_path / "a", count=3, size=64)
    data = open_coco(folder)
    content = json.loads((folder / "annotations.json").read_text())
    for i, entry in enumerate(content["images"]):
        image, target = data[i]
        own = [one for one in content["annotations"] if one["image_id"] == entry["id"]]
        assert image.shape == (3, 64, 64) and image.min() >= 0 and 0.5 < image.max() <= 1
        assert target["boxes"].tolist() == [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in own)]
        assert target["labels"].tolist() == [one["category_id"] for one in own]
    content["annotations"][0]["iscrowd"] = 1
    (folder / "annotations.json").write_text(json.dumps(content))
    first = content["annotations"][0]["image_id"] - 1
    assert len(open_coco(folder)[first][1]["boxes"]) == len(data[first][1]["boxes"]) - 1
    with pytest.raises(BadInput, match="needed is COCO's JSON file"):
        open_coco(tmp_path)


def test_precision_and_its_loss_are_those_counted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pycocotools")
    drawn = open_coco(draw(tmp_path / "a", count=4, size=64))
    one = [replace(r, boxes=((10.0, 10.0, 20.0, 30.0),), labels=(1,), crowds=(False,)) for r in drawn.records]
    data = CocoImages(one, {1: "square"})
    dense, small = tiny(), tiny()
    order = iter([*range(4), *range(4), *range(4)])  # each detector is asked for each image, in order

    def said(model: nn.Module, *_: object) -> dict[str, torch.Tensor]:
        image = next(order)
        there, keep = data[image][1], 1 if model is dense or image % 2 == 0 else 0
        return {"boxes": there["boxes"][:keep], "labels": there["labels"][:keep], "scores": torch.ones(keep)}

    monkeypatch.setattr(mean_precision, "_torchvision", said)
    assert mean_precision.mean_precision(dense, data) == mean_precision.Precision(1, 1, 4)
    lost = mean_precision.lost(dense, small, data)
    # Two of four boxes found, none wrong: full precision at the recalls 0, 0.01, ..., 0.5 of the 101 that COCO looks at.
    assert lost.after.value == pytest.approx(51 / 101) and lost.before.value == pytest.approx(1)
    assert lost.points == pytest.approx(100 * 50 / 101)
    # A draw of four images has all or none of the missed ones with a chance of 1/16 each, which is more than 2.5 %.
    assert lost.ci95 == pytest.approx((0, 100))


def test_a_picture_of_a_kind_that_is_not_listed_is_not_opened(tmp_path):
    data = open_coco(draw(tmp_path / "shapes", count=1))
    Image.new("RGB", (160, 160)).save(data.records[0].path, "PCX")
    with pytest.raises(BadInput, match="cannot be read as an image"):
        data[0]


@pytest.mark.parametrize("kind", ["16 bits", "32 bits", "palette"])
def test_pictures_beside_boxes_are_read_as_others_are(tmp_path, kind):
    data = open_coco(draw(tmp_path / "shapes", count=1, size=64))
    values = np.arange(64 * 64).reshape(64, 64)
    if kind == "palette":
        Image.fromarray(values.astype(np.uint8)).convert("P").save(data.records[0].path)
        assert data[0][0].unique().numel() > 100
        return
    Image.fromarray(values.astype(np.uint16 if kind == "16 bits" else np.float32)).save(
        data.records[0].path, "PNG" if kind == "16 bits" else "TIFF"
    )
    with pytest.raises(BadInput, match=kind):
        data[0]


def test_annotations_of_millions_of_parts_are_not_parsed(tmp_path):
    folder = draw(tmp_path / "shapes", count=1)
    (folder / "annotations.json").write_text('{"images": [' + "{}," * 2_000_000 + "{}]}")
    with pytest.raises(BadInput, match="lists and tables"):
        open_coco(folder)


def test_annotations_nested_without_end_are_refused(tmp_path):
    folder = draw(tmp_path / "shapes", count=1)
    (folder / "annotations.json").write_text("[" * 200_000)
    with pytest.raises(BadInput, match="is no JSON"):
        open_coco(folder)


def test_a_box_that_lies_beyond_its_image_is_refused_and_one_that_sticks_out_is_not(tmp_path):
    folder = draw(tmp_path / "shapes", count=1, size=64)
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": [-10, 50, 20, 30]}]
    (folder / "annotations.json").write_text(json.dumps(content))
    assert open_coco(folder)[0][1]["boxes"].tolist() == [[-10, 50, 10, 80]]
    for beyond in ([64, 10, 5, 5], [10, -9, 5, 9]):
        content["annotations"][0]["bbox"] = beyond
        (folder / "annotations.json").write_text(json.dumps(content))
        with pytest.raises(BadInput, match=r"on image 1, outside of its 64x64 pixels"):
            open_coco(folder)


@pytest.mark.parametrize(
    ("part", "entry", "said"),
    [
        ("annotations", {"bbox": [True, True, True, True]}, "needed are .x, y, width, height. in pixels"),
        ("annotations", {"bbox": [1, 1, 1e-300, 5]}, "at least 0.1"),
        ("annotations", {"bbox": [1e300, 1, 5, 5]}, "needed are .x, y, width, height. in pixels"),
        ("annotations", {"iscrowd": [3]}, "iscrowd .3. on image 1; needed is 0 or 1"),
        ("categories", {"id": 2**62}, "category id 4611686018427387904; needed are ids from 1"),
        ("categories", {"id": 1}, "category id 1 twice"),
        ("images", {"id": 1}, "image id 1 twice"),
        ("images", {"id": 2, "file_name": "a\0b.png"}, "names the image"),
        ("images", {"id": 2, "file_name": "\ud800.png"}, "names the image"),
        ("images", {"id": 2, "file_name": "a" * 5000}, "names the image"),
    ],
)
def test_what_boxes_cannot_mean_is_refused(tmp_path, part, entry, said):
    folder = draw(tmp_path / "shapes", count=1, size=64)
    content = json.loads((folder / "annotations.json").read_text())
    if part == "annotations":
        content[part][0] |= entry
    else:
        content[part].append(content[part][0] | entry)
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=said):
        open_coco(folder)


def test_boxes_that_were_drawn_on_an_image_of_another_size_are_refused(tmp_path):
    folder = draw(tmp_path / "shapes", count=1, size=64)
    content = json.loads((folder / "annotations.json").read_text())
    content["images"][0] |= {"width": 128}
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="has 64x64 pixels, and 128x64 in the file of its boxes"):
        open_coco(folder)[0]


def test_a_library_that_puts_its_own_way_of_opening_in_the_place_of_pils_changes_no_refusal(tmp_path, monkeypatch):
    data = open_coco(draw(tmp_path / "shapes", count=1))
    data.records[0].path.write_bytes(b"no image")
    own = Image.open

    def asks_for_more(*args: Any, **kwargs: Any) -> Any:
        try:
            return own(*args, **kwargs)
        except OSError:
            raise ModuleNotFoundError("No module named 'pi_heif'") from None

    monkeypatch.setattr(Image, "open", asks_for_more)
    with pytest.raises(BadInput, match=r"cannot be read as an image .it is no image that PIL knows"):
        data[0]
