"""A stored graph becomes a model again. Nothing in the file is trusted.

Operations, layers and attributes come from the tables of `vocabulary`. Every string that ends in the code which torch.fx
generates (names of nodes, layers, tensors and keyword arguments) must be an identifier. Layers are built without memory first,
so that sizes are checked before anything is allocated. These limits are about code and memory at load; how long a stranger's
model computes is not limited.
"""

# pyright: reportPrivateUsage=false
# A module's own tensors, without those of its children, are only in its _parameters and _buffers.

from __future__ import annotations

import json
import keyword
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from compress.checkpoint.allowlist import ATTRIBUTES, FUNCTIONS, LAYER_NAMES, METHODS, WRAPPED, build
from compress.checkpoint.json_values import decode
from compress.errors import BadInput
from compress.graph.names import identifier, parts_of
from compress.user import files

FORMAT = "compress.graph"
SCHEMA = 1
CONTAINER = "Module"
MAX_BYTES = 64 * 2**20
MAX_NODES = 200_000
MAX_ELEMENTS = 2**34
_AXES = 64  # torch has no more


def all_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under every name that it has."""
    return list(cast(Iterable[tuple[str, nn.Module]], module.named_modules(remove_duplicate=False)))


def stored_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """(name, tensor, persistent) of every parameter and buffer, second names included, in the order of the modules."""
    for path, owner in all_modules(module):
        prefix = path + "." if path else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter, True
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                yield prefix + name, buffer, name not in owner._non_persistent_buffers_set


_NONSENSE = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, RecursionError, OverflowError),
    *(SyntaxError, NameError),  # of code that torch.fx writes of calls which no program makes, such as `5 += 1`
)


def from_json(text: str, weights: Mapping[str, Tensor] | None = None) -> GraphModule:
    """The model that `to_json` wrote, in eval mode, trainable; weights are zero unless given.

    Args:
        text: what `to_json` gave.
        weights: every tensor of the model by its (first) name; their memory is used, not copied.

    Raises:
        BadInput: not such a document, an operation, layer or name that is not allowed, or weights that do not fit it.
    """
    document = _parse(text)
    try:
        root = _modules(document["layers"])
        _place_tensors(root, document["tensors"], weights)
        graph = _graph(document["nodes"], root)
        name = str(document.get("name", ""))
        module = GraphModule(root, graph, name if name.isidentifier() and not keyword.iskeyword(name) else "GraphModule")
    # What nonsense in the file can make of the lookups above; a bug of ours of another kind still shows as one.
    except _NONSENSE as error:
        raise _refused(f"{type(error).__name__}: {str(error)[:200]}") from error
    # GraphModule copies only what its nodes name, in their order; unused layers and the order of names must survive as well.
    for own in ("_modules", "_parameters", "_buffers"):
        setattr(module, own, getattr(root, own))
    module._non_persistent_buffers_set = root._non_persistent_buffers_set
    # Opaque submodules are of the user's class and cannot be stored.
    module.meta["opaque"] = {}
    return module.eval()


def expected_tensors(text: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor that the weights file must hold."""
    entries = cast(Mapping[str, Any], _parse(text)["tensors"])
    try:
        return {name: (str(e["dtype"]), _shape(e["shape"])) for name, e in entries.items() if "same_as" not in e}
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(f"{type(error).__name__}: {error}") from error


def _shape(sizes: Any) -> tuple[int, ...]:
    # Messages quote it.
    if len(sizes) > _AXES or not all(type(n) is int and 0 <= n < 2**63 for n in sizes):
        raise ValueError("a tensor's shape is none")
    return tuple(sizes)


def _refused(why: str) -> BadInput:
    found = f"The stored graph is not one that this program wrote ({why})."
    return BadInput(f"{found} Save the model again, or take graph.json from a source you trust.")


def _parse(text: str) -> dict[str, Any]:
    # Before it is parsed: JSON takes many times the memory of its text.
    if len(text) > MAX_BYTES:
        raise _refused(f"{len(text)} characters, at most {MAX_BYTES} are read")
    try:
        files.few_parts(text)
        found: object = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _refused(f"not JSON: {error}") from error
    document = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    if document.get("format") != FORMAT:
        raise _refused(f'needed is "format": "{FORMAT}"')
    if document.get("schema") != SCHEMA:
        raise BadInput(
            f"The stored graph is of schema {str(document.get('schema'))[:20]}, known is {SCHEMA}. It may be of a newer version: "
            "upgrade."
        )
    kinds = {"layers": dict, "tensors": dict, "nodes": list}
    for part, kind in kinds.items():
        if not isinstance(document.get(part), kind):
            raise _refused(f"'{part}' is missing or not a {kind.__name__}")
        if len(document[part]) > MAX_NODES:
            raise _refused(f"{len(document[part])} {part}, at most {MAX_NODES} are read")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    # json keeps the last of two equal names, which another reader may not.
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _modules(layers: Mapping[str, Any]) -> nn.Module:
    """All layers under their names, on the meta device: nothing is allocated yet."""
    root = nn.Module()
    for name, entry in layers.items():
        if entry.get("class") == CONTAINER:
            _container(root, parts_of(name))
            continue
        if "same_as" in entry:
            # One step only: a chain or a circle of references has no layer at its end.
            if "class" not in layers[entry["same_as"]]:
                raise ValueError(f"layer {name!r} stands for {entry['same_as']!r}, which is no layer of its own")
            layer = root.get_submodule(entry["same_as"])
        else:
            arguments = {identifier(key): decode(value, {}) for key, value in entry["args"].items()}
            layer = build(entry["class"], arguments)
        *parents, last = parts_of(name)
        _container(root, parents).add_module(last, layer)
    return root


def _container(root: nn.Module, parents: list[str]) -> nn.Module:
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = cast(nn.Module, root._modules[part])
        # Only plain containers may have children: a layer's own modules come from its constructor.
        if type(root) is not nn.Module:
            raise ValueError(f"{'.'.join(parents)!r} lies inside a layer")
    return root


def _place_tensors(root: nn.Module, entries: Mapping[str, Any], weights: Mapping[str, Tensor] | None) -> None:
    """Give every parameter and buffer its memory: the weights, or zeros."""
    shapes = [e["shape"] for e in entries.values() if "same_as" not in e]
    elements = sum(math.prod(shape) for shape in shapes)
    # type and not isinstance: true is an int in Python.
    if elements > MAX_ELEMENTS or any(type(n) is not int or n < 0 for shape in shapes for n in shape):
        raise ValueError(f"{elements} elements, at most {MAX_ELEMENTS} are read")
    own = {name: tensor for name, tensor, _ in stored_tensors(root)}
    # A layer's tensor that is not listed would stay on the meta device.
    if missing := set(own) - set(entries):
        raise ValueError(f"tensor {min(missing)!r} of a layer is not listed")
    placed: dict[str, Tensor] = {}
    for name, entry in entries.items():
        *parents, last = parts_of(name)
        if "same_as" in entry:
            tensor = placed[entry["same_as"]]
        else:
            # Kept under its first name, so that tied tensors are one again.
            tensor = placed[name] = _tensor(name, entry, weights)
        if name in own and own[name].shape != tensor.shape:
            raise ValueError(f"tensor {name!r} is listed as {list(tensor.shape)}, the layer has {list(own[name].shape)}")
        owner = root.get_submodule(".".join(parents)) if name in own else _container(root, parents)
        _set(owner, last, tensor, name not in own, bool(entry.get("persistent", True)))


def _tensor(name: str, entry: Mapping[str, Any], weights: Mapping[str, Tensor] | None) -> Tensor:
    # getattr of torch gives anything; the check below lets types only pass.
    dtype: object = getattr(torch, identifier(entry["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"tensor {name!r} is of unknown type {entry['dtype']!r}")
    shape = tuple(entry["shape"])
    if weights is None:
        tensor = torch.zeros(shape, dtype=dtype)
    elif name not in weights or tuple(weights[name].shape) != shape or weights[name].dtype != dtype:
        found = f"{list(weights[name].shape)} {weights[name].dtype}" if name in weights else "nothing"
        raise ValueError(f"the weights hold {found} for {name!r}, the graph needs {list(shape)} {dtype}")
    else:
        tensor = weights[name]
    if entry["kind"] == "parameter":
        # Whole numbers cannot have a gradient.
        return nn.Parameter(tensor, requires_grad=dtype.is_floating_point and not entry.get("frozen", False))
    return tensor


def _set(owner: nn.Module, name: str, tensor: Tensor, new: bool, persistent: bool) -> None:
    is_parameter = isinstance(tensor, nn.Parameter)
    if not new and is_parameter != (name in owner._parameters):
        raise ValueError(f"{name!r} is a {'parameter' if is_parameter else 'buffer'} in the list, not in its layer")
    if new and is_parameter:
        owner.register_parameter(name, tensor)
    elif new:
        owner.register_buffer(name, tensor, persistent=persistent)
    else:
        setattr(owner, name, tensor)  # recurrent layers keep a second list of their weights in step through this


def _graph(entries: list[Any], root: nn.Module) -> Graph:
    graph = Graph()
    nodes: dict[str, Node] = {}
    tensors = {name for name, _, _ in stored_tensors(root)}
    for entry in entries:
        name, op = identifier(entry["name"]), entry["op"]
        if name in nodes:
            raise ValueError(f"two nodes are called {name!r}")
        args = tuple(decode(value, nodes) for value in entry.get("args", ()))
        kwargs = {identifier(key): decode(value, nodes) for key, value in entry.get("kwargs", {}).items()}
        if op not in _TARGETS:
            raise ValueError(f"node {name!r} is of unknown kind {op!r}")
        target = _TARGETS[op](entry["target"], root, tensors, args)
        node = graph.create_node(op, target, args, kwargs, name=name)
        # torch.fx renames what would clash in generated code; then other references would miss it.
        if node.name != name:
            raise ValueError(f"{name!r} cannot be the name of a node")
        # Python would compute it while the model is traced, and 10**9 to the power of 10**9 takes for ever.
        if op == "call_function" and not node.all_input_nodes:
            raise ValueError(f"node {name!r} computes on nothing of the model")
        if entry["target"] in WRAPPED and op == "call_function":
            node.meta["is_wrapped"] = True
        if "shape" in entry:
            node.meta["shape"] = tuple(int(n) for n in entry["shape"])
        nodes[name] = node
    if not entries or entries[-1]["op"] != "output" or sum(e["op"] == "output" for e in entries) != 1:
        raise ValueError("the last node, and no other, must be the output")
    # Every reference checked by torch.fx itself before code is generated.
    graph.lint()
    return graph


def _input_target(target: Any, root: nn.Module, tensors: set[str], args: tuple[Any, ...]) -> str:
    return identifier(target)


def _output_target(target: Any, root: nn.Module, tensors: set[str], args: tuple[Any, ...]) -> str:
    if target != "output" or len(args) != 1:
        raise ValueError("the output node is not well formed")
    return "output"


def _module_target(target: Any, root: nn.Module, tensors: set[str], args: tuple[Any, ...]) -> str:
    if type(root.get_submodule(".".join(parts_of(target)))) not in LAYER_NAMES:
        raise ValueError(f"{target!r} is no layer")
    return target


def _tensor_target(target: Any, root: nn.Module, tensors: set[str], args: tuple[Any, ...]) -> str:
    if target not in tensors:
        raise ValueError(f"{target!r} is no tensor of the model")
    return target


def _method_target(target: Any, root: nn.Module, tensors: set[str], args: tuple[Any, ...]) -> str:
    if target not in METHODS or not args or not isinstance(args[0], Node):
        raise ValueError(f"tensor method {target!r} is not known")
    return target


def _function_target(target: Any, root: nn.Module, tensors: set[str], args: tuple[Any, ...]) -> Callable[..., Any]:
    if target not in FUNCTIONS:
        raise ValueError(f"operation {target!r} is not known")
    if target == "getattr" and (len(args) != 2 or args[1] not in ATTRIBUTES or not isinstance(args[0], Node)):
        raise ValueError(f"attribute {args[1:2]!r} is not one that may be read")
    return FUNCTIONS[target]


_TARGETS: dict[str, Callable[[Any, nn.Module, set[str], tuple[Any, ...]], Any]] = {
    "placeholder": _input_target,
    "get_attr": _tensor_target,
    "call_module": _module_target,
    "call_method": _method_target,
    "call_function": _function_target,
    "output": _output_target,
}
