"""A GraphModule of a graph and the layers that it names, without the work that torch.fx does ahead of need.

The containers of the layers are made anew, as torch.fx does; the code of the forward is written when somebody asks for it, by
calling the module or by looking at it.
"""

# pyright: reportPrivateUsage=false
# What torch.fx sets through properties, each of which would have the code written.

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule


def graph_module(root: nn.Module, graph: Graph, name: str) -> GraphModule:
    """The module of that class name, whose layers and tensors are those of `root`; in eval mode if they are."""
    made = GraphModule(nn.Module(), Graph(), name)
    made.__dict__["training"] = False
    places: dict[str, tuple[nn.Module, nn.Module]] = {"": (root, made)}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            _place(places, str(node.target))
    made._graph = graph
    graph.owning_module = made
    for attribute in _LATER:  # GraphModule gives every instance a class of its own
        setattr(type(made), attribute, _WhenAsked(made, attribute))
    del made.__dict__["_code"]
    return made


_LATER = ("forward", "_code", "__reduce__")
"""What needs the code: that which is called, that which is shown, and what a pickle holds."""


class _WhenAsked:
    """Stands in the class of a module until something there is asked for that needs the code."""

    def __init__(self, of: GraphModule, attribute: str):
        self.of, self.attribute = weakref.ref(of), attribute

    def __get__(self, given: GraphModule | None, kind: Any) -> Any:
        module = self.of() if given is None else given  # of the class itself, too, where tracers look
        if module is None:
            raise AttributeError(self.attribute)
        for attribute in _LATER:
            if isinstance(vars(kind).get(attribute), _WhenAsked):
                delattr(kind, attribute)
        module.recompile()
        return getattr(kind if given is None else module, self.attribute)


def _place(places: dict[str, tuple[nn.Module, nn.Module]], path: str) -> None:
    """Put a layer or a tensor where it is in the root; the same object."""
    owner, _, name = path.rpartition(".")
    source, target = places[owner] if owner in places else _container(places, owner)
    if source is target:  # inside of a layer that is there as a whole
        return
    value = getattr(source, name)
    if isinstance(value, nn.Module):
        target._modules[name] = value
        places[path] = (value, value)
    elif isinstance(value, nn.Parameter):
        target._parameters[name] = value
    elif isinstance(value, Tensor):
        # A tensor that is no buffer there is made in the forward, or an attribute: no part of the state_dict.
        kept = name in source._buffers and name not in source._non_persistent_buffers_set
        target.register_buffer(name, value, persistent=kept)
    else:
        setattr(target, name, value)


def _container(places: dict[str, tuple[nn.Module, nn.Module]], path: str) -> tuple[nn.Module, nn.Module]:
    owner, _, name = path.rpartition(".")
    source, target = places[owner] if owner in places else _container(places, owner)
    inner: Any = getattr(source, name)
    if source is target:
        places[path] = (inner, inner)
    else:
        made = nn.Module()
        made.__dict__["training"] = False
        target._modules[name] = made
        places[path] = (inner, made)
    return places[path]
