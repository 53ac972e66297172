"""What several processes find out together, beside what one finds out alone: `python in_ranks.py CHECK`, once in each process.

The first process prints its findings as JSON; the test that starts the processes looks at them (`test_ranks`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

import compress
from compress.artifact import Artifact, apply
from compress.data.splits import Data, DataSpec, Split
from compress.data.stores import Stored
from compress.edits import Keep, Plan
from compress.entropy.moments import Moments
from compress.errors import BadInput, CompressError, ProcessLost
from compress.graph.trace.trace import trace
from compress.measure import quality
from compress.pipeline.answers import counted
from compress.pipeline.crew import connected
from compress.ranks import ALONE, Ranks
from compress.ranks.team import Team
from compress.recipe import make
from compress.refit import fit_activations
from compress.stage import Context
from compress.stages.reconstruct import Reconstruct
from compress.training import train
from compress.training.together import How, _train

CPU = torch.device("cpu")


def split(samples: int) -> Split:
    """Numbered samples with labels."""
    torch.manual_seed(1)
    spec = DataSpec((1, 6, 6), (0.0,), (1.0,), classes=tuple("abc"))
    x, y = torch.randn(samples, 1, 6, 6), torch.arange(samples) % 3
    return Split((Stored(x),), Stored(y), torch.arange(samples), spec)


def moments(ranks: Ranks) -> dict[str, Any]:
    """Rows in ten batches, in two (one process has none) and so few that they stay rows."""
    found: dict[str, Any] = {}
    for name, batches, rows, columns in (("many", 10, 500, 7), ("none", 2, 500, 7), ("few", 3, 5, 40)):
        torch.manual_seed(0)
        x, y = 0.01 * torch.randn(batches, rows, columns) + 100, torch.randn(batches, rows, 3)
        one, other = Moments(), Moments()
        for part, who in ((ALONE.share(batches), one), (ranks.share(batches), other)):
            for number in part.numbers:
                who.add(x[number], y[number])
                if number in part.ends and name != "few":
                    who.settle()
        other.join(ranks, CPU)
        if name == "few":
            assert one.few and other.few
            sides = zip(*one.parts(), strict=True), zip(*other.parts(), strict=True)
            found[name] = all(torch.equal(torch.cat(a), torch.cat(b)) for a, b in zip(*sides, strict=True))
            continue
        pairs = zip(one.centered(), other.centered(), strict=True)
        found[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        found[f"{name} rows"] = [one.rows, other.rows]
    return found


def quality_of(ranks: Ranks) -> dict[str, Any]:
    """A count over 600 samples, and one in which a process has no batch."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    same = []
    for samples in (600, 300):
        arguments = net, split(samples), quality.METRICS["top1"], CPU, net
        one, other = counted(ALONE, *arguments), counted(ranks, *arguments)
        same.append(torch.equal(one.slices, other.slices) and one.samples == other.samples == samples)
    return {"same": same}


def failing(ranks: Ranks, who: int) -> int:
    """A function that one process cannot carry out."""
    if ranks.number == who:
        raise BadInput("This is not what was needed.")
    return int(ranks.summed(torch.ones(1)))


def errors(team: Team) -> dict[str, Any]:
    """What the first process is told where another one fails, and that it is the end."""
    told = list[str]()
    if team.ranks.number:
        team.serve()
    assert team.call(failing, (99,)) == team.ranks.count
    for _ in range(2):
        try:
            team.call(failing, (1,))
        except CompressError as error:
            told.append(f"{type(error).__name__}: {error}")
    return {"told": told, "lost": ProcessLost.__name__}


def training(ranks: Ranks) -> dict[str, Any]:
    """The gradient of a step on a batch that three processes do not share evenly."""
    data = split(64)
    told = make(epochs=1, batch_size=32, optimizer="sgd", lr=0.1, distill=0.0, model="-", data="-")
    every = Data(data, split(60), split(60), data.spec)
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    one, other = train(net, every, told), train(net, every, told, ranks=ranks)
    apart = max(float((a - b).abs().max()) for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True))
    moved = max(float((a - b).abs().max()) for a, b in zip(one.module.parameters(), net.parameters(), strict=True))
    return {"apart": apart, "moved": moved}


def in_parts(ranks: Ranks) -> dict[str, Any]:
    """A training whose weights and optimizer lie in parts, beside that of one process."""
    data = split(128)
    told = make(epochs=2, batch_size=32, lr=1e-3, ema=0.5, distill=0.0, fsdp=True, model="-", data="-")
    every = Data(data, split(60), split(60), data.spec)
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 3))
    watched = Held()
    one = train(net, every, told)
    other = train(net, every, told, ranks=ranks, observer=watched)
    plain = all(type(part) in (nn.Sequential, nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear) for part in other.module.modules())
    return {
        "apart": apart(one.module, other.module),
        "moved": apart(net, other.module),
        "qualities": [[epoch.quality for epoch in found.history] for found in (one, other)],
        "held": watched.numbers / sum(p.numel() for p in net.parameters()),
        "plain": plain,
    }


class Held:
    """How many numbers of the weights this process has while it trains."""

    numbers = 0

    def step(self, student: nn.Module) -> None:
        self.numbers = sum(p.to_local().numel() for p in student.parameters() if isinstance(p, DTensor))

    def epoch(self, student: nn.Module) -> None:
        """Nothing."""


def stages(ranks: Ranks) -> dict[str, Any]:
    """Block reconstruction and a training under masks, beside those of one process."""
    data = split(600)
    told = make(
        target="params=0.5", reconstruct=40, calibration=600, epochs=1, batch_size=32, optimizer="sgd", model="-", data="-"
    )
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)]
    inputs = (torch.zeros(1, 1, 6, 6),)
    dense = Artifact(trace(nn.Sequential(*layers).eval(), inputs), inputs)
    context = Context(dense, Data(data, data, split(60), data.spec), told, CPU)
    shared = replace(context, ranks=ranks)
    cut = apply(Plan((Keep("0", 8, (0, 2, 5, 6, 7)),)), dense)
    one, many = (Reconstruct().found(cut, c).module for c in (context, shared))
    mask = torch.rand(8, 8, 3, 3) > 0.5
    known = tuple(fit_activations.checked(dense.module, ["1", "3"]).values())
    lines = [[sums.fit().slope for sums in fit_activations._sums(dense, known, c).values()] for c in (context, shared)]
    alone, several = (_train(dense.module, How("here", masks={"2": mask}), c).module for c in (context, shared))
    return {
        "apart": [apart(one, many), apart(alone, several)],
        "moved": [apart(cut.module, many), apart(dense.module, several)],
        "lines": max(float((one - other).abs().max()) for one, other in zip(*lines, strict=True)),
        "lines are": [len(slope) for slope in lines[1]],
        "masked": float(several.get_submodule("2").weight[~mask].abs().max()),
    }


@torch.no_grad()
def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between weights."""
    return max(float((a - b).abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class Answers(Dataset[Any]):
    """The same pictures everywhere, with these classes; read when they are needed."""

    def __init__(self, answers: torch.Tensor):
        self.answers = answers

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 6, 6), number / 60), int(self.answers[number])


def other_data(what: str) -> dict[str, Any]:
    """A run in memory in which every process has a model, a setting or answers of its own."""
    number = int(os.environ["RANK"])
    torch.manual_seed(number if what == "other model" else 0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    answers = torch.arange(60).roll(number if what == "other data" else 0) % 3
    try:
        compress.run(net, data=Answers(answers), rounds=5 + number * (what == "other rounds"), allow_doubtful=True)
    except BadInput as error:
        return {"told": str(error)}
    return {}


CHECKS: dict[str, Callable[[Ranks], dict[str, Any]]] = {
    "moments": moments,
    "quality": quality_of,
    "training": training,
    "stages": stages,
    "in parts": in_parts,
}


def main(check: str) -> None:
    if check.startswith("other "):
        found = other_data(check)
        number = int(os.environ["RANK"])
    else:
        store, number, count = next(iter(dist.rendezvous("env://")))
        with connected(store, number, count, count) as team:
            found = errors(team) if check == "errors" else CHECKS[check](team.ranks)
    if not number:
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
