"""All torchvision classifiers: solved, a random third of every removable group removed, compared, exported.

    python benchmarks/zoo.py            # every model that results/zoo.json lacks or has with an error, in its own processes
    python benchmarks/zoo.py --quick    # ten families
    python benchmarks/zoo.py --again    # forget what is there

Weights are random and so are the statistics of every norm, inputs 64 x 64 where the model takes them. What names no versions
of its own was run with those in front. For each model:

    removed == masked       largest difference over the largest output, on a batch of 2
    null channels           sampled groups: readers zeroed, makers scrambled: the output must not move; unzeroed it must
    ONNX                    the smaller model, exported and compared with torch in ONNX Runtime
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from results_io import RESULTS, known, write
from torch import Tensor, nn

from compress.edits import Keep
from compress.graph.channels.solve import Channels, Group, solve
from compress.graph.surgery.remove import keep
from compress.graph.trace.trace import trace

TOLERANCE = 1e-4
"""Relative to the largest output: float32 sums in another order, through up to 500 layers of random weights."""
SHARE = 1 / 3
NULL_GROUPS = 8
MODEL_LIMIT = 3600
RESULT = "result: "
QUICK = ["resnet18", "vgg11_bn", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"]
QUICK += ["regnet_y_400mf", "densenet121", "efficientnet_b0", "swin_t", "vit_b_32"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten models")
    parser.add_argument("--again", action="store_true", help="also models that have a row")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--skip", nargs="+", default=[], choices=PARTS, help="parts to leave out")
    parser.add_argument("--model", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model:
        run_parts(args.model[0], args.model[1:])
        return
    path = RESULTS / "zoo.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["models"] if path.exists() else {}
    every = torchvision.models.list_models(module=torchvision.models)
    names = args.only or (QUICK if args.quick else every)
    rows = {name: row for name, row in rows.items() if not (args.again and name in names)}
    for name in names:
        row = rows.setdefault(name, {})
        missing = [p for p in PARTS if p not in args.skip and (p not in row or "error" in row[p])]
        if missing:
            row |= in_own_process(name, missing)
            store(rows, every)
        print(line(name, row), flush=True)
    print(json.dumps(summary(rows, every), indent=1))


def store(rows: dict[str, dict[str, Any]], every: Iterable[str]) -> None:
    versions = {p: version(p) for p in ("torch", "torchvision", "onnx", "onnxruntime")}
    settings = {"tolerance": TOLERANCE, "share_removed": SHARE, "null_groups": NULL_GROUPS}
    ordered = {name: rows[name] for name in every if name in rows}
    write(
        "zoo",
        {
            "versions": known("zoo").get("versions", versions),
            "settings": settings,
            "summary": summary(rows, every),
            "models": ordered,
        },
    )


def in_own_process(name: str, parts: list[str]) -> dict[str, Any]:
    """Some parts of one model; memory goes back to the machine, and a hang ends with its process."""
    command = [sys.executable, __file__, "--model", name, *parts]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MODEL_LIMIT, env=environment, check=False)
        printed, problem = done.stdout, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
    except subprocess.TimeoutExpired as error:
        text = error.stdout or ""
        printed, problem = text.decode() if isinstance(text, bytes) else text, f"more than {MODEL_LIMIT} s"
    found: dict[str, Any] = {}
    for each in printed.splitlines():
        if each.startswith(RESULT):
            found |= json.loads(each.removeprefix(RESULT))
    now = {"torch": version("torch"), "torchvision": version("torchvision")}
    return {part: found.get(part, {"error": problem}) | {"versions": now} for part in parts}


def run_parts(name: str, parts: list[str]) -> None:
    """What the process of a model does."""
    for part in parts:
        try:
            result = PARTS[part](name)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(RESULT + json.dumps({part: result}), flush=True)


# ---- models ----------------------------------------------------------------------------------------------------------------


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Random weights, random statistics; nothing that is 0 or 1 everywhere, where mistakes would be invisible."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = 224 if name == "maxvit_t" else 96 if name == "inception_v3" else 56 if name == "vit_h_14" else 64
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"image_size": size} if name.startswith("vit_") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval().requires_grad_(True)
    with torch.no_grad():
        for owner in model.modules():
            for key, t in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
                if key == "running_mean":
                    t.normal_(0, 0.1)
                elif key in ("running_var", "layer_scale") or (key == "weight" and t.ndim == 1):
                    t.uniform_(0.5, 1.5)
                elif isinstance(t, nn.Parameter) and bool(t.min() == t.max()):
                    t.normal_(0, 0.02 if t.ndim > 1 else 0.1)
    return model, (torch.randn(1, 3, size, size),)


def random_edits(groups: Iterable[Group]) -> list[Keep]:
    random = torch.Generator().manual_seed(0)
    edits: list[Keep] = []
    for g in groups:
        gone = min(g.channels - 1, max(1, round(SHARE * g.channels)))
        edits.append(Keep(g.name, g.channels, tuple(sorted(torch.randperm(g.channels, generator=random)[gone:].tolist()))))
    return edits


def seconds(call: Callable[[], object]) -> float:
    """Of this process on a processor: other work on the machine does not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


# ---- exactness -------------------------------------------------------------------------------------------------------------


def exactness(name: str) -> dict[str, Any]:
    model, inputs = build(name)
    module = trace(model, inputs)
    parameters = sum(p.numel() for p in model.parameters())
    del model
    channels = solve(module, inputs)
    edits = random_edits(channels.removable)
    x = torch.randn(2, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(1))

    def run(m: nn.Module = module) -> Tensor:
        with torch.no_grad():
            return m(x)

    dense = run()
    null = null_channels(module, channels, edits, run)
    small = keep(module, channels, edits)
    removed = run(small)
    left = sum(p.numel() for p in small.parameters())
    del small
    with changed(module, channels, edits, zero=True, scramble=False):
        masked = run()
    frozen: dict[str, list[str]] = {}
    for g in channels.groups:
        if g.frozen is not None:
            frozen.setdefault(g.frozen, []).append(g.name)
    return {
        "input": list(inputs[0].shape[1:]),
        "parameters": parameters,
        "parameters_left": left,
        "groups": len(channels.groups),
        "removable": len(channels.removable),
        "frozen": frozen,
        "removed_vs_masked": distance(removed, masked),
        "removed_vs_dense": distance(removed, dense),
        "opaque": module.meta["opaque"],
        **null,
    }


def null_channels(module: nn.Module, channels: Channels, edits: list[Keep], run: Callable[[], Tensor]) -> dict[str, Any]:
    # What counts as zeros in a norm is no noise.
    edits = [e for e in edits if channels.zeroed.isdisjoint(channels.group(e.layer).labels)]
    picks = torch.randperm(len(edits), generator=torch.Generator().manual_seed(2))[:NULL_GROUPS].tolist()
    dense, worst, fired = run(), 0.0, 0
    for i in picks:
        with changed(module, channels, [edits[i]], zero=True, scramble=False):
            calm = run()
        with changed(module, channels, [edits[i]], zero=True, scramble=True):
            worst = max(worst, distance(run(), calm))
        with changed(module, channels, [edits[i]], zero=False, scramble=True):
            fired += distance(run(), dense) > TOLERANCE
    return {"null_tested": len(picks), "null_worst": worst, "null_control_fired": fired}


@contextmanager
def changed(module: nn.Module, channels: Channels, edits: list[Keep], zero: bool, scramble: bool) -> Iterator[None]:
    """The model in place, with the removed channels' readers zeroed and their makers turned to noise; as it was afterwards."""
    saved: dict[str, tuple[Tensor, Tensor]] = {}
    random = torch.Generator().manual_seed(3)
    for edit in edits:
        gone = torch.ones(edit.channels, dtype=torch.bool)
        gone[list(edit.keep)] = False
        group = channels.group(edit.layer)
        of = channels.within if group.inner and channels.within is not None else channels
        zeroed = not of.zeroed.isdisjoint(group.labels)
        for member in group.members:
            silent = member.role == "in" or zeroed
            if not (zero if silent else scramble):
                continue
            owner, _, key = member.tensor.rpartition(".")
            t = getattr(module.get_submodule(owner), key).data
            saved.setdefault(member.tensor, (t, t.clone()))
            at = ((member.index >= 0) & gone[member.index.clamp(min=0)]).nonzero()[:, 0]
            noise = torch.randn(t.index_select(member.dim, at).shape, generator=random)
            noise = torch.zeros_like(noise) if silent else noise.abs() + 0.1 if key == "running_var" else noise
            t.index_copy_(member.dim, at, noise.to(t.dtype))
    try:
        yield
    finally:
        for t, old in saved.values():
            t.copy_(old)


def distance(a: Tensor, b: Tensor) -> float:
    found = float((a - b).abs().max() / b.abs().max())
    return found if found == found else float("inf")


# ---- export ----------------------------------------------------------------------------------------------------------------


def onnx(name: str) -> dict[str, Any]:
    import exporters

    model, inputs = build(name)
    module = trace(model, inputs)
    del model
    channels = solve(module, inputs)
    small = keep(module, channels, random_edits(channels.removable))
    del module
    samples = [(torch.randn(2, *inputs[0].shape[1:]),)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = exporters.export("onnx", small, inputs, Path(folder) / "model.onnx", metadata={}, samples=samples)
        parity = done.parity
        assert parity is not None
        found = {"opset": done.opset, "bytes": done.bytes, "worst_abs": parity.worst_abs, "tolerance": parity.tolerance}
        return {**found, "seconds": round(time.perf_counter() - start, 1)}


PARTS: dict[str, Callable[[str], dict[str, Any]]] = {"exactness": exactness, "onnx": onnx}


# ---- what is said ----------------------------------------------------------------------------------------------------------


def good(row: dict[str, Any]) -> bool:
    """Exact, and nothing that could not be seen."""
    e = row.get("exactness", {})
    tested = e.get("removable", 0) > 0 and e["removed_vs_masked"] < TOLERANCE and e["null_worst"] < TOLERANCE
    return bool(tested and e["removed_vs_dense"] > TOLERANCE and e["null_control_fired"] > 0)


def line(name: str, row: dict[str, Any]) -> str:
    e, o = (row.get(part, {}) for part in PARTS)
    if "removable" not in e:
        return f"{name:24s} FAILED {e.get('error', 'not run')}"
    words = [f"{name:24s} {'ok ' if good(row) else 'BAD'} {e['removable']:3d}/{e['groups']:3d} removable"]
    words.append(f"params {e['parameters_left'] / e['parameters']:.2f}  removed==masked {e['removed_vs_masked']:.1e}")
    words.append(f"null {e['null_worst']:.1e} ({e['null_control_fired']}/{e['null_tested']} fire)")
    if o:
        words.append(
            f"onnx {o['worst_abs']:.1e} of {o['tolerance']:.1e}" if "worst_abs" in o else f"onnx FAILED {o['error'][:80]}"
        )
    return "  ".join(words)


def summary(rows: dict[str, dict[str, Any]], every: Iterable[str]) -> dict[str, Any]:
    done = {n: r for n, r in rows.items() if "removable" in r.get("exactness", {})}
    exported = {n: r["onnx"] for n, r in rows.items() if "onnx" in r}
    return {
        "models": len(list(every)),
        "run": len(done),
        "exact": sum(good(r) for r in done.values()),
        "not_exact": [n for n, r in done.items() if not good(r)],
        "failed": [n for n, r in rows.items() if "error" in r.get("exactness", {})],
        "without_removable": [n for n, r in done.items() if not r["exactness"]["removable"]],
        "worst_removed_vs_masked": max((r["exactness"]["removed_vs_masked"] for r in done.values()), default=None),
        "worst_null": max((r["exactness"]["null_worst"] for r in done.values()), default=None),
        "null_control_fired": sum(r["exactness"]["null_control_fired"] for r in done.values()),
        "null_tested": sum(r["exactness"]["null_tested"] for r in done.values()),
        "onnx_equal": sum("worst_abs" in o for o in exported.values()),
        "onnx_failed": {n: o["error"] for n, o in exported.items() if "error" in o},
    }


if __name__ == "__main__":
    main()
