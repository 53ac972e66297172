"""The stages as functions of one's own loop: an optimizer goes on exactly, and the given model stays as it was."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from live import Small, everything, net, same, samples
from pages import ROOT
from torch import Tensor, nn

import compress
from compress.commands.steps import Edited
from compress.edits import Keep, Linearize, Merge, Plan
from compress.errors import BadInput, Infeasible, PlanMismatch
from compress.graph.surgery import remove as surgery
from compress.training.optimizer_state import carried

QUICK: Any = {"calibration": 60, "rounds": 5}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
}


class Branches(nn.Module):
    """A sum, a concatenation, groups and a norm: channels are coupled over several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.depthwise, self.norm = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        x = torch.cat([x + self.two(x), self.depthwise(x)], 1)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 1) -> None:
    """One step on one batch; dropout is left out, whose draws depend on the number of channels."""
    x, y = samples(32, seed)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("build", [Small, Branches])
def test_a_step_after_following_is_that_of_the_masked_model_on_the_channels_that_stay(kind: str, build: type[nn.Module]):
    torch.manual_seed(0)
    model = build().train()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for seed in range(3):
        step(model, optimizer, seed)
    made = compress.remove(model, samples(), target="macs=0.5", refit=False, **QUICK)
    masked = surgery.mask(made.traced.module, made.traced.channels, made.plan.edits).train()
    # the same optimizer on the masked model: its parameters in the place of those of the same name
    reference = OPTIMIZERS[kind](masked.parameters())
    named = dict(model.named_parameters())
    for name, p in masked.named_parameters():
        reference.state[p] = copy.deepcopy(optimizer.state.get(named[name], {}))
    compress.follow(optimizer, made)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in made.model.parameters()}
    # One step: in a second one what is masked has learnt again.
    step(made.model, optimizer, 5)
    step(masked, reference, 5)
    expected = carried(made.traced, made.plan.edits, dict(masked.named_parameters()))
    # A bias in front of a norm: its gradient is rounding, which adaptive steps make large.
    rounding = {name for name, p in masked.named_parameters() if float(p.grad.abs().max()) < 1e-6}
    assert len(rounding) <= 2
    for name, p in made.model.named_parameters():
        if name in rounding:
            continue
        # The sums of a layer run over fewer channels, in another order.
        torch.testing.assert_close(p.detach(), expected[name].detach(), rtol=1e-4, atol=2e-6, msg=name)
    states = {name: optimizer.state[p] for name, p in made.model.named_parameters()}
    for name, p in masked.named_parameters():
        for key, value in reference.state[p].items():
            if name in rounding and key != "step":
                continue
            if isinstance(value, Tensor) and value.ndim:
                expected = carried(made.traced, made.plan.edits, {name: value})[name]
                torch.testing.assert_close(states[name][key], expected, rtol=1e-3, atol=1e-5, msg=f"{name} {key}")
            else:
                assert states[name][key] == value


def test_groups_learning_rates_and_foreign_parameters_stay():
    model, other = net().train(), nn.Parameter(torch.ones(3))
    first, rest = list(model.first.parameters()), [p for n, p in model.named_parameters() if not n.startswith("first")]
    optimizer = torch.optim.AdamW([{"params": first, "lr": 1e-4}, {"params": [*rest, other], "weight_decay": 0.5}])
    step(model, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    made = compress.remove(model, samples(), target="macs=0.6", **QUICK)
    compress.follow(optimizer, made)
    new = dict(made.model.named_parameters())
    groups = optimizer.param_groups
    assert [id(p) for p in groups[0]["params"]] == [id(new["first.weight"]), id(new["first.bias"])]
    assert groups[0]["lr"] == 1e-4 and groups[1]["weight_decay"] == 0.5 and id(groups[1]["params"][-1]) == id(other)
    assert not any(p in optimizer.state for p in model.parameters())
    step(made.model, optimizer)
    scheduler.step()
    assert groups[0]["lr"] == pytest.approx(1e-5)


def test_layers_that_are_merged_begin_without_state_and_others_keep_theirs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4))
    x, y = torch.randn(32, 6), torch.arange(32) % 4
    optimizer = torch.optim.Adam([{"params": model[0].parameters()}, {"params": model[2:].parameters()}])
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    kept = optimizer.state[model[5].weight]["exp_avg"].clone()
    made = compress.edit(model, Plan((Merge(("2", "3")),)), inputs=x)
    compress.follow(optimizer, made)
    named = dict(made.model.named_parameters())
    assert torch.equal(optimizer.state[named["5.weight"]]["exp_avg"], kept)
    assert named["2.weight"].shape == (5, 8) and named["2.weight"] not in optimizer.state
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in named.values()}
    # The bias is new, and goes where the weight of its layer is.
    assert id(named["2.bias"]) in {id(p) for p in optimizer.param_groups[1]["params"]}
    torch.testing.assert_close(made.model(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_removal_after_another_edit_is_followed_too():
    model = net().train()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    step(model, optimizer)
    x, _ = samples()
    plan = Plan((Keep("first", 12, (0, 3, 5, 6)), Linearize("relu", 4), Keep("second", 16, tuple(range(0, 16, 2)))))
    relu = next(n for n, _ in compress.trace(model, (x[:1],)).named_modules() if n.startswith("relu"))
    plan = Plan((plan.edits[0], Linearize(relu, 4), plan.edits[2]))
    made = compress.edit(model, plan, inputs=x)
    moment = optimizer.state[model.second.weight]["exp_avg"].clone()
    compress.follow(optimizer, made)
    now = optimizer.state[dict(made.model.named_parameters())["second.weight"]]["exp_avg"]
    assert torch.equal(now, moment[::2][:, [0, 3, 5, 6]])
    step(made.model, optimizer)


def test_optimizers_that_cannot_follow_are_refused_in_a_sentence():
    model = net().train()
    made = compress.remove(model, samples(), target="macs=0.6", **QUICK)
    with pytest.raises(BadInput, match="holds none of the model's parameters"):
        compress.follow(torch.optim.SGD(net().parameters(), lr=1), made)
    optimizer = torch.optim.LBFGS(model.parameters())
    x, y = samples(32)
    optimizer.step(lambda: backward(model, x, y))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"keeps '\w+' of first.weight, which is not one number per weight"):
        compress.follow(optimizer, made)
    assert optimizer.param_groups[0]["params"][0] is model.first.weight  # a refusal leaves it as it was


def backward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


@pytest.mark.parametrize("training", [False, True])
def test_every_stage_leaves_the_model_as_it_was_and_gives_one_in_its_mode(training: bool):
    model, data = net().train(training), samples()
    before = everything(model)
    state = torch.random.get_rng_state()
    made = compress.remove(model, data, target="macs=0.6", **QUICK)
    rebuilt = compress.reconstruct(made.model, data, teacher=model, plan=made.plan, steps=3, **QUICK)
    tuned = compress.finetune(rebuilt, data, teacher=model, epochs=0.2, **QUICK)
    merged = compress.merge(model, data, timed=False, **QUICK)
    shallow = compress.linearize(model, data, depth=50.0, **QUICK)
    rounded = compress.quantize(model, data, qat=0.2, **QUICK)
    assert same(before, everything(model)) and torch.equal(state, torch.random.get_rng_state())
    for found in (made.model, rebuilt, tuned, merged.model, shallow.model, rounded):
        assert found.training is training
        assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in found.parameters()}
        assert found.eval()(data[0]).shape == (80, 4)


def test_stages_do_what_their_run_does(tmp_path: Path):
    model, data = net(), samples()
    settings: Any = {**QUICK, "depth": 0, "align": 1, "epochs": 0, "threads": 1}
    run = compress.run(model, data=data, target="macs=0.5", method="magnitude", out=tmp_path / "out", **settings)
    del settings["depth"], settings["threads"]
    made = compress.remove(model, data, target="macs=0.5", method="magnitude", **settings)
    assert made.plan.edits == run.plan.edits and made.plan.method == "magnitude"
    assert same(dict(made.model.state_dict()), dict(run.model.state_dict()))
    assert compress.edit(model, made.plan, inputs=data[0]).model(data[0]).shape == (80, 4)


def test_finetuning_keeps_the_class_and_learns():
    model, (x, y) = net(), samples()
    x = x + y.view(-1, 1, 1, 1) * torch.linspace(-1, 1, 8)
    tuned = compress.finetune(model, (x, y), epochs=20, lr=1e-2, batch_size=16)
    assert type(tuned) is Small
    losses = [nn.functional.cross_entropy(one(x), y).item() for one in (model, tuned)]
    assert losses[1] < 0.7 * losses[0]


def test_what_a_stage_cannot_do_is_refused():
    model, data = net(), samples()
    with pytest.raises(Infeasible):
        compress.remove(model, data, target="macs=0.0001", **QUICK)
    with pytest.raises(BadInput, match="removes no channels before training"):
        compress.remove(model, data, method="easier", target="activations=0.5", **QUICK)
    made = compress.remove(model, data, target="macs=0.6", **QUICK)
    with pytest.raises(PlanMismatch, match=r"The plan makes .*weight .* of the teacher, in the model it is"):
        compress.reconstruct(model, data, teacher=model, plan=made.plan, **QUICK)
    with pytest.raises(BadInput, match=r"The model is the path model\.pt; needed is a module here"):
        compress.remove("model.pt", data)  # type: ignore[arg-type]
    assert isinstance(made, Edited) and "edits>" in repr(made)


def test_the_example_of_a_loop_prunes_while_it_trains(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / "while_training.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("epoch")]
    parameters, top1 = [int(row[2]) for row in rows], [float(row[-1]) for row in rows]
    assert parameters[-1] < 0.5 * parameters[0] and top1[-1] > 0.8
