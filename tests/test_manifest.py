"""A manifest that somebody made to harm, or by mistake: one sentence and exit code 2, here and on the device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from runs import edited, made_run

import compress
from compress.cli.main import cli
from compress.errors import BadInput
from compress.packaging.manifest import sums
from exporters.standalone import checksums, contents
from exporters.standalone import verify as script
from tests.runs import stopped_after

LATENCY = {"batch": 1, "p50_ms": 1.0, "runtime": "ort", "device": "a processor"}
DELETED = "nothing in its place"
MALFORMED: list[tuple[tuple[Any, ...], Any, str]] = [
    (("models",), DELETED, "the manifest has no 'models'"),
    (("latency",), DELETED, "the manifest has no 'latency'"),
    *((("models", 0, key), DELETED, f"models[0] has no '{key}'") for key in ("path", "format", "runtime", "samples")),
    *((("models", 0, "samples", 0, key), DELETED, f"has no '{key}'") for key in ("inputs", "outputs", "tolerance")),
    *((("latency", key), DELETED, f"latency has no '{key}'") for key in LATENCY),
    (("models",), {}, "models is {}, needed is a list"),
    (("models",), [], "a list of 0"),
    (("models", 0), "model", "models[0] is 'model', needed is an object"),
    (("models", 0, "samples"), [], "a list of 0, needed is a list of 1"),
    (("models", 0, "path"), "/etc/passwd", "needed is the name of a file in the package"),
    (("models", 0, "path"), "../../model.onnx", "needed is the name of a file in the package"),
    (("models", 0, "path"), "models/none.onnx", "names models/none.onnx, which is not in the package"),
    (("models", 0, "path"), 5, "needed is the name of a file"),
    (("models", 0, "format"), "\x1b[2J", "needed is a text"),
    (("models", 0, "runtime"), ["onnxruntime"], "needed is a text"),
    (("models", 0, "samples", 0, "inputs"), ["../x.npy"], "needed is the name of a file"),
    (("models", 0, "samples", 1, "outputs"), "samples", "needed is a list"),
    (("models", 0, "samples", 0, "inputs"), ["plan.json", "plan.json"], "as many inputs"),
    (("models", 0, "samples", 0, "tolerance"), [], "a list of 0"),
    (("models", 0, "samples", 0, "tolerance"), [1e-4, 1e-4], "a tolerance for every output"),
    *((("models", 0, "samples", 0, "tolerance"), [bad], "needed is a number from 0") for bad in ("1e-4", None, True, -1, 1e99)),
    (("models", 0, "samples", 0, "tolerance"), [float("nan")], "needed is a number"),
    *((("latency", "batch"), bad, "latency.batch is") for bad in (10**9, 0, "1", 1.5, 10**400, True)),
    (("latency", "p50_ms"), "1.5", "latency.p50_ms is '1.5'"),
    (("latency", "device"), "x" * 1000, "needed is a text of at most"),
    (("latency",), 5, "latency is 5, needed is an object"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = made_run(tmp_path_factory.mktemp("run"))
    checksums.unpack(compress.package(run, out=run / "package.tar.gz").path, run / "package")
    return run / "package"


@pytest.fixture
def package(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "package"))


def sealed(folder: Path, manifest: str | None = None) -> None:
    """Hashes that fit, as who makes a package on purpose has them."""
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "SHA256SUMS" not in p.name]
    (folder / "SHA256SUMS").write_bytes(sums({name: (folder / name).read_bytes() for name in names}))


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence of the command, which is that of the script on the device."""
    done = CliRunner().invoke(cli, ["verify", str(folder), "--rounds", "5"])
    assert done.exit_code == 2 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1, done.output
    capsys.readouterr()
    assert script.main([str(folder), "--rounds", "5"]) == 2
    assert capsys.readouterr().err == done.stderr
    return done.stderr


@pytest.mark.parametrize(("where", "value", "part"), MALFORMED, ids=lambda x: None if isinstance(x, str) else repr(x)[:40])
def test_a_malformed_manifest_is_refused(
    package: Path, where: tuple[Any, ...], value: Any, part: str, capsys: pytest.CaptureFixture[str]
):
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["latency"] = dict(LATENCY)
    holder = manifest
    for step in where[:-1]:
        holder = holder[step]
    if value is DELETED:
        del holder[where[-1]]
    else:
        holder[where[-1]] = value
    sealed(package, json.dumps(manifest))
    said = refused(package, capsys)
    assert "manifest.json cannot be used: " in said and part in said and "Make the package again." in said


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "[" * 100_000, '{"schema": 1e999}', "\ud800"])
def test_what_is_no_manifest_is_refused(package: Path, text: str, capsys: pytest.CaptureFixture[str]):
    (package / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    sealed(package)
    assert "manifest" in refused(package, capsys) or "schema" in refused(package, capsys)


def test_a_huge_manifest_is_refused_unread(package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contents, "MOST_MANIFEST", 1 << 10)
    assert "it has more than" in refused(package, capsys)


def test_a_sample_that_promises_more_than_it_holds_is_refused(package: Path, capsys: pytest.CaptureFixture[str]):
    path = package / "samples" / "0-input-0.npy"
    header = path.read_bytes()
    path.write_bytes(header.replace(b"(1, 1, 8, 8), }        ", b"(1, 1, 800000, 80000), }")[: len(header)])
    sealed(package)
    assert "samples/0-input-0.npy cannot be read" in refused(package, capsys)


def test_a_sample_of_endless_entries_without_bytes_is_refused(package: Path, capsys: pytest.CaptureFixture[str]):
    with (package / "samples" / "0-input-0.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|V0", "fortran_order": False, "shape": (10**12,)})
    sealed(package)
    with stopped_after(20):
        assert "needed are numbers" in refused(package, capsys)


def test_a_sample_of_another_shape_or_kind_is_told(package: Path, capsys: pytest.CaptureFixture[str]):
    path = package / "samples" / "0-input-0.npy"
    np.save(path, np.zeros((1, 2, 8, 8), dtype=np.float32))
    sealed(package)
    (model,) = compress.verify(package).models
    assert model.status == "differs" and "cannot run it on the samples" in model.detail
    np.save(path, np.array([["text"]]))
    sealed(package)
    assert "needed are numbers" in refused(package, capsys)


def test_a_batch_that_does_not_fit_is_not_timed(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "MOST_INPUT", 100)
    (model,) = compress.verify(package).models
    assert model.status == "equal" and model.p50_ms is None and "not timed: a batch of 2 takes" in model.detail


def test_the_script_on_the_device_says_it_without_a_traceback(package: Path):
    sealed(package, "{}")
    done = subprocess.run([sys.executable, "verify.py", "--json"], cwd=package, capture_output=True, text=True)
    assert (
        done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.startswith("Error: manifest.json cannot be used")
    )
    assert json.loads(done.stdout)["error"]["exit_code"] == 2


def test_a_run_of_which_no_package_can_be_made_is_refused(tmp_path: Path):
    run = made_run(tmp_path / "run")
    report = json.loads(edited((run / "report.json").read_text()))
    report["stages"][0]["latency"]["batch"] = 10**9
    (run / "report.json").write_text(json.dumps(report))
    with pytest.raises(BadInput, match=r"makes no package that a device opens.*latency\.batch is 1000000000"):
        compress.package(run, out=tmp_path / "package.tar.gz")
    assert not (tmp_path / "package.tar.gz").exists()
