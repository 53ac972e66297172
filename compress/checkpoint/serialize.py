"""A traced model as JSON, without pickle and without the user's class; `deserialize` reads it back.

    {"format": "compress.graph", "schema": 1, "name": "ResNet",
     "layers":  {"conv1": {"class": "Conv2d", "args": {"in_channels": 3, "out_channels": 64, ...}}, ...},
     "tensors": {"conv1.weight": {"kind": "parameter", "dtype": "float32", "shape": [64, 3, 7, 7]}, ...},
     "nodes":   [{"op": "placeholder", "name": "x", "target": "x", "shape": [1, 3, 224, 224]},
                 {"op": "call_module", "name": "conv1", "target": "conv1", "args": [{"node": "x"}]}, ...]}

`tensors` lists every parameter and buffer, those of the layers included, so the graph tells what the weights file must hold.
A second name for one layer or tensor is written as {"same_as": first name}. What the tables of `vocabulary` do not know is
refused here, when the model is saved, and not when somebody needs it back.
"""

# pyright: reportPrivateUsage=false
# A module's own tensors, without those of its children, are only in its _parameters and _buffers.

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from compress.checkpoint.allowlist import ATTRIBUTES, FUNCTION_NAMES, LAYER_NAMES, LAYERS, METHODS, build, recover
from compress.checkpoint.deserialize import CONTAINER, FORMAT, SCHEMA, all_modules, from_json, stored_tensors
from compress.checkpoint.json_values import InvalidValue, encode
from compress.errors import UnsupportedModel
from compress.graph.names import parts_of

__all__ = ["from_json", "to_json"]


def to_json(module: GraphModule, inputs: Sequence[Tensor] = ()) -> str:
    """The model without its weights as JSON; the same model gives the same text.

    Args:
        module: a traced model.
        inputs: one example per model input, whose shapes are remembered; without them, those that the trace noted.

    Raises:
        UnsupportedModel: a layer or an operation that a class-free checkpoint does not know; names it and the reason.
    """
    if type(module.graph._codegen) is not CodeGen:
        raise UnsupportedModel("The model was traced with inputs that are not plain tensors; needed is one tensor per input.")
    try:
        for name in (*(n for n, _ in all_modules(module)), *(n for n, _, _ in stored_tensors(module))):
            parts_of(name or "model")
    except ValueError as error:
        raise UnsupportedModel(f"The model cannot be stored: {error}. Rename it in the model's code.") from error
    nodes = [_node(node) for node in module.graph.nodes]
    for entry, example in zip((n for n in nodes if n["op"] == "placeholder"), inputs, strict=False):
        entry["shape"] = list(example.shape)
    document = {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": module._get_name(),
        "layers": _layers(module),
        "tensors": _tensors(module),
        "nodes": nodes,
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n"


def _layers(module: GraphModule) -> dict[str, dict[str, Any]]:
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    opaque = cast(Mapping[str, str], module.meta.get("opaque", {}))
    first: dict[int, str] = {}
    layers: dict[str, dict[str, Any]] = {}
    inside: tuple[str, ...] = ()
    for name, layer in all_modules(module):
        if name == "" or name.startswith(inside):
            continue
        if type(layer) not in LAYER_NAMES:
            if name in called:
                raise UnsupportedModel(_cannot_store(name, layer, opaque.get(name, "")))
            if layer._parameters or layer._buffers:
                layers[name] = {"class": CONTAINER}  # keeps its place in the order of names
            continue
        inside = (*inside, name + ".")
        if id(layer) in first:
            layers[name] = {"same_as": first[id(layer)]}
        else:
            first[id(layer)] = name
            layers[name] = _layer(name, layer)
    return layers


def _cannot_store(name: str, layer: nn.Module, reason: str) -> str:
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    reason = reason or "the class is not one that a class-free checkpoint knows"
    return (
        f"The submodule '{name}' ({kind}) cannot be stored without its class: {reason}. "
        "Rewrite it with torch.nn layers, or export to ONNX only."
    )


def _layer(name: str, layer: nn.Module) -> dict[str, Any]:
    if hooks := [h for h in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks") if getattr(layer, h, None)]:
        raise UnsupportedModel(
            f"The layer '{name}' carries hooks ({hooks[0][1:]}), which are code and cannot be stored; remove them first."
        )
    kind = LAYER_NAMES[type(layer)]
    made = _arguments(layer)
    stored = {"class": kind, "args": {argument: encode(value) for argument, value in made.items()}}
    wanted, built = _signature(layer), _signature(build(kind, made))
    if wanted != built:
        odd = next(iter(sorted(wanted.items() ^ built.items())))[0]
        raise UnsupportedModel(
            f"The layer '{name}' ({kind}) is not what its constructor makes: {odd} is {wanted.get(odd, 'absent')}, "
            f"the constructor makes {built.get(odd, 'none')}. Put such a tensor into a module of its own."
        )
    return stored


def _arguments(layer: nn.Module) -> dict[str, Any]:
    """Constructor arguments that differ from their defaults."""
    parameters = inspect.signature(type(layer).__init__).parameters
    found = dict(recover(layer, field) for field in LAYERS[LAYER_NAMES[type(layer)]][1])
    if not found.get("affine", found.get("elementwise_affine", True)):
        found.pop("bias", None)  # nothing to have a bias beside
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {name: value for name, value in found.items() if open_ended or name in parameters}
    return {name: value for name, value in known.items() if name not in parameters or not _same(value, parameters[name].default)}


def _same(value: object, default: object) -> bool:
    return type(value) is type(default) and value == default


def _signature(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in (*layer.named_parameters(), *layer.named_buffers())}


def _tensors(module: GraphModule) -> dict[str, dict[str, Any]]:
    first: dict[int, str] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for name, tensor, persistent in stored_tensors(module):
        if id(tensor) in first:
            tensors[name] = {"same_as": first[id(tensor)]}
            continue
        first[id(tensor)] = name
        is_parameter = isinstance(tensor, nn.Parameter)
        tensors[name] = {
            "kind": "parameter" if is_parameter else "buffer",
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
        }
        if is_parameter and not tensor.requires_grad:
            tensors[name]["frozen"] = True
        if not persistent:
            tensors[name]["persistent"] = False
    return tensors


def _node(node: Node) -> dict[str, Any]:
    stored: dict[str, Any] = {"op": node.op, "name": node.name, "target": _target(node)}
    try:
        if node.args:
            stored["args"] = [encode(value) for value in node.args]
        if node.kwargs:
            stored["kwargs"] = {key: encode(value) for key, value in node.kwargs.items()}
    except InvalidValue as error:
        raise UnsupportedModel(f"The node '{node.name}' has an argument that cannot be stored: {error}.") from error
    if node.op == "placeholder" and node.meta.get("shape"):
        stored["shape"] = list(node.meta["shape"])
    return stored


def _target(node: Node) -> str:
    """The name that the tables have for what the node calls."""
    target, where = node.target, node.meta.get("source") or node.name
    if node.op == "call_function":
        known = FUNCTION_NAMES.get(cast(Callable[..., Any], target))
        if known is None:
            called = f"{getattr(target, '__module__', '?')}.{getattr(target, '__name__', target)}"
            raise UnsupportedModel(_unknown(f"The operation {called} ({where})"))
        if known == "getattr" and node.args[1] not in ATTRIBUTES:
            raise UnsupportedModel(_unknown(f"The attribute .{node.args[1]} ({where})"))
        return known
    name = cast(str, target)
    if node.op == "call_method" and name not in METHODS:
        raise UnsupportedModel(_unknown(f"The tensor method .{name}() ({where})"))
    if node.op == "placeholder" and not name.isidentifier():
        raise UnsupportedModel(f"The model takes a variable number of inputs ({name}); needed is one name per input.")
    return name


def _unknown(what: str) -> str:
    return (
        f"{what} is not one that can be stored without code. Use the torch function that does the same, or export to ONNX only."
    )
