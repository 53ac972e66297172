"""Norms behind layers that lost inputs and could not be refitted get new statistics; all others keep theirs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.artifact import Artifact, apply
from compress.edits import Keep, Plan
from compress.graph.channels.solve import solve
from compress.graph.merge.batch_norm import fold
from compress.graph.trace.trace import trace
from compress.refit import refit as calibration
from compress.refit.norms import reads_less
from compress.refit.walk import refit

CPU = torch.device("cpu")


class Loose(nn.Module):
    """A convolution whose weight stands in the graph itself, a norm behind it, and norms elsewhere."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3) / 8)
        self.matrix = nn.Parameter(torch.randn(6, 8) / 3)
        self.second, self.third = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.out, self.last = nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.stem(x)))
        if self.how == "convolution":
            # Used twice, with other settings: no layer can be made of it.
            x = F.conv2d(x, self.weight, padding=1) + 0 * F.conv2d(x, self.weight, padding="same")
        else:
            x = F.linear(x.movedim(1, -1), self.matrix) + 0 * F.linear(x.movedim(1, -1), self.matrix, self.second.bias)
            x = x.movedim(-1, 1)
        x = self.third(torch.tanh(self.second(x)))
        return self.last(self.out(torch.relu(x)).mul(1.0)).mean((2, 3))


def settled(how: str) -> tuple[Artifact, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(200, 3, 6, 6) + 0.5
    model = Loose(how).train()
    with torch.no_grad():
        for _ in range(60):
            model(images)
    inputs = (images[:1],)
    return Artifact(trace(model.eval(), inputs), inputs), images


def removed(dense: Artifact, images: Tensor) -> tuple[Artifact, Artifact, tuple[str, ...]]:
    """Without and with a refit, and the norms that got new statistics."""
    group = next(g for g in solve(dense.module, dense.inputs).removable if "stem" in g.producers)
    plan = Plan((Keep(group.name, 8, (0, 3, 6)),))
    smaller = apply(plan, dense)
    small, batches = fold(smaller.module), [(part,) for part in images.split(80)]
    done = refit(fold(dense.module), small, calibration.kept(dense, plan), batches, device=CPU)
    return smaller, Artifact(calibration.written_back(smaller, small, batches), dense.inputs), done.recalibrated


def statistics(artifact: Artifact, name: str) -> tuple[Tensor, Tensor]:
    norm = artifact.module.get_submodule(name)
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def error(dense: Artifact, other: Artifact, images: Tensor) -> float:
    with torch.no_grad():
        return float((dense.module(images) - other.module(images)).square().mean())


@pytest.mark.parametrize("how", ["convolution", "linear"])
def test_norms_behind_what_lost_inputs_get_new_statistics(how: str):
    dense, images = settled(how)
    cut, fitted, recalibrated = removed(dense, images)
    assert recalibrated == ("second", "third")
    seen: dict[str, Tensor] = {}
    for name in recalibrated:
        fitted.module.get_submodule(name).register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
    with torch.no_grad():
        fitted.module(images)
    for name, x in seen.items():
        mean, variance = statistics(fitted, name)
        torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)  # fp32 sums of 7,200 values
        torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0), rtol=1e-3, atol=1e-5)
    assert error(dense, fitted, images) < error(dense, cut, images)


def test_norms_whose_layers_were_refitted_keep_their_statistics():
    dense, images = settled("convolution")
    before = {name: [t.clone() for t in statistics(dense, name)] for name in ("second", "last")}
    _, fitted, _ = removed(dense, images)
    for name, artifact in (("last", fitted), ("second", dense)):
        assert all(torch.equal(a, b) for a, b in zip(before[name], statistics(artifact, name), strict=True))


def test_only_what_reads_less_counts_as_cut():
    dense, _ = settled("convolution")
    group = next(g for g in solve(dense.module, dense.inputs).removable if "stem" in g.producers)
    small = apply(Plan((Keep(group.name, 8, (0, 3, 6)),)), dense).module
    cut = [n.name for n in dense.module.graph.nodes if reads_less(dense.module, small, n)]
    assert cut == ["conv2d", "conv2d_1"]
