"""The first way to a graph: torch.fx calls the forward with symbols in the place of tensors.

What sizes decide is settled on the way (`control_flow`), and sizes stay symbols: the graph holds for inputs of other sizes, too.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer, _symbolic_trace
from torch.fx.proxy import TraceError
from torchvision.ops import StochasticDepth

from compress.graph.channel_affine import ChannelAffine
from compress.graph.names import submodules
from compress.graph.partial_norm import PartialNorm
from compress.graph.trace.control_flow import Branches, Number
from compress.graph.trace.lines import Untraced, user_line
from compress.graph.trace.sanity import passing, theirs
from compress.graph.trace.sharing import loose_tensors
from compress.graph.trace.values import of_fields

_WRITTEN_OUT = (
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)
"""Layers of torch's that are nets of layers: what they hold is looked at."""


_CALLED, _READ = nn.Module.__call__, nn.Module.__getattr__
_AS_THEY_ARE = frozenset({type(None), bool, int, float, str})


def is_leaf(m: nn.Module) -> bool:
    """Whether a module is called as it is, a node of the graph; any other is gone through."""
    return _is_leaf(type(m))


@functools.lru_cache(maxsize=512)
def _is_leaf(kind: type[nn.Module]) -> bool:
    if issubclass(kind, StochasticDepth | ChannelAffine | PartialNorm):
        # StochasticDepth reads self.training: as a leaf it still tells train() from eval() after tracing.
        return True
    # The sizes inside an Unflatten are arguments that follow the channels, like those of the function.
    if issubclass(kind, (nn.Unflatten, nn.Sequential, *_WRITTEN_OUT)):
        return False
    return kind.__module__.startswith(("torch.nn.", "torch.ao.nn."))


def without_defaults(m: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a call that differ from what the layer takes by itself."""
    if not kwargs:
        return kwargs
    known = inspect.signature(m.forward).parameters
    plain = (type(None), bool, int, float, str)
    return {k: v for k, v in kwargs.items() if not (isinstance(v, plain) and k in known and known[k].default is v)}


def input_names(model: nn.Module, count: int) -> list[str]:
    """Names of the first so many arguments of forward, as they are in the function behind decorators."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    return [own[i] if i < len(own) else f"input_{i}" for i in range(count)]


def _own_way(kind: type[nn.Module]) -> bool:
    """Whether a class says itself how it is called or read, as nn.Module does; one that does may go on to that of nn.Module."""
    says = not vars(kind).keys().isdisjoint(("__call__", "__getattr__"))
    return says or kind.__call__ is not _CALLED or kind.__getattr__ is not _READ


class SymbolicTracer(Tracer):
    """torch.fx's tracer, with a memory of the innermost submodule in which tracing broke."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], opaque: dict[str, str], buffers: bool):
        super().__init__()
        self.model, self.paths, self.loose = model, dict[nn.Module, str](), dict[Any, str]()
        # What is computed from parameters stays in the graph, and what is computed from buffers.
        self.names: dict[int, str] = {}
        self.named: list[Any] = []  # kept: a forward may replace a buffer, and another tensor must not take its id
        for path, part in submodules(model):
            self.paths[part] = path
            for name, value in loose_tensors(part).items():
                self.loose[value] = f"{path}.{name}" if path else name
            # setdefault: a tied tensor goes by its first name, as in the state_dict.
            for name, tensor in (*part._parameters.items(), *(part._buffers.items() if buffers else ())):
                self.names.setdefault(id(tensor), f"{path}.{name}" if path else name)
                self.named.append(tensor)
        self.record_stack_traces = False  # `source` below is all that is needed, at a tenth of the time
        self.opaque, self.branches, self.inputs = opaque, Branches(model, inputs), inputs
        self.failed_in = ""
        self.inside = ""  # the module that is gone through
        self.unanswered: TraceError | None = None

    @staticmethod
    def of(model: nn.Module, inputs: tuple[Tensor, ...], opaque: dict[str, str]) -> tuple[nn.Module, Graph]:
        """The model and the graph of its forward.

        Raises:
            Untraced: symbols do not go through it.
        """
        # A buffer that steers the forward is a constant of the model, and not in its graph.
        for buffers in (True, False):
            tracer = SymbolicTracer(model, inputs, opaque, buffers)
            try:
                graph = tracer.trace(type(model).forward)
                if tracer.unanswered is not None:  # the forward has caught it, and done what it does where something fails
                    raise tracer.unanswered
                return model, graph
            except Exception as error:  # whatever a user's forward can raise on symbolic values
                if tracer.failed_in or not buffers:
                    raise Untraced(error, tracer.failed_in) from error
        raise AssertionError("the second round returns or raises")

    def trace(self, root: Any, concrete_args: Any = None) -> Graph:
        """As torch.fx does it, which changes nn.Module and so each of its thousand subclasses: here those of this model alone."""
        kinds = set(map(type, self.paths))
        if any(map(_own_way, kinds)):
            return super().trace(root)
        self.graph, proxies = Graph(tracer_cls=type(self)), dict[str, Any]()

        def called(m: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.call_module(m, functools.partial(_CALLED, m), args, kwargs)

        def read(m: nn.Module, name: str) -> Any:
            return self.getattr(name, _READ(m, name), proxies)

        forward, args = self.create_args_for_root(root, False)
        with _symbolic_trace._is_fx_tracing_context(True), _symbolic_trace._new_patcher() as patcher:
            _symbolic_trace._patch_wrapped_functions(patcher)
            scopes = [root, *(kind.forward for kind in kinds)]
            for scope in [*(f.__globals__ for f in scopes if hasattr(f, "__globals__")), *map(vars, self._autowrap_search)]:
                _symbolic_trace._autowrap_check(patcher, scope, self._autowrap_function_ids)
            try:
                for kind in kinds:
                    kind.__call__, kind.__getattr__ = called, read
                self.create_node("output", "output", (self.create_arg(forward(*args)),), {})
            finally:
                for kind in kinds:
                    del kind.__call__, kind.__getattr__
        return self.graph

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One symbol for each input, and nothing for the rest: defaults are used, *args and **kwargs are empty.

        What torch.fx collects of a module, in several times the time, is known: it is given the forward alone.
        """
        self.root, self.submodule_paths, self.tensor_attrs = self.model, self.paths, self.loose
        names = input_names(self.root, len(self.inputs))
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.opaque or is_leaf(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As torch.fx does it, with a record of the innermost module around a node instead of all of them."""
        if self.branches.busy:  # called by control_flow, which wants values and not nodes
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        try:
            if not self.is_leaf_module(m, path):
                around, self.inside = self.inside, path
                found = forward(*args, **kwargs)
                self.inside = around
                return found
            # A short cut past create_proxy's walk through nested arguments, for nearly all calls of layers have plain tensors.
            if not kwargs and all(type(a) is Number for a in args):
                node = self.create_node("call_module", path, (), {})
                node.args = tuple(a.node for a in args)  # torch.fx would look through them for numbers
                return self.proxy(node)
            return self.create_proxy("call_module", path, args, without_defaults(m, kwargs))
        except Exception:
            # The innermost: the exception passes every enclosing module on its way out.
            self.failed_in = self.failed_in or path
            raise

    def create_arg(self, a: Any) -> Any:
        """What stands for an argument in the graph; torch.fx asks of each whether it is one of twenty rarer kinds first."""
        if type(a) is Number:
            return a.node
        if type(a) in _AS_THEY_ARE:
            return a
        if (fields := of_fields(a)) is not None:
            return super().create_arg({name: value for name, value in fields.items() if value is not None})
        # Named outputs of torchvision's are classes that a checkpoint knows; any other becomes a plain tuple.
        if isinstance(a, tuple) and hasattr(a, "_fields") and not type(a).__module__.startswith("torch"):
            return super().create_arg(tuple(cast(tuple[Any, ...], a)))
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As torch.fx does it, which looks through all parameters each time."""
        name = None if self.branches.busy or not isinstance(attr_val, Tensor) else self.names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def to_bool(self, obj: Any) -> bool:
        """What sizes decide, they decide; a check of values is taken to pass: it has passed on the example inputs."""
        answer = self.branches.number(obj.node)
        if answer is None:
            answer = passing(theirs(sys._getframe(1)))
        if answer is None:
            raise self.refusal("a branch is taken by the value of a tensor")
        return bool(answer)

    def iter(self, obj: Any) -> Any:
        """The parts of what has a length that sizes tell: a shape, the result of a chunk."""
        length = self.branches.length(obj.node)
        if length is None:
            raise self.refusal("a loop goes over something whose length depends on data or on the batch")
        return iter([obj[i] for i in range(length)])

    def refusal(self, why: str) -> TraceError:
        """What to raise where a symbol has no answer. It counts even if the forward catches it."""
        self.unanswered = self.unanswered or TraceError(why)
        self.failed_in = self.failed_in or self.inside
        return self.unanswered

    def proxy(self, node: Node) -> Proxy:
        return Number(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = self.graph.create_node(*args, **kwargs)
        node.meta["source"] = user_line(SymbolicTracer.of.__code__)
        node.meta["module"] = self.inside
        return node
