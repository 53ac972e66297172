"""What takes the place of a submodule whose code counts channels: attributes, names and layers stay, in copies and files, too."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.fx import GraphModule
from torch.nn.utils.fusion import fuse_conv_bn_eval

import compress
from compress.commands import detector as command
from compress.detection import wholes
from compress.edits import Keep, Plan
from compress.graph.channels.solve import solve
from compress.graph.surgery.put_back import put_back
from compress.graph.surgery.remove import keep
from compress.graph.trace.trace import trace


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()

    def fused(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


class Shares(nn.Module):
    """As in YOLO: two halves, of which one goes on; and numbers that the code around it reads."""

    def __init__(self):
        super().__init__()
        self.first, self.blocks, self.last = nn.Conv2d(3, 8, 1), nn.ModuleList([Block(4)]), nn.Conv2d(12, 2, 1)
        self.register_buffer("scale", torch.tensor(2.0))
        self.f, self.np, self.type = -1, 7, "made.Shares"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list((self.first(x) * self.scale).chunk(2, 1))
        y.extend(block(y[-1]) for block in self.blocks)
        return self.last(torch.cat(y, 1))


def smaller(whole: nn.Module, x: torch.Tensor) -> tuple[nn.Module, GraphModule]:
    dense = trace(whole, (x[:1],))
    channels = solve(dense, (x[:1],))
    small = keep(dense, channels, [Keep(g.name, g.channels, tuple(range(1, g.channels))) for g in channels.removable])
    return put_back(whole, dense, small), small


def test_a_rewritten_submodule_keeps_what_it_is_asked_for_in_files_and_copies(tmp_path: Path):
    whole, x = nn.Sequential(Shares(), nn.ReLU()).eval(), torch.randn(2, 3, 4, 4)
    made, small = smaller(whole, x)
    names = whole.state_dict().keys()
    assert made.state_dict().keys() == names and not isinstance(made[0], Shares)
    torch.save(made, tmp_path / "made.pt")
    read = torch.load(tmp_path / "made.pt", weights_only=False)
    assert torch.equal(trace(read, (x[:1],))(x), small(x))
    for one in (made, copy.deepcopy(made), read, copy.deepcopy(read)):
        assert torch.equal(one(x), small(x)) and one.state_dict().keys() == names
        assert (one[0].f, one[0].np, one[0].type) == (-1, 7, "made.Shares")
        one.double()  # nothing is left behind
        assert one(x.double()).dtype == torch.float64


def test_layers_of_a_rewritten_submodule_are_fused_by_their_own_code():
    whole, x = nn.Sequential(Shares(), nn.ReLU()).eval(), torch.randn(2, 3, 4, 4)
    made, small = smaller(whole, x)
    made = copy.deepcopy(made)
    block = made[0].blocks[0]
    assert isinstance(block, Block)
    block.conv = fuse_conv_bn_eval(block.conv, block.bn)
    del block.bn
    block.forward = block.fused
    torch.testing.assert_close(made(x), small(x))


def test_a_smaller_detector_opens_predicts_trains_and_exports_in_its_own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setattr(Image, "open", Image.open)  # the library puts its own there
    ultralytics = pytest.importorskip("ultralytics")
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    torch.manual_seed(0)
    detector = tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False).eval()
    image = torch.rand(3, 64, 64)
    whole = wholes.found(detector)
    assert whole is not None
    dense = trace(whole.part, (image[None],))
    groups = [g for g in solve(dense, (image[None],)).removable if g.channels > 8]
    plan = [Keep(g.name, g.channels, tuple(range(3, g.channels))) for g in groups]
    small = compress.edit(detector, Plan(tuple(plan)), inputs=[image]).model
    command._written(small, tmp_path / "detector.pt")
    said = small(image[None])[0]
    opened = ultralytics.YOLO(tmp_path / "detector.pt")
    torch.testing.assert_close(copy.deepcopy(opened.model).float()(image[None])[0], said, rtol=1e-3, atol=1e-3)
    assert len(opened.predict(image[None], verbose=False)) == 1  # of layers that the library has fused
    torch.testing.assert_close(opened.predictor.model.model.float()(image[None])[0], said, rtol=1e-3, atol=1e-3)
