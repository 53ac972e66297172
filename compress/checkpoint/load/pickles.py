"""The only place that unpickles.

torch's restricted unpickler imports nothing: it builds what stands on a list, here plain tensors and the layer classes of
torch.nn by name. Any other global in the file is refused before and by it, so code in a stranger's file does not run unless
`--trust-pickle` says so. What was built is looked at once more (`look_over`): no hooks, no methods of a layer's own.
"""

from __future__ import annotations

import struct
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, _weights_only_unpickler, nn

from compress.checkpoint.allowlist import LAYERS
from compress.checkpoint.load.sniff import Kind, globals_in
from compress.errors import BadInput

_CONTAINERS = """
    Sequential ModuleList ModuleDict ParameterList ParameterDict DataParallel Transformer TransformerEncoder TransformerDecoder
    TransformerEncoderLayer TransformerDecoderLayer EmbeddingBag FractionalMaxPool2d FractionalMaxPool3d PairwiseDistance
"""
_CLASSES: tuple[type[nn.Module], ...] = (
    *(kind for kind, _ in LAYERS.values() if kind.__module__.startswith("torch.nn.")),
    *(getattr(nn, name) for name in _CONTAINERS.split()),
    nn.modules.linear.NonDynamicallyQuantizableLinear,
)
_FUNCTIONS: tuple[Callable[..., Any], ...] = (F.relu, F.gelu)  # activations that transformer layers keep
ALLOWED: tuple[Any, ...] = (*_CLASSES, *_FUNCTIONS)
"""What a pickled module may be made of; a class of the user is not among them."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
_HOOKS += ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_pre_hooks")


def unpickle(path: Path, kind: Kind, trust: bool) -> Any:
    """What torch.save wrote, on the CPU.

    Args:
        path: a file of that kind.
        kind: ZIP, LEGACY or TAR.
        trust: run whatever code the file asks for.

    Raises:
        BadInput: the file needs code (names it and the remedies), or it is truncated or damaged.
    """
    if trust:
        return _trusting(path)
    # Looked for beforehand, so that the refusal can name all of them and not just the first.
    foreign = _foreign(path, kind)
    if foreign:
        raise BadInput(_needs_code(path, foreign))
    try:
        # The list is extended for this one call only.
        with torch.serialization.safe_globals(list(ALLOWED)), _quiet():
            return _legacy_tar(path) if kind is Kind.TAR else torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise BadInput(_refused_by_torch(path, kind, error)) from error
    # Not the file's fault.
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can break the readers of torch anywhere
        raise BadInput(_damaged(path, error)) from error


def _foreign(path: Path, kind: Kind) -> list[str]:
    allowed = {f"{found.__module__}.{found.__qualname__}" for found in ALLOWED}
    # torch names some functions by where they are built in, not by where they are imported from.
    allowed |= {f"{found.__module__}.{found.__name__}" for found in _FUNCTIONS} | {"torch._C._nn.gelu"}
    allowed |= set(_weights_only_unpickler._get_allowed_globals())
    # Files of Python 2 call it __builtin__.
    names = (name.replace("__builtin__.", "builtins.") for name in globals_in(path, kind))
    return [name for name in names if name not in allowed]


def _needs_code(path: Path, foreign: list[str]) -> str:
    named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
    return (
        f"The model file {path} needs the code of {named}, and opening it would run that code. Save the weights with "
        "torch.save(model.state_dict(), ...) and name the model with --arch package.module:factory or file.py:factory; "
        "or, if you trust whoever made the file, add --trust-pickle."
    )


def _refused_by_torch(path: Path, kind: Kind, error: UnpicklingError) -> str:
    if kind is Kind.LEGACY and "persistent_load" in str(error):
        return (
            f"The model file {path} holds a whole module in the format before torch 1.6, which needs its code. "
            "Save it again with a newer torch, save its state_dict, or, if you trust whoever made it, add --trust-pickle."
        )
    if "Unsupported operand" in str(error):
        return (
            f"The model file {path} was pickled with an unusual protocol, or is damaged. Save it again with torch.save's "
            "default protocol, or, if you trust whoever made it, add --trust-pickle."
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


def look_over(module: nn.Module, where: str) -> None:
    """A file may set any attribute of a layer; what would change what the layer computes is refused.

    Raises:
        BadInput: names the layer.
    """
    rest = [("", module)]
    seen: set[int] = set()
    while rest:
        name, layer = rest.pop()
        if type(layer) not in _CLASSES:
            raise BadInput(f"{where} holds a {torch.typename(layer)} at '{name}', which is no layer of torch.nn.")
        if odd := _oddity(layer):
            raise BadInput(f"{where} {odd} of the layer '{name}', unlike an ordinary module. Save its state_dict.")
        seen.add(id(layer))
        inside = [(f"{name}.{key}".lstrip("."), child) for key, child in layer._modules.items() if child is not None]
        rest += [(key, child) for key, child in inside if id(child) not in seen]


def _oddity(layer: nn.Module) -> str | None:
    if hooks := [hook for hook in _HOOKS if getattr(layer, hook, None)]:
        return f"sets {hooks[0][1:]}"
    # torch.nn's own attributes may be callable, such as an activation; only what hides a method changes behavior.
    own = {key for key, value in vars(layer).items() if callable(value) and value not in _FUNCTIONS}
    if shadows := [key for key in own if hasattr(type(layer), key)]:
        return f"replaces the method {shadows[0]}"
    tensors = (*layer._parameters.values(), *layer._buffers.values())
    return "has something else in the place of a tensor" if any(not isinstance(t, Tensor | None) for t in tensors) else None


def _trusting(path: Path) -> Any:
    with importable_from_here(), _quiet():
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except (ImportError, AttributeError) as error:
            raise BadInput(
                f"The model file {path} needs code that cannot be imported ({error}). Run where that code is importable; a class "
                "defined in a script or notebook (__main__) cannot be: give its state_dict and --arch file.py:factory."
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
    with tarfile.open(path) as archive:
        parts = {name: cast(IO[bytes], archive.extractfile(name)).read() for name in ("storages", "tensors", "pickle")}
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
    return _weights_only_unpickler.Unpickler(file, encoding="utf-8").load()
