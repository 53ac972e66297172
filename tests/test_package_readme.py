"""README.txt of a package: its words are those of the run, and its programs compute what the model does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from runs import edited, made_run
from test_picture import packed

import compress
from compress.cli.main import cli
from compress.errors import GateFailed
from compress.packaging.readme import readme
from compress.packaging.samples import Samples
from compress.report import records
from exporters.standalone import checksums, picture


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked, of a model of gray pictures, with a picture.raw of one in it."""
    place = packed(tmp_path_factory.mktemp("run"), name="digits")
    shutil.copytree(place / "package", place / "used")
    gray = Image.open(sorted((place / "p").rglob("*.png"))[0]).convert("L").resize((8, 8), Image.Resampling.BILINEAR)
    (place / "used" / "picture.raw").write_bytes(gray.tobytes())
    gray.save(place / "picture.png")
    return place / "used"


def prepared(package: Path) -> np.ndarray:
    manifest = json.loads((package / "manifest.json").read_text())
    return picture.prepared(package.parent / "picture.png", manifest["inputs"][0])


def expected(package: Path) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(package / "models/model.onnx")
    return session.run(None, {session.get_inputs()[0].name: prepared(package)})[0][0]


def program(package: Path, language: str) -> str:
    """The indented block below the line that begins with this word."""
    lines = (package / "README.txt").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{language}")) + 2
    end = next((n for n in range(start, len(lines)) if lines[n] and not lines[n].startswith("    ")), len(lines))
    return textwrap.dedent("\n".join(lines[start:end]))


def test_the_text_says_what_the_model_takes_gives_and_is_worth(package: Path):
    text = (package / "README.txt").read_text()
    said = ("digits: a model", "batchx1x8x8, float32", "PREPROCESSING", "mean (0.5)", "largest output", "0 cat, 1 dog",
            "top1 50.00 % on 10 test samples", "1.5 ms a call on a processor", "SHA256SUMS",
            "-resize 8x8! -colorspace Gray")  # fmt: skip
    assert [words for words in said if words not in text] == [] and "WARNING: " not in text
    assert max(map(len, text.splitlines())) <= 140


def test_a_name_begins_no_line_of_its_own(package: Path):
    report = records.read(package / "report.json")[0]
    samples = Samples(((np.zeros((1, 1, 8, 8), np.float32),),), classes=("cat\n\nRUN THIS", "dog\x1b[2J"))
    text = readme("digits\nRUN: curl evil", report, samples, (1, 2), ["models/model.onnx"]).decode()
    assert not [line for line in text.splitlines() if line.startswith("RUN:") or line.startswith("RUN THIS")]
    assert "digits RUN: curl evil: a model" in text and "cat RUN THIS" in text and "\x1b" not in text


def test_the_python_computes_what_the_model_does(package: Path):
    done = subprocess.run([sys.executable, "-c", program(package, "Python")], cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [float(word) for word in done.stdout.replace("[", " ").replace("]", " ").split()]
    assert np.allclose(found, expected(package), atol=1e-6)


STUB = """
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
enum { ORT_LOGGING_LEVEL_WARNING, OrtArenaAllocator, OrtMemTypeDefault };
namespace Ort {
struct Env { Env(int, const char*) {} };
struct SessionOptions {};
struct RunOptions {};
struct AllocatorWithDefaultOptions {};
struct MemoryInfo { static MemoryInfo CreateCpu(int, int) { return {}; } };
struct Info { size_t n; size_t GetElementCount() const { return n; } };
struct Value {
  float* data; size_t n;
  template <class T> static Value CreateTensor(const MemoryInfo&, T* x, size_t n, const int64_t* shape, size_t axes) {
    size_t all = 1;
    for (size_t i = 0; i < axes; ++i) all *= shape[i];
    return {x, all == n ? n : 0};
  }
  template <class T> const T* GetTensorData() const { return data; }
  Info GetTensorTypeAndShapeInfo() const { return {n}; }
};
struct One { Value v; Value& operator[](size_t) { return v; } };
struct Session {
  Session(const Env&, const char* path, const SessionOptions&) { if (std::string(path) != "models/model.onnx") throw 1; }
  std::unique_ptr<char[]> GetInputNameAllocated(size_t, AllocatorWithDefaultOptions&) { return std::make_unique<char[]>(1); }
  std::unique_ptr<char[]> GetOutputNameAllocated(size_t, AllocatorWithDefaultOptions&) { return std::make_unique<char[]>(1); }
  One Run(const RunOptions&, const char* const*, const Value* in, size_t, const char* const*, size_t) { return {*in}; }
};
}
"""
"""In the place of the runtime's header, which no Python package brings: the model answers with its input."""


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_the_cpp_makes_the_input_that_was_measured(package: Path, tmp_path: Path):
    (tmp_path / "onnxruntime_cxx_api.h").write_text(STUB)
    (tmp_path / "picture.cpp").write_text(program(package, "C++"))
    command = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Werror",
        "-I",
        str(tmp_path),
        str(tmp_path / "picture.cpp"),
        "-o",
        str(tmp_path / "a"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([tmp_path / "a"], cwd=package, capture_output=True, text=True, check=True).stdout
    # %g shows six figures
    assert np.allclose(
        [float(line.split()[1]) for line in shown.splitlines()], prepared(package).reshape(-1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_javascript_computes_what_the_model_does(package: Path, tmp_path: Path):
    install = ["npm", "install", "--silent", "--no-fund", "--no-audit", "onnxruntime-web"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=300).returncode:
        pytest.skip("npm does not install onnxruntime-web here")
    (tmp_path / "picture.mjs").write_text(program(package, "JavaScript"))
    (tmp_path / "main.mjs").write_text(
        'import { readFileSync } from "node:fs"; import { run } from "./picture.mjs";\n'
        f"const [model, raw] = {json.dumps([str(package / 'models/model.onnx'), str(package / 'picture.raw')])};\n"
        "console.log(JSON.stringify(Array.from(await run(readFileSync(model), readFileSync(raw)))));\n"
    )
    done = subprocess.run(["node", "main.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert np.allclose(json.loads(done.stdout.splitlines()[-1]), expected(package), atol=1e-5)


def test_what_is_no_picture_is_run_from_the_arrays_that_travel_along(package: Path, tmp_path: Path):
    report, _ = records.read(package / "report.json")
    samples = Samples(((np.zeros((1, 5, 8), np.float32), np.zeros((1, 2), np.int64)),))
    text = readme("x", report, samples, (1, 3), ["models/model.onnx"]).decode()
    assert "0: batchx5x8, float32" in text and "1: batchx2, int64" in text
    assert 'numpy.load("samples/0-input-1.npy")' in text and "C++ (" not in text
    assert "opens its file" in readme("x", report, samples, (1, 3), ["models/model.pte"]).decode()


def test_a_run_that_broke_its_contract_is_refused_or_marked(package: Path, tmp_path: Path):
    run = made_run(tmp_path)
    text = edited((run / "report.json").read_text(), '"outcome": "kept"', '"outcome": "quality lost"')
    (run / "report.json").write_text(text.replace('"verdict": "v"', '"verdict": "It loses 3 points."'))
    done = CliRunner().invoke(cli, ["package", str(run), "--out", str(run / "p.tar.gz")])
    assert done.exit_code == 5 and "quality lost" in done.stderr and "--allow-broken" in done.stderr
    assert not (run / "p.tar.gz").exists()
    with pytest.raises(GateFailed):
        compress.package(run, out=run / "p.tar.gz")
    done = CliRunner().invoke(cli, ["package", str(run), "--out", str(run / "p.tar.gz"), "--allow-broken"])
    assert done.exit_code == 0 and "Warning: the run broke its contract (quality lost)" in done.stdout, done.output
    checksums.unpack(run / "p.tar.gz", run / "unpacked")
    told = (run / "unpacked" / "README.txt").read_text()
    assert "WARNING: this model broke the contract of its run (quality lost).\nIt loses 3 points." in told
    assert json.loads((run / "unpacked" / "manifest.json").read_text())["contract"]["kept"] is False
