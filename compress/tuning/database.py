"""A file that a study is kept in, looked at before Optuna opens it: somebody else may have made it.

A database of SQLite may compute what it is asked for: a view without an end, a column of gigabytes made on reading, a trigger.
So what it holds has to be tables and indices of plain columns, as Optuna's are. A journal has to be operations, line by line.
"""

from __future__ import annotations

import re
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path

from compress.errors import BadInput
from compress.user import files

_MOST = 256 * 2**20  # bytes of a database; 10,000 trials take a tenth of it
_LONGEST = 2**20
"""Bytes of one value; the recipe of a study has a few thousand."""
_ROWS = 100_000  # trials, of all studies in the database
_SEVERAL = bytes.fromhex("d9d505f920a163d7")  # at the end of a journal that names another file
_ENTRIES = 1_000_000  # of any other table: a trial has some ten in each
_WAIT_S = 60  # for another worker that writes
_COMPUTES = re.compile(
    r"\b(select|with|as|generated|virtual|trigger|view|where|like|glob|regexp|match|collate)\b|/\*|--", re.IGNORECASE
)
"""What a definition of plain columns has no use for."""
_NAMED = re.compile(r"\b(?:references|table|on)\s+[\"'`\[]?\w+[\"'`\]]?\s*\(", re.IGNORECASE)
_CALLED = re.compile(r"[\"'`\[]?(\w+)[\"'`\]]?\s*\(")
_PLAIN = frozenset({"key", "unique", "check", "in", "char", "varchar", "numeric", "decimal", "float"})
"""Words before a parenthesis that call no function."""
_VALUES = ("study_user_attributes", "study_system_attributes", "trial_user_attributes", "trial_system_attributes")


def require_plain(path: Path, new: bool) -> None:
    """Refuse a database that is none of Optuna's, before anything in it is read or changed.

    Args:
        path: of the file.
        new: whether a study is to be made in it, so that it may be empty.

    Raises:
        BadInput: see above; it is no regular file, too large, damaged, or computes what it holds.
    """
    if path.exists():
        _require_regular(path, _MOST)
    _require_own(path)
    if not path.exists():
        return
    if path.stat().st_size == 0 and new:
        return
    try:
        # Not read-only: what a worker that was killed left half-written is undone by whoever opens the file next.
        with closing(sqlite3.connect(path, timeout=_WAIT_S)) as opened:
            opened.execute("PRAGMA query_only = 1")
            opened.execute("PRAGMA trusted_schema = 0")
            opened.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 64 * _LONGEST)
            tables = _defined(opened, path)
            # Another program's database, or that of a worker which is making it at this moment.
            if not new and not {"studies", "trials"} <= tables:
                raise BadInput(f"{path} holds no study of Optuna. Give the database of one.")
            _require_small(opened, tables, path)
    except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:
        raise BadInput(f"{path} is no database that can be read ({error}). Give that of a study, or a new one.") from error


def _defined(opened: sqlite3.Connection, path: Path) -> set[str]:
    """Names of the tables, of which each is plain."""
    entries = opened.execute("SELECT type, name, sql FROM sqlite_master LIMIT 1000").fetchall()
    for kind, name, sql in entries:
        text = str(sql or "")
        called = {word.lower() for word in _CALLED.findall(_NAMED.sub("; (", text))}
        if kind not in ("table", "index") or len(text) > 10_000 or _COMPUTES.search(text) or not called <= _PLAIN:
            raise BadInput(
                f"{path} holds the {str(kind)[:20]} '{str(name)[:60]}', which computes what is read from it; a study has plain "
                "tables and indices alone. Take a study from a source you trust."
            )
    return {str(name) for kind, name, _ in entries if kind == "table"}


def _require_small(opened: sqlite3.Connection, tables: set[str], path: Path) -> None:
    for table in set(_VALUES) & tables:
        (longest,) = opened.execute(f"SELECT max(length(value_json)) FROM {table}").fetchone()
        if (longest or 0) > _LONGEST:
            raise BadInput(f"{path} holds a value of {longest} bytes; a study has at most {_LONGEST}. Give another one.")
    for table in tables:
        most = _ROWS if table == "trials" else _ENTRIES
        name = table.replace('"', '""')
        (rows,) = opened.execute(f'SELECT count(*) FROM (SELECT 1 FROM "{name}" LIMIT {most + 1})').fetchone()
        if rows > most:
            raise BadInput(f"{path} holds more than {most} rows of {table[:60]}, and no more are read. Give another --storage.")


def require_journal(path: Path) -> None:
    """Refuse a file that is no journal of Optuna before anything is appended to it.

    Raises:
        BadInput: see above.
    """
    if path.exists():
        _require_regular(path, files.MOST)
    _require_own(path)
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    # What stands behind the last line break is being written by another worker.
    for number, line in enumerate(lines[:-1], 1):
        ours = False
        with suppress(ValueError):
            found = files.parsed_json(line) if len(line) <= _LONGEST else None
            ours = isinstance(found, dict) and isinstance(found.get("op_code"), int)
        if not ours:
            raise BadInput(
                f"--storage {path} is a file that is no journal of Optuna (line {number}). Give the path of one, or a new one."
            )
    if len(lines) == 1 and lines[0]:
        raise BadInput(f"--storage {path} is a file that is no journal of Optuna. Give the path of one, or a new one.")


def _require_own(path: Path) -> None:
    """Refuse files beside a database through which opening it would write to, or remove, files elsewhere.

    What a killed worker left half-written is undone from a journal, and SQLite removes the file that a journal of several
    databases names at its end (pager.c, readSuperJournal).
    """
    for file in (path, *(path.with_name(path.name + ending) for ending in ("-journal", "-wal", "-shm"))):
        with suppress(FileNotFoundError):
            found = file.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise BadInput(
                    f"{file} is a link, or no regular file; a study has files of its own. Copy it, or name the file itself."
                )
            if file.name.endswith("-journal") and _end(file) == _SEVERAL:
                raise BadInput(
                    f"{file} was left by a program that wrote to several databases at once, which a study is not. Remove it."
                )


def _end(file: Path) -> bytes:
    with file.open("rb") as opened:
        opened.seek(max(file.stat().st_size - len(_SEVERAL), 0))
        return opened.read()


def _require_regular(path: Path, most: int) -> None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"--storage {path} is no regular file. Give the file of a study, or a new one.")
    if found.st_size > most:
        raise BadInput(f"--storage {path} has {found.st_size} bytes, at most {most} are read. Give another one.")
