"""Networks of other libraries, as they are built there: traced, how much is within reach, and whether what is done is exact.

    python benchmarks/coverage.py                      # what results/coverage.json lacks, library by library, ONNX files last
    python benchmarks/coverage.py --library timm       # one of them; --only NAME ... single networks
    python benchmarks/coverage.py --again --quick      # a fifth of each, anew

Weights are random, and nothing is downloaded (`other_networks.py`). Each network is looked at in a process of its own, which has
five minutes, and the same again for its ONNX file:

    seconds     CPU seconds of one thread for trace
    opaque      submodules that stay whole
    macs        share of multiply-accumulates within reach of removing channels (`compress explain --reach`), likewise params
    dearest     what stands in the way, and what it holds
    removed     a random third of every removable group removed, against masked: largest difference over the largest output, the
                worst of all outputs; `seen` is the same against the network as it was
    saved       the smaller network saved and loaded: the same outputs, and a backward pass gives gradients
    onnx        the smaller network in ONNX Runtime: difference over what is allowed
    file        of transformers: opened by `--arch hf:` from the folder that `save_pretrained` wrote, with the weights it had
    refused     what was said instead; error: by step, what went wrong
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from other_networks import LIBRARIES, made
from results_io import known, write
from safetensors.torch import load_file
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves
from zoo import changed, distance, random_edits, seconds

import exporters
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.checkpoint.load.state_dict import fill
from compress.checkpoint.save import save
from compress.edits import Keep
from compress.errors import UnsupportedModel
from compress.graph.channels.solve import Channels, solve
from compress.graph.surgery.remove import keep
from compress.graph.trace.trace import trace
from compress.selection.reach import reach

TOLERANCE = 1e-4
"""Relative to the largest output: float32 sums in another order."""
LIMIT_S = 300
MEMORY = 14 << 30
"""Bytes of a process: a network that needs more fails alone."""

Row = dict[str, Any]
Inputs = tuple[Tensor, ...]


# ---- what is looked at -----------------------------------------------------------------------------------------------------


def looked_at(library: str, name: str) -> Iterator[Row]:
    """Piece by piece, so that what was found is there when time is over."""
    model, inputs = made(library, name)
    found: list[GraphModule] = []
    try:
        took = seconds(lambda: found.append(trace(model, inputs)))
    except UnsupportedModel as error:
        said = first_line(error)
        yield {"error": {"trace": said}} if "allocate memory" in said else {"refused": said}
        return
    if library == "transformers":
        yield from step("file", lambda: opened_from_its_folder(model))
    module = found[0]
    yield {"seconds": round(took, 2), "opaque": len(module.meta["opaque"])}
    channels = solve(module, inputs)
    edits = random_edits(channels.removable)
    x = tuple(torch.cat([t, t.roll(1, -1)]) for t in inputs)
    yield from step("reach", lambda: within_reach(module, inputs))
    yield from step("removed", lambda: exactness(module, channels, edits, x))
    yield from step("saved", lambda: stored(keep(module, channels, edits), x, inputs))


def opened_from_its_folder(model: Any) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        read, _ = fill(load_file(Path(folder) / "model.safetensors"), f"hf:{folder}", {}, "the file")
    mine, there = model.state_dict(), read.state_dict()
    return {"file": mine.keys() == there.keys() and all(torch.equal(t, there[name]) for name, t in mine.items())}


def step(name: str, call: Callable[[], Row]) -> Iterator[Row]:
    try:
        yield call()
    except Exception as error:
        yield {"error": {name: first_line(error)}}


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def within_reach(module: GraphModule, inputs: Inputs) -> Row:
    found = reach(Artifact(module, inputs))
    row: Row = {"groups": found.groups, "macs": round(found.macs, 3), "params": round(found.params, 3)}
    if found.obstacles:
        row["dearest"] = f"{found.obstacles[0].macs:.0%} of the MACs: {found.obstacles[0].why}"[:200]
    return row


def exactness(module: GraphModule, channels: Channels, edits: list[Keep], x: Inputs) -> Row:
    dense, removed = outputs(module, x), outputs(keep(module, channels, edits), x)
    with changed(module, channels, edits, zero=True, scramble=False):
        masked = outputs(module, x)
    return {"removed": far(removed, masked), "seen": far(removed, dense)}


def outputs(model: Callable[..., Any], x: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(*(t.clone() for t in x)))


def tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def far(one: list[Tensor], other: list[Tensor]) -> float:
    return max((apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


def apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return 0.0 if torch.equal(a, b) else distance(a.double(), b.double())


def stored(small: GraphModule, x: Inputs, inputs: Inputs) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(Artifact(small, inputs), Path(folder) / "model.compressed")
        except UnsupportedModel as error:
            return {"saved": first_line(error)}
        again = load(Path(folder) / "model.compressed")
    if far(outputs(again, x), outputs(small, x)) > 0:
        return {"saved": "other outputs"}
    out = [t for t in tensors(again.train()(*x)) if t.requires_grad]
    torch.stack([(t * torch.randn_like(t)).sum() for t in out]).sum().backward()
    return {"saved": any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in again.parameters()) or "no gradients"}


def exported(library: str, name: str) -> Iterator[Row]:
    model, inputs = made(library, name)
    module = trace(model, inputs)
    del model
    channels = solve(module, inputs)
    small = keep(module, channels, random_edits(channels.removable))
    x = tuple(torch.cat([t, t.roll(1, -1)]) for t in inputs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = exporters.export("onnx", small, inputs, Path(folder) / "model.onnx", metadata={}, samples=[x])
        except Exception as error:
            yield {"onnx": first_line(error)}
            return
    assert done.parity is not None
    yield {"onnx": round(done.parity.worst_abs / done.parity.tolerance, 4)}


PARTS: dict[str, Callable[[str, str], Iterator[Row]]] = {"network": looked_at, "onnx": exported}


# ---- a process for each ----------------------------------------------------------------------------------------------------


def in_own_process(part: str, library: str, name: str) -> Row:
    """A fork, so that the libraries are imported once; one that hangs or is killed takes nothing with it."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=told, args=(theirs, part, library, name))
    child.start()
    theirs.close()
    end = time.monotonic() + LIMIT_S
    row: Row = {}
    problem = f"more than {LIMIT_S} s"
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            piece = ours.recv()
            row |= {**piece, "error": row.get("error", {}) | piece["error"]} if "error" in piece else piece
    except EOFError:
        child.join()
        problem = f"exit code {child.exitcode}" if child.exitcode else ""
    with suppress(ProcessLookupError):
        os.killpg(child.pid or 0, signal.SIGKILL)
    child.join()
    if problem and part == "onnx":
        return {"onnx": problem}
    return {**row, "error": {**row.get("error", {}), "process": problem}} if problem else row


def told(pipe: Any, part: str, library: str, name: str) -> None:
    """What the process of a network does."""
    os.setpgrp()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        for row in PARTS[part](library, name):
            pipe.send(row)
    except Exception as error:
        pipe.send({"onnx": first_line(error)} if part == "onnx" else {"error": {"network": first_line(error)}})


# ---- running and telling ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these networks, in this order")
    parser.add_argument("--skip", nargs="+", default=[], choices=PARTS, help="parts to leave out")
    parser.add_argument("--again", action="store_true", help="also what has a row")
    parser.add_argument("--quick", action="store_true", help="every fifth")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    rows = rows_of_these_versions()
    chosen = {library: names_of(library, given.only, given.quick) for library in given.library}
    if given.again:
        rows |= {library: {n: r for n, r in rows.get(library, {}).items() if n not in chosen[library]} for library in chosen}
    for part in [p for p in PARTS if p not in given.skip]:
        for library, names in chosen.items():
            kept = rows.setdefault(library, {})
            for name in missing(part, kept, names):
                kept[name] = kept.get(name, {}) | in_own_process(part, library, name)
                print(f"{library:28} {name:36} {json.dumps(kept[name])}", flush=True)
                store(rows)
    bad = [f"{library} {name}" for library, names in chosen.items() for name in names if wrong(rows[library].get(name, {}))]
    if bad:
        raise SystemExit(f"not exact, or not as it was after loading: {', '.join(bad)}")


def rows_of_these_versions() -> dict[str, dict[str, Row]]:
    """Rows by library; those of another version would pass for those of this one."""
    old, now = known("coverage"), versions()
    there = old.get("versions", {})
    same = [library for library in LIBRARIES if all(there.get(p) == now.get(p) for p in ("torch", LIBRARIES[library][2]))]
    return {library: rows for library, rows in old.get("networks", {}).items() if library in same}


def names_of(library: str, only: list[str], quick: bool) -> list[str]:
    importlib.import_module(library)  # before the forks
    every = LIBRARIES[library][1]()
    return [name for name in only if name in every] if only else every[:: 5 if quick else 1]


def missing(part: str, kept: dict[str, Row], names: Iterable[str]) -> list[str]:
    return [n for n in names if (n not in kept if part == "network" else "removed" in kept.get(n, {}) and "onnx" not in kept[n])]


def store(rows: dict[str, dict[str, Row]]) -> None:
    ordered = {library: rows[library] for library in LIBRARIES if rows.get(library)}
    settings = {"tolerance": TOLERANCE, "limit_s": LIMIT_S, "memory": MEMORY}
    table = [summary(library, list(found.values())) for library, found in ordered.items()]
    write("coverage", {"versions": versions(), "settings": settings, "summary": table, "networks": ordered})


def versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in ("torch", *(row[2] for row in LIBRARIES.values())):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def wrong(row: Row) -> bool:
    other = row.get("saved") in ("other outputs", "no gradients") or row.get("file") is False
    return row.get("removed", 0.0) > TOLERANCE or other


def exact(row: Row) -> bool:
    """Where nothing went, or nobody can see it, nothing is shown."""
    return row.get("removed", 1.0) < TOLERANCE < row.get("seen", 0.0)


def summary(library: str, rows: list[Row]) -> Row:
    traced = [row for row in rows if "opaque" in row]
    onnx = [row["onnx"] for row in traced if "onnx" in row]
    return {
        "library": library,
        "networks": len(rows),
        "traced": sum(not row["opaque"] for row in traced),
        "in_part": sum(bool(row["opaque"]) for row in traced),
        "half": sum(row.get("macs", 0) >= 0.5 for row in traced),
        "nothing": sum(row.get("macs") == 0 for row in traced),
        "exact": sum(map(exact, traced)),
        "saved": sum(row.get("saved") is True for row in traced),
        "files": f"{sum(row['file'] is True for row in rows if 'file' in row)}" if any("file" in row for row in rows) else "-",
        "onnx": f"{sum(isinstance(o, float) and o <= 1 for o in onnx)} of {len(onnx)}" if onnx else "not run",
        "refused": sum("refused" in row for row in rows),
        "failed": sum("error" in row for row in rows),
    }


if __name__ == "__main__":
    main()
