"""Too little memory: a sentence with what is kept, in whatever words a library says it; never an abort without a word."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from compress.cli.guard import sentence
from compress.errors import NotEnoughMemory
from compress.user import memory
from tests.runs import invoke, model_and_data

WORDS = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 8 bytes."),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("std::bad_alloc"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model and data in it."""
    monkeypatch.chdir(tmp_path)
    model_and_data(tmp_path)
    return tmp_path


def run(*more: str) -> Result:
    quick = ("--target", "params=0.5", "--align", "1", "--epochs", "0", "--rounds", "5", "--calibration", "40")
    return invoke("run", "model.pt", "--data", "data.npz", *quick, *more)


@pytest.mark.parametrize("error", WORDS, ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_too_little_memory_is_told_as_that_whoever_says_it(error: Exception):
    said, code = sentence(error)
    assert code == 2 and "too little memory" in said and "Internal" not in said
    wrapped = RuntimeError("something else")
    wrapped.__cause__ = error
    assert memory.short(wrapped)


@pytest.mark.parametrize(
    "error", [RuntimeError("could not create a primitive"), ValueError("memory"), OSError(28, "No space left")]
)
def test_other_failures_are_not_taken_for_it(error: Exception):
    assert not memory.short(error)


@pytest.mark.parametrize("error", WORDS, ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_a_stage_without_memory_keeps_what_was_finished(error: Exception, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("compress.refit.refit.refitted", fails)
        result = run()
    assert result.exit_code == 2, result.output
    assert "needs more memory than there is" in result.stderr and "cannot be written" not in result.stderr
    assert "finished stages are kept (dense, analyze): add --resume" in result.stderr
    assert run("--resume").exit_code == 0


def test_an_address_space_in_which_torch_cannot_be_loaded_is_refused():
    most = 10**9
    command = [sys.executable, "-m", "compress", "explain", "model.pt", "--input-shape", "1x8x8"]
    ended = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ended.returncode == 2 and "limited to 1.0 GB" in ended.stderr, ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and "Traceback" not in ended.stderr


def test_a_limit_with_room_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "limit", lambda: 10**13)
    memory.check()
    monkeypatch.setattr(memory, "limit", lambda: 10**8)
    with pytest.raises(NotEnoughMemory, match=r"0\.1 GB"):
        memory.check()
