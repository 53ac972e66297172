"""Text out of a stranger's file, made harmless where it is shown: a name may hold what a terminal, a page or a table obeys."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with what a terminal would obey, or could not write, as an escape that a person can read; lines stay lines."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    text = _decoded(text)
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def on_line(text: str) -> str:
    """The text as `printable` gives it, on one line: what follows a name begins no line of its own."""
    return printable(" ".join(text.split()))


def _decoded(text: str) -> str:
    """A path of a locale without its characters stands as single bytes in Python: read as UTF-8, which it mostly is."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character of another kind, which stays what it is
        return text


def markdown(given: object) -> str:
    """One line of Markdown that opens no cell, no tag and no link."""
    return on_line(str(given)).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")
