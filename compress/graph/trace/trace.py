"""A model becomes a torch.fx GraphModule, once, at load.

Modules stay modules, so `train()`/`eval()`, BatchNorm, Dropout and the names of the state_dict survive. Functional activations
and dropouts become module nodes, and each call of an activation has a module, so that "an activation" is one thing. A submodule
that will not trace becomes an opaque leaf: it stays whole, and the reason is kept in `module.meta["opaque"]`. Each node carries
`meta["shape"]` (what it gives on the example inputs) and `meta["source"]` (`file.py:line` of the user's code, where known).

All of this is settled on the graph before the GraphModule is made, since whoever changes that one has its code written again.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import io
import operator
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer, _symbolic_trace
from torchvision.ops import StochasticDepth

from compress.errors import BadInput, UnsupportedModel
from compress.graph.channel_affine import ChannelAffine
from compress.graph.names import refuse_untraceable
from compress.graph.trace.control_flow import Branches, Number
from compress.graph.trace.functional import module_per_call, modules_for_functions
from compress.graph.trace.shapes import note_shapes
from compress.graph.trace.sharing import sharing

_RETRIES = 64  # submodules that may turn out not to trace, each at the cost of one more trace
_TORCH = f"{Path(torch.__file__).parent}/"
_NOT_THEIRS = (_TORCH, __file__)  # frames in here are not the user's code


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule:
    """Trace a copy of a model: eval mode, fp32; what is frozen stays so. The model itself is not touched.

    The copy shares parameters and buffers with the model, as far as these are fp32: to change one of the two in place, copy it.

    Args:
        model: any module; a GraphModule of ours is traced again without loss.
        inputs: one example tensor per model input, batch first.

    Raises:
        BadInput: the model does not run on inputs of these shapes.
        UnsupportedModel: `forward` of the model itself depends on data; names the line.
    """
    model = sharing(model).eval()
    refuse_untraceable(model)
    _plain_classes(model)  # before tracing: whether a module is a leaf depends on its class
    opaque: dict[str, str] = {}
    buffers = True
    # Each round makes one more submodule opaque, or gives up buffers in the graph, until the trace goes through.
    for _ in range(_RETRIES):
        tracer = _ModelTracer(model, opaque, buffers, Branches(model, inputs))
        try:
            graph = tracer.trace(model, concrete_args=_defaults(model, len(inputs)))
            break
        except Exception as error:  # whatever a user's forward can raise on symbolic values
            run_once(model, inputs)  # the shapes may be to blame
            if not tracer.failed_in and buffers:
                buffers = False  # a buffer that steers the forward is a constant of the model
                continue
            if not tracer.failed_in:
                raise UnsupportedModel(
                    f"The model's own forward cannot be traced ({_where(error)}: {_first_line(error)}). Needed is a forward "
                    "without control flow that depends on tensor values; move that part into a submodule, which then stays whole."
                ) from error
            # The innermost one only (see call_module): what is around it keeps its channels free.
            opaque[tracer.failed_in] = f"cannot be traced ({_where(error)}: {_first_line(error)})"
    else:
        raise UnsupportedModel(f"More than {_RETRIES} submodules cannot be traced, the first is {next(iter(opaque))}.")
    # forward ignores some of the inputs; let the model itself say whether it accepts that many.
    if sum(node.op == "placeholder" for node in graph.nodes) < len(inputs):
        run_once(model, inputs)
    _drop_checks(graph, len(inputs))
    modules_for_functions(model, graph)
    # After functions have become modules, as those are called once each and must not be counted twice.
    module_per_call(model, graph)
    try:
        with silent():
            note_shapes(model, graph, inputs)
    except BadInput:
        raise
    except Exception:
        run_once(model, inputs)
        raise
    _drop_numbers(graph)  # needs the shapes: what gives no tensor is told by them
    module = GraphModule(model, graph, type(model).__name__)
    _unsaved(model, module)
    module.meta["opaque"] = opaque
    # GraphModule makes new containers, which start in train mode.
    for part in module.modules():
        part.__dict__["training"] = False  # of the containers that torch.fx has made; eval() would take ten times as long
    return module


def _unsaved(model: nn.Module, module: GraphModule) -> None:
    """Buffers that are no part of a state_dict stay so: torch.fx of torch 2.11 makes containers anew, and forgets it."""
    parts = dict(model.named_modules(remove_duplicate=False))
    for path, part in module.named_modules(remove_duplicate=False):
        if path in parts:
            part._non_persistent_buffers_set |= parts[path]._non_persistent_buffers_set & set(part._buffers)


_HARMLESS = frozenset({"__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__firstlineno__", "extra_repr"})
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HARMLESS |= {"__static_attributes__", "reset_parameters", "__repr__", "__constants__", "__parameters__", "__annotate_func__"}


def _plain_classes(model: nn.Module) -> None:
    """Subclasses of torch.nn's layers that compute nothing else than their base become that base: one layer is one thing."""
    for m in model.modules():
        mro = type(m).__mro__
        # The first class of torch.nn's in the order of inheritance; nn.Module itself is one, so there always is one.
        base = next(c for c in mro if c.__module__.startswith("torch.nn.modules."))
        above = mro[: mro.index(base)]
        # Anything beyond names and resetting may compute; then the class must stay, and becomes a leaf by torch.fx's own rules.
        if above and base not in _CONTAINERS and all(set(vars(c)) <= _HARMLESS for c in above):
            # It keeps all attributes: only forward is looked up elsewhere.
            m.__class__ = base


def run_once(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The output of a model on its example inputs.

    Raises:
        BadInput: it does not run; names the shapes and the model's own message.
    """
    try:
        with torch.no_grad(), silent():
            return model(*inputs)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, t.shape[1:])) for t in inputs)
        remedy = "Give the shapes it needs with --input-shape CxHxW, once per model input."
        if "'indices'" in str(error):  # a table that is looked up
            remedy = "Inputs are float32 here: let its forward begin with .long() and a clamp to the numbers that it knows."
        raise BadInput(
            f"The model does not run on {len(inputs)} input(s) of shape {shapes} ({_first_line(error)}). {remedy}"
        ) from error


def silent() -> contextlib.redirect_stderr[io.StringIO]:
    """A GraphModule that raises prints a traceback of its generated code first; not in here."""
    return contextlib.redirect_stderr(io.StringIO())


class _ModelTracer(Tracer):
    """torch.fx's tracer, with a memory of the innermost submodule in which tracing broke."""

    def __init__(self, root: nn.Module, opaque: dict[str, str], buffers: bool, branches: Branches):
        super().__init__()
        # What is computed from parameters stays in the graph, and what is computed from buffers.
        self.names: dict[int, str] = {}
        for path, part in root.named_modules():
            # setdefault: a tied tensor goes by its first name, as in the state_dict.
            for name, tensor in (*part._parameters.items(), *(part._buffers.items() if buffers else ())):
                self.names.setdefault(id(tensor), f"{path}.{name}" if path else name)
        self.record_stack_traces = False  # `source` below is all that is needed, at a tenth of the time
        self.opaque, self.branches = opaque, branches
        self.failed_in = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.opaque or isinstance(m, StochasticDepth | ChannelAffine):
            # StochasticDepth reads self.training: as a leaf it still tells train() from eval() after tracing.
            return True
        # The sizes inside an Unflatten are arguments that follow the channels, like those of the function.
        return not isinstance(m, nn.Unflatten) and super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As torch.fx does it, without the record of all modules around a node, which nobody reads here."""
        if self.branches.busy:  # called by control_flow, which wants values and not nodes
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        try:
            if not self.is_leaf_module(m, path):
                return forward(*args, **kwargs)
            # A short cut past create_proxy's walk through nested arguments, for nearly all calls of layers have plain tensors.
            if not kwargs and all(type(a) is Number for a in args):
                return self.proxy(self.create_node("call_module", path, tuple(a.node for a in args), {}))
            return self.create_proxy("call_module", path, args, kwargs)
        except Exception:
            # The innermost: the exception passes every enclosing module on its way out.
            self.failed_in = self.failed_in or path
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As torch.fx does it, which looks through all parameters each time."""
        name = None if self.branches.busy or not isinstance(attr_val, Tensor) else self.names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def to_bool(self, obj: Any) -> bool:
        """An assertion in the model is taken to hold: it has held on the example inputs. Sizes decide other branches."""
        # torch's own frames lie between the model's `if` and us.
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith(_TORCH) and frame.f_back is not None:
            frame = frame.f_back
        # The instruction after the call that asked: an assertion jumps over a raise of AssertionError.
        steps = [i for i in dis.get_instructions(frame.f_code) if i.offset >= frame.f_lasti and i.opname != "TO_BOOL"][:2]
        # Python versions load AssertionError by an instruction of its own or as a common constant.
        if "IF_TRUE" in steps[0].opname and (steps[1].opname == "LOAD_ASSERTION_ERROR" or steps[1].argval is AssertionError):
            return True
        answer = self.branches.number(obj.node)
        return super().to_bool(obj) if answer is None else bool(answer)

    def proxy(self, node: Node) -> Proxy:
        return Number(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = self.graph.create_node(*args, **kwargs)
        node.meta["source"] = _user_line()
        return node


def _user_line() -> str:
    """`file.py:line` of the innermost frame outside of torch's own code."""
    frame = sys._getframe(1)
    while frame is not None:
        # Reached where forward has no file of its own, as in a GraphModule that is traced again.
        if frame.f_code is trace.__code__:
            break  # what called us is not the model
        if name := their_file(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@functools.cache
def their_file(path: str) -> str:
    """The name of a file of the user's; empty for torch's and our own."""
    # Names in angle brackets are generated code, such as torch.fx's.
    return "" if path.startswith((*_NOT_THEIRS, "<")) else Path(path).name


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THEIRS)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "in torch"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _defaults(model: nn.Module, inputs: int) -> dict[str, Any] | None:
    """Arguments of forward behind the tensors, at their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())[inputs:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    # Without concrete_args torch.fx makes placeholders of them, and flags such as return_features would become inputs.
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.kind in kinds} or None


_CHECKS = frozenset({torch._assert, getattr(_symbolic_trace, "_assert_is_none", torch._assert)})
_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.and_, operator.or_)
_ARITHMETIC = frozenset({getattr, operator.getitem, operator.not_, operator.floordiv, operator.mod, *_COMPARISONS})


def _drop_numbers(graph: Graph) -> None:
    """Erase what gives no tensor and has no user: the conditions of branches that sizes have decided."""
    # Backwards: once a user is gone its sources may have none either.
    for node in reversed(list(graph.nodes)):
        plain = node.op in ("call_function", "call_method") and not _holds_tensor(node.meta.get("shape"))
        if plain and not node.users:
            graph.erase_node(node)


def _holds_tensor(shape: Any) -> bool:
    if isinstance(shape, dict):
        return any(_holds_tensor(s) for s in shape.values())
    if shape is None:
        return False
    return all(isinstance(n, int) for n in shape) or any(_holds_tensor(s) for s in shape)


def _drop_checks(graph: Graph, inputs: int) -> None:
    """Erase assertions, arguments at their defaults, and the arithmetic that only they needed."""
    wanted = [n for n in graph.nodes if n.op == "placeholder"][:inputs]
    for node in reversed(list(graph.nodes)):
        plain = node.op == "call_function" and (node.target in _CHECKS or node.target in _ARITHMETIC)
        sizes = node.op == "call_method" and node.target in ("size", "dim")
        if not node.users and node not in wanted and (plain or sizes or node.op in ("placeholder", "get_attr")):
            graph.erase_node(node)
