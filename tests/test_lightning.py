"""The callback of Lightning: with a stand-in for the trainer always, with Lightning itself where it is installed."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from live import net, samples
from pages import ROOT
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import compress
from compress.errors import BadInput, MissingPackage

PLACE = "compress.integrations.lightning"
QUICK: Any = {"calibration": 60, "rounds": 5}


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class, on a base that does nothing: what it does itself is looked at."""
    package, inside = ModuleType("lightning"), ModuleType("lightning.pytorch")
    package.__spec__ = SimpleNamespace(name="lightning")  # type: ignore[assignment]
    inside.Callback = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", inside)
    monkeypatch.delitem(sys.modules, PLACE, raising=False)
    yield importlib.import_module(PLACE).PruneWhileTraining
    sys.modules.pop(PLACE, None)


class Module(nn.Module):
    """What of a LightningModule the callback touches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"net": net().train()})
        self.critic = nn.Linear(2, 2)
        self.logged: list[tuple[str, float]] = []

    def log(self, name: str, value: float) -> None:
        self.logged.append((name, value))


def trainer(module: Module, epoch: int = 0, processes: int = 1) -> Any:
    own, other = (torch.optim.AdamW(m.parameters()) for m in (module.inner.net, module.critic))
    x, y = samples(80)
    nn.functional.cross_entropy(module.inner.net(x), y).backward()
    own.step()
    loader = DataLoader(TensorDataset(x, y), batch_size=40)
    return SimpleNamespace(current_epoch=epoch, train_dataloader=loader, optimizers=[own, other], world_size=processes)


def test_at_its_epoch_the_part_gets_smaller_and_its_optimizer_follows(callback: Any):
    module = Module()
    pruning, running = callback(at=(1,), target="macs=0.6", part="inner.net", **QUICK), trainer(module)
    before, critic = module.inner.net, [id(p) for p in module.critic.parameters()]
    pruning.on_fit_start(running, module)
    pruning.on_train_epoch_start(running, module)
    assert module.inner.net is before and not pruning.done  # epoch 0
    running.current_epoch = 1
    pruning.on_train_epoch_start(running, module)
    after = module.inner.net
    assert after is pruning.done[0].model and after.training
    number = sum(p.numel() for p in after.parameters())
    assert number < sum(p.numel() for p in before.parameters()) and module.logged == [("parameters", number)]
    own, other = running.optimizers
    assert {id(p) for group in own.param_groups for p in group["params"]} == {id(p) for p in after.parameters()}
    assert all(own.state[p]["exp_avg"].shape == p.shape for p in after.parameters() if p in own.state) and own.state
    assert [id(p) for group in other.param_groups for p in group["params"]] == critic


def test_what_would_fail_later_is_refused_before_the_first_step(callback: Any):
    module = Module()
    with pytest.raises(BadInput, match=r"has no 'model'; it holds inner, critic\. Give part="):
        callback(at=(1,)).on_fit_start(trainer(module), module)
    with pytest.raises(BadInput, match=r"'logged'.*attribute with the network"):
        callback(at=(1,), part="logged").on_fit_start(trainer(module), module)
    with pytest.raises(BadInput, match=r"works in 2 processes.*devices=1"):
        callback(at=(1,), part="inner.net").on_fit_start(trainer(module, processes=2), module)
    for at in ((), (-1,)):
        with pytest.raises(BadInput, match="needed is one number of an epoch"):
            callback(at=at)


def test_without_lightning_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for name in ("lightning", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, PLACE, raising=False)
    with pytest.raises(MissingPackage, match=r"needs Lightning.*pip install 'entropress\[lightning\]'"):
        importlib.import_module(PLACE)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed")
def test_the_example_prunes_while_lightning_trains(tmp_path: Any):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "examples" / "lightning_pruning.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    before, after = (int(number) for number in re.findall(r"(\d+) parameters", done.stdout))
    assert after < 0.5 * before and float(done.stdout.split()[-1]) > 0.8
    assert compress.load(tmp_path / "digits.compressed")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
