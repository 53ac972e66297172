"""Networks beyond pictures and classes, one small one of each kind: what goes, what equals what, and the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import randomise
from oracles import distance, outputs, random_edits
from torch import nn

import exporters
from compress.graph.channels.solve import solve
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace

EXACT = 1e-9
"""Relative, in float64."""


class Net(nn.Module):
    def __init__(self, call: Any, **layers: nn.Module):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.call(self, *inputs)


def without_norms():
    def call(s, x):
        x = F.relu(s.a(x))
        return s.o((x + s.scale(s.c(F.relu(s.b(x))))).mean((2, 3)))

    parts = dict(a=nn.Conv2d(3, 16, 3, padding=1), b=nn.Conv2d(16, 12, 3, padding=1), c=nn.Conv2d(12, 16, 1))
    return Net(call, **parts, scale=nn.Conv2d(16, 16, 1, groups=16), o=nn.Linear(16, 4)), (torch.randn(1, 3, 8, 8),)


def signals():
    layers = [nn.Conv1d(2, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(12, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)), (torch.randn(1, 2, 32),)


def volumes():
    layers = [nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 6, 3, padding=1)]
    head = (nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3))
    return nn.Sequential(*layers, *head), (torch.randn(1, 1, 8, 8, 8),)


def spectra():
    """Logarithms of energies, normalized over time, then convolutions."""

    def call(s, x):
        x = torch.log(x.square() + 1e-3)
        x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
        return s.o(s.body(x.unsqueeze(1)).mean((2, 3)))

    body = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3, 2), nn.ReLU())
    return Net(call, body=body, o=nn.Linear(8, 3)), (torch.randn(1, 20, 32),)


def gated_waves():
    """Dilated convolutions, gates, a residual and a skip path, as in WaveNet."""

    def call(s, x):
        x, skips = s.first(x), 0
        for i in range(3):
            y = F.pad(x, (2**i, 0))
            y = torch.tanh(getattr(s, f"filter{i}")(y)) * torch.sigmoid(getattr(s, f"gate{i}")(y))
            skips = skips + getattr(s, f"skip{i}")(y)
            x = x + getattr(s, f"back{i}")(y)
        return s.last(F.relu(skips))

    parts: dict[str, nn.Module] = dict(first=nn.Conv1d(1, 8, 1), last=nn.Conv1d(10, 4, 1))
    for i in range(3):
        parts |= {f"{kind}{i}": nn.Conv1d(8, 12, 2, dilation=2**i) for kind in ("filter", "gate")}
        parts |= {f"skip{i}": nn.Conv1d(12, 10, 1), f"back{i}": nn.Conv1d(12, 8, 1)}
    return Net(call, **parts), (torch.randn(1, 1, 24),)


def super_resolution():
    layers = [nn.Conv2d(3, 12, 5, padding=2), nn.PReLU(), nn.Conv2d(12, 8, 3, padding=1), nn.PReLU(8)]
    return nn.Sequential(*layers, nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)), (torch.randn(1, 3, 8, 8),)


def generator():
    """A picture out of a vector, as a GAN makes it."""
    layers = [nn.ConvTranspose2d(10, 12, 4), nn.BatchNorm2d(12), nn.ReLU(), nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.BatchNorm2d(8)]
    return nn.Sequential(*layers, nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()), (torch.randn(1, 10, 1, 1),)


def diffusion():
    """A U with a time for each sample, which is added behind an embedding of sines."""

    def call(s, x, t):
        steps = torch.exp(-torch.arange(4, device=t.device) / 2)
        angles = t[:, None] * steps[None]
        time = s.time2(F.silu(s.time1(torch.cat([angles.sin(), angles.cos()], -1))))
        high = F.silu(s.down1(x))
        low = F.silu(s.norm(s.down2(high) + time[:, :, None, None]))
        up = F.interpolate(s.middle(low), scale_factor=2.0)
        return s.last(F.silu(s.up(torch.cat([up, high], 1))))

    parts = dict(time1=nn.Linear(8, 12), time2=nn.Linear(12, 16), down1=nn.Conv2d(3, 8, 3, padding=1), norm=nn.GroupNorm(4, 16))
    parts |= dict(down2=nn.Conv2d(8, 16, 3, 2, 1), middle=nn.Conv2d(16, 8, 3, padding=1), up=nn.Conv2d(16, 8, 3, padding=1))
    return Net(call, **parts, last=nn.Conv2d(8, 3, 3, padding=1)), (torch.randn(1, 3, 8, 8), torch.rand(1) * 10)


def points():
    """The largest of each feature over a set of points, as in PointNet."""

    def call(s, x):
        x = F.relu(s.b(F.relu(s.a(x))))
        return s.o(F.relu(s.c(torch.max(x, 2)[0])))

    parts = dict(a=nn.Conv1d(3, 12, 1), b=nn.Conv1d(12, 16, 1), c=nn.Linear(16, 10), o=nn.Linear(10, 4))
    return Net(call, **parts), (torch.randn(1, 3, 20),)


def tagger():
    """A label for each step, by a recurrent layer of both directions."""

    def call(s, x):
        return s.o(F.relu(s.b(s.r(F.relu(s.a(x)))[0])))

    recurrent = nn.LSTM(12, 8, batch_first=True, bidirectional=True)
    return Net(call, a=nn.Linear(6, 12), r=recurrent, b=nn.Linear(16, 10), o=nn.Linear(10, 4)), (torch.randn(1, 9, 6),)


def encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    layers = nn.Sequential(nn.Linear(6, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3))
    return layers, (torch.randn(1, 9, 6),)


KINDS = [without_norms, signals, volumes, spectra, gated_waves, super_resolution, generator, diffusion, points, tagger, encoder]


@pytest.mark.parametrize("kind", KINDS)
def test_it_loses_channels_exactly_and_becomes_a_file(kind: Any, tmp_path: Path):
    torch.manual_seed(0)
    model, inputs = kind()
    randomise(model.eval())
    module = trace(model, inputs)
    assert module.meta["opaque"] == {}
    channels = solve(module, inputs)
    edits = random_edits(channels.removable, 0)
    assert edits
    small, masked = keep(module, channels, edits), mask(module, channels, edits)
    batch = tuple(torch.cat([x, x.flip(-1), 0.5 * x]).double() for x in inputs)
    assert distance(outputs(small.double(), batch), outputs(masked.double(), batch)) < EXACT
    samples = [tuple(x.float() for x in batch)]
    done = exporters.export("onnx", small.float(), inputs, tmp_path / "model.onnx", metadata={}, samples=samples)
    assert done.parity is not None and done.parity.worst_abs <= done.parity.tolerance
