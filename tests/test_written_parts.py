"""Forwards that write into tensors, by `x[...] = y` and methods that change their tensor: the graph computes the same, always."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import randomise
from oracles import distance, outputs, random_edits
from torch import Tensor, nn

import exporters
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.errors import UnsupportedModel
from compress.graph.channels.solve import solve
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace

EXACT = 1e-5
"""Relative, in float32."""


class Writes(nn.Module):
    """Two convolutions, whatever puts their 8 and 12 channels together, a convolution and a head."""

    def __init__(self, together: Callable[[Writes, Tensor], Tensor]):
        super().__init__()
        self.together = together
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 3, padding=1)
        self.c, self.o = nn.Conv2d(20, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x):
        return self.o(F.relu(self.c(self.together(self, x))).mean((2, 3)))

    def both(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


def into_zeros(s: Writes, x: Tensor) -> Tensor:
    out = torch.zeros(x.size(0), 20, x.size(2), x.size(3))
    out[:, :8] = F.relu(s.a(x))
    out[:, 8:] = s.b(x)
    return out


def into_what_was_in_memory(s: Writes, x: Tensor) -> Tensor:
    out = x.new_empty(x.size(0), 20, x.size(2), x.size(3))
    out[:, 8:, ...] = s.b(x)
    out[:, :8] = s.a(x)
    return out


def shifted(s: Writes, x: Tensor) -> Tensor:
    y = s.both(x)
    out = torch.zeros_like(y)
    out[:, :5, :, 1:] = y[:, :5, :, :-1]
    out[:, 5:10, :, :-1] = y[:, 5:10, :, 1:]
    out[:, 10:] = y[:, 10:]
    return out


def parts_of_an_activation(s: Writes, x: Tensor) -> Tensor:
    y = s.both(x).sigmoid()
    y[:, :8] = y[:, :8] * 2 - 0.5
    y[:, 8:] += 1.0
    return y


def single_places(s: Writes, x: Tensor) -> Tensor:
    y = s.both(x) * 1
    y[:, :, 2:4, 3] = 1
    y[..., -1] = s.b(x)[:, :1, :, 0]
    return y


def under_a_mask(s: Writes, x: Tensor) -> Tensor:
    y = s.both(x) * 1
    y[y < 0] = 0.0
    return y


def added_up(s: Writes, x: Tensor) -> Tensor:
    out = torch.zeros(x.size(0), 20, x.size(2), x.size(3))
    for k in range(3):
        out[:, :8] += s.a(x) * k
        out[:, 8:].add_(s.b(x))
    return out


def row_by_row(s: Writes, x: Tensor) -> Tensor:
    y = s.both(x)
    out = torch.zeros(x.shape[0], 20, *x.shape[2:])
    for i in range(y.shape[2]):
        out[:, :, i] = y[:, :, -1 - i]
    return out


def every_other_row(s: Writes, x: Tensor) -> Tensor:
    y = s.both(x)
    out = torch.zeros_like(y)
    out[:, :, ::2] = y[:, :, ::2]
    out[:, :, 1::2] = y[:, :, 1::2] * 2
    return out


def a_view_from_before(s: Writes, x: Tensor) -> Tensor:
    """The view changes with it."""
    y = s.both(x) * 1
    before = y[:, :8]
    y[:, 4:8] = 0.5
    return y * before.mean(1, keepdim=True)


def axes_in_place(s: Writes, x: Tensor) -> Tensor:
    y = s.both(x)
    gate = y.mean((2, 3))
    gate.unsqueeze_(-1).unsqueeze_(-1)
    return y.transpose_(2, 3) * gate.sigmoid_()


ALL = [
    into_zeros,
    into_what_was_in_memory,
    shifted,
    parts_of_an_activation,
    single_places,
    under_a_mask,
    added_up,
    row_by_row,
    every_other_row,
    axes_in_place,
]


@pytest.mark.parametrize("together", [*ALL, a_view_from_before])
def test_what_is_written_into_a_tensor_is_in_the_graph_and_channels_go(together: Callable[..., Tensor], tmp_path: Path):
    torch.manual_seed(0)
    model, x = Writes(together).eval(), (torch.randn(1, 3, 8, 8),)
    module = trace(model, x)
    for batch in (1, 2, 3, 2):  # nothing stays from one call to the next
        several = (torch.randn(batch, 3, 8, 8),)
        assert distance(outputs(module, several), outputs(model, several)) < EXACT
    channels = solve(module, x)
    edits = random_edits(channels.removable, 0)
    small = keep(module, channels, edits)
    assert distance(outputs(small, several), outputs(mask(module, channels, edits), several)) < EXACT
    if together not in (a_view_from_before, single_places):  # a view is changed with its tensor; one channel is written into all
        assert {g.name for g in channels.removable} >= {"a", "c"}
    save(Artifact(small, x), tmp_path / "m.compressed")
    again = load(tmp_path / "m.compressed")
    assert distance(outputs(again, several), outputs(small, several)) == 0
    again.train()(*several).square().sum().backward()
    assert all(p.grad is not None for p in again.parameters())
    exporters.export("onnx", small, x, tmp_path / "m.onnx", metadata={}, samples=[several])


def test_writes_one_behind_the_other_are_one_concatenation():
    graph = trace(Writes(row_by_row).eval(), (torch.randn(1, 3, 8, 8),)).graph
    (joined,) = [n for n in graph.nodes if n.target is torch.cat and len(n.args[0]) == 8]
    assert not any(n.op == "get_attr" for n in graph.nodes) and joined.args[1] == 2  # the zeros are written over, all of them


def test_a_part_that_is_filled_through_a_view_is_refused_with_how_to_write_it():
    def call(s: Writes, x: Tensor) -> Tensor:
        out = torch.empty(x.size(0), 20, x.size(2), x.size(3))
        out[:, :8].copy_(s.a(x))
        out[:, 8:].copy_(s.b(x))
        return out

    with pytest.raises(
        UnsupportedModel, match=r"test_written_parts.py:\d+: .*shares its memory.*Needed are parts that are written as"
    ):
        trace(Writes(call).eval(), (torch.randn(1, 3, 8, 8),))


def test_places_that_values_tell_are_named():
    def call(s: Writes, x: Tensor) -> Tensor:
        y = s.both(x)
        places, out = torch.where(y.mean((1, 2, 3)) > 0)[0], torch.zeros_like(y)
        out[places] = y[places]
        return out

    with pytest.raises(UnsupportedModel, match=r"where\(\) gives as many places as the values of a tensor tell"):
        trace(Writes(call).eval(), (torch.randn(1, 3, 8, 8),))


class Normed(nn.Module):
    """A layer norm behind something that may make a number of a zero."""

    def __init__(self, between: Callable[[Tensor], Tensor]):
        super().__init__()
        self.i, self.n, self.o, self.between = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3), between

    def forward(self, x):
        return self.o(self.n(self.between(self.i(x))))


def adds_one(x: Tensor) -> Tensor:
    x.add_(1)
    return x


def fills_a_part(x: Tensor) -> Tensor:
    x[:, 4:].fill_(2.0)
    return x


def squashes(x: Tensor) -> Tensor:
    F.hardsigmoid(x, inplace=True)
    return x


def doubles(x: Tensor) -> Tensor:
    x.mul_(2)
    return x


@pytest.mark.parametrize(("between", "goes"), [(adds_one, False), (fills_a_part, False), (squashes, False), (doubles, True)])
def test_what_is_written_in_place_is_seen_by_the_norm_behind_it(between: Callable[[Tensor], Tensor], goes: bool):
    x = (torch.randn(2, 6),)
    module = trace(Normed(between).eval(), x)
    randomise(module)
    channels = solve(module, x)
    assert (channels.group("i").frozen is None) == goes
    edits = random_edits(channels.removable, 0)
    assert distance(outputs(keep(module, channels, edits), x), outputs(mask(module, channels, edits), x)) < EXACT
