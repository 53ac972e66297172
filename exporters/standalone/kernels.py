"""How long does every operation of these models take? By ONNX Runtime's own profiler, the least of several calls.

    python kernels.py a.onnx b.onnx --batch 1 --threads 1

Prints JSON, for every file a list of what the runtime made of its graph: fused, with the shapes that it really works on.

    {"op": "Conv", "inputs": [[1, 16, 32, 32], [16, 16, 3, 3]], "outputs": [[1, 16, 32, 32]], "seconds": 4.4e-05}

Needs Python 3.8 or newer, numpy and onnxruntime.
"""

from __future__ import annotations

import sys

sys.dont_write_bytecode = True  # a package holds what it lists, and nothing else

import argparse
import json
import time
from pathlib import Path
from typing import Any

if __package__:
    from exporters.standalone import inference, leftovers, machine
else:
    import inference  # type: ignore[no-redef,import-not-found]
    import leftovers  # type: ignore[no-redef,import-not-found]
    import machine  # type: ignore[no-redef,import-not-found]

_LEAST, _MOST, _SECONDS = 3, 15, 3.0
"""Calls of one model, and how long they go on beyond the least number."""


def kernels(model: Path, threads: int = 0, batch: int = 1) -> list[dict[str, Any]]:
    """What the runtime does in one call, in order, each with the least seconds that it took in several calls.

    The least, since a kernel of microseconds is undisturbed in one call or another even on a busy machine.
    """
    with leftovers.folder() as folder:
        session = inference.session(model, threads or machine.cores(), batch, profile=folder / "profile")
        feeds = {one.name: _zeros(one, batch) for one in session.get_inputs()}
        start, calls = time.perf_counter(), 0
        while calls < _LEAST or (calls < _MOST and time.perf_counter() - start < _SECONDS):
            session.run(None, feeds)
            calls += 1
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            told, seconds = event["args"], event["dur"] / 1e6
            known = found.setdefault(event["name"], {"op": told["op_name"], "seconds": seconds, **_shapes(told)})
            known["seconds"] = min(known["seconds"], seconds)
    return list(found.values())


def _zeros(one: Any, batch: int) -> Any:
    import numpy

    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool"}
    shape = [size if isinstance(size, int) else batch for size in one.shape]
    return numpy.zeros(shape, kinds.get(one.type, "float32"))


def _shapes(told: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [next(iter(shape.values()), []) for shape in told.get(f"{name[:-1]}_type_shape", [])]
        for name in ("inputs", "outputs")
    }


def main(arguments: list[str] | None = None) -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="ONNX files")
    parser.add_argument("--batch", type=int, default=1, help="samples of a call")
    parser.add_argument("--threads", type=int, default=0, help="threads of the runtime; 0: all cores")
    given = parser.parse_args(arguments)
    print(json.dumps([kernels(Path(model), given.threads, given.batch) for model in given.models]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
