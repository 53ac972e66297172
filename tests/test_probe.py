"""The probe: distances by hand, decoders that get back what is there, places that everything passes, and what a plan loses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import Net
from torch import nn
from torchvision.models import VisionTransformer

from compress.api import analyze
from compress.artifact import Artifact
from compress.cli.main import cli
from compress.commands.probe import Probing, places, probe
from compress.data import from_arrays
from compress.edits import Keep, Plan
from compress.entropy.reconstruction import Decoder, Geometry, geometry, on_grid, relative_entropy, shrunk
from compress.errors import BadInput, UnsupportedModel
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.stage import Context


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- distance --------------------------------------------------------------------------------------------------------------


def test_the_distance_is_the_relative_entropy_of_two_distributions():
    one, other = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.0, 3.0, 2.0]])
    gray = 3 / 255  # the same range in both
    p, q = (x + gray for x in (one.double(), other.double()))
    p, q = p / p.sum(), q / q.sum()
    expected = (p * (p / q).log2()).sum()
    assert float(relative_entropy(one, other)) == pytest.approx(float(expected), rel=1e-6)


def test_equal_pictures_have_no_distance_whatever_their_brightness_and_contrast():
    x = torch.rand(4, 3, 5, 5)
    assert relative_entropy(x, 7 * x - 3).abs().max() < 1e-5
    assert relative_entropy(x, x.flip(0)).min() > 0.1


def test_constant_pictures_give_numbers():
    x, flat = torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    for pair in ((x, flat), (flat, x), (flat, flat)):
        assert bool(relative_entropy(*pair).isfinite().all())


# ---- decoders --------------------------------------------------------------------------------------------------------------


def decoded(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    decoder = Decoder(geometry(value, target), len(target), 0)
    for part in zip(value.split(50), target.split(50), strict=True):
        decoder.add(*part)
    return decoder(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.cat([x, -x], 1),  # each pixel in place
        lambda x: nn.functional.pixel_unshuffle(x, 4),  # blocks in channels
        lambda x: nn.functional.conv2d(x, torch.eye(9).view(9, 1, 3, 3)[[0, 8]].expand(2, 1, 3, 3), padding=1),  # neighbors
        lambda x: x.flatten(1) @ torch.linalg.qr(torch.randn(64, 64)).Q,  # no space at all
        lambda x: x.flatten(1)[:, :, None, None],  # global features in the shape of a map
    ],
    ids=["pixels", "blocks", "neighbors", "flat", "one position"],
)
def test_what_an_activation_holds_linearly_is_got_back(make):
    x = torch.rand(400, 1, 8, 8)
    missed = (decoded(make(x), x) - x)[..., 1:-1, 1:-1].square().mean()  # of neighbors, the border lacks some
    assert missed < 0.1 * x.var()  # the ridge, and what the border does to weights that all positions share


def test_every_block_gets_back_to_its_own_place():
    x = torch.rand(200, 2, 6, 4)
    split = torch.stack([x[:, c, i::2, j::2] for c in range(2) for i in range(2) for j in range(2)], 1)
    assert geometry(split, x) == Geometry((3, 2), 5, (2, 6, 4))
    assert (decoded(split, x) - x).abs().max() < 0.02


def test_what_an_activation_has_lost_is_not_got_back():
    x = torch.rand(400, 1, 8, 8)
    noise = decoded(torch.randn(400, 4, 8, 8), x)
    assert noise.var() < 0.1 * x.var()
    half = decoded(x[..., :4], x)  # stretched over the input
    assert (half - x)[..., 5:].square().mean() > 0.5 * x.var()


def test_maps_of_any_size_and_number_of_axes_lie_over_the_input():
    for value, target, grid in (
        (torch.rand(60, 3, 5, 7), torch.rand(60, 1, 8, 9), (8, 9)),
        (torch.rand(60, 3, 4, 3), torch.rand(60, 1, 8, 9), (4, 3)),
        (torch.rand(60, 3, 10, 9), torch.rand(60, 1, 8, 9), (8, 9)),
        (torch.rand(60, 3, 5), torch.rand(60, 2, 12), (6,)),
        (torch.rand(60, 2, 2, 3, 4), torch.rand(60, 1, 4, 6, 8), (2, 3, 4)),
    ):
        assert geometry(value, target).grid == grid
        assert decoded(value, target).shape == target.shape


def test_a_smaller_map_is_laid_where_it_belongs():
    x = torch.rand(200, 1, 9, 9) - 0.5
    valid, every_second = x[..., 1:-1, 1:-1], x[..., ::2, ::2]  # convolutions without padding, and with a stride
    assert not geometry(valid, x).stretched and geometry(every_second, x).stretched
    assert (decoded(valid, x) - x)[..., 1:-1, 1:-1].square().mean() < 0.1 * x.var()


def test_what_is_decoded_stays_in_the_range_of_the_inputs():
    x = (torch.rand(200, 1, 4, 4) > 0.9).float()
    noisy = torch.cat([x, x], 1) + 0.3 * torch.randn(200, 2, 4, 4)
    found = decoded(noisy, x)
    assert found.min() == 0 and found.max() <= 1  # without that a single dark spot would light up all of the background


def test_large_inputs_are_averaged_and_tokens_laid_out():
    assert shrunk(torch.rand(2, 3, 64, 20)).shape == (2, 3, 32, 20)
    tokens = torch.arange(10.0).view(1, 10, 1)
    assert on_grid(tokens, -1, (8, 8)).tolist() == [[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]]  # the first is a class token
    assert on_grid(torch.rand(1, 5, 4, 3), -1, (8, 8)).shape == (1, 3, 5, 4)


# ---- places ----------------------------------------------------------------------------------------------------------------


def test_a_place_is_where_everything_has_to_pass():
    def call(s, x):
        x = s.stem(x)
        return s.head((s.last(s.inner(x) + x) + x).mean((2, 3)))

    inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    net = Net(call, stem=stem, inner=inner, last=nn.ReLU(), head=nn.Linear(4, 2))
    found = places(trace(net, (torch.zeros(1, 1, 8, 8),)))
    assert list(found) == ["stem.1", "add_1"]  # not inside the block, not the first sum: the stream passes beside it


def test_a_model_without_such_a_place_or_of_tokens_is_refused(tmp_path):
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "plain.pt")
    with pytest.raises(UnsupportedModel, match="nothing to probe"):
        analyze(tmp_path / "plain.pt", data="digits", probe=True)
    with pytest.raises(BadInput, match="--probe"):
        analyze(tmp_path / "plain.pt", data="digits", plan=Plan())


@pytest.mark.parametrize("how", ["stacked", "emptied", "complex"])
def test_values_without_a_real_row_for_each_sample_are_refused(how: str, tmp_path):
    def call(s, x):
        if how == "emptied":
            x = x[0:0]
            return s.head((x + x).flatten(1))
        y = torch.fft.fft2(s.act(x)) if how == "complex" else torch.stack([s.act(x), s.act(x)])
        y = y + y
        return s.head((y.real if how == "complex" else y.sum(0)).flatten(1))

    module = trace(Net(call, act=nn.ReLU(), head=nn.Linear(64, 10)), (torch.zeros(2, 1, 8, 8),))
    said = {"stacked": r"has the shape \(2, .* for", "emptied": r"has the shape \(0, ", "complex": "has complex numbers"}[how]
    with pytest.raises(UnsupportedModel, match=said):
        analyze(module, data="digits", probe=True, device="cpu", allow_doubtful=True)


# ---- whole -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def net(tmp_path):
    made = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 40),
        nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip
    torch.save(made, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_the_bottleneck_of_a_plan_is_named(net):
    options = {"data": "digits", "probe": True, "device": "cpu"}
    dense = analyze(net, **options)
    assert isinstance(dense, Probing) and [row.place for row in dense.rows] == ["1", "3", "6"]
    lost = [row.lost for row in dense.rows]
    rises = [now - before for now, before in zip(lost, [0.0, *lost], strict=False)]
    assert 0 < lost[0] < lost[1] < 1 and dense.recovers is None
    assert dense.bottleneck == dense.rows[rises.index(max(rises))].place and dense.bottleneck in dense.verdict
    cut = analyze(net, plan=Plan((Keep("2", 12, (0,)),)), **options)
    assert cut.bottleneck == "3" and not cut.recovers and "3" in cut.verdict
    assert [row.lost for row in cut.rows] == lost  # the dense model beside it
    same = analyze(net, plan=Plan((Keep("0", 8, (0, 1, 2, 3, 4, 5, 6)),)), **options)
    assert same.recovers and max(row.planned_lost - row.lost for row in same.rows) < 0.1


def test_tokens_of_a_transformer_are_decoded_where_they_stand():
    blocks = np.random.default_rng(0).integers(0, 255, (120, 4, 4, 3))
    pictures = np.kron(blocks, np.ones((1, 8, 8, 1))).astype(np.uint8)  # a color per patch: 3 numbers of which 32 can tell
    data = from_arrays({"x": pictures, "y": np.arange(120) % 10})
    inputs = (torch.zeros(1, 3, 32, 32),)
    net = VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10).eval()
    context = Context(Artifact(trace(net, inputs), inputs), data, make(device="cpu"), torch.device("cpu"))
    found = probe(context)
    assert len(found.rows) == 4 and max(row.lost for row in found.rows) < 0.05  # two sums per block, and nothing is lost


def test_the_command_line_prints_places_and_a_verdict(net, tmp_path):
    (tmp_path / "plan.json").write_text(Plan((Keep("2", 12, (0,)),)).to_json())
    arguments = [
        "analyze",
        str(net),
        "--data",
        "digits",
        "--probe",
        "--plan",
        str(tmp_path / "plan.json"),
        "--calibration",
        "200",
    ]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "planned lost" in shown.stdout and "The plan loses most at 3" in shown.stdout
    told = json.loads(CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert told["bottleneck"] == "3" and told["recovers"] is False and len(told["rows"]) == 3


def test_probing_repeats_exactly(net):
    first, again = (analyze(net, data="digits", probe=True, device="cpu", calibration=200) for _ in range(2))
    assert first == again


def test_how_much_of_a_map_a_decoder_reads_does_not_depend_on_the_number_of_images():
    few, many = torch.randn(4, 3, 4, 4), torch.randn(100, 3, 4, 4)
    for value in (few, many):
        decoder = Decoder(Geometry((), 1, (5,)), len(value), 0)
        decoder.add(value, torch.randn(len(value), 5))
        assert decoder.fit.weight.shape[-1] == 3 * 16


def test_a_decoder_takes_about_as_many_rows_of_all_images_whatever_the_batches():
    value, target = torch.randn(64, 2, 32, 32), torch.randn(64, 1, 32, 32)
    whole = Decoder(Geometry((32, 32), 1, (1, 32, 32)), 64, 0)
    parts = Decoder(Geometry((32, 32), 1, (1, 32, 32)), 64, 0)
    whole.add(value, target)
    for i in range(0, 64, 16):
        parts.add(value[i : i + 16], target[i : i + 16])
    assert whole.moments.rows == parts.moments.rows == 20_000, "of 65536 positions"
