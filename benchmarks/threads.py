"""The same run with the same seed again, and with another number of threads: how far apart are the results?

    python benchmarks/threads.py

The run of `kills.py`; all share one cache of measured times, so that what is decided by time is decided alike. `OMP_NUM_THREADS`
is what torch computes with; sums over more threads are added in another order.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from kills import SETTINGS, Place
from results_io import write
from safetensors.torch import load_file

RUNS = (("same threads", "1"), ("two threads", "2"), ("two threads again", "2"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        first = carried_out(place, "first", "1")
        rows = []
        results = {"first": first}
        for name, threads in RUNS:
            results[name] = carried_out(place, name.replace(" ", "-"), threads)
            other = "two threads" if name.endswith("again") else "first"
            rows.append({"run": name, "threads": int(threads), "beside": other, **beside(results[other], results[name])})
            print(json.dumps(rows[-1]), flush=True)
    write("threads", {"run": " ".join(SETTINGS), "runs": rows})


def carried_out(place: Place, name: str, threads: str) -> Path:
    place.environment["OMP_NUM_THREADS"] = threads
    _, code = place.carried_out(name)
    assert code == 0, f"the run {name} has to end well"
    return place.folder / name


def beside(one: Path, other: Path) -> dict[str, Any]:
    """What is equal byte by byte, and how far apart the rest is."""
    plans, weights = ([(out / name).read_bytes() for out in (one, other)] for name in ("plan.json", WEIGHTS))
    edits = [[edit_shape(edit) for edit in json.loads(plan)["edits"]] for plan in plans]
    top1 = [json.loads((out / "report.json").read_text())["stages"][-1]["quality"]["value"] for out in (one, other)]
    tensors = [load_file(out / WEIGHTS) for out in (one, other)]
    alike = edits[0] == edits[1] and {k: t.shape for k, t in tensors[0].items()} == {k: t.shape for k, t in tensors[1].items()}
    return {
        "plan_bytes": "same" if plans[0] == plans[1] else "other",
        "plan_decisions": "same" if edits[0] == edits[1] else "other",
        "weights_bytes": "same" if weights[0] == weights[1] else "other",
        "weights_relative": distance(*tensors) if alike else None,
        "top1_points": 100 * (top1[1] - top1[0]),
    }


WEIGHTS = "model.compressed/weights.safetensors"


def edit_shape(edit: dict[str, Any]) -> dict[str, Any]:
    """An edit without the numbers that were fitted: which layer, which channels."""
    return {key: value for key, value in edit.items() if key not in ("slope", "offset")}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all weights, as a share of that of the weights."""
    pairs = [(a.double(), other[name].double()) for name, a in one.items() if a.is_floating_point()]
    return float(sum((a - b).square().sum() for a, b in pairs) ** 0.5 / sum(a.square().sum() for a, _ in pairs) ** 0.5)


if __name__ == "__main__":
    main()
