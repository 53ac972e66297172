"""One run of a forward on tensors, with every operation on them written down as nodes of a graph.

Parameters and buffers are found by their identity, and so are tensors that an operation has made. Any other tensor was made by
the forward itself, and is kept as a constant; whether it is one shows in a second run (`recorded`).
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from compress.graph.names import submodules
from compress.graph.trace.assigned import Pieces, assigned, masked
from compress.graph.trace.lines import Unrecorded, user_line
from compress.graph.trace.sanity import checked, theirs
from compress.graph.trace.symbolic import input_names, is_leaf, without_defaults
from compress.graph.trace.values import plain_name, plain_output, same_memory, tensors_in, writes

STALE = "a tensor is read that shares its memory with one that was written into"


class Stale(Unrecorded):
    """A tensor is read that shares its memory with one that was written into."""


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "true_divide": operator.truediv,
    "matmul": operator.matmul, "neg": operator.neg, "pow": operator.pow, "__getitem__": operator.getitem,
    "__setitem__": operator.setitem, "__floordiv__": operator.floordiv, "floor_divide": operator.floordiv,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__invert__": operator.invert,
    "__iadd__": operator.iadd, "__isub__": operator.isub, "__imul__": operator.imul, "__itruediv__": operator.itruediv,
    "__add__": operator.add, "__sub__": operator.sub, "__mul__": operator.mul, "__truediv__": operator.truediv,
    "__matmul__": operator.matmul, "__pow__": operator.pow, "__neg__": operator.neg, "__mod__": operator.mod,
    "remainder": operator.mod, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge, "__eq__": operator.eq, "__ne__": operator.ne, "__lt__": operator.lt, "__le__": operator.le,
    "__gt__": operator.gt, "__ge__": operator.ge,
}  # fmt: skip
"""Methods that Python's operators call: written as the operator, as torch.fx would write them."""
_REVERSED = {"__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul, "__rtruediv__": operator.truediv}
_REVERSED |= {"__rdiv__": operator.truediv, "__rpow__": operator.pow, "__rmatmul__": operator.matmul}
_READS_VALUES = frozenset({"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "nonzero", "unique", "masked_select"})
_READS_VALUES |= {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__", "__contains__", "data_ptr"}
_CHECKED = frozenset({"__bool__", "__float__", "__int__", "item", "equal", "allclose", "is_nonzero"})
"""Those that give one value, which a check may look at."""
_OF_SIZES = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor"})
"""Functions of a tensor that look at its sizes only."""
IN_PLACE = frozenset({operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv})
_EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})
_SAME_ANYWAY = frozenset(["to", "cpu", "cuda", "float", "double", "half", "type", "type_as", "expand_as"])
"""Methods that give their tensor itself where there is nothing to do."""


_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device)


@dataclass
class Recording:
    """One run on one batch."""

    graph: Graph
    nodes: dict[int, Node] = field(default_factory=dict[int, Node])
    kept: list[Any] = field(default_factory=list[Any])  # so that no tensor takes the id of one that has gone
    from_input: set[int] = field(default_factory=set[int])
    constants: dict[Node, Tensor] = field(default_factory=dict[Node, Tensor])
    pieces: Pieces = field(default_factory=Pieces)
    stale: dict[int, set[int]] = field(default_factory=dict[int, set[int]])  # by which writes into memory that is shared


class Recorder(TorchFunctionMode):
    """Writes down the operations of one run; `failed_in` is the innermost submodule in which one could not be.

    `answer` is what every question about values is told, where it is known that the steps do not depend on that; `in_place` is
    whether what is written into a tensor stays so.
    """

    def __init__(self, root: nn.Module, opaque: dict[str, str], answer: bool | None = None, in_place: bool = False):
        super().__init__()
        self.in_place = in_place
        self.root, self.opaque, self.answer, self.failed_in = root, opaque, answer, ""
        self.asked = False
        self.unrecorded: Unrecorded | None = None
        self.paths = {id(m): path for path, m in submodules(root)}
        self.names: dict[int, str] = {}
        self.named: list[Tensor] = []  # kept: a forward may replace a buffer, and another tensor must not take its id
        for path, part in submodules(root):
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None:
                    self.names.setdefault(id(tensor), f"{path}.{name}" if path else name)
                    self.named.append(tensor)
        self.run = Recording(Graph())
        self.inside = 0
        self.within = ""  # the module that is gone through

    def recorded(self, inputs: tuple[Tensor, ...]) -> Recording:
        """What the root does with these inputs.

        Raises:
            Unrecorded: something that no graph says.
        """
        self.run = Recording(Graph())
        for name, x in zip(input_names(self.root, len(inputs)), inputs, strict=True):
            self._made(x, self.run.graph.placeholder(name))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole block, on no layer of ours
        try:
            with torch.no_grad(), self._calls(), self:
                output = self.root(*inputs)
            if self.unrecorded is not None:
                raise self.unrecorded
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        self.run.graph.output(self._argument(plain_output(output)))
        return self.run

    @contextmanager
    def _calls(self) -> Iterator[None]:
        """While it is open, modules are called through us."""
        called = nn.Module.__call__

        def call(m: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = None if self.inside else self.paths.get(id(m))
            if path is None:
                return called(m, *args, **kwargs)
            try:
                if not path or not (path in self.opaque or is_leaf(m)):
                    around, self.within = self.within, path
                    result = called(m, *args, **kwargs)
                    self.within = around
                    return result
                target = self._argument(args), self._argument(without_defaults(m, kwargs))
                self.run.pieces.clear()  # it may write into its input
                self.inside += 1
                try:
                    result = called(m, *args, **kwargs)
                finally:
                    self.inside -= 1
                return self._result(result, self._node("call_module", path, *target), (args, kwargs))
            except Exception:
                self.failed_in = self.failed_in or path
                raise

        nn.Module.__call__ = call  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            nn.Module.__call__ = called  # pyright: ignore[reportAttributeAccessIssue]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        try:
            return self._operation(func, types, args, kwargs or {})
        except Unrecorded as error:  # it counts even if the forward catches it
            self.unrecorded = self.unrecorded or error
            raise

    def _operation(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in _EMPTY and not self.inside:  # what nobody writes there is whatever was in memory
            return func(*args, **kwargs).zero_()
        seen = [] if self.inside else [t for t in tensors_in((args, kwargs)) if id(t) in self.run.nodes or id(t) in self.names]
        if not seen:
            return func(*args, **kwargs)
        if name in _OF_SIZES:  # a constant: whether it follows the batch shows in a second run
            return func(*args, **kwargs)
        if name in _READS_VALUES and any(id(t) in self.run.from_input for t in seen):
            return self._value_of(name, func, args, kwargs)
        if name == "__iter__":
            return iter(self._operation(torch.unbind, types, (args[0], 0), {}))
        if name in ("where", "nonzero") and len(args) == 1:
            raise Unrecorded(f"{name}() gives as many places as the values of a tensor tell")
        if name == "__setitem__" and self._assigned(func, *args):
            return None
        if writes(name) and args and id(args[0]) not in self.run.nodes and id(args[0]) not in self.names:
            self._own(args[0], name != "__setitem__" and plain_name(name) in _OPERATORS)
        if writes(name) or kwargs.get("inplace"):  # what was put together may change in its parts
            self.run.pieces.clear()
        versions = {id(t): t._version for t in tensors_in(args[:1])}
        result = func(*args, **kwargs)
        made = [t for t in tensors_in(result)]
        if not made and name != "__setitem__":
            return result
        if name in _SAME_ANYWAY and made[0] is args[0] and versions[id(made[0])] == made[0]._version:
            return result
        node = self._written(func, name, args, kwargs, result)
        return self._result(result, node, (args, kwargs), changed=args[0] if name == "__setitem__" else None)

    def _value_of(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A value that depends on data: a check may ask, nothing else."""
        if name in _CHECKED and checked(theirs(sys._getframe(3))):
            return func(*args, **kwargs)
        if name in ("__bool__", "__contains__"):
            self.asked = True
            if self.answer is not None:
                return self.answer
        what = {"__bool__": "a branch is taken by the value of a tensor", "item": ".item() is read"}.get(name)
        raise Unrecorded(what or f"{name.strip('_')}() reads the values of a tensor that depends on the input")

    def _written(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Node:
        if name == "__get__":  # of a property such as .T
            attribute, of = func.__self__.__name__, self._argument(args[0])
            if attribute == "data":
                return self._node("call_method", "detach", (of,), {})
            return self._node("call_function", getattr, (of, attribute), {})
        if name in ("to", "type") and isinstance(result, Tensor):  # without the device, which is that of this run only
            return self._node("call_method", "to", (self._argument(args[0]), result.dtype), {})
        given, named = self._argument(args), self._argument(kwargs)
        if not getattr(func, "__qualname__", "").startswith(("Tensor.", "TensorBase.", "_TensorBase.")):
            return self._node("call_function", func, given, named)
        if name in _REVERSED and len(given) == 2:
            return self._node("call_function", _REVERSED[name], given[::-1], {})
        if writes(name) and given[0].op == "get_attr" and given[0] in self.run.constants and plain_name(name) in _OPERATORS:
            name = plain_name(name)  # a constant must not change; from here on its tensor is what was made of it
        if name in _OPERATORS and not named and "rounding_mode" not in kwargs:
            return self._node("call_function", _OPERATORS[name], given, {})
        return self._node("call_method", name, given, named)

    def _node(self, op: str, target: Any, args: Any, kwargs: Any) -> Node:
        node = self.run.graph.create_node(op, target, tuple(args), dict(kwargs))
        node.meta["source"] = user_line(Recorder.recorded.__code__)
        node.meta["module"] = self.within
        return node

    def _result(self, result: Any, node: Node, given: Any, changed: Tensor | None = None) -> Any:
        """Remember which node gives which tensor, those inside of tuples and dictionaries, too."""
        data = any(id(t) in self.run.from_input for t in tensors_in(given))
        if changed is not None:
            # x[...] = y gives nothing; from here on x is what the operation has made of it, which is x itself.
            self.run.kept.append(changed)
            if data:
                self.run.from_input.add(id(changed))
            return result
        self._keep(result, node, data)
        return result

    def _keep(self, value: Any, node: Node, data: bool) -> None:
        if isinstance(value, Tensor):
            self._made(value, node, data)
        elif isinstance(value, dict):
            for key, part in cast(dict[Any, Any], value).items():
                if tensors_in(part):
                    self._keep(part, self._node("call_function", operator.getitem, (node, key), {}), data)
        elif isinstance(value, tuple | list):
            for i, part in enumerate(cast(tuple[Any, ...], value)):
                if tensors_in(part):
                    self._keep(part, self._node("call_function", operator.getitem, (node, i), {}), data)

    def _made(self, value: Tensor, node: Node, data: bool = True) -> None:
        self.run.nodes[id(value)] = node
        self.run.kept.append(value)
        if data:
            self.run.from_input.add(id(value))

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if self.run.stale.get(id(value)):
                raise Stale(STALE)
            if (node := self.run.nodes.get(id(value))) is None:
                node = self._held(value)
            return node
        if isinstance(value, torch.Size):
            return tuple(value)
        if isinstance(value, tuple | list):
            parts = [self._argument(v) for v in cast(tuple[Any, ...], value)]
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, dict):
            return {k: self._argument(v) for k, v in cast(dict[Any, Any], value).items()}
        if isinstance(value, slice):
            return slice(self._argument(value.start), self._argument(value.stop), self._argument(value.step))
        if (
            value is None
            or value is Ellipsis
            or isinstance(value, bool | int | float | complex | str | torch.dtype | torch.device)
        ):
            return value
        raise Unrecorded(f"an argument is a {type(value).__name__}")

    def _assigned(self, func: Any, x: Tensor, index: Any, value: Any) -> bool:
        """`x[index] = value`, written as a new tensor; False, and nothing done, where that is not possible."""
        if self.in_place or id(x) in self.names:
            return False
        if id(x) not in self.run.nodes:
            self._own(x, True)
        part = x[index]
        itself = isinstance(value, Tensor) and same_memory(part, value)  # x[index] += y: written before, by y itself
        if itself and id(x) in self.run.stale:
            self.run.stale[id(x)] -= {id(value)}

        def call(target: Any, *args: Any) -> Node:
            if target == "getitem":
                return self._node("call_function", operator.getitem, args, {})
            return self._node("call_method" if isinstance(target, str) else "call_function", target, args, {})

        given, node = self._argument(value), self._argument(x)
        if isinstance(index, Tensor):
            made = masked(call, x, node, index, self._argument(index), value)
        else:
            made = assigned(call, self.run.pieces, x, node, index, value, given)
        if made is None:
            if node in self.run.constants:  # memory of its own, which a node may write to
                self._made(x, self._node("call_method", "clone", (node,), {}), data=False)
            return False
        data = any(id(t) in self.run.from_input for t in tensors_in((x, index, value)))
        func(x, index, value)
        self._spoil(x)
        self._made(x, made, data)
        return True

    def _spoil(self, x: Tensor) -> None:
        """What shares the memory of a tensor that is written into is not what its node gives any more."""
        memory = x.untyped_storage().data_ptr()
        for t in self.run.kept:
            if t is not x and isinstance(t, Tensor) and t.untyped_storage().data_ptr() == memory:
                self.run.stale.setdefault(id(t), set()).add(id(x))

    def _own(self, x: Tensor, changes: bool) -> None:
        """A tensor that the forward has made and now writes into, as it was before; `changes`: by nodes that make a new one."""
        for t in (x._base, x):
            if t is not None and id(t) not in self.run.nodes:
                node = self._node("get_attr", f"constant_{len(self.run.constants)}", (), {})
                self.run.constants[node] = t.detach().clone()
                self._made(t, node if changes else self._node("call_method", "clone", (node,), {}), data=False)
        if x._base is not None:
            self.run.stale.setdefault(id(x._base), set()).add(id(x))

    def _held(self, value: Tensor) -> Node:
        """A parameter, a buffer, or a tensor that was made in the forward."""
        name = self.names.get(id(value))
        node = self._node("get_attr", name or f"constant_{len(self.run.constants)}", (), {})
        if name is None:
            self.run.constants[node] = value
        self._made(value, node, data=False)
        return node
