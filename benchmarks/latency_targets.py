"""Does a model that was asked to take so many milliseconds take them, and what is it worth beside one that was sized by MACs?

    python benchmarks/latency_targets.py --data cifar10 --nets nets --work work [--on ssh://user@host] [--core 1]

targets       twenty targets in time on four networks, in ONNX Runtime here, with `--on` through ssh, and in OpenVINO in 8 bits
              where that is installed: the result is timed again as `compress bench` does it, dense and smaller file in
              processes of their own, in turns; the median of three times
by MACs       the same target, met by a share of MACs (as for runtimes that do not tell what layers take): quality at equal time

ResNet-20 and VGG-16-BN have trained weights and real images; MobileNetV2 and ResNet-18 random ones, whose quality is none. No
training, one thread, channels alone. Finished rows are written at once and not run again; each names its processor, as shares
of time differ between two. Take a core that nobody else uses.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision.models as zoo
from opened import decoded
from results_io import known, write

import compress
import exporters
from compress.checkpoint.load import load, open_artifact
from compress.errors import CompressError
from compress.measure.interleaved import Candidate, race
from compress.pipeline import time_target
from compress.report.environment import environment

TRAIN, TEST = 5000, 5000
CLOSE = 0.05
TARGETS = {
    "resnet20": (0.65, 0.5, 0.35),
    "vgg16_bn": (0.6, 0.4, 0.2),
    "mobilenet_v2": (0.65, 0.5),
    "resnet18": (0.6, 0.4),
}
BATCHED = {"resnet20": (0.5,), "vgg16_bn": (0.5,)}
THERE = {"resnet20": (0.6,), "vgg16_bn": (0.5,), "mobilenet_v2": (0.7,), "resnet18": (0.5,)}
"""Through ssh, and in OpenVINO in 8 bits."""
EIGHT_BITS = "openvino-int8"
BY_MACS = {"resnet20": (0.65, 0.5), "vgg16_bn": (0.6, 0.4)}
TRAINED = ("resnet20", "vgg16_bn")
SIDE = 96
NOTHING = dict.fromkeys(("left", "off", "macs", "lost", "refused"))
"""Figures that every row has a place for."""


def main() -> None:
    args = given(__doc__ or "")
    results = known("latency_targets")
    rows: list[dict[str, Any]] = results.setdefault("rows", [])
    # What takes longest comes last.
    for asked in sorted(jobs(args.on is not None), key=lambda job: job["net"] == "vgg16_bn"):
        if any(all(row[key] == value for key, value in asked.items()) for row in rows):
            continue
        done = carried_out(asked, args)
        print({**asked, **done}, flush=True)
        if "busy" in (done.get("refused") or ""):  # for another time
            continue
        rows.append({**asked, **NOTHING, **done, "cpu": environment().cpu})
        write("latency_targets", {"summary": summary(rows), "rows": rows})
    write("latency_targets", {"summary": summary(rows), "rows": rows})


def given(about: str) -> argparse.Namespace:
    """Of the command line; what it asks of the machine is done."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as folders of images")
    parser.add_argument("--nets", type=Path, required=True, help="folder of nets.py and trained weights")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made on the way")
    parser.add_argument("--on", help="ssh://user@host of the targets on a device; without it they are left out")
    parser.add_argument("--core", type=int, help="core that everything is pinned to")
    return ready(parser)


def ready(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given; pinned, on one thread, with the work folder made."""
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    return args


def jobs(there: bool) -> Iterator[dict[str, Any]]:
    """What is asked for, row by row."""
    ways = [("here", 1, TARGETS), ("here", 8, BATCHED), *([("ssh", 1, THERE)] if there else [])]
    if all(find_spec(name) for name in exporters.NEEDS[EIGHT_BITS]):
        ways.append((EIGHT_BITS, 1, THERE))
    for place, batch, targets in ways:
        for net, shares in targets.items():
            for share in shares:
                yield {"net": net, "place": place, "batch": batch, "asked": share, "by": "milliseconds"}
    for net, shares in BY_MACS.items():
        for share in shares:
            yield {"net": net, "place": "here", "batch": 1, "asked": share, "by": "MACs"}


def carried_out(asked: dict[str, Any], args: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """One run, and its result timed by others than itself; `settings` come on top of those of a target in time."""
    net, out, start = str(asked["net"]), args.work / "out", time.perf_counter()
    path, architecture = model(net, args)
    by_macs = mock.patch.object(time_target, "possible", lambda *_: False)
    try:
        with by_macs if asked["by"] == "MACs" else contextlib.nullcontext():
            report = compress.run(
                path,
                **architecture,
                data=samples(net, args),
                **{
                    "target": f"latency={asked['asked']}",
                    "batch": asked["batch"],
                    "calibration": 1000 if net in TRAINED else 128,
                    "method": "entropic" if net in TRAINED else "obs",  # of random layers it is all the same, and this is quick
                    "allow_doubtful": net not in TRAINED,
                    **({"on": args.on, "on_python": sys.executable} if asked["place"] == "ssh" else {}),
                    **({"runtime": EIGHT_BITS} if asked["place"] == EIGHT_BITS else {}),
                    **{"threads": 1, "epochs": 0, "depth": 0, "export": "onnx", "device": "cpu"},
                    **settings,
                },
                out=out,
                force=True,
            )
    except CompressError as error:
        return {"refused": str(error), "seconds": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    shape = (3, *[32 if net in TRAINED else SIDE] * 2)
    runtime, files = "ort", (out / "stages" / "00-dense" / "model.onnx", out / "model.onnx")
    if asked["place"] == EIGHT_BITS:
        kwargs = architecture.get("arch_kwargs")
        dense_model = open_artifact(path, arch=architecture["arch"], arch_kwargs=kwargs, input_shapes=[shape]).module
        runtime, files = "openvino", eight_bits(dense_model, out, shape)
    pair = [Candidate(str(file), runtime, file, asked["batch"], 1, (shape,)) for file in files]
    # Three times in processes of their own: where memory lies there makes a few percent.
    sessions = [race(pair, rounds=40, cpus=() if args.core is None else (args.core,))[1] for _ in range(3)]
    ratio = float(np.median([one.ratio for one in sessions]))
    dense, result = report.dense.quality, report.result.quality
    return {
        "left": 1 / ratio,
        "sessions": [1 / one.ratio for one in sessions if one.ratio is not None],
        "off": 1 / ratio / asked["asked"] - 1 if asked["asked"] else None,
        "noisy": any(one.noisy for one in sessions),
        "macs": report.result.macs / report.dense.macs,
        "lost": 100 * (dense.value - result.value) if net in TRAINED and dense and result else None,
        "note": next((note for note in report.notes if "dense model's time" in note), ""),
        "seconds": seconds,
    }


def eight_bits(dense: torch.nn.Module, out: Path, shape: tuple[int, ...]) -> tuple[Path, ...]:
    """The dense model and the result as files of OpenVINO in 8 bits, calibrated on noise: only their time is looked at."""
    noise, files = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0)), list[Path]()
    for name, module in (("dense", dense), ("result", load(out / "model.compressed"))):
        files.append(out / f"{name}.xml")
        how = {"calibration": [(noise,)], "check_parity": False, "samples": [(noise,)], "int8_error": 10.0}
        exporters.export(EIGHT_BITS, module, (noise[:1],), files[-1], **how)
    return tuple(files)


def model(net: str, args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The file of the weights, and what else says which network it is."""
    if net in TRAINED:
        factory = f"{args.nets / 'nets.py'}:{net}"
        return args.nets / f"{net}.pt", {"arch": factory, "input_shape": "3x32x32", "trust_recipe": True}
    path = args.work / f"{net}.pt"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(getattr(zoo, net)(num_classes=10).state_dict(), path)
    shape = f"3x{SIDE}x{SIDE}"
    return path, {"arch": f"torchvision:{net}", "arch_kwargs": {"num_classes": 10}, "input_shape": shape}


def samples(net: str, args: argparse.Namespace) -> str:
    """Images and labels, made once."""
    path = args.work / ("cifar.npz" if net in TRAINED else "random.npz")
    if not path.exists():
        np.savez(path, **(some(dict(decoded(args.data))) if net in TRAINED else noise()))
    if net not in TRAINED:
        return str(path)
    described = path.with_suffix(".toml")
    described.write_text(f'source = "{path.name}"\nnormalize = "cifar10"\n')
    return str(described)


def some(arrays: dict[str, np.ndarray], train: int = TRAIN, test: int = TEST) -> dict[str, np.ndarray]:
    """As many of each part as the figures need."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        chosen = random.permutation(len(arrays[f"y_{part}"]))[:count]
        arrays |= {f"{axis}_{part}": arrays[f"{axis}_{part}"][chosen] for axis in "xy"}
    return arrays


def noise() -> dict[str, np.ndarray]:
    """Images of nothing."""
    random, made = np.random.default_rng(0), dict[str, np.ndarray]()
    for part, count in (("train", 400), ("test", 100)):
        made[f"x_{part}"] = random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        made[f"y_{part}"] = np.arange(count) % 10
    return made


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many targets were met, and what both ways lose at equal time."""
    timed = [row for row in rows if row["by"] == "milliseconds"]
    return {
        "targets": len(timed),
        "met": sum(row["off"] is not None and abs(row["off"]) <= CLOSE for row in timed),
        "refused": sum(row["refused"] is not None for row in timed),
        "beside_macs": [
            {
                "net": row["net"],
                "asked": row["asked"],
                "left": other["left"],
                "lost": other["lost"],
                "left_by_macs": row["left"],
                "lost_by_macs": row["lost"],
            }
            for row in rows
            if row["by"] == "MACs" and row["refused"] is None
            for other in timed
            if all(other[key] == row[key] for key in ("net", "place", "batch", "asked", "cpu")) and other["refused"] is None
        ],
    }


if __name__ == "__main__":
    main()
