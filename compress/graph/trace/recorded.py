"""The second way to a graph: the forward runs on tensors, and every operation on them is written down (`recorder`).

Any Python goes: `isinstance`, keyword arguments, results in classes of their own. What Python does with sizes is done, so sizes
are plain numbers in the graph, and it holds for inputs of one size. The batch is no such size: the model runs on two batches, and
a number that differs between them has to be a multiple of the batch, plus a constant. A tensor that no operation of ours has made
and that is another one in the two runs was computed from the input unseen, and is refused.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from compress.graph.trace.lines import Unrecorded, Untraced, silent, stands_for
from compress.graph.trace.recorder import IN_PLACE, Recorder, Recording, Stale
from compress.graph.trace.values import plain_output, tensors_in

BATCHES = (2, 3)
PROOFS = (1, 5)


def record(fresh: Callable[[], nn.Module], inputs: tuple[Tensor, ...], opaque: dict[str, str]) -> tuple[nn.Module, Graph]:
    """A model and the graph of its forward.

    Tensors that the forward makes itself become buffers of the model, named constant, constant_1, ...

    Args:
        fresh: gives the model, in eval mode; another copy each time, since a forward may keep what it has seen.
        inputs: example inputs, a batch of 1.
        opaque: submodules that are called as they are.

    Raises:
        Untraced: the forward does what no graph can say.
    """
    recorder = Recorder(fresh(), opaque)
    try:
        try:
            one = recorder.recorded(batch_of(inputs, BATCHES[0]))
        except Unrecorded as error:
            views = isinstance(error, Stale)
            if not views and (not recorder.asked or not _indifferent(fresh, inputs, opaque)):
                raise
            recorder = Recorder(fresh(), opaque, answer=None if views else False, in_place=views)
            one = recorder.recorded(batch_of(inputs, BATCHES[0]))
        root, recorder = recorder.root, Recorder(fresh(), opaque, recorder.answer, recorder.in_place)
        other = recorder.recorded(batch_of(inputs, BATCHES[1]))
        graph = _joined(root, one, other)
        _prove(fresh(), GraphModule(root, copy.deepcopy(graph)), inputs)  # a graph belongs to the module it was first given to
        return root, graph
    except Exception as error:  # whatever a user's forward can raise
        raise Untraced(error, recorder.failed_in) from error


def _indifferent(fresh: Callable[[], nn.Module], inputs: tuple[Tensor, ...], opaque: dict[str, str]) -> bool:
    """Whether a forward takes the same steps whatever it is told of values: it asks in order to warn, and no more."""
    try:
        yes, no = (Recorder(fresh(), opaque, told).recorded(batch_of(inputs, BATCHES[0])) for told in (True, False))
    except Exception:  # it raises at one of the answers, or cannot be written down for another reason
        return False
    return _steps(yes) == _steps(no)


def _steps(run: Recording) -> list[Any]:
    """What leads to the output, with positions for nodes."""
    graph = copy.deepcopy(run.graph)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    places = {node: i for i, node in enumerate(graph.nodes)}

    def place(node: Node) -> Any:
        return places[node]

    return [(n.op, n.target, repr(map_arg(n.args, place)), repr(map_arg(n.kwargs, place))) for n in graph.nodes]


def _prove(model: nn.Module, module: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Compare the graph with the forward on batches that it was not recorded on."""
    with torch.no_grad(), silent():
        for count in PROOFS:
            batch = batch_of(inputs, count)
            expected, found = tensors_in(plain_output(model(*batch))), tensors_in(module(*batch))
            same = len(expected) == len(found) and all(map(_equal, expected, found))
            if not same:
                raise Unrecorded(f"what the forward does for a batch of {count} is not what it does for one of {BATCHES[0]}")


def _equal(a: Tensor, b: Tensor) -> bool:
    """Up to rounding, which differs between batch sizes."""
    finite = a.float()[a.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def batch_of(inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """So many samples made from the one of the example: no two alike, every value in the range of the example's."""
    made: list[Tensor] = []
    for x in inputs:
        shares = [0.97**i * 3 / (1 + count) if x.is_floating_point() else 1 for i in range(count)]
        rows = [x[:1].roll(i + count - 2, -1) * share for i, share in enumerate(shares)]
        made.append(torch.cat([r.to(x.dtype) for r in rows]))
    return tuple(made)


def _joined(root: nn.Module, one: Recording, other: Recording) -> Graph:
    """One graph of two recordings of the same steps; numbers that follow the batch are computed from it."""
    nodes, others = list(one.graph.nodes), list(other.graph.nodes)
    same = len(nodes) == len(others) and all(
        (a.op, a.target, len(a.args), a.kwargs.keys()) == (b.op, b.target, len(b.args), b.kwargs.keys())
        for a, b in zip(nodes, others, strict=True)
    )
    if not same:
        raise Unrecorded("the forward does other steps for another batch")
    batch = _Batch(one.graph, next(n for n in nodes if n.op == "placeholder"))
    matches = dict(zip(nodes, others, strict=True))
    for node, twin in matches.items():
        if node in one.constants:
            _constant(root, node, one.constants[node], other.constants[twin], batch)
    for node, twin in matches.items():
        node.args = cast(Any, _followed(node.args, twin.args, batch, node))
        node.kwargs = cast(Any, _followed(node.kwargs, twin.kwargs, batch, node))
    one.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or changes_others(root, n))
    return one.graph


def changes_others(root: nn.Module, node: Node) -> bool:
    """Whether a node changes a tensor that others look at."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.target in IN_PLACE or (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))


@dataclass
class _Batch:
    """Numbers of a graph that follow its batch."""

    graph: Graph
    first: Node
    made: dict[tuple[int, int], Node] = field(default_factory=dict[tuple[int, int], Node])

    def number(self, one: int, other: int) -> Node:
        """The node of `factor * batch + rest`, right behind the inputs."""
        factor = other - one
        rest = one - BATCHES[0] * factor
        if (factor, rest) not in self.made:
            last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
            with self.graph.inserting_after(last):
                node = self.graph.call_method("size", (self.first, 0))
            for function, value, plain in ((operator.mul, factor, 1), (operator.add, rest, 0)):
                if value != plain:
                    with self.graph.inserting_after(node):
                        node = self.graph.call_function(function, (node, value))
            self.made[factor, rest] = node
        return self.made[factor, rest]


def _followed(a: Any, b: Any, batch: _Batch, node: Node) -> Any:
    """The arguments of a node, with numbers that follow the batch computed from it."""
    if isinstance(a, Node) or a is None:
        return a
    if isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
        parts = [_followed(x, y, batch, node) for x, y in zip(cast(Any, a), cast(Any, b), strict=True)]
        return parts if isinstance(a, list) else tuple(parts)
    if isinstance(a, dict) and isinstance(b, dict):
        return {k: _followed(v, b[k], batch, node) for k, v in cast(dict[Any, Any], a).items()}
    if isinstance(a, slice) and isinstance(b, slice):
        return slice(*(_followed(getattr(a, k), getattr(b, k), batch, node) for k in ("start", "stop", "step")))
    if type(a) is int and type(b) is int and a != b:
        return batch.number(a, b)
    if a != b and a == a:
        _unseen(node, f"uses {a} for one batch and {b} for another")
    return a


def _unseen(node: Node, what: str) -> NoReturn:
    raise Unrecorded(f"{node.meta.get('source') or node.name} {what}")


def _counts_up(value: Tensor) -> bool:
    """Whether a tensor is 0, 1, 2, ...: the rows of a batch."""
    return value.ndim == 1 and not value.is_floating_point() and torch.equal(value, torch.arange(len(value)).to(value.dtype))


def _constant(root: nn.Module, node: Node, one: Tensor, other: Tensor, batch: _Batch) -> None:
    """A tensor that the forward has made becomes a buffer; along axes that follow the batch it has to be the same everywhere."""
    if _counts_up(one) and _counts_up(other) and len(one) != len(other):
        with batch.graph.inserting_before(node):
            device = batch.graph.call_function(getattr, (batch.first, "device"))
            rows = batch.graph.call_function(torch.arange, (batch.number(len(one), len(other)),), {"device": device})
        node.replace_all_uses_with(rows)
        return
    along = [d for d, (n, m) in enumerate(zip(one.shape, other.shape, strict=False)) if n != m]
    thin, thinner = one, other
    for d in along:
        thin, thinner = thin.narrow(d, 0, 1), thinner.narrow(d, 0, 1)
    if one.ndim != other.ndim or not torch.equal(thin, thinner) or not torch.equal(thin.expand_as(one), one):
        used = next(iter(node.users), node)
        _unseen(used, "uses a tensor that depends on the input in a way that was not seen")
    name = next(n for n in (f"constant_{i}" if i else "constant" for i in range(10**6)) if not hasattr(root, n))
    root.register_buffer(name, thin.clone(), persistent=False)
    node.target = name
    if along:
        sizes: list[Any] = [-1] * one.ndim
        for d in along:
            sizes[d] = batch.number(one.shape[d], other.shape[d])
        with batch.graph.inserting_after(node):
            wide = batch.graph.call_method("expand", (node, *sizes))
        stands_for(wide, node)
        node.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
