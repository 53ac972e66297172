"""Which weights of a checkpoint are read: averaged beside raw ones, and a model's beside those of its loss and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from compress.checkpoint.load import Loaded, load_model
from compress.errors import BadInput

NET = """
from torch import nn
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5))
"""


def weights(value: float, prefix: str = "") -> dict[str, Any]:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5))
    nn.init.constant_(net[2].weight, value)
    return {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}


def averaged_model(value: float) -> AveragedModel:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5))
    nn.init.constant_(net[2].weight, value)
    return AveragedModel(net)


def opened(saved: object, **settings: Any) -> Loaded:
    torch.save(saved, "model.pt")
    return load_model("model.pt", arch="net.py:net", **settings)


def value(loaded: Loaded) -> float:
    return float(loaded.module.get_parameter("2.weight")[0, 0].detach())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)


BESIDE = {
    "timm": ({"state_dict": weights(1), "state_dict_ema": weights(2)}, "state_dict"),
    "short": ({"model": weights(1), "ema": weights(2), "epoch": 3}, "model"),
    "nested": ({"model": weights(1), "model_ema": {"decay": 0.9, "module": weights(2)}}, "model"),
    "swa": ({"model": weights(1), "swa_model": averaged_model(2).state_dict()}, "model"),
    "by name": ({"state_dict": {**weights(1, "model."), **weights(2, "ema_model.")}}, "model"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_averaged_weights_are_taken_where_there_are_both_and_the_others_on_demand(kind: str):
    saved, raw = BESIDE[kind]
    loaded = opened(saved)
    assert value(loaded) == 2
    assert any("averaged weights were read" in note and f"--weights-entry {raw} takes" in note for note in loaded.notes)
    assert value(opened(saved, weights_entry=raw)) == 1


@pytest.mark.parametrize(
    "saved", [{"state_dict_ema": weights(2)}, {"ema": weights(2), "epoch": 1}, averaged_model(2).state_dict()]
)
def test_averaged_weights_alone_open(saved: object):
    loaded = opened(saved)
    assert value(loaded) == 2 and loaded.notes


def test_a_whole_averaged_model_opens_when_it_is_trusted():
    torch.save(averaged_model(2), "whole.pt")
    loaded = load_model("whole.pt", trust_pickle=True)
    assert value(loaded) == 2 and "AveragedModel" in " ".join(loaded.notes)


def test_averages_of_parameters_alone_are_passed_by_and_named():
    ema = {name: tensor for name, tensor in weights(2).items() if "running" not in name}
    loaded = opened({"model": weights(1), "ema": ema})
    assert value(loaded) == 1 and any("averaged ones in 'ema' have other names" in note for note in loaded.notes)


@pytest.mark.parametrize("extra", ["criterion.pos_weight", "train_acc.tp"])
@pytest.mark.parametrize("prefix", ["model.", "task.net."])
def test_weights_of_losses_and_metrics_are_left_out_by_name(extra: str, prefix: str):
    loaded = opened({"epoch": 1, "state_dict": {**weights(3, prefix), extra: torch.ones(6)}, "hyper_parameters": {"lr": 0.1}})
    assert value(loaded) == 3
    assert any(extra in note and note.startswith("Left out") for note in loaded.notes)


def test_what_the_architecture_lacks_below_the_same_part_is_no_loss():
    with pytest.raises(BadInput, match=r"7\.weight is unexpected"):
        opened({**weights(3, "model."), "model.7.weight": torch.ones(2), "loss.w": torch.ones(2)})


def test_weights_that_stand_there_twice_are_refused_until_one_is_named():
    twice = {**weights(1, "student."), **weights(2, "teacher.")}
    with pytest.raises(BadInput, match=r"more than once, under 'student' and 'teacher'\. Say which with --weights-entry student"):
        opened(twice)
    assert value(opened(twice, weights_entry="teacher")) == 2


def test_an_entry_that_is_not_there_is_refused():
    with pytest.raises(BadInput, match="no weights of the architecture in an entry 'ema'"):
        opened({"state_dict": weights(1)}, weights_entry="ema")
    with pytest.raises(BadInput, match="has no entry 'ema' with weights"):
        opened({"model": nn.Sequential(nn.Linear(2, 2))}, weights_entry="ema")
