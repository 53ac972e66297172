"""How much more should a loss near the end of a network weigh than one at its beginning, where a budget is split?

    python benchmarks/allocation.py --nets folder --data cifar10 [--rises 0,0.75,1.5,2.25,3]

The estimated loss of each group's channels is weighed by exp(rise * position), position from 0 (the first group) to 1 (the last),
and one budget is split by that; then channels are chosen, removed and the layers fitted anew. No training. Quality: top-1 on the
10,000 test images; 0 is the estimate as it is, the default is `MOST` of compress/entropy/allocate.py. Resumable.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from finetune_rates import top1
from opened import open_dense
from results_io import known, write

from compress.artifact import apply
from compress.data import open_data
from compress.edits import Plan
from compress.entropy import allocate
from compress.recipe import make
from compress.refit import refit
from compress.selection.choice import Choice
from compress.stage import Context, Findings

PAIRS = (("resnet20", "macs=0.39"), ("resnet20", "macs=0.6"), ("vgg16_bn", "macs=0.3"), ("vgg16_bn", "params=0.105"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rises", default="0,0.75,1.5,2.25,3")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[dict[str, Any]] = list(known("allocation").get("rows", ()))
    data = open_data(given.data, shape=(3, 32, 32))
    for net in dict.fromkeys(net for net, _ in PAIRS):
        dense, findings = open_dense(given.nets, net), Findings()
        for target in (target for other, target in PAIRS if other == net):
            recipe = make(model=net, data=given.data, target=target, align=1, epochs=0.0, depth=0, threads=1, device="cpu")
            context = Context(dense, data, recipe, torch.device("cpu"), findings=findings)
            for rise in map(float, given.rises.split(",")):
                key = {"net": net, "target": target, "rise": rise}
                if any(key.items() <= row.items() for row in rows):
                    continue
                allocate.EACH = allocate.MOST = rise
                small = refit.refitted(apply(Plan(Choice().decide(dense, context)[0]), dense), context)
                sizes = {unit: round(getattr(small.cost, unit) / getattr(dense.cost, unit), 4) for unit in ("macs", "params")}
                rows.append(key | sizes | {"dense": top1(dense.module, data), "top1": top1(small.module, data)})
                print(rows[-1], flush=True)
                write("allocation", {"rows": rows})


if __name__ == "__main__":
    main()
