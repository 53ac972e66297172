"""A model becomes a torch.fx GraphModule, once, at load.

Modules stay modules, so `train()`/`eval()`, BatchNorm, Dropout and the names of the state_dict survive. Functional activations
and dropouts become module nodes, so that "a rectifier" is one thing. A submodule that will not trace becomes an opaque leaf:
it stays whole, and the reason is kept in `module.meta["opaque"]`. Each node carries `meta["shape"]` (what it gives on the
example inputs) and `meta["source"]` (`file.py:line` of the user's code, where known).
"""

from __future__ import annotations

import copy
import inspect
import operator
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node, Tracer
from torchvision.ops import StochasticDepth

from compress.errors import BadInput, UnsupportedModel

_RETRIES = 64
_NOT_THEIRS = (f"{Path(torch.__file__).parent}/", __file__)  # frames in here are not the user's code

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
    F.sigmoid: (nn.Sigmoid, ()),
    torch.sigmoid: (nn.Sigmoid, ()),
    "sigmoid": (nn.Sigmoid, ()),
    F.tanh: (nn.Tanh, ()),
    torch.tanh: (nn.Tanh, ()),
    "tanh": (nn.Tanh, ()),
}
_IN_PLACE = {torch.relu_: F.relu, F.relu_: F.relu, "relu_": F.relu, F.leaky_relu_: F.leaky_relu, F.elu_: F.elu}
_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
}


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule:
    """Trace a copy of a model: eval mode, fp32, every parameter trainable. The model itself is not touched.

    Args:
        model: any module; a GraphModule of ours is traced again without loss.
        inputs: one example tensor per model input, batch first.

    Raises:
        BadInput: the model does not run on inputs of these shapes.
        UnsupportedModel: `forward` of the model itself depends on data; names the line.
    """
    model = copy.deepcopy(model).float().eval().requires_grad_(True)
    run_once(model, inputs)
    opaque: dict[str, str] = {}
    for _ in range(_RETRIES):
        tracer = _ModelTracer(opaque)
        try:
            graph = tracer.trace(model, concrete_args=_defaults(model, len(inputs)))
            break
        except Exception as error:  # whatever a user's forward can raise on symbolic values
            if not tracer.failed_in:
                raise UnsupportedModel(
                    f"The model's own forward cannot be traced ({_where(error)}: {_first_line(error)}). Needed is a forward without "
                    "control flow that depends on tensor values; move that part into a submodule, which then stays as it is."
                ) from error
            opaque[tracer.failed_in] = f"cannot be traced ({_where(error)}: {_first_line(error)})"
    else:
        raise UnsupportedModel(f"More than {_RETRIES} submodules cannot be traced, the first is {next(iter(opaque))}.")
    module = GraphModule(tracer.root, graph, type(model).__name__)
    _drop_checks(module)
    _modules_for_functions(module)
    module.recompile()
    module.meta["opaque"] = opaque
    module.eval()
    note_shapes(module, inputs)
    return module


def run_once(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The output of a model on its example inputs.

    Raises:
        BadInput: it does not run; names the shapes and the model's own message.
    """
    try:
        with torch.no_grad():
            return model(*inputs)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, t.shape[1:])) for t in inputs)
        raise BadInput(
            f"The model does not run on {len(inputs)} input(s) of shape {shapes} ({_first_line(error)}). "
            "Give the shapes it needs with --input-shape CxHxW, once per model input."
        ) from error


def note_shapes(module: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Run the graph once and write every node's output shape to `meta["shape"]` (nested for tuples, None for the rest)."""
    with torch.no_grad():
        _ShapeNotes(module).run(*inputs)


class _ShapeNotes(Interpreter):
    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = _shape_of(value)
        return value


def _shape_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {k: _shape_of(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_shape_of(v) for v in value)
    return None


class _ModelTracer(Tracer):
    """torch.fx's tracer, with a memory of the innermost submodule in which tracing broke."""

    def __init__(self, opaque: dict[str, str]):
        super().__init__()
        self.record_stack_traces = True
        self.opaque = opaque
        self.failed_in = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # StochasticDepth reads self.training: as a leaf it still tells train() from eval() after tracing.
        return (
            module_qualified_name in self.opaque
            or isinstance(m, StochasticDepth)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = super().create_node(*args, **kwargs)
        node.meta["source"] = _user_line()
        return node


def _user_line() -> str:
    """`file.py:line` of the innermost frame outside of torch's own code."""
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_NOT_THEIRS) and not name.startswith("<"):
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THEIRS)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "in torch"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _defaults(model: nn.Module, inputs: int) -> dict[str, Any] | None:
    """Arguments of forward behind the tensors, at their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())[inputs:]
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD} or None


def _drop_checks(module: GraphModule) -> None:
    """Erase assertions, and the arithmetic and unused arguments that only they needed."""
    checks = (torch._assert, getattr(torch.fx._symbolic_trace, "_assert_is_none", None))
    pure = ("placeholder", "get_attr")
    functions = {
        getattr,
        operator.eq,
        operator.getitem,
        operator.and_,
        operator.floordiv,
        operator.mod,
        torch.fx._symbolic_trace._assert_is_none,
    }
    tensors = [n for n in module.graph.nodes if n.op == "placeholder" and n.users]
    for node in reversed(list(module.graph.nodes)):
        if node.users or node.op == "output":
            continue
        check = node.op == "call_function" and node.target in checks
        unused = node.op in pure and node not in tensors
        arithmetic = (node.op == "call_function" and node.target in functions) or (
            node.op == "call_method" and node.target == "size"
        )
        if check or unused or arithmetic:
            module.graph.erase_node(node)


def _modules_for_functions(module: GraphModule) -> None:
    """Turn functional activations and eval-mode dropouts into module nodes; new names never meet old ones."""
    taken = {name for name, _ in module.named_modules()}
    for node in list(module.graph.nodes):
        made = _module_for(node)
        if made is None:
            continue
        name = next(
            c
            for c in (node.name, *(f"{node.name}_{i}" for i in range(len(taken) + 1)))
            if c not in taken and not hasattr(module, c)
        )
        taken.add(name)
        module.add_submodule(name, made)
        with module.graph.inserting_before(node):
            new = module.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)


def _module_for(node: Node) -> nn.Module | None:
    if node.op not in ("call_function", "call_method"):
        return None
    in_place = node.target in _IN_PLACE
    target = _IN_PLACE.get(node.target, node.target)
    if target in _DROPOUTS:
        settings = _settings(node, ("p", "training", "inplace"))
        # training=True is written by hand for dropout at inference: that is no module's behaviour.
        return None if settings is None or settings.get("training", True) else _DROPOUTS[target](settings.get("p", 0.5))
    if target not in ACTIVATIONS:
        return None
    kind, names = ACTIVATIONS[target]
    settings = _settings(node, names)
    if settings is None:
        return None
    return kind(**({**settings, "inplace": True} if in_place else settings))


def _settings(node: Node, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Arguments behind the input by name; None where one of them is computed in the graph or not known."""
    rest = node.args[1:] if node.args else ()
    if len(rest) > len(names):
        return None
    settings = dict(zip(names, rest, strict=False)) | {k: v for k, v in node.kwargs.items() if k != "input"}
    return None if any(isinstance(v, Node) for v in settings.values()) or not set(settings) <= set(names) else settings
