"""nn.MultiheadAttention is written out: linear layers, heads, one fused attention, a linear layer.

So its heads are channels like any other. The weights keep their values; their names change from `in_proj_weight` to
`in_proj.weight`, or to `q.weight`, `k.weight` and `v.weight` where queries, keys and values come from different tensors. Dropout
of attention weights is left out of fine-tuning: the fused attention has none that knows train() from eval().
"""

from __future__ import annotations

import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

from compress.graph.names import submodules
from compress.graph.trace.functional import free_name
from compress.graph.trace.lines import stands_for


def present(root: nn.Module, graph: Graph) -> bool:
    """Whether the model has one, and the graph calls it."""
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
    for node in graph.nodes:
        if node.op == "call_module" and type(root.get_submodule(str(node.target))) is nn.MultiheadAttention:
            calls.setdefault(str(node.target), []).append(node)
    for path, nodes in calls.items():
        m: Any = root.get_submodule(path)
        if path not in opaque and all(_plain(m, node) for node in nodes) and len({_own(node) for node in nodes}) == 1:
            _Written(root, m, path, taken, _own(nodes[0])).replace(nodes)


def _arguments(node: Node) -> dict[str, Any]:
    return dict(zip(("query", "key", "value"), node.args, strict=False)) | dict(node.kwargs)


def _own(node: Node) -> bool:
    given = _arguments(node)
    return given["query"] is given["key"] is given["value"]


def _plain(m: nn.MultiheadAttention, node: Node) -> bool:
    given = _arguments(node)
    mask, padding = given.pop("attn_mask", None), given.pop("key_padding_mask", None)
    if m.bias_k is not None or m.add_zero_attn or m._forward_hooks or m._forward_pre_hooks:
        return False
    known = {"query", "key", "value", "need_weights", "is_causal", "average_attn_weights"}
    fits = all(len(given[k].meta.get("shape") or ()) == 3 for k in ("query", "key", "value") if k in given)
    masked = mask is None or (isinstance(mask, Node) and len(mask.meta.get("shape") or ()) == 2)
    if padding is not None:  # samples first, whatever the order of the rest
        shaped = isinstance(padding, Node) and len(padding.meta.get("shape") or ()) == 2
        like = mask is None or (isinstance(mask, Node) and mask.meta.get("boolean") == padding.meta.get("boolean"))
        masked = masked and shaped and like and not (given.get("is_causal") and mask is None)
    picked = all(user.target is operator.getitem and (user.args[1] == 0 or not user.users) for user in node.users)
    return len(given.keys() & {"query", "key", "value"}) == 3 and given.keys() <= known and fits and masked and picked


class _Written:
    """The layers of one attention, and its calls."""

    def __init__(self, root: nn.Module, m: Any, path: str, taken: set[str], own: bool):
        self.m, self.path, self.own = m, path, own
        self.heads, self.width = m.num_heads, m.embed_dim // m.num_heads
        self.output = f"{path}.out_proj"
        m.out_proj.__class__ = nn.Linear
        split = m.in_proj_weight is None
        bias = m.in_proj_bias
        if own and not split:
            self.inputs = [self._linear(root, free_name(f"{path}.in_proj", root, taken), m.in_proj_weight, bias)]
        else:
            weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight) if split else _parts(m.in_proj_weight)
            biases = _parts(bias) if bias is not None else (None,) * 3
            names = [free_name(f"{path}.{k}", root, taken) for k in "qkv"]
            self.inputs = [self._linear(root, *each) for each in zip(names, weights, biases, strict=True)]

    def _linear(self, root: nn.Module, name: str, weight: nn.Parameter, bias: nn.Parameter | None) -> str:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        made.weight, made.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]
        owner, _, last = name.rpartition(".")
        root.get_submodule(owner).add_module(last, made.eval())
        return name

    def replace(self, nodes: list[Node]) -> None:
        for node in nodes:
            given, graph = _arguments(node), node.graph

            def call(op: str, target: Any, *args: Any, options: dict[str, Any] | None = None, of: Node = node) -> Node:
                made = of.graph.create_node(op, target, args, options)
                stands_for(made, of)
                return made

            with graph.inserting_before(node):
                q, k, v = self._heads(call, [given[key] for key in ("query", "key", "value")])
                options: dict[str, Any] = {"is_causal": True} if given.get("is_causal") else {}
                if masks := [given[key] for key in ("attn_mask", "key_padding_mask") if given.get(key) is not None]:
                    options = {"attn_mask": self._mask(call, masks, given.get("key_padding_mask"))}
                y = call("call_function", F.scaled_dot_product_attention, q, k, v, options=options)
                # (batch, heads, positions, width) -> positions and batch in the order of the layer, heads as channels.
                y = call("call_method", "permute", y, *((0, 2, 1, 3) if self.m.batch_first else (2, 0, 1, 3)))
                y = call("call_module", self.output, call("call_method", "flatten", y, 2))
            for user in list(node.users):
                user.replace_all_uses_with(y)
                graph.erase_node(user)
            graph.erase_node(node)

    def _heads(self, call: Any, given: list[Node]) -> list[Node]:
        """Queries, keys and values of (batch, heads, positions, width)."""
        batch, positions = (0, 1) if self.m.batch_first else (1, 0)
        if len(self.inputs) == 1:
            x = call("call_method", "unflatten", call("call_module", self.inputs[0], given[0]), 2, (3, self.heads, self.width))
            x = call("call_method", "permute", x, 2, batch, 3, positions, 4)
            return [call("call_function", operator.getitem, x, i) for i in range(3)]
        found: list[Node] = []
        for name, x in zip(self.inputs, given, strict=True):
            x = call("call_method", "unflatten", call("call_module", name, x), 2, (self.heads, self.width))
            found.append(call("call_method", "permute", x, batch, 2, positions, 3))
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


def _parts(joined: Tensor) -> tuple[nn.Parameter, ...]:
    return tuple(nn.Parameter(t.detach().clone(), joined.requires_grad) for t in joined.chunk(3))
