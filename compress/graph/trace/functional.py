"""Functional activations and dropouts become module nodes, so that "an activation" is one thing wherever it is looked for.

An activation module that is called at several places is several activations: each call gets a module of its own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from compress.graph import operations
from compress.graph.names import submodules

ACTIVATIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    # function or method name -> (module, its arguments behind the input, in order)
    F.relu: (nn.ReLU, ("inplace",)),
    torch.relu: (nn.ReLU, ()),
    "relu": (nn.ReLU, ()),
    F.relu6: (nn.ReLU6, ("inplace",)),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    F.elu: (nn.ELU, ("alpha", "inplace")),
    F.selu: (nn.SELU, ("inplace",)),
    F.celu: (nn.CELU, ("alpha", "inplace")),
    F.gelu: (nn.GELU, ("approximate",)),
    F.silu: (nn.SiLU, ("inplace",)),
    F.mish: (nn.Mish, ("inplace",)),
    F.hardswish: (nn.Hardswish, ("inplace",)),
    F.hardsigmoid: (nn.Hardsigmoid, ("inplace",)),
    F.hardtanh: (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    F.softplus: (nn.Softplus, ("beta", "threshold")),
    F.logsigmoid: (nn.LogSigmoid, ()),
    F.softsign: (nn.Softsign, ()),
    F.tanhshrink: (nn.Tanhshrink, ()),
    F.hardshrink: (nn.Hardshrink, ("lambd",)),
    F.softshrink: (nn.Softshrink, ("lambd",)),
    F.threshold: (nn.Threshold, ("threshold", "value", "inplace")),
    F.rrelu: (nn.RReLU, ("lower", "upper", "training", "inplace")),
    torch.selu: (nn.SELU, ()),
    torch.celu: (nn.CELU, ("alpha",)),
    torch.rrelu: (nn.RReLU, ("lower", "upper", "training")),
    F.sigmoid: (nn.Sigmoid, ()),
    torch.sigmoid: (nn.Sigmoid, ()),
    "sigmoid": (nn.Sigmoid, ()),
    F.tanh: (nn.Tanh, ()),
    torch.tanh: (nn.Tanh, ()),
    "tanh": (nn.Tanh, ()),
}
# Out of place is the safe reading of the function; the module gets inplace=True back in _module_for.
_IN_PLACE: dict[Any, Any] = {torch.relu_: F.relu, F.relu_: F.relu, "relu_": F.relu, F.leaky_relu_: F.leaky_relu, F.elu_: F.elu}
_IN_PLACE |= {F.selu_: F.selu, F.celu_: F.celu, F.hardtanh_: F.hardtanh, torch.threshold_: F.threshold, torch.selu_: F.selu}
_IN_PLACE |= {torch.celu_: F.celu, F.rrelu_: F.rrelu, torch.rrelu_: F.rrelu}
_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def modules_for_functions(root: nn.Module, graph: Graph) -> None:
    """Turn functional activations and eval-mode dropouts into module nodes; new names never meet old ones."""
    found = [(node, made) for node in graph.nodes if (made := _module_for(node)) is not None]
    # Names of attributes count as well (see free_name): add_module refuses a name that the module already has.
    taken = {name for name, _ in submodules(root)} if found else set[str]()
    for node, made in found:
        name = free_name(node.name, root, taken)
        root.add_module(name, made.eval())
        with graph.inserting_before(node):
            new = graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        # Shape and source line are those of the call it replaces.
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def module_per_call(root: nn.Module, graph: Graph) -> None:
    """Give every further call of an activation without parameters its own module, named NAME_1, NAME_2, ...

    With parameters (PReLU) the calls share more than a name, and stay one module.
    """
    # Kept with duplicates: a module reachable by two names may be called by either.
    modules = dict(submodules(root, again=True))
    taken = set(modules)
    called: set[str] = set()
    for node in graph.nodes:
        path = str(node.target)
        if node.op != "call_module" or type(part := modules[path]) not in operations.ACTIVATIONS:
            continue
        # PReLU stays one module: a copy would turn one learned slope into two.
        if path in called and not list(part.parameters()):
            node.target = free_name(path, root, taken)
            owner, _, name = str(node.target).rpartition(".")
            root.get_submodule(owner).add_module(name, copy.deepcopy(part))
        called.add(path)


def free_name(name: str, root: nn.Module, taken: set[str]) -> str:
    """A name like this one that no submodule and no attribute has; it is taken from now on."""
    owner = root.get_submodule(name.rpartition(".")[0])
    names = (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2)))
    free = next(c for c in names if c not in taken and not hasattr(owner, c.rpartition(".")[2]))
    taken.add(free)
    return free


def _module_for(node: Node) -> nn.Module | None:
    if node.op not in ("call_function", "call_method"):
        return None
    in_place = node.target in _IN_PLACE
    target = _IN_PLACE.get(node.target, node.target)
    if target in _DROPOUTS:
        settings = _settings(node, ("p", "training", "inplace"))
        # training=True is written by hand for dropout at inference: that is no module's behavior.
        return None if settings is None or settings.get("training", True) else _DROPOUTS[target](settings.get("p", 0.5))
    if target not in ACTIVATIONS:
        return None
    kind, names = ACTIVATIONS[target]
    settings = _settings(node, names)
    # With training=True an RReLU is random even in eval mode, which no module of torch.nn is.
    if settings is None or settings.pop("training", False):
        return None
    return kind(**({**settings, "inplace": True} if in_place else settings))


def _settings(node: Node, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Arguments behind the input by name; None where one of them is computed in the graph or not known."""
    rest = node.args[1:] if node.args else ()
    if len(rest) > len(names):
        # The names are torch's own; beyond them the signature is another version's, and guessing would change the model.
        return None
    settings = dict(zip(names, rest, strict=False)) | {k: v for k, v in node.kwargs.items() if k != "input"}
    return None if any(isinstance(v, Node) for v in settings.values()) or not set(settings) <= set(names) else settings
