"""Operations in which channels meet channels, windows or positions: what can go, goes, and zeros are counted right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from compress.graph.channels.solve import Channels, solve
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace
from compress.graph.trace.values import plain_output, tensors_in

EXACT = 1e-9
"""Relative, in float64."""


class Net(nn.Module):
    def __init__(self, call: Any, **layers: Any):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.call(self, *inputs)


def checked(model: nn.Module, x: tuple[Tensor, ...], tmp_path: Path, others: tuple[tuple[Tensor, ...], ...] = ()) -> Channels:
    """The channels of a network, of which a random third goes, exactly, for several inputs, in a file and in a checkpoint."""
    randomise(model.eval())
    module = trace(model, x)
    channels = solve(module, x)
    edits = random_edits(channels.removable, 0)
    for chosen in (edits, *([edit] for edit in edits)):
        small, masked = keep(module, channels, chosen).double(), mask(module, channels, chosen).double()
        for given in (tuple(torch.cat([t, t.flip(-1), 0.5 * t]) for t in x), *others):
            given = tuple(t.double() for t in given)
            assert distance(outputs(small, given), outputs(masked, given)) < EXACT
    small = keep(module, channels, edits)
    save(Artifact(small, x), tmp_path / "m.compressed")
    again, batch = load(tmp_path / "m.compressed"), tuple(torch.cat([t, t.flip(-1)]) for t in x)
    assert distance(outputs(again, batch), outputs(small, batch)) < 1e-5  # in float32
    exporters.export("onnx", small, x, tmp_path / "m.onnx", metadata={}, samples=[batch])
    return channels


def images() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return (torch.randn(1, 3, 8, 8),)


def heads_between_channels() -> Net:
    """Attention between the channels of each head (Restormer, XCiT)."""

    def call(s, x):
        x = s.i(x)
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, 4, -1, h * w) for t in s.qkv(x).chunk(3, dim=1))
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * s.scale).softmax(-1)
        return s.o(x + s.p((weights @ v).reshape(b, -1, h, w)))

    scale = nn.Parameter(torch.rand(4, 1, 1))
    return Net(call, i=nn.Conv2d(3, 16, 1), qkv=nn.Conv2d(16, 48, 1), p=nn.Conv2d(16, 16, 1), o=nn.Conv2d(16, 3, 1), scale=scale)


def linear_attention() -> Net:
    """Keys and values are summed up first, by an einsum."""

    def call(s, x):
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, 4, -1, h * w) for t in s.qkv(F.relu(s.i(x))).chunk(3, dim=1))
        context = torch.einsum("b h d n, b h e n -> b h d e", k.softmax(-1), v)
        return s.p(torch.einsum("b h d e, b h d n -> b h e n", context, q.softmax(-2)).reshape(b, -1, h, w))

    return Net(call, i=nn.Conv2d(3, 8, 1), qkv=nn.Conv2d(8, 48, 1), p=nn.Conv2d(16, 3, 1))


@pytest.mark.parametrize("make", [heads_between_channels, linear_attention])
def test_heads_go_whole_where_attention_is_between_their_channels(make: Callable[[], Net], tmp_path: Path):
    channels = checked(make(), images(), tmp_path, ((torch.randn(2, 3, 6, 10),),))
    assert channels.group("i").frozen is None
    assert [g.channels for g in channels.removable if g.name == "qkv"] == [4]


def test_a_scan_keeps_its_states_and_loses_the_channels_that_have_them(tmp_path: Path):
    """Mamba: what each step adds to a state is a number for each channel and each state."""

    def call(s, x):
        u = F.silu(s.i(x))
        step, into, out = s.p(u).split([2, 4, 4], dim=-1)
        delta = F.softplus(s.d(step))
        decay = torch.exp(torch.einsum("bld,dn->bldn", delta, -torch.exp(s.rates)))
        added = torch.einsum("bld,bln,bld->bldn", delta, into, u)
        state, every = torch.zeros((len(x), 12, 4), device=x.device), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + added[:, t]
            every.append(torch.einsum("bdn,bn->bd", state, out[:, t, :]))
        return s.o(torch.stack(every, dim=1) + u * s.skip)

    parts = dict(i=nn.Linear(5, 12), p=nn.Linear(12, 10), d=nn.Linear(2, 12), o=nn.Linear(12, 3))
    parts |= dict(rates=nn.Parameter(torch.randn(12, 4)), skip=nn.Parameter(torch.rand(12)))
    torch.manual_seed(0)
    channels = checked(Net(call, **parts), (torch.randn(1, 6, 5),), tmp_path)
    assert channels.group("i").frozen is None and channels.group("i").channels == 12
    assert "channels" in (channels.group("p#2").frozen or "")


def test_a_product_of_two_kinds_of_channels_keeps_the_fewer_and_passes_the_others(tmp_path: Path):
    def call(s, x):
        weights = s.a(x).transpose(1, 2) @ s.b(x)  # (samples, 4, 10)
        return s.o(weights).mean(1)

    torch.manual_seed(0)
    parts = dict(a=nn.Linear(6, 4), b=nn.Linear(6, 10), o=nn.Linear(10, 3))
    channels = checked(Net(call, **parts), (torch.randn(1, 7, 6),), tmp_path)
    assert channels.group("b").frozen is None
    assert "multiplies channels by channels" in (channels.group("a").frozen or "")


@pytest.mark.parametrize("function", [True, False])
def test_windows_of_each_channel_go_with_it(function: bool, tmp_path: Path):
    """Involution, and back by adding the windows up."""

    def call(s, x):
        x = F.relu(s.i(x))
        b, _, h, w = x.shape
        weights = s.k(x).view(b, 4, 9, h, w).unsqueeze(2)
        cut = F.unfold(x, 3, padding=1) if function else s.cut(x)
        y = (weights * cut.view(b, 4, -1, 9, h, w)).reshape(b, -1, h * w)
        return s.o(F.fold(y, (h, w), 3, padding=1) if function else s.add(y))

    parts = dict(i=nn.Conv2d(3, 16, 1), k=nn.Conv2d(16, 36, 1), o=nn.Conv2d(16, 3, 1))
    parts |= dict(cut=nn.Unfold(3, padding=1), add=nn.Fold((8, 8), 3, padding=1))
    channels = checked(Net(call, **parts), images(), tmp_path)
    assert channels.group("i").frozen is None


def test_windows_along_positions_leave_channels_free(tmp_path: Path):
    def call(s, x):
        return s.o(F.relu(s.i(x)).unfold(2, 4, 2).amax(-1)).mean(-1)

    channels = checked(Net(call, i=nn.Conv1d(3, 12, 3), o=nn.Conv1d(12, 4, 1)), (torch.randn(1, 3, 16),), tmp_path)
    assert channels.group("i").frozen is None


def test_a_convolution_of_single_places_over_tokens_mixes_positions(tmp_path: Path):
    """The gate of gMLP, behind `.mT`, which only turns axes."""

    def call(s, x):
        x = s.e(x).flatten(2).mT
        u, v = F.gelu(s.p(s.n(x))).chunk(2, dim=-1)
        return s.o((x + s.q(u * s.g(s.m(v)))).mean(1))

    parts = dict(e=nn.Conv2d(3, 12, 2, 2), n=nn.LayerNorm(12), p=nn.Linear(12, 40), m=nn.LayerNorm(20), g=nn.Conv1d(16, 16, 1))
    channels = checked(Net(call, **parts, q=nn.Linear(20, 12), o=nn.Linear(12, 3)), images(), tmp_path)
    assert {"e", "p"} <= {g.name for g in channels.removable}
    assert "mixes positions" in (channels.group("g").frozen or "")


def mean_taken_away(s, x):
    x = s.i(x)
    d = x - x.mean(1, keepdim=True)
    return s.o(d / torch.sqrt(d.pow(2).mean(1, keepdim=True) + 1e-6))


def mean_added_twice(s, x):
    x = s.i(x)
    return s.o(s.n((x + x.mean(1, keepdim=True)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("call", [mean_taken_away, mean_added_twice])
def test_a_mean_over_channels_is_no_zero_where_some_are(call: Any, tmp_path: Path):
    """A layer norm that is written by hand, and one behind a mean: what is left of a channel is the mean."""
    checked(Net(call, i=nn.Conv2d(3, 12, 1), n=nn.LayerNorm(12), o=nn.Conv2d(12, 3, 1)), images(), tmp_path)


def test_sizes_that_follow_the_input_do_so_afterwards(tmp_path: Path):
    """Parts of positions by their sizes, and a table of which as many rows are read as the picture has."""

    def call(s, x):
        y = F.relu(s.i(x))
        b, _, h, w = y.shape
        both = s.m(torch.cat([y.mean(3), y.mean(2)], 2))
        rows, columns = torch.split(both, [h, w], dim=2)
        y = y * rows.sigmoid()[..., None] * columns.sigmoid()[:, :, None]
        places = torch.cat([s.t[:w].unsqueeze(0).repeat(h, 1, 1), s.t[:h].unsqueeze(1).repeat(1, w, 1)], -1).permute(2, 0, 1)
        return s.o(torch.cat([y, places.expand(b, -1, -1, -1)], 1))

    parts = dict(i=nn.Conv2d(3, 12, 1), m=nn.Conv1d(12, 12, 1), o=nn.Conv2d(20, 3, 1), t=nn.Parameter(torch.randn(20, 4)))
    channels = checked(Net(call, **parts), images(), tmp_path, ((torch.randn(2, 3, 12, 9),),))
    assert channels.group("i").frozen is None


@dataclass
class Answer:
    scores: Tensor
    hidden: Tensor | None = None


class Pair(NamedTuple):
    scores: Tensor
    hidden: Tensor


@pytest.mark.parametrize(
    "made", [lambda y: Answer(y), lambda y: Answer(y, y.exp()), lambda y: Pair(y, y * 2), lambda y: {"a": Answer(y), "b": [y]}]
)
@pytest.mark.parametrize("recorded", [False, True])
def test_outputs_in_classes_of_ones_own_become_plain_ones(made: Callable[[Tensor], Any], recorded: bool, tmp_path: Path):
    def call(s, x):
        h = F.gelu(s.a(x))
        if recorded:  # no symbol goes through this
            h[:, 0] = 0
        return made(s.b(h))

    torch.manual_seed(0)
    model = Net(call, a=nn.Linear(6, 16), b=nn.Linear(16, 3)).eval()
    checked(model, (torch.randn(1, 6),), tmp_path)
    x = torch.randn(2, 6)  # an example of two samples
    with torch.no_grad():
        found, expected = trace(model, (x,))(x), plain_output(model(x))
    assert isinstance(found, dict if isinstance(made(x), Answer | dict) else tuple)
    assert distance(outputs(trace(model, (x,)), (x,)), tensors_in(expected)) < 1e-6


@pytest.mark.parametrize(
    "function",
    [lambda x: x.sinh().clamp(-5, 5), torch.exp2, lambda x: torch.nan_to_num(x), torch.atanh, lambda x: x.sgn() * math.pi],
)
def test_functions_of_single_entries_pass_every_channel(function: Callable[[Tensor], Tensor], tmp_path: Path):
    channels = checked(
        Net(lambda s, x: s.o(function(torch.tanh(s.i(x)) * 0.9)), i=nn.Conv2d(3, 12, 1), o=nn.Conv2d(12, 3, 1)),
        images(),
        tmp_path,
    )
    assert channels.group("i").frozen is None
