"""Layers become one, exactly: padding relocated first (before fine-tuning), then the merge itself.

Weights are composed in float64 (`affine.compose`) and cast back, so that what is left is the rounding of one layer. What would
not be exact is refused with the reason. `segments` says beforehand what can be merged and what it would cost.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch.fx import GraphModule, Node

from compress.edits import Merge, Relocate
from compress.errors import PlanMismatch
from compress.graph.merge import layer_maps
from compress.graph.merge.affine import Kernel, add, after, compose, dirac, same_border
from compress.graph.merge.chains import barriers, is_step, names, runs
from compress.graph.merge.parts import Leaf, Part, Span, called, sizes
from compress.graph.merge.segments import composed, tail


def relocate(module: GraphModule, edits: Sequence[Relocate]) -> GraphModule:
    """A copy of the model in which all padding of each chain stands at its first convolution.

    Sizes stay what they are for every input; values on the border change, so it comes before fine-tuning. The shapes inside the
    chains are other ones then, and are no longer noted.

    Args:
        module: traced model with its shapes noted.
        edits: any number, for different chains.

    Raises:
        PlanMismatch: a chain that this model does not have, or whose padding cannot move.
    """
    module = copy.deepcopy(module)
    # All found before any is moved: an edit names chains of the model as it was.
    for parts in [_find(module, edit, "moves the padding of") for edit in edits]:
        one = composed(parts)
        form = one.head or one.form
        # Nothing to move here; spans inside may be named by edits of their own.
        if not one.moves or form is None:
            continue
        padding = form.padding
        for part in parts:
            if isinstance(part, Leaf) and part.form is not None and part.form.padding:
                m: Any = module.get_submodule(part.name)
                layer_maps.pad(m, padding)
                padding = (0,) * len(padding)  # the first takes all of it, the others none
            for node in part.nodes:
                node.meta.pop("shape", None)
    return module


def merge(module: GraphModule, edits: Sequence[Merge]) -> GraphModule:
    """A copy of the model in which each chain is one layer under its first name. Each edit speaks of the model before it.

    Args:
        module: traced model with its shapes noted, in the precision of its weights.
        edits: any number.

    Raises:
        PlanMismatch: a chain that this model does not have, or one layer in place of which would not compute the same.
    """
    module = copy.deepcopy(module)
    for edit in edits:
        # One after another: a merge changes what the next one finds.
        _merge(module, _find(module, edit, "merges"), edit)
    module.recompile()
    return module


def _find(module: GraphModule, edit: Merge | Relocate, does: str) -> tuple[Part, ...]:
    """The parts that an edit names, with the norms behind them; they have no activation between them."""
    every = runs(module)
    for run in every:
        steps = [i for i, part in enumerate(run.parts) if is_step(part)]
        for number, first in enumerate(steps):
            if names(run.parts[first : first + 1])[0] != edit.layer:
                continue
            for last in steps[number:]:
                if names(run.parts[first : last + 1]) == edit.layers:
                    parts = run.parts[first : tail(run, last) + 1]
                    one = composed(parts)
                    between = f"{one.activations[0]} is not linear" if one.activations else one.refusal
                    if between is None:
                        return parts
                    raise _mismatch(edit, does, between)
    raise _mismatch(edit, does, _difference(module, edit.layers, {n for run in every for n in names(run.parts)}))


def _difference(module: GraphModule, layers: Sequence[str], steps: set[str]) -> str:
    """Where a chain of a plan leaves the model."""
    known = {called(node) for node in module.graph.nodes}
    why = barriers(module)
    for name in layers:
        if name not in known:
            return f"this model does not have {name}"
        if name not in steps:
            return f"{name} {why.get(name, 'is no layer that merges')}"
    for before, name in pairwise(layers):
        if name in why:
            return f"{name} {why[name]}"
        if not any({before, name} <= set(names(run.parts)) for run in runs(module)):
            return f"{name} does not follow {before} alone"
    return "other layers stand between them"


def _mismatch(edit: Merge | Relocate, does: str, reason: str) -> PlanMismatch:
    where = f"{edit.layers[0]} to {edit.layers[-1]}"
    return PlanMismatch(f"The plan {does} {where}, which this model does not allow: {reason}. Run 'compress plan' again.")


def _merge(module: GraphModule, parts: Sequence[Part], edit: Merge) -> None:
    # A mean splits the parts; the merged layer stands on the cheaper side of it.
    """Replace the parts of a chain, in place."""
    at = next((i for i, part in enumerate(parts) if isinstance(part, Leaf) and part.role == "mean"), None)
    made = _kernel(module, parts if at is None else parts[at:], edit)
    head = None if at is None else _kernel(module, parts[:at], edit)
    assert made is not None
    # Only single positions commute with the mean, so they go behind it; a window must stay in front.
    behind = head is not None and head.form.pointwise
    if head is not None:
        made = compose(_of_channels(head) if behind else head, made)
    nodes = [node for part in parts for node in part.nodes]
    first = next(node for node in nodes if called(node) == edit.layer)
    keeper = [part.node for part in parts if is_step(part)][-1] if behind else first
    kept = [part.node for part in parts if isinstance(part, Leaf) and part.role in ("mean", "flatten")]
    order = [*kept, keeper] if behind else [keeper, *kept]
    source = parts[0].entry
    keeper.meta["shape"] = (nodes[-1] if at is None or behind else parts[at].entry).meta.get("shape")
    if at is not None:
        _note_channels(kept if behind else order, (sizes(source) or (0, 0))[1] if behind else made.form.outputs)
    paths = [str(node.target) for node in nodes if node.op == "call_module"]
    # A pool has no parameters to tell type and device.
    like = next(m for m in map(module.get_submodule, paths) if any(True for _ in m.parameters()))
    keeper.target = edit.layer
    for node, reads in zip(order, [source, *order], strict=False):
        node.replace_input_with(node.all_input_nodes[0], reads)
    if order[-1] is not nodes[-1]:
        nodes[-1].replace_all_uses_with(order[-1])
    _erase(module, set(nodes) - set(order), paths)
    module.add_submodule(edit.layer, layer_maps.layer(made, like))


def _of_channels(kernel: Kernel) -> Kernel:
    """A map of single positions as one of vectors."""
    form = replace(kernel.form, size=(), stride=(), padding=())
    return replace(kernel, form=form, weight=kernel.weight.reshape(kernel.weight.shape[:2]))


def _kernel(module: GraphModule, parts: Sequence[Part], edit: Merge) -> Kernel | None:
    """Parts that follow each other, as one map; None where they change nothing."""
    kernels: list[Kernel] = []
    for part in parts:
        following = _part(module, part, edit)
        if following is None:
            continue
        if kernels and not following.form.size and following.form.groups == following.form.inputs:
            kernels[-1] = compose(kernels[-1], following)  # scaling a layer is cheaper than scaling what it becomes
        elif not kernels or same_border(functools.reduce(after, [k.form for k in kernels]), following.form):
            kernels.append(following)
        else:
            raise _mismatch(edit, "merges", f"the border would differ, because {called(part.node)} still has padding of its own")
    return functools.reduce(compose, kernels) if kernels else None


def _part(module: GraphModule, part: Part, edit: Merge) -> Kernel | None:
    if isinstance(part, Span):
        one, other = (_kernel(module, run.parts, edit) or dirac(0) for run in part.branches)
        return add(one, other)
    if part.form is None:
        return None
    kernel = layer_maps.kernel(module.get_submodule(part.name), part.form)
    # Zeros count as no bias: then a padded layer behind may still be exact on the border.
    nothing = kernel.bias is None or not bool(kernel.bias.any())
    return replace(kernel, form=replace(kernel.form, biased=not nothing))


def _note_channels(nodes: Iterable[Node], channels: int) -> None:
    """A mean in front of the merged layer has other channels than one behind it."""
    for node in nodes:
        noted = sizes(node)
        if noted is not None:
            node.meta["shape"] = (noted[0], channels, *noted[2:])


def _erase(module: GraphModule, nodes: set[Node], paths: Iterable[str]) -> None:
    """Take nodes out of the graph, and those of the modules that nobody calls any more out of the model."""
    for node in reversed(list(module.graph.nodes)):  # consumers first, as torch.fx erases no node that is still read
        if node in nodes:
            module.graph.erase_node(node)
    left = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    # Modules that others call stay.
    for path in set(paths) - left:
        module.delete_submodule(path)
