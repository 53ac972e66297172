"""What is written to a terminal. Names and messages may come from a stranger's file, and a terminal obeys some characters."""

from __future__ import annotations

import click


def say(text: str = "", err: bool = False) -> None:
    """Write a line for a person to read."""
    click.echo(printable(text), err=err)


def printable(text: str) -> str:
    """The text with what a terminal would obey, or could not write, as an escape that a person can read; lines stay lines."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
