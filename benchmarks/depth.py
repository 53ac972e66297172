"""What merging can gain at most, network by network: every stretch that wins a race becomes one layer.

    python benchmarks/depth.py

Random weights: latency does not depend on them. Each network is timed as it is against itself with the chosen stretches merged
and their rectifiers taken away, in ONNX Runtime, in turns. It is what depth could save if accuracy allowed all of it; where it is
near 1, merging does not pay there. Also: seconds to merge every bottleneck of ResNet-152, and to choose among the candidates.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
import torchvision.models as zoo
from results_io import RESULTS, write
from torch import nn

from compress.artifact import Artifact, apply
from compress.edits import Linearize, Merge, Plan, Relocate
from compress.entropy.spans import Span, choose
from compress.graph.merge.segments import segments
from compress.graph.trace.trace import trace
from compress.measure.cost import cost
from compress.pipeline.latency_cache import LatencyCache
from compress.recipe import make
from compress.selection import depth
from compress.selection.merge_candidates import candidates, merged


def small_stem(net: nn.Module) -> nn.Module:
    """A ResNet for small images: 3x3 stem without pooling."""
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


NETS = {
    "ResNet-18, 32x32": (lambda: small_stem(zoo.resnet18(num_classes=10)), 32),
    "VGG-16-BN, 32x32": (lambda: small_vgg(), 32),
    "MobileNetV2, 224x224": (lambda: zoo.mobilenet_v2(), 224),
    "MobileNetV2, 96x96": (lambda: zoo.mobilenet_v2(), 96),
    "ViT, 6 blocks of 192, 64x64": (
        lambda: zoo.VisionTransformer(64, 8, 6, 3, 192, 768, num_classes=10),
        64,
    ),
}


def small_vgg() -> nn.Module:
    net = zoo.vgg16_bn(num_classes=10)
    net.avgpool = nn.Identity()
    net.classifier = nn.Linear(512, 10)
    return net


def opened(build: Any, size: int) -> Artifact:
    torch.manual_seed(0)
    inputs = (torch.zeros(1, 3, size, size),)
    return Artifact(trace(build().eval(), inputs), inputs)


def row(artifact: Artifact, latency_cache: LatencyCache) -> dict[str, Any]:
    start = time.perf_counter()
    found = candidates(artifact, latency_cache.race, lambda one: bool(one.activations), pointwise=True)
    timed = time.perf_counter()
    chosen = [found.candidates[i] for i in choose([Span(c.start, c.stop, c.gain, 0.0) for c in found.candidates], 0.0)]
    decided = time.perf_counter()
    result: dict[str, Any] = {
        "rectifiers": len(depth.widths(artifact)),
        "exact_stretches": sum(s.exact and bool(s.sites) for s in segments(artifact.module, artifact.inputs)),
        "raced": found.tried,
        "faster": len(found.candidates),
        "merged_stretches": len(chosen),
        "windows_lost": sum(len(c.segment.pointwise) for c in chosen),
        "lines": sum(len(c.segment.sites) for c in chosen),
        "timing_seconds": timed - start,
        "choice_seconds": decided - timed,
    }
    if chosen:
        shallow = merged(artifact, [c.segment for c in chosen])
        timing = latency_cache.race(shallow, artifact)
        before, after = (cost(a.module, a.inputs).macs for a in (artifact, shallow))
        result |= {"faster_whole": timing.ratio, "ci95": timing.ci95, "macs": after / before}
    return result


def resnet152() -> dict[str, float]:
    """Seconds to linearize and merge the inside of every bottleneck."""
    artifact = opened(zoo.resnet152, 64)
    start = time.perf_counter()
    inner = [
        s for s in segments(artifact.module, artifact.inputs) if s.exact and len(s.layers) == 3 and "add" not in s.layers[-1]
    ]
    blocks = [s for s in inner if s.layers[0].endswith("conv1") and s.layers[-1].endswith("conv3")]
    channels = depth.widths(artifact)
    found = time.perf_counter()
    lines = apply(
        Plan(
            tuple(
                [Linearize(site, channels[site]) for s in blocks for site in s.sites]
                + [Relocate(layers) for s in blocks for layers in s.relocate]
            )
        ),
        artifact,
    )
    ready = time.perf_counter()
    merged_ = apply(Plan(tuple(Merge(s.layers) for s in blocks)), lines)
    done = time.perf_counter()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, other = merged_.module(x), lines.module(x)
    return {
        "blocks": len(blocks),
        "find_seconds": found - start,
        "merge_seconds": done - ready,
        "worst_relative_difference": float((one - other).abs().max() / other.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / "depth.json"
    rows: dict[str, Any] = json.loads(path.read_text())["networks"] if path.exists() else {}
    results: dict[str, Any] = {"threads": args.threads, "rounds": args.rounds, "networks": rows, "resnet152": resnet152()}
    print(results["resnet152"], flush=True)
    latency_cache = LatencyCache(make(rounds=args.rounds, threads=args.threads), torch.device("cpu"))
    for name, (build, size) in NETS.items():
        if name not in rows:
            rows[name] = row(opened(build, size), latency_cache)
            print(name, rows[name], flush=True)
            write("depth", results)
    write("depth", results)


if __name__ == "__main__":
    main()
