"""The only place that unpickles.

torch's restricted unpickler imports nothing: it builds what stands on a list, here plain tensors, and records in the place of
the layers of torch.nn, from which `pickled_layers` makes layers. The opcodes are gone through before (`scan`), so that the
refusal names all that the file would need, and nothing that computes is called. Code in a stranger's file runs only where
`--trust-pickle` says so.
"""

from __future__ import annotations

import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import torch
from torch import _weights_only_unpickler

from compress.checkpoint.load.pickled_layers import STAND_INS
from compress.checkpoint.load.scan import Scan, scan
from compress.checkpoint.load.sniff import Kind, pickles
from compress.errors import BadInput
from exporters.standalone.checksums import Member

_CALLED = """
    collections.OrderedDict collections.Counter builtins.set builtins.complex _codecs.encode torch.Size torch.device
    torch.serialization._get_layout torch.nn.parameter.Parameter torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2
    torch._utils._rebuild_tensor_v3 torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state
    torch._utils._rebuild_qtensor torch._utils._rebuild_sparse_tensor
"""
CALLED = frozenset(_CALLED.split()) | {name for name, stand_in in STAND_INS.items() if isinstance(stand_in, type)}
"""What a pickle may call; other names on torch's list are types of data, which are looked up only."""


def unpickle(path: Path, kind: Kind, trust: bool) -> Any:
    """What torch.save wrote, on the CPU.

    Args:
        path: a file of that kind.
        kind: ZIP, LEGACY or TAR.
        trust: run whatever code the file asks for.

    Raises:
        BadInput: the file needs code (names it and the remedies), or it is truncated or damaged.
    """
    if kind is Kind.ZIP:
        _whole(path)
    if trust:
        return _trusting(path)
    _look_over(path, kind)
    try:
        # The list is extended for this one call only.
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()]), _quiet():
            return _legacy_tar(path) if kind is Kind.TAR else torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except UnpicklingError as error:
        raise BadInput(_refused_by_torch(path, kind, error)) from error
    # Not the file's fault.
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can break the readers of torch anywhere
        raise BadInput(_damaged(path, error)) from error


def _whole(path: Path) -> None:
    """Refuse an archive whose parts are not what was written; torch does not compare their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            # torch.save compresses nothing, so what is read can never be more than the file.
            if compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise BadInput(
                    f"The model file {path} holds compressed parts, which torch.save never writes. Save it with torch.save."
                )
            _read_alike(path, entries)
            wrong = archive.testzip()
    except BadInput:
        raise
    # zipfile has no one class for what damaged bytes make of it.
    except Exception as error:
        raise BadInput(_damaged(path, error)) from error
    if wrong is not None:
        raise BadInput(
            f"The model file {path} is damaged: {wrong} does not match its checksum. Copy or download it again; if it was saved "
            "with torch.serialization.set_crc32_options(False), it has none: load it in torch and save it with them."
        )


def _read_alike(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse an archive whose entries are others for torch than for Python, by which their sizes are known.

    torch takes the first of names that are equal but for case, ends them at a zero, and looks for the list of entries where the
    archive says that it is.
    """
    theirs: Any = torch._C.PyTorchFileReader(str(path))
    files = [entry for entry in entries if not entry.is_dir()]
    mine = {entry.filename.partition("/")[2]: (entry.header_offset, entry.file_size) for entry in files}
    there = {name: (theirs.get_record_header_offset(name), theirs.get_record_size(name)) for name in theirs.get_all_records()}
    if len(mine) < len(files) or mine != there:
        raise BadInput(f"The model file {path} holds entries that are read in two ways. Save the model again with torch.save.")


def _look_over(path: Path, kind: Kind) -> None:
    """Refuse what asks for code or for more than it is, before anything is unpickled."""
    try:
        scans = [scan(pickle) for pickle in pickles(path, kind)]
    # Damaged bytes can break the readers of Python anywhere.
    except Exception as error:
        raise BadInput(_damaged(path, error)) from error
    foreign = dict.fromkeys(name for found in scans for name in _foreign(found))
    if foreign:
        raise BadInput(_needs_code(path, list(foreign)))
    if problem := next((found.problem for found in scans if found.problem), ""):
        raise BadInput(f"The model file {path} is not read: {problem}. Save it again with torch.save(model.state_dict(), ...).")


def _foreign(found: Scan) -> list[str]:
    # torch names some functions by where they are built in, and files of Python 2 say __builtin__.
    known = {*_weights_only_unpickler._get_allowed_globals(), *STAND_INS}
    named = {name: name.replace("__builtin__.", "builtins.") for name in (*found.globals, *sorted(found.called))}
    return [
        name for name, plain in named.items() if name and (plain not in known or (name in found.called and plain not in CALLED))
    ]


def _needs_code(path: Path, foreign: list[str]) -> str:
    if all("_rebuild_meta_tensor" in name for name in foreign):
        return f"The model file {path} has weights without data (of torch's device meta); needed are real ones. Save those."
    named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
    return (
        f"The model file {path} needs the code of {named}, and opening it would run that code. Save the weights with "
        "torch.save(model.state_dict(), ...) and name the model with --arch package.module:factory or file.py:factory; "
        f"or, if you trust whoever made the file, {_trusted_way(foreign)}."
    )


def _trusted_way(foreign: list[str]) -> str:
    """What opens a file with code: a class of a script or notebook is found in that one alone."""
    if any(name.startswith("__main__.") for name in foreign):
        return "give the module itself where its class stands, in that script or notebook: compress.run(model, data=...)"
    return "add --trust-pickle; where you have the module itself, compress.run(model, data=...) takes it"


def _refused_by_torch(path: Path, kind: Kind, error: UnpicklingError) -> str:
    if kind is Kind.LEGACY and "persistent_load" in str(error):
        return (
            f"The model file {path} holds a whole module in the format before torch 1.6, which needs its code. "
            "Save it again with a newer torch, save its state_dict, or, if you trust whoever made it, add --trust-pickle."
        )
    return _damaged(path, error)


def _damaged(path: Path, error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return f"The model file {path} is truncated or damaged ({first}). Copy or download it again."


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _trusting(path: Path) -> Any:
    with importable_from_here(), _quiet():
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except (ImportError, AttributeError) as error:
            raise BadInput(
                f"The model file {path} needs code that cannot be imported ({error}). Run where that code is importable; a class "
                "defined in a script or notebook (__main__) cannot be: call compress.run(model, data=...) there, or give its "
                "state_dict and --arch file.py:factory."
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # a pickle may run anything, so anything can come back
            raise BadInput(f"The model file {path} cannot be opened ({type(error).__name__}: {error}).") from error


@contextmanager
def importable_from_here(*folders: str) -> Iterator[None]:
    """Code in the current folder, and in these, can be imported, as `python file.py` would."""
    # In front, as Python itself has the script's folder in front.
    before = list(sys.path)
    sys.path[:0] = [*folders, str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def _legacy_tar(path: Path) -> Any:
    """The format before torch 0.2: `storages`, `tensors` over them, and a `pickle` that refers to the tensors by key."""
    # extractfile and not extract: nothing is written to the disk.
    with tarfile.open(path, "r:", tarinfo=Member) as archive:
        members = {name: archive.getmember(name) for name in ("storages", "tensors", "pickle")}
        # A sparse member may claim any size.
        if any(m.issparse() or not m.isreg() for m in members.values()):
            raise BadInput(f"The model file {path} holds parts that are no plain files. Save the model again with torch.save.")
        parts = {name: cast(IO[bytes], archive.extractfile(member)).read() for name, member in members.items()}
    known: dict[Any, Any] = {}
    file = BytesIO(parts["storages"])
    for _ in range(_plain(file)):
        key, _location, storage = _plain(file)
        (count,) = struct.unpack("<q", file.read(8))
        data = bytearray(file.read(count * storage.dtype.itemsize))
        known[key] = torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
    for key, root, offset, count in _plain(file):
        known[key] = known[root][offset : offset + count]
    file = BytesIO(parts["tensors"])
    for _ in range(_plain(file)):
        key, storage, _kind = _plain(file)
        (dims,) = struct.unpack("<i4x", file.read(8))
        size, stride = (struct.unpack(f"<{dims}q", file.read(8 * dims)) for _ in range(2))
        (offset,) = struct.unpack("<q", file.read(8))
        known[key] = known[storage].as_strided(size, stride, known[storage].storage_offset() + offset)
    reader = _weights_only_unpickler.Unpickler(BytesIO(parts["pickle"]), encoding="utf-8")
    # Keys may be pickled as text or as numbers.
    vars(reader)["persistent_load"] = lambda key: known[key if key in known else int(key)]
    return reader.load()


def _plain(file: IO[bytes]) -> Any:
    start = file.tell()
    if foreign := _foreign(found := scan(file)):
        raise UnpicklingError(f"{foreign[0]} has no place here")
    if found.problem:
        raise UnpicklingError(found.problem)
    file.seek(start)
    return _weights_only_unpickler.Unpickler(file, encoding="utf-8").load()
