"""What commands send and write: nothing, and nowhere but into their folder, our cache and the temporary folder, left empty."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from exporters.no_telemetry import SWITCHES

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    *("--target", "params=0.5", "--align", "1", "--epochs", "1", "--rounds", "5", "--calibration", "40", "--int8-error", "0.2"),
    "--allow-doubtful",  # the net was never trained
)
WATCH = """
import os, sys
def watch(event, arguments):
    asked = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
    if asked or (event == "socket.connect" and not isinstance(arguments[1], (str, bytes))):
        with open(os.environ["LOOKUPS"], "a") as file:
            print(event, arguments[-5:], sys.argv, file=file)
        raise OSError("the network is shut")
sys.addaudithook(watch)
"""
"""Python's own lookups, in every process that is started; those of native code are in the trace of the system calls."""


@dataclass(frozen=True)
class Place:
    """A machine as new: an empty home, an empty temporary folder, no network."""

    folder: Path

    def carry_out(self, *words: object) -> None:
        """A command in `folder/work`, all of its processes watched."""
        lookups, trace = self.folder / "lookups", self.folder / "trace"
        environment = {k: v for k, v in os.environ.items() if k not in {*SWITCHES, "CI", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}}
        environment |= {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp"), "LOOKUPS": str(lookups)}
        environment |= {
            "COMPRESS_CACHE": str(self.folder / "cache"),
            "PYTHONPATH": os.pathsep.join((str(self.folder / "watch"), str(ROOT))),
        }
        tracing = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)] if traceable() else []
        command = [*tracing, sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=self.folder / "work", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not lookups.exists(), lookups.read_text()
        calls = trace.read_text().splitlines() if tracing else []
        assert [line for line in calls if "AF_INET" in line] == []  # an address of the internet

    def left(self, *names: str) -> list[str]:
        """Files and folders below these folders."""
        return sorted(str(p.relative_to(self.folder)) for name in names for p in (self.folder / name).rglob("*"))


def traceable() -> bool:
    """Whether system calls can be traced here."""
    return shutil.which("strace") is not None and not subprocess.run(["strace", "-qq", "-o", os.devnull, "true"]).returncode


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name in ("home", "tmp", "work", "watch"):
        (tmp_path / name).mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    torch.save(net, tmp_path / "work" / "model.pt")
    return Place(tmp_path)


def test_no_command_looks_anything_up_or_writes_outside_of_its_folders(place: Place):
    there = importlib.util.find_spec("openvino") is not None
    formats = [
        "onnx",
        "onnx-int8",
        *(["openvino"] if there else []),
        *(["openvino-int8"] if there and _installed("nncf") else []),
    ]
    compress = ("-m", "compress")
    place.carry_out(
        *compress, "run", "model.pt", "--data", "digits", *QUICK, "--threads", "1", "--export", ",".join(formats), "--out", "out"
    )
    place.carry_out(*compress, "bench", "model.pt", "out/model.onnx", "--input-shape", "1x8x8", "--rounds", "5", "--threads", "1")
    place.carry_out(*compress, "package", "out", "--out", "package.tar.gz")
    place.carry_out(*compress, "verify", "package.tar.gz", "--rounds", "5")
    shutil.copytree(place.folder / "work" / "out", place.folder / "work" / "again")
    place.carry_out(*compress, "compare", "out", "again", "--out", "compared")
    shutil.unpack_archive(place.folder / "work" / "package.tar.gz", place.folder / "work" / "package", filter="data")
    place.carry_out("package/verify.py", "--rounds", "5")
    place.carry_out("package/bench.py", "--rounds", "5", "--threads", "1")
    assert place.left("home", "tmp") == []
    assert {path.partition("/")[2].partition("/")[0] for path in place.left("work")} == {
        *("model.pt", "out", "again", "package.tar.gz", "compared", "package"),
    }
    assert {p.name for p in (place.folder / "cache").iterdir()} <= {"latency.json", "torchinductor", "matplotlib"}


def test_switches_are_set_by_importing_either_package_and_respected_where_they_are_set():
    for package in ("compress", "exporters"):
        code = f"import {package}, os; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['NNCF_CI'])"
        environment = {k: v for k, v in os.environ.items() if k not in SWITCHES} | {"NNCF_CI": "mine"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["1", "mine"]


def test_images_carry_the_switch():
    assert (ROOT / "Dockerfile").read_text().count("ORT_DISABLE_TELEMETRY=1") == 2


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
