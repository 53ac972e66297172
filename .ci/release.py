"""A wheel that can be released: built from a clean tree, tried in an environment of its own, and the tag that goes with it.

    make release

1. refuses a tree with uncommitted changes, a version without a section in CHANGELOG.md, and a tag that exists
2. builds source archive and wheel into dist/
3. installs the wheel, without its dependencies, into an environment of its own and asks it: version, `compress methods`, files
4. prints the commands that tag and upload; nothing is tagged or uploaded here
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "compress/py.typed",
    "exporters/py.typed",
    "compress/report/schema.json",
    "compress/report/html/templates/page.html.j2",
    "exporters/standalone/verify.py",
)


def main() -> None:
    """All steps in a row; the first that fails says why."""
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "compress/__init__.py").read_text())
    assert version is not None, "compress/__init__.py has the version"
    number = version.group(1)
    if git("status", "--porcelain"):
        sys.exit("There are uncommitted changes; a release is made of what is committed. Commit or stash them.")
    if f"## {number}" not in (ROOT / "CHANGELOG.md").read_text():
        sys.exit(f"CHANGELOG.md has no section '## {number}'. Write what a user can notice.")
    if git("tag", "--list", f"v{number}"):
        sys.exit(f"The tag v{number} exists. Raise __version__ in compress/__init__.py.")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."], cwd=ROOT, check=True
    )
    (wheel,) = sorted((ROOT / "dist").glob(f"entropress-{number}-*.whl"))
    missing = set(NEEDED) - set(zipfile.ZipFile(wheel).namelist())
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(sorted(missing))}; look at package-data in pyproject.toml.")
    tried(wheel, number)
    print(f"{wheel.relative_to(ROOT)} is ready. When make check has passed on this commit:")
    print(f"  git tag -a v{number} -m v{number} && git push origin v{number}\n  python -m twine upload {wheel.relative_to(ROOT)}")


def tried(wheel: Path, number: str) -> None:
    """The wheel answers by itself: what needs no torch needs only click, rich and pydantic beside it."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "click", "rich", "pydantic"], check=True)
        for words in (["--version"], ["methods", "--json"]):
            done = subprocess.run([Path(folder, "bin", "compress"), *words], capture_output=True, text=True, cwd=folder)
            if done.returncode or (words == ["--version"] and number not in done.stdout):
                sys.exit(f"compress {' '.join(words)} of the wheel ended with {done.returncode}: {done.stdout}{done.stderr}")


def git(*words: str) -> str:
    """What a git command prints."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
