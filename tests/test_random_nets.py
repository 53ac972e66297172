"""Small networks drawn at random: removed == masked, merged == unmerged, saved == loaded, and the ONNX file computes the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import randomise
from oracles import distance, outputs, random_edits
from torch import Tensor, nn

import exporters
from compress.artifact import Artifact, apply
from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.edits import Linearize, Merge, Plan, Relocate
from compress.graph.channels.solve import solve
from compress.graph.linearize import activations
from compress.graph.merge.segments import segments
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace

EXACT = 1e-9
"""Relative, in float64: the same products in another order, 1e-16 each; the rest is margin for cancellation."""
FEW, MANY, EXPORTED = 20, 1000, 20
"""Every 20th net is exported, which takes longer than all else."""


class Step(nn.Module):
    """Named layers and a function of them."""

    def __init__(self, call: Callable[..., Tensor], **layers: nn.Module):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def conv(i: int, o: int, k: int = 3, **settings: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **settings)


def net(seed: int) -> nn.Module:
    """3 to 6 steps of any kind and a head, for images of 3x8x8."""
    drawn = random.Random(seed)
    torch.manual_seed(seed)
    width, size, steps = 4 * drawn.randint(1, 3), 8, list[nn.Module]()
    steps.append(conv(3, width))
    for _ in range(drawn.randint(3, 6)):
        step, width, size = drawn.choice(STEPS)(drawn, width, size)
        steps.append(step)
        if drawn.random() < 0.6:
            steps.append(drawn.choice(NORMS)(width))
        if drawn.random() < 0.7:
            steps.append(drawn.choice((nn.ReLU, nn.Hardswish, nn.SiLU, nn.GELU))())
    flat = drawn.random() < 0.5
    steps += (
        [nn.Flatten(), nn.Linear(width * size**2, 5)] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)]
    )
    found = nn.Sequential(*steps).eval()
    randomise(found)
    return found


NORMS = (nn.BatchNorm2d, nn.BatchNorm2d, lambda width: nn.GroupNorm(2, width), lambda width: nn.GroupNorm(1, width))
Drawn = tuple[nn.Module, int, int]


def plain(drawn: random.Random, width: int, size: int) -> Drawn:
    wide, stride = 4 * drawn.randint(1, 4), 2 if size > 4 and drawn.random() < 0.4 else 1
    return conv(width, wide, drawn.choice((1, 3)), stride=stride), wide, size // stride


def grouped(drawn: random.Random, width: int, size: int) -> Drawn:
    wide = 4 * drawn.randint(1, 4)
    return conv(width, wide, groups=drawn.choice((2, 4))), wide, size


def depthwise(drawn: random.Random, width: int, size: int) -> Drawn:
    return nn.Sequential(conv(width, width, groups=width), conv(width, width + 4, 1)), width + 4, size


def transposed(drawn: random.Random, width: int, size: int) -> Drawn:
    if size > 8:
        return nn.ConvTranspose2d(width, width, 1, groups=2), width, size
    return nn.ConvTranspose2d(width, 8, 2, stride=2, groups=drawn.choice((1, 2))), 8, 2 * size


def added(drawn: random.Random, width: int, size: int) -> Drawn:
    inner = nn.Sequential(conv(width, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, width))
    return Step(lambda s, x: x + s.inner(x), inner=inner), width, size


def joined(drawn: random.Random, width: int, size: int) -> Drawn:
    return Step(lambda s, x: torch.cat((s.one(x), s.two(x)), 1), one=conv(width, 4, 1), two=conv(width, 8)), 12, size


def split(drawn: random.Random, width: int, size: int) -> Drawn:
    def call(s: Step, x: Tensor) -> Tensor:
        one, two = x.chunk(2, 1)
        return torch.cat((s.inner(one), two), 1)

    return Step(call, inner=conv(width // 2, width // 2)), width, size


def shuffled(drawn: random.Random, width: int, size: int) -> Drawn:
    return (
        Step(lambda s, x: s.inner(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), inner=conv(width, width, groups=2)),
        width,
        size,
    )


def squeezed(drawn: random.Random, width: int, size: int) -> Drawn:
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(width, 4, 1), nn.ReLU(), conv(4, width, 1), nn.Sigmoid())
    return Step(lambda s, x: x * s.gate(x), gate=gate), width, size


def reshaped(drawn: random.Random, width: int, size: int) -> Drawn:
    """Tokens and back, with a linear layer between."""
    call = lambda s, x: s.line(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape[0], -1, size, size)  # noqa: E731
    return Step(call, line=nn.Linear(width, 8)), 8, size


def pooled(drawn: random.Random, width: int, size: int) -> Drawn:
    pool = drawn.choice((nn.MaxPool2d, nn.AvgPool2d))
    return (pool(2), width, size // 2) if size > 4 else (pool(3, 1, 1), width, size)


STEPS = (plain, plain, grouped, depthwise, transposed, added, joined, split, shuffled, squeezed, reshaped, pooled)


def check(seed: int, folder: Path) -> tuple[int, int]:
    """All laws on one net; how many channels went, and how many segments were merged."""
    module, inputs = trace(net(seed), (torch.zeros(1, 3, 8, 8),)).double(), (torch.zeros(1, 3, 8, 8, dtype=torch.float64),)
    channels = solve(module, inputs)
    x = [torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))]
    edits = random_edits([group for group in channels.removable if group.channels > 1], seed)
    small = keep(module, channels, edits)
    assert distance(outputs(small, x), outputs(mask(module, channels, edits), x)) < EXACT, f"net {seed}: removed is not masked"
    merged = merges(Artifact(small, inputs), x, seed)
    small = small.float()
    single = [one.float() for one in x]
    stored = load(save(Artifact(small, (single[0][:1],)), folder / "model"))
    assert torch.equal(*outputs(stored, single), *outputs(small, single)), f"net {seed}: saved is not loaded"
    stored.train()(*single).square().sum().backward()
    without = [name for name, p in stored.named_parameters() if p.grad is None]
    assert not without, f"net {seed}: {without} cannot be trained"
    if seed % EXPORTED == 0:
        exporters.export("onnx", small.eval(), (single[0][:1],), folder / "model.onnx", samples=[single])  # compares
    return sum(edit.channels - len(edit.keep) for edit in edits), merged


def merges(found: Artifact, x: list[Tensor], seed: int) -> int:
    """Every segment that can be merged is."""
    exact = [segment for segment in segments(found.module, found.inputs) if segment.exact]
    widths = {one.path: dict(shaped(found))[one.node][one.axis] for one in activations(found.module)}
    for segment in exact:
        lines = tuple(Linearize(p, widths[p], (0.5,) * widths[p], (0.1,) * widths[p]) for p in segment.activations)
        linear = apply(Plan((*lines, *(Relocate(names) for names in segment.relocate))), found)
        linear.module.double()
        one = apply(Plan((Merge(segment.layers),)), linear)
        assert distance(outputs(one.module, x), outputs(linear.module, x)) < EXACT, f"net {seed}: merged {segment.layers} differs"
    return len(exact)


def shaped(found: Artifact) -> list[tuple[str, tuple[int, ...]]]:
    return [(node.name, node.meta["shape"]) for node in found.module.graph.nodes if node.meta.get("shape")]


@pytest.mark.parametrize("seeds", [range(FEW), pytest.param(range(FEW, MANY), marks=pytest.mark.slow)], ids=["few", "many"])
def test_every_law_holds_on_networks_drawn_at_random(seeds: range, tmp_path: Path):
    found = [check(seed, tmp_path) for seed in seeds]
    assert sum(gone > 0 for gone, _ in found) > len(found) / 2, "most of them have something to remove"
    assert sum(merged > 0 for _, merged in found) > len(found) / 10
