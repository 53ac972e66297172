"""LeNet-5 on MNIST: how much quality is left when at least 90 % of the parameters are gone?

    python benchmarks/mnist.py --data mnist.npz

Three seeds. For each: a dense net, trained here; `entropic`, `magnitude` and `random` at the same target with the same refit and
the same fine-tuning; and the control: the architecture that `entropic` found, trained from fresh weights for as many epochs as
the dense net and the fine-tuning had together. The dense net with the same extra epochs is the second line to compare with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from results_io import RESULTS, spread, write
from torch import nn

from compress.checkpoint.load import load
from compress.data import open_data
from compress.measure import quality
from compress.pipeline.run import run
from compress.recipe import make
from compress.training import reinitialize, train

TARGET = 0.1
SHIFT = 2  # pixels by which training images are moved, for every training alike
DENSE_EPOCHS = 10
TUNE_EPOCHS = 32


def lenet5() -> nn.Sequential:
    """LeCun et al. 1998 with ReLU and max-pooling: 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="mnist.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dense-epochs", type=float, default=DENSE_EPOCHS)
    parser.add_argument("--epochs", type=float, default=TUNE_EPOCHS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        if not any(row["seed"] == seed for row in finished(args)):
            row = {"seed": seed, **seed_row(seed, args)}
            save([*finished(args), row], args)  # read again: other seeds may run beside this one


def finished(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the result file that were made with the same training."""
    path = RESULTS / "mnist.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    same = known.get("dense_epochs") == args.dense_epochs and known.get("epochs") == args.epochs and known.get("shift") == SHIFT
    return known["seeds"] if same else []


def save(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    names = list(rows[0]["top1"])
    write(
        "mnist",
        {
            "network": "LeNet-5, 61,706 parameters",
            "data": "MNIST, 10,000 test images",
            "target": f"params={TARGET}",
            "dense_epochs": args.dense_epochs,
            "epochs": args.epochs,
            "shift": SHIFT,
            "top1": {name: spread([row["top1"][name] for row in rows]) for name in names},
            "drop_points": {name: spread([100 * (r["top1"]["dense"] - r["top1"][name]) for r in rows]) for name in names[1:]},
            "removed_share": {name: spread([row["removed"][name] for row in rows]) for name in rows[0]["removed"]},
            "seeds": sorted(rows, key=lambda row: row["seed"]),
        },
    )


def seed_row(seed: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    source = Path(tempfile.mkdtemp(), "mnist.toml")
    source.write_text(f'source = "{args.data.resolve()}"\n[augment]\nshift = {SHIFT}\n')
    data = open_data(str(source), seed=seed)
    metric, _ = quality.choose("top1", "classification", True)

    def top1(module: nn.Module) -> float:
        return quality.evaluate(module, data.test.batches(500), metric).value

    torch.manual_seed(seed)
    recipe = make(epochs=args.dense_epochs, lr=3e-3, batch_size=256, seed=seed, distill=0.0)
    dense = train(lenet5(), data, recipe, torch.device("cpu")).module
    more = train(dense, data, recipe.model_copy(update={"epochs": args.epochs}), torch.device("cpu")).module
    found: dict[str, float] = {"dense": top1(dense), "dense, same extra epochs": top1(more)}
    removed: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(dense, Path(folder, "lenet5.pt"))
        for method in ("entropic", "magnitude", "random"):
            out = Path(folder, method)
            report = run(
                make(
                    model=f"{folder}/lenet5.pt", data=str(source), method=method, target=f"params={TARGET}",
                    epochs=args.epochs, lr=3e-3, batch_size=256, calibration=4000, seed=seed, rounds=5, align=1, depth=0,
                ),
                out,
            )  # fmt: skip
            stage = {record.stage: record for record in report.stages}
            found[f"{method}, before fine-tuning"] = stage["remove"].quality.value
            found[method] = report.result.quality.value
            removed[method] = 1 - report.result.params / stage["dense"].params
        again, _ = reinitialize(load(Path(folder, "entropic", "model.compressed")), seed)
    scratch = recipe.model_copy(update={"epochs": args.dense_epochs + args.epochs})
    found["entropic's architecture from scratch"] = top1(train(again, data, scratch, torch.device("cpu")).module)
    print(f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()), flush=True)
    return {"top1": found, "removed": removed}


if __name__ == "__main__":
    main()
