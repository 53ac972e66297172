"""A run killed at random moments and resumed: does it end where an unkilled one ends, and what is left behind?

    python benchmarks/kills.py --kills 140 --minutes 150

A small net on digits, made narrower and shallower, with ONNX and 8-bit exports (and OpenVINO where it is installed). Of seven
runs five get SIGKILL, one SIGTERM, one SIGINT. All runs share one cache of measured times, so that what is decided by time is
decided alike. The result is written after every kill.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from results_io import write

from compress.commands.demo import ARCH, make_demo

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ["onnx", "onnx-int8", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
SETTINGS = (
    "--target",
    "params=0.4",
    "--align",
    "1",
    "--epochs",
    "0.25",
    "--depth",
    "5",
    "--rounds",
    "5",
    "--calibration",
    "100",
    "--threads",
    "1",
)
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
EARLIEST_S = 1.0
SETTLED_S = 5.0
"""For a child to be gone behind its parent; the kernel takes milliseconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0, help="no further kill is begun after that time")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, children would ignore it, too
    drawn, began, shared = random.Random(given.seed), time.monotonic(), segments()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        seconds, code = place.carried_out("whole")
        assert code == 0, "the run that nobody kills has to end well"
        expected = result(place.folder / "whole")
        rows: list[dict[str, Any]] = []
        for number in range(given.kills):
            if time.monotonic() - began > 60 * given.minutes:
                break
            sent = {3: signal.SIGTERM, 6: signal.SIGINT}.get(number % 7, signal.SIGKILL)
            rows.append(place.killed(f"killed-{number}", sent, drawn.uniform(EARLIEST_S, seconds), expected))
            print(json.dumps(rows[-1]), flush=True)
            settings = {"formats": FORMATS, "seed": given.seed, "run": " ".join(SETTINGS)}
            write(
                "kills", {"settings": settings, "unkilled_s": round(seconds, 1), "summary": summary(rows, shared), "kills": rows}
            )


class Place:
    """A folder with a model, a temporary folder and a cache of its own."""

    def __init__(self, folder: Path):
        self.folder, self.tmp = folder, folder / "tmp"
        self.tmp.mkdir()
        self.model = make_demo(folder / "demo", epochs=2).model
        self.environment = os.environ | {"TMPDIR": str(self.tmp), "COMPRESS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        self.environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))

    def started(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        words = ["run", self.model, "--arch", ARCH, "--data", "digits", *SETTINGS, "--export", ",".join(FORMATS), *more]
        command = [sys.executable, "-m", "compress", *map(str, words), "--out", str(self.folder / name)]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def carried_out(self, name: str, *more: str) -> tuple[float, int]:
        """(seconds, exit code) of a run that is left alone."""
        began = time.monotonic()
        code = self.started(name, *more).wait()
        return time.monotonic() - began, code

    def killed(self, name: str, sent: signal.Signals, after: float, expected: dict[str, Any]) -> dict[str, Any]:
        """One run, stopped and resumed: a row of the result."""
        run, out = self.started(name), self.folder / name
        time.sleep(after)
        run.send_signal(sent)
        code = run.wait()
        outlived = self.outlived()
        finished = sorted(p.name for p in (out / "stages").glob("[0-9]*"))
        traces = len(list(self.tmp.iterdir())) + len(list(out.rglob(".*")))
        _, again = self.carried_out(name, "--resume")
        same = again == 0 and {key: value == expected[key] for key, value in result(out).items()}
        left = [p.name for p in (*self.tmp.iterdir(), *out.rglob(".*"))]
        shutil.rmtree(out, ignore_errors=True)
        return {
            "signal": sent.name, "after_s": round(after, 2), "exit_code": code, "as_promised": code in (CODES[sent], 0),
            "finished_stages": finished, "outlived_by": outlived, "traces": traces, "resumed": again, "same": same,
            "left_after_resume": left,
        }  # fmt: skip

    def outlived(self) -> list[str]:
        """Command lines of processes that still have our temporary folder in their environment, after a moment."""
        end = time.monotonic() + SETTLED_S
        while (found := self._processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _processes(self) -> list[str]:
        found: list[str] = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.tmp).encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text().replace("\0", " ")[:200])
            except OSError:  # it has ended, or is somebody else's
                continue
        return found


def result(out: Path) -> dict[str, Any]:
    """What has to be the same, whatever happened on the way."""
    report = json.loads((out / "report.json").read_text())
    figures = [{key: stage[key] for key in ("stage", "params", "macs", "quality")} for stage in report["stages"]]
    exports = [{key: export[key] for key in ("format", "sha256", "quality")} for export in report["exports"]]
    return {"plan": (out / "plan.json").read_text(), "figures": figures, "exports": exports}


def segments() -> set[str]:
    """Names in the shared memory of this machine."""
    return {p.name for p in Path("/dev/shm").glob("*")}


def summary(rows: list[dict[str, Any]], shared: set[str]) -> dict[str, Any]:
    return {
        "kills": len(rows),
        "signals": dict(Counter(row["signal"] for row in rows)),
        "exit_codes_as_promised": sum(row["as_promised"] for row in rows),
        "resumed_to_the_same": sum(bool(row["same"]) and all(row["same"].values()) for row in rows),
        "outlived": sum(bool(row["outlived_by"]) for row in rows),
        "traces_after_resume": sum(len(row["left_after_resume"]) for row in rows),
        "shared_memory_left": len(segments() - shared),
    }


if __name__ == "__main__":
    main()
