"""`--arch`: the module that a state_dict belongs to, built by name with fresh weights."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from compress.checkpoint.load import hugging_face
from compress.checkpoint.load.most_values import TooMany, beyond, bounded
from compress.checkpoint.load.pickles import importable_from_here
from compress.errors import BadInput, extra
from compress.user import code, wording

NAMED = ("torchvision:", "timm:", "hf:")
"""What names an architecture of a library, and runs no code of the user's."""
_WEIGHTS = ("weights", "pretrained", "checkpoint")
"""What arguments begin with by which torchvision and timm take trained weights, of a part, too (`weights_backbone`)."""


def build(arch: str, arguments: Mapping[str, Any], values: int | None = None) -> nn.Module:
    """A module with fresh weights; nothing is downloaded, and the random state of the caller stays as it was.

    Args:
        arch: torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory or path/to/file.py:factory.
        arguments: keyword arguments of the factory.
        values: how many the weights have that it is for; one of a library that makes many more is stopped (`MostValues`).

    Raises:
        BadInput: no such name, sizes far beyond those of the weights, or the factory fails or gives no module.
    """
    named = arch.startswith(NAMED)
    if clash := [name for name in arguments if arguments[name] and (name.startswith(_WEIGHTS) if named else name in _WEIGHTS)]:
        # A download at load would be a surprise, and the file's weights would replace it anyway.
        raise BadInput(f"--arch-kwargs gives {clash[0]}, but the weights come from the model file. Leave {clash[0]} out.")
    if named and (name := beyond(arguments)):
        given = wording.quoted(arguments.get(name, arguments))
        raise BadInput(f"--arch-kwargs gives {name} = {given}; needed are numbers that a network has. Correct it.")
    # Fresh weights draw random numbers; the caller's run must not depend on that.
    with (
        _importable(arch, str(Path(arch.rpartition(":")[0]).resolve().parent)),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
        bounded(values) if named and values is not None else nullcontext(),
    ):
        warnings.simplefilter("ignore")
        made = _call(factory(arch), arch, arguments)
    if not isinstance(made, nn.Module):
        raise BadInput(f"--arch {arch} gives a {torch.typename(made)}; needed is what gives a torch.nn.Module.")
    return made


def factory(arch: str) -> Callable[..., Any]:
    """The function or class behind a name.

    Raises:
        BadInput: there is none.
    """
    source, _, name = arch.partition(":")
    if source == "torchvision":
        return _torchvision(name)
    if source == "timm":
        return _timm(name)
    if source == "hf":
        return hugging_face.factory(name)
    if ":" not in arch and (arch in torchvision.models.list_models() or _in_timm(arch)):
        library = "timm" if _in_timm(arch) and arch not in torchvision.models.list_models() else "torchvision"
        raise BadInput(f"--arch is '{arch}'; needed is where it is from. Did you mean {library}:{arch}?")
    return code.function(arch, "--arch")


def _importable(arch: str, *folders: str) -> AbstractContextManager[None]:
    """A user's own code may lie here; a library comes from where Python finds it, and not from a folder of its name here."""
    return nullcontext() if arch.startswith(NAMED) or ":" not in arch else importable_from_here(*folders)


def _in_timm(name: str) -> bool:
    if importlib.util.find_spec("timm") is None:
        return False
    import timm

    return timm.is_model(name)


def accepts(arch: str, argument: str) -> bool:
    """Whether a factory has a keyword argument of that name."""
    with _importable(arch):
        try:
            parameters = inspect.signature(factory(arch)).parameters
        except (TypeError, ValueError):
            return False
    # Factories of torchvision and timm take anything by **kwargs and check it themselves.
    return arch.startswith(NAMED) or argument in parameters


def _call(make: Callable[..., Any], arch: str, arguments: Mapping[str, Any]) -> Any:
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
    if isinstance(make, nn.Module):  # a module of the user's file; calling it would run it
        return make
    try:
        return make(**arguments)
    except BadInput:
        raise
    except TooMany as error:
        raise BadInput(
            f"--arch {arch} with {given} is far larger than these weights ({error}). Give the --arch-kwargs of their training."
        ) from error
    except Exception as error:  # user code may raise anything
        first = (str(error).strip() or "no message").splitlines()[0]
        raise BadInput(
            f"--arch {arch} fails when it is called with {given} ({type(error).__name__}: {first}). "
            "Give what it needs with --arch-kwargs KEY=VALUE."
        ) from error


def _torchvision(name: str) -> Callable[..., Any]:
    names = torchvision.models.list_models()
    if name not in names:
        raise BadInput(f"torchvision has no model '{name}'.{_close(name, names)}")

    def make(**arguments: Any) -> Any:
        parameters = inspect.signature(torchvision.models.get_model_builder(name)).parameters
        # None for both: some builders load a backbone's weights even where the whole has none.
        no_download = {key: None for key in ("weights", "weights_backbone") if key in parameters}
        return torchvision.models.get_model(name, **(no_download | arguments))

    return make


def _timm(name: str) -> Callable[..., Any]:
    if importlib.util.find_spec("timm") is None:
        raise BadInput(f"--arch timm:{name} needs timm, which is not installed: {extra('timm')}.")
    import timm

    if not timm.is_model(name):
        raise BadInput(f"timm has no model '{name}'.{_close(name, timm.list_models())}")
    return lambda **arguments: timm.create_model(name, pretrained=False, **arguments)


def _close(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
