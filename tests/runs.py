"""What many tests begin with: a folder with a model and data, the command line, and the folder of a run without the run."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner, Result
from torch import nn

import exporters
from compress.artifact import Artifact
from compress.checkpoint.save import save
from compress.cli.main import cli
from compress.edits import Plan
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.report.records import Environment, ExportRecord, Latency, Quality, Report, StageRecord

ENVIRONMENT = Environment(
    compress="0.1.0",
    python="3.11",
    torch="2",
    onnx="1.17",
    onnxruntime="1.20",
    os="Linux",
    cpu="a processor",
    cores=2,
    gpu=None,
    date="d",
)


def invoke(*arguments: object, answers: str = "") -> Result:
    """A command; `answers` are what somebody types."""
    return CliRunner().invoke(cli, [str(a) for a in arguments], input=answers)


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Who waits for a pipe, or reads without an end, fails."""

    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def over(flags: Sequence[str], *more: str) -> list[str]:
    """Flags, with others in the place of those of their name: one that is there twice is worth a note."""
    kept, keeps = list[str](), True
    for word in flags:
        keeps = word not in more if word.startswith("--") else keeps
        kept += [word] if keeps else []
    return [*kept, *more]


def untrained(folder: Path) -> None:
    """model.pt: a net for gray pictures of ten kinds."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    torch.save(net, folder / "model.pt")


def model_and_data(folder: Path) -> None:
    """The same, and data.npz with real numbers for it."""
    untrained(folder)
    random = np.random.default_rng(0)
    parts = {"train": 60, "test": 40}
    arrays = {f"x_{name}": random.standard_normal((n, 1, 8, 8)).astype(np.float32) for name, n in parts.items()}
    np.savez(folder / "data.npz", **arrays, **{f"y_{name}": np.arange(n) % 10 for name, n in parts.items()})


def edited(text: str, old: str = "", new: str = "") -> str:
    """A report or baseline that somebody edited on purpose: without its checksum."""
    values = json.loads(text.replace(old, new, 1) if old else text)
    del values["checksum"]
    return json.dumps(values, indent=1, ensure_ascii=False)


def made_run(folder: Path) -> Path:
    """As `compress run` leaves it, of an untrained net."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    inputs = (torch.randn(1, 1, 8, 8),)
    save(Artifact(trace(net, inputs), inputs), folder / "model.compressed")
    made = exporters.export("onnx", net, inputs, folder / "model.onnx")
    record = StageRecord(
        stage="dense",
        params=55,
        macs=1000,
        file_bytes=made.bytes,
        peak_memory_bytes=1,
        latency=Latency(runtime="ort", batch=2, threads=1, p50_ms=1.5, ratio=1, ci95=(1, 1)),
        quality=Quality(metric="top1", value=0.5, samples=10),
        seconds=0,
    )
    export = ExportRecord(format="onnx", path="model.onnx", sha256=made.sha256, opset=made.opset, bytes=made.bytes)
    report = Report(method="m", verdict="v", seed=0, environment=ENVIRONMENT, stages=(record,), exports=(export,))
    (folder / "report.json").write_text(report.to_json())
    (folder / "plan.json").write_text(Plan().to_json())
    random = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=random.integers(0, 255, (60, 8, 8), dtype=np.uint8), y=np.arange(60) % 3)
    recipe = make(model="model.pt", data=str(folder / "data.npz"))
    (folder / "recipe.toml").write_text(recipe.to_toml())
    return folder
