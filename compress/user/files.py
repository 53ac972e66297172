"""Text files that somebody gives: of a bounded size, and files; JSON and TOML in them, of a bounded depth."""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from compress.errors import BadInput

MOST = 64 * 2**20
"""Bytes; a plan of a network with 10,000 layers has a tenth of it."""
DEEPEST = 64
"""Levels of lists and tables inside each other; what reads them later calls itself for each."""
_PARTS = 4_000_000
"""Lists and tables of one text at most: each takes dozens of times the memory of its two signs."""


def text(path: Path, most: int = MOST) -> str:
    """What stands in a file.

    Raises:
        OSError: it cannot be read, is no file (a pipe would be waited for, a device has no end), or is too large.
        UnicodeDecodeError: it is no text.
        BadInput: the path is an address.
    """
    return content(path, most).decode("utf-8")


def json_in(path: Path, most: int = MOST) -> Any:
    """What a JSON file holds that somebody else may have written.

    Raises:
        OSError, BadInput: as for `text`.
        ValueError: it is no text, no JSON, or deeper than anything that this program writes.
    """
    return parsed_json(content(path, most))


def toml_in(path: Path) -> dict[str, Any]:
    """What a TOML file holds that somebody else may have written.

    Raises:
        OSError, BadInput, ValueError: as for `json_in`.
    """
    return parsed_toml(text(path))


def parsed_json(text: str | bytes, parts: int | None = _PARTS) -> Any:
    """JSON of a stranger.

    Args:
        text: of it.
        parts: lists and tables that it may have; None for any number.

    Raises:
        ValueError: it is none, has a number of thousands of digits, too many parts, or is deeper than `DEEPEST`.
    """
    if parts is not None:
        few_parts(text, parts)
    try:
        return _shallow(json.loads(text))
    except RecursionError as error:
        raise ValueError(_DEEP) from error


def few_parts(text: str | bytes, parts: int = _PARTS) -> None:
    """Look before JSON is parsed: a few signs of text take a hundred bytes then.

    Raises:
        ValueError: it may have too many lists and tables.
    """
    signs = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(text.count(cast(Any, sign)) for sign in signs) > parts:
        raise ValueError(f"it has more than {parts} lists and tables")


def parsed_toml(text: str) -> dict[str, Any]:
    """TOML of a stranger.

    Raises:
        ValueError: it is none, has a number of thousands of digits, or is deeper than `DEEPEST`.
    """
    try:
        return _shallow(tomllib.loads(text))
    except RecursionError as error:
        raise ValueError(_DEEP) from error


_DEEP = f"its lists and tables are more than {DEEPEST} deep"


def _shallow(value: Any) -> Any:
    """The value, level by level and not by calls, which depth would end."""
    level = [value]
    for _ in range(DEEPEST + 1):
        if any(isinstance(one, int) and one.bit_length() > _BITS for one in level):
            raise ValueError("it has a number of hundreds of digits")
        level = [inner for one in level if isinstance(one, dict | list) for inner in _inside(one)]
        if not level:
            return value
    raise ValueError(_DEEP)


_BITS = 1000
"""Of a whole number: larger ones are no real numbers, and Python writes those of thousands of digits not even into a message."""


def _inside(value: Any) -> list[Any]:
    every = cast("list[Any]", list(value.values()) if isinstance(value, dict) else value)
    return [one for one in every if isinstance(one, dict | list | int)]


def json_text(value: object) -> str:
    """JSON that people can look through: a list of numbers or words stands on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)

    def joined(found: re.Match[str]) -> str:
        return " ".join(line.strip() for line in found[0].split("\n")[1:-1]).join("[]")

    # No word of JSON has a line break inside, so that every one here lies between two words.
    return re.sub(r"\[\n[^\[\]{}]*?\n\s*\]", joined, text)


MODEL_NEEDED = (
    "Needed is a file that torch.save wrote (a module or a state_dict), a .safetensors file, or a model.compressed folder."
)
BOXES_NEEDED = (
    "Needed is a folder in COCO's format: images beside an annotations.json, that of train and test (or val) each, or "
    "annotations/instances_*.json with the folders that these are of. Give that."
)


_ADDRESS = re.compile(r"(?P<kind>[A-Za-z][A-Za-z0-9+.-]+):/")
"""How `s3://bucket/name` begins, of which a path keeps one stroke."""


def is_address(path: str | Path) -> bool:
    """Whether it is the address of storage that is no file system."""
    found = _ADDRESS.match(str(path))
    # Somebody's folder may have that name.
    return found is not None and not os.path.exists(f"{found['kind']}:")


def at_home(path: str | Path) -> Path:
    """A path with ~ written out.

    Raises:
        BadInput: it begins in the home folder of nobody.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BadInput(f"'{str(path)[:200]}' begins in a home folder that is not there. Give the path itself.") from error
    except ValueError as error:
        raise BadInput(f"{str(path)[:200]!r} is no path ({error}). Give one that a file can have.") from error


def here(path: str | Path) -> None:
    """Refuse the address of storage that is no file system, which would be taken for folders of such names on this machine.

    A run puts finished stages and files in their place by renaming them, which object storage cannot do: what it has is
    whole in a folder, local or mounted, and can be copied from there when the run has ended.

    Raises:
        BadInput: it is one.
    """
    if not is_address(path):
        return
    kind, _, rest = str(path).partition(":")
    local = kind == "file"
    written = f"{kind}://{'/' if local else ''}{rest.lstrip('/')}"
    copy = f"write /{rest.lstrip('/')}" if local else "copy what lies there, or mount it"
    raise BadInput(
        f"{written} is an address; needed is a path on this machine, local or mounted (NFS), as files are read "
        f"in parts and results put in place by renaming. Give a path: {copy}."
    )


def no_model(path: Path) -> str:
    """What to say where there is no model.

    Raises:
        BadInput: the path is an address.
    """
    here(path)
    return f"There is no model file {path}. {MODEL_NEEDED}"


def source(path: str) -> Path:
    """A source of data that exists.

    Raises:
        BadInput: it does not, or the name is no known source at all.
    """
    here(path)
    found = at_home(path)
    try:
        there = found.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise BadInput(
            f"The data '{path[:80]}' cannot be looked at ({told(error)}). Give a path that this user can read."
        ) from error
    if not there:
        raise BadInput(
            f"There is no data at '{path}'. Give an image folder, an .npz file, .tar or .parquet files, torchvision:NAME@DIR, "
            f"digits, module:factory or a data.toml."
        )
    # A pipe would be waited for without end.
    if not found.is_file() and not found.is_dir():
        raise BadInput(f"The data '{path}' is no regular file. Give a folder or a file on disk.")
    return found


def boxes(path: str) -> Path:
    """A folder that may hold images and boxes.

    Raises:
        BadInput: there is none.
    """
    here(path)
    found = at_home(path)
    if not found.is_dir():
        what = "is a file" if found.is_file() else "is not there"
        raise BadInput(f"The data '{path}' {what}. {BOXES_NEEDED}")
    return found


def spelled(path: Path) -> None:
    """Refuse a path that Python finds and others do not: what is not written in Python takes it in UTF-8, whatever the locale.

    Raises:
        BadInput: in this locale the path is other bytes, or none; or it is an address.
    """
    here(path)
    whole = str(path.absolute())
    try:
        if os.fsencode(whole) == whole.encode("utf-8"):
            return
    except UnicodeEncodeError:  # bytes that the locale has no character for
        pass
    raise BadInput(
        f"The path {whole} is not UTF-8 in this locale (its encoding is {sys.getfilesystemencoding()}); needed is one that "
        "ONNX Runtime and other libraries find as well. Set LC_ALL=C.UTF-8 (or PYTHONUTF8=1), or take a path in ASCII."
    )


def untaken(stem: str, ending: str = "") -> str:
    """A name that nothing has yet, for a line that somebody copies: out, or else out-2, out-3, ..."""
    names = itertools.chain((stem,), (f"{stem}-{number}" for number in itertools.count(2)))
    return next(f"{name}{ending}" for name in names if not Path(f"{name}{ending}").exists())


def elsewhere(stem: str, ending: str = "") -> list[str]:
    """The words of `--out` that a printed line needs: none where nothing lies at the default place, which would be refused."""
    free = untaken(stem, ending)
    return [] if free == f"{stem}{ending}" else ["--out", free]


def is_folder(given: str | Path) -> bool:
    """Whether a text names a folder that is there; what no file can be called names none."""
    try:
        return Path(given).expanduser().is_dir()
    except (ValueError, OSError, RuntimeError):
        return False


def among(given: object, places: Iterable[Path]) -> bool:
    """Whether a path that was given is one of these places, or lies in one; a word that is no path does not."""
    if not isinstance(given, str | Path) or not str(given):
        return False
    try:
        place = Path(given).expanduser().resolve()
        return any(place.is_relative_to(one.resolve()) for one in places)
    except (ValueError, OSError, RuntimeError):
        return False


def unlinked(folder: Path, ours: Callable[[str], bool] = lambda name: True) -> None:
    """Refuse links, pipes and devices where a run writes, removes and reads files by their names.

    A folder that came from somebody else may hold them: what is written there would land, and be removed, outside of it.

    Args:
        folder: of a run; it may be a link itself, as whoever names it knows where it leads. None has to be there.
        ours: which names in it are the run's; what lies below them is looked at, too.

    Raises:
        BadInput: there is one.
        OSError: a folder cannot be listed.
    """
    waiting = [entry for entry in os.scandir(folder) if ours(entry.name)] if folder.is_dir() else []
    while waiting:
        entry = waiting.pop()
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            waiting.extend(os.scandir(entry.path))
        elif not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "a pipe, socket or device"
            raise BadInput(f"{entry.path} is {what}; needed are plain files and folders in a run's folder. Remove it.")


def told(error: BaseException) -> str:
    """What went wrong with a file, in words: without the number and the path that Python puts around them."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def content(path: Path, most: int = MOST) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: as for `text`.
        BadInput: the path is an address.
    """
    here(path)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise OSError(0, f"it is {what}", str(path))
    if found.st_size > most:
        raise OSError(0, f"it has {found.st_size} bytes, at most {most} are read", str(path))
    return path.read_bytes()
