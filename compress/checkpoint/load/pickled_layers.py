"""What a stranger's pickle holds in the place of layers, and layers made anew from that.

The unpickler never meets torch's classes. It fills records, which have no behavior; from a record come the arguments that the
constructor of the layer would have had and its tensors, all looked at first. Whatever else the file says of a layer has no
effect, or is refused where it would change what the layer computes.
"""

# pyright: reportPrivateUsage=false
# A module's own tensors and children are only in its _parameters, _buffers and _modules.

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.checkpoint.allowlist import LAYER_NAMES, LAYERS, build, recover
from compress.errors import BadInput
from compress.graph.names import MAX_NAME, part
from compress.user.wording import many

MAX_DEPTH = 64
MAX_LAYERS = 200_000

_COMPOSED: dict[type[nn.Module], str] = {
    # torch's own layers made of layers -> attributes that they keep besides those
    nn.Sequential: "",
    nn.ModuleList: "",
    nn.ModuleDict: "",
    nn.Transformer: "d_model nhead batch_first",
    nn.TransformerEncoder: "num_layers enable_nested_tensor use_nested_tensor mask_check",
    nn.TransformerDecoder: "num_layers",
    nn.TransformerEncoderLayer: "norm_first activation",
    nn.TransformerDecoderLayer: "norm_first activation",
}
_ACTIVATIONS = {"torch.nn.functional.relu": F.relu, "torch.nn.functional.gelu": F.gelu, "torch._C._nn.gelu": F.gelu}
_PARALLEL = nn.DataParallel
KINDS: tuple[type[nn.Module], ...] = (
    *(kind for kind, _ in LAYERS.values() if kind.__module__.startswith("torch.nn.")),
    *_COMPOSED,
    _PARALLEL,
    nn.modules.linear.NonDynamicallyQuantizableLinear,
)
"""What a pickled module may be made of; a class of the user is not among them."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
_HOOKS += ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_pre_hooks")
_OWN = frozenset(vars(nn.Module()))


class Record:
    """A layer as a file tells of it; nothing of torch has seen it yet."""

    kind: ClassVar[type[nn.Module]]

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __new__(cls) -> Record:
        """Made without a call of `__init__`, as pickle does it."""
        made = object.__new__(cls)
        made.attributes = {}
        return made

    def __setstate__(self, state: object) -> None:
        self.attributes = {str(key): value for key, value in state.items()} if isinstance(state, dict) else {}


class Activation:
    """A function that a transformer layer keeps, by name."""

    def __init__(self, function: Any) -> None:
        self.function = function


def _record(kind: type[nn.Module]) -> type[Record]:
    return type(kind.__name__, (Record,), {"kind": kind})


STAND_INS: dict[str, Any] = {
    **{f"{kind.__module__}.{kind.__qualname__}": _record(kind) for kind in KINDS},
    **{name: Activation(function) for name, function in _ACTIVATIONS.items()},
}
"""Global name in a pickle -> what the unpickler takes for it."""


def module(record: Record, where: str) -> tuple[nn.Module, list[str]]:
    """The module that a record tells of, and notes.

    Args:
        record: the root.
        where: how messages call the file.

    Raises:
        BadInput: what stands in the record is not what the layer's constructor makes; names the layer.
    """
    return _Builder(where).whole(record)


class _Builder:
    def __init__(self, where: str) -> None:
        self.where = where
        self.made: dict[int, nn.Module] = {}
        self.walked: dict[int, int] = {}  # layers below each, counted as often as a walk comes by
        self.inside: set[int] = set()
        self.left_out: list[str] = []

    def whole(self, record: Record) -> tuple[nn.Module, list[str]]:
        notes: list[str] = []
        # Its replicas are of no use here, and names would begin with "module.".
        if record.kind is _PARALLEL:
            self.check(record, "")
            record = self.record(self.mapping(record, "_modules", "").get("module"), "module")
            notes.append("The module was taken out of its DataParallel wrapper.")
        made = self.layer(record, "").train(bool(record.attributes.get("training", True)))
        if made.training:
            notes.append("The module was saved in training mode; it is used in eval mode.")
        if self.left_out:
            notes.append(f"{many(len(self.left_out), 'tensor')} that no layer uses left out ({self.left_out[0]}, ...).")
        return made, notes

    def refuse(self, what: str, path: str) -> BadInput:
        return BadInput(f"{self.where} {what} of the layer '{path}', unlike an ordinary module. Save its state_dict.")

    def record(self, value: object, path: str) -> Record:
        if not isinstance(value, Record):
            raise BadInput(f"{self.where} holds a {torch.typename(value)} at '{path}', which is no layer of torch.nn.")
        return value

    def layer(self, record: Record, path: str) -> nn.Module:
        """A layer made anew; one that stands in two places is one."""
        if id(record) in self.made:
            return self.made[id(record)]
        if id(record) in self.inside or len(self.inside) > MAX_DEPTH:
            why = "which is inside itself" if id(record) in self.inside else f"deeper than {MAX_DEPTH} layers"
            raise BadInput(f"{self.where} holds a layer at '{path[:MAX_NAME]}', {why}. Save its state_dict.")
        self.inside.add(id(record))
        self.check(record, path)
        if record.kind in _COMPOSED:
            made = self.composed(record, path)
        elif record.kind in LAYER_NAMES:
            made = self.simple(record, path)
        else:
            raise BadInput(f"{self.where} holds a {record.kind.__name__} at '{path}', where none belongs. Save its state_dict.")
        self.inside.remove(id(record))
        self.made[id(record)] = made
        self.walked[id(made)] = 1 + sum(self.walked.get(id(child), 1) for child in made._modules.values())
        # torch walks through a layer as often as it stands somewhere, and two in each of forty take for ever.
        if self.walked[id(made)] > MAX_LAYERS:
            raise BadInput(f"{self.where} holds more than {MAX_LAYERS} layers at '{path}'. Save its state_dict.")
        return made

    def check(self, record: Record, path: str) -> None:
        if hooks := [hook for hook in _HOOKS if record.attributes.get(hook)]:
            raise self.refuse(f"sets {hooks[0][1:]}", path)
        # An attribute is found before the method of its class.
        own = record.attributes.keys() - set(_COMPOSED.get(record.kind, "").split())
        if hidden := sorted(key for key in own if callable(getattr(record.kind, key, None))):
            raise self.refuse(f"replaces the method {hidden[0]}", path)

    def mapping(self, record: Record, name: str, path: str) -> Mapping[str, Any]:
        """`_modules`, `_parameters` or `_buffers`, each under a name that is harmless in generated code."""
        found = record.attributes.get(name, {})
        if not isinstance(found, Mapping):
            raise self.refuse(f"has a {torch.typename(found)} for {name}", path)
        entries = cast(Mapping[Any, Any], found)
        for key in entries:
            try:
                part(key)
            except ValueError as error:
                raise BadInput(f"{self.where} is not read: {error}. Rename it, or save the state_dict.") from error
        return entries

    def composed(self, record: Record, path: str) -> nn.Module:
        """Layers of layers have no arguments that their parts do not tell."""
        made = record.kind.__new__(record.kind)
        nn.Module.__init__(made)
        for key, child in self.mapping(record, "_modules", path).items():
            inner = f"{path}.{key}".lstrip(".")
            if hasattr(made, key):
                raise BadInput(f"{self.where} holds a layer named '{inner}', as a method is. Rename it, or save its state_dict.")
            made.add_module(key, None if child is None else self.layer(self.record(child, inner), inner))
        for key in _COMPOSED[record.kind].split():
            if key in record.attributes:
                vars(made)[key] = self.plain(record.attributes[key], key, path)
        if isinstance(made, nn.TransformerEncoder | nn.TransformerDecoder) and "norm" not in made._modules:
            made.norm = None
        if isinstance(made, nn.TransformerEncoderLayer):
            # Which fast way torch takes follows from the activation; the file's own word is not asked.
            used = made.activation
            is_relu, is_gelu = used is F.relu or isinstance(used, nn.ReLU), used is F.gelu or isinstance(used, nn.GELU)
            made.activation_relu_or_gelu = 1 if is_relu else 2 if is_gelu else 0
        for group in ("_parameters", "_buffers"):
            self.left_out += [f"{path}.{key}".lstrip(".") for key in self.mapping(record, group, path)]
        return made

    def simple(self, record: Record, path: str) -> nn.Module:
        """A layer of the table, by its constructor."""
        kind, tensors = LAYER_NAMES[record.kind], self.tensors(record, path)
        arguments = self.arguments(record, path, tensors)
        try:
            made = build(kind, arguments)
        except Exception as error:  # constructors may refuse by anything
            raise self.refuse(f"has sizes that no {kind} has ({type(error).__name__}: {str(error)[:120]})", path) from error
        self.fill(made, record, path, tensors)
        return made

    def tensors(self, record: Record, path: str) -> dict[str, Tensor | None]:
        found = {**self.mapping(record, "_parameters", path), **self.mapping(record, "_buffers", path)}
        for key, tensor in found.items():
            if not isinstance(tensor, Tensor | None):
                raise self.refuse("has something else in the place of a tensor", f"{path}.{key}")
        return found

    def arguments(self, record: Record, path: str, tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
        parameters = inspect.signature(record.kind.__init__).parameters
        told = SimpleNamespace(**{**record.attributes, **tensors})
        found: dict[str, Any] = {}
        for field in LAYERS[LAYER_NAMES[record.kind]][1]:
            try:
                name, value = recover(cast(nn.Module, told), field)
            except (AttributeError, TypeError):  # files of older versions lack it: its default is meant
                continue
            if name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                found[name] = self.plain(value, name, path)
        return found

    def plain(self, value: object, name: str, path: str, depth: int = 0) -> Any:
        """A number, text, or a short sequence of them, as constructors take."""
        if isinstance(value, Activation) and name == "activation":
            return value.function
        # By exact type: a tensor of one element compares and counts as a number, too.
        if value is None or type(value) in (bool, int, float) or (type(value) is str and len(value) < MAX_NAME):
            return value
        if isinstance(value, tuple | list) and depth < 3 and len(cast(tuple[Any, ...], value)) <= 16:
            return tuple(self.plain(part, name, path, depth + 1) for part in cast(Iterable[Any], value))
        raise self.refuse(f"has a {torch.typename(value)} for {name}", path)

    def fill(self, made: nn.Module, record: Record, path: str, tensors: Mapping[str, Tensor | None]) -> None:
        """Tensors and inner layers where the constructor has made room for them."""
        self.compare(made, record, path)
        for group in (made._parameters, made._buffers):
            for key, room in group.items():
                name = f"{path}.{key}".lstrip(".")
                given = tensors.get(key)
                # Files older than torch 0.4.1 have no counter of batches.
                if given is None and key == "num_batches_tracked" and room is not None:
                    given = torch.zeros((), dtype=torch.long)
                if (None if room is None else room.shape) != (None if given is None else given.shape):
                    raise self.refuse(f"has {_of(given)} for {key}, where its sizes need {_of(room)},", path)
                if given is not None:
                    _put(made, key, own(given, name, self.where), given.requires_grad)
        self.left_out += [f"{path}.{key}".lstrip(".") for key in tensors.keys() - made._parameters.keys() - made._buffers.keys()]
        children = self.mapping(record, "_modules", path)
        for key, inner in made._modules.items():
            child = self.record(children.get(key), f"{path}.{key}")
            if inner is None or child.kind is not type(inner):
                raise self.refuse(f"has a {child.kind.__name__} for {key}", path)
            self.check(child, f"{path}.{key}")
            self.fill(inner, child, f"{path}.{key}", self.tensors(child, f"{path}.{key}"))

    def compare(self, made: nn.Module, record: Record, path: str) -> None:
        """What the constructor has derived from its arguments is the same in the file."""
        arguments = {field.split("?")[0].split("<")[0] for field in LAYERS.get(LAYER_NAMES.get(type(made), ""), (None, ()))[1]}
        padded = record.attributes.get("padding_mode", "zeros") != "zeros"
        for key, value in vars(made).items():
            derived = key not in _OWN and key not in arguments and (not key.startswith("_") or padded)
            if not derived or key not in record.attributes or not isinstance(value, bool | int | float | str | tuple | list):
                continue
            found = self.plain(record.attributes[key], key, path)
            if found != self.plain(value, key, path):
                raise self.refuse(f"says {key} = {str(found)[:40]!r}, where its sizes make {str(value)[:40]!r},", path)


def _of(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{list(tensor.shape)}"


def _put(made: nn.Module, key: str, tensor: Tensor, trainable: bool) -> None:
    if key in made._parameters:
        setattr(made, key, nn.Parameter(tensor, requires_grad=trainable and tensor.is_floating_point()))
    else:
        setattr(made, key, tensor)


def own(tensor: Tensor, name: str, where: str) -> Tensor:
    """The tensor without attributes of the file's choice, if its values are all there.

    Raises:
        BadInput: it claims more values than the file holds for it.
    """
    plain = tensor.detach()
    strided = plain.layout is torch.strided and not plain.is_meta and not plain.is_quantized
    if strided and plain.numel() * plain.element_size() > max(plain.untyped_storage().nbytes(), 2**20):
        raise BadInput(
            f"{where} says that {name} has {plain.numel()} values, and holds {plain.untyped_storage().nbytes()} bytes of them. "
            "Save the model again with contiguous tensors."
        )
    return plain
