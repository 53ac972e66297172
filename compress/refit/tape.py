"""A model run from one place to the next over all calibration images, so that layers can change before what follows is computed.

A tape holds, for each node that somebody will still read behind its place, the value for every part of the images. `order` is a
topological order of the graph in which the lighter operand of a sum is computed before the heavier one: the heavier layer can
then make up for the error of the lighter. What reaches the later calls of a layer is computed before its first, as far as it does
not need that.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from compress.data.room import Held
from compress.graph.liveness import alive_bytes
from compress.refit.inputs import Images
from compress.statistics.layers import LAYERS, columns
from compress.user import memory

_ADDS = frozenset({"add", "iadd", "add_"})
# Stored values must survive the operations that read them.
# Functions that work in place, and what they compute without.
_PURE: dict[Any, Any] = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
_PURE_METHODS = {"add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div", "clamp_": "clamp", "masked_fill_": "masked_fill"}
_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Tape:
    """Values of one model at one place of the order, held for all images.

    `reach` goes on from there for one part of the images, `hold` makes where it went to the new place. What lies between two
    places is computed for one part after the other, and only what is still read behind the second one is ever held.

    Attributes:
        nodes: by name.
        at: place of each node in the order.
    """

    def __init__(self, module: GraphModule, names: Sequence[str], images: Images):
        self.module, self.images, self.names = module, images, names
        self.nodes = {node.name: node for node in module.graph.nodes}
        self.at = {name: place for place, name in enumerate(names)}
        # The place behind which nobody reads a value any more.
        self.last = {name: max((self.at[n.name] for n in self.nodes[name].users), default=-1) for name in names}
        self.inputs = [node.name for node in module.graph.nodes if node.op == "placeholder"]
        self.done = 0
        self.held: dict[str, Held] = {}
        self._new: dict[str, Held] = {}
        self._moves = True

    def reach(self, part: int, until: int) -> dict[str, Any]:
        """Values of one part that are read at the place before `until` or later, with all nodes in front of `until` computed."""
        values = {name: held[part] for name, held in self.held.items()}
        free = dict(zip(self.inputs, self.images[part], strict=True))
        for name, node in self.nodes.items():
            if self.last[name] >= self.done and (name in free or (node.op == "get_attr" and self.at[name] < self.done)):
                values[name] = free[name] if name in free else evaluate(self.module, node, {})
        return self.further(values, self.done, until)

    def further(self, values: dict[str, Any], since: int, until: int) -> dict[str, Any]:
        """The same from what `reach` gave for the place `since`."""
        with torch.no_grad():
            for place in range(since, until):
                node = self.nodes[self.names[place]]
                if node.op not in ("placeholder", "output"):
                    values[node.name] = evaluate(self.module, node, values)
                if place < until - 1:
                    values = {name: value for name, value in values.items() if self.last[name] > place}
        return values

    def hold(self, part: int, values: dict[str, Any], until: int) -> None:
        """Hold of one part what is read at `until` or later; behind the last part this is the new place.

        Where that is more than there is room for, the old place stays, and the way from there is gone again each time: early
        layers give the most, and are the cheapest to compute.
        """
        # Images and parameters are there in any case.
        there = ("placeholder", "get_attr")
        new = {n: v for n, v in values.items() if self.last[n] >= until and n not in self.held and self.nodes[n].op not in there}
        if part == 0:
            each = sum(leaf.nbytes for leaf in tree_leaves(new) if isinstance(leaf, Tensor)) / self.images.parts[0].images
            self._moves = self.images.room.keeps(each * sum(one.images for one in self.images.parts))
        if not self._moves:
            return
        for name, value in new.items():
            self._new.setdefault(name, Held(self.images.room)).append(value)
        if part < len(self.images) - 1:
            return
        for name in [name for name in self.held if self.last[name] < until]:
            self.held.pop(name).drop()
        self.held |= self._new
        if any(part.images < part.whole for part in self.images.parts):
            memory.trim()
        self.done, self._new = until, {}

    def ahead(self, values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Values that hold those of some nodes; what is not there yet is computed."""
        missing: set[str] = set()
        waiting = [name for name in names if name not in values]
        while waiting:
            name = waiting.pop()
            missing.add(name)
            waiting += [n.name for n in self.nodes[name].all_input_nodes if n.name not in values and n.name not in missing]
        with torch.no_grad():
            return run(self.module, [node for node in self.module.graph.nodes if node.name in missing], values)


def evaluate(module: nn.Module, node: Node, values: dict[str, Any]) -> Any:
    """The value of one node, given those of the nodes that it reads."""
    args: Any = map_arg(node.args, lambda n: values[n.name])
    kwargs: Any = map_arg(node.kwargs, lambda n: values[n.name])
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], _PURE_METHODS.get(str(node.target), str(node.target)))(*args[1:], **kwargs)
    if node.op == "get_attr":
        owner, _, last = str(node.target).rpartition(".")
        return getattr(module.get_submodule(owner), last)
    if node.op == "output":
        return args[0]
    assert callable(node.target), "a function node holds its function"
    return _PURE.get(node.target, node.target)(*args, **kwargs)


def run(module: nn.Module, nodes: Iterable[Node], values: dict[str, Any]) -> dict[str, Any]:
    """Compute some nodes in order, on top of the values given; the result holds all of them."""
    values = dict(values)
    for node in nodes:
        if node.name not in values:
            values[node.name] = evaluate(module, node, values)
    return values


def transparent(module: nn.Module, node: Node) -> bool:
    """Whether a node hands its input on unchanged in eval mode."""
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), _TRANSPARENT)


def sum_behind(module: GraphModule, node: Node) -> tuple[Node, Node] | None:
    """The sum that alone reads a layer's output, and the sum's other operand; None where there is none of equal shape."""
    while True:
        if len(node.users) != 1:
            return None
        user = next(iter(node.users))
        if transparent(module, user):
            node = user
            continue
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        operands = [a for a in user.args if isinstance(a, Node)]
        if name not in _ADDS or user.op == "call_module" or len(operands) != 2 or operands[0] is operands[1] or user.kwargs:
            return None
        other = operands[1] if operands[0] is node else operands[0]
        return (user, other) if node.meta.get("shape") == other.meta.get("shape") else None


def order(module: GraphModule) -> list[str]:
    """Names of all nodes, sources first, in the order that the module's docstring gives."""
    position = {node.name: i for i, node in enumerate(module.graph.nodes)}
    before: dict[str, set[str]] = {node.name: {n.name for n in node.all_input_nodes} for node in module.graph.nodes}
    calls: dict[str, list[Node]] = {}
    for node in module.graph.nodes:
        if _weight(module, node):
            calls.setdefault(str(node.target), []).append(node)
    for first, *later in calls.values():
        inputs = {source for call in later for source in call.all_input_nodes}
        before[first.name] |= {source.name for source in inputs if not _reaches(first, source)}
        for call in later:  # whose inputs may be there while the first one waits for those of others
            before[call.name].add(first.name)
    # A layer in front of a sum waits for the other operand where that is lighter (module docstring).
    for node in module.graph.nodes:
        found = sum_behind(module, node) if _weight(module, node) else None
        # Waiting for what itself waits for this layer would never end.
        if found is not None and _lighter(module, found[1], node) and not _reaches(node, found[1]):
            before[node.name].add(found[1].name)
    done: list[str] = []
    waiting = sorted(before, key=lambda name: position[name])
    ready: set[str] = set()
    while waiting:
        # Nothing is ready only where calls of a shared layer wait for each other: then graph order.
        name = next((n for n in waiting if before[n] <= ready), waiting[0])
        waiting.remove(name)
        ready.add(name)
        done.append(name)
    return done


def is_layer(module: GraphModule, node: Node) -> bool:
    """Whether a node is a layer with weights, so that computing it twice would cost time."""
    return _weight(module, node) > 0


def _weight(module: GraphModule, node: Node) -> int:
    """Weights per output of the layer at a node, 0 where there is none."""
    part: Any = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return columns(part) if isinstance(part, LAYERS) else 0


def _lighter(module: GraphModule, operand: Node, node: Node) -> bool:
    """Whether the last layer on the way to `operand` is lighter than that of `node`, or there is none."""
    # Norms and activations weigh nothing; the layer in front of them counts.
    while operand.op == "call_module" and not _weight(module, operand) and operand.all_input_nodes:
        operand = operand.all_input_nodes[0]
    return _weight(module, operand) < _weight(module, node)


def _reaches(source: Node, target: Node) -> bool:
    seen, stack = {target}, [target]
    while stack:
        node = stack.pop()
        if node is source:
            return True
        new = [n for n in node.all_input_nodes if n not in seen]
        seen.update(new)
        stack.extend(new)
    return False


def needed_bytes(module: GraphModule) -> int:
    """Most bytes per sample that are held at once where the nodes are computed in `order`."""
    nodes = {n.name: n for n in module.graph.nodes}
    return alive_bytes(module.graph, [nodes[name] for name in order(module)])
