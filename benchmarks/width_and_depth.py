"""At equal measured time: channels alone, merged layers alone, and both, each compared per millisecond.

    python benchmarks/width_and_depth.py --data cifar10 --nets nets --work work [--core 1]

For each network a target in time is met by channels alone (`depth=0`), and with layers that may be linearized and merged before
(`depth` points of held-out quality). Depth alone has no target: it goes as far as its points allow, and its time is what it is.
The result is timed by others than itself, as in `latency_targets.py`. No training. Finished rows are not run again.
"""

from __future__ import annotations

from typing import Any

from latency_targets import carried_out, given
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
    args = given(__doc__ or "")
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
