"""nn.MultiheadAttention and its function are written out: linear layers, heads, one fused attention, a linear layer.

So its heads are channels like any other. The weights keep their values; their names change from `in_proj_weight` to
`in_proj.weight`, or to `q.weight`, `k.weight` and `v.weight` where queries, keys and values come from different tensors. Dropout
of attention weights is left out of fine-tuning: the fused attention has none that knows train() from eval().
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

from compress.graph.names import submodules
from compress.graph.trace.functional import free_name
from compress.graph.trace.lines import stands_for

Call = Callable[..., Node]
"""Makes a node: (kind, target, arguments ..., options={...})."""
_FUNCTION = F.multi_head_attention_forward
_NAMES = tuple(inspect.signature(_FUNCTION).parameters)
_OTHER = ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "static_k", "static_v", "is_causal")
"""Arguments of the function that make it more than attention."""


def present(root: nn.Module, graph: Graph) -> bool:
    """Whether the graph calls one."""
    if any(n.target is _FUNCTION for n in graph.nodes):
        return True
    if not any(type(m) is nn.MultiheadAttention for _, m in submodules(root)):
        return False
    return any(n.op == "call_module" and type(root.get_submodule(str(n.target))) is nn.MultiheadAttention for n in graph.nodes)


def write_out(root: nn.Module, graph: Graph, opaque: dict[str, str]) -> None:
    """Replace every call that is no more than attention; wanted weights keep the layer as it is.

    Args:
        root: holds the layers; gets the new ones.
        graph: its nodes know their shapes.
        opaque: paths that stay whole.
    """
    taken = {name for name, _ in submodules(root)}
    calls: dict[str, list[Node]] = {}
    for node in list(graph.nodes):
        if node.target is _FUNCTION:
            given = dict(zip(_NAMES, node.args, strict=False)) | dict(node.kwargs)
            if _plain_function(node, given):
                _of_function(given).write(node, given)
        elif node.op == "call_module" and type(root.get_submodule(str(node.target))) is nn.MultiheadAttention:
            calls.setdefault(str(node.target), []).append(node)
    for path, nodes in calls.items():
        m: Any = root.get_submodule(path)
        if path not in opaque and all(_plain(m, node) for node in nodes) and len({_own(_arguments(node)) for node in nodes}) == 1:
            made = _of_module(root, m, path, taken, _own(_arguments(nodes[0])))
            for node in nodes:
                made.write(node, _arguments(node))


def _arguments(node: Node) -> dict[str, Any]:
    return dict(zip(("query", "key", "value"), node.args, strict=False)) | dict(node.kwargs)


def _own(given: Mapping[str, Any]) -> bool:
    return given["query"] is given["key"] is given["value"]


def _plain(m: nn.MultiheadAttention, node: Node) -> bool:
    given = _arguments(node)
    mask, padding = given.pop("attn_mask", None), given.pop("key_padding_mask", None)
    if m.bias_k is not None or m.add_zero_attn or m._forward_hooks or m._forward_pre_hooks:
        return False
    known = {"query", "key", "value", "need_weights", "is_causal", "average_attn_weights"}
    masked = mask is None or (isinstance(mask, Node) and len(mask.meta.get("shape") or ()) == 2)
    if padding is not None:  # samples first, whatever the order of the rest
        shaped = isinstance(padding, Node) and len(padding.meta.get("shape") or ()) == 2
        like = mask is None or (isinstance(mask, Node) and mask.meta.get("boolean") == padding.meta.get("boolean"))
        masked = masked and shaped and like and not (given.get("is_causal") and mask is None)
    return len(given.keys() & {"query", "key", "value"}) == 3 and given.keys() <= known and masked and _fits(node, given)


def _plain_function(node: Node, given: Mapping[str, Any]) -> bool:
    mask = given.get("attn_mask")
    masked = mask is None or (isinstance(mask, Node) and len(mask.meta.get("shape") or ()) == 2)
    quiet = isinstance(given["num_heads"], int) and (given.get("training", True) is False or given["dropout_p"] == 0.0)
    return masked and quiet and not any(given.get(name) for name in _OTHER) and _fits(node, given)


def _fits(node: Node, given: Mapping[str, Any]) -> bool:
    """Samples beside each other, and nobody looks at the weights."""
    batches = all(len(given[k].meta.get("shape") or ()) == 3 for k in ("query", "key", "value") if k in given)
    return batches and all(user.target is operator.getitem and (user.args[1] == 0 or not user.users) for user in node.users)


Layer = Callable[[Call, Node], Node]


@dataclass(frozen=True)
class _Attention:
    """What is between the queries, keys and values of one attention and what it gives.

    Attributes:
        heads: how many.
        width: of each.
        batch: axis of the samples.
        inputs: a layer for all three at once, or one for each.
        output: the last layer.
    """

    heads: int
    width: int
    batch: int
    inputs: Sequence[Layer]
    output: Layer

    def write(self, node: Node, given: Mapping[str, Any]) -> None:
        """In the place of a call with these arguments."""
        graph = node.graph

        def call(op: str, target: Any, *args: Any, options: dict[str, Any] | None = None) -> Node:
            made = graph.create_node(op, target, args, options)
            stands_for(made, node)
            return made

        with graph.inserting_before(node):
            q, k, v = self._heads(call, [given[key] for key in ("query", "key", "value")])
            options: dict[str, Any] = {"is_causal": True} if given.get("is_causal") else {}
            if masks := [given[key] for key in ("attn_mask", "key_padding_mask") if given.get(key) is not None]:
                options = {"attn_mask": self._mask(call, masks, given.get("key_padding_mask"))}
            y = call("call_function", F.scaled_dot_product_attention, q, k, v, options=options)
            # (batch, heads, positions, width) -> positions and batch in the order of the layer, heads as channels.
            y = call("call_method", "permute", y, *((0, 2, 1, 3) if self.batch == 0 else (2, 0, 1, 3)))
            y = self.output(call, call("call_method", "flatten", y, 2))
        for user in list(node.users):
            user.replace_all_uses_with(y)
            graph.erase_node(user)
        graph.erase_node(node)

    def _heads(self, call: Call, given: list[Node]) -> list[Node]:
        """Queries, keys and values of (batch, heads, positions, width)."""
        positions = 1 - self.batch
        if len(self.inputs) == 1:
            x = call("call_method", "unflatten", self.inputs[0](call, given[0]), 2, (3, self.heads, self.width))
            x = call("call_method", "permute", x, 2, self.batch, 3, positions, 4)
            return [call("call_function", operator.getitem, x, i) for i in range(3)]
        found: list[Node] = []
        for layer, x in zip(self.inputs, given, strict=True):
            x = call("call_method", "unflatten", layer(call, x), 2, (self.heads, self.width))
            found.append(call("call_method", "permute", x, self.batch, 2, positions, 3))
        return found

    def _mask(self, call: Any, masks: list[Node], padding: Node | None) -> Node:
        """The layer's masks are true where nothing is looked at, those of the function where something is."""
        made: list[Node] = []
        for mask in masks:
            one = call("call_function", operator.invert, mask) if mask.meta.get("boolean") else mask
            if mask is padding:  # (samples, keys): the same for all heads and queries
                one = call("call_method", "unsqueeze", call("call_method", "unsqueeze", one, 1), 2)
            made.append(one)
        both = operator.and_ if masks[0].meta.get("boolean") else operator.add
        return made[0] if len(made) == 1 else call("call_function", both, *made)


def _of_module(root: nn.Module, m: Any, path: str, taken: set[str], own: bool) -> _Attention:
    """A layer of torch's; its weights go to linear layers beside it."""
    m.out_proj.__class__ = nn.Linear
    split, bias = m.in_proj_weight is None, m.in_proj_bias
    if own and not split:
        inputs = [_linear(root, free_name(f"{path}.in_proj", root, taken), m.in_proj_weight, bias)]
    else:
        weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight) if split else _parts(m.in_proj_weight)
        biases = _parts(bias) if bias is not None else (None,) * 3
        names = [free_name(f"{path}.{k}", root, taken) for k in "qkv"]
        inputs = [_linear(root, *each) for each in zip(names, weights, biases, strict=True)]
    width = m.embed_dim // m.num_heads
    return _Attention(m.num_heads, width, 0 if m.batch_first else 1, inputs, _called(f"{path}.out_proj"))


def _of_function(given: Mapping[str, Any]) -> _Attention:
    """The function on parameters, as in the pooling of CLIP: linear functions, which become layers like all others."""
    size, weight, bias = given["query"].meta["shape"][2], given["in_proj_weight"], given["in_proj_bias"]

    def linear(weight: Any, bias: Any) -> Layer:
        return lambda call, x: call("call_function", F.linear, x, weight, bias)

    def third(i: int, own_weight: Any) -> Layer:
        """Of joined weights and biases."""

        def layer(call: Call, x: Node) -> Node:
            place = slice(i * size, (i + 1) * size)
            parts = [None if t is None else call("call_function", operator.getitem, t, place) for t in (weight, bias)]
            return linear(own_weight or parts[0], parts[1])(call, x)

        return layer

    split = given.get("use_separate_proj_weight", False)
    own_weights = [given.get(f"{k}_proj_weight") if split else None for k in "qkv"]
    inputs = [linear(weight, bias)] if _own(given) and not split else [third(i, one) for i, one in enumerate(own_weights)]
    last = linear(given["out_proj_weight"], given["out_proj_bias"])
    return _Attention(given["num_heads"], size // given["num_heads"], 1, inputs, last)


def _linear(root: nn.Module, name: str, weight: nn.Parameter, bias: nn.Parameter | None) -> Layer:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight, made.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]
    owner, _, last = name.rpartition(".")
    root.get_submodule(owner).add_module(last, made.eval())
    return _called(name)


def _called(name: str) -> Layer:
    return lambda call, x: call("call_module", name, x)


def _parts(joined: Tensor) -> tuple[nn.Parameter, ...]:
    return tuple(nn.Parameter(t.detach().clone(), joined.requires_grad) for t in joined.chunk(3))
