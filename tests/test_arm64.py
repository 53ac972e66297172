"""A package on another processor, emulated: .ci/arm64.py. Slow, and skipped where nobody has prepared a root for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import made_run

import compress
import exporters
from compress.report import records
from compress.report.records import ExportRecord

SCRIPT = Path(__file__).parent.parent / ".ci" / "arm64.py"
FOLDER = os.environ.get("COMPRESS_ARM64")


def test_without_an_emulator_the_script_says_what_is_missing(tmp_path: Path):
    (tmp_path / "p.tar.gz").write_bytes(b"")
    done = subprocess.run([sys.executable, SCRIPT, "verify", tmp_path, tmp_path / "p.tar.gz"], capture_output=True, text=True)
    assert done.returncode == 1 and "Install qemu-user-static, then 'prepare'" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="COMPRESS_ARM64 names no folder that 'python .ci/arm64.py prepare' has made")
def test_a_package_computes_on_arm64_what_it_computed_here(tmp_path: Path):
    run = made_run(tmp_path)
    net, x = compress.load(run / "model.compressed"), torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    report, place = records.read(run)
    exports = list(report.exports)
    for format in ("onnx-int8", "onnx-int8-symmetric", "onnx-fp16"):
        path = run / f"model{exporters.ENDING[format]}"
        made = exporters.export(format, net, (x[:2],), path, calibration=[(x,)], samples=[(x,)])
        exports.append(ExportRecord(format=format, path=path.name, sha256=made.sha256, opset=made.opset, bytes=made.bytes))
    place.write_text(report.model_copy(update={"exports": tuple(exports)}).to_json())
    package = compress.package(run, out=tmp_path / "package.tar.gz").path
    done = subprocess.run([sys.executable, SCRIPT, "verify", str(FOLDER), package], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": equal") == 4 and "Passed." in done.stdout
