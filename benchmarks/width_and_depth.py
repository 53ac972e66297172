"""At equal measured time: channels alone, merged layers alone, and both, each compared per millisecond.

    python benchmarks/width_and_depth.py --data cifar10 --nets nets --work work [--core 1]

For each network a target in time is met by channels alone (`depth=0`), and with layers that may be linearized and merged before
(`depth` points of held-out quality). Depth alone has no target: it goes as far as its points allow, and its time is what it is.
The result is timed by others than itself, as in `latency_targets.py`. No training. Finished rows are not run again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from latency_targets import carried_out
from results_io import known, write

TARGETS = {"resnet20": (0.8, 0.65), "vgg16_bn": (0.6, 0.4)}
WAYS: dict[str, dict[str, Any]] = {
    "width": {"depth": 0},
    "width, or depth for 1 point": {"depth": 1},
    "width, or depth for 5 points": {"depth": 5},
}
ALONE: dict[str, dict[str, Any]] = {
    f"depth alone for {points} points": {"method": "depth", "target": None, "depth": points} for points in (1, 5)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as folders of images")
    parser.add_argument("--nets", type=Path, required=True, help="folder of nets.py and trained weights")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made on the way")
    parser.add_argument("--core", type=int, help="core that everything is pinned to")
    args = parser.parse_args()
    args.on = None
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    results = known("width_and_depth")
    rows: list[dict[str, Any]] = results.setdefault("rows", [])
    every = [(net, share, way) for net, shares in TARGETS.items() for share in shares for way in WAYS]
    every += [(net, None, way) for net in TARGETS for way in ALONE]
    for net, share, way in every:
        key = {"net": net, "asked": share, "way": way}
        if any(all(row[name] == value for name, value in key.items()) for row in rows):
            continue
        asked = {"net": net, "place": "here", "batch": 1, "asked": share, "by": "milliseconds"}
        done = carried_out(asked, args, **(WAYS | ALONE)[way])
        print({**key, **done}, flush=True)
        rows.append({**key, **done})
        write("width_and_depth", {"rows": rows})


if __name__ == "__main__":
    main()
