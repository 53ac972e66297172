"""Ours beside Torch-Pruning at equal multiply-adds, before training and after the same one, with the same images.

    python benchmarks/pruners.py --nets folder --data cifar10 --work folder [--targets macs=0.39,macs=0.47] [--lengths 1,3]

Torch-Pruning's is its best of ten variants on this network: magnitude of groups (p = 2), global, step by step, the channels
within blocks, statistics of the BatchNorms counted anew on 1,000 training images. Beside it its channels with our reconstruction,
which tells apart what the choice is worth and what the reconstruction. The training is our default for all of them, with the
dense model as the teacher. Quality is top-1 on the 10,000 test images. Resumable: rows that are in the results are not run again.
Needs torch-pruning on the path.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from architectures import NET, trained_by
from finetune_rates import top1, trained
from torch import nn

from compress import api
from compress.artifact import Artifact, apply
from compress.checkpoint.load import load
from compress.data import Data, open_data
from compress.edits import Keep, Plan
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.refit import refit
from compress.stage import Context

RECALIBRATED = 1000
OURS, THEIRS, MIXED = "ours", "Torch-Pruning", "Torch-Pruning's channels, our reconstruction"


def main() -> None:
    trained_by(__doc__ or "", "pruners", "pruner", (OURS, THEIRS, MIXED), "1,3", raced)


def raced(given: argparse.Namespace, dense: Artifact, key: dict[str, Any]) -> dict[str, Any]:
    """One start, and what training makes of it."""
    target, seed = key["target"], key["seed"]
    settings: dict[str, Any] = {
        "model": str(given.nets / f"{NET}.pt"), "arch": f"{given.nets / 'nets.py'}:{NET}", "data": given.data, "align": 1,
        "epochs": 0.0, "threads": 1, "device": "cpu", "target": target, "seed": seed, "depth": 0,
    }  # fmt: skip
    recipe = make(**settings)
    data = open_data(recipe.data, shape=(3, 32, 32))
    if key["pruner"] == OURS:
        out = given.work / f"ours-{target}-{seed}"
        if not (out / "model.compressed").exists():
            api.run(**settings, export="", out=out, force=True)
        module = load(out / "model.compressed")
    else:
        module = pruned(dense, float(target.removeprefix("macs=")), data)
        if key["pruner"] == MIXED:
            context = Context(dense, data, recipe, torch.device("cpu"))
            module = refit.refitted(apply(Plan(chosen(dense.module, module)), dense), context).module
    cost, whole = Artifact(module, dense.inputs).cost, dense.cost
    sizes = {"macs": round(cost.macs / whole.macs, 4), "params": round(cost.params / whole.params, 4)}
    before = top1(module, data)
    return sizes | {"before": before, "dense": top1(dense.module, data)} | trained(module, dense, data, recipe, key["epochs"], {})


def pruned(dense: Artifact, share: float, data: Data) -> nn.Module:
    """Torch-Pruning's choice at this share of the multiply-adds, its BatchNorms counted anew."""
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    model, example = copy.deepcopy(dense.module), dense.inputs[0]
    inner = {f"layers.{number}.conv1" for number in range(9)}
    kept = [layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear) and name not in inner]
    wanted = share * dense.cost.macs
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True, pruning_ratio=0.98,
        iterative_steps=400, ignored_layers=kept, max_pruning_ratio=0.98,
    )  # fmt: skip
    while Artifact(trace(model, (example,)), (example,)).cost.macs > wanted:
        pruner.step()
    module = trace(model, (example,))
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for batch in data.train.batches(100, shuffle=True, limit=RECALIBRATED):
            module(*batch.inputs)
    for norm in norms:
        norm.momentum = 0.1
    return module.eval()


def chosen(dense: nn.Module, small: nn.Module) -> tuple[Keep, ...]:
    """Which channels within the blocks are still there: their weights are rows of the dense ones."""
    edits = list[Keep]()
    for name, layer in small.named_modules():
        if name.endswith(".conv1") and isinstance(layer, nn.Conv2d):
            whole = dense.get_submodule(name).weight.flatten(1)
            keep = tuple(int(row) for row in torch.cdist(layer.weight.flatten(1), whole).argmin(1))
            assert len(set(keep)) == len(keep)
            edits.append(Keep(name, len(whole), keep))
    return tuple(edits)


if __name__ == "__main__":
    main()
