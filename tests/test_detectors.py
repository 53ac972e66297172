"""Detectors as they are built: channels go from the part that traces, and the detector's own code goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

import compress
from compress.detection import mean_precision
from compress.detection.coco import open_coco
from compress.detection.drawn import draw
from compress.detection.wholes import found
from compress.edits import Keep, Plan
from compress.errors import BadInput
from compress.graph.channels.solve import solve
from compress.graph.surgery.put_back import put_back
from compress.graph.surgery.remove import keep
from compress.graph.trace.trace import trace


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

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


def test_drawn_images_are_read_as_they_were_written(tmp_path: Path):
    data = open_coco(draw(tmp_path / "a", count=3, size=64))
    image, target = data[0]
    assert image.shape == (3, 64, 64) and len(data) == 3 and target["boxes"].shape == (len(target["labels"]), 4)
    with pytest.raises(BadInput, match="needed is COCO's JSON file"):
        open_coco(tmp_path)


def test_the_true_boxes_have_full_precision_and_lose_nothing_against_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pycocotools")
    data = open_coco(draw(tmp_path / "a", count=4, size=64))
    answers = iter([data[i][1] for i in range(4)] * 3)

    def true(*_: object) -> dict[str, torch.Tensor]:
        found = next(answers)
        return {**found, "scores": torch.ones(len(found["labels"]))}

    monkeypatch.setattr(mean_precision, "_torchvision", true)
    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    assert mean_precision.mean_precision(detector, data).value == pytest.approx(1)
    assert mean_precision.lost(detector, detector, data).ci95 == (0, 0)
