"""Tables and sentences on standard output, made for the width of the terminal: nothing is cut off, no name broken inside.

it fits                       a table
it does not                   the same columns in several tables below each other, those that name a row in each
not even two columns do       a paragraph for every row
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compress.cli.terminal import nobody_reads, say
from compress.report.escape import printable

GAP = 2
"""Columns between two cells."""
LEAST = 12
"""Columns that a cell of several words gets at the least."""
NO_TERMINAL = 200


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, named: int = 1) -> None:
    """A table on standard output; columns whose every cell is a number lean right. The first `named` columns name a row."""
    cells = [[printable(cell(value)) for value in row] for row in rows]
    out = console(wide=True)
    made = list(parts(columns, cells, out.width, named))
    if title:
        told(title)
    for number, places in enumerate(made):
        if len(places) == named < len(columns):
            _paragraphs(columns, cells)
            return
        if number:
            say()
        out.print(_table([columns[i] for i in places], [[row[i] for i in places] for row in cells], out.width))


def parts(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int, named: int = 1) -> Iterable[list[int]]:
    """Places of the columns that go into one table, in order; the first `named` columns are in each."""
    least = [min_width([name, *(row[i] for row in cells)]) for i, name in enumerate(columns)]
    names = list(range(named))
    chosen = names
    for place in range(named, len(columns)):
        if sum(least[i] + GAP for i in chosen) + least[place] > width:
            yield chosen
            if chosen == names:  # not even one more fits
                return
            chosen = names
        chosen = [*chosen, place]
    if sum(least[i] + GAP for i in chosen) - GAP > width and len(chosen) > named:
        yield names
        return
    yield chosen


def min_width(cells: Sequence[str]) -> int:
    """Columns that a column needs: its longest word, and a little more for several, lest they stand in a tower."""
    # The heading may stand in a tower.
    words = max((len(word) for text in cells for word in text.split()), default=0)
    return max(words, min(max(map(len, cells[1:]), default=0), LEAST))


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    least = [min_width([name, *(row[i] for row in cells)]) for i, name in enumerate(columns)]
    whole = [max([least[i], len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    spare = width - sum(least) - GAP * (len(columns) - 1)
    for i, name in enumerate(columns):
        # What there is room for goes to the columns that are short of it, from left to right.
        more = min(whole[i] - least[i], max(spare, 0))
        spare -= more
        right = bool(cells) and all(is_numeric(row[i]) for row in cells)
        table.add_column(name, justify="right" if right else "left", overflow="fold", width=least[i] + more)
    for row in cells:
        table.add_row(*map(escape, row))
    return table


def _paragraphs(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    for row in cells:
        told(row[0] or "-")
        for name, value in zip(columns[1:], row[1:], strict=True):
            if value:
                told(f"{name}: {value}", "  ")


def told(text: str, indent: str = "") -> None:
    """A sentence on standard output, broken between words where there is a terminal; a word stays whole, however long."""
    out, text = console(), printable(text)
    if not out.is_terminal:
        say(indent + text)
        return
    for line in text.split("\n"):
        for part in wrapped(line, max(out.width, 10) - len(indent)) or [""]:
            say(indent + part)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of so many columns; a word stays whole, however long."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Names and what is said of them, in two columns; below each other where that would be narrow."""
    there = list(rows)
    wide, name = console(wide=True).width, max(len(name) for name, _ in there) + GAP
    for title, text in there:
        if wide < 50:
            told(f"{title}: {text}" if title else text)
            continue
        for number, line in enumerate(wrapped(text, wide - name)):
            say(f"{'' if number else title:{name}}{printable(line)}")


class _Console(Console):
    """Ends no command because nobody reads its table to the end."""

    def on_broken_pipe(self) -> None:
        nobody_reads()


def console(wide: bool = False) -> Console:
    """Standard output; `wide`: where it is not a terminal, lines are not wrapped."""
    made = _Console(highlight=False)
    return _Console(highlight=False, width=NO_TERMINAL) if wide and not made.is_terminal else made


def cell(value: object) -> str:
    """One value as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if value != value or abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def is_numeric(text: str) -> bool:
    """Whether a cell is a number, its unit or sign aside."""
    try:
        float(text.replace(",", "").rstrip("%x") or "0")
    except ValueError:
        return False
    return True
