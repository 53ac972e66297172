"""Five networks, dense and with half of their channels, in every runtime here, in float and in 8 bits: time, size, memory, error.

    python benchmarks/runtimes.py --data cifar10 --nets nets                    # every row that results/runtimes.json lacks
    python benchmarks/runtimes.py --only mobilenet_v3_small --batch 1 32
    python benchmarks/runtimes.py --data cifar10 --nets nets --compressed out/model.compressed

VGG-16-BN has its trained weights, and its rows their accuracy on the test images; its halved net is the one of `--compressed`,
where it is given. All other networks have random weights: their latency, size and memory are those of trained ones, their
accuracy is none, and the error of 8 bits is that of random layers, so it is not held to a bound.

All files of one network and batch size are timed in turns, each in a process of its own, against the dense network in ONNX
Runtime in float. A format that is not installed or cannot be written is a row with its reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision.models as zoo
from results_io import RESULTS, write
from torch import Tensor, nn

import exporters
from compress.artifact import Artifact, apply
from compress.checkpoint.load import open_artifact
from compress.data import Data, open_data
from compress.edits import Keep, Plan
from compress.graph.channels.solve import solve
from compress.graph.trace.trace import trace
from compress.measure import quality
from compress.measure.interleaved import Candidate, race
from compress.pipeline.answers import answers
from compress.pipeline.exports import batches as inputs_of
from exporters import isolated

FORMATS = ("onnx", "onnx-int8", "openvino", "openvino-int8", "executorch", "executorch-int8", "pt2")
NETS: dict[str, tuple[Callable[[], nn.Module] | None, int]] = {
    "vgg16_bn": (None, 32),
    "resnet18": (zoo.resnet18, 224),
    "mobilenet_v3_small": (zoo.mobilenet_v3_small, 224),
    "efficientnet_b0": (zoo.efficientnet_b0, 224),
    "vit": (lambda: small_vit(), 64),
}
ANY_ERROR = 0.9
"""Of random layers, whose outputs cancel: nothing follows from it."""


def small_vit() -> nn.Module:
    net = zoo.VisionTransformer(64, 8, num_layers=6, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=100)
    nn.init.normal_(net.heads.head.weight, 0, 0.02)  # zero as it comes: all outputs would be equal
    return net


def halved(dense: Artifact) -> Artifact:
    """Every second channel of every removable group."""
    groups = solve(dense.module, dense.inputs).removable
    edits = (Keep(g.name, g.channels, tuple(range(0, g.channels, 2))) for g in groups if g.channels > 1)
    return apply(Plan(tuple(edits)), dense)


def structures(name: str, args: argparse.Namespace) -> Iterator[tuple[str, Artifact]]:
    build, size = NETS[name]
    if build is None:
        model, arch = args.nets / "vgg16_bn.pt", f"{args.nets / 'nets.py'}:vgg16_bn"
        dense = open_artifact(str(model), arch=arch, arch_kwargs={}, trust_pickle=False, input_shapes=((3, size, size),))
    else:
        torch.manual_seed(0)
        net = build()
        with torch.no_grad():
            net.train()(torch.randn(4, 3, size, size))  # statistics of norms that are not 0 and 1
        inputs = (torch.randn(1, 3, size, size),)
        dense = Artifact(trace(net.eval(), inputs), inputs)
    yield "dense", dense
    yield "halved", open_artifact(str(args.compressed)) if build is None and args.compressed else halved(dense)


def samples(data: Data | None, artifact: Artifact) -> dict[str, Any]:
    """Real inputs where there are some."""
    if data is not None:
        return {"samples": inputs_of(data.test, 1000, 0), "calibration": inputs_of(data.train, 256, 0)}
    shape = artifact.inputs[0].shape[1:]
    draw = torch.Generator().manual_seed(1)
    random = [(torch.randn(8, *shape, generator=draw),) for _ in range(5)]
    return {"samples": random[:1], "calibration": random[1:], "int8_error": ANY_ERROR}


def accuracy(answer: Callable[..., Tensor], data: Data | None) -> float | None:
    if data is None:
        return None
    metric, _ = quality.choose("top1", data.spec.task, data.spec.labeled)
    return quality.evaluate(answer, data.test.batches(250), metric).value


def written(row: dict[str, Any], artifact: Artifact, path: Path, batch: int, data: Data | None) -> dict[str, Any]:
    """The row with what the export says."""
    format = row["format"]
    started = time.perf_counter()
    try:
        exporters.require(format)
        done = isolated.export(format, artifact.module, artifact.inputs, path, batch=batch, **samples(data, artifact))
    except exporters.ExportError as error:
        return row | {"reason": str(error)}
    close = done.closeness
    return row | {
        "bytes": done.bytes,
        "export_seconds": time.perf_counter() - started,
        "relative_error": close and close.relative,
        "agreement": close and close.agreement,
        "worst_abs": done.parity and done.parity.worst_abs,
        "kept_float": len(done.kept_float),
        "top1": accuracy(answers(format, path), data),
    }


def network(name: str, batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    data = open_data(str(cifar(args)), seed=0) if NETS[name][0] is None else None
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        candidates: dict[int, Candidate] = {}
        for structure, artifact in structures(name, args):
            for format in args.formats:
                print(name, structure, format, flush=True)
                path = Path(folder, f"{structure}{exporters.ENDING[format]}")
                bits = 8 if format in exporters.LOSSY else 32
                row = {"net": name, "structure": structure, "format": format, "bits": bits, "batch": batch}
                rows.append(written(row, artifact, path, batch, data))
                if "reason" not in rows[-1]:
                    label = f"{name} {structure} {format}"
                    candidates[len(rows) - 1] = Candidate(label, exporters.RUNTIME[format], path, batch, args.threads)
        timed = race(list(candidates.values()), rounds=args.rounds, budget_s=args.budget)
        for number, figures in zip(candidates, timed, strict=True):
            told = dataclasses.asdict(figures)
            rows[number] |= {key: told[key] for key in told if key not in ("model", "batch")}
    return rows


def cifar(args: argparse.Namespace) -> Path:
    source = Path(tempfile.mkdtemp(), "cifar10.toml")
    source.write_text(f'source = "{args.data.absolute()}"\nmean = [0.4914, 0.4822, 0.4465]\nstd = [0.247, 0.2435, 0.2616]\n')
    return source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="unpacked image folder with train/ and test/; without it VGG-16-BN is left out")
    parser.add_argument("--nets", type=Path, help="folder of nets.py and vgg16_bn.pt")
    parser.add_argument("--compressed", type=Path, help="model.compressed of VGG-16-BN, in place of the halved one")
    parser.add_argument("--only", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--formats", nargs="+", choices=list(exporters.EXPORTERS), default=list(FORMATS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of timing for a network and batch size")
    parser.add_argument("--again", action="store_true", help="also what has rows already")
    args = parser.parse_args()
    path = RESULTS / "runtimes.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    for batch in args.batch:
        for name in args.only:
            if NETS[name][0] is None and not (args.data and args.nets):
                print(f"{name}: left out, it needs --data and --nets")
                continue
            known = [row for row in rows if (row["net"], row["batch"]) == (name, batch)]
            if known and not args.again:
                continue
            rows = [row for row in rows if row not in known] + network(name, batch, args)
            write("runtimes", {"weights": "random but for vgg16_bn", "threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()
