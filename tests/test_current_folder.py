"""A command that is started in a stranger's folder loads and obeys nothing that lies there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compress.pipeline import crew
from tests.runs import edited, made_run

ROOT = Path(__file__).resolve().parent.parent
LIMITED = "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**40, 2**40)); from compress.user import memory; memory.check()"
LOADED = """#include <stdio.h>
__attribute__((constructor)) static void loaded(void) { FILE *f = fopen("%s", "w"); if (f) fclose(f); }
"""


def started(folder: Path, *words: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMPRESS_CACHE": str(cache or folder.parent / "cache")}
    return subprocess.run([sys.executable, "-P", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a library that torch's own would load from there, and what is written when it is."""
    folder, proof = tmp_path / "folder", tmp_path / "loaded"
    folder.mkdir()
    (tmp_path / "loaded.c").write_text(LOADED % proof)
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", tmp_path / "loaded.c"], check=True)
    started(folder, "-c", "import torch")
    if not proof.exists():
        pytest.skip("this build of torch looks for no library in the current folder")
    proof.unlink()
    return folder, proof


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "compress", "doctor"),
        ("-m", "exporters.isolated_child", "nowhere"),
        ("-c", crew.FOLLOW),
        (
            "-c",
            "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**40, 2**40)); from compress.user import memory; memory.check()",
        ),
    ],
)
def test_no_library_of_the_current_folder_is_loaded(words: tuple[str, ...], hostile: tuple[Path, Path]):
    folder, proof = hostile
    started(folder, *words)
    assert not proof.exists()


def test_marks_of_an_installation_are_no_folder_of_libraries(tmp_path: Path):
    (tmp_path / "__editable__.mark").mkdir()
    (tmp_path / "__editable__.mark" / "pynvml.py").write_text("raise SystemExit('loaded')\n")
    tried = (
        "import sys; sys.path.insert(0, '__editable__.mark'); from exporters import elsewhere; elsewhere.install(); import torch"
    )
    done = started(tmp_path, "-c", f"{tried}; assert all(map(__import__('os').path.isabs, sys.path))")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["settings", "pipe", "no text"])
def test_pictures_are_drawn_by_no_settings_of_the_current_folder(what: str, tmp_path: Path):
    folder, cache = tmp_path / "folder", tmp_path / "cache"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        made_run(folder / name)
        place = folder / name / "report.json"
        text = edited(place.read_text(), '"verdict": "v"', f'"verdict": "{name}"') if name == "b" else place.read_text()
        place.write_text(text)
    (cache / "matplotlib").mkdir(parents=True)
    (cache / "matplotlib" / "matplotlibrc").write_text("text.usetex: True\n")
    place = folder / "matplotlibrc"
    if what == "pipe":
        os.mkfifo(place)
    else:
        place.write_bytes(b"text.usetex: True\n" if what == "settings" else b"\xff\n")
    done = started(folder, "-m", "compress", "compare", "a", "b", "--out", "made", cache=cache)
    assert done.returncode == 0, done.stderr
    assert (folder / "made" / "compare.svg").exists()


def test_the_current_folder_is_as_before_whatever_becomes_of_an_import(tmp_path: Path):
    library = tmp_path / "libraries"
    library.mkdir()
    (library / "good.py").write_text("import os; seen = os.getcwd()\n")
    (library / "bad.py").write_text("raise ImportError('damaged')\n")
    tried = f"""
import os, sys
sys.path.insert(0, {str(library)!r})
from exporters import elsewhere
elsewhere.LIBRARIES = {{"good", "bad"}}
elsewhere.install(); elsewhere.install()
here = os.getcwd()
import good
assert good.seen != here and os.getcwd() == here and good.__spec__.origin.endswith("good.py")
try:
    import bad
except ImportError as error:
    assert "damaged" in str(error)
assert os.getcwd() == here and "bad" not in sys.modules
"""
    done = started(tmp_path, "-c", tried)
    assert done.returncode == 0, done.stderr
