"""What a model costs before it runs: parameters, multiply-accumulates, weight bytes, activation bytes, per layer and in all.

Everything follows from one pass over the graph with fake tensors: shapes move, no number is computed, no memory is taken.

MACs: half of what `torch.utils.flop_counter` counts (convolution, grouped and transposed ones included, linear layers and the
matrix products of attention), with what it passes over (counting.py). Norms, activations and pooling count 0, as in the tables
that people compare with. A layer with a matrix of weights for which nothing was counted is named in `Cost.uncounted`.

Activation bytes: liveness over the graph. The result of a node lives from that node to its last consumer; the peak is

    max over nodes t of  sum of bytes(b) for buffers b with  born(b) <= t <= last_read(b)

for a batch of 1. A view shares the buffer of its source; an in-place result counts as a buffer of its own, since runtimes
differ in what they reuse and the user's `inplace=True` should not change the comparison. What a leaf module takes inside
(attention scores, say) is not seen. A runtime's arena may be smaller (reuse) or larger (workspaces, layouts): this is a
figure for comparing models, not for sizing a device to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from compress.errors import UnsupportedModel
from compress.measure.counting import counter, passed_over, plain_kernels


@dataclass(frozen=True)
class LayerCost:
    """One layer that has parameters or multiplies; functions of the graph appear under their node's name.

    Attributes:
        name: module path, or the node's name for a function or a bare parameter.
        kind: `Conv2d`, `Linear`, `matmul`, `Parameter`, ...
        params: parameters first used here; those shared with an earlier layer count there.
        macs: multiply-accumulates per sample, over all calls.
        output_shape: shape of the (first) result without the batch axis.
    """

    name: str
    kind: str
    params: int
    macs: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Cost of a whole model; MACs and activations are per sample.

    Attributes:
        params: parameters, shared ones once.
        macs: multiply-accumulates of one sample.
        weight_bytes: bytes of parameters and buffers, shared ones once.
        peak_activation_bytes: activations alive at once, batch of 1 (module docstring).
        layers: in the order of execution.
        uncounted: layers, with their kind, that hold a matrix of weights and for which no multiply-accumulate was counted.
    """

    params: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int
    layers: tuple[LayerCost, ...]
    uncounted: tuple[str, ...] = ()

    def peak_memory_bytes(self, batch: int = 1) -> int:
        """Weights + the activations of a batch alive at once: what inference needs at least, without the runtime's own."""
        return self.weight_bytes + batch * self.peak_activation_bytes


def cost(module: GraphModule, inputs: tuple[Tensor, ...]) -> Cost:
    """Count a traced model. Only shapes and types of `inputs` matter; their batch axis (the first) is cut to 1.

    Args:
        module: traced model in eval mode; it is not changed.
        inputs: one tensor per model input, (batch, ...).
    """
    # A batch of 1: costs are per sample.
    example = tuple(x[:1] for x in inputs)
    try:
        # allow_non_fake_inputs: the model's parameters stay real and are not copied.
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            steps = _Steps(module, counter(), mode)
            fake = tuple(torch.empty(x.shape, dtype=x.dtype, device=_device(module, x)) for x in example)
            steps.count(fake)
    except Exception:  # a leaf that looks at values (nonzero, item) has no shapes without them: run it for real, once
        steps = _Steps(module, counter(), None)
        try:
            steps.count(tuple(x.to(_device(module, x)) for x in example))
        except (RuntimeError, ValueError, TypeError) as error:
            why = str(error).strip().splitlines()[0]
            raise UnsupportedModel(
                f"The model does not run on an input of its own shape ({why}). Mend that layer, or save the model again."
            ) from error
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}  # by identity: a shared tensor is stored once
    return Cost(
        params=sum(p.numel() for p in module.parameters()),
        macs=sum(layer.macs for layer in steps.layers.values()),
        weight_bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
        peak_activation_bytes=_peak(module, steps.buffers),
        layers=tuple(layer for layer in steps.layers.values() if layer.params or layer.macs),
        uncounted=_uncounted(module, steps.layers.values()),
    )


def _uncounted(module: GraphModule, layers: Iterable[LayerCost]) -> tuple[str, ...]:
    parts = dict(module.named_modules())
    free = [layer for layer in layers if not layer.macs and layer.name in parts]
    return tuple(f"{layer.name} ({layer.kind})" for layer in free if passed_over(parts[layer.name]))


_Buffer = tuple[int, int]  # (storage, version): a view shares both with its source, an in-place result only the first


class _Steps(Interpreter):
    """Runs the graph node by node and notes what each one multiplies and which buffers it returns."""

    def __init__(self, module: GraphModule, counter: FlopCounterMode, mode: FakeTensorMode | None):
        super().__init__(module)
        self.counter, self.mode = counter, mode
        self.layers: dict[str, LayerCost] = {}
        self.buffers: dict[Node, dict[_Buffer, int]] = {}
        self.counted: set[int] = set()
        self.weights: set[int] = set()
        self.storages: list[Any] = []  # kept alive: the address of a freed one would name two buffers

    def count(self, inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad(), plain_kernels(), self.counter:
            self.run(*inputs)

    def run_node(self, n: Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        if n.op == "output":
            return result
        if n.op == "get_attr" and isinstance(result, Tensor):
            self._count(n, result, [result] if isinstance(result, torch.nn.Parameter) else [], 0)
            # Torch's counter hooks what asks for gradients, which a view of a parameter does without a function that gives them.
            result = result.detach()
            if self.mode is not None:
                # A weight in the graph is real; beside fake activations it has to be fake, too.
                result = self.mode.from_tensor(result)
            self.weights.add(self._storage(result))  # weights and constants are no activations
        else:
            owned = list(self.fetch_attr(str(n.target)).parameters()) if n.op == "call_module" else []
            # // 2: the counter counts a multiplication and an addition as two operations.
            self._count(n, result, owned, (self.counter.get_total_flops() - before) // 2)
        self.buffers[n] = {
            (storage, int(t._version)): t.untyped_storage().nbytes()
            for t in tree_leaves(result)
            if isinstance(t, Tensor) and (storage := self._storage(t)) not in self.weights
        }
        return result

    def _storage(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self.storages.append(storage)
        # The storage's own address: views and in-place results keep it, though they are other tensors.
        return storage._cdata

    def _count(self, node: Node, result: Any, parameters: list[Tensor], macs: int) -> None:
        name, kind = _name_and_kind(node, self)
        # A shared parameter counts where it is first used.
        params = sum(p.numel() for p in parameters if id(p) not in self.counted)
        self.counted.update(id(p) for p in parameters)
        if name in self.layers:
            self.layers[name] = replace(self.layers[name], macs=self.layers[name].macs + macs)
            return
        shape = next((tuple(t.shape[1:]) for t in tree_leaves(result) if isinstance(t, Tensor)), ())
        self.layers[name] = LayerCost(name, kind, params, macs, tuple(int(n) for n in shape))


def _name_and_kind(node: Node, steps: Interpreter) -> tuple[str, str]:
    if node.op == "call_module":
        return str(node.target), type(steps.fetch_attr(str(node.target))).__name__
    if node.op == "get_attr":
        return str(node.target), "Parameter"
    return node.name, node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _peak(module: GraphModule, made: dict[Node, dict[_Buffer, int]]) -> int:
    """Largest number of bytes alive at once (equation in the module docstring)."""
    order = list(module.graph.nodes)
    born: dict[_Buffer, int] = {}
    last: dict[_Buffer, int] = {}
    size: dict[_Buffer, int] = {}
    turn = {node: t for t, node in enumerate(order)}
    for node, buffers in made.items():
        # What nobody reads still lives while it is made.
        until = max([turn[node], *(turn[user] for user in node.users)])
        for buffer, n_bytes in buffers.items():
            born.setdefault(buffer, turn[node])
            last[buffer] = max(last.get(buffer, 0), until)
            size[buffer] = n_bytes
    change = [0] * (len(order) + 1)
    for buffer, n_bytes in size.items():
        change[born[buffer]] += n_bytes
        # It is still there at its last reader: freed one step later.
        change[last[buffer] + 1] -= n_bytes
    alive = peak = 0
    for delta in change:
        alive += delta
        peak = max(peak, alive)
    return peak


def _device(module: GraphModule, example: Tensor) -> torch.device:
    return next((p.device for p in module.parameters()), example.device)
