"""Text out of a stranger's file, made harmless where it is shown: a name may hold what a terminal, a page or a table obeys."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with what a terminal would obey, or could not write, as an escape that a person can read; lines stay lines."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def markdown(given: object) -> str:
    """One line of Markdown that opens no cell, no tag and no link."""
    return printable(" ".join(str(given).split())).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")
