"""Models without one answer to one sample are refused: what is random, and what depends on the rest of a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.artifact import Artifact
from compress.checkpoint.load import open_artifact
from compress.errors import CompressWarning, UnsupportedModel
from compress.graph.trace.trace import trace
from compress.pipeline.doubts import uncounted

NETS = """
import torch
from torch import Tensor, nn
import torch.nn.functional as F
from torch import Tensor, nn

class Net(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.norm, self.head, self.drop = nn.Conv2d(3, 4, 3), norm(4), nn.Linear(4, 5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))

class AlwaysDropped(Net):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.3, training=True)

class NeverEval(Net):
    def eval(self):
        super().eval()
        self.drop.train()
        return self

    def train(self, mode=True):
        super().train(mode)
        self.drop.train()
        return self

class Noise(Net):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))

class Fixed(Net):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn(8, 8))

class Unused(Net):
    def forward(self, x):
        torch.rand(3)
        return super().forward(x)

class Centered(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)

class MixedInside(Net):
    def __init__(self):
        super().__init__(nn.Identity)
        self.norm = nn.Sequential(nn.ReLU(), Centered())

class ByFunction(Net):
    def forward(self, x):
        return super().forward(F.batch_norm(x, None, None, training=True))

class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(x.flatten(1, 2)).mean(1)

def without_statistics():
    return Net(lambda n: nn.BatchNorm2d(n, track_running_stats=False))

def in_groups():
    return Net(lambda n: nn.GroupNorm(2, n))

def by_sample():
    return Net(lambda n: nn.InstanceNorm2d(n))
"""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)

    def opening(name: str) -> object:
        from compress.checkpoint.load.architectures import build

        torch.save(build(f"nets.py:{name}", {}).state_dict(), "model.pt")
        return open_artifact("model.pt", arch=f"nets.py:{name}", input_shapes=[(3, 8, 8)])

    return opening


@pytest.mark.parametrize(
    ("name", "line"),
    [("AlwaysDropped", "F.dropout(super"), ("NeverEval", "self.drop(self"), ("Noise", "randn_like"), ("Fixed", "(8, 8)")],
)
def test_random_outputs_are_refused_with_the_line_that_draws(opened: Callable[[str], object], name: str, line: str):
    number = next(i for i, text in enumerate(NETS.splitlines(), 1) if line in text)
    with pytest.raises(UnsupportedModel, match=f"output of the model is random: .* in nets.py:{number} ") as refused:
        opened(name)
    assert ("dropout in" in str(refused.value)) == (name in ("AlwaysDropped", "NeverEval"))


@pytest.mark.parametrize(
    ("name", "layer", "remedy"),
    [
        ("without_statistics", "norm normalizes by the batch", "track_running_stats=True"),
        ("MixedInside", r"norm.1 \(Centered\)", "track_running_stats=True"),
        ("ByFunction", r"the code in front of conv \(Conv2d\)", "sums, norms and conditions of every sample alone"),
    ],
)
def test_models_that_mix_the_samples_of_a_batch_are_refused_by_layer(
    opened: Callable[[str], object], name: str, layer: str, remedy: str
):
    with pytest.raises(UnsupportedModel, match=f"depends on the others in its batch: .*{layer}.*{remedy}"):
        opened(name)


@pytest.mark.parametrize("name", ["Net", "Unused", "in_groups", "by_sample", "Attends"])
def test_models_with_one_answer_to_one_sample_open_and_leave_the_random_state(opened: Callable[[str], object], name: str):
    opened(name)
    before = torch.get_rng_state()
    opened(name)
    assert torch.equal(before, torch.get_rng_state()) or name == "Unused"


class Uncounted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # a leaf
            x = x + 1
        return (x[:, None] * self.weight).sum(2)


def test_layers_whose_macs_could_not_be_counted_are_named_in_a_warning():
    inputs = (torch.zeros(1, 4),)
    dense = Artifact(trace(nn.Sequential(Uncounted(), nn.Linear(4, 2)), inputs), inputs)
    with pytest.warns(CompressWarning, match=r"The MACs of 0 \(Uncounted\) could not be counted"):
        assert len(uncounted(dense).warnings) == 1
    counted = Artifact(trace(nn.Linear(4, 2), inputs), inputs)
    assert uncounted(counted) is counted
