"""The oldest versions that pyproject.toml allows, as constraints: `pip install -c <(python .ci/oldest.py) -e '.[test]'`.

Only what a user installs counts; tools of the tests come in their newest version, and torchvision in that which belongs to torch.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def oldest(requirement: str) -> str:
    """`torch>=2.11` -> `torch==2.11`; its newest patch counts as it."""
    name, version = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement.strip()).groups()
    return f"{name}=={version}.*"


if __name__ == "__main__":
    print("\n".join(map(oldest, PROJECT["dependencies"])))
