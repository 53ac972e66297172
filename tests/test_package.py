"""Packages: the same bytes for the same run; what was changed is found, what is unsafe is refused, no torch on the device."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import helper
from runs import edited, made_run

import compress
from compress.artifact import Artifact
from compress.checkpoint.save import save
from compress.cli.main import cli
from compress.edits import Plan
from compress.errors import BadInput
from compress.packaging import archive
from compress.packaging.manifest import sums
from compress.recipe import make
from exporters.standalone import checksums, inference
from exporters.standalone import verify as script

SCRIPT = Path(script.__file__)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def packed(run: Path) -> Path:
    """A package of that run."""
    return compress.package(run, out=run / "package.tar.gz", license="MIT").path


@pytest.fixture
def unpacked(packed: Path, tmp_path: Path) -> Path:
    checksums.unpack(packed, tmp_path / "package")
    return tmp_path / "package"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


# What is in it


def test_the_manifest_says_what_a_device_needs(unpacked: Path):
    found = json.loads((unpacked / "manifest.json").read_text())
    assert found["licenses"] == {"model": "MIT", "scripts": "Apache-2.0"} and found["task"] == "classification"
    (taken,) = found["inputs"]
    assert taken["shape"] == ["batch", 1, 8, 8] and taken["dtype"] == "float32" and len(taken["normalization"]["mean"]) == 1
    assert found["classes"] == ["0", "1", "2"]
    (model,) = found["models"]
    assert model["opset"] == 18 and model["bytes"] == (unpacked / model["path"]).stat().st_size and len(model["samples"]) == 3
    assert found["latency"]["p50_ms"] == 1.5 and found["latency"]["device"] == "a processor"
    others = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()} - {"manifest.json", "SHA256SUMS"}
    assert (
        set(found["files"]) == others >= {"verify.py", "checksums.py", "sbom.cdx.json", "plan.json", "report.json", "README.txt"}
    )


def test_expected_outputs_are_what_torch_makes_of_the_samples(run: Path, unpacked: Path):
    sample = json.loads((unpacked / "manifest.json").read_text())["models"][0]["samples"][1]
    inputs, expected = (np.load(unpacked / sample[k][0]) for k in ("inputs", "outputs"))
    with torch.no_grad():
        assert torch.equal(compress.load(run / "model.compressed")(torch.from_numpy(inputs)), torch.from_numpy(expected))
    assert sample["tolerance"][0] == pytest.approx(1e-4 * np.abs(expected).max(), rel=2)  # of the largest of three samples


def test_the_bill_of_materials_is_valid_cyclonedx(unpacked: Path):
    text = (unpacked / "sbom.cdx.json").read_text()
    found = {c["name"]: c for c in json.loads(text)["components"]}
    assert found["models/model.onnx"]["type"] == "machine-learning-model"
    assert found["models/model.onnx"]["hashes"][0]["content"] == checksums.sha256(unpacked / "models" / "model.onnx")
    assert found["onnxruntime"]["purl"] == "pkg:pypi/onnxruntime@1.20"
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema")
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_5).validate_str(text) is None


# The same bytes


def test_the_same_run_gives_the_same_bytes(run: Path, packed: Path, tmp_path: Path):
    again = compress.package(run, out=tmp_path / "again.tar.gz", license="MIT")
    assert again.path.read_bytes() == packed.read_bytes()
    assert again.sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()


def test_other_tools_open_the_archive(packed: Path):
    with tarfile.open(packed) as tar:
        entries = tar.getmembers()
    assert [e.name for e in entries] == sorted(e.name for e in entries)
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode) for e in entries} == {(0, 0, 0, "", "", 0o644)}
    big = {"a": bytes(200_000), "b": b""}  # blocks of deflate end at 65,535 bytes
    assert gzip.decompress(archive.packed(big)) == archive.tarred(big)


@pytest.mark.parametrize("name", ["python3.8", "python3.10", "python3.12", "python3.13"])
def test_another_python_writes_the_same_archive(packed: Path, tmp_path: Path, name: str):
    python = other_python(name)
    checksums.unpack(packed, tmp_path / "package")
    (tmp_path / "errors.py").write_text("class BadInput(Exception): pass")
    module = Path(archive.__file__).read_text().replace("from compress.errors", "from errors")
    (tmp_path / "archive.py").write_text(module)
    code = (
        "import archive, pathlib, sys; here = pathlib.Path('package')\n"
        "files = {p.relative_to(here).as_posix(): p.read_bytes() for p in here.rglob('*') if p.is_file()}\n"
        "pathlib.Path('again').write_bytes(archive.packed(files))"
    )
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()


def other_python(name: str) -> str:
    """A Python of another version, where there is one that starts."""
    for found in (*map(str, Path.home().glob(f".pyenv/versions/{name[6:]}.*/bin/{name}")), shutil.which(name)):
        if found and not subprocess.run([found, "-c", ""], capture_output=True).returncode:
            return found
    pytest.skip(f"there is no {name} here")


# Verifying


def test_a_package_verifies(packed: Path):
    found = json.loads(invoke("verify", packed, "--rounds", 10, "--threads", 1, "--json").stdout)
    (model,) = found["models"]
    assert found["passed"] and model["status"] == "equal" and model["worst_abs"] <= model["tolerance"]
    assert 0 < model["p50_ms"] <= model["p90_ms"] and model["batch"] == 2
    assert "Passed." in invoke("verify", packed, "--hashes-only").stdout


def test_the_script_inside_verifies_its_own_folder_and_leaves_no_trace(unpacked: Path):
    before = sorted(unpacked.rglob("*"))
    command = [sys.executable, "verify.py", "--rounds", "0", "--json"]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, env={"PATH": os.environ["PATH"], "HOME": "/"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["models"][0]["status"] == "equal" and sorted(unpacked.rglob("*")) == before


def test_verify_needs_neither_torch_nor_the_settings_of_a_run(packed: Path):
    code = (
        "import sys; sys.modules['torch'] = None; import compress\n"
        f"assert compress.verify({str(packed)!r}, rounds=0).passed\n"
        "assert 'compress.recipe' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_device_without_a_runtime_checks_hashes_and_says_so(unpacked: Path):
    (unpacked.parent / "onnxruntime.py").write_text("raise ImportError('No module named onnxruntime')")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(unpacked.parent)}
    done = subprocess.run([sys.executable, "verify.py"], cwd=unpacked, capture_output=True, text=True, env=environment)
    assert done.returncode == 4 and "pip install onnxruntime" in done.stdout and "whole" in done.stdout, done.stdout + done.stderr


def test_a_model_that_goes_round_for_ever_is_ended(unpacked: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a loop of 10^15 turns no signal ends ONNX Runtime, and none reaches Python."""
    monkeypatch.setattr(inference, "MOST_S", 1.0)
    model = onnx.load(unpacked / "models" / "model.onnx")
    scalar = {
        name: helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("i", 7), ("go", 9), ("more", 9), ("v", 7), ("w", 7))
    }
    steps = [helper.make_node("Identity", ["go"], ["more"]), helper.make_node("Add", ["v", "i"], ["w"])]
    body = helper.make_graph(steps, "body", [scalar["i"], scalar["go"], scalar["v"]], [scalar["more"], scalar["w"]])
    for name, kind, value in (("trips", 7, 10**15), ("on", 9, True), ("zero", 7, 0)):
        model.graph.initializer.append(helper.make_tensor(name, kind, [], [value]))
    model.graph.node.append(helper.make_node("Loop", ["trips", "on", "zero"], ["turns"], body=body))
    model.graph.output.append(helper.make_tensor_value_info("turns", 7, []))
    onnx.save(model, unpacked / "models" / "model.onnx")
    resealed(unpacked)
    (ran,) = script.verify(unpacked, rounds=0).models
    assert ran.status == "differs" and "does not end within 1 s" in ran.detail


def test_many_times_more_threads_than_cores_are_no_question_for_a_package(packed: Path):
    for asked in (4096, 2**31, -1):
        refused = invoke("verify", packed, f"--threads={asked}")
        assert refused.exit_code == 2 and "--threads" in refused.output and "Traceback" not in refused.output


def test_what_a_name_could_do_to_a_terminal_is_spelled_out(unpacked: Path):
    sums = unpacked / checksums.SUMS
    sums.write_text(sums.read_text() + "0" * 64 + "  \x1b[31mPassed.\n")
    done = subprocess.run([sys.executable, "verify.py"], cwd=unpacked, capture_output=True, text=True)
    assert done.returncode and "\x1b" not in done.stdout + done.stderr


def test_a_plan_that_is_not_that_of_the_report_is_not_packed(run: Path, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    report = json.loads(edited((copied / "report.json").read_text())) | {"plan_sha256": Plan().digest}
    (copied / "report.json").write_text(json.dumps(report))
    assert invoke("package", copied, "--out", tmp_path / "same.tar.gz").exit_code == 0
    (copied / "plan.json").write_text(Plan(align=2).to_json())
    refused = invoke("package", copied, "--out", tmp_path / "p.tar.gz")
    assert refused.exit_code == 2 and "not the plan that the report" in refused.output


@pytest.mark.parametrize("left", ["", "import json\nfrom coll"])
def test_a_package_whose_scripts_got_lost_says_so(unpacked: Path, left: str):
    (unpacked / "contents.py").unlink()
    if left:
        (unpacked / "contents.py").write_text(left)
    done = subprocess.run([sys.executable, "verify.py"], cwd=unpacked, capture_output=True, text=True)
    assert done.returncode == 5 and "not whole" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["python3.8", "python3.13"])
def test_the_scripts_run_on_old_and_new_pythons(unpacked: Path, name: str):
    python = other_python(name)
    done = subprocess.run([python, "verify.py", "--hashes-only"], cwd=unpacked, capture_output=True, text=True)
    assert done.returncode == 0 and "Passed." in done.stdout, done.stdout + done.stderr
    # What is not there for every Python stands in: the processes, the turns and the table are ours.
    (unpacked.parent / "numpy.py").write_text(NUMPY)
    (unpacked.parent / "onnxruntime.py").write_text(ONNXRUNTIME)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(unpacked.parent)}
    command = [python, "bench.py", "models/model.onnx", "models/model.onnx", "--rounds", "5", "--threads", "1"]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.count("p50") == 2 and "times as fast" in done.stdout, done.stdout + done.stderr


NUMPY = """
class random:
    default_rng = staticmethod(lambda _: random)
    standard_normal = staticmethod(lambda *_, **__: 0)
float32 = 0
"""
ONNXRUNTIME = """
class SessionOptions:
    def __getattr__(self, name): return lambda *_: None
class Input:
    name, shape = "x", ["batch", 1, 8, 8]
class InferenceSession:
    def __init__(self, *_, **__): pass
    def get_inputs(self): return [Input()]
    def run(self, *_): return [sum(range(1000))]
__version__ = "0"
"""


def test_the_script_inside_times_the_models_of_its_own_folder(unpacked: Path):
    before = sorted(unpacked.rglob("*"))
    command = [sys.executable, "bench.py", "--rounds", "5", "--batch", "2"]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True)
    assert done.returncode == 0 and "model.onnx: p50" in done.stdout and "at batch 2" in done.stdout, done.stdout + done.stderr
    assert sorted(unpacked.rglob("*")) == before
    (unpacked / "models" / "model.onnx").write_bytes(b"")
    done = subprocess.run([*command[:2], "--json"], cwd=unpacked, capture_output=True, text=True)
    assert done.returncode == 4 and "does not open" in json.loads(done.stdout)["models"][0]["failed"], done.stdout + done.stderr
    (unpacked / "models" / "model.onnx").unlink()
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True)
    assert done.returncode == 2 and "no ONNX model" in done.stderr


def test_every_file_that_is_changed_is_found(unpacked: Path):
    """Each in turn: one bit, one byte more, gone."""
    files = sorted(p for p in unpacked.rglob("*") if p.is_file())
    assert len(files) > 12
    for path in files:
        content = path.read_bytes()
        for changed in (bytes([content[0] ^ 1]) + content[1:], content + b" ", None):
            path.unlink() if changed is None else path.write_bytes(changed)
            try:
                found = compress.verify(unpacked, rounds=0)
                assert not found.passed and found.exit_code == 5 and not found.models, path
                assert path.name == "SHA256SUMS" or any(path.name in p for p in found.problems)
            except BadInput:
                assert path.name == "SHA256SUMS"  # the list itself is unreadable
            path.write_bytes(content)
    assert compress.verify(unpacked, rounds=0).passed


@pytest.mark.parametrize(
    ("flags", "expected"), [("sse2 avx2 fma", True), ("avx2 avx512_vnni", False), ("avx2 avx_vnni", False), ("neon", False)]
)
def test_a_processor_whose_8_bit_products_saturate_is_known(flags: str, expected: bool, tmp_path: Path):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    assert script.saturates(tmp_path / "cpuinfo") is expected and not script.saturates(tmp_path / "none")


def test_8_bits_that_differ_where_products_saturate_say_why(unpacked: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = json.loads((unpacked / "manifest.json").read_text())
    manifest["models"][0]["format"] = "onnx-int8"
    sample = manifest["models"][0]["samples"][0]
    sample["tolerance"] = [1e-12]
    (unpacked / sample["outputs"][0]).write_bytes((unpacked / manifest["models"][0]["samples"][1]["outputs"][0]).read_bytes())
    (unpacked / "manifest.json").write_text(json.dumps(manifest))
    resealed(unpacked)
    for told in (True, False):
        monkeypatch.setattr(script, "saturates", lambda told=told: told)
        (model,) = compress.verify(unpacked, rounds=0).models
        assert model.status == "differs" and ("saturate on this processor" in model.detail) is told


def test_a_file_that_nobody_listed_is_found(unpacked: Path):
    (unpacked / "models" / "extra.bin").write_bytes(b"x")
    assert compress.verify(unpacked, rounds=0).problems == ("models/extra.bin is not in SHA256SUMS",)


def resealed(folder: Path) -> None:
    """What a forger does: the list of hashes made to fit."""
    files = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "SHA256SUMS" not in p.name
    }
    (folder / "SHA256SUMS").write_bytes(sums(files))


def test_a_model_that_computes_something_else_is_found_behind_good_hashes(unpacked: Path):
    path = next((unpacked / "samples").glob("1-model*"))
    np.save(path, np.load(path) + 0.01)
    resealed(unpacked)
    found = compress.verify(unpacked, rounds=0)
    assert not found.problems and found.exit_code == 5 and "sample 1 differs by 0.01" in found.models[0].detail
    np.save(path, np.full((1, 3), np.nan, dtype=np.float32))
    resealed(unpacked)
    assert compress.verify(unpacked, rounds=0).exit_code == 5
    np.save(path, np.zeros((1, 4), dtype=np.float32))
    resealed(unpacked)
    assert "shape" in compress.verify(unpacked, rounds=0).models[0].detail
    (unpacked / "models" / "model.onnx").write_bytes(b"no model")
    resealed(unpacked)
    assert "does not open it" in compress.verify(unpacked, rounds=0).models[0].detail


def test_a_digest_from_elsewhere_finds_a_resealed_package(packed: Path, unpacked: Path):
    digest = compress.verify(packed, hashes_only=True).digest
    assert compress.verify(packed, hashes_only=True, digest=digest).passed
    (unpacked / "plan.json").write_text("{}")
    resealed(unpacked)
    assert compress.verify(unpacked, hashes_only=True).passed
    assert "the digest is" in compress.verify(unpacked, hashes_only=True, digest=digest).problems[0]


# Signatures


needs_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def key(folder: Path, name: str) -> tuple[Path, str]:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    return folder / name, (folder / f"{name}.pub").read_text()


@needs_keygen
def test_a_signature_is_that_of_an_allowed_signer(run: Path, packed: Path, tmp_path: Path):
    (mine, public), (_, other) = key(tmp_path, "mine"), key(tmp_path, "other")
    signers, strangers = tmp_path / "signers", tmp_path / "strangers"
    signers.write_text(f"me@example.org {public}")
    strangers.write_text(f"other@example.org {other}")
    made = compress.package(run, out=tmp_path / "p.tar.gz", sign=mine)
    assert made.signed and compress.verify(made.path, rounds=0, allowed_signers=signers).signer == "me@example.org"
    assert compress.verify(made.path, hashes_only=True, allowed_signers=signers, identity="me@example.org").passed
    for allowed, identity in ((strangers, None), (signers, "you@example.org")):
        found = compress.verify(made.path, hashes_only=True, allowed_signers=allowed, identity=identity)
        assert found.exit_code == 5 and "not signed" in found.problems[0]
    assert "not signed" in compress.verify(packed, hashes_only=True, allowed_signers=signers).problems[0]
    checksums.unpack(made.path, tmp_path / "forged")
    (tmp_path / "forged" / "plan.json").write_text("{}")
    resealed(tmp_path / "forged")
    assert "not signed" in compress.verify(tmp_path / "forged", hashes_only=True, allowed_signers=signers).problems[0]
    again = compress.package(run, out=tmp_path / "again.tar.gz", sign=mine)
    assert again.path.read_bytes() == made.path.read_bytes()  # ed25519 signs the same way every time


@needs_keygen
def test_what_cannot_sign_is_refused(run: Path, tmp_path: Path):
    (tmp_path / "key").write_text("no key")
    for name, part in (("nothing", "There is no key"), ("key", "does not sign")):
        with pytest.raises(BadInput, match=part):
            compress.package(run, out=tmp_path / "p.tar.gz", sign=tmp_path / name)
    assert not (tmp_path / "p.tar.gz").exists()


# Archives that are not to be opened


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        made = tarfile.TarInfo(name)
        made.type, made.linkname, made.size = kind, target, size
        tar.addfile(made, io.BytesIO(bytes(size)))

    return add


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ([entry("../outside")], "may not stand"),
        ([entry("/etc/outside")], "may not stand"),
        ([entry("a/../../outside")], "may not stand"),
        ([entry(".hidden")], "may not stand"),
        ([entry("a\\b")], "may not stand"),
        ([entry("C:x")], "may not stand"),
        ([entry("a//b")], "may not stand"),
        ([entry("./a")], "may not stand"),
        ([entry("x" * 120)], "may not stand"),
        ([entry("new\nline")], "may not stand"),
        ([entry("link", tarfile.SYMTYPE, "/etc/passwd")], "no plain file"),
        ([entry("link", tarfile.LNKTYPE, "other")], "no plain file"),
        ([entry("device", tarfile.CHRTYPE)], "no plain file"),
        ([entry("device", tarfile.BLKTYPE)], "no plain file"),
        ([entry("pipe", tarfile.FIFOTYPE)], "no plain file"),
        ([entry("folder", tarfile.DIRTYPE)], "no plain file"),
        ([entry("twice"), entry("twice")], "twice"),
        ([entry(f"f{i}") for i in range(1001)], "more than 1000"),
        ([entry("a"), entry("a/b")], "cannot be opened"),
        ([], "is empty"),
    ],
)
def test_an_unsafe_archive_is_refused_and_nothing_gets_out(
    tmp_path: Path, entries: list[Callable[[tarfile.TarFile], None]], part: str
):
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for add in entries:
            add(tar)
    (tmp_path / "here").mkdir()
    with pytest.raises(checksums.Refused, match=part):
        checksums.unpack(path, tmp_path / "here")
    result = invoke("verify", path)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "outside").exists() and not any(p.is_symlink() for p in (tmp_path / "here").rglob("*"))


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checksums, "SPARE", 1 << 20)
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry("big", size=50 << 20)(tar)
    assert path.stat().st_size < 100_000
    with pytest.raises(checksums.Refused, match="more than a package can hold"):
        checksums.unpack(path, tmp_path / "here")
    assert sum(p.stat().st_size for p in (tmp_path / "here").rglob("*")) <= 2 << 20


@pytest.mark.parametrize("broken", [b"", b"<html>", b"\x1f\x8b", b"\x1f\x8b" + bytes(100), bytes(1024)])
def test_what_is_no_archive_is_refused(tmp_path: Path, broken: bytes):
    (tmp_path / "p.tar.gz").write_bytes(broken)
    result = invoke("verify", tmp_path / "p.tar.gz")
    # What begins as an archive does is one that is not whole.
    code = 5 if broken.startswith(b"\x1f\x8b") else 2
    assert result.exit_code == code and "p.tar.gz" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_truncated_package_is_refused_wherever_it_ends(packed: Path, tmp_path: Path):
    content = packed.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "p.zip").write_bytes(content[: int(share * len(content))])
        result = invoke("verify", tmp_path / "p.zip", "--hashes-only", "--json")
        assert result.exit_code == 5, share
        assert json.loads(result.stdout)["error"]["kind"] == "GateFailed" and "tar.gz" not in result.stderr
        assert script.main([str(tmp_path / "p.zip"), "--hashes-only"]) == 5


def test_a_link_in_an_unpacked_package_is_refused(unpacked: Path):
    (unpacked / "plan.json").unlink()
    (unpacked / "plan.json").symlink_to("report.json")
    result = invoke("verify", unpacked)
    assert result.exit_code == 2 and "no plain file" in result.stderr


@pytest.mark.parametrize("change", [{"schema": 2}, {"schema": None}])
def test_a_package_of_another_schema_is_refused(unpacked: Path, change: dict[str, object]):
    path = unpacked / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    resealed(unpacked)
    assert "schema" in invoke("verify", unpacked).stderr


# Runs that cannot be packed


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_samples_come_from_a_file_where_the_data_is_gone(copy: Path, tmp_path: Path):
    (copy / "recipe.toml").write_text(make(model="m", data=str(copy / "gone.npz")).to_toml())
    result = invoke("package", copy, "-o", tmp_path / "p.tar.gz")
    assert result.exit_code == 2 and "--samples" in result.stderr and not (tmp_path / "p.tar.gz").exists()
    np.savez(tmp_path / "s.npz", input_0=np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32))
    assert invoke("package", copy, "-o", tmp_path / "p.tar.gz", "--samples", tmp_path / "s.npz").exit_code == 0
    assert "Passed." in invoke("verify", tmp_path / "p.tar.gz", "--rounds", 0).stdout


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"input_0": np.zeros((2, 3, 9, 9), np.float32)}, "does not run on the samples"),
        ({"input_0": np.zeros((0, 1, 8, 8), np.float32)}, "needed are input_0"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "needed are input_0"),
        ({"input_0": np.full((1, 1, 8, 8), np.nan, np.float32)}, "finite"),
        ({"input_0": np.array(["text"])}, "finite"),
    ],
)
def test_samples_that_do_not_fit_are_refused(copy: Path, tmp_path: Path, arrays: dict[str, np.ndarray], part: str):
    np.savez(tmp_path / "s.npz", **arrays)  # type: ignore[arg-type]
    result = invoke("package", copy, "-o", tmp_path / "p.tar.gz", "--samples", tmp_path / "s.npz")
    assert result.exit_code == 2 and part in result.stderr, result.output
    (tmp_path / "s.npz").write_bytes(b"PK no zip")
    assert "cannot be read" in invoke("package", copy, "-o", tmp_path / "p.tar.gz", "--samples", tmp_path / "s.npz").stderr


def test_a_run_whose_files_are_not_those_of_its_report_is_refused(copy: Path, tmp_path: Path):
    target = ("-o", tmp_path / "p.tar.gz")
    (copy / "model.onnx").write_bytes(b"another")
    assert "not the file that the report measured" in invoke("package", copy, *target).stderr
    (copy / "model.onnx").unlink()
    assert "cannot be read" in invoke("package", copy, *target).stderr
    text = (copy / "report.json").read_text()
    outside = ('"path": "model.onnx"', '"path": "../model.onnx"')
    (copy / "report.json").write_text(text.replace(*outside))
    assert "changed after it was written" in invoke("package", copy, *target).stderr
    (copy / "report.json").write_text(edited(text, *outside))
    assert "outside its folder" in invoke("package", copy, *target).stderr
    report = json.loads(edited(text)) | {"exports": []}
    (copy / "report.json").write_text(json.dumps(report))
    assert "no exported model" in invoke("package", copy, *target).stderr
    assert invoke("package", tmp_path / "nothing", *target).exit_code == 2


def test_a_model_that_is_not_its_checkpoint_is_not_shipped(copy: Path, tmp_path: Path):
    net = compress.load(copy / "model.compressed")
    with torch.no_grad():
        next(net.parameters()).add_(0.1)
    save(Artifact(net, (torch.randn(1, 1, 8, 8),)), copy / "model.compressed")
    result = invoke("package", copy, "-o", tmp_path / "p.tar.gz")
    assert result.exit_code == 5 and "does not verify here" in result.stderr and not (tmp_path / "p.tar.gz").exists()


def test_an_archive_is_not_written_over(copy: Path, tmp_path: Path):
    (tmp_path / "p.tar.gz").write_text("mine")
    assert "--force" in invoke("package", copy, "-o", tmp_path / "p.tar.gz").stderr
    assert (tmp_path / "p.tar.gz").read_text() == "mine"
    assert invoke("package", copy, "-o", tmp_path / "p.tar.gz", "--force").exit_code == 0
