"""The README and the pages of docs/, as what they are made of: prose, and blocks that a reader can paste."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')
GENERATED = re.compile(r"<!-- (?:table|result|constant): .*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What stands between two fences. `title` is the file that a reader would save it as."""

    language: str
    title: str
    text: str


def name(page: Path) -> str:
    """As tests are called: how-to/depth."""
    return str(page.relative_to(ROOT / "docs") if page.is_relative_to(ROOT / "docs") else page.name).removesuffix(".md")


def blocks(page: Path) -> list[Block]:
    """In the order of the page."""
    return [Block(m[1], titled[1] if (titled := TITLE.search(m[2])) else "", m[3]) for m in FENCED.finditer(page.read_text())]


def lines(block: Block) -> list[str]:
    """The commands of a console block, without prompts and comments."""
    typed = (line.removeprefix("$ ") for line in block.text.splitlines())
    return [re.sub(r"\s+# .*$", "", line) for line in typed]


def commands(page: Path) -> Iterator[str]:
    """Every command on a page."""
    return (line for block in blocks(page) if block.language == "console" for line in lines(block))


def prose(page: Path) -> str:
    """What somebody wrote: no code, and nothing that was made from code or results."""
    return re.sub(r"`[^`\n]*`", "", GENERATED.sub("", FENCED.sub("", page.read_text())))


def file_of(title: str) -> str:
    """The block that some page shows as a file of this name."""
    (found,) = (block.text for page in PAGES for block in blocks(page) if block.title == title)
    return found
