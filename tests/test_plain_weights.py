"""Lazy layers and computed weights: the model that opens is the one that torch itself would run, made of plain layers."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from compress.checkpoint.load import load_model, open_artifact
from compress.errors import BadInput
from compress.graph.trace.plain_weights import make_plain
from compress.graph.trace.trace import trace

NETS = """
import torch.nn.utils as u
import torch.nn.utils.prune as prune
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3),
                         nn.Flatten(), nn.Linear(384, 5))

def every(change):
    made = net()
    for m in made:
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            change(m)
    return made

def hooked(): return every(u.weight_norm)
def masked(): return every(lambda m: prune.ln_structured(m, "weight", 0.3, n=2, dim=0))
def twice_masked(): return every(lambda m: [prune.random_unstructured(m, n, 0.3) for n in ("weight", "bias")])
def normed(): return every(u.parametrizations.weight_norm)
def spectral(): return every(u.parametrizations.spectral_norm)
def old_spectral(): return every(u.spectral_norm)
def orthogonal(): return every(u.parametrizations.orthogonal)

def lazy(classes=5):
    return nn.Sequential(nn.LazyConv2d(8, 3, groups=1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConvTranspose2d(6, 3),
                         nn.Flatten(), nn.LazyLinear(classes))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("nets", tmp_path / "nets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def x() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


KINDS = ["hooked", "masked", "twice_masked", "normed", "spectral", "old_spectral", "orthogonal"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", KINDS)
def test_computed_weights_become_plain_ones_that_can_be_removed(nets: Any, kind: str):
    dense = getattr(nets, kind)()
    with torch.no_grad():
        dense(x())  # vectors and statistics move
        wanted = dense.eval()(x())
    torch.save(dense.state_dict(), "model.pt")
    loaded = load_model("model.pt", arch=f"nets.py:{kind}")
    assert sorted(loaded.module.state_dict()) == sorted(nets.net().state_dict())
    assert [type(m) for m in loaded.module] == [type(m) for m in nets.net()]
    torch.testing.assert_close(loaded.module(x()), wanted, rtol=1e-5, atol=1e-6)
    assert any("0, 5 became plain weights" in note for note in loaded.notes)
    opened = open_artifact("model.pt", arch=f"nets.py:{kind}", input_shapes=[(3, 8, 8)])
    assert [group.channels for group in opened.channels.removable][:1] == [8]


def test_frozen_layers_stay_frozen_when_their_weights_become_plain(nets: Any):
    model = nets.masked()
    model[0].requires_grad_(False)
    make_plain(model.eval())
    assert not model[0].weight.requires_grad and model[5].weight.requires_grad


def test_lazy_layers_take_their_sizes_from_the_weights(nets: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense = nets.lazy()
        dense(x())
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in dense.eval().state_dict().items()}}, "model.pt")
    before = torch.get_rng_state()
    loaded = load_model("model.pt", arch="nets.py:lazy").module
    assert torch.equal(before, torch.get_rng_state())
    assert [type(m) for m in loaded] == [type(m) for m in nets.net()]
    assert (loaded[0].in_channels, loaded[3].in_channels, loaded[1].num_features, loaded[5].in_features) == (3, 8, 8, 384)
    assert torch.equal(loaded(x()), dense(x()))
    assert open_artifact("model.pt", arch="nets.py:lazy", input_shapes=[(3, 8, 8)]).channels.removable


def test_lazy_layers_without_weights_are_refused_by_name(nets: Any):
    torch.save(nets.lazy(), "model.pt")
    with pytest.raises(BadInput, match=r"sizes are not known yet \(0, LazyConv2d\). Call the model once"):
        load_model("model.pt", trust_pickle=True)
    torch.save({"5.weight": torch.ones(5, 384), "5.bias": torch.ones(5)}, "model.pt")
    with pytest.raises(BadInput, match=r"0.weight is missing"):
        load_model("model.pt", arch="nets.py:lazy")


def test_a_model_whose_weights_are_computed_stays_as_it_was():
    # torch's way back from a parametrization takes the property from the class, which a copy shares, and sets the tensors.
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval(), torch.rand(1, 3, 2, 2)
    parametrize.register_parametrization(model[0], "weight", Twice())
    parametrizations.weight_norm(model[1])
    before, held = model(x), {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        assert torch.equal(trace(model, (x,))(x), before)
    assert torch.equal(model(x), before)
    now = model.state_dict()
    assert held.keys() == now.keys() and all(torch.equal(held[name], value) for name, value in now.items())


class Twice(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight
