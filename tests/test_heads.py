"""Attention loses whole heads, and the same channels of all heads: both may go at once, each as a group of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import random_model
from oracles import distance, outputs, random_edits
from torch import Tensor, nn

import compress
import exporters
from compress.artifact import Artifact, apply
from compress.edits import Keep, Plan
from compress.entropy import quadratic
from compress.entropy.obs import eliminate
from compress.graph.channels.groups import WITHIN
from compress.graph.channels.solve import solve
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace
from compress.selection import budget
from compress.selection.channels import Losses
from compress.statistics.collect import Sampling, collect
from compress.statistics.consumers import consumers

EXACT = 1e-5  # relative: sums in another order
HEADS, WIDTH, TOKENS = 4, 6, 5


class Attends(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, HEADS * WIDTH, bias) for _ in range(3))
        self.out, self.head = nn.Linear(HEADS * WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, -1, WIDTH).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return self.head(self.out(y).relu().mean(1))


def dense() -> Artifact:
    torch.manual_seed(0)
    x = (torch.randn(1, TOKENS, 8),)
    return Artifact(trace(Attends().eval(), x), x)


EDITS = (Keep("q", HEADS, (0, 2)), Keep(f"q{WITHIN}", WIDTH, (1, 2, 5)), Keep(f"v{WITHIN}", WIDTH, (0, 3, 4, 5)))


def test_heads_and_channels_within_them_are_groups_that_go_together(tmp_path: Path):
    model, x = dense(), torch.randn(3, TOKENS, 8)
    assert {g.name: g.channels for g in model.channels.removable} == {
        "q": HEADS,
        "out": 8,
        f"q{WITHIN}": WIDTH,
        f"v{WITHIN}": WIDTH,
    }
    made = apply(Plan(EDITS), model)
    shapes = {name: tuple(p.shape) for name, p in made.module.named_parameters()}
    assert shapes["q.weight"] == shapes["k.weight"] == (2 * 3, 8) and shapes["v.weight"] == (2 * 4, 8)
    assert shapes["out.weight"] == (8, 2 * 4)
    wanted = mask(model.module, model.channels, EDITS)
    assert distance(outputs(made.module, (x,)), outputs(wanted, (x,))) < EXACT
    # One behind the other comes to the same.
    one = apply(Plan(EDITS[:1]), model)
    assert distance(outputs(apply(Plan(EDITS[1:]), one).module, (x,)), outputs(wanted, (x,))) < EXACT
    folder = compress.save(made.module, tmp_path / "model.compressed", inputs=made.inputs)
    assert torch.equal(compress.load(folder)(x), made.module(x))
    done = exporters.export("onnx", made.module, made.inputs, tmp_path / "model.onnx", metadata={}, samples=[(x,)])
    assert done.parity is not None and done.parity.worst_abs <= done.parity.tolerance


class Normalized(Attends):
    """Linear attention: a column of ones beside the values adds the weights up, and divides what they give."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, -1, WIDTH).transpose(1, 2) for layer in (self.q, self.k, self.v))
        v = F.pad(v, (0, 1), mode="constant", value=1.0)
        y = q.relu() @ (k.relu().transpose(-1, -2) @ v)
        y = (y[..., :-1] / (y[..., -1:] + 1e-3)).transpose(1, 2).reshape(b, n, -1)
        return self.head(self.out(y).relu().mean(1))


def test_a_column_of_ones_goes_with_its_head():
    torch.manual_seed(0)
    x = (torch.randn(1, TOKENS, 8),)
    model = Artifact(trace(Normalized().eval(), x), x)
    heads = next(g for g in model.channels.removable if "v" in g.producers)
    edits = (Keep(heads.name, heads.channels, (0, 3)),)
    made, other = apply(Plan(edits), model).module, torch.randn(3, TOKENS, 8)
    assert heads.channels == HEADS and made.get_parameter("v.weight").shape[0] == 2 * WIDTH
    assert distance(outputs(made, (other,)), outputs(mask(model.module, model.channels, edits), (other,))) < EXACT


class Fused(Attends):
    """Queries, keys and values of one layer, as timm has it: they lose the same channels, so that it stays rectangular."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 3 * HEADS * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, HEADS * WIDTH)
        return self.head(self.out(y).relu().mean(1))


class Folds(nn.Module):
    """Queries, keys and values in front, heads folded into the samples behind them, as SAM does it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, b * HEADS, n, -1).unbind(0)
        y = ((q @ k.transpose(-2, -1)) * WIDTH**-0.5).softmax(-1) @ v
        y = y.view(b, HEADS, n, -1).transpose(1, 2).reshape(b, n, -1)
        return self.head(self.out(y).relu().mean(1))


class TokensFirst(Attends):
    """Heads folded into the samples, which are the second axis, as fairseq does it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        length, samples, _ = x.shape
        q, k, v = (y(x).view(length, samples * HEADS, WIDTH).transpose(0, 1) for y in (self.q, self.k, self.v))
        y = ((q @ k.transpose(1, 2)) * WIDTH**-0.5).softmax(-1) @ v
        y = y.transpose(0, 1).reshape(length, samples, HEADS * WIDTH).transpose(0, 1)
        return self.head(self.out(y).relu().mean(1))


@pytest.mark.parametrize("kind", [Folds, TokensFirst])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_heads_that_are_folded_into_samples_go_for_any_number_of_samples(samples: int, kind: type[nn.Module]):
    torch.manual_seed(0)
    x = (torch.randn(2, TOKENS, 8),)
    module = trace(kind().eval(), x)
    channels, some = solve(module, x), torch.randn(samples, TOKENS, 8)
    name = "qkv" if kind is Folds else "q"
    assert [g.channels for g in channels.removable if g.name == name] == [HEADS]
    for edits in ([Keep(name, HEADS, (0, 2))], random_edits(channels.removable, 0)):
        small, masked = keep(module, channels, edits), mask(module, channels, edits)
        assert distance(outputs(small, (some,)), outputs(masked, (some,))) < EXACT


def test_a_layer_for_queries_keys_and_values_stays_rectangular():
    x = torch.randn(2, TOKENS, 8)
    model = Artifact(trace(Fused().eval(), (x[:1],)), (x[:1],))
    edits = (Keep("qkv", HEADS, (0, 3)), Keep(f"qkv{WITHIN}", WIDTH, (1, 2, 4, 5)))
    small = apply(Plan(edits), model).module
    assert small.get_parameter("qkv.weight").shape == (3 * 2 * 4, 8) and small.get_parameter("out.weight").shape == (8, 2 * 4)
    assert distance(outputs(small, (x,)), outputs(mask(model.module, model.channels, edits), (x,))) < EXACT


def test_one_head_that_is_left_has_its_channels_as_before():
    model, x = dense(), torch.randn(3, TOKENS, 8)
    edits = (Keep("q", HEADS, (1,)), *EDITS[1:])
    small = apply(Plan(edits), model).module
    assert distance(outputs(small, (x,)), outputs(mask(model.module, model.channels, edits), (x,))) < EXACT
    again = solve(small, model.inputs)
    assert again.within is None and {g.name for g in again.removable} == {"q", "v", "out"}


def test_the_last_head_loses_channels_of_its_own():
    """Where windows, a mask and one head meet, an axis of one entry no longer told what it was of."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2], "num_heads": [2], "window_size": 8}
    net = transformers.Swinv2ForImageClassification(transformers.Swinv2Config(**sizes)).eval()
    x = torch.randn(2, 3, 64, 64)
    module = trace(net, (x[:1],))
    channels, name = solve(module, (x[:1],)), "swinv2.encoder.layers.0.blocks.1.attention.self"
    edits = (Keep(f"{name}.query", 2, (1,)), Keep(f"{name}.value{WITHIN}", 16, tuple(range(0, 16, 2))))
    assert {g.name for g in channels.removable} >= {edit.layer for edit in edits}
    assert distance(*(outputs(m(module, channels, edits), (x,)) for m in (keep, mask))) < EXACT


def test_what_is_left_is_refitted():
    """Half of the heads repeat the others, and half of the values' channels are those of others: nothing need be lost."""
    model = dense().module
    with torch.no_grad():
        for layer in (model.q, model.k, model.v):
            part: Any = layer
            part.weight[2 * WIDTH :], part.bias[2 * WIDTH :] = part.weight[: 2 * WIDTH], part.bias[: 2 * WIDTH]
        values: Any = model.v
        for tensor in (values.weight, values.bias):
            heads = tensor.view(HEADS, WIDTH, -1)
            heads[:, WIDTH // 2 :] = 2 * heads[:, : WIDTH // 2]
    images = torch.randn(400, TOKENS, 8)
    before = Artifact(model, (images[:1],))
    found = compress.remove(model, (images, None), target="params=0.62", align=1, calibration=300)
    names = {edit.layer for edit in found.plan.edits}
    assert {"q", f"v{WITHIN}"} <= names
    with torch.no_grad():
        lost = (found.model(images) - before.module(images)).square().mean() / before.module(images).var()
    plain = apply(found.plan, before).module
    unfitted = (plain(images) - before.module(images)).square().mean() / before.module(images).var()
    assert lost < 0.02 < unfitted


class Decodes(nn.Module):
    """A small detector's way with an image: its patches are read by queries."""

    def __init__(self):
        super().__init__()
        self.patch, self.queries = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(6, 16))
        self.encoder = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 24, batch_first=True), 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.encoder(self.patch(x).flatten(2).transpose(1, 2))
        return self.head(self.decoder(self.queries.expand(len(x), -1, -1), patches)).mean(1)


ATTENTION = ["attention_of_separate_linears", "rotary_attention_of_grouped_queries", "einsum_with_channels_that_pass"]
ATTENTION += ["a_single_head_written_as_einsum", "one_key_for_all_queries_written_as_einsum", "heads_written_as_einsum"]


def attending(name: str) -> Artifact:
    torch.manual_seed(0)
    module, inputs = random_model(name) if name else (Decodes().eval(), (torch.randn(1, 3, 32, 32),))
    return Artifact(trace(module, inputs), inputs)


@pytest.mark.parametrize("name", [*ATTENTION, ""])
def test_the_budget_counts_positions_that_go_with_their_head_or_their_channel_once(name: str):
    model = attending(name)
    groups = budget.removable(model.module, model.channels)
    assert any(g.inner for g in groups) or "einsum" in name
    for share in (2, 3):
        # Two at least: of a single channel torch multiplies entry by entry, which nothing counts.
        edits = tuple(Keep(g.name, g.channels, tuple(range(max(2, g.channels // share)))) for g in groups)
        small = apply(Plan(edits), model).cost
        counts = np.array([len(edit.keep) for edit in edits], dtype=float)
        for unit in ("params", "size", "macs"):
            assert budget.cost_model(model, groups, unit)(counts) == pytest.approx(budget.of(small, unit))


@pytest.mark.parametrize("target", [0.6, 0.8])
def test_a_share_of_macs_is_met_where_much_of_them_is_attention(target: float):
    model = attending("")
    images = torch.randn(60, 3, 32, 32)
    found = compress.remove(model.module, (images, None), target=f"macs={target}", align=1, calibration=60)
    assert Artifact(found.model, model.inputs).cost.macs == pytest.approx(target * model.cost.macs, rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_any_choice_of_both_is_exact(seed: int):
    model, x = dense(), torch.randn(2, TOKENS, 8)
    edits = random_edits(model.channels.removable, seed)
    small = keep(model.module, model.channels, edits)
    assert distance(outputs(small, (x,)), outputs(mask(model.module, model.channels, edits), (x,))) < EXACT


@pytest.mark.parametrize("method", ["entropic", "obs"])
def test_channels_of_queries_and_keys_go_by_measured_loss(method: Any):
    """Half of the channels of the queries say next to nothing: those go, and with them the same ones of the keys."""
    model = dense().module
    queries: Any = model.q
    with torch.no_grad():
        queries.weight.view(HEADS, WIDTH, -1)[:, ::2] *= 1e-3
        queries.bias.view(HEADS, WIDTH)[:, ::2] *= 1e-3
    images = torch.randn(200, TOKENS, 8)
    found = compress.remove(model, (images, None), method=method, target="params=0.85", align=1, calibration=100)
    kept = {edit.layer: edit.keep for edit in found.plan.edits}
    assert set(kept[f"q{WITHIN}"]) >= {1, 3, 5} and len(kept[f"q{WITHIN}"]) < WIDTH
    assert found.model.get_parameter("k.weight").shape == found.model.get_parameter("q.weight").shape


def test_channels_that_no_layer_reads_are_worth_what_they_add_up_to():
    products = torch.tensor([[4.0, 1.0, 9.0], [1.0, 2.0, 9.0], [9.0, 9.0, 6.0]], dtype=torch.float64)
    form = quadratic.alone(products, torch.tensor([0, 0, 1]), 2)
    assert quadratic.loss([form], [0, 1]) == pytest.approx(0) and form.total == pytest.approx(0.5 * (4 + 2 + 1 + 1 + 6))
    assert quadratic.loss([form], [1]) == pytest.approx(0.5 * (4 + 2 + 1 + 1)) and quadratic.loss([form], [0]) == pytest.approx(3)
    assert eliminate([form]).order == (1, 0)


def test_the_loss_of_channels_of_queries_is_the_divergence_without_them():
    model, images = dense(), torch.randn(400, TOKENS, 8)
    group = model.channels.group(f"q{WITHIN}")
    paths, every = consumers(model.module, [group]), Sampling(fisher_every=1)
    assert paths == ["q"]

    def batches() -> list[tuple[Tensor, ...]]:
        return [(part,) for part in images.split(50)]

    seen = collect(
        model.module, batches, paths, images=400, device=torch.device("cpu"), task="classification", sampling=every, states=False
    )
    forms = Losses(model.module, seen).of(group)
    for channel in range(WIDTH):
        rest = tuple(c for c in range(WIDTH) if c != channel)
        masked = mask(model.module, model.channels, [Keep(group.name, WIDTH, rest)])
        with torch.no_grad():
            whole, less = (m(images).log_softmax(1) for m in (model.module, masked))
            divergence = float((whole.exp() * (whole - less)).sum(1).mean())
        # Second order, with inputs and gradients taken for independent, and labels that are drawn.
        assert quadratic.loss(forms, rest) == pytest.approx(divergence, rel=0.4)
