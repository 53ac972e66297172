"""Names of layers, tensors, nodes and arguments, which torch.fx writes into the code that it generates.

Every name that a stranger chose in a file passes `part`, `parts_of` or `identifier` before anything is done with it: what is left
cannot end a string, a line or an attribute, cannot hide a method of the model, and means the same to Python as to a dictionary.
Names in a user's own code may be odder (`a/b`); `refuse_untraceable` turns away those that generated code cannot hold.
"""

# pyright: reportPrivateUsage=false
# named_modules() reads the same dictionary.

from __future__ import annotations

import keyword
import re
import unicodedata
from typing import TypeGuard

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from compress.errors import UnsupportedModel

MAX_NAME = 512

_PART = re.compile(r"(?!__)[\w+\-:@ ]+")  # no dot, quote, backslash or bracket
# A layer of such a name would replace what GraphModule itself needs.
_RESERVED = frozenset(dir(GraphModule(nn.Module(), Graph())))


def part(name: object) -> str:
    """One part of the name of a layer or tensor, harmless as an attribute and in generated code.

    Raises:
        ValueError: it is not.
    """
    if not _plain(name) or not _PART.fullmatch(name):
        raise ValueError(f"{str(name)[:80]!r} is no name of a layer or tensor")
    return name


def parts_of(name: object) -> list[str]:
    """The parts of a dotted name, from the root of a model.

    Raises:
        ValueError: one of them is not harmless.
    """
    # A first part such as forward or graph would hide the module's own.
    if not isinstance(name, str) or len(name) > MAX_NAME or name.partition(".")[0] in _RESERVED:
        raise ValueError(f"{str(name)[:80]!r} is no name of a layer or tensor")
    return [part(each) for each in name.split(".")]


def submodules(model: nn.Module, again: bool = False) -> list[tuple[str, nn.Module]]:
    """What named_modules() gives, in its order and a fraction of its time, which deep models cost once per level.

    Args:
        model: itself is the first.
        again: also a module that is there already, by its further names.
    """
    found: list[tuple[str, nn.Module]] = [("", model)]
    seen = {id(model)}
    around = [("", iter(model._modules.items()))]  # what is entered: the start of its names, and the parts to come
    while around:
        start, parts = around[-1]
        for name, part in parts:
            if part is None or (id(part) in seen and not again):
                continue
            seen.add(id(part))
            found.append((start + name, part))
            if part._modules:  # most are layers, which hold none
                around.append((f"{start}{name}.", iter(part._modules.items())))
                break
        else:
            around.pop()
    return found


def refuse_untraceable(model: nn.Module) -> None:
    """Turn away a model with a name that the generated code would read as something else.

    Raises:
        UnsupportedModel: names the layer.
    """
    fine: set[str] = set()
    for path, owner in submodules(model):
        if isinstance(owner, torch.jit.ScriptModule):
            raise UnsupportedModel(
                f"The submodule '{path}' is TorchScript: compiled, it can no longer be changed. Put the module that it was made "
                "of in its place."
            )
        for key in (*owner._modules, *owner._parameters, *owner._buffers):
            if path and key in fine:  # weight, bias, 0, 1, ...: again and again
                continue
            taken = not path and key in _RESERVED
            if taken or keyword.iskeyword(key) or not key.isprintable() or set(key) & set('"\\') or not _same_to_python(key):
                why = "which is a word of Python" if keyword.iskeyword(key) else "which torch.fx cannot use"
                where = f" in '{path}'" if path else ""
                raise UnsupportedModel(
                    f"The model has a layer or tensor named {key[:80]!r}{where}, {why}. Rename it in the model's code."
                )
            fine.add(key)


def _plain(name: object) -> TypeGuard[str]:
    """A text of bounded length that is no word of Python, and the same to Python as to a dictionary."""
    return isinstance(name, str) and len(name) <= MAX_NAME and not keyword.iskeyword(name) and _same_to_python(name)


def _same_to_python(name: str) -> bool:
    # Python reads an identifier in its compatibility form: a ligature would name another layer in the generated code.
    return unicodedata.normalize("NFKC", name) == name


def identifier(name: object) -> str:
    """The name of a node or of a keyword argument.

    Raises:
        ValueError: it is none.
    """
    if not _plain(name) or not name.isidentifier() or name.startswith("__"):
        raise ValueError(f"{str(name)[:80]!r} is no name of a node or argument")
    return name
