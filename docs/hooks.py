"""Pages of the site whose text stands elsewhere in the repository, taken from there when the site is built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
TAKEN = {"results.md": "benchmarks/README.md", "architecture.md": "ARCHITECTURE.md", "changelog.md": "CHANGELOG.md"}
"""Page -> file."""
NO_DEFAULT = re.compile(r"(?<=<td>)(?:<code>)?(?:Sentinel\.UNSET|None)(?:</code>)?(?=</td>)")
"""What mkdocs-click prints where an option has no default."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages, and the pictures beside the results."""
    for page, source in TAKEN.items():
        text = re.sub(r"\]\((?:\.\./)?docs/", "](", (ROOT / source).read_text())
        files.append(File.generated(config, page, content=text))
    for picture in sorted((ROOT / "benchmarks" / "results").glob("*.svg")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """No default is an empty cell of the table."""
    return NO_DEFAULT.sub("", html) if page.file.src_uri == "reference/cli.md" else html
