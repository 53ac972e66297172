"""How fast are these models here? Timed in turns, each in a process of its own (racing.py).

    python bench.py                          the ONNX models of the unpacked package that this script lies in
    python bench.py a.onnx b.onnx --batch 8 --threads 2
    python bench.py --json                   for a program: the seconds of every single call

Needs Python 3.8 or newer, numpy and onnxruntime. Exit codes: 0 done, 2 no model, 4 none of them could be timed here.
"""

from __future__ import annotations

import sys

sys.dont_write_bytecode = True  # a package holds what it lists, and nothing else

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__:
    from exporters.standalone import inference, machine, racing
else:
    import inference  # type: ignore[no-redef,import-not-found]
    import machine  # type: ignore[no-redef,import-not-found]
    import racing  # type: ignore[no-redef,import-not-found]


def load(order: dict[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    """Open an ONNX file and run it once."""
    import onnxruntime  # importing it is Python's time, not the file's

    def opened() -> tuple[Callable[[list[Any]], object], Any, str]:
        try:
            session = inference.session(Path(order["path"]), order["threads"] or machine.cores(), order["batch"])
        except Exception as error:  # a runtime's own kinds
            raise ValueError(f"onnxruntime does not open it: {str(error).splitlines()[0]}") from error
        shapes = [[size if isinstance(size, int) else 0 for size in i.shape] for i in session.get_inputs()]
        return inference.function(session), shapes, onnxruntime.__version__

    return racing.prepared(order, opened)


def lines(names: Sequence[str], models: Sequence[racing.Measured], batch: int) -> list[str]:
    """What a person reads. Only what was timed in the same rounds is put beside each other."""
    told: list[str] = []
    first: list[float] = []
    for name, model in zip(names, models):
        if model.failed is not None:
            told.append(f"{name}: not timed, {model.failed}")
            continue
        # Of all calls, while the median is over rounds: the tail shows in single calls only.
        calls = sorted(1e3 * second for one in model.rounds for second in one)
        own = [statistics.median(one) for one in model.rounds]
        line = f"{name}: p50 {1e3 * statistics.median(own):.3f} ms, p90 {calls[int(0.9 * len(calls))]:.3f} ms at batch {batch}"
        line += f", peak {(model.peak_bytes or 0) / 1e6:.0f} MB, loaded in {1e3 * model.loaded['load_s']:.0f} ms"
        if first:
            pairs = sorted(a / b for a, b in zip(first, own))
            low, high = pairs[len(pairs) // 4], pairs[(3 * len(pairs)) // 4]
            line += f"; {statistics.median(pairs):.2f} times as fast as the first (half of the rounds: {low:.2f} to {high:.2f})"
        first = first or own
        told.append(line)
        if model.held < racing.LEAST_HELD or model.calm < machine.LEAST_CALM:
            told.append(
                f"Other processes took the cores: only {model.calm:.0%} of the rounds of {name} were undisturbed. Claim nothing."
            )
    return told


def main(arguments: list[str] | None = None) -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="ONNX files; without any, those of the package that this script lies in")
    parser.add_argument("--batch", type=int, default=1, help="samples of a call")
    parser.add_argument("--threads", type=int, default=0, help="threads of the runtime; 0: all cores")
    parser.add_argument("--rounds", type=int, default=40, help="of each model")
    parser.add_argument("--cpus", default="", help="cores to pin to, such as 2,3")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        racing.serve(load, (ValueError, OSError, ImportError, MemoryError))
        return 0
    here = Path(__file__).resolve().parent
    names: list[str] = given.models or [str(path) for path in sorted(here.glob("models/*.onnx"))]
    if not names:
        print("Error: There is no ONNX model here. Give files, or run this script in an unpacked package.", file=sys.stderr)
        return 2
    cpus = [int(part) for part in given.cpus.split(",") if part]
    orders = [{"path": name, "batch": given.batch, "threads": given.threads, "cpus": cpus} for name in names]
    before = machine.state()
    models = racing.race(orders, [sys.executable, str(Path(__file__).resolve()), "--child"], given.rounds)
    told = {"models": models, "before": before, "after": machine.state(), "environment": machine.environment()}
    print(json.dumps(told, default=dataclasses.asdict) if given.json else "\n".join(lines(names, models, given.batch)))
    return 4 if all(model.failed is not None for model in models) else 0


if __name__ == "__main__":
    sys.exit(main())
