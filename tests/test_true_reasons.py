"""A refusal names what stands in the way, and not what stands beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compress.checkpoint.load import load_model
from compress.checkpoint.load.behavior import refuse_unsteady
from compress.errors import BadInput, UnsupportedModel
from compress.graph.trace.trace import trace
from compress.user import code

X = torch.rand(1, 3, 4, 4)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor):
        return self.last(self.between(self.first(x)))

    def between(self, x: torch.Tensor):
        return x


class OnGpu(Plain):
    def between(self, x: torch.Tensor):
        raise RuntimeError("Found no NVIDIA driver on your system.")


class Elsewhere(Plain):
    def between(self, x: torch.Tensor):
        import deformed_on_cuda  # type: ignore[import-not-found]

        return deformed_on_cuda.run(x)


class AllTogether(Plain):
    def between(self, x: torch.Tensor):
        return x / x.norm()


class Number(Plain):
    def between(self, x: torch.Tensor):
        return x

    def forward(self, x: torch.Tensor):
        return super().forward(x).sum().item()


def test_a_forward_that_needs_a_gpu_or_a_package_is_not_told_to_be_of_another_shape():
    with pytest.raises(UnsupportedModel, match=r"computes on a GPU whatever it is given \(test_true_reasons.py:\d+: Found no"):
        trace(OnGpu(), (X,))
    with pytest.raises(BadInput, match=r"imports what is not installed here \(test_true_reasons.py:\d+: No module named 'deform"):
        trace(Elsewhere(), (X,))


def test_code_between_layers_that_mixes_samples_is_not_blamed_on_the_layer_behind_it():
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModel, match=r"the code in front of last \(Conv2d\) lets .* conditions of every sample"):
        refuse_unsteady(AllTogether().eval(), (X,))


def test_a_number_as_output_is_told_with_its_line():
    with pytest.raises(UnsupportedModel, match=r"no tensor but what item \(test_true_reasons.py:\d+\) gives"):
        trace(Number(), (X,))


def test_weights_without_data_and_quantized_weights_are_called_so(tmp_path: Path):
    with torch.device("meta"):
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "meta.pt")
    with pytest.raises(BadInput, match="has weights without data"):
        load_model(tmp_path / "meta.pt", arch="torch.nn:Linear", arch_kwargs={"in_features": 2, "out_features": 2})
    torch.save({"0.scale": torch.tensor(1.0), "0.zero_point": torch.tensor(0)}, tmp_path / "rounded.pt")
    (tmp_path / "net.py").write_text("from torch import nn\ndef net(): return nn.Sequential(nn.Linear(2, 2))\n")
    with pytest.raises(BadInput, match=r"is quantized \('0'\). Compress the model before"):
        load_model(tmp_path / "rounded.pt", arch=f"{tmp_path}/net.py:net")


def test_a_file_of_code_is_carried_out_once_until_it_changes(tmp_path: Path):
    path = tmp_path / "registers.py"
    path.write_text("count = []\ndef f(): count.append(1); return len(count)\n")
    assert [code.function(f"{path}:f", "--arch")() for _ in range(2)] == [1, 2]
    path.write_text("count = [0, 0]\ndef f(): return len(count)\n")
    assert code.function(f"{path}:f", "--arch")() == 2
