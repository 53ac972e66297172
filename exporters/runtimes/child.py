"""One model file in a process of its own, which times calls when it is told to. Orders and answers are lines of JSON.

    {"do": "load", "runtime": ..., "path": ..., "threads": ..., "batch": ..., "shapes": [...], "cpus": [...]}
    {"do": "calls", "count": n}        -> {"seconds": [...], "processor_s": ...}      one entry per call
    {"do": "end"}                      -> {"peak_bytes": ...}

Neither torch nor the package that compares is imported, so that memory is that of Python, numpy and the runtime.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporters import runtimes
from exporters.errors import ExportError


def main() -> None:
    """Answer orders until the end."""
    # What libraries print must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    call: Callable[[], object] = _nothing
    for line in sys.stdin:
        order = json.loads(line)
        try:
            match order["do"]:
                case "load":
                    call, answer = load(order)
                case "calls":
                    before = time.process_time()
                    seconds = timed(call, int(order["count"]))
                    answer = {"seconds": seconds, "processor_s": time.process_time() - before}
                case _:
                    answer = {"peak_bytes": peak_bytes()}
        except (ExportError, OSError, ValueError, MemoryError) as error:
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)
        if order["do"] == "end":
            return


def load(order: dict[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    """Open the file and run it once; what that took, in seconds."""
    if order["cpus"]:
        os.sched_setaffinity(0, order["cpus"])
    runtimes.module(order["runtime"])  # importing it is Python's time, not the file's
    started = time.perf_counter()
    loaded = runtimes.load(order["runtime"], Path(order["path"]), threads=order["threads"], batch=order["batch"])
    opened = time.perf_counter()
    arrays = inputs(loaded.shapes or [(0, *shape) for shape in order["shapes"]], order["batch"], order["path"])
    begun = time.perf_counter()
    loaded.run(arrays)
    ended = time.perf_counter()
    gc.collect()
    gc.disable()  # a collection inside one call would be charged to it
    return lambda: loaded.run(arrays), {
        "load_s": opened - started,
        "first_s": ended - begun,
        "version": loaded.version,
        "threads": order["threads"] or runtimes.usable_cores(),
    }


def inputs(shapes: Sequence[Sequence[int]], batch: int, path: str) -> list[np.ndarray]:
    """Random inputs of the batch size to be timed.

    Raises:
        ExportError: the file takes another batch size, or leaves more than the batch open.
    """
    if not shapes:
        raise ExportError(f"{path} does not say its input size. Give --input-shape.")
    for shape in shapes:
        if shape[0] not in (0, batch):
            raise ExportError(
                f"{path} takes a batch of {shape[0]} only, and {batch} was asked for. Export it with --batch {batch}."
            )
        if min(shape[1:], default=1) < 1:
            raise ExportError(f"{path} has an input of no fixed shape beside its batch. Export the model with fixed sizes.")
    random = np.random.default_rng(0)
    return [random.standard_normal((batch, *shape[1:]), dtype=np.float32) for shape in shapes]


def timed(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` calls."""
    seconds: list[float] = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def peak_bytes() -> int:
    """Most memory that was resident at once. Linux keeps it with the program; what getrusage tells there began before that."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _nothing() -> None:
    raise ExportError("Nothing is loaded yet.")


if __name__ == "__main__":
    main()
