"""VGG-16-BN on CIFAR-10, exported: files of the dense and of the compressed net beside the dense ONNX file, timed in turns.

    python benchmarks/vgg16_deployed.py --dense dense.onnx --files dense.int8.onnx model.onnx model.int8.onnx model.int8.xml ...

The files are those of `compress export` and of a run, each in the runtime that it was made for, at batch 1 on one thread. What
was measured while others took the cores claims nothing and says so.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from results_io import write

import compress
from compress.data import open_data
from compress.measure import quality
from exporters.standalone import verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, type=Path, help="float ONNX file of the dense net")
    parser.add_argument("--files", required=True, type=Path, nargs="+")
    parser.add_argument("--data", help="data.toml of the test images, for the accuracy of ONNX files")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cpu", default="", help="core to pin to")
    args = parser.parse_args()
    found = compress.bench(args.dense, *args.files, runtime="auto", batch=1, threads=1, cpu=args.cpu, rounds=args.rounds)
    rows: dict[str, dict[str, Any]] = {}
    for one in found.values():
        path = Path(one.model)
        parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
        about = {"bytes": sum(part.stat().st_size for part in parts)}
        if args.data and path.suffix == ".onnx":
            about["top1"] = top1(path, args.data)
        rows[path.name] = {**dataclasses.asdict(one), "model": path.name, **about}
    best = {
        kind: min((r for n, r in rows.items() if n.startswith("dense") == (kind == "dense")), key=p50)
        for kind in ("dense", "smaller")
    }
    beside = compress.bench(
        *(str(next(f for f in (args.dense, *args.files) if f.name == row["model"])) for row in best.values()),
        runtime="auto", batch=1, threads=1, cpu=args.cpu, rounds=args.rounds,
    )  # fmt: skip
    last = list(beside.values())[-1]
    against = {"dense": best["dense"]["model"], "smaller": best["smaller"]["model"], "faster": last.ratio, "ci95": last.ci95}
    about = {"network": "VGG-16-BN, 32x32", "threads": 1, "batch": 1}
    write("vgg16_deployed", {**about, "top1": known(rows), "best_against_best": against, "files": rows})
    print(against)
    for name, row in rows.items():
        print(name, row["runtime"], row["p50_ms"], row["ratio"], row["ci95"], row["held"], row["verdict"], row["reason"])


def known(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Accuracy of the ONNX files, by net and number format."""
    nets = {name: "dense" if name.startswith("dense") else "smaller" for name in rows}
    return {nets[n] + ("_int8" if ".int8" in n else ""): row["top1"] for n, row in rows.items() if "top1" in row}


def p50(row: dict[str, Any]) -> float:
    return float(row["p50_ms"] or "inf")


def top1(path: Path, source: str) -> float:
    """Accuracy of the file itself, in ONNX Runtime, on all test images."""
    session = verify.session(path, 0)
    name, data = session.get_inputs()[0].name, open_data(source)
    metric, _ = quality.choose("top1", "classification", True)
    run = lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])  # noqa: E731
    return quality.evaluate(run, data.test.batches(500), metric).value


if __name__ == "__main__":
    main()
