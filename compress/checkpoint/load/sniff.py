"""What a model file is, told from its bytes, before anything is unpickled. Files that cannot be used are refused with what to do.

`.pt` and `.pth` say nothing: below them lie zip archives of torch.save, of TorchScript and of torch.export, the formats of torch
before 1.6, web pages, and pointers of git-lfs.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Iterator
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import IO

import torch

from compress.checkpoint.load.scan import opcodes
from compress.checkpoint.sums import GRAPH, WEIGHTS
from compress.errors import BadInput
from compress.user import files
from exporters.standalone.checksums import Member

_NEEDED = files.MODEL_NEEDED
_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch.save before 1.6


class Kind(Enum):
    """What can be opened."""

    COMPRESSED = "a model.compressed folder"
    SAFETENSORS = "a .safetensors file"
    ZIP = "a file of torch.save"
    LEGACY = "a file of torch.save before torch 1.6"
    TAR = "a tar file of torch.save before torch 0.2"


def identify(path: Path) -> Kind:
    """The kind of a model file.

    Raises:
        BadInput: it is missing, empty, damaged or of a kind that is not opened; says which and what to do.
    """
    try:
        if path.is_dir():
            return _directory(path)
        # A pipe or a device would be waited for, or has no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadInput(f"The model file {path} is a pipe, socket or device. {_NEEDED}")
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise BadInput(files.no_model(path)) from None
    except OSError as error:
        raise BadInput(f"The model file {path} cannot be read ({error.strerror}). {_NEEDED}") from error
    _refuse_text(path, head)
    if head[:4] == b"PK\x03\x04":
        return _zip(path)
    # Before pickles: the first byte of its header's length is, in one file of 32, the one that those begin with.
    if _begins_as_safetensors(head):
        return Kind.SAFETENSORS
    if head[:1] == b"\x80":
        return _pickle(path)
    if _is_tar(path):
        return _tar(path)
    if path.suffix == ".safetensors":
        return Kind.SAFETENSORS
    raise BadInput(_refusal(path, head))


def _directory(path: Path) -> Kind:
    missing = [name for name in (GRAPH, WEIGHTS) if not (path / name).is_file()]
    if not missing:
        return Kind.COMPRESSED
    if (path / "model.compressed").is_dir():
        raise BadInput(f"{path} is the folder of a run; needed is one model. Give its result, {path / 'model.compressed'}.")
    if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        raise BadInput(f"{path} is a folder of transformers. Give {path / 'model.safetensors'} with --arch hf:{path}.")
    found = sorted(p.name for p in path.iterdir())[:4]
    raise BadInput(
        f"The model {path} is a folder without {' and '.join(missing)} (it holds {', '.join(found) or 'nothing'}). "
        "Give the model file itself, or a model.compressed folder."
    )


def _refuse_text(path: Path, head: bytes) -> None:
    if not head:
        raise BadInput(f"The model file {path} is empty. {_NEEDED}")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        raise BadInput(f"The model file {path} is a git-lfs pointer, not the model. Run 'git lfs pull' in its repository.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        raise BadInput(f"The model file {path} is a web page (HTML): the download gave a page, not the model. Download it again.")


def _zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, RuntimeError, OSError, ValueError) as error:  # RuntimeError: encrypted, or of a later kind
        raise BadInput(f"The model file {path} is truncated or damaged ({error}). Copy or download it again.") from error
    inside = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        raise BadInput(
            f"The model file {path} is TorchScript: compiled, it can no longer be changed. Save the original module or its "
            "state_dict with torch.save; state_dict() of the loaded script gives the weights for --arch."
        )
    if inside & {"archive_format", "serialized_exported_program.json", "models/model.json"}:
        raise BadInput(
            f"The model file {path} is a program of torch.export (.pt2), which cannot be trained or resized. "
            "Save the original module or its state_dict with torch.save."
        )
    if "data.pkl" not in inside:
        hint = " It looks like a Keras model." if inside & {"config.json", "model.weights.h5"} else ""
        raise BadInput(f"The model file {path} is a zip archive, but no model of torch.save.{hint} {_NEEDED}")
    return Kind.ZIP


def _pickle(path: Path) -> Kind:
    try:
        with path.open("rb") as file:
            first = [argument for _, argument in opcodes(file)]
    except (ValueError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"The model file {path} is truncated or damaged ({error}). Copy or download it again.") from error
    if _MAGIC in [value for value in first if isinstance(value, int)]:
        return Kind.LEGACY
    raise BadInput(f"The model file {path} is a plain Python pickle, which is not opened. Save the model with torch.save.")


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:", tarinfo=Member):
            return True
    except (tarfile.TarError, ValueError, OverflowError):
        return False


def _tar(path: Path) -> Kind:
    try:
        with tarfile.open(
            path, "r:", tarinfo=Member
        ) as archive:  # uncompressed, as torch wrote them: what is read is never more than the file
            names = set(archive.getnames())
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:  # sizes beyond any file
        raise BadInput(f"The model file {path} is truncated or damaged ({error}). Copy or download it again.") from error
    if {"pickle", "storages", "tensors"} <= names:
        return Kind.TAR
    raise BadInput(f"The model file {path} is a tar archive, but no model of torch.save. Unpack it, give the model in it.")


def _begins_as_safetensors(head: bytes) -> bool:
    """A length of eight bytes, the lowest first, and the JSON of so many."""
    return head[8:9] == b"{" and not any(head[5:8])


def _refusal(path: Path, head: bytes) -> str:
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and b"\x03" <= head[1:2] <= b"\x13" and b"\x12" in head[2:5]):
        return f"The model file {path} is an ONNX file; needed is the torch model that it was exported from."
    if head.startswith(b"\x89HDF"):
        return f"The model file {path} is an HDF5 file (Keras?), not a torch model. {_NEEDED}"
    if head[4:8] == b"TFL3":
        return f"The model file {path} is a TensorFlow Lite file, not a torch model. {_NEEDED}"
    what = "a text file" if all(b in b"\t\r\n\f" or b >= 32 for b in head) and _decodes(head) else "of no known format"
    return f"The model file {path} is {what}. {_NEEDED}"


def _decodes(head: bytes) -> bool:
    try:
        head[:-4].decode()
    except UnicodeDecodeError:
        return False
    return True


def pickles(path: Path, kind: Kind) -> Iterator[IO[bytes]]:
    """Every pickle of a file of torch.save, each to be read from where the file stands; nothing is unpickled here."""
    if kind is Kind.ZIP:
        # As torch reads it: of two entries that may be meant, Python's zipfile takes another.
        yield BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))
    elif kind is Kind.TAR:
        with tarfile.open(path, "r:", tarinfo=Member) as archive:
            member = archive.extractfile("pickle")
            if member is not None:
                yield member
    elif kind is Kind.LEGACY:
        with path.open("rb") as file:  # magic number, version, system, the object, keys of its tensors
            for _ in range(4):
                yield file
