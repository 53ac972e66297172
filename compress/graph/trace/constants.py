"""What a forward makes of sizes and numbers alone becomes a constant: no graph needs to make it anew, and every file can hold it.

`torch.arange(n, device=x.device)`, `torch.zeros(x.shape[1:])` and what is computed from these are buffers of the traced model,
named constant, constant_1, ... Numbers that parameters tell by their shape (`weight.shape[-1]`) become plain numbers. One value
for every sample (`x.new_zeros(len(x), 8)`) is such a buffer, repeated; what depends on the batch otherwise stays as it is, and so
does what draws random numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from compress.graph.trace.control_flow import Branches
from compress.graph.trace.lines import stands_for
from compress.graph.trace.values import tensors_in

MAX_VALUES = 2**26
"""Of one constant; a larger one is not made for a stranger's file."""

_MADE = "arange zeros ones full linspace logspace eye empty tensor tril_indices triu_indices range"
MAKERS: frozenset[Callable[..., Any]] = frozenset(getattr(torch, name) for name in _MADE.split())
_FILLED: dict[Any, int | None] = {"new_zeros": 0, "new_ones": 1, "new_full": None, torch.zeros_like: 0, torch.ones_like: 1}
"""None: the second argument says it."""
_ONE_VALUE: dict[Any, int | None] = {
    "new_zeros": 0,
    "new_ones": 1,
    "new_full": None,
    torch.zeros: 0,
    torch.ones: 1,
    torch.full: None,
}
MAX_REPEATED = 2**19
"""Values of a constant that is repeated for each sample."""
BEGINNINGS: frozenset[Any] = MAKERS | _FILLED.keys()
_SIZES = frozenset({"size", "dim", "numel", "item", "__len__"})
_RANDOM = ("rand", "bernoulli", "multinomial", "dropout", "poisson", "gumbel")


class Unknown(Exception):
    """The value depends on more than sizes."""


class Constants:
    """Values of nodes that depend on no input's entries, found when they are asked for."""

    def __init__(self, root: nn.Module, graph: Graph, inputs: tuple[Tensor, ...]):
        self.root, self.graph, self.branches = root, graph, Branches(root, inputs)
        self._values: dict[Node, Any] = {}
        self._unknown: set[Node] = set()
        self._numbers: dict[Node, bool] = {}
        self.of_parameters: set[Node] = set()
        """Nodes whose entries depend on a parameter or a buffer."""

    def value(self, node: Node) -> Any:
        """The value of a node.

        Raises:
            Unknown: it depends on entries of an input, on the batch, or on chance.
        """
        if node in self._unknown:
            raise Unknown
        if node not in self._values:
            try:
                self._values[node] = self._found(node)
            except Exception as error:  # whatever the operation raises: then it is no constant
                self._unknown.add(node)
                raise Unknown from error
        return self._values[node]

    def is_known(self, node: Node) -> bool:
        """Whether `value` has an answer."""
        try:
            self.value(node)
        except Unknown:
            return False
        return True

    def _found(self, node: Node) -> Any:
        target: Any = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if node.op == "get_attr":
            self.of_parameters.add(node)
            owner, _, last = target.rpartition(".")
            return getattr(self.root.get_submodule(owner), last)
        if node.op not in ("call_function", "call_method") or target is operator.setitem or _draws(name):
            raise Unknown
        if name.endswith("_") and not name.endswith("__"):
            raise Unknown  # it changes what others look at
        if target is getattr and node.args[1] == "device":
            return torch.device("cpu")
        if node.target in _FILLED:
            return self._filled(node)
        like = node.args[1] if name in ("type_as", "to") and len(node.args) == 2 else None
        if isinstance(like, Node) and not self.is_known(like):
            return self._of_type(cast(Node, node.args[0]), like)
        if any(not self.is_known(source) for source in node.all_input_nodes):
            return self._of_sizes(node)
        args, kwargs = map_arg(node.args, self.value), map_arg(node.kwargs, self.value)
        if target in MAKERS:
            self._refuse_large(node, args, kwargs)
        with torch.no_grad():
            value = target(*args, **kwargs) if callable(target) else getattr(args[0], target)(*args[1:], **kwargs)
        shape_only = not tensors_in(value)
        if not shape_only and any(source in self.of_parameters for source in node.all_input_nodes):
            self.of_parameters.add(node)
        return value

    def _of_sizes(self, node: Node) -> Any:
        """A number, or numbers, that do not change with the batch."""
        if not self._is_number(node):  # asked first: to find a value, all that leads to it is run
            raise Unknown
        one, other = self.branches.values(node)
        if isinstance(one, torch.Size | tuple) and isinstance(other, tuple) and one == other and not tensors_in(one):
            return cast(Any, one)
        if isinstance(one, bool | int | float | torch.dtype) and one == other:
            return one
        raise Unknown

    def _is_number(self, node: Node) -> bool:
        """Whether a node gives numbers, such as a shape, and no tensor."""
        if node not in self._numbers:
            of_tensor = node.target is getattr or (node.op == "call_method" and node.target in _SIZES)
            computed = node.op == "call_function" and not of_tensor and bool(node.all_input_nodes)
            self._numbers[node] = of_tensor or (computed and all(self._is_number(source) for source in node.all_input_nodes))
        return self._numbers[node]

    def _of_type(self, node: Node, like: Node) -> Tensor:
        """`constant.type_as(x)`: of x only the type is looked at."""
        one, _ = self.branches.values(like)
        if not isinstance(one, Tensor):
            raise Unknown
        return self.value(node).to(one.dtype)

    def _filled(self, node: Node) -> Tensor:
        """`x.new_full(...)`, `torch.zeros_like(x)`: one value in every entry, whatever those of x are."""
        one, other = self.branches.values(cast(Node, node.args[0]))
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            raise Unknown
        value, rest = _FILLED[node.target], cast(tuple[Any, ...], map_arg(node.args[1:], self.value))
        if value is None:
            value = node.kwargs.get("fill_value", rest[-1])
            value = float(cast(Any, self.value(value) if isinstance(value, Node) else value))
        if node.op == "call_function":  # of the shape of x itself
            sizes, then = one.shape, other.shape
        else:
            sizes = then = torch.Size(rest[0] if isinstance(rest[0], tuple | list) else rest)
        if sizes != then or sizes.numel() > MAX_VALUES:
            raise Unknown
        return torch.full(sizes, value, dtype=one.dtype)

    def of_sample(self, node: Node) -> tuple[Tensor, int] | None:
        """What a maker of one value gives for a single sample, and the axis of samples; None where there is no such axis."""
        if node.target not in _ONE_VALUE or node.op not in ("call_function", "call_method"):
            return None
        one, other = self.branches.values(node)
        value = _ONE_VALUE[node.target]
        if value is None:  # the second argument says it, or the third of a method
            value = node.kwargs.get("fill_value", node.args[-1])
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or not isinstance(value, bool | int | float):
            return None
        samples = len(self.branches.inputs[0])
        longer = [d for d, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b]
        if len(longer) != 1 or (one.shape[longer[0]], other.shape[longer[0]]) != (samples, samples + 1):
            return None
        sizes = [1 if d == longer[0] else n for d, n in enumerate(one.shape)]
        return (torch.full(sizes, value, dtype=one.dtype), longer[0]) if prod(sizes) <= MAX_REPEATED else None

    def _refuse_large(self, node: Node, args: Any, kwargs: Any) -> None:
        target: Any = node.target
        if target(*args, **{**kwargs, "device": "meta"}).numel() > MAX_VALUES:
            raise Unknown


def fold(root: nn.Module, graph: Graph, constants: Constants) -> None:
    """Put constants into a graph: makers of tensors and what follows from them alone, and numbers told by shapes of parameters.

    Args:
        root: gets the buffers.
        graph: is changed.
        constants: of this graph.
    """
    numbers = {n: constants.value(n) for n in graph.nodes if _tells_number(n) and _of_no_input(n) and constants.is_known(n)}
    numbers = {n: v for n, v in numbers.items() if isinstance(v, bool | int | float | torch.Size | tuple)}
    for node in graph.nodes:
        if any(source in numbers for source in node.all_input_nodes) and node not in numbers:
            replace = _replaced(numbers)
            node.args, node.kwargs = map_arg(node.args, replace), map_arg(node.kwargs, replace)
    made: set[Node] = set()
    for node in list(graph.nodes):
        begins = node.op in ("call_function", "call_method") and (node.target in BEGINNINGS or is_foreign(node))
        follows = bool(node.all_input_nodes) and any(source in made for source in node.all_input_nodes)
        if (begins or follows) and constants.is_known(node) and node not in constants.of_parameters:
            made.add(node)
    for node in made:
        value = constants.value(node)
        if isinstance(value, Tensor) and any(user not in made for user in node.users):
            _hold(root, graph, node, value)
    found = [(node, one) for node in graph.nodes if node.users and (one := constants.of_sample(node)) is not None]
    for node, (value, axis) in found:
        _repeat(root, graph, node, value, axis)
    for node in reversed(list(graph.nodes)):
        if not node.users and (node in made or node in numbers or node in dict(found)):
            graph.erase_node(node)


def is_foreign(node: Node) -> bool:
    """Whether a node calls a function of the model's own code, which `torch.fx.wrap` has kept whole."""
    module = getattr(node.target, "__module__", None) or "builtins"
    return node.op == "call_function" and module.partition(".")[0] not in (
        "torch",
        "torchvision",
        "builtins",
        "math",
        "_operator",
    )


def _draws(name: str) -> bool:
    """Whether an operation of this name depends on chance; `normal` does, and `normalize` does not."""
    return name == "normal" or any(word in name for word in _RANDOM)


def _replaced(numbers: dict[Node, Any]) -> Callable[[Node], Any]:
    return lambda n: (tuple(numbers[n]) if isinstance(numbers[n], tuple) else numbers[n]) if n in numbers else n


def _tells_number(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZES
    shape = node.target is getattr and node.args[1] in ("shape", "ndim")
    return shape or node.target in _ARITHMETIC


_ARITHMETIC = frozenset({operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv})
_ARITHMETIC |= {operator.mod, operator.neg}


def _of_no_input(node: Node) -> bool:
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        found = waiting.pop()
        if found.op in ("placeholder", "call_module"):
            return False
        if found not in seen:
            seen.add(found)
            waiting.extend(found.all_input_nodes)
    return True


def _repeat(root: nn.Module, graph: Graph, node: Node, value: Tensor, axis: int) -> None:
    """A constant for each sample, as the state is that a recurrence begins with: memory of its own, which may be written to."""
    inputs = next(iter(graph.find_nodes(op="placeholder")))
    held = _hold(root, graph, node, value)
    with graph.inserting_before(node):
        count = graph.call_method("size", (inputs, 0))
        many = graph.call_method("expand", (held, *(count if d == axis else -1 for d in range(value.ndim))))
        own = graph.call_method("clone", (many,))
    for made in (count, many, own):
        stands_for(made, node)
    own.meta = dict(node.meta)
    held.replace_all_uses_with(own, lambda user: user is not many)


def _hold(root: nn.Module, graph: Graph, node: Node, value: Tensor) -> Node:
    name = next(n for n in (f"constant_{i}" if i else "constant" for i in range(10**6)) if not hasattr(root, n))
    root.register_buffer(name, value.detach().clone(), persistent=False)
    with graph.inserting_before(node):
        held = graph.create_node("get_attr", name)
    held.meta = dict(node.meta)
    node.replace_all_uses_with(held)
    return held
