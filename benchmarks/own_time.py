"""What the tool itself takes: seconds of the clock and of the processor of whole runs without training, in all and by part.

    python benchmarks/own_time.py --data cifar10 --nets nets [--core 0] [--only resnet20]

Each run is the command line in a process of its own, on one thread, with nothing remembered of earlier races; processes that it
starts count. Other work on the machine makes seconds of the processor longer, too, by far less than those of the clock. Finished
rows are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contracts import processor
from results_io import known, write

RUNS = {"resnet20": ("macs=0.5", 25), "vgg16_bn": ("params=0.105", 120)}
"""Target, and at most so many seconds of the processor as a goal."""
PARTS = "parts.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as folders of images")
    parser.add_argument("--nets", type=Path, required=True, help="folder of nets.py and trained weights")
    parser.add_argument("--core", type=int, help="core that everything is pinned to")
    parser.add_argument("--only", nargs="+", default=list(RUNS), metavar="NET")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    for net in args.only:
        rows = {row["net"]: row for row in known("own_time").get("rows", [])}
        if net not in rows:
            rows[net] = measured(net, args.data.resolve(), args.nets.resolve())
            print(rows[net], flush=True)
            write("own_time", {"rows": [rows[name] for name in RUNS if name in rows]})


def measured(net: str, data: Path, nets: Path) -> dict[str, Any]:
    """A run of one network, and what it took."""
    target, goal = RUNS[net]
    with tempfile.TemporaryDirectory(prefix="own-time-") as folder:
        work = Path(folder)
        (work / "data.toml").write_text(f'source = "{data}"\nnormalize = "cifar10"\n')
        settings = {"--arch": f"{nets / 'nets.py'}:{net}", "--input-shape": "3x32x32", "--data": work / "data.toml"}
        settings |= {"--target": target, "--epochs": 0, "--threads": 1, "--out": work / "out"}
        words = ["run", nets / f"{net}.pt", "--quiet", *(word for pair in settings.items() for word in pair)]
        told = {"COMPRESS_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, __file__, str(work / PARTS), *map(str, words)], env=os.environ | told)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        assert status == 0, f"the run of {net} ended with {status}"
        report = json.loads((work / "out" / "report.json").read_text())
        parts = json.loads((work / PARTS).read_text())
    total = used.ru_utime + used.ru_stime
    beside = {"part": "starting and ending", "wall_s": wall, "processor_s": total}
    for part in parts:
        beside |= {unit: beside[unit] - part[unit] for unit in ("wall_s", "processor_s")}
    dense, result = report["stages"][0], report["stages"][-1]
    return {
        "net": net,
        "target": target,
        "top1": {"dense": dense["quality"]["value"], "result": result["quality"]["value"]},
        "macs_share": result["macs"] / dense["macs"],
        "params_share": result["params"] / dense["params"],
        "wall_s": wall,
        "processor_s": total,
        "goal_s": goal,
        "reached": "yes" if total <= goal else "no",
        "peak_mb": used.ru_maxrss / 1e3,
        "parts": [*parts, beside],
    }


def carried_out(parts: Path, words: list[str]) -> None:
    """The command line in this process, with a look at both clocks around every part that the report tells."""
    from compress.__main__ import main as command
    from compress.pipeline import run
    from compress.pipeline.spent import REST, Purse

    class Both(Purse):
        def __init__(self) -> None:
            super().__init__()
            self.processor: dict[str, float] = {}
            self.began = processor()

        @contextmanager
        def on(self, what: str) -> Iterator[None]:
            before = processor()
            try:
                with super().on(what):
                    yield
            finally:
                self.processor[what] = self.processor.get(what, 0.0) + processor() - before

        def told(self) -> Any:
            found = super().told()
            own = self.processor | {REST: processor() - self.began - sum(self.processor.values())}
            rows = [{"part": one.what, "wall_s": one.seconds, "processor_s": own[one.what]} for one in found]
            parts.write_text(json.dumps(rows))
            return found

    run.Purse = Both
    sys.argv = ["compress", *words]
    command()


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1].endswith(PARTS):
        carried_out(Path(sys.argv[1]), sys.argv[2:])
    else:
        main()
