"""A model becomes a torch.fx GraphModule, once, at load.

Modules stay modules, so `train()`/`eval()`, BatchNorm, Dropout and the names of the state_dict survive. Functional activations
and dropouts become module nodes, and each call of an activation has a module, so that "an activation" is one thing. A submodule
that will not trace becomes an opaque leaf: it stays whole, and the reason is kept in `module.meta["opaque"]`. Each node carries
`meta["shape"]` (what it gives on the example inputs) and `meta["source"]` (`file.py:line` of the user's code, where known).

All of this is settled on the graph before the GraphModule is made (`assembled`), whose code is written when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, _symbolic_trace

from compress.errors import BadInput, UnsupportedModel
from compress.graph.names import refuse_untraceable, submodules
from compress.graph.trace import attention, constants, norms_by_hand, products
from compress.graph.trace.assembled import graph_module
from compress.graph.trace.functional import module_per_call, modules_for_functions
from compress.graph.trace.layers_of_functions import layers_for_functions, needs_shapes, rows_for_lookups
from compress.graph.trace.lines import Unrecorded, Untraced, first_line, silent, where
from compress.graph.trace.moved_in_place import moved
from compress.graph.trace.plain_weights import make_plain
from compress.graph.trace.recorded import changes_others, record
from compress.graph.trace.recorder import STALE
from compress.graph.trace.scripted import as_python
from compress.graph.trace.shapes import holds_tensor, note_shapes
from compress.graph.trace.sharing import sharing
from compress.graph.trace.spelled_out import spell_out
from compress.graph.trace.symbolic import SymbolicTracer
from compress.graph.trace.values import plain_output
from compress.graph.trace.wrapped import unwrapped

_RETRIES = 64  # submodules that may turn out not to trace, each at the cost of one more trace


Way = tuple[nn.Module, Graph, dict[str, str]]
"""What was traced, its graph, and why submodules stay whole."""


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule:
    """Trace a copy of a model: eval mode, fp32; what is frozen stays so. The model itself is not touched.

    The copy shares parameters and buffers with the model, as far as these are fp32: to change one of the two in place, copy it.

    Args:
        model: any module; a GraphModule of ours is traced again without loss.
        inputs: one example tensor per model input, batch first; real ones of other precisions are used as fp32, too.

    Raises:
        BadInput: the model does not run on inputs of these shapes.
        UnsupportedModel: `forward` of the model itself depends on data; names the line.
    """
    with as_python():
        return _traced(model, tuple(x.float() if x.is_floating_point() else x for x in inputs))


def _traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule:
    model = unwrapped(model)
    refuse_untraceable(model)
    by_symbols, why = _tried(lambda opaque: SymbolicTracer.of(_fresh(model), inputs, opaque), 1)
    if by_symbols is not None and _wraps(by_symbols[1]):
        by_running, _ = _tried(lambda opaque: record(lambda: _fresh(model), inputs, opaque), 1)
        by_symbols = by_running or by_symbols
    if by_symbols is not None:
        try:
            return _module(*by_symbols, inputs)
        except (BadInput, UnsupportedModel):
            raise
        except Exception:
            # Symbols go through what no tensor does (`hasattr(x, anything)`): then only a run can tell.
            run_once(_fresh(model), inputs)
    return _module(*_otherwise(model, inputs, why, symbols=by_symbols is None), inputs)


def _wraps(graph: Graph) -> bool:
    """Whether it calls functions of a library as they are (`torch.fx.wrap`): a run sees what they do."""
    called = {node.target for node in graph.nodes if node.op == "call_function" and isinstance(node.target, FunctionType)}
    return any(not str(f.__module__).startswith(("torch.", "torchvision.ops.stochastic_depth", "compress.")) for f in called)


def _module(model: nn.Module, graph: Graph, opaque: dict[str, str], inputs: tuple[Tensor, ...]) -> GraphModule:
    """A GraphModule of a model and the graph of its forward."""
    _drop_checks(model, graph)
    moved(graph)
    spell_out(graph)
    plain = _written_out(model, graph, inputs, opaque)
    modules_for_functions(model, graph)
    # After functions have become modules, as those are called once each and must not be counted twice.
    module_per_call(model, graph)
    _shapes(model, graph, inputs)
    _refuse_no_tensor(graph)
    _drop_numbers(model, graph)  # needs the shapes: what gives no tensor is told by them
    graph._tracer_cls = None  # torch makes a graph of a pickled module anew, by this class and without its arguments
    module = graph_module(model, graph, type(model).__name__)
    module.meta["opaque"], module.meta["plain"] = opaque, plain
    return module


def _written_out(model: nn.Module, graph: Graph, inputs: tuple[Tensor, ...], opaque: dict[str, str]) -> dict[str, str]:
    """Layers for what is written as functions, constants for what sizes tell: both are looked for where tensors stand alone."""
    attends, norms = attention.present(model, graph), norms_by_hand.found(graph)
    if attends or norms or needs_shapes(graph) or products.present(graph):
        _shapes(model, graph, inputs)
    norms_by_hand.write_layers(graph, norms)
    if attends:
        attention.write_out(model, graph, opaque)
    if not any(n.op == "get_attr" or n.target in _WRITTEN or constants.is_foreign(n) for n in graph.nodes):
        return {}
    constants.fold(model, graph, constants.Constants(model, graph, inputs))
    rows_for_lookups(model, graph, known := constants.Constants(model, graph, inputs))
    plain = layers_for_functions(model, graph, known)
    if products.present(graph) and products.layers_for_products(graph, constants.Constants(model, graph, inputs)):
        plain |= layers_for_functions(model, graph, constants.Constants(model, graph, inputs))
    return plain


_WRITTEN = constants.BEGINNINGS | {F.layer_norm, F.instance_norm, F.group_norm}


def _shapes(model: nn.Module, graph: Graph, inputs: tuple[Tensor, ...]) -> None:
    with silent():
        note_shapes(model, graph, inputs)


def _fresh(model: nn.Module) -> nn.Module:
    """A copy to trace: a forward may keep what it has seen, and the next way to a graph must not find it."""
    made = sharing(model)
    every = [m for _, m in submodules(made)]
    _in_eval(made, every)
    make_plain(made)
    _plain_classes(every)  # before tracing: whether a module is a leaf depends on its class
    return made


def _otherwise(model: nn.Module, inputs: tuple[Tensor, ...], why: str, symbols: bool) -> Way:
    """Where symbols do not go through at once: the way that leaves fewer submodules whole, by running if equal.

    `symbols`: whether they may go through with parts left whole.
    """
    try:
        plain_output(run_once(_fresh(model), inputs))  # the shapes may be to blame
    except Unrecorded as error:
        raise UnsupportedModel(f"The model cannot be used: {error}. Let its forward return those.") from error
    by_running, unrecorded = _tried(lambda opaque: record(lambda: _fresh(model), inputs, opaque), _RETRIES)
    by_symbols = None
    if symbols and (by_running is None or by_running[2]):
        by_symbols, why = _tried(lambda opaque: SymbolicTracer.of(_fresh(model), inputs, opaque), _RETRIES)
    found = [way for way in (by_running, by_symbols) if way is not None]
    if not found:
        needed = "are parts that are written as x[...] = y" if STALE in unrecorded else _STEPS
        raise UnsupportedModel(
            f"The model's own forward cannot be traced ({unrecorded or why}). Needed {needed}; move that part into a submodule, "
            "which then stays whole."
        )
    return min(found, key=lambda way: len(way[2]))


def _tried(attempt: Callable[[dict[str, str]], tuple[nn.Module, Graph]], times: int) -> tuple[Way | None, str]:
    """One way to a graph: each time that it breaks in a submodule, that one stays whole. None, and why, where that is no help."""
    opaque: dict[str, str] = {}
    why = ""
    for _ in range(times):
        try:
            return (*attempt(opaque), opaque), ""
        except Untraced as error:
            why = str(error)
            if not error.path or error.path in opaque:
                break
            # The innermost one only: what is around it keeps its channels free.
            opaque[error.path] = f"cannot be traced ({why})"
    return None, why


def _in_eval(model: nn.Module, every: list[nn.Module]) -> None:
    """As eval() does it, in a tenth of the time where no class has a way of its own."""
    if any(kind.train is not nn.Module.train or kind.eval is not nn.Module.eval for kind in set(map(type, every))):
        model.eval()
    for m in every:
        m.__dict__["training"] = False


_STEPS = "is a forward whose steps do not depend on the values of its input"
_HARMLESS = frozenset({"__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__firstlineno__", "extra_repr"})
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HARMLESS |= {"__static_attributes__", "reset_parameters", "__repr__", "__constants__", "__parameters__", "__annotate_func__"}


def _plain_classes(every: list[nn.Module]) -> None:
    """Subclasses of torch.nn's layers that compute nothing else than their base become that base: one layer is one thing."""
    plain = {kind: base for kind in set(map(type, every)) if (base := _plain_class(kind)) is not kind}
    for m in every if plain else ():
        if (base := plain.get(type(m))) is not None:
            # It keeps all attributes: only forward is looked up elsewhere.
            m.__class__ = base


def _plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The layer of torch.nn that a class is no more than; else the class itself."""
    mro = kind.__mro__
    # The first class of torch.nn's in the order of inheritance; nn.Module itself is one, so there always is one.
    base = next(c for c in mro if c.__module__.startswith("torch.nn.modules."))
    above = mro[: mro.index(base)]
    # Anything beyond names and resetting may compute; then the class must stay, and becomes a leaf by torch.fx's own rules.
    return base if above and base not in _CONTAINERS and all(set(vars(c)) <= _HARMLESS for c in above) else kind


def run_once(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The output of a model on its example inputs.

    Raises:
        BadInput: it does not run; names the shapes and the model's own message.
        UnsupportedModel: it runs on a GPU alone.
    """
    try:
        with torch.no_grad(), silent():
            return model(*inputs)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, t.shape[1:])) for t in inputs)
        remedy = "Give the shapes it needs with --input-shape CxHxW, once per model input."
        if "'indices'" in str(error):  # a table that is looked up
            remedy = "Inputs are float32 here: let its forward begin with .long() and a clamp to the numbers that it knows."
        if "too many indices" in str(error):  # an image has few axes, but a dictionary looks the same to it
            remedy = (
                f"An input is indexed at {where(error)}: where that is a dictionary or a tuple, wrap the model in one that takes "
                "tensors, one per input; else give the shapes it needs with --input-shape CxHxW."
            )
        _refuse_elsewhere(error)
        if isinstance(error, KeyError | AttributeError | NameError):  # no shape would help
            raise BadInput(
                f"The model's own code raises {type(error).__name__} ({where(error)}: {first_line(error)}) on {len(inputs)} "
                f"input(s) of shape {shapes}; needed is a forward that takes tensors, one per input. Correct it, or wrap the "
                "model in one that gives it what it looks for."
            ) from error
        raise BadInput(
            f"The model does not run on {len(inputs)} input(s) of shape {shapes} ({where(error)}: {first_line(error)}). {remedy}"
        ) from error


def _refuse_elsewhere(error: Exception) -> None:
    """Refuse a model whose code does not run on this machine, whatever it is given."""
    said = f"{where(error)}: {first_line(error)}"
    if isinstance(error, ImportError):
        raise BadInput(
            f"The model's own code imports what is not installed here ({said}). Install it for this Python, or take the "
            "import out of forward."
        ) from error
    words = str(error)
    if any(word in words for word in ("CUDA", "NVIDIA", "cuda")) or (
        isinstance(error, NotImplementedError) and "backend" in words
    ):
        raise UnsupportedModel(
            f"The model computes on a GPU whatever it is given ({said}); needed is a forward that runs on the CPU, where models "
            "are traced. Take .cuda() out of it, and give its own operations a version for the CPU."
        ) from error


_CHECKS = frozenset({torch._assert, getattr(_symbolic_trace, "_assert_is_none", torch._assert)})


def _drop_numbers(root: nn.Module, graph: Graph) -> None:
    """Erase what gives no tensor and has no user: the conditions of branches that sizes have decided."""
    # Backwards: once a user is gone its sources may have none either.
    for node in reversed(list(graph.nodes)):
        plain = node.op in ("call_function", "call_method") and not holds_tensor(node.meta.get("shape"))
        if plain and not node.users and not changes_others(root, node):  # x[...] = y gives nothing, and changes x
            graph.erase_node(node)


def _refuse_no_tensor(graph: Graph) -> None:
    output = next(iter(graph.find_nodes(op="output")))
    if not holds_tensor(output.meta.get("shape")):
        given = output.args[0]
        what = f"what {given.target} ({given.meta['source']}) gives" if _named(given) else repr(str(given)[:80])
        raise UnsupportedModel(
            f"The model gives no tensor but {what}; needed is a tensor, or tensors in a tuple, list or "
            "dictionary. Let its forward return them."
        )


def _named(given: Any) -> bool:
    return isinstance(given, Node) and isinstance(given.target, str) and bool(given.meta.get("source"))


def _drop_checks(root: nn.Module, graph: Graph) -> None:
    """Erase checks and what only they needed; a layer stays."""
    for node in [n for n in graph.nodes if n.target in _CHECKS]:
        graph.erase_node(node)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output", "call_module") or changes_others(root, n))
