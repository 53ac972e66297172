"""Which learning rate, optimizer and treatment of norms suit a start that is already good, by length of the training?

    python benchmarks/finetune_rates.py --nets folder --data cifar10 --work folder [--only resnet20] [--lengths 0.25,1]

Every network is made smaller without training first (method entropic, its reconstruction included), then trained from there with
each setting and with `default`, which is what a user gets. Quality is top-1 on the 10,000 test images, before and after. One seed
where nothing else is said. Resumable: settings that are in the results are not run again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from opened import open_dense
from results_io import known, write

from compress import api
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.data import Data, open_data
from compress.measure import quality
from compress.recipe import Recipe, make
from compress.stages.finetune import holds_norms
from compress.training import train

STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet20": ("resnet20", {"target": "macs=0.5"}),
    "resnet20 at 0.39": ("resnet20", {"target": "macs=0.39"}),
    "vgg16_bn": ("vgg16_bn", {"target": "params=0.105", "align": 1}),
}
"""Network and budget of every start."""
SETTINGS: tuple[dict[str, Any], ...] = (
    {"setting": "default"},
    {"setting": "AdamW at 0.001 for every weight, norms follow their batches", "lr": 1e-3, "hold_norms": False},
    {"setting": "as default, norms follow their batches", "hold_norms": False},
    {"setting": "AdamW at 0.001 for every weight", "lr": 1e-3, "hold_norms": True},
    {"setting": "AdamW at 0.0001 for every weight, norms follow their batches", "lr": 1e-4, "hold_norms": False},
    {"setting": "SGD at 0.01", "optimizer": "sgd", "lr": 1e-2, "hold_norms": True},
    {"setting": "SGD at 0.03", "optimizer": "sgd", "lr": 3e-2, "hold_norms": True},
)
"""What is tried; the first is what a user gets, with the start that comes back where training harmed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default=",".join(STARTS))
    parser.add_argument("--lengths", default="0.25,1")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="so many, from the first")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[dict[str, Any]] = list(known("finetune_rates").get("rows", ()))
    for name in given.only.split(","):
        net, budget = STARTS[name]
        dense = open_dense(given.nets, net)
        recipe = started(given, name, net, budget)
        data = open_data(recipe.data, shape=(3, 32, 32))
        begun = load(given.work / name / "model.compressed")
        before = top1(begun, data)
        for epochs in map(float, given.lengths.split(",")):
            for setting in SETTINGS[: given.settings]:
                key = {"start": name, "target": budget["target"], "epochs": epochs, **setting}
                if any(key.items() <= row.items() for row in rows):
                    continue
                rows.append(
                    key
                    | {"before": before, "dense": top1(dense.module, data)}
                    | trained(begun, dense, data, recipe, epochs, setting)
                )
                print(rows[-1], flush=True)
                write("finetune_rates", {"rows": rows})


def started(given: argparse.Namespace, name: str, net: str, budget: dict[str, Any]) -> Recipe:
    """The recipe of a start, whose run lies in the work folder afterwards."""
    settings: dict[str, Any] = {
        "model": str(given.nets / f"{net}.pt"), "arch": f"{given.nets / 'nets.py'}:{net}", "data": given.data,
        "epochs": 0.0, "threads": 1, "device": "cpu", **budget,
    }  # fmt: skip
    if not (given.work / name / "model.compressed").exists():
        api.run(**settings, export="", out=given.work / name, force=True)
    return make(**settings)


def trained(
    begun: torch.nn.Module, dense: Artifact, data: Data, recipe: Recipe, epochs: float, setting: dict[str, Any]
) -> dict[str, Any]:
    chosen = {key: value for key, value in setting.items() if key in Recipe.model_fields}
    recipe = recipe.model_copy(update={"epochs": epochs, **chosen})
    start = time.perf_counter()
    held = setting.get("hold_norms", holds_norms(recipe))
    found = train(begun, data, recipe, teacher=dense.module, hold_norms=held)
    seconds = round(time.perf_counter() - start, 1)
    return {
        "after": top1(found.module, data), "kept": found.best, "held_out": [round(one.quality, 4) for one in found.history],
        "loss": [round(one.loss, 4) for one in found.history[1:]], "seconds": seconds, "notes": list(found.notes),
    }  # fmt: skip


def top1(module: torch.nn.Module, data: Data) -> float:
    metric, _ = quality.choose("auto", data.spec.task, True)
    return quality.evaluate(module, data.test.batches(quality.BATCH), metric).value


if __name__ == "__main__":
    main()
