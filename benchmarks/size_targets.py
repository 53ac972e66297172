"""Does a plan for so many parameters, MACs or bytes come to that? Twenty targets on four networks.

    python benchmarks/size_targets.py --data cifar10 --nets nets --work work

Plans alone, as `compress run --dry-run` makes them: with channel counts as they come (`--align 1`), and as rounding decides. What
is planned is counted of the smaller model. Finished rows are not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from latency_targets import model, samples
from results_io import known, write

import compress
from compress.errors import CompressError

CLOSE = 0.02
NETS = ("resnet20", "mobilenet_v2", "resnet18", "shufflenet_v2_x1_0")
TARGETS = (("params", 0.5), ("params", 0.25), ("macs", 0.6), ("macs", 0.35), ("size", 0.4))
"""Units, and shares of the dense model; of bytes the target is a size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as folders of images")
    parser.add_argument("--nets", type=Path, required=True, help="folder of nets.py and trained weights")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made on the way")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = list(known("size_targets").get("rows", []))
    for net in NETS:
        for align in (1, None):
            for unit, share in TARGETS:
                asked = {"net": net, "align": align, "unit": unit, "share": share}
                if not any(all(row[key] == value for key, value in asked.items()) for row in rows):
                    rows.append({**asked, **planned(net, align, unit, share, args)})
                    print(rows[-1], flush=True)
                    write("size_targets", {"summary": summary(rows), "rows": rows})
    write("size_targets", {"summary": summary(rows), "rows": rows})


def planned(net: str, align: int | None, unit: str, share: float, args: argparse.Namespace) -> dict[str, Any]:
    """What a plan comes to, as a share of what was asked for."""
    path, architecture = model(net, args)
    settings = {
        "data": samples(net, args),
        "calibration": 128,
        "allow_doubtful": True,
        "epochs": 0,
        "device": "cpu",
        "threads": 1,
    }
    whole = DENSE.setdefault(net, compress.run(path, **architecture, **settings, target="macs=0.5", align=1, dry_run=True).dense)
    target = f"size={share * whole.weight_bytes / 1e6:.4f}MB" if unit == "size" else f"{unit}={share}"
    try:
        found = compress.run(path, **architecture, **settings, target=target, align=align, dry_run=True)
    except CompressError as error:
        return {"refused": str(error)}
    field = {"params": "params", "macs": "macs", "size": "weight_bytes"}[unit]
    left = getattr(found.planned, field) / getattr(found.dense, field)
    return {"left": left, "off": left / share - 1, "noted": any("Reached" in note for note in found.notes)}


DENSE: dict[str, Any] = {}
"""Costs of the dense networks."""


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of both ways with channel counts: how many came within 2 %, and how many of the others say so."""
    found: dict[str, Any] = {}
    for name, align in (("as they come", 1), ("as rounding decides", None)):
        some = [row for row in rows if row["align"] == align and "refused" not in row]
        far = [row for row in some if abs(row["off"]) > CLOSE]
        found[name] = {
            "targets": sum(row["align"] == align for row in rows),
            "met": len(some) - len(far),
            "told": sum(row["noted"] for row in far),
            "largest_off": max((abs(row["off"]) for row in some), default=0.0),
        }
    return found


if __name__ == "__main__":
    main()
