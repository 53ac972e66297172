"""The check inside a package on another processor: an arm64 Python with ONNX Runtime, emulated. Correctness only, no times.

    python .ci/arm64.py prepare FOLDER                   once: a Debian root and wheels (debootstrap, pip, both indexes)
    python .ci/arm64.py verify FOLDER package.tar.gz   what `python verify.py` says there, with its exit code

Needs qemu-user-static, which runs the one process without a chroot. bench.py starts processes of its own and is not run this way.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

QEMU = "qemu-aarch64-static"
DEBIAN, PYTHON = "bookworm", "3.11"
WHEELS = ("numpy", "onnxruntime==1.22.1")
"""Not the newest ONNX Runtime: under qemu 7.2 the import of 1.31.1 ends with signal 11, on every processor that it emulates."""


def prepare(folder: Path, mirror: str) -> None:
    """Fetch and unpack; nothing of it is executed."""
    root, wheels, site = folder / "root", folder / "wheels", folder / "site"
    fetch = ["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", "--include=python3", DEBIAN, str(root), mirror]
    subprocess.run(fetch, check=True)
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    kinds = [word for kind in ("manylinux_2_28", "manylinux_2_27", "manylinux2014") for word in ("--platform", f"{kind}_aarch64")]
    pip = [sys.executable, "-m", "pip", "download", *kinds, "--python-version", PYTHON, "--only-binary=:all:", "-d", str(wheels)]
    subprocess.run([*pip, *WHEELS], check=True)
    for wheel in sorted(wheels.glob("*.whl")):
        zipfile.ZipFile(wheel).extractall(site)


def verify(folder: Path, package: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """The package's own verify.py, run on it as unpacked."""
    root = (folder / "root").absolute()
    python = root / "usr" / "bin" / f"python{PYTHON}"
    if not python.is_file() or shutil.which(QEMU) is None:
        raise SystemExit(f"There is no {QEMU} here, or no arm64 Python in {folder}. Install qemu-user-static, then 'prepare'.")
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["tar", "xzf", str(package.absolute()), "-C", place], check=True)
        emulated = [QEMU, "-L", str(root), "-E", f"PYTHONPATH={(folder / 'site').absolute()}", "-E", "OMP_NUM_THREADS=1"]
        command = [*emulated, str(python), "verify.py", "--rounds", "0", *words]
        return subprocess.run(command, cwd=place, text=True, capture_output=True, check=False)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "verify"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("package", type=Path, nargs="?")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    given = parser.parse_args()
    if given.what == "prepare":
        prepare(given.folder, given.mirror)
        return 0
    if given.package is None:
        parser.error("verify needs a package.tar.gz")
    done = verify(given.folder, given.package, [])
    print(done.stdout + done.stderr, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
